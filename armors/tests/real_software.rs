//! Real programs, unmodified, killed with SIGKILL in the middle of their work; the result is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::{BufRead, Write};
use std::process::{Command, Stdio};

use environment::{Beside, Environment, compile, free_port, text};
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that repeat nowhere.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

/// A file of so many bytes, its URL, and a server for it. What the server says depends on the request alone but for the time of
/// day in the head of the answer, so a regenerated one differs in those bytes: the service says to go on.
fn file_server(environment: &Environment, length: usize, options: &[&str]) -> (String, Vec<u8>) {
    let root = environment.file("www");
    std::fs::create_dir(&root).unwrap();
    let content = noise(length);
    std::fs::write(root.join("big.bin"), &content).unwrap();
    let port = free_port().to_string();
    let options = [&["--policy", "stream", "--on-divergence", "continue"], options].concat();
    let root = root.to_str().unwrap();
    environment.launch("files", &options, &["python3", "-m", "http.server", &port, "--bind", "127.0.0.1", "--directory", root]);
    (format!("http://127.0.0.1:{port}/big.bin"), content)
}

#[test]
fn clients_of_a_server_under_an_execution_armor_receive_the_identical_stream_over_two_kills() {
    let environment = Environment::up();
    let (url, content) = file_server(&environment, 40 << 20, &["--execution-armor"]);
    let received = [1, 2, 3].map(|number| environment.file(&format!("received-{number}.bin")));
    let clients = received.each_ref().map(|file| {
        let mut curl = environment.run(&["curl", "-sS", "--limit-rate", "10M", "-o", file.to_str().unwrap(), &url]);
        curl.stderr(Stdio::piped()).spawn().unwrap()
    });
    for part in [5 << 20, 20 << 20] {
        environment.wait_for("every client to have a part", || {
            let lengths = received.iter().map(|file| std::fs::metadata(file).map_or(0, |meta| meta.len()));
            lengths.min().filter(|least| *least >= part)
        });
        environment.kill("files");
    }
    for (client, file) in clients.into_iter().zip(&received) {
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "curl: {}\n{}", text(&output), environment.logs());
        assert!(std::fs::read(file).unwrap() == content, "another stream in {}\n{}", file.display(), environment.logs());
    }
    let recoveries = environment.recoveries("files");
    assert!(recoveries.len() == 2 && recoveries.iter().all(|recovery| recovery["flowing_ms"].is_u64()), "{recoveries:?}");
}

#[test]
fn curl_downloads_200_mb_from_python_over_three_kills_with_the_same_sha256() {
    let environment = Environment::up();
    let (url, content) = file_server(&environment, 200 << 20, &[]);
    let downloaded = environment.file("downloaded.bin");
    let mut curl = environment.run(&["curl", "-sS", "--limit-rate", "60M", "-o", downloaded.to_str().unwrap(), &url]);
    let mut curl = curl.stderr(Stdio::piped()).spawn().unwrap();
    for part in [20, 60, 120] {
        let arrived = || std::fs::metadata(&downloaded).ok().filter(|meta| meta.len() > part << 20);
        environment.wait_for("the download to go on", || arrived().map(|_| ()).or_else(|| curl.try_wait().unwrap().map(|_| ())));
        environment.kill("files");
    }
    let output = curl.wait_with_output().unwrap();
    assert!(output.status.success(), "curl: {}\n{}", text(&output), environment.logs());
    assert_eq!(sha256(&std::fs::read(&downloaded).unwrap()), sha256(&content));
}

/// Keys that Redis has in its file before the test: enough that it reads them for a while at each start. Meanwhile it listens
/// already and answers LOADING, which must reach no client.
const KEYS_BEFORE: usize = 400_000;

