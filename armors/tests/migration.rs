//! Nodes are killed whole, daemon, vault and applications at once, while clients stream: their servers go on elsewhere, and nothing is lost
//! or repeated (thesis §4.5.4).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::echo::{self, finishes_identical};
use environment::{Beside, Environment, compile, free_port, kill, signal};
use rustix::process::Signal;

/// FTM, nodes a and b for servers, c for clients.
fn network() -> Environment {
    Environment::up_with(&["--node", "a", "--node", "b", "--node", "c"])
}

fn echo_server(environment: &Environment, options: &[&str]) -> String {
    echo::echo_server(environment, &[&["--node", "a"], options].concat()).0
}

fn verifier(environment: &Environment, node: &str, port: &str, arguments: &[&str]) -> Beside {
    echo::verifier_with(environment, &["--node", node], port, arguments)
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

/// Waits until an application runs, and not on a node.
fn runs_elsewhere(environment: &Environment, name: &str, node: &str) {
    environment.wait_for(&format!("{name} on another node than {node}"), || {
        let there = |row: &serde_json::Value| row["name"] == name && row["armor_name"] != node && row["state"] == "running";
        environment.applications().iter().any(there).then_some(())
    });
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
    runs_elsewhere(&environment, "echo", "a");
    environment.wait_for("the streams to flow", || (environment.events("stream-flows").len() >= 2).then_some(()));
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.events("application-moved").len(), 1, "{}", logs(&environment));
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
}

#[test]
fn a_server_with_an_armor_of_its_own_gets_another_one_elsewhere() {
    let environment = network();
    let port = echo_server(&environment, &["--execution-armor"]);
    let mut client = verifier(&environment, "c", &port, &["5"]);
    kill_node(&environment, "a");
    runs_under(&environment, "echo", "b/echo");
    environment.wait_for("the streams to flow", || (!environment.events("stream-flows").is_empty()).then_some(()));
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
}

#[test]
fn a_node_that_was_only_cut_off_is_fenced_and_the_streams_do_not_notice() {
    let environment = network();
    let port = echo_server(&environment, &[]);
    let mut client = verifier(&environment, "c", &port, &["10"]);
    let old = environment.wait_for("the server", || environment.pid("echo"));
    // Its vault too, which would start the daemon again.
    let stopped = [environment.process("a", "vault.pid"), environment.process("a", "pid")];
    stopped.iter().for_each(|pid| signal(*pid, Signal::STOP));
    runs_elsewhere(&environment, "echo", "a");
    stopped.iter().for_each(|pid| signal(*pid, Signal::CONT));
    environment.wait_for("the end of the old one", || (!environment::lives(old)).then_some(()));
    environment.wait_for("the event", || (environment.events("application-fenced").len() == 1).then_some(()));
    finishes_identical(&environment, &mut client);
    runs_elsewhere(&environment, "echo", "a");
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
    // And where it was it may go again.
    let mut client = verifier(&environment, "c", &port, &["5"]);
    kill_node(&environment, "b");
    runs_elsewhere(&environment, "echo", "b");
    // On c, beside its clients, or on a again.
    finishes_identical(&environment, &mut client);
}

#[test]
fn the_node_that_was_to_take_it_over_dies_too() {
    let environment = network();
    let port = echo_server(&environment, &["--prefer", "b", "--prefer", "c"]);
    let mut client = verifier(&environment, "c", &port, &["5"]);
    // The FTM does not know that b is gone when it chooses.
    let silent = [environment.process("b", "vault.pid"), environment.process("b", "pid")];
    kill_node(&environment, "a");
    silent.iter().for_each(|pid| signal(*pid, Signal::STOP));
    silent.into_iter().for_each(kill);
    runs_under(&environment, "echo", "c");
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
}

#[test]
fn without_a_node_left_a_server_waits_for_its_own_within_the_deadline() {
    let environment = network();
    let port = echo_server(&environment, &["--require", "disk=big"]);
    let mut client = verifier(&environment, "c", &port, &["5"]);
    kill_node(&environment, "a");
    environment.wait_for("the event", || (environment.events("no-node-left").len() == 1).then_some(()));
    let up = environment.armor(&["up", "--node", "a"]).output().unwrap();
    assert!(up.status.success(), "{}", environment::text(&up));
    runs_under(&environment, "echo", "a");
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
}

