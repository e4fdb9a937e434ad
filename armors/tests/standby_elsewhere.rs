//! Standbys on other nodes: when a server's node is killed the one that waits elsewhere takes over, whatever has been killed before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::echo::{echo_server, finishes_identical, verifier_with};
use environment::{Environment, free_port, kill, lives, signal, text};
use rustix::process::Signal;
use serde_json::Value;

/// FTM, nodes a to c.
fn network() -> Environment {
    Environment::up_with(&["--node", "a", "--node", "b", "--node", "c"])
}

/// The echo server on a, with a standby on b; its port, its process, and that standby.
fn echo(environment: &Environment, options: &[&str]) -> (String, i32, i32) {
    let (port, running) = echo_server(environment, &[&["--node", "a", "--prefer", "b", "--standby-elsewhere", "1"], options].concat());
    // `armor launch` waits until it waits.
    let (armor, standby) = held(environment).pop().unwrap_or_else(|| panic!("no standby\n{}", logs(environment)));
    assert!(armor == "b" || armor == "b/echo", "{armor}\n{}", logs(environment));
    (port, running, standby)
}

/// Held standbys in a state, or in any: the ARMOR that holds them, and their process.
fn held_as(environment: &Environment, state: Option<&str>) -> Vec<(String, i32)> {
    let status = environment.status();
    let mut held = Vec::new();
    for armor in status["armors"].as_array().into_iter().flatten() {
        for hold in armor["status"]["elements"]["app_oversight"]["state"]["holds"].as_array().into_iter().flatten() {
            let instances = hold["standbys"]["instances"].as_array().cloned().unwrap_or_default();
            let meant = instances.iter().filter(|instance| state.is_none_or(|state| instance["state"] == state));
            held.extend(meant.map(|instance| (armor["name"].as_str().unwrap().to_owned(), instance["pid"].as_i64().unwrap() as i32)));
        }
    }
    held
}

/// Those that wait, and that the FTM knows to wait.
fn held(environment: &Environment) -> Vec<(String, i32)> {
    let known = placed(environment)["instances"].as_array().into_iter().flatten().any(|instance| instance["state"] == "waiting");
    if known { held_as(environment, Some("waiting")) } else { Vec::new() }
}

/// What the FTM knows of the standbys of the one application that has some.
fn placed(environment: &Environment) -> Value {
    let status = environment.status();
    let placed = status.pointer("/armors/0/status/elements/app_placement/state/applications/0/standbys_elsewhere");
    placed.cloned().unwrap_or_default()
}

fn wait_for_standby(environment: &Environment, on: &str) -> i32 {
    environment.wait_for(&format!("a standby on {on}"), || held(environment).into_iter().find(|(armor, _)| armor == on).map(|(_, pid)| pid))
}

fn wait_for_end(environment: &Environment, what: &str, pids: &[i32]) {
    environment.wait_for(&format!("the end of {what}"), || pids.iter().all(|&pid| !lives(pid)).then_some(()));
}

fn logs(environment: &Environment) -> String {
    let events = environment.armor(&["events"]).output().unwrap();
    ["a", "b", "c", "ftm"].iter().fold(String::from_utf8_lossy(&events.stdout).into_owned(), |all, node| {
        let log = std::fs::read_to_string(environment.directory(node).join("armor.log")).unwrap_or_default();
        format!("{all}--- {node}\n{log}\n")
    })
}

/// SIGKILL to all of a node: daemon, vault, Execution ARMORs, applications, standbys.
fn kill_node(environment: &Environment, node: &str) {
    let of_node = |armor: &str| armor.split('/').next() == Some(node);
    let running =
        environment.applications().into_iter().filter(|row| of_node(row["armor_name"].as_str().unwrap()) && row["state"] == "running");
    let mut pids: Vec<i32> = running.map(|row| row["pid"].as_i64().unwrap() as i32).collect();
    pids.extend(held_as(environment, None).into_iter().filter(|(armor, _)| of_node(armor)).map(|(_, pid)| pid));
    let own = [environment.process(node, "vault.pid"), environment.process(node, "pid")];
    // Stopped, nobody starts anything again.
    own.iter().for_each(|&pid| signal(pid, Signal::STOP));
    for entry in std::fs::read_dir(environment.directory(node).join("armors")).into_iter().flatten().flatten() {
        pids.push(std::fs::read_to_string(entry.path().join("pid")).unwrap().trim().parse().unwrap());
    }
    pids.extend(own);
    pids.iter().for_each(|&pid| kill(pid));
    wait_for_end(environment, "the node", &pids);
}