/// redis-server with an append-only file, so that nothing is lost that it has answered; clients wait until it has read it.
fn redis(environment: &Environment) -> String {
    let directory = environment.file("redis");
    std::fs::create_dir(&directory).unwrap();
    let mut file = std::io::BufWriter::new(std::fs::File::create(directory.join("appendonly.aof")).unwrap());
    for number in 0..KEYS_BEFORE {
        let key = format!("before:{number}");
        write!(file, "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$5\r\nvalue\r\n", key.len()).unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    let port = free_port().to_string();
    let directory = directory.display().to_string();
    let server = ["redis-server", "--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir", &directory];
    let options = ["--policy", "request", "--ready-send", "PING\\r\\n", "--ready-expect", "+PONG", "--wait", "60"];
    environment.launch("cache", &options, &server);
    port
}

/// Lives of redis-server that became ready, and how often each was asked.
fn ready(environment: &Environment) -> Vec<u64> {
    environment.events("server-ready").iter().map(|event| event["values"]["tries"].as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn redis_cli_loses_no_command_over_kills_although_redis_reads_a_long_file_at_each_start() {
    const COMMANDS: usize = 3000;
    let environment = Environment::up();
    let port = redis(&environment);
    let mut client = environment.run(&["redis-cli", "-p", &port]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || (0..COMMANDS).try_for_each(|number| writeln!(input, "SET key:{number} value:{number}")));
    let mut answered = 0;
    for line in std::io::BufReader::new(client.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        assert_eq!(line, "OK", "after {answered} answers\n{}", environment.logs());
        answered += 1;
        if [500, 1500, 2500].contains(&answered) {
            environment.kill("cache");
        }
    }
    feeder.join().unwrap().unwrap();
    assert!(client.wait().unwrap().success());
    assert_eq!(answered, COMMANDS, "every command has one answer");
    let size = environment.output(&["redis-cli", "-p", &port, "DBSIZE"]);
    assert_eq!(String::from_utf8_lossy(&size.stdout).trim(), (KEYS_BEFORE + COMMANDS).to_string(), "{}", text(&size));
    let ready = ready(&environment);
    assert!(
        ready.len() == 4 && ready.iter().any(|tries| *tries > 1),
        "Redis answers LOADING for a while at each start: asked {ready:?} times"
    );
}

#[test]
fn redis_benchmark_completes_over_kills_although_redis_reads_a_long_file_at_each_start() {
    let environment = Environment::up();
    let port = redis(&environment);
    let mut client = environment.run(&["redis-benchmark", "-p", &port, "-t", "set", "-n", "60000", "-c", "20", "-q"]);
    let mut client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..2 {
        let said = environment.said_by_servers();
        environment.wait_for("the benchmark to be served", || {
            assert!(client.try_wait().unwrap().is_none(), "the benchmark was over before the kill");
            (environment.said_by_servers() > said).then_some(())
        });
        environment.kill("cache");
    }
    // Once more, while it reads its file.
    environment.kill("cache");
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success() && !text(&output).contains("rror"), "{}\n{}", text(&output), environment.logs());
    assert!(ready(&environment).len() >= 3, "{}", environment.logs());
}

#[test]
fn nginx_serves_wrk_and_keep_alive_curl_over_kills_without_an_error() {
    let environment = Environment::up();
    let port = free_port();
    let root = environment.file("nginx");
    std::fs::create_dir_all(root.join("html")).unwrap();
    std::fs::write(root.join("html/index.html"), noise(4096)).unwrap();
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let configuration = format!(
        "{user}daemon off;\nworker_processes 2;\npid {root}/nginx.pid;\nerror_log {root}/error.log;\nevents {{ worker_connections 512; }}\n\
         http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
         keepalive_requests 1000000; server {{ listen 127.0.0.1:{port}; location / {{ root {root}/html; }} }} }}\n",
        root = root.display()
    );
    std::fs::write(root.join("nginx.conf"), configuration).unwrap();
    let conf = root.join("nginx.conf").display().to_string();
    let nginx = if std::path::Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    environment.launch("web", &["--policy", "request", "--on-divergence", "continue"], &[nginx, "-c", &conf, "-p", root.to_str().unwrap()]);
    let url = format!("http://127.0.0.1:{port}/index.html");
    let wrk = environment.run(&["wrk", "-t1", "-c8", "-d6s", &url]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..3 {
        environment.kill("web");
    }
    let urls: Vec<&str> = std::iter::repeat_n(url.as_str(), 200).collect();
    let mut arguments = vec!["curl", "-sS", "--fail", "-o", "/dev/null"];
    arguments.extend(urls.iter().flat_map(|url| ["-o", "/dev/null", url]).skip(2));
    let curl = environment.run(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    environment.kill("web");
    let curl = curl.wait_with_output().unwrap();
    assert!(curl.status.success(), "curl: {}\n{}", text(&curl), environment.logs());
    let wrk = wrk.wait_with_output().unwrap();
    let report = text(&wrk);
    assert!(wrk.status.success() && report.contains("requests in"), "{report}");
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}\n{}", environment.logs());
}

#[test]
fn an_epoll_echo_server_in_c_echoes_every_byte_over_kills() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let server = compile(&environment, "epoll_echo_server");
    let client = compile(&environment, "echo_client");
    environment.launch("echo", &["--policy", "request"], &[&server, &port]);
    let clients: Vec<Beside> = (0..4).map(|seed| Beside::start(environment.run(&[&client, &port, "2000", &seed.to_string()]))).collect();
    for _ in 0..4 {
        environment.kill("echo");
    }
    for client in clients {
        assert!(client.finish(), "a client saw an error or other bytes\n{}", environment.logs());
    }
}

