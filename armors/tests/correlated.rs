//! Several things fail at once, or a second one in the middle of a first one's recovery: docs/guarantees.md says what comes of it, and these tests show it. Servers stand
//! still at places that the test has chosen, so that the second failure comes where it is meant to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::cell::Cell;
use std::path::PathBuf;

use environment::nodes::{Nodes, Placement, may_make_namespaces};
use environment::{Beside, free_port, kill, lives, signal};
use rustix::process::Signal;
use serde_json::Value;

/// What each connection of a client says, and hears again.
const BYTES: &str = "6000000";

/// Nodes, a server that stands still where it is told to, and clients that compare every byte.
struct Stage {
    nodes: Nodes,
    directory: PathBuf,
    /// Where the server listens: a port on loopback, or an address and a port.
    address: String,
    /// Of its clients so far.
    connections: Cell<u32>,
}

fn program(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

impl Stage {
    /// The first node has the FTM. `gates`: after how many KiB of each connection the server stands still, in each of its first lives.
    fn new(names: &[&str], node: &str, options: &[&str], gates: &[&str]) -> Stage {
        Stage::at(Placement::Groups, &free_port().to_string(), names, node, options, gates)
    }

    fn at(placement: Placement, address: &str, names: &[&str], node: &str, options: &[&str], gates: &[&str]) -> Stage {
        let nodes = Nodes::up(placement, names);
        let directory = nodes.file("gates");
        std::fs::create_dir(&directory).unwrap();
        let (server, place) = (program("gated_echo.py"), directory.display().to_string());
        let command = [&["python3", &server, address, &place], gates].concat();
        nodes.launch(node, "echo", &[&["--policy", "stream"], options].concat(), &command);
        Stage { nodes, directory, address: address.to_owned(), connections: Cell::new(0) }
    }

    /// A client on a node, with all its connections open.
    fn client(&self, node: &str, arguments: &[&str]) -> Beside {
        let run = self.nodes.run(node, &[&["python3", &program("verify_echo.py"), &self.address], arguments].concat());
        self.connections.set(self.connections.get() + arguments[0].parse::<u32>().unwrap());
        let mut client = Beside::start(run);
        assert_eq!(client.line().as_deref(), Some("all connected"), "{}", self.nodes.logs());
        client
    }

    /// Waits until the server stands still in this life, on all connections.
    fn stands_still(&self, life: u32) {
        let at = self.directory.join(format!("at-{life}-{}", self.connections.get()));
        self.nodes.wait_for(&at.display().to_string(), || at.exists().then_some(()));
    }

    fn go(&self, life: u32) {
        std::fs::write(self.directory.join(format!("go-{life}")), "").unwrap();
    }

    /// The server's process, under an ARMOR. The ARMOR has told of it, unless the FTM has forgotten that: a status takes its time where a node is dead.
    fn server(&self, armor: &str) -> i32 {
        self.nodes.wait_for(&format!("the server under {armor}"), || {
            let told = self.nodes.events("application-started");
            let newest = told.iter().rfind(|event| event["armor"] == armor).and_then(|event| event["values"]["pid"].as_str()?.parse().ok());
            newest.filter(|pid| lives(*pid)).or_else(|| self.nodes.pid(armor, "echo"))
        })
    }

    /// How often the server was started, wherever.
    fn lives(&self) -> u64 {
        self.directory.join("lives").metadata().unwrap().len()
    }

    /// Nobody has been given anything new since a failure: what follows comes in the middle of the recovery.
    fn is_in_recovery(&self) {
        assert!(!self.nodes.events("connection-recovered").is_empty(), "{}", self.nodes.logs());
        assert_eq!(self.nodes.events("stream-flows"), Vec::<Value>::new(), "{}", self.nodes.logs());
    }

    fn is_identical(&self, mut client: Beside) {
        assert_eq!(client.line().as_deref(), Some("identical"), "{}", self.nodes.logs());
    }

    fn finishes_identical(&self, client: Beside) {
        self.is_identical(client);
        self.nothing_went_wrong();
    }

    fn nothing_went_wrong(&self) {
        for wrong in ["connection-reset", "connection-diverged", "connection-lost", "replay-lost"] {
            assert_eq!(self.nodes.events(wrong), Vec::<Value>::new(), "{}", self.nodes.logs());
        }
    }

    /// SIGKILL to an ARMOR and its vault at once, so that nobody starts it again; its applications live on.
    fn kill_with_vault(&self, node: &str, armor: &str) {
        let pids = ["pid", "vault.pid"].map(|file| self.nodes.process(node, armor, file));
        // Stopped it cannot start another vault.
        signal(pids[0], Signal::STOP);
        kill(pids[1]);
        kill(pids[0]);
        self.nodes.wait_for("the end of both", || pids.iter().all(|pid| !lives(*pid)).then_some(()));
    }
}

// One node.

#[test]
fn a_server_dies_again_and_again_while_it_is_replayed() {
    let stage = Stage::new(&["f"], "f", &[], &["3000", "2000", "1000"]);
    let client = stage.client("f", &["3", BYTES]);
    for life in 1..=3 {
        stage.stands_still(life);
        if life > 1 {
            stage.is_in_recovery();
        }
        kill(stage.server("f"));
    }
    stage.finishes_identical(client);
    assert_eq!(stage.lives(), 4);
}

#[test]
fn the_daemons_of_both_ends_die_while_a_server_is_replayed() {
    let stage = Stage::new(&["f", "b"], "b", &[], &["3000", "1500"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    kill(stage.server("b"));
    stage.stands_still(2);
    stage.is_in_recovery();
    let server = stage.server("b");
    kill(stage.nodes.process("f", "f", "pid"));
    stage.nodes.kill_armor("b", "b");
    stage.go(2);
    stage.finishes_identical(client);
    assert_eq!(stage.server("b"), server, "the server was not started again");
    assert_eq!(stage.lives(), 2);
}

#[test]
fn a_server_its_execution_armor_and_the_daemon_die_at_once_and_again_while_it_is_replayed() {
    let stage = Stage::new(&["f"], "f", &["--execution-armor"], &["3000", "1500"]);
    let client = stage.client("f", &["3", BYTES]);
    for life in 1..=2 {
        stage.stands_still(life);
        let server = stage.server("f/echo");
        let armors = ["f", "f/armors/echo"].map(|armor| stage.nodes.process("f", armor, "pid"));
        [server, armors[1], armors[0]].into_iter().for_each(kill);
        stage.nodes.wait_for("another server", || stage.nodes.pid("f/echo", "echo").filter(|pid| *pid != server));
    }
    stage.finishes_identical(client);
}

#[test]
fn a_server_and_its_only_standby_die_at_once() {
    let stage = Stage::new(&["f"], "f", &["--standby", "1"], &["3000", "0"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    let standby = || {
        let application = stage.nodes.application("f", "echo")?;
        let instance = application["standbys"]["instances"].as_array()?.iter().find(|standby| standby["state"] == "waiting")?.clone();
        Some(instance["pid"].as_i64()? as i32)
    };
    let standby = stage.nodes.wait_for("a standby", standby);
    let server = stage.server("f");
    kill(standby);
    kill(server);
    stage.finishes_identical(client);
    assert!(![server, standby].contains(&stage.server("f")));
}

#[test]
fn a_server_and_then_its_daemon_hang_while_the_server_is_replayed() {
    let stage = Stage::new(&["f", "b"], "b", &[], &["3000", "2000", "1000"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    kill(stage.server("b"));
    stage.stands_still(2);
    stage.is_in_recovery();
    signal(stage.server("b"), Signal::STOP);
    stage.nodes.wait_for_events("application-hung", 1);
    stage.stands_still(3);
    let daemon = stage.nodes.process("b", "b", "pid");
    signal(daemon, Signal::STOP);
    stage.go(3);
    stage.finishes_identical(client);
    assert_ne!(stage.nodes.process("b", "b", "pid"), daemon, "its vault has started another one");
    assert_eq!(stage.lives(), 3);
}

// Nodes.

const FOUR: &[&str] = &["f", "b", "c", "d"];
const TO_C_THEN_D: &[&str] = &["--prefer", "c", "--prefer", "d"];

/// A daemon and its vault die, and its application lives on without them until the daemon is started again.
fn dies_with_its_vault(stage: &Stage, before: &str, after: &str) {
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    let old = stage.server(before);
    stage.kill_with_vault("b", "b");
    stage.finishes_identical(client);
    stage.server(after);
    assert!(lives(old), "nobody oversees it any more");
    stage.nodes.start("b", &[]);
    stage.nodes.wait_for("the end of the old process", || (!lives(old)).then_some(()));
    stage.server(after);
}

#[test]
fn a_daemon_and_its_vault_die_and_the_server_goes_on_elsewhere() {
    let stage = Stage::new(&["f", "b", "c"], "b", &["--prefer", "c"], &["3000"]);
    dies_with_its_vault(&stage, "b", "c");
}

#[test]
fn clients_of_a_daemon_that_dies_with_its_vault_are_closed_at_once_and_others_go_on() {
    let stage = Stage::new(&["f", "b", "c"], "b", &["--deadline", "1"], &["1000"]);
    let (mut lost, client) = (stage.client("c", &["2", BYTES]), stage.client("f", &["2", BYTES]));
    stage.stands_still(1);
    stage.kill_with_vault("c", "c");
    let said = lost.line().unwrap();
    assert!(said.contains("connection 0: ") && said.contains("connection 1: "), "{said}");
    stage.go(1);
    stage.is_identical(client);
}

#[test]
fn a_client_s_node_dies_and_its_connections_end_at_the_server_within_the_deadline() {
    let stage = Stage::new(&["f", "b", "c"], "b", &["--deadline", "1"], &["1000"]);
    let (_lost, client) = (stage.client("c", &["2", BYTES]), stage.client("f", &["2", BYTES]));
    stage.stands_still(1);
    stage.nodes.kill_node("c");
    // What it is told now nobody acknowledges. An idle one is asked after ten seconds whether it is there, and then the deadline runs.
    stage.go(1);
    for reset in stage.nodes.wait_for_events("connection-reset", 2) {
        assert_eq!((&reset["armor"], &reset["values"]["reason"]), (&"b".into(), &"Deadline".into()), "{reset}");
    }
    stage.is_identical(client);
    assert_eq!(stage.lives(), 1);
}

#[test]
fn the_nodes_of_a_server_and_of_some_clients_die_and_the_other_clients_go_on() {
    let stage = Stage::new(FOUR, "b", &["--prefer", "d"], &["3000"]);
    let (_lost, client) = (stage.client("c", &["2", BYTES]), stage.client("f", &["2", BYTES]));
    stage.stands_still(1);
    stage.nodes.kill_node("b");
    stage.nodes.kill_node("c");
    stage.finishes_identical(client);
    stage.server("d");
}

#[test]
fn after_the_death_of_all_nodes_nothing_starts_by_itself_and_everything_can_be_launched_again() {
    let stage = Stage::new(&["f", "b"], "b", &[], &["1000"]);
    let _lost = stage.client("f", &["1", BYTES]);
    stage.stands_still(1);
    stage.nodes.kill_node("b");
    stage.nodes.kill_node("f");
    stage.nodes.start("f", &[]);
    stage.nodes.start("b", &[]);
    assert_eq!(stage.nodes.element("ftm", "app_placement")["applications"], Value::Array(Vec::new()));
    assert_eq!(stage.nodes.element("b", "app_oversight")["applications"], Value::Array(Vec::new()));
    assert_eq!(stage.lives(), 1);
    let (server, place) = (program("gated_echo.py"), stage.directory.display().to_string());
    stage.nodes.launch("b", "echo", &["--policy", "stream"], &["python3", &server, &stage.address, &place]);
    stage.finishes_identical(stage.client("f", &["2", "100000"]));
}

#[test]
fn a_node_and_the_ftms_process_die_at_once() {
    let stage = Stage::new(&["f", "b", "c"], "b", &["--prefer", "c"], &["3000"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    let ftm = stage.nodes.process("f", "ftm", "pid");
    // It sees nothing of the node's death, and does not live to hear of it.
    signal(ftm, Signal::STOP);
    stage.nodes.kill_node("b");
    kill(ftm);
    stage.finishes_identical(client);
    stage.server("c");
}

/// A server's node has died, and the node that is asked to take it over does not answer yet.
fn in_the_middle_of_a_migration(stage: &Stage) -> [i32; 2] {
    let silent = ["vault.pid", "pid"].map(|file| stage.nodes.process("c", "c", file));
    silent.iter().for_each(|pid| signal(*pid, Signal::STOP));
    stage.nodes.kill_node("b");
    stage.nodes.wait_for_events("application-moving", 1);
    silent
}

#[test]
fn the_ftm_dies_in_the_middle_of_a_migration() {
    let stage = Stage::new(&["f", "b", "c"], "b", &["--prefer", "c"], &["3000"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    let silent = in_the_middle_of_a_migration(&stage);
    stage.nodes.kill_armor("f", "ftm");
    silent.iter().for_each(|pid| signal(*pid, Signal::CONT));
    stage.finishes_identical(client);
    stage.server("c");
}

#[test]
fn the_ftm_and_its_vault_die_in_the_middle_of_a_migration_and_armor_up_has_it_finished() {
    let stage = Stage::new(&["f", "b", "c"], "b", &["--prefer", "c"], &["3000"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    let silent = in_the_middle_of_a_migration(&stage);
    stage.kill_with_vault("f", "ftm");
    silent.iter().for_each(|pid| signal(*pid, Signal::CONT));
    stage.nodes.start("f", &[]);
    stage.finishes_identical(client);
    stage.server("c");
}

#[test]
fn the_new_node_dies_while_the_server_is_replayed_there() {
    let stage = Stage::new(FOUR, "b", TO_C_THEN_D, &["3000", "1500"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    stage.nodes.kill_node("b");
    stage.stands_still(2);
    stage.is_in_recovery();
    stage.nodes.kill_node("c");
    stage.finishes_identical(client);
    stage.server("d");
    assert_eq!(stage.nodes.events("application-moved").len(), 2, "{}", stage.nodes.logs());
}

#[test]
fn a_server_and_its_daemon_die_again_on_the_new_node() {
    let stage = Stage::new(&["f", "b", "c"], "b", &["--prefer", "c"], &["3000", "1500", "700"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    stage.nodes.kill_node("b");
    stage.stands_still(2);
    stage.is_in_recovery();
    kill(stage.server("c"));
    stage.stands_still(3);
    kill(stage.server("c"));
    stage.nodes.kill_armor("c", "c");
    stage.finishes_identical(client);
    stage.server("c");
}

#[test]
fn the_ftms_node_dies_and_connections_between_other_nodes_go_on() {
    let stage = Stage::new(&["f", "b", "c"], "b", &[], &["3000"]);
    let client = stage.client("c", &["3", BYTES]);
    stage.stands_still(1);
    stage.nodes.kill_node("f");
    stage.go(1);
    stage.is_identical(client);
}

#[test]
fn a_server_that_dies_while_the_ftms_node_is_gone_goes_on_when_that_is_back_within_the_deadline() {
    let stage = Stage::new(&["f", "b", "c"], "b", &[], &["3000"]);
    let client = stage.client("c", &["3", BYTES]);
    stage.stands_still(1);
    let server = stage.server("b");
    stage.nodes.kill_node("f");
    kill(server);
    stage.nodes.revive("f");
    stage.finishes_identical(client);
}

#[test]
fn a_server_that_dies_while_the_ftms_node_is_gone_for_good_has_its_clients_reset_by_the_deadline() {
    let stage = Stage::new(&["f", "b", "c"], "b", &["--deadline", "1"], &["3000"]);
    let mut client = stage.client("c", &["2", BYTES]);
    stage.stands_still(1);
    let server = stage.server("b");
    stage.nodes.kill_node("f");
    kill(server);
    let said = client.line().unwrap();
    for number in 0..2 {
        let of = said.split("; ").find(|said| said.starts_with(&format!("connection {number}: "))).unwrap_or_else(|| panic!("{said}"));
        assert!(of.contains("reset") || of.contains("Broken pipe"), "{said}");
    }
}

#[test]
fn twenty_clients_on_two_nodes_go_on_when_their_servers_node_dies() {
    let stage = Stage::new(FOUR, "b", &["--prefer", "f"], &["500"]);
    let clients: Vec<_> = (0..20).map(|number| stage.client(["c", "d"][number % 2], &["1", "1000000"])).collect();
    stage.stands_still(1);
    stage.nodes.kill_node("b");
    for client in clients {
        stage.is_identical(client);
    }
    stage.nothing_went_wrong();
    stage.server("f");
    assert_eq!(stage.nodes.events("application-moved").len(), 1, "{}", stage.nodes.logs());
}

// Nodes in network namespaces of their own.

/// Its Execution ARMOR lives on too: it needs a network of its own, since it goes on holding what the kernel calls the connections' ends.
#[test]
fn a_daemon_and_its_vault_die_and_a_server_with_an_execution_armor_goes_on_elsewhere() {
    if may_make_namespaces("a_daemon_and_its_vault_die_and_a_server_with_an_execution_armor_goes_on_elsewhere") {
        let (port, options) = (free_port().to_string(), ["--execution-armor", "--prefer", "c"]);
        let stage = Stage::at(Placement::Namespaces, &port, &["f", "b", "c"], "b", &options, &["3000"]);
        dies_with_its_vault(&stage, "b/echo", "c/echo");
    }
}

#[test]
fn the_new_node_is_cut_off_while_the_server_is_replayed_there_and_fenced_when_it_is_back() {
    if !may_make_namespaces("the_new_node_is_cut_off_while_the_server_is_replayed_there_and_fenced_when_it_is_back") {
        return;
    }
    let stage = Stage::at(Placement::Namespaces, &free_port().to_string(), FOUR, "b", TO_C_THEN_D, &["3000", "1500"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    stage.nodes.kill_node("b");
    stage.stands_still(2);
    stage.is_in_recovery();
    let second = stage.server("c");
    stage.nodes.cut("c");
    // It goes on there, and nobody hears of it.
    stage.go(2);
    stage.finishes_identical(client);
    stage.server("d");
    assert!(lives(second), "it does not know");
    stage.nodes.mend("c");
    stage.nodes.wait_for("the end of the second one", || (!lives(second)).then_some(()));
    stage.server("d");
}

#[test]
fn the_clients_node_is_cut_off_in_the_middle_of_a_migration_and_its_streams_go_on_when_it_is_back() {
    if !may_make_namespaces("the_clients_node_is_cut_off_in_the_middle_of_a_migration_and_its_streams_go_on_when_it_is_back") {
        return;
    }
    let stage = Stage::at(Placement::Namespaces, &free_port().to_string(), FOUR, "b", &["--prefer", "c"], &["3000"]);
    let client = stage.client("d", &["3", BYTES]);
    stage.stands_still(1);
    stage.nodes.kill_node("b");
    stage.nodes.cut("d");
    stage.nodes.wait_for_events("application-moved", 1);
    stage.nodes.wait_for_events("node-failed", 2);
    assert_eq!(stage.nodes.events("connection-recovered"), Vec::<Value>::new(), "{}", stage.nodes.logs());
    stage.nodes.mend("d");
    stage.finishes_identical(client);
    stage.server("c");
}

#[test]
fn a_cut_between_clients_and_their_server_is_only_a_stall() {
    if !may_make_namespaces("a_cut_between_clients_and_their_server_is_only_a_stall") {
        return;
    }
    // For longer than it takes to find out, in which the clients' node counts as failed.
    let stage = Stage::at(Placement::Namespaces, &free_port().to_string(), &["f", "b", "d"], "b", &[], &["1000", "1000"]);
    let client = stage.client("d", &["3", BYTES]);
    stage.stands_still(1);
    stage.nodes.cut("d");
    stage.go(1);
    stage.nodes.wait_for_events("node-failed", 1);
    stage.nodes.mend("d");
    stage.finishes_identical(client);
    assert_eq!(stage.lives(), 1, "the server was not started again");
}

#[test]
fn a_server_that_may_not_move_goes_on_when_its_node_is_no_longer_cut_off() {
    if !may_make_namespaces("a_server_that_may_not_move_goes_on_when_its_node_is_no_longer_cut_off") {
        return;
    }
    let stage = Stage::at(Placement::Namespaces, &free_port().to_string(), &["f", "b"], "b", &["--migrate", "false"], &["1000"]);
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    stage.nodes.cut("b");
    stage.go(1);
    stage.nodes.wait_for_events("application-waits-for-its-node", 1);
    stage.nodes.mend("b");
    stage.finishes_identical(client);
    assert_eq!(stage.lives(), 1, "the server was not started again");
}

/// A server moves to a node that cannot have its address, or has given it to somebody else; clients reach it there, those that were connected and others.
fn goes_on_at_an_address_that_it_cannot_have(address: &str, is_taken: bool) {
    let stage = Stage::at(Placement::Namespaces, address, &["f", "b", "c"], "b", &["--prefer", "c"], &["3000"]);
    let taken = is_taken.then(|| {
        let (_, port) = address.rsplit_once(':').unwrap_or(("", address));
        let script =
            "import socket, sys, time; s = socket.create_server(('', int(sys.argv[1]))); print('has it', flush=True); time.sleep(1e9)";
        let mut other = Beside::start(stage.nodes.command("c", &["python3", "-c", script, port]));
        assert_eq!(other.line().as_deref(), Some("has it"));
        other
    });
    let client = stage.client("f", &["3", BYTES]);
    stage.stands_still(1);
    stage.nodes.kill_node("b");
    stage.finishes_identical(client);
    stage.server("c");
    for node in ["f", "c"] {
        stage.finishes_identical(stage.client(node, &["2", "100000"]));
    }
    // Only where the kernel refuses: an address that no interface has may be bound nevertheless.
    assert_eq!(stage.nodes.events("address-not-held").len(), usize::from(is_taken), "{}", stage.nodes.logs());
    // And it is started again there.
    kill(stage.server("c"));
    stage.nodes.wait_for("the next life", || (stage.lives() == 3).then_some(()));
    stage.finishes_identical(stage.client("f", &["2", "100000"]));
    drop(taken);
}

#[test]
fn a_server_moves_to_a_node_that_does_not_have_its_address() {
    if may_make_namespaces("a_server_moves_to_a_node_that_does_not_have_its_address") {
        goes_on_at_an_address_that_it_cannot_have(&format!("10.0.0.2:{}", free_port()), false);
    }
}

#[test]
fn a_server_moves_to_a_node_where_another_program_has_its_address() {
    if may_make_namespaces("a_server_moves_to_a_node_where_another_program_has_its_address") {
        goes_on_at_an_address_that_it_cannot_have(&format!("0.0.0.0:{}", free_port()), true);
    }
}
