//! Clients without the preload library reach protected servers through a gateway, and keep their TCP connections while server, daemon and gateway are killed
//! (thesis §5.3). None of the clients here runs under `armor run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use environment::echo::echo_server;
use environment::{Beside, Environment, free_port, kill, text};
use sha2::{Digest, Sha256};

/// Run directory of the gateway that these tests start, below that of its node.
const GATEWAY: &str = "node1/armors/gw";

/// A gateway to a service; the port where it listens.
fn gateway(environment: &Environment, service: &str, options: &[&str]) -> u16 {
    let port = free_port();
    let listen = port.to_string();
    let output = environment.armor(&["gateway", "--name", "gw", "--listen", &listen, "--service", service]).args(options).output().unwrap();
    assert!(output.status.success(), "armor gateway: {}\n{}", text(&output), log(environment));
    port
}

fn log(environment: &Environment) -> String {
    std::fs::read_to_string(environment.directory(GATEWAY).join("armor.log")).unwrap_or_default()
}

/// What the gateway says of its only listener.
fn listener(environment: &Environment) -> serde_json::Value {
    let status = environment.status();
    let armors = status["armors"].as_array().cloned().unwrap_or_default();
    let gateway = armors.iter().find(|armor| armor["name"] == "node1/gw");
    gateway.and_then(|armor| armor.pointer("/status/elements/tcp_gateway/state/listeners/0").cloned()).unwrap_or_default()
}

/// The server of tests/programs/gateway_server.py; its port.
fn server(environment: &Environment, options: &[&str]) -> u16 {
    let port = free_port();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/gateway_server.py");
    environment.launch("server", options, &["python3", script, &port.to_string()]);
    port
}

