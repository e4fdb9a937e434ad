//! An echo server and a client that compares every byte.
#![allow(dead_code, unreachable_pub, reason = "each test file uses what it needs")]

use super::{Beside, Environment, compile, free_port};

/// The C echo server under ARMOR; its port and its process.
pub fn echo_server(environment: &Environment, options: &[&str]) -> (String, i32) {
    let port = free_port().to_string();
    let program = compile(environment, "epoll_echo_server");
    environment.launch("echo", &[&["--policy", "stream"], options].concat(), &[&program, &port]);
    (port, environment.wait_for("the server", || environment.pid("echo")))
}

/// The client, with all its connections open.
pub fn verifier(environment: &Environment, port: &str, arguments: &[&str]) -> Beside {
    verifier_with(environment, &[], port, arguments)
}

/// The same with options of `armor run`.
pub fn verifier_with(environment: &Environment, options: &[&str], port: &str, arguments: &[&str]) -> Beside {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verify_echo.py");
    let mut run = environment.armor(&["run"]);
    run.args(options).args(["--", "python3", script, port]).args(arguments);
    let mut client = Beside::start(run);
    assert_eq!(client.line().as_deref(), Some("all connected"), "{}", environment.logs());
    client
}

/// Ends the client, which has missed nothing.
pub fn finishes_identical(environment: &Environment, client: &mut Beside) {
    client.end();
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", environment.logs());
}
