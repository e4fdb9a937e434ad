//! Supervised clients are killed with SIGKILL while they speak with a server: the next process takes their connections up, the server sees
//! one connection and every byte once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use environment::{Environment, free_port, kill, text};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs");

/// A server that records its connections, and clients of it.
struct Stage {
    environment: Environment,
    port: String,
    record: String,
    gates: String,
}

impl Stage {
    fn new(policy: &str) -> Stage {
        let environment = Environment::up();
        let path = |name: &str| environment.file(name).display().to_string();
        let (port, record, gates) = (free_port().to_string(), path("record"), path("gates"));
        std::fs::create_dir(&gates).unwrap();
        let server = format!("{PROGRAMS}/record_server.py");
        environment.launch("server", &["--policy", policy, "--restart-limit", "100"], &["python3", &server, &port, &record]);
        Stage { environment, port, record, gates }
    }

    /// Launches the client that stands still at these gates.
    fn launch(&self, options: &[&str], gates: &[&str]) {
        self.launch_program("gated_client.py", options, gates);
    }

    fn launch_program(&self, program: &str, options: &[&str], gates: &[&str]) {
        let program = format!("{PROGRAMS}/{program}");
        let command = [&["python3", &program, &self.port, &self.gates], gates].concat();
        let limit: &[&str] = if options.contains(&"--restart-limit") { &[] } else { &["--restart-limit", "100"] };
        self.environment.launch("client", &[limit, options].concat(), &command);
    }

    /// What the same client prints that nobody kills.
    fn undisturbed(&self, gates: &[&str]) -> String {
        let (program, elsewhere) = (format!("{PROGRAMS}/gated_client.py"), self.environment.file("open").display().to_string());
        std::fs::create_dir_all(&elsewhere).unwrap();
        for gate in gates {
            std::fs::write(format!("{elsewhere}/go-{gate}"), "").unwrap();
        }
        let output = self.environment.output(&[&["python3", &program, &self.port, &elsewhere], gates].concat());
        assert!(output.status.success(), "{}", text(&output));
        told(&String::from_utf8_lossy(&output.stdout)).expect("a digest")
    }

    fn log(&self) -> String {
        // In the directory of its overseer.
        let own = self.environment.directory("node1/armors/client/logs/client.log");
        std::fs::read_to_string(own).unwrap_or_else(|_| self.environment.log("client"))
    }

    /// How often lives of the client have come to a gate.
    fn arrivals(&self, gate: &str) -> usize {
        self.log().lines().filter(|line| *line == format!("at {gate}")).count()
    }

    fn wait_at(&self, gate: &str, arrivals: usize) {
        self.environment
            .wait_for(&format!("the client at {gate:?}, for the {arrivals}. time"), || (self.arrivals(gate) >= arrivals).then_some(()));
    }

    fn open(&self, gate: &str) {
        std::fs::write(format!("{}/go-{gate}", self.gates), "").unwrap();
    }

    fn kill_client(&self) {
        self.environment.kill("client");
    }

    /// What the client prints in the end.
    fn result(&self) -> String {
        self.environment.wait_for("what the client was told", || told(&self.log()))
    }