fn line(stream: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// What the server answers when it sees this client as it is: by accept, and by getpeername.
fn who(client: &TcpStream) -> String {
    let own = client.local_addr().unwrap();
    format!("{} {} {}", own.ip(), own.port(), own.port())
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at ^ at >> 9 ^ at >> 17).wrapping_mul(31) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Kills one part of the way after the other.
fn kill_each(environment: &Environment, service: &str) {
    environment.kill(service);
    environment.kill_armor("node1");
    environment.kill_armor(GATEWAY);
}

#[test]
fn curl_downloads_32_mb_while_server_daemon_and_gateway_are_killed_twice_each() {
    let environment = Environment::up();
    let root = environment.file("www");
    std::fs::create_dir(&root).unwrap();
    let content = noise(32 << 20);
    std::fs::write(root.join("big.bin"), &content).unwrap();
    let port = free_port().to_string();
    let server = ["python3", "-m", "http.server", &port, "--bind", "127.0.0.1", "--directory", root.to_str().unwrap()];
    // The time of day in the head of an answer differs.
    environment.launch("files", &["--on-divergence", "continue"], &server);
    let port = gateway(&environment, "files", &[]);
    let file = environment.file("received.bin");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--limit-rate", "10M", "-o", file.to_str().unwrap(), &format!("http://127.0.0.1:{port}/big.bin")]);
    let mut curl = curl.stderr(Stdio::piped()).spawn().unwrap();
    for (part, victim) in (1..7).zip(["server", "node1", GATEWAY].into_iter().cycle()) {
        let arrived = || std::fs::metadata(&file).ok().filter(|meta| meta.len() > part << 22);
        environment.wait_for("the download to go on", || arrived().map(|_| ()).or_else(|| curl.try_wait().unwrap().map(|_| ())));
        if victim == "server" {
            environment.kill("files");
        } else {
            environment.kill_armor(victim);
        }
    }
    let output = curl.wait_with_output().unwrap();
    assert!(output.status.success(), "curl: {}\n{}{}", text(&output), log(&environment), environment.logs());
    assert!(std::fs::read(&file).unwrap() == content, "another stream\n{}", environment.logs());
    assert_eq!(environment.events("connection-lost").len(), 0, "{}", environment.logs());
}

#[test]
fn redis_cli_loses_and_repeats_no_command() {
    const COMMANDS: usize = 2000;
    let environment = Environment::up();
    let (port, directory) = (free_port().to_string(), environment.file("redis"));
    std::fs::create_dir(&directory).unwrap();
    let server = ["redis-server", "--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always", "--save", ""];
    let ready = ["--ready-send", "PING\\r\\n", "--ready-expect", "+PONG"];
    environment.launch("cache", &ready, &[&server[..], &["--dir", directory.to_str().unwrap()]].concat());
    let port = gateway(&environment, "cache", &[]).to_string();
    let mut client = Command::new("redis-cli");
    let mut client = client.args(["-p", &port]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || (0..COMMANDS).try_for_each(|_| writeln!(input, "INCR counter")));
    let mut answers = BufReader::new(client.stdout.take().unwrap()).lines();
    for number in 1..=COMMANDS {
        assert_eq!(answers.next().unwrap().unwrap(), number.to_string(), "{}{}", log(&environment), environment.logs());
        // Between two commands, or in the middle of the next one.
        if number == 500 || number == 1200 {
            environment.kill_armor("node1");
            environment.kill_armor(GATEWAY);
        }
    }
    feeder.join().unwrap().unwrap();
    assert!(client.wait().unwrap().success());
}

#[test]
fn a_kept_alive_http_connection_serves_request_after_request() {
    let environment = Environment::up();
    let root = environment.file("www");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("page.html"), "a page").unwrap();
    let port = free_port().to_string();
    let server = ["python3", "-m", "http.server", &port, "--bind", "127.0.0.1", "--protocol", "HTTP/1.1", "--directory"];
    environment.launch("web", &["--on-divergence", "continue"], &[&server[..], &[root.to_str().unwrap()]].concat());
    let mut client = TcpStream::connect(("127.0.0.1", gateway(&environment, "web", &[]))).unwrap();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    for round in 0..3 {
        for _ in 0..3 {
            client.write_all(b"GET /page.html HTTP/1.1\r\nHost: web\r\nConnection: keep-alive\r\n\r\n").unwrap();
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(reader.read_line(&mut head).unwrap(), 0, "closed after {head:?}\n{}", environment.logs());
            }
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            let mut body = [0; 6];
            reader.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"a page");
        }
        if round < 2 {
            kill_each(&environment, "web");
        }
    }
    assert_eq!(listener(&environment)["service"], "web");
}

#[test]
fn a_half_close_travels_and_the_answer_comes_back_after_it_over_kills() {
    let environment = Environment::up();
    server(&environment, &["--policy", "stream"]);
    let mut client = TcpStream::connect(("127.0.0.1", gateway(&environment, "server", &[]))).unwrap();
    let told = noise(3 << 20);
    client.write_all(b"hash\n").unwrap();
    client.write_all(&told[..1 << 20]).unwrap();
    environment.kill_armor(GATEWAY);
    client.write_all(&told[1 << 20..2 << 20]).unwrap();
    kill_each(&environment, "server");
    client.write_all(&told[2 << 20..]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(line(&client), format!("{} {}", told.len(), sha256(&told)), "{}{}", log(&environment), environment.logs());
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "and then the server's own close");
    drop(client);
    environment
        .wait_for("nothing to be left", || (environment.client_ends().is_empty() && environment.server_ends().is_empty()).then_some(()));
}

