//! Several things fail at once, or a second one in the middle of a first one's recovery: docs/guarantees.md says what comes of it, and these tests show it. Servers stand
//! still at places that the test has chosen, so that the second failure comes where it is meant to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::path::PathBuf;

use environment::nodes::{Nodes, Placement};
use environment::{Beside, free_port, kill, lives, signal};
use rustix::process::Signal;
use serde_json::Value;

/// What each connection of a client says, and hears again.
const BYTES: &str = "6000000";

/// Nodes, a server that stands still where it is told to, and clients that compare every byte.
struct Stage {
    nodes: Nodes,
    directory: PathBuf,
    port: String,
}

fn program(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

impl Stage {
    /// The first node has the FTM. `gates`: after how many KiB of each connection the server stands still, in each of its first lives.
    fn new(names: &[&str], node: &str, options: &[&str], gates: &[&str]) -> Stage {
        let nodes = Nodes::up(Placement::Groups, names);
        let (directory, port) = (nodes.file("gates"), free_port().to_string());
        std::fs::create_dir(&directory).unwrap();
        let (server, place) = (program("gated_echo.py"), directory.display().to_string());
        let command = [&["python3", &server, &port, &place], gates].concat();
        nodes.launch(node, "echo", &[&["--policy", "stream"], options].concat(), &command);
        Stage { nodes, directory, port }
    }

    /// A client on a node, with all its connections open.
    fn client(&self, node: &str, arguments: &[&str]) -> Beside {
        let run = self.nodes.run(node, &[&["python3", &program("verify_echo.py"), &self.port], arguments].concat());
        let mut client = Beside::start(run);
        assert_eq!(client.line().as_deref(), Some("all connected"), "{}", self.nodes.logs());
        client
    }

    /// Waits until the server stands still in this life.
    fn stands_still(&self, life: u32) {
        let at = self.directory.join(format!("at-{life}"));
        self.nodes.wait_for(&at.display().to_string(), || at.exists().then_some(()));
    }

    fn go(&self, life: u32) {
        std::fs::write(self.directory.join(format!("go-{life}")), "").unwrap();
    }

    /// The server's process, under an ARMOR.
    fn server(&self, armor: &str) -> i32 {
        self.nodes.wait_for(&format!("the server under {armor}"), || self.nodes.pid(armor, "echo"))
    }

    /// Nobody has been given anything new since a failure: what follows comes in the middle of the recovery.
    fn is_in_recovery(&self) {
        assert!(!self.nodes.events("connection-recovered").is_empty(), "{}", self.nodes.logs());
        assert_eq!(self.nodes.events("stream-flows"), Vec::<Value>::new(), "{}", self.nodes.logs());
    }

    fn finishes_identical(&self, mut client: Beside) {
        assert_eq!(client.line().as_deref(), Some("identical"), "{}", self.nodes.logs());
        for wrong in ["connection-reset", "connection-diverged", "connection-lost", "replay-lost"] {
            assert_eq!(self.nodes.events(wrong), Vec::<Value>::new(), "{}", self.nodes.logs());
        }
    }

    fn restarts(&self, armor: &str) -> u64 {
        self.nodes.application(armor, "echo").unwrap()["restarts"].as_u64().unwrap()
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
    assert_eq!(stage.restarts("f"), 3);
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
    assert_eq!(stage.restarts("b"), 1);
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