/// The application runs under an ARMOR, as this process.
fn takes_over(environment: &Environment, armor: &str, standby: i32) {
    environment.wait_for(&format!("the standby to take over under {armor}"), || {
        let there = |row: &Value| row["armor_name"] == armor && row["pid"] == standby && row["state"] == "running";
        environment.applications().iter().any(there).then_some(())
    });
    let standby = standby.to_string();
    assert!(environment.events("standby-released").iter().any(|event| event["values"]["pid"] == standby.as_str()), "{}", logs(environment));
}

fn stop(environment: &Environment) {
    let stopped = environment.armor(&["stop", "echo"]).output().unwrap();
    assert!(stopped.status.success(), "{}\n{}", text(&stopped), logs(environment));
}

#[test]
fn a_node_is_killed_under_load_and_the_standby_on_another_one_takes_over() {
    let environment = network();
    let (port, _, standby) = echo(&environment, &[]);
    let mut client = verifier_with(&environment, &["--node", "c"], &port, &["20"]);
    kill_node(&environment, "a");
    takes_over(&environment, "b", standby);
    environment.wait_for("the streams to flow", || (environment.events("stream-flows").len() >= 2).then_some(()));
    // Another one is behind it, and so on.
    let behind = wait_for_standby(&environment, "c");
    let up = environment.armor(&["up", "--node", "a"]).output().unwrap();
    assert!(up.status.success(), "{}", text(&up));
    finishes_identical(&environment, &mut client);
    let mut client = verifier_with(&environment, &["--node", "c"], &port, &["5"]);
    kill_node(&environment, "b");
    takes_over(&environment, "c", behind);
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
    let last = wait_for_standby(&environment, "a");
    stop(&environment);
    wait_for_end(&environment, "all of it", &[behind, last]);
    assert_eq!(held_as(&environment, None), []);
}

#[test]
fn its_own_death_and_that_of_its_daemon_and_of_the_ftm_come_before_that_of_the_node() {
    let environment = network();
    let (port, _, first) = echo(&environment, &[]);
    kill(first);
    let standby =
        environment.wait_for("another standby", || held(&environment).into_iter().find(|held| held.0 == "b" && held.1 != first)).1;
    assert_eq!(environment.application("echo").unwrap()["restarts"], 0, "it costs no restart");
    for armor in ["b", "ftm", "b", "a"] {
        environment.kill_armor(armor);
        environment.wait_for("the application", || environment.application("echo"));
        assert_eq!(wait_for_standby(&environment, "b"), standby, "{armor}: {}", logs(&environment));
    }
    let mut client = verifier_with(&environment, &["--node", "c"], &port, &["5"]);
    // The FTM dies in the middle of the move.
    kill_node(&environment, "a");
    environment.kill_armor("ftm");
    takes_over(&environment, "b", standby);
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
}

#[test]
fn the_standby_s_node_is_killed_before_that_of_the_server() {
    let environment = network();
    let (port, _, _) = echo(&environment, &[]);
    kill_node(&environment, "b");
    let standby = wait_for_standby(&environment, "c");
    let mut client = verifier_with(&environment, &["--node", "c"], &port, &["5"]);
    kill_node(&environment, "a");
    takes_over(&environment, "c", standby);
    finishes_identical(&environment, &mut client);
    environment.wait_for("the event", || (environment.events("no-node-for-standby").len() == 1).then_some(()));
}

