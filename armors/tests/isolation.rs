//! A node that is cut off from its FTM (`armor up --isolated stop`): its application is dead before another node starts it, and when the node is back nothing is there twice.
//!
//! The server holds a lock on a file as long as its process lives, and does not start without it. So two lives at once, however short, are an application that fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::nodes::{Nodes, Placement, may_make_namespaces};
use environment::{Beside, compile_to, free_port, lives, signal};
use rustix::process::Signal;

struct Stage {
    network: Nodes,
    client: Beside,
    old: i32,
}

/// FTM and client on a, the server on b, and c beside them.
fn stage(isolated: &str, options: &[&str]) -> Stage {
    let mut network = Nodes::up(Placement::Namespaces, &["a", "c"]);
    network.join_with("b", &["--isolated", isolated]);
    let (port, program, lock) = (free_port().to_string(), network.file("epoll_echo_server"), network.file("lock"));
    compile_to(&program, "epoll_echo_server");
    let command = ["flock", "--nonblock", "--no-fork", lock.to_str().unwrap(), program.to_str().unwrap(), &port];
    network.launch("b", "echo", &[&["--policy", "stream"], options].concat(), &command);
    let overseer = if options.contains(&"--execution-armor") { "b/echo" } else { "b" };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verify_echo.py");
    let mut client = Beside::start(network.run("a", &["python3", script, &port, "10"]));
    assert_eq!(client.line().as_deref(), Some("all connected"), "{}", network.logs());
    let old = network.wait_for("the server", || network.pid(overseer, "echo"));
    Stage { network, client, old }
}

impl Stage {
    /// The streams flow, and are those of one server that never was there twice.
    fn ends_well(mut self) {
        let network = &self.network;
        self.client.end();
        assert_eq!(self.client.line().as_deref(), Some("identical"), "{}", network.logs());
        assert_eq!(network.events("connection-reset").len(), 0, "{}", network.logs());
        assert_eq!(network.events("application-failed").len(), 0, "two lives at once: {}", network.logs());
    }
}

fn moves_without_overlap(options: &[&str], meanwhile: impl FnOnce(&Nodes)) {
    let stage = stage("stop", &[&["--prefer", "c"], options].concat());
    let (network, old) = (&stage.network, stage.old);
    network.cut("b");
    meanwhile(network);
    network.wait_for_events("application-moved", 1);
    assert!(!lives(old), "it lives beside the other one");
    network.wait_for_events("stream-flows", 1);
    network.mend("b");
    for event in network.wait_for_events("node-isolated", 1) {
        println!("measured: {event}");
    }
    network.wait_for_events("node-rejoined", 1);
    let fenced = || network.element("ftm", "app_placement")["applications"][0]["to_be_fenced"].as_array()?.is_empty().then_some(());
    network.wait_for("the end of all that is left", fenced);
    assert_eq!(network.pid("b", "echo"), None);
    stage.ends_well();
}

#[test]
fn an_application_is_dead_before_another_node_starts_it() {
    if may_make_namespaces("an_application_is_dead_before_another_node_starts_it") {
        moves_without_overlap(&[], |_| {});
    }
}

#[test]
fn an_application_with_an_armor_of_its_own_is_too() {
    if may_make_namespaces("an_application_with_an_armor_of_its_own_is_too") {
        moves_without_overlap(&["--execution-armor"], |_| {});
    }
}

#[test]
fn a_daemon_that_dies_while_it_is_cut_off_keeps_to_the_lease_in_its_next_life() {
    if may_make_namespaces("a_daemon_that_dies_while_it_is_cut_off_keeps_to_the_lease_in_its_next_life") {
        moves_without_overlap(&[], |network| _ = network.kill_armor("b", "b"));
    }
}

#[test]
fn an_armor_keeps_to_the_lease_when_its_daemon_cannot_tell_it_any_more() {
    if may_make_namespaces("an_armor_keeps_to_the_lease_when_its_daemon_cannot_tell_it_any_more") {
        moves_without_overlap(&["--execution-armor"], |network| _ = network.kill_armor("b", "b"));
    }
}

#[test]
fn what_was_not_moved_is_started_again_where_it_was() {
    if !may_make_namespaces("what_was_not_moved_is_started_again_where_it_was") {
        return;
    }
    let stage = stage("stop", &["--require", "disk=big"]);
    let (network, old) = (&stage.network, stage.old);
    network.cut("b");
    network.wait_for_events("no-node-left", 1);
    assert!(!lives(old), "it runs without a lease");
    network.mend("b");
    network.wait_for_events("node-rejoined", 1);
    let new = network.wait_for("the server", || network.pid("b", "echo"));
    assert_ne!(new, old);
    network.wait_for_events("stream-flows", 1);
    stage.ends_well();
}

#[test]
fn a_daemon_that_hung_past_its_lease_gets_its_application_back() {
    if !may_make_namespaces("a_daemon_that_hung_past_its_lease_gets_its_application_back") {
        return;
    }
    let stage = stage("stop", &["--prefer", "c"]);
    let (network, old) = (&stage.network, stage.old);
    // Its vault kills it long before the FTM calls that a failure.
    signal(network.process("b", "b", "pid"), Signal::STOP);
    network.wait_for_events("node-isolated", 1);
    network.wait_for_events("node-rejoined", 1);
    let new = network.wait_for("the server", || network.pid("b", "echo"));
    assert_ne!(new, old);
    network.wait_for_events("stream-flows", 1);
    assert_eq!(network.events("node-failed").len(), 0, "{}", network.logs());
    stage.ends_well();
}

#[test]
fn with_serve_both_live_until_the_fence() {
    if !may_make_namespaces("with_serve_both_live_until_the_fence") {
        return;
    }
    let Stage { network, old, mut client } = stage("serve", &["--prefer", "c", "--restart-limit", "1000"]);
    network.cut("b");
    // The second life finds the lock taken, again and again, until the first one is fenced.
    network.wait_for_events("application-failed", 1);
    assert!(lives(old), "it does not know");
    network.mend("b");
    network.wait_for_events("application-fenced", 1);
    network.wait_for_events("stream-flows", 1);
    client.end();
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", network.logs());
    assert_eq!(network.events("node-isolated").len(), 0);
}
