//! A thousand connections of one client to one server that is killed twice: every one goes on, every byte is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::mpsc;

use environment::{Environment, compile, free_port};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const CONNECTIONS: u64 = 1000;
/// Messages that each connection says and hears between two kills.
const ROUNDS: u32 = 12;

/// Client and server need a descriptor per connection, and get the limit of this process. Their ARMOR, with three, takes what it needs.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let needed = 3 * CONNECTIONS + 500;
    assert!(limit.maximum.is_none_or(|most| most >= needed), "this test needs {needed} open files; raise the hard limit (ulimit -Hn)");
    let enough = CONNECTIONS + 100;
    if limit.current.is_some_and(|now| now < enough) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(enough), ..limit }).unwrap();
    }
}

#[test]
fn an_armor_takes_all_descriptors_that_it_may_and_its_applications_have_the_usual_limit() {
    for options in [&[][..], &["--execution-armor"]] {
        let environment = Environment::up_in(&["sh", "-c", "ulimit -Sn 300; exec \"$0\" \"$@\""]);
        let limit = environment.file("limit").display().to_string();
        let application = format!("ulimit -Sn > {limit}.new; mv {limit}.new {limit}; exec sleep 1000");
        environment.launch("limited", &[&["--wait", "0"], options].concat(), &["sh", "-c", &application]);
        let usual = environment.wait_for("the application's limit", || std::fs::read_to_string(&limit).ok());
        assert_eq!(usual.trim(), "300");
        let daemon = std::fs::read_to_string(environment.path().join("run/node1/pid")).unwrap();
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.trim())).unwrap();
        let files: Vec<&str> = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
        assert_eq!(files[3], files[4], "soft and hard: {files:?}");
    }
}

#[test]
fn a_thousand_connections_go_on_over_two_kills() {
    allow_descriptors();
    let environment = Environment::up();
    let port = free_port().to_string();
    let server = compile(&environment, "epoll_echo_server");
    let client = compile(&environment, "many_echo_clients");
    environment.launch("echo", &["--policy", "request"], &[&server, &port]);
    let mut client = environment.run(&[&client, &port, &CONNECTIONS.to_string()]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut commands = client.stdin.take().unwrap();
    let (say, said) = mpsc::channel();
    let output = BufReader::new(client.stdout.take().unwrap());
    let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
    // The end of its output is an answer too.
    let answer = || said.recv().unwrap_or_else(|_| panic!("the client has ended\n{}", environment.logs()));
    assert_eq!(answer(), "connected");
    for _ in 0..2 {
        writeln!(commands, "{ROUNDS}").unwrap();
        let heard = environment.said_by_servers();
        environment.wait_for("the rounds to begin", || (environment.said_by_servers() > heard).then_some(()));
        environment.kill("echo");
        assert!(said.try_recv().is_err(), "the rounds were over before the kill");
        assert_eq!(answer(), "done");
    }
    drop(commands);
    assert!(client.wait().unwrap().success());
    reader.join().unwrap().unwrap();
    assert!(environment.events("connection-reset").is_empty(), "{}", environment.logs());
    let recoveries = environment.recoveries("echo");
    assert!(recoveries.len() == 2 && recoveries.iter().all(|recovery| recovery["flowing_ms"].is_u64()), "{recoveries:?}");
    // Most of them are told together, a while later.
    environment.wait_for("the events of all recoveries", || {
        let connections = |event: &serde_json::Value| event["values"]["connections"].as_str().map_or(1, |number| number.parse().unwrap());
        let recovered: u64 = environment.events("connection-recovered").iter().map(connections).sum();
        (recovered == 2 * CONNECTIONS).then_some(())
    });
    assert!(environment.events("worker-failed").is_empty(), "{}", environment.logs());
}
