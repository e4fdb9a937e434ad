//! The FTM dies: by SIGKILL under load, together with its vault, with its store lost or damaged. Connections do not notice, what it knew comes back,
//! and what it is needed for waits and then succeeds (thesis §3.3).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::process::{Child, Stdio};

use environment::echo::{echo_server, verifier};
use environment::{Beside, Environment, free_port, kill, signal, text};
use rustix::process::Signal;
use serde_json::Value;

const STORE: &str = "state.redb";

fn finishes_identical(environment: &Environment, client: &mut Beside) {
    environment::echo::finishes_identical(environment, client);
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", environment.logs());
    assert_eq!(environment.events("connection-lost").len(), 0, "{}", environment.logs());
}

/// An element's state in the FTM.
fn ftm(environment: &Environment, element: &str) -> Value {
    let status = environment.status();
    let armors = status["armors"].as_array().unwrap().iter();
    armors
        .map(|armor| &armor["status"])
        .find(|armor| armor["kind"] == "ftm")
        .map_or(Value::Null, |ftm| ftm["elements"][element]["state"].clone())
}

/// A server's row in the FTM.
fn row(environment: &Environment, service: &str) -> Option<Value> {
    let servers = ftm(environment, "APP_SERVER_DB")["servers"].as_array()?.clone();
    servers.into_iter().find(|row| row["service"] == service)
}

/// Waits until the FTM has the server in its table again, in a life and with so many clients.
fn known_again(environment: &Environment, service: &str, incarnation: u64, clients: u64) {
    environment.wait_for("the server's row with its clients", || {
        row(environment, service).filter(|row| row["incarnation"] == incarnation && row["clients"] == clients)
    });
}

fn up(environment: &Environment) {
    let output = environment.armor(&["up"]).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), environment.logs());
    assert!(text(&output).contains("ftm: started"), "{}", text(&output));
}

/// `armor launch` beside the test.
fn launching(environment: &Environment, name: &str, port: u16) -> Child {
    let mut launch = environment.armor(&["launch", "--name", name]);
    launch.args(["--", "python3", "-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]);
    launch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn launched(environment: &Environment, launch: Child) {
    let output = launch.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), environment.logs());
}

fn fetched(environment: &Environment, port: u16) {
    let client =
        ["python3", "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)", &format!("http://127.0.0.1:{port}/")];
    let output = environment.output(&client);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200\n", "{}\n{}", text(&output), environment.logs());
}

#[test]
fn an_ftm_that_dies_again_and_again_is_not_noticed_and_forgets_nothing() {
    let environment = Environment::up();
    let (port, _) = echo_server(&environment, &[]);
    let server = environment.wait_for("the server", || environment.pid("echo"));
    let mut client = verifier(&environment, &port, &["20"]);
    known_again(&environment, "echo", 1, 20);
    for _ in 0..8 {
        environment.kill_armor("ftm");
    }
    known_again(&environment, "echo", 1, 20);
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.pid("echo"), Some(server), "the server was not started again");
    assert_eq!(environment.events("state-refused").len(), 0, "{}", environment.logs());
    known_again(&environment, "echo", 1, 0);
    // What listens from now on is known as before, also to clients that were there before.
    let port = free_port();
    launched(&environment, launching(&environment, "web", port));
    fetched(&environment, port);
}

#[test]
fn a_server_that_dies_while_the_ftm_dies_is_recovered_when_it_is_back() {
    let environment = Environment::up();
    let (port, _) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["10", "3000000"]);
    let known_in = |incarnation: u64| {
        environment.wait_for("the server's row", || row(&environment, "echo").filter(|row| row["incarnation"] == incarnation));
    };
    for round in 1..4 {
        known_in(round);
        // The FTM is gone when the next server listens, or forgets it in the midst of that.
        kill(environment.wait_for("the server", || environment.pid("echo")));
        environment.kill_armor("ftm");
    }
    known_in(4);
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.application("echo").unwrap()["restarts"], 3);
}

#[test]
fn without_an_ftm_what_is_known_goes_on_and_what_is_new_waits_for_it() {
    let environment = Environment::up();
    let (port, _) = echo_server(&environment, &[]);
    let web = free_port();
    launched(&environment, launching(&environment, "web", web));
    environment.kill("echo");
    let mut client = verifier(&environment, &port, &["10"]);
    known_again(&environment, "echo", 2, 10);
    let server = environment.pid("echo").unwrap();
    environment.kill_with_vault("ftm");

    fetched(&environment, web);
    let second = free_port();
    let launch = launching(&environment, "second", second);
    let listens = environment.directory("node1").join("logs/second.log");
    environment.wait_for("the new server's process", || listens.exists().then_some(()));
    kill(server);
    up(&environment);
    launched(&environment, launch);
    fetched(&environment, second);
    known_again(&environment, "echo", 3, 10);
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.application("echo").unwrap()["restarts"], 2);
    assert_eq!(row(&environment, "web").unwrap()["incarnation"], 1);
}

