//! Nodes that die, are cut off and come back, and what the FTM says of them. The tests print how long the FTM took to find out; they do not judge it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::free_port;
use environment::nodes::{Nodes, Placement, may_make_namespaces};

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
    nodes.kill_node("b");
    assert!(nodes.processes("b").is_empty());
    assert_eq!(nodes.processes("a"), of_a, "nothing of the other node was killed");
    let failed = nodes.wait_for_events("node-failed", 1);
    assert_eq!(failed[0]["values"]["node"], "b");
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