#[test]
fn resets_and_closes_travel_both_ways_as_what_they_are() {
    let environment = Environment::up();
    server(&environment, &["--policy", "reconnect"]);
    let port = gateway(&environment, "server", &[]);
    let connect = |asks: &str| {
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.write_all(asks.as_bytes()).unwrap();
        client
    };
    // From the server.
    let error = connect("reset\n").read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // From the client: while both directions are open, and behind a half-close.
    let ended = |how: &str, count: usize| {
        environment.wait_for(how, || {
            let log = environment.log("server");
            (log.lines().filter(|line| *line == how).count() == count).then_some(())
        });
    };
    let client = connect("watch\n");
    assert_eq!(line(&client), "watching");
    rustix::net::sockopt::set_socket_linger(client.as_fd(), Some(Duration::ZERO)).unwrap();
    drop(client);
    ended("ended by ConnectionResetError", 1);
    let mut client = connect("watch\n");
    assert_eq!(line(&client), "watching");
    client.write_all(b"12345").unwrap();
    drop(client);
    ended("closed after 5", 1);
    // Poured into a connection whose client has gone: its server is told, and does not wait for ever.
    let client = connect("pour 100000000\n");
    client.peek(&mut [0; 1]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    drop(client);
    environment
        .wait_for("nothing to be left", || (environment.client_ends().is_empty() && environment.server_ends().is_empty()).then_some(()));
}

#[test]
fn two_hundred_connections_outlive_every_part_of_the_way() {
    let environment = Environment::up();
    echo_server(&environment, &[]);
    let port = gateway(&environment, "echo", &[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verify_echo.py");
    let mut verifier = Command::new("python3");
    verifier.args([script, &format!("127.0.0.1:{port}"), "200", "60000"]);
    let mut client = Beside::start(verifier);
    assert_eq!(client.line().as_deref(), Some("all connected"), "{}", environment.logs());
    kill_each(&environment, "echo");
    environment.kill_armor(GATEWAY);
    assert_eq!(client.line().as_deref(), Some("identical"), "{}{}", log(&environment), environment.logs());
    assert!(listener(&environment)["accepted"].is_u64());
}

#[test]
fn a_server_that_moves_to_another_node_keeps_its_clients_and_sees_their_addresses() {
    let environment = Environment::up_with(&["--node", "node1", "--node", "a", "--node", "b"]);
    server(&environment, &["--policy", "reconnect", "--node", "a"]);
    let port = gateway(&environment, "server", &["--node", "node1"]);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let expected = who(&client);
    client.write_all(b"who\n").unwrap();
    assert_eq!(line(&client), expected);
    let pid = environment.pid("server").unwrap();
    environment.kill_with_vault("a");
    kill(pid);
    environment.wait_for("the server on another node", || environment.pid("server").filter(|now| *now != pid));
    client.write_all(b"who\n").unwrap();
    assert_eq!(line(&client), expected, "{}{}", log(&environment), environment.logs());
}

#[test]
fn a_slow_reader_holds_its_server_back_and_misses_nothing() {
    const LENGTH: usize = 64 << 20;
    let environment = Environment::up();
    server(&environment, &["--policy", "stream"]);
    let mut client = TcpStream::connect(("127.0.0.1", gateway(&environment, "server", &[]))).unwrap();
    client.write_all(format!("pour {LENGTH}\n").as_bytes()).unwrap();
    // It has said what fits into sockets and windows, and then no more.
    let mut said = 0;
    let mut same = 0;
    let held = environment.wait_for("the server to be held back", || {
        let now = environment.said_by_servers();
        same = if now == said && now > 0 { same + 1 } else { 0 };
        said = now;
        (same == 20).then_some(now)
    });
    assert!(held < LENGTH as u64 / 2, "{held} bytes were taken from the server");
    environment.kill_armor(GATEWAY);
    let (mut heard, mut piece) = (0, vec![0; 1 << 16]);
    while heard < LENGTH {
        let got = client.read(&mut piece).unwrap();
        assert_ne!(got, 0, "closed after {heard}\n{}{}", log(&environment), environment.logs());
        for (at, byte) in piece[..got].iter().enumerate() {
            let at = (heard + at) & 0xffff;
            assert_eq!(*byte, (at * 7 + (at >> 8)) as u8, "byte {}", heard + at);
        }
        heard += got;
    }
}

#[test]
fn what_cannot_be_is_said_and_a_service_may_come_later() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let asked = |arguments: &[&str]| {
        let output = environment.armor(&["gateway"]).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{}", text(&output));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = asked(&["--listen", &port, "--service", "server"]);
    assert!(said.contains("no service server is there") && said.contains("--later"), "{said}");
    let own = server(&environment, &[]).to_string();
    let said = asked(&["--listen", &port, "--service", "server", "--port", "1"]);
    assert!(said.contains("no service server at port 1 is there"), "{said}");
    let listening = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let said = asked(&["--listen", &listening.local_addr().unwrap().to_string(), "--service", "server"]);
    assert!(said.contains("cannot listen at 127.0.0.1:") && said.contains("choose another port"), "{said}");
    // The server's own address is reserved, and nobody else listens there.
    let output = environment.armor(&["gateway", "--name", "own", "--listen", &own, "--service", "server"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let mut client = TcpStream::connect(("127.0.0.1", own.parse().unwrap())).unwrap();
    client.write_all(b"who\n").unwrap();
    assert_eq!(line(&client), who(&client));
    // A client that comes first waits, and one whose service does not come is reset.
    let early = gateway(&environment, "late", &["--later", "--wait", "60"]);
    let mut client = TcpStream::connect(("127.0.0.1", early)).unwrap();
    client.write_all(b"who\n").unwrap();
    environment.wait_for("the client to wait", || (listener(&environment)["waiting"] == 1).then_some(()));
    // A gateway that dies meanwhile has it still.
    environment.kill_armor(GATEWAY);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/gateway_server.py");
    environment.launch("late", &[], &["python3", script, &free_port().to_string()]);
    assert_eq!(line(&client), who(&client));
    let never =
        environment.armor(&["gateway", "--name", "never", "--listen", &port, "--service", "none", "--later", "--wait", "0.1"]).output();
    assert!(never.unwrap().status.success());
    let error = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap().read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    environment
        .wait_for("an event", || environment.events("gateway-refused").into_iter().find(|event| event["values"]["service"] == "none"));
    // One that is stopped resets its clients, and its address is free.
    let output = environment.armor(&["stop", "gw"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    std::net::TcpListener::bind(("127.0.0.1", early)).unwrap();
}

#[test]
fn clients_that_come_while_the_gateway_dies_again_and_again_are_served_right_or_reset() {
    const CLIENTS: usize = 4;
    const KILLS: usize = 5;
    let environment = Environment::up();
    server(&environment, &["--policy", "reconnect"]);
    let port = gateway(&environment, "server", &[]);
    let enough = AtomicBool::new(false);
    let (served, reset) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let come = || {
        while !enough.load(Ordering::SeqCst) {
            // Its listener outlives the gateway, so nobody is refused.
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let expected = format!("{}\n", who(&client));
            let mut heard = vec![0; expected.len()];
            // Accepted, and not yet in the vault: the one moment in which a connection can be lost.
            match client.write_all(b"who\n").and_then(|()| client.read_exact(&mut heard)) {
                Ok(()) => assert_eq!(String::from_utf8(heard).unwrap(), expected),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    reset.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                Err(error) => panic!("{error}\n{}{}", log(&environment), environment.logs()),
            }
            // And its connection is nobody else's.
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
            served.fetch_add(1, Ordering::SeqCst);
        }
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(come)).collect();
        for _ in 0..KILLS {
            let before = served.load(Ordering::SeqCst);
            environment.wait_for("clients to be served", || {
                let ended = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                (ended || served.load(Ordering::SeqCst) > before + 10).then_some(())
            });
            environment.kill_armor(GATEWAY);
        }
        enough.store(true, Ordering::SeqCst);
    });
    let (served, reset) = (served.into_inner(), reset.into_inner());
    assert!(served > 10 * KILLS && reset <= KILLS * CLIENTS, "{served} served, {reset} reset");
}
