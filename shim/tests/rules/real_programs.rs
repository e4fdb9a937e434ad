//! Other people's programs, unmodified.

use std::process::Command;

use crate::mock::{MockArmor, free_port};
use crate::program::{Running, hooked};

/// `python3` itself; a shim of pyenv would start it through a shell.
fn python() -> String {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
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
    let mut curl = hooked(&armor, "curl");
    curl.args(["-sS", "--noproxy", "*", "-w", "%{http_code} %{size_download}"]);
    curl.arg(format!("http://127.0.0.1:{port}/page")).args(["-o", "/dev/null"]);
    assert_eq!(Running::start(curl).succeed().trim(), "200 1048576");
}
