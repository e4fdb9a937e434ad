//! A node dies under servers with other policies than `stream`, and under programs that were not written for a test: their clients go on, with every byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::Write as _;
use std::process::{ChildStdin, Stdio};

use environment::nodes::{Nodes, Placement};
use environment::{Beside, free_port, kill, text};
use serde_json::Value;

const NAMES: &[&str] = &["f", "b", "c"];

fn program(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn nothing_happened(nodes: &Nodes, wrong: &[&str]) {
    for wrong in wrong {
        assert_eq!(nodes.events(wrong), Vec::<Value>::new(), "{}", nodes.logs());
    }
}

/// A large file, from python3's server to curl; the date in the second answer's head is another one.
fn a_download_goes_on(policy: &str) {
    let nodes = Nodes::up(Placement::Groups, NAMES);
    let root = nodes.file("www");
    std::fs::create_dir(&root).unwrap();
    let content: Vec<u8> = (0..48u32 << 20).map(|at| (at ^ at >> 9 ^ at >> 17) as u8).collect();
    std::fs::write(root.join("big.bin"), &content).unwrap();
    let port = free_port().to_string();
    let server = ["python3", "-m", "http.server", &port, "--bind", "127.0.0.1", "--directory", root.to_str().unwrap()];
    nodes.launch("b", "files", &["--policy", policy, "--on-divergence", "continue", "--prefer", "c"], &server);
    let (url, file) = (format!("http://127.0.0.1:{port}/big.bin"), nodes.file("received.bin"));
    let mut curl = nodes.run("f", &["curl", "-sS", "--limit-rate", "30M", "-o", file.to_str().unwrap(), &url]);
    let mut curl = curl.stderr(Stdio::piped()).spawn().unwrap();
    nodes.wait_for("a part of the download", || std::fs::metadata(&file).ok().filter(|meta| meta.len() > 8 << 20));
    assert!(curl.try_wait().unwrap().is_none(), "the download was over before the node died");
    nodes.kill_node("b");
    let output = curl.wait_with_output().unwrap();
    assert!(output.status.success(), "curl: {}\n{}", text(&output), nodes.logs());
    assert!(std::fs::read(&file).unwrap() == content, "another stream\n{}", nodes.logs());
    assert_eq!(nodes.events("application-moved").len(), 1, "{}", nodes.logs());
    nodes.wait_for("the server", || nodes.pid("c", "files"));
    nothing_happened(&nodes, &["connection-reset", "connection-lost", "replay-lost"]);
}

#[test]
fn a_download_from_python_by_curl_goes_on_on_another_node_with_request() {
    a_download_goes_on("request");
}

#[test]
fn a_download_from_python_by_curl_goes_on_on_another_node_with_http() {
    a_download_goes_on("http");
}

/// Redis keeps its file where both nodes find it, and its dead process has let go of it.
#[test]
fn redis_cli_loses_no_command_when_the_node_of_redis_dies() {
    const COMMANDS: usize = 2000;
    let nodes = Nodes::up(Placement::Groups, NAMES);
    let directory = nodes.file("redis");
    std::fs::create_dir(&directory).unwrap();
    let port = free_port().to_string();
    let server =
        ["redis-server", "--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir", directory.to_str().unwrap()];
    let options = ["--policy", "resp", "--ready-send", "PING\\r\\n", "--ready-expect", "+PONG", "--prefer", "c"];
    nodes.launch("b", "cache", &options, &server);
    let mut client = nodes.run("f", &["redis-cli", "-p", &port]);
    let mut client = Beside::start({
        client.stdin(Stdio::piped());
        client
    });
    let mut input = client.child.stdin.take().unwrap();
    let mut say = |from: usize, to: usize| (from..to).for_each(|number| writeln!(input, "SET key:{number} value:{number}").unwrap());
    say(0, COMMANDS / 2);
    for answered in 0..COMMANDS {
        if answered == COMMANDS / 4 {
            nodes.kill_node("b");
        }
        if answered == COMMANDS / 2 {
            say(COMMANDS / 2, COMMANDS);
        }
        assert_eq!(client.line().as_deref(), Some("OK"), "after {answered} answers\n{}", nodes.logs());
    }
    let size = nodes.run("f", &["redis-cli", "-p", &port, "DBSIZE"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&size.stdout).trim(), COMMANDS.to_string(), "{}", text(&size));
    assert_eq!(nodes.events("application-moved").len(), 1, "{}", nodes.logs());
    nothing_happened(&nodes, &["connection-reset", "connection-diverged", "connection-lost", "replay-lost"]);
}

/// A client that says lines and prints the answers, to a server that answers with its life where it is asked for it.
struct Lines {
    nodes: Nodes,
    client: Beside,
    input: ChildStdin,
}

impl Lines {
    fn new(options: &[&str]) -> Lines {
        let nodes = Nodes::up(Placement::Groups, NAMES);
        let (port, lives) = (free_port().to_string(), nodes.file("lives").display().to_string());
        let command = ["python3", &program("line_server.py"), &port, &lives];
        nodes.launch("b", "lines", &[&["--prefer", "c"], options].concat(), &command);
        let mut run = nodes.run("f", &["python3", &program("line_client.py"), &port]);
        run.stdin(Stdio::piped());
        let mut client = Beside::start(run);
        let input = client.child.stdin.take().unwrap();
        Lines { nodes, client, input }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn ask(&mut self, line: &str) -> Option<String> {
        self.say(line);
        self.client.line()
    }

    fn kill_server(&self) {
        let server = self.nodes.wait_for("the server", || self.nodes.pid("b", "lines"));
        kill(server);
        self.nodes.wait_for("the next server", || self.nodes.pid("b", "lines").filter(|pid| *pid != server));
    }
}

#[test]
fn with_turn_the_question_in_progress_is_asked_again_on_another_node() {
    let mut lines = Lines::new(&["--policy", "turn"]);
    assert_eq!(lines.ask("one").as_deref(), Some("one"));
    lines.say("slow");
    let lives = lines.nodes.file("lives.slow");
    lines.nodes.wait_for("the question to be heard", || lives.exists().then_some(()));
    lines.nodes.kill_node("b");
    // What the first life has not answered the second one does.
    assert_eq!(lines.client.line().as_deref(), Some("slow in life 2"), "{}", lines.nodes.logs());
    assert_eq!(lines.ask("two").as_deref(), Some("two"), "{}", lines.nodes.logs());
    nothing_happened(&lines.nodes, &["connection-reset", "connection-diverged"]);
}

#[test]
fn with_reconnect_the_streams_go_on_on_another_node_where_they_are() {
    let mut lines = Lines::new(&["--policy", "reconnect"]);
    assert_eq!(lines.ask("life").as_deref(), Some("1"));
    lines.nodes.kill_node("b");
    // Nothing is compared with what the first life has said.
    assert_eq!(lines.ask("life").as_deref(), Some("2"), "{}", lines.nodes.logs());
    nothing_happened(&lines.nodes, &["connection-reset", "connection-diverged"]);
}

#[test]
fn a_server_that_says_something_else_has_its_clients_reset() {
    let mut lines = Lines::new(&["--policy", "stream"]);
    assert_eq!(lines.ask("life").as_deref(), Some("1"));
    lines.kill_server();
    lines.nodes.wait_for_events("connection-diverged", 1);
    let reset = lines.nodes.wait_for_events("connection-reset", 1);
    assert_eq!(reset[0]["values"]["reason"], "Diverged", "{reset:?}");
    assert_eq!(lines.ask("life"), None, "the client ends with an error");
}

#[test]
fn a_server_that_says_something_else_goes_on_where_its_service_says_so() {
    let mut lines = Lines::new(&["--policy", "stream", "--on-divergence", "continue"]);
    assert_eq!(lines.ask("life").as_deref(), Some("1"));
    lines.kill_server();
    lines.nodes.wait_for_events("connection-diverged", 1);
    assert_eq!(lines.ask("life").as_deref(), Some("2"), "{}", lines.nodes.logs());
    nothing_happened(&lines.nodes, &["connection-reset"]);
}
