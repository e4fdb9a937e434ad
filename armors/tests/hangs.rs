//! Processes that hang (thesis §3.3.2, time domain): SIGSTOP to ARMORs, to vaults and to servers while clients compare every byte. What hangs
//! is found, killed and recovered as after a crash; what was stopped never becomes a second living one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::time::Instant;

use environment::{Beside, Environment, compile, free_port, lives, signal};
use rustix::process::Signal;

/// The C echo server under ARMOR; its port and its process.
fn echo_server(environment: &Environment, options: &[&str]) -> (String, i32) {
    let port = free_port().to_string();
    let program = compile(environment, "epoll_echo_server");
    environment.launch("echo", &[&["--policy", "stream"], options].concat(), &[&program, &port]);
    (port, environment.wait_for("the server", || environment.pid("echo")))
}

/// A client that compares every byte, with all its connections open.
fn verifier(environment: &Environment, port: &str, arguments: &[&str]) -> Beside {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verify_echo.py");
    let mut client = Beside::start(environment.run(&[&["python3", script, port], arguments].concat()));
    assert_eq!(client.line().as_deref(), Some("all connected"), "{}", environment.logs());
    client
}

fn finishes_identical(environment: &Environment, client: &mut Beside) {
    client.end();
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", environment.logs());
}

/// Bytes flow: more than there are now.
fn flows(environment: &Environment) {
    let before = environment.wait_for("the ends of the connections", || Some(environment.said_by_servers()).filter(|&said| said > 0));
    environment.wait_for("bytes to flow", || (environment.said_by_servers() > before).then_some(()));
}

/// SIGSTOP to an ARMOR; comes back when another process has taken its place, with that one's number.
fn hang(environment: &Environment, armor: &str) -> i32 {
    let stopped = environment.process(armor, "pid");
    let since = Instant::now();
    signal(stopped, Signal::STOP);
    environment.wait_for("the stopped ARMOR to be killed", || (!lives(stopped)).then_some(()));
    let detected = since.elapsed();
    let next = next_life(environment, armor, stopped);
    println!("{armor} stopped: killed after {} ms, ready again after {} ms", detected.as_millis(), since.elapsed().as_millis());
    next
}

/// The ready process of an ARMOR that takes the place of another one.
fn next_life(environment: &Environment, armor: &str, before: i32) -> i32 {
    environment.wait_for("the ARMOR's next life", || {
        let ready = std::fs::read_to_string(environment.directory(armor).join("ready")).ok()?.trim().parse().ok()?;
        (ready != before && lives(ready)).then_some(ready)
    })
}

fn nothing_was_lost(environment: &Environment, server: i32) {
    assert_eq!(environment.pid("echo"), Some(server), "the server was not started again");
    for wrong in ["connection-lost", "connection-reset", "application-failed"] {
        assert!(environment.events(wrong).is_empty(), "{wrong}\n{}", environment.logs());
    }
}

#[test]
fn a_stopped_daemon_is_replaced_and_costs_no_byte_and_no_restart() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["10"]);
    for _ in 0..2 {
        let next = hang(&environment, "node1");
        assert_eq!(environment.process("node1", "pid"), next);
        flows(&environment);
    }
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

#[test]
fn a_stopped_execution_armor_is_replaced_under_its_name_and_takes_its_application_up() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &["--execution-armor"]);
    let mut client = verifier(&environment, &port, &["10"]);
    let identity = || {
        let status = environment.status();
        status["armors"]
            .as_array()
            .unwrap()
            .iter()
            .find(|armor| armor["name"] == "node1/echo")
            .map(|armor| armor["status"]["armor"].clone())
    };
    let before = environment.wait_for("the Execution ARMOR", identity);
    for round in 1..=2 {
        hang(&environment, "node1/armors/echo");
        flows(&environment);
        let failures = environment
            .wait_for("the daemon to tell of it", || Some(environment.events("armor-failed")).filter(|told| told.len() == round));
        assert!(failures[round - 1]["values"]["how"].as_str().unwrap().ends_with("heartbeats unanswered, killed"), "{failures:?}");
    }
    assert_eq!(environment.wait_for("the Execution ARMOR", identity), before);
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

#[test]
fn a_daemon_and_its_execution_armor_may_both_be_stopped() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &["--execution-armor"]);
    let mut client = verifier(&environment, &port, &["5"]);
    let stopped = environment.process("node1/armors/echo", "pid");
    signal(stopped, Signal::STOP);
    hang(&environment, "node1");
    next_life(&environment, "node1/armors/echo", stopped);
    assert!(!lives(stopped), "never two of an ARMOR");
    flows(&environment);
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

#[test]
fn a_stopped_vault_stops_nobody_and_is_replaced() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["10"]);
    let daemon = environment.process("node1", "pid");
    for round in 1..=2 {
        let vault = environment.process("node1", "vault.pid");
        let since = Instant::now();
        signal(vault, Signal::STOP);
        environment.wait_for("the stopped vault to be killed", || (!lives(vault)).then_some(()));
        println!("vault stopped: replaced after {} ms", since.elapsed().as_millis());
        // Both comm elements and the overseer.
        environment.wait_for("everything to be kept again", || (environment.events("kept-anew").len() >= 3 * round).then_some(()));
        assert_eq!(environment.process("node1", "pid"), daemon, "the daemon went on");
        flows(&environment);
    }
    environment.kill_armor("node1");
    flows(&environment);
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

#[test]
fn of_a_daemon_and_a_vault_that_were_both_stopped_the_first_to_go_on_replaces_the_other() {
    for vault_first in [true, false] {
        let environment = Environment::up();
        let (port, server) = echo_server(&environment, &[]);
        let mut client = verifier(&environment, &port, &["5"]);
        let (daemon, vault) = (environment.process("node1", "pid"), environment.process("node1", "vault.pid"));
        for stopped in [vault, daemon] {
            signal(stopped, Signal::STOP);
        }
        let (first, second) = if vault_first { (vault, daemon) } else { (daemon, vault) };
        signal(first, Signal::CONT);
        environment.wait_for("the other one to be killed", || (!lives(second)).then_some(()));
        signal(second, Signal::CONT);
        if vault_first {
            next_life(&environment, "node1", daemon);
        } else {
            environment.wait_for("everything to be kept again", || (environment.events("kept-anew").len() >= 3).then_some(()));
        }
        assert!(lives(first) && !lives(second));
        flows(&environment);
        finishes_identical(&environment, &mut client);
        nothing_was_lost(&environment, server);
    }
}

#[test]
fn a_stopped_ftm_is_replaced_while_connections_and_connects_go_on() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["5"]);
    let (ftm, daemon) = (environment.process("ftm", "pid"), environment.process("node1", "pid"));
    let since = Instant::now();
    signal(ftm, Signal::STOP);
    // A service that is known is connected to without the FTM.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verify_echo.py");
    let output = environment.output(&["python3", script, &port, "3", "100000"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all connected\nidentical\n", "{}", environment.logs());
    environment.wait_for("the stopped FTM to be killed", || (!lives(ftm)).then_some(()));
    println!("ftm stopped: killed after {} ms", since.elapsed().as_millis());
    next_life(&environment, "ftm", ftm);
    environment.wait_for("the daemon to register again", || environment.pid("echo"));
    flows(&environment);
    // What begins to listen needs it.
    let other = free_port().to_string();
    environment.launch("other", &[], &["python3", "-m", "http.server", "--bind", "127.0.0.1", &other]);
    assert_eq!(environment.process("node1", "pid"), daemon, "the daemon did not fail meanwhile");
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}
