//! Servers that cannot come back: their clients get ECONNRESET within a stated time, and never hang.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::{Beside, Environment, compile, free_port};

#[test]
fn clients_get_a_reset_when_the_restart_limit_is_reached_and_never_hang() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let server = compile(&environment, "epoll_echo_server");
    let client = compile(&environment, "echo_client");
    environment.launch("echo", &["--policy", "request", "--restart-limit", "1"], &[&server, &port]);
    let mut client = Beside::start(environment.run(&[&client, &port, "100000000", "1"]));
    assert_eq!(client.line().as_deref(), Some("connected"));
    environment.kill("echo");
    let pid = environment.wait_for("its second life", || environment.pid("echo"));
    environment::kill(pid);
    let mut last = String::new();
    while let Some(line) = client.line() {
        last = line;
    }
    // A client that is just writing sees a broken pipe, one that reads sees the reset.
    assert!(["error: Connection reset by peer", "error: Broken pipe"].contains(&last.as_str()), "{last:?}\n{}", environment.logs());
    assert!(!client.child.wait().unwrap().success());
}

/// A client reads when its server is killed, and cannot be served again: it must get a reset when the deadline is over.
fn a_reader_is_reset_by_the_deadline(environment: &Environment, port: &str, options: &[&str], server: &[&str], just_before: impl FnOnce()) {
    let client = compile(environment, "echo_client");
    environment.launch("echo", &[&["--restart-limit", "1000"], options].concat(), server);
    let mut client = Beside::start(environment.run(&[&client, port, "100000000", "1"]));
    assert_eq!(client.line().as_deref(), Some("connected"));
    just_before();
    environment::kill(environment.pid("echo").unwrap());
    environment.wait_for("the client to end", || client.child.try_wait().unwrap());
    assert_eq!(client.line().as_deref(), Some("error: Connection reset by peer"), "{}", environment.logs());
    let resets = environment.events("connection-reset");
    assert!(!resets.is_empty() && resets.iter().all(|event| event["values"]["reason"] == "Deadline"), "{resets:?}");
}

/// A server that echoes in its first life and does something else in the next ones.
fn other_lives(environment: &Environment, port: &str, next: &str) -> String {
    let server = compile(environment, "epoll_echo_server");
    let lived = environment.file("lived").display().to_string();
    format!("if [ -e {lived} ]; then {next}; fi; touch {lived}; exec {server} {port}")
}

#[test]
fn a_reader_is_reset_when_its_server_never_binds_again() {
    let (environment, port) = (Environment::up(), free_port().to_string());
    let server = other_lives(&environment, &port, "exec sleep 1000");
    a_reader_is_reset_by_the_deadline(&environment, &port, &["--deadline", "0.7"], &["sh", "-c", &server], || ());
}

#[test]
fn a_reader_is_reset_when_its_server_ends_at_once_each_time() {
    let (environment, port) = (Environment::up(), free_port().to_string());
    let server = other_lives(&environment, &port, "exit 1");
    a_reader_is_reset_by_the_deadline(&environment, &port, &["--deadline", "0.7"], &["sh", "-c", &server], || ());
}

#[test]
fn a_reader_is_reset_when_its_server_s_program_is_gone() {
    let (environment, port) = (Environment::up(), free_port().to_string());
    let server = compile(&environment, "epoll_echo_server");
    let remove = || std::fs::remove_file(&server).unwrap();
    a_reader_is_reset_by_the_deadline(&environment, &port, &["--deadline", "0.7"], &[&server, &port], remove);
    assert!(!environment.events("application-not-started").is_empty());
}

#[test]
fn a_reader_is_reset_when_its_server_listens_but_never_becomes_ready() {
    let (environment, port) = (Environment::up(), free_port().to_string());
    let server = other_lives(&environment, &port, &format!("exec python3 -m http.server {port} --bind 127.0.0.1"));
    let options = ["--deadline", "2", "--ready-send", "are you there?\\r\\n\\r\\n", "--ready-expect", "are you"];
    a_reader_is_reset_by_the_deadline(&environment, &port, &options, &["sh", "-c", &server], || ());
    let told = environment.wait_for("the event that says why", || environment.events("server-not-ready").into_iter().next());
    let heard = told["values"]["heard"].as_str().unwrap();
    assert!(told["values"]["service"] == "echo" && heard.starts_with("\"<!DOCTYPE HTML"), "{told}");
}
