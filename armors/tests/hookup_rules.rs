//! The rules of hook-up with real ARMORs: the C programs that the shim's own tests run against a mock, run here as they are.
#![allow(clippy::unwrap_used, clippy::panic)]

mod environment;

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use environment::{Environment, free_port, text};

const FAMILIES: [&str; 2] = ["4", "6"];

/// One of the shim's test programs under `armor run`.
struct Program<'a> {
    environment: &'a Environment,
    path: String,
}

impl<'a> Program<'a> {
    fn compiled(environment: &'a Environment, name: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/tests/programs").join(name).with_extension("c");
        let path = environment.file(name);
        let output = Command::new("gcc").args(["-std=gnu11", "-w", "-pthread", "-o"]).arg(&path).arg(source).output().unwrap();
        assert!(output.status.success(), "gcc {name}.c: {}", text(&output));
        Program { environment, path: path.to_str().unwrap().to_owned() }
    }

    fn run(&self, arguments: &[&str]) {
        let command: Vec<&str> = [self.path.as_str()].iter().chain(arguments).copied().collect();
        let output = self.environment.output(&command);
        assert!(output.status.success(), "{command:?}: {}", text(&output));
    }
}

/// Every address that the FTM has been told of, service or not.
fn registered(environment: &Environment) -> Vec<String> {
    let status = environment.status();
    let servers = status.pointer("/armors/0/status/elements/APP_SERVER_DB/state/servers").unwrap().as_array().unwrap();
    servers.iter().map(|server| server["address"].as_str().unwrap().to_owned()).collect()
}

fn rules(name: &str, rules: &[&str]) {
    let environment = Environment::up();
    let program = Program::compiled(&environment, name);
    for (rule, family) in rules.iter().flat_map(|rule| FAMILIES.map(|family| (rule, family))) {
        program.run(&[rule, family]);
    }
    environment.wait_for("an end of all services", || registered(&environment).is_empty().then_some(()));
}

#[test]
fn bind_and_listen() {
    rules("binding", &["twice", "zero", "unbound", "own", "shared", "no_port", "same_port", "reuse"]);
}

#[test]
fn addresses() {
    rules("addresses", &["pair", "cut", "null", "mapped", "received", "destination", "other"]);
}

#[test]
fn options_and_epoll() {
    rules("options", &["every", "before"]);
    rules("epoll", &["connect", "listen", "modified", "removed", "duplicates"]);
}

#[test]
fn processes_and_descriptors() {
    rules("processes", &["prefork", "child", "duplicates", "spawn", "threads"]);
    rules("descriptors", &["numbers", "standard", "ranges", "limit"]);
}

#[test]
fn ends_errno_and_threads() {
    rules("ends", &["half", "orderly"]);
    rules("quiet", &["errno", "fork", "cancel"]);
}

#[test]
fn a_client_that_binds_its_port_first_is_no_server_and_keeps_the_port() {
    let environment = Environment::up();
    let program = Program::compiled(&environment, "binding");
    for family in FAMILIES {
        let outside = TcpListener::bind(if family == "4" { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
        let port = outside.local_addr().unwrap().port().to_string();
        // Tells each client which port it sees.
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = outside.accept() {
                stream.write_all(&peer.port().to_be_bytes()).unwrap();
            }
        });
        // A port each: the end of a connection holds its port for a while, as the kernel's does.
        for own in [|| 0, free_port] {
            program.run(&["client", family, &own().to_string()]);
            program.run(&["kernel", family, &own().to_string(), &port]);
        }
        program.run(&["closed", family, &free_port().to_string()]);
    }
    // The programs' own listeners were registered, and nothing else.
    let events = environment.armor(&["events", "--json"]).output().unwrap();
    assert!(!text(&events).contains("server-refused"), "{}", text(&events));
    environment.wait_for("an end of all services", || registered(&environment).is_empty().then_some(()));
}

#[test]
fn a_bound_client_of_a_supervised_service_is_gone_after_a_crash() {
    let environment = Environment::up();
    let (port, own) = (free_port(), free_port());
    // A server that holds a bound socket of its own, as it would on its way to connect.
    let server = format!(
        "import socket, time\nb = socket.socket(); b.bind(('127.0.0.1', {own}))\n\
         s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ns.bind(('127.0.0.1', {port})); s.listen()\n\
         while True:\n  c, peer = s.accept(); c.sendall(b'hello'); c.close()"
    );
    environment.launch("both", &[], &["python3", "-c", &server]);
    assert_eq!(registered(&environment), [format!("127.0.0.1:{port}")]);
    for _ in 0..2 {
        environment.kill("both");
        // Its next life binds the same two again.
        environment.wait_for("the server", || {
            let client = format!("import socket; print(socket.create_connection(('127.0.0.1', {port})).recv(9))");
            text(&environment.output(&["python3", "-c", &client])).contains("hello").then_some(())
        });
        assert_eq!(registered(&environment), [format!("127.0.0.1:{port}")]);
    }
    assert!(environment.armor(&["stop", "both"]).status().unwrap().success());
    environment
        .wait_for("both ports to be free", || [port, own].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).then_some(()));
}