    fn record(&self) -> Vec<String> {
        std::fs::read_to_string(&self.record).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The record once it has so many lines.
    fn recorded(&self, lines: usize) -> Vec<String> {
        self.environment.wait_for(&format!("{lines} lines in the server's record"), || Some(self.record()).filter(|all| all.len() >= lines))
    }

    fn events(&self, what: &str) -> Vec<String> {
        self.environment.events(what).iter().map(|event| event["values"].to_string()).collect()
    }

    fn nothing_went_wrong(&self) {
        for wrong in ["connection-reset", "connection-diverged", "connection-lost", "reattach-lost", "connect-refused"] {
            assert_eq!(self.events(wrong), Vec::<String>::new(), "{wrong}\n{}", self.environment.logs());
        }
    }
}

fn told(log: &str) -> Option<String> {
    log.lines().find_map(|line| line.strip_prefix("told ")).map(str::to_owned)
}

const REPLAY: &[&str] = &["--reattach", "replay", "--reattach-log", "100000000"];

#[test]
fn a_client_that_is_killed_again_and_again_has_one_connection_and_says_every_byte_once() {
    let stage = Stage::new("stream");
    let gates = ["request", "answer", "rest", "done"];
    let expected = stage.undisturbed(&gates);
    stage.launch(REPLAY, &gates);
    for gate in gates {
        for round in 1..=2 {
            stage.wait_at(gate, round);
            stage.kill_client();
        }
        stage.wait_at(gate, 3);
        stage.open(gate);
    }
    assert_eq!(stage.result(), expected, "{}", stage.environment.logs());
    let record = stage.recorded(4);
    assert_eq!((&record[0], &record[2]), (&"accept".to_owned(), &"accept".to_owned()), "{record:?}");
    assert!(record.len() == 4 && record[1].starts_with("end ") && record[1] == record[3], "{record:?}");
    assert_eq!(stage.events("client-reattached").len(), 8, "{}", stage.environment.logs());
    stage.nothing_went_wrong();
    // The client has ended with status 0, and nothing is kept for it any more.
    stage.environment.wait_for("the end of its connections", || stage.environment.client_ends().is_empty().then_some(()));
}

#[test]
fn connections_that_are_over_are_told_again_to_the_next_life_and_not_to_the_server() {
    let stage = Stage::new("stream");
    let expected = stage.undisturbed(&["second"]);
    stage.launch(REPLAY, &["second"]);
    for round in 1..=3 {
        stage.wait_at("second", round);
        stage.kill_client();
    }
    stage.open("second");
    assert_eq!(stage.result(), expected, "{}", stage.environment.logs());
    let record = stage.recorded(8);
    assert!(record.len() == 8 && record[4..6] == record[0..2] && record[6..8] == record[2..4], "{record:?}");
    stage.nothing_went_wrong();
}

#[test]
fn a_client_and_its_server_may_die_together() {
    let stage = Stage::new("stream");
    let gates = ["request", "answer", "rest"];
    let expected = stage.undisturbed(&gates);
    let undisturbed = stage.recorded(2)[1].clone();
    stage.launch(REPLAY, &gates);
    for gate in gates {
        for round in 1..=2 {
            stage.wait_at(gate, round);
            let server = stage.environment.wait_for("the server", || stage.environment.pid("server"));
            kill(server);
            stage.kill_client();
            stage.environment.wait_for("the next server", || stage.environment.pid("server").filter(|pid| *pid != server));
        }
        stage.wait_at(gate, 3);
        stage.open(gate);
    }
    assert_eq!(stage.result(), expected, "{}", stage.environment.logs());
    let ends = stage.environment.wait_for("the end of the connection", || {
        let ends: Vec<_> = stage.record().into_iter().filter(|line| line != "accept").collect();
        (ends.len() >= 2).then_some(ends)
    });
    assert_eq!(ends, [undisturbed.clone(), undisturbed], "{:?}", stage.record());
    stage.nothing_went_wrong();
}

fn with_its_armor(options: &[&str], armor: &str, gates: &[&str]) {
    let stage = Stage::new("stream");
    let expected = stage.undisturbed(gates);
    stage.launch(&[REPLAY, options].concat(), gates);
    for gate in gates {
        for round in 1..=3 {
            stage.wait_at(gate, round);
            let client = stage.environment.wait_for("the client", || stage.environment.pid("client"));
            // Before, at the same time, and behind.
            if round == 1 {
                kill(client);
            }
            if round == 2 {
                kill(stage.environment.process(armor, "pid"));
                kill(client);
            } else {
                stage.environment.kill_armor(armor);
            }
            if round == 3 {
                kill(client);
            }
            stage.environment.wait_for("the client's next life", || stage.environment.pid("client").filter(|pid| *pid != client));
        }
        stage.wait_at(gate, 4);
        stage.open(gate);
    }
    assert_eq!(stage.result(), expected, "{}", stage.environment.logs());
    let record = stage.recorded(4);
    assert!(record.len() == 4 && record[1].starts_with("end ") && record[1] == record[3], "{record:?}");
    stage.nothing_went_wrong();
}

#[test]
fn a_client_may_die_with_its_daemon_before_it_and_behind_it() {
    with_its_armor(&[], "node1", &["request", "answer", "rest", "done"]);
}

#[test]
fn a_client_may_die_with_its_execution_armor_before_it_and_behind_it() {
    // Its daemon starts it again a few times only, and ever later.
    with_its_armor(&["--execution-armor"], "node1/armors/client", &["answer"]);
}

#[test]
fn a_client_that_keeps_its_position_is_given_what_the_dead_one_had_not_read_and_no_more() {
    let stage = Stage::new("stream");
    stage.launch_program("position_client.py", &["--reattach", "resume"], &[]);
    for gate in ["1", "2", "3", "4", "5"] {
        stage.wait_at(gate, 1);
        stage.kill_client();
        if gate == "3" {
            stage.environment.kill_armor("node1");
        }
        stage.open(gate);
    }
    let expected = stage.environment.output(&[
        "python3",
        "-c",
        "import hashlib; print('told', hashlib.sha256(hashlib.shake_128(b'answer 1').digest(2000000)).hexdigest())",
    ]);
    assert_eq!(Some(stage.result()), told(&String::from_utf8_lossy(&expected.stdout)), "{}", stage.environment.logs());
    let record = stage.recorded(2);
    assert!(record.len() == 2 && record[1].starts_with("end 23 "), "{record:?}");
    assert_eq!(stage.events("client-reattached").len(), 5);
    stage.nothing_went_wrong();
}

#[test]
fn without_reattach_the_server_sees_a_killed_client_s_close() {
    let stage = Stage::new("stream");
    stage.launch(&["--wait", "0"], &["request"]);
    stage.wait_at("request", 1);
    stage.kill_client();
    let record = stage.environment.wait_for("the close", || Some(stage.record()).filter(|all| all.len() >= 3));
    assert!(record[0] == "accept" && record.iter().any(|line| line.starts_with("end ")), "{record:?}");
    assert_eq!(stage.events("client-lost").len(), 0);
    stage.open("request");
    stage.result();
}

#[test]
fn a_client_that_was_told_more_than_is_kept_starts_anew() {
    let stage = Stage::new("stream");
    let expected = stage.undisturbed(&["answer"]);
    stage.launch(&["--reattach", "replay", "--reattach-log", "1000000"], &["answer"]);
    stage.wait_at("answer", 1);
    let lost = stage.events("reattach-lost");
    assert!(lost.len() == 1 && lost[0].contains("log_bytes"), "{lost:?}");
    stage.kill_client();
    stage.wait_at("answer", 2);
    stage.open("answer");
    assert_eq!(stage.result(), expected, "{}", stage.environment.logs());
    // The server has seen the close of the one and the connection of the other.
    let record = stage.recorded(6);
    assert_eq!(record.iter().filter(|line| *line == "accept").count(), 3, "{record:?}");
    assert_eq!(stage.events("client-reattached").len(), 0);
}

#[test]
fn a_client_that_is_given_up_or_stopped_closes_its_connections() {
    let stage = Stage::new("stream");
    stage.launch(&[REPLAY, &["--restart-limit", "1"]].concat(), &["request"]);
    stage.wait_at("request", 1);
    stage.kill_client();
    stage.wait_at("request", 2);
    assert_eq!(stage.record(), ["accept"], "a stall, and no close");
    kill(stage.environment.pid("client").unwrap());
    assert!(stage.recorded(2)[1].starts_with("end "), "{:?}", stage.record());
    stage.launch(REPLAY, &["request"]);
    stage.wait_at("request", 3);
    let stopped = stage.environment.armor(&["stop", "client"]).output().unwrap();
    assert!(stopped.status.success(), "{}", text(&stopped));
    assert!(stage.recorded(4)[3].starts_with("end "), "{:?}", stage.record());
    stage.environment.wait_for("the end of its connections", || stage.environment.client_ends().is_empty().then_some(()));
}

#[test]
fn a_connection_that_nobody_takes_up_in_time_is_closed() {
    let stage = Stage::new("stream");
    let (lived, program) = (stage.environment.file("lived").display().to_string(), format!("{PROGRAMS}/gated_client.py"));
    let script = format!(
        "if [ -e {lived} ]; then exec sleep 1000; fi; touch {lived}; exec python3 {program} {} {} request",
        stage.port, stage.gates
    );
    stage.environment.launch("client", &[REPLAY, &["--reattach-within", "0.5"]].concat(), &["sh", "-c", &script]);
    stage.wait_at("request", 1);
    stage.kill_client();
    assert!(stage.recorded(2)[1].starts_with("end "), "{:?}", stage.record());
    let lost = stage.events("reattach-lost");
    assert!(lost.len() == 1 && lost[0].contains("within_ms"), "{lost:?}");
}

#[test]
fn a_client_that_says_something_else_is_reset_and_so_is_its_server() {
    let stage = Stage::new("stream");
    stage.launch(REPLAY, &["request", "twisted"]);
    stage.wait_at("request", 1);
    stage.kill_client();
    let record = stage.environment.wait_for("the reset", || Some(stage.record()).filter(|all| all.iter().any(|line| line == "reset")));
    assert_eq!(&record[..2], ["accept", "reset"], "{record:?}");
    assert!(!stage.events("connection-diverged").is_empty(), "{}", stage.environment.logs());
}