#[test]
fn a_connect_through_a_daemon_without_a_table_waits_for_the_ftm() {
    let environment = Environment::up();
    let web = free_port();
    launched(&environment, launching(&environment, "web", web));
    environment.kill_with_vault("ftm");
    // Its next life has no table of servers.
    environment.kill_armor("node1");
    let script = "import sys, urllib.request as u; print('connects', flush=True); print(u.urlopen(sys.argv[1]).status)";
    let mut client = Beside::start(environment.run(&["python3", "-c", script, &format!("http://127.0.0.1:{web}/")]));
    assert_eq!(client.line().as_deref(), Some("connects"));
    up(&environment);
    assert_eq!(client.line().as_deref(), Some("200"), "{}", environment.logs());
}

#[test]
fn an_ftm_that_is_stopped_is_found_and_new_servers_wait_for_its_next_life() {
    let environment = Environment::up();
    let stopped = environment.process("ftm", "pid");
    signal(stopped, Signal::STOP);
    let port = free_port();
    launched(&environment, launching(&environment, "web", port));
    assert_ne!(environment.process("ftm", "pid"), stopped);
    fetched(&environment, port);
}

/// What becomes of a good store.
fn damage(environment: &Environment, how: &str) {
    let store = environment.directory("ftm").join(STORE);
    let mut bytes = std::fs::read(&store).unwrap();
    match how {
        "lost" => std::fs::remove_file(&store).unwrap(),
        "random" => {
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte ^= (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3];
            }
            std::fs::write(&store, bytes).unwrap();
        }
        "newer" => {
            // The version of the format, behind its magic number.
            bytes[..9].copy_from_slice(b"redb\x1a\x0a\xa9\x0d\x7f");
            std::fs::write(&store, bytes).unwrap();
        }
        "directory" => {
            std::fs::remove_file(&store).unwrap();
            std::fs::create_dir(&store).unwrap();
        }
        _ => panic!("{how}"),
    }
}

#[test]
fn an_ftm_whose_store_is_lost_or_damaged_is_filled_again_by_its_daemons() {
    let environment = Environment::up();
    let (port, _) = echo_server(&environment, &["--execution-armor"]);
    environment.kill("echo");
    let web = free_port();
    launched(&environment, launching(&environment, "web", web));
    let mut client = verifier(&environment, &port, &["10"]);
    let mut refused = 0;
    for how in ["lost", "random", "newer", "directory"] {
        known_again(&environment, "echo", 2, 10);
        known_again(&environment, "web", 1, 0);
        environment.kill_with_vault("ftm");
        damage(&environment, how);
        up(&environment);
        if how != "lost" {
            refused += 1;
            let event = environment.wait_for("word of the store", || environment.events("state-file-refused").pop());
            let kept = std::path::PathBuf::from(event["kept_as"].as_str().or(event["values"]["kept_as"].as_str()).unwrap());
            assert!(kept.exists(), "{how}: {event}");
        }
    }
    known_again(&environment, "echo", 2, 10);
    known_again(&environment, "web", 1, 0);
    let daemons = ftm(&environment, "daemon_registry")["daemons"].clone();
    let node = daemons.as_array().unwrap().iter().find(|daemon| daemon["name"] == "node1").expect("registered").clone();
    assert_eq!(node["armors"][0]["name"], "node1/echo", "{daemons}");
    let aside = std::fs::read_dir(environment.directory("ftm")).unwrap().flatten();
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("state.redb.refused-"));
    assert_eq!(aside.count(), refused);
    fetched(&environment, web);
    finishes_identical(&environment, &mut client);
}

#[test]
fn a_store_that_is_in_use_is_told_with_what_to_do() {
    let environment = Environment::up();
    environment.kill_with_vault("ftm");
    let store = environment.directory("ftm").join(STORE);
    let held = std::fs::File::open(&store).unwrap();
    // Threads of the process may outlive its first one by a moment.
    held.lock().unwrap();
    let output = environment.armor(&["up"]).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.contains(&format!("{} is in use by another process", store.display())), "{said}");
    assert!(said.contains("end the other one, or choose another directory with --run-dir"), "{said}");
    drop(held);
    up(&environment);
}