#[test]
fn a_program_that_is_not_there_is_looked_for_on_the_next_node_and_clients_are_not_left_hanging() {
    let environment = network();
    let program = environment.file("server");
    std::fs::copy(compile(&environment, "epoll_echo_server"), &program).unwrap();
    let port = free_port().to_string();
    environment.launch("echo", &["--policy", "stream", "--node", "a", "--deadline", "2"], &[program.to_str().unwrap(), &port]);
    let mut client = verifier(&environment, "c", &port, &["2"]);
    std::fs::remove_file(&program).unwrap();
    kill_node(&environment, "a");
    environment.wait_for("both to be tried", || (environment.events("take-over-failed").len() == 2).then_some(()));
    environment.wait_for("the event", || (environment.events("no-node-left").len() == 1).then_some(()));
    client.end();
    let said = client.line().unwrap();
    assert!(said.contains("reset") || said.contains("Broken pipe"), "{said}\n{}", logs(&environment));
}

#[test]
fn clients_of_a_server_that_nobody_supervises_are_reset_at_once() {
    let environment = network();
    let port = free_port().to_string();
    let program = compile(&environment, "epoll_echo_server");
    let mut run = environment.armor(&["run", "--node", "a"]);
    let mut server = run.args(["--", &program, &port]).spawn().unwrap();
    environment.wait_for("the service", || {
        let status = environment.status();
        let servers = status.pointer("/armors/0/status/elements/APP_SERVER_DB/state/servers")?.as_array()?.len();
        (servers == 1).then_some(())
    });
    let mut client = verifier(&environment, "c", &port, &["2"]);
    kill_node(&environment, "a");
    let said = client.line().unwrap();
    assert!(said.contains("reset") || said.contains("Broken pipe"), "{said}\n{}", logs(&environment));
    assert_eq!(environment.events("server-gone").len(), 1);
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_server_that_asked_for_any_port_keeps_the_one_that_it_got() {
    let environment = network();
    let program = compile(&environment, "epoll_echo_server");
    environment.launch("echo", &["--policy", "stream", "--node", "a"], &[&program, "0"]);
    let address = |environment: &Environment| {
        let status = environment.status();
        let server = status.pointer("/armors/0/status/elements/APP_SERVER_DB/state/servers/0")?;
        Some(server["address"].as_str()?.rsplit(':').next()?.to_owned())
    };
    let port = environment.wait_for("the port", || address(&environment));
    let mut client = verifier(&environment, "c", &port, &["5"]);
    environment.kill("echo");
    environment.wait_for("the streams to flow", || (!environment.events("stream-flows").is_empty()).then_some(()));
    let flowed = environment.events("stream-flows").len();
    kill_node(&environment, "a");
    runs_elsewhere(&environment, "echo", "a");
    environment.wait_for("the streams to flow", || (environment.events("stream-flows").len() > flowed).then_some(()));
    finishes_identical(&environment, &mut client);
    assert_eq!(address(&environment), Some(port));
    let moved = |steps: &serde_json::Value| steps["chosen_ms"].is_u64() && steps["bound_ms"].is_u64() && steps["flowing_ms"].is_u64();
    environment.wait_for("the timeline", || environment.recoveries("echo").iter().any(moved).then_some(()));
    let down = environment.armor(&["status"]).output().unwrap();
    assert!(String::from_utf8_lossy(&down.stdout).contains("running, from a"), "{}", environment::text(&down));
    let stop = environment.armor(&["stop", "echo"]).output().unwrap();
    assert!(stop.status.success(), "{}", environment::text(&stop));
}

#[test]
fn what_an_operator_ends_goes_nowhere() {
    let environment = network();
    let port = echo_server(&environment, &[]);
    // The machine of node a is shut down in order.
    signal(environment.process("a", "pid"), Signal::TERM);
    environment.wait_for("the FTM to miss it", || (!environment.events("node-failed").is_empty()).then_some(()));
    environment.wait_for("the service to be gone", || std::net::TcpListener::bind(("127.0.0.1", port.parse::<u16>().unwrap())).ok());
    assert_eq!(environment.events("application-moving").len(), 0, "{}", logs(&environment));
}