#[test]
fn a_standby_on_a_node_that_was_only_cut_off_is_ended_when_that_is_back() {
    let environment = network();
    let (_, running, standby) = echo(&environment, &[]);
    let silent = [environment.process("b", "vault.pid"), environment.process("b", "pid")];
    silent.iter().for_each(|&pid| signal(pid, Signal::STOP));
    let other = wait_for_standby(&environment, "c");
    assert!(lives(standby), "it waits on, and is given no address");
    silent.iter().for_each(|&pid| signal(pid, Signal::CONT));
    wait_for_end(&environment, "the one that nobody wants", &[standby]);
    assert_eq!((wait_for_standby(&environment, "c"), environment.pid("echo")), (other, Some(running)));
}

#[test]
fn an_isolated_node_ends_what_it_holds() {
    let environment = Environment::up_with(&["--node", "a", "--node", "b", "--isolated", "stop"]);
    let (_, running, standby) = echo(&environment, &[]);
    // Nobody hears the FTM.
    let silent = [environment.process("ftm", "vault.pid"), environment.process("ftm", "pid")];
    silent.iter().for_each(|&pid| signal(pid, Signal::STOP));
    wait_for_end(&environment, "the standby and the server", &[standby, running]);
    silent.iter().for_each(|&pid| signal(pid, Signal::CONT));
    environment.wait_for("the server and a standby", || environment.pid("echo").filter(|_| held(&environment).len() == 1));
}

#[test]
fn with_an_execution_armor_another_one_holds_it_and_ends_with_it() {
    let environment = network();
    let (port, _, standby) = echo(&environment, &["--execution-armor"]);
    let mut client = verifier_with(&environment, &["--node", "c"], &port, &["5"]);
    kill_node(&environment, "a");
    takes_over(&environment, "b/echo", standby);
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", logs(&environment));
    let behind = wait_for_standby(&environment, "c/echo");
    let holder = std::fs::read_to_string(environment.directory("c").join("armors/echo/pid")).unwrap().trim().parse().unwrap();
    stop(&environment);
    wait_for_end(&environment, "the standby and its ARMOR", &[standby, behind, holder]);
}

#[test]
fn standbys_elsewhere_end_with_their_service_however_it_ends() {
    let environment = network();
    let (_, running, standby) = echo(&environment, &[]);
    stop(&environment);
    wait_for_end(&environment, "both", &[running, standby]);

    let (_, running, standby) = echo(&environment, &["--restart-limit", "0"]);
    kill(running);
    environment.wait_for("the service to be given up", || environment.application("echo").filter(|row| row["state"] == "given-up"));
    wait_for_end(&environment, "the standby", &[standby]);

    let (_, running, standby) = echo(&environment, &[]);
    // The holder's machine is shut down in order.
    signal(environment.process("b", "pid"), Signal::TERM);
    wait_for_end(&environment, "the standby", &[standby]);
    let other = wait_for_standby(&environment, "c");
    assert_eq!(environment.pid("echo"), Some(running));
    assert!(environment.armor(&["down"]).output().unwrap().status.success());
    assert!([running, other].iter().all(|&pid| !lives(pid)), "`armor down` leaves nothing behind");
}

#[test]
fn a_program_that_ends_before_its_bind_there_is_told_on_each_node_and_serves_without() {
    let environment = network();
    let (port, lock) = (free_port().to_string(), environment.file("lock").display().to_string());
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/standby_server.py");
    let mut launch = environment.armor(&["launch", "--node", "a", "--standby-elsewhere", "2"]);
    launch.args(["--name", "web", "--", "python3", program, &port, "lock", &lock]);
    let output = launch.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "the service runs: {}", text(&output));
    assert!(said.contains("0 of 2 standbys of web wait on other nodes, and no other node is there"), "{said}\n{}", logs(&environment));
    environment.wait_for("both to be told", || (environment.events("standby-ended-early").len() == 2).then_some(()));
    let refused = environment.events("standby-refused");
    assert!(refused.iter().all(|event| event["values"]["reason"].as_str().unwrap().contains("before its bind")), "{refused:?}");
    assert_eq!((refused.len(), placed(&environment)["instances"].clone()), (2, serde_json::json!([])));
}
