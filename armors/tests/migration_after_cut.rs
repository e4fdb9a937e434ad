//! A node is cut off from the others and comes back: what has moved is ended there, and its clients hear nothing of it (thesis §4.5.4).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::nodes::{Nodes, Placement, may_make_namespaces};
use environment::{Beside, compile_to, free_port};

#[test]
fn a_server_of_a_node_that_was_cut_off_is_fenced_when_that_is_back() {
    if !may_make_namespaces("a_server_of_a_node_that_was_cut_off_is_fenced_when_that_is_back") {
        return;
    }
    let network = Nodes::up(Placement::Namespaces, &["a", "b", "c"]);
    let (port, program) = (free_port().to_string(), network.file("epoll_echo_server"));
    compile_to(&program, "epoll_echo_server");
    let options = ["--policy", "stream", "--prefer", "c"];
    network.launch("b", "echo", &options, &[program.to_str().unwrap(), &port]);
    let old = network.wait_for("the server", || network.pid("b", "echo"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verify_echo.py");
    let mut client = Beside::start(network.run("a", &["python3", script, &port, "10"]));
    assert_eq!(client.line().as_deref(), Some("all connected"), "{}", network.logs());
    network.cut("b");
    network.wait_for_events("application-moved", 1);
    network.wait_for_events("stream-flows", 1);
    assert!(environment::lives(old), "it does not know");
    network.mend("b");
    network.wait_for("the end of the old one", || (!environment::lives(old)).then_some(()));
    network.wait_for_events("application-fenced", 1);
    client.end();
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", network.logs());
    assert_eq!(network.events("connection-reset").len(), 0, "{}", network.logs());
}
