//! Nodes that die, are cut off and come back, and what the FTM says of them. The tests print how long the FTM took to find out; they do not judge it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use environment::nodes::{Nodes, Placement, may_make_namespaces};
use environment::{Environment, compile, free_port};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A node of a network dies with all that runs on it, is missed, and comes back.
fn a_node_dies_and_comes_back(placement: Placement) {
    let nodes = Nodes::up(placement, &["a", "b"]);
    let port = free_port().to_string();
    nodes.launch("b", "web", &[], &["python3", "-m", "http.server", &port]);
    let url = format!("http://{}:{port}/", nodes.address("b"));
    let client =
        nodes.run("a", &["python3", "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)", &url]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&client.stdout), "200\n", "{}\n{}", environment::text(&client), nodes.logs());
    let of_a = nodes.processes("a");
    // From before its link or its first process goes, so this is rather too much.
    let killed_at = now_ms();
    nodes.kill_node("b");
    assert!(nodes.processes("b").is_empty());
    assert_eq!(nodes.processes("a"), of_a, "nothing of the other node was killed");
    let failed = nodes.wait_for_events("node-failed", 1);
    assert_eq!(failed[0]["values"]["node"], "b");
    let expected = if placement == Placement::Groups { "link gone" } else { "kernel silent" };
    assert_eq!(failed[0]["values"]["why"], expected, "{failed:?}");
    println!("{placement:?}: found after {} ms", failed[0]["at_ms"].as_u64().unwrap().saturating_sub(killed_at));
    nodes.revive("b");
    nodes.wait_for_events("node-back", 1);
    assert_eq!(nodes.events("node-failed").len(), 1);
}

#[test]
fn a_node_dies_and_comes_back_on_loopback() {
    a_node_dies_and_comes_back(Placement::Groups);
}

#[test]
fn a_node_dies_and_comes_back_in_a_namespace() {
    if may_make_namespaces("a_node_dies_and_comes_back_in_a_namespace") {
        a_node_dies_and_comes_back(Placement::Namespaces);
    }
}

#[test]
fn a_node_whose_cable_is_out_is_missed_and_comes_back_with_it() {
    if !may_make_namespaces("a_node_whose_cable_is_out_is_missed_and_comes_back_with_it") {
        return;
    }
    let nodes = Nodes::up(Placement::Namespaces, &["a", "b"]);
    nodes.cut("b");
    let failed = nodes.wait_for_events("node-failed", 1);
    assert_eq!(failed[0]["values"]["why"], "kernel silent", "{failed:?}");
    nodes.mend("b");
    nodes.wait_for_events("node-back", 1);
    // It does not hear, or is not heard: either way nothing of it is acknowledged.
    for (round, one_way) in [Nodes::mute, Nodes::deafen].into_iter().enumerate() {
        one_way(&nodes, "b");
        nodes.wait_for_events("node-failed", round + 2);
        nodes.mend("b");
        nodes.wait_for_events("node-back", round + 2);
    }
}

#[test]
fn a_daemon_that_is_started_again_by_its_vault_is_no_failed_node() {
    let nodes = Nodes::up(Placement::Groups, &["a", "b"]);
    for _ in 0..5 {
        nodes.kill_armor("b", "b");
        // Not young any more: the next death is not one of a row, which would have a pause after it.
        let ready = std::fs::metadata(nodes.run_dir("b", "b").join("ready")).unwrap().modified().unwrap();
        nodes.wait_for("the daemon to grow up", || (ready.elapsed().ok()?.as_millis() >= 250).then_some(()));
    }
    nodes.wait_for_events("daemon-registered", 2 + 5);
    assert_eq!(nodes.events("node-failed"), Vec::<serde_json::Value>::new(), "{}", nodes.logs());
}

#[test]
fn a_daemon_that_is_stopped_is_its_vaults_affair() {
    let nodes = Nodes::up(Placement::Groups, &["a", "b"]);
    let daemon = nodes.process("b", "b", "pid");
    environment::signal(daemon, rustix::process::Signal::STOP);
    // Its vault kills it after a second and starts the next one.
    nodes.wait_for("the next life", || (nodes.process("b", "b", "pid") != daemon).then_some(()));
    nodes.wait_for_events("daemon-registered", 3);
    assert_eq!(nodes.events("node-failed"), Vec::<serde_json::Value>::new(), "{}", nodes.logs());
}

#[test]
fn a_node_that_dies_together_with_the_ftms_process_is_missed_by_the_next_one() {
    let nodes = Nodes::up(Placement::Groups, &["a", "b"]);
    let ftm = nodes.process("a", "ftm", "pid");
    // It sees nothing of the node's death, and does not live to hear of it.
    environment::signal(ftm, rustix::process::Signal::STOP);
    nodes.kill_node("b");
    environment::kill(ftm);
    let failed = nodes.wait_for_events("node-failed", 1);
    assert_eq!(failed[0]["values"]["node"], "b");
    assert_ne!(nodes.process("a", "ftm", "pid"), ftm);
}

/// Heartbeats wait behind all the connections that have something to say.
#[test]
fn a_daemon_with_two_thousand_busy_connections_is_no_failed_node() {
    const CONNECTIONS: u64 = 2000;
    let limit = getrlimit(Resource::Nofile);
    let needed = 3 * CONNECTIONS + 500;
    assert!(limit.maximum.is_none_or(|most| most >= needed), "this test needs {needed} open files; raise the hard limit (ulimit -Hn)");
    if limit.current.is_some_and(|now| now < CONNECTIONS + 100) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(CONNECTIONS + 100), ..limit }).unwrap();
    }
    let environment = Environment::up();
    let port = free_port().to_string();
    let (server, client) = (compile(&environment, "epoll_echo_server"), compile(&environment, "many_echo_clients"));
    environment.launch("echo", &[], &[&server, &port]);
    let mut client = environment.run(&[&client, &port, &CONNECTIONS.to_string()]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut commands = client.stdin.take().unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut answer = || said.next().unwrap_or_else(|| panic!("the client has ended\n{}", environment.logs())).unwrap();
    assert_eq!(answer(), "connected");
    writeln!(commands, "5").unwrap();
    assert_eq!(answer(), "done");
    drop(commands);
    assert!(client.wait().unwrap().success());
    assert_eq!(environment.events("node-failed"), Vec::<serde_json::Value>::new(), "{}", environment.logs());
}
