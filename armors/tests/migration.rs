//! Nodes are killed whole, daemon, vault and applications at once, while clients stream: their servers go on elsewhere, and nothing is lost
//! or repeated (thesis §4.5.4).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::{Beside, Environment, compile, free_port, kill, signal};
use rustix::process::Signal;

/// FTM, nodes a and b for servers, c for clients.
fn network() -> Environment {
    Environment::up_with(&["--node", "a", "--node", "b", "--node", "c"])
}

fn echo_server(environment: &Environment, options: &[&str]) -> String {
    let port = free_port().to_string();
    let program = compile(environment, "epoll_echo_server");
    environment.launch("echo", &[&["--policy", "stream", "--node", "a"], options].concat(), &[&program, &port]);
    port
}

/// A client on a node that compares every byte, with all its connections open.
fn verifier(environment: &Environment, node: &str, port: &str, arguments: &[&str]) -> Beside {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verify_echo.py");
    let mut run = environment.armor(&["run", "--node", node]);
    run.args(["--", "python3", script, port]).args(arguments);
    let mut client = Beside::start(run);
    assert_eq!(client.line().as_deref(), Some("all connected"), "{}", logs(environment));
    client
}

fn finishes_identical(environment: &Environment, client: &mut Beside) {
    client.end();
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", logs(environment));
}

fn logs(environment: &Environment) -> String {
    let events = environment.armor(&["events"]).output().unwrap();
    ["a", "b", "c", "ftm"].iter().fold(String::from_utf8_lossy(&events.stdout).into_owned(), |all, node| {
        let log = std::fs::read_to_string(environment.directory(node).join("armor.log")).unwrap_or_default();
        format!("{all}--- {node}\n{log}\n")
    })
}

/// SIGKILL to all of a node: daemon, vault, Execution ARMORs, applications.
fn kill_node(environment: &Environment, node: &str) {
    let mut applications = Vec::new();
    for application in environment.applications() {
        let on = application["armor_name"].as_str().unwrap().split('/').next() == Some(node);
        if on && application["state"] == "running" {
            applications.push(application["pid"].as_i64().unwrap() as i32);
        }
    }
    let (armor, vault) = (environment.process(node, "pid"), environment.process(node, "vault.pid"));
    // Stopped, nobody starts anything again.
    signal(vault, Signal::STOP);
    signal(armor, Signal::STOP);
    for entry in std::fs::read_dir(environment.directory(node).join("armors")).into_iter().flatten().flatten() {
        kill(std::fs::read_to_string(entry.path().join("pid")).unwrap().trim().parse().unwrap());
    }
    for pid in applications {
        kill(pid);
    }
    kill(vault);
    kill(armor);
    environment.wait_for("the end of the node", || (!environment::lives(vault) && !environment::lives(armor)).then_some(()));
}

/// Waits until an application runs under an ARMOR.
fn runs_under(environment: &Environment, name: &str, armor: &str) {
    environment.wait_for(&format!("{name} under {armor}"), || {
        let there = |row: &serde_json::Value| row["name"] == name && row["armor_name"] == armor && row["state"] == "running";
        environment.applications().iter().any(there).then_some(())
    });
}

#[test]
fn a_server_goes_on_on_another_node() {
    let environment = network();
    let port = echo_server(&environment, &[]);
    let mut client = verifier(&environment, "c", &port, &["20"]);
    kill_node(&environment, "a");
    runs_under(&environment, "echo", "b");
    environment.wait_for("the streams to flow", || (environment.events("stream-flows").len() >= 2).then_some(()));
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.events("app-moved").len(), 1, "{}", logs(&environment));
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
}
