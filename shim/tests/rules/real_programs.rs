//! Other people's programs, unmodified.

use std::path::PathBuf;
use std::process::Command;

use armor_proto::hookup::Request;

use crate::mock::{MockArmor, free_port};
use crate::program::{Running, hooked};

/// `python3` itself; a shim of pyenv would start it through a shell.
fn python() -> String {
    let mut python = Command::new(installed("python3"));
    python.args(["-c", "import sys; print(sys.executable)"]);
    Running::start(python).succeed().trim().to_owned()
}

#[test]
fn curl_fetches_from_python_http_server() {
    let armor = MockArmor::start();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("page"), "x".repeat(1 << 20)).unwrap();
    let port = free_port().to_string();
    let mut server = hooked(&armor, python());
    server.args(["-u", "-m", "http.server", &port, "--bind", "127.0.0.1"]).current_dir(directory.path());
    let mut server = Running::start(server);
    server.line("Serving HTTP");
    assert_eq!(armor.services().len(), 1);
    let mut curl = hooked(&armor, installed("curl"));
    curl.args(["-q", "-sS", "--noproxy", "*", "-w", "%{http_code} %{size_download}"]);
    curl.arg(format!("http://127.0.0.1:{port}/page")).args(["-o", "/dev/null"]);
    assert_eq!(Running::start(curl).succeed().trim(), "200 1048576");
}

#[test]
fn asyncio_server_and_clients_share_one_event_loop() {
    for host in ["127.0.0.1", "::1"] {
        let armor = MockArmor::start();
        let mut command = hooked(&armor, python());
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/asyncio_echo.py")).arg(host);
        Running::start(command).succeed();
        let connects = armor.requests().iter().filter(|request| matches!(request, Request::Connect { .. })).count();
        assert_eq!(connects, 21);
    }
}

/// The path of a program that the tests need, also where `/usr/sbin` is not in PATH.
fn installed(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
    let found = places.map(|place| place.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed; `make test` (or `make setup`) installs what the tests run"))
}

#[test]
fn nginx_proxies_between_its_workers_and_a_server() {
    let nginx = installed("nginx");
    let armor = MockArmor::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    std::fs::write(directory.path().join("page"), "y".repeat(300_000)).unwrap();
    let (front, back) = (free_port(), free_port());
    // A back end of nginx's own, through connect() after epoll_ctl(), and workers that share the listeners.
    let configuration = format!(
        "daemon off; worker_processes 2; pid {path}/pid; error_log stderr warn;
         events {{ worker_connections 64; }}
         http {{ access_log off; client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c;
           uwsgi_temp_path {path}/d; scgi_temp_path {path}/e;
           server {{ listen 127.0.0.1:{front}; location / {{ proxy_pass http://127.0.0.1:{back}; }} }}
           server {{ listen 127.0.0.1:{back} reuseport; root {path}; }} }}"
    );
    std::fs::write(directory.path().join("nginx.conf"), configuration).unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut nginx = hooked(&armor, nginx);
    nginx.arg("-c").arg(directory.path().join("nginx.conf"));
    if rustix::process::geteuid().is_root() {
        // The mock answers everybody, but another user could not reach its directory.
        nginx.args(["-g", "user root;"]);
    }
    let nginx = Running::start(nginx);
    armor.wait_for("listeners", |requests| requests.iter().filter(|request| matches!(request, Request::Listen { .. })).count() >= 2);
    for _ in 0..5 {
        let mut curl = hooked(&armor, installed("curl"));
        curl.args(["-q", "-sS", "--noproxy", "*", "-w", "%{http_code} %{size_download}", "-o", "/dev/null"]);
        curl.arg(format!("http://127.0.0.1:{front}/page"));
        assert_eq!(Running::start(curl).succeed().trim(), "200 300000");
    }
    let connects = armor.requests().iter().filter(|request| matches!(request, Request::Connect { .. })).count();
    assert!(connects >= 10, "curl to the front, the front to the back: {connects}");
    nginx.terminate();
}

#[test]
fn redis_serves_its_client() {
    let (server, client) = (installed("redis-server"), installed("redis-cli"));
    let armor = MockArmor::start();
    let port = free_port().to_string();
    let mut server = hooked(&armor, server);
    server.args(["--port", &port, "--bind", "127.0.0.1", "-::1", "--save", "", "--daemonize", "no"]);
    let server = Running::start(server);
    armor.wait_for("listeners", |requests| requests.iter().filter(|request| matches!(request, Request::Listen { .. })).count() >= 2);
    for (host, set, answer) in [("127.0.0.1", "SET", "OK"), ("::1", "GET", "value")] {
        let mut client = hooked(&armor, &client);
        client.args(["-h", host, "-p", &port, set, "key"]).args((set == "SET").then_some("value"));
        assert_eq!(Running::start(client).succeed().trim(), answer);
    }
    server.terminate();
}