#[test]
fn a_pre_forking_server_survives_the_death_of_its_workers_and_of_its_master() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let server = compile(&environment, "prefork_server");
    let client = compile(&environment, "echo_client");
    environment.launch("prefork", &["--policy", "request"], &[&server, &port]);
    let mut clients: Vec<Beside> =
        (0..4).map(|seed| Beside::start(environment.run(&[&client, &port, "8000", &seed.to_string()]))).collect();
    for client in &mut clients {
        assert_eq!(client.line().as_deref(), Some("connected"));
    }
    let master = environment.pid("prefork").unwrap();
    for _ in 0..3 {
        let served = environment.said_by_servers();
        environment.wait_for("the workers to serve", || (environment.said_by_servers() > served).then_some(()));
        let failures = environment.events("worker-failed").len();
        // All of them, so that it does not matter which one serves whom.
        let workers = children(master);
        workers.iter().for_each(|worker| environment::kill(*worker));
        environment.wait_for("a connection to be taken from its dead worker", || {
            (environment.events("worker-failed").len() > failures).then_some(())
        });
        environment.wait_for("other workers", || children(master).iter().all(|child| !workers.contains(child)).then_some(()));
    }
    environment.kill("prefork");
    for client in clients {
        assert!(client.finish(), "a client saw an error or other bytes\n{}", environment.logs());
    }
}

fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn an_asyncio_client_and_server_talk_over_kills() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let programs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let server = programs.join("asyncio_server.py").display().to_string();
    let client = programs.join("asyncio_client.py").display().to_string();
    environment.launch("asyncio", &["--policy", "request"], &["python3", &server, &port]);
    let clients: Vec<Beside> =
        (0..2).map(|seed| Beside::start(environment.run(&["python3", &client, &port, "600", &seed.to_string()]))).collect();
    for _ in 0..3 {
        environment.kill("asyncio");
    }
    for client in clients {
        assert!(client.finish(), "a client saw an error or other bytes\n{}", environment.logs());
    }
}

#[test]
fn a_program_that_no_service_answers_uses_the_kernel() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let mut server = Command::new("python3")
        .args(["-u", "-m", "http.server", &port, "--bind", "127.0.0.1", "--directory", environment.path().to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let url = format!("http://127.0.0.1:{port}/");
    let output = environment.output(&["curl", "-sS", "--fail", "--retry", "30", "--retry-connrefused", "--retry-delay", "1", &url]);
    let _ = server.kill();
    let _ = server.wait();
    assert!(output.status.success(), "{}", text(&output));
}
