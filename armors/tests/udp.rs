//! Networks over UDP with real processes: kills, outages, changes of address, a client's node that stands still (thesis §5). Every byte is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::nodes::{Nodes, Placement, may_make_namespaces};
use environment::{Beside, free_port, kill, signal, text};
use rustix::process::Signal;

const UDP: &[&str] = &["--transport", "udp"];
/// A node that moves has no address of its own to listen at.
const MOBILE: &[&str] = &["--transport", "udp", "--listen", "0.0.0.0:0"];

/// A server on node `a`, where the FTM is, and a client on node `b` that compares.
struct Stage {
    nodes: Nodes,
    client: Beside,
}

impl Stage {
    fn new(mut nodes: Nodes, other: &[&str]) -> Stage {
        // A node that stands still for a while is not to be killed for that.
        let output = nodes.joining("b", other).env("ARMOR_HANG_MS", "0").output().unwrap();
        assert!(output.status.success(), "armor up on b: {}\n{}", text(&output), nodes.logs());
        Stage::on(nodes)
    }

    fn on(nodes: Nodes) -> Stage {
        let program = |name: &str| format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"));
        let (address, place) = (format!("{}:{}", nodes.address("a"), free_port()), nodes.file("place"));
        std::fs::create_dir(&place).unwrap();
        let server = ["python3", &program("gated_echo.py"), &address, &place.display().to_string()].map(str::to_owned);
        nodes.launch("a", "echo", &["--policy", "stream"], &server.each_ref().map(|word| &**word));
        let mut client = Beside::start(nodes.run("b", &["python3", &program("verify_echo.py"), &address, "3"]));
        assert_eq!(client.line().as_deref(), Some("all connected"), "{}", nodes.logs());
        Stage { nodes, client }
    }

    /// Bytes that the client's node has got.
    fn received(&self) -> u64 {
        let state = self.nodes.element("b", "APP_COMM_CLIENT");
        state["connections"].as_array().into_iter().flatten().filter_map(|end| end["received"].as_u64()).sum()
    }

    /// Something more has come.
    fn flows(&self) {
        let before = self.nodes.wait_for("what has come so far", || Some(self.received()).filter(|bytes| *bytes > 0));
        self.nodes.wait_for("something more", || (self.received() > before + 100_000).then_some(()));
    }

    fn finish(mut self) {
        self.flows();
        self.client.end();
        assert_eq!(self.client.line().as_deref(), Some("identical"), "{}", self.nodes.logs());
    }

    fn link(&self, of: &str, to: &str) -> serde_json::Value {
        let state = self.nodes.element(of, "daemon_udp_mgmt");
        state["peers"].as_array().into_iter().flatten().find(|peer| peer["name"] == to).cloned().unwrap_or_default()
    }
}

#[test]
fn a_connection_over_udp_outlives_its_server_and_every_armor_on_its_way() {
    let nodes = Nodes::up_with(Placement::Groups, &["a"], UDP);
    let stage = Stage::new(nodes, UDP);
    stage.flows();
    let server = stage.nodes.wait_for("the server", || stage.nodes.pid("a", "echo"));
    kill(server);
    stage.nodes.wait_for("its next life", || stage.nodes.pid("a", "echo").filter(|pid| *pid != server));
    stage.flows();
    for (node, armor) in [("a", "a"), ("b", "b"), ("a", "ftm")] {
        stage.nodes.kill_armor(node, armor);
        stage.flows();
    }
    let link = stage.nodes.wait_for("the link", || Some(stage.link("b", "a")).filter(|link| link["linked"] == true));
    assert!(link["datagram_bytes"].as_u64() >= Some(1200) && link["packets_received"].as_u64() > Some(0), "{link}");
    assert!(stage.nodes.events("connection-lost").is_empty());
    stage.finish();
}

#[test]
fn connections_outlive_an_outage_and_a_new_address_of_the_clients_node_meanwhile() {
    if !may_make_namespaces("connections_outlive_an_outage_and_a_new_address_of_the_clients_node_meanwhile") {
        return;
    }
    let nodes = Nodes::up_with(Placement::Namespaces, &["a"], UDP);
    let stage = Stage::new(nodes, MOBILE);
    stage.flows();
    let links = stage.nodes.element("b", "daemon_udp_mgmt")["links"].clone();
    // An address that changes, in the midst of everything.
    let ip = |words: &[&str]| {
        let output = stage.nodes.command("b", &[&["ip"], words].concat()).output().unwrap();
        assert!(output.status.success(), "ip {words:?}: {}", text(&output));
    };
    ip(&["addr", "add", "10.0.0.77/24", "dev", "eth0"]);
    ip(&["addr", "del", "10.0.0.2/24", "dev", "eth0"]);
    // It was the first one of its network, so the kernel has taken the other with it.
    let _ = stage.nodes.command("b", &["ip", "addr", "add", "10.0.0.77/24", "dev", "eth0"]).output();
    stage.nodes.wait_for("the server's node to see it", || {
        stage.link("a", "b")["remote"].as_str().is_some_and(|remote| remote.starts_with("10.0.0.77:")).then_some(())
    });
    stage.flows();
    // An outage that is long enough to be told.
    let told = stage.nodes.events("link-down").len();
    stage.nodes.cut("b");
    stage.nodes.wait_for("the outage to be told", || (stage.nodes.events("link-down").len() > told).then_some(()));
    stage.nodes.mend("b");
    stage.flows();
    // And one with a move while it lasts.
    stage.nodes.cut("b");
    ip(&["addr", "add", "10.0.0.78/24", "dev", "eth0"]);
    ip(&["addr", "del", "10.0.0.77/24", "dev", "eth0"]);
    let _ = stage.nodes.command("b", &["ip", "addr", "add", "10.0.0.78/24", "dev", "eth0"]).output();
    stage.nodes.wait_for("the silence", || (stage.link("a", "b")["silent"] == true).then_some(()));
    stage.nodes.mend("b");
    stage.flows();
    assert!(stage.nodes.events("link-moved").iter().any(|event| event["values"]["peer"] == "b"), "{}", stage.nodes.logs());
    assert_eq!(stage.nodes.element("b", "daemon_udp_mgmt")["links"], links, "the same links");
    stage.finish();
}

#[test]
fn connections_outlive_a_clients_node_that_stands_still() {
    let nodes = Nodes::up_with(Placement::Groups, &["a"], UDP);
    let stage = Stage::new(nodes, UDP);
    stage.flows();
    let daemon = stage.nodes.process("b", "b", "pid");
    signal(daemon, Signal::STOP);
    // Long enough for its node to count as failed.
    stage.nodes.wait_for_events("node-failed", 1);
    signal(daemon, Signal::CONT);
    stage.nodes.wait_for_events("node-back", 1);
    assert_eq!(stage.nodes.process("b", "b", "pid"), daemon);
    stage.finish();
}

#[test]
fn a_client_over_udp_and_a_server_over_tcp_meet_at_an_ftm_that_has_both() {
    let mut nodes = Nodes::up_with(Placement::Groups, &["f"], &["--transport", "both"]);
    nodes.join_with("a", &["--transport", "tcp"]);
    let stage = Stage::new(nodes, UDP);
    stage.flows();
    let server = stage.nodes.wait_for("the server", || stage.nodes.pid("a", "echo"));
    kill(server);
    stage.nodes.wait_for("its next life", || stage.nodes.pid("a", "echo").filter(|pid| *pid != server));
    stage.flows();
    for (node, armor) in [("a", "a"), ("b", "b"), ("f", "ftm")] {
        stage.nodes.kill_armor(node, armor);
        stage.flows();
    }
    stage.finish();
}
