//! Processes that hang (thesis §3.3.2, time domain): SIGSTOP to ARMORs, to vaults and to servers while clients compare every byte. What hangs
//! is found, killed and recovered as after a crash; what was stopped never becomes a second living one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::Write as _;
use std::process::Stdio;
use std::time::Instant;

use environment::echo::{echo_server, finishes_identical, verifier};
use environment::{Beside, Environment, compile, free_port, lives, signal};
use rustix::process::Signal;

/// Bytes flow: more than there are now.
fn flows(environment: &Environment) {
    let before = environment.wait_for("the ends of the connections", || Some(environment.said_by_servers()).filter(|&said| said > 0));
    environment.wait_for("bytes to flow", || (environment.said_by_servers() > before).then_some(()));
}

/// SIGSTOP to an ARMOR; comes back when another process has taken its place, with that one's number.
fn hang(environment: &Environment, armor: &str) -> i32 {
    let stopped = environment.process(armor, "pid");
    let since = Instant::now();
    signal(stopped, Signal::STOP);
    environment.wait_for("the stopped ARMOR to be killed", || (!lives(stopped)).then_some(()));
    let detected = since.elapsed();
    let next = next_life(environment, armor, stopped);
    println!("{armor} stopped: killed after {} ms, ready again after {} ms", detected.as_millis(), since.elapsed().as_millis());
    next
}

/// The ready process of an ARMOR that takes the place of another one.
fn next_life(environment: &Environment, armor: &str, before: i32) -> i32 {
    environment.wait_for("the ARMOR's next life", || {
        let ready = std::fs::read_to_string(environment.directory(armor).join("ready")).ok()?.trim().parse().ok()?;
        (ready != before && lives(ready)).then_some(ready)
    })
}

fn nothing_was_lost(environment: &Environment, server: i32) {
    assert_eq!(environment.pid("echo"), Some(server), "the server was not started again");
    for wrong in ["connection-lost", "connection-reset", "application-failed"] {
        assert!(environment.events(wrong).is_empty(), "{wrong}\n{}", environment.logs());
    }
}

#[test]
fn a_stopped_daemon_is_replaced_and_costs_no_byte_and_no_restart() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["10"]);
    for _ in 0..2 {
        let next = hang(&environment, "node1");
        assert_eq!(environment.process("node1", "pid"), next);
        flows(&environment);
    }
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

#[test]
fn a_stopped_execution_armor_is_replaced_under_its_name_and_takes_its_application_up() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &["--execution-armor"]);
    let mut client = verifier(&environment, &port, &["10"]);
    let identity = || {
        let status = environment.status();
        status["armors"]
            .as_array()
            .unwrap()
            .iter()
            .find(|armor| armor["name"] == "node1/echo")
            .map(|armor| armor["status"]["armor"].clone())
    };
    let before = environment.wait_for("the Execution ARMOR", identity);
    for round in 1..=2 {
        hang(&environment, "node1/armors/echo");
        flows(&environment);
        let failures = environment
            .wait_for("the daemon to tell of it", || Some(environment.events("armor-failed")).filter(|told| told.len() == round));
        assert!(failures[round - 1]["values"]["how"].as_str().unwrap().ends_with("heartbeats unanswered, killed"), "{failures:?}");
    }
    assert_eq!(environment.wait_for("the Execution ARMOR", identity), before);
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

#[test]
fn a_daemon_and_its_execution_armor_may_both_be_stopped() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &["--execution-armor"]);
    let mut client = verifier(&environment, &port, &["5"]);
    let stopped = environment.process("node1/armors/echo", "pid");
    signal(stopped, Signal::STOP);
    hang(&environment, "node1");
    next_life(&environment, "node1/armors/echo", stopped);
    assert!(!lives(stopped), "never two of an ARMOR");
    flows(&environment);
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

#[test]
fn a_stopped_vault_stops_nobody_and_is_replaced() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["10"]);
    let daemon = environment.process("node1", "pid");
    for round in 1..=2 {
        let vault = environment.process("node1", "vault.pid");
        let since = Instant::now();
        signal(vault, Signal::STOP);
        environment.wait_for("the stopped vault to be killed", || (!lives(vault)).then_some(()));
        println!("vault stopped: replaced after {} ms", since.elapsed().as_millis());
        // Both comm elements and the overseer.
        environment.wait_for("everything to be kept again", || (environment.events("kept-anew").len() >= 3 * round).then_some(()));
        assert_eq!(environment.process("node1", "pid"), daemon, "the daemon went on");
        flows(&environment);
    }
    environment.kill_armor("node1");
    flows(&environment);
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

#[test]
fn of_a_daemon_and_a_vault_that_were_both_stopped_the_first_to_go_on_replaces_the_other() {
    for vault_first in [true, false] {
        let environment = Environment::up();
        let (port, server) = echo_server(&environment, &[]);
        let mut client = verifier(&environment, &port, &["5"]);
        let (daemon, vault) = (environment.process("node1", "pid"), environment.process("node1", "vault.pid"));
        for stopped in [vault, daemon] {
            signal(stopped, Signal::STOP);
        }
        let (first, second) = if vault_first { (vault, daemon) } else { (daemon, vault) };
        signal(first, Signal::CONT);
        environment.wait_for("the other one to be killed", || (!lives(second)).then_some(()));
        signal(second, Signal::CONT);
        if vault_first {
            next_life(&environment, "node1", daemon);
        } else {
            environment.wait_for("everything to be kept again", || (environment.events("kept-anew").len() >= 3).then_some(()));
        }
        assert!(lives(first) && !lives(second));
        flows(&environment);
        finishes_identical(&environment, &mut client);
        nothing_was_lost(&environment, server);
    }
}

#[test]
fn a_stopped_ftm_is_replaced_while_connections_and_connects_go_on() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["5"]);
    let (ftm, daemon) = (environment.process("ftm", "pid"), environment.process("node1", "pid"));
    let since = Instant::now();
    signal(ftm, Signal::STOP);
    // A service that is known is connected to without the FTM.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/verify_echo.py");
    let output = environment.output(&["python3", script, &port, "3", "100000"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all connected\nidentical\n", "{}", environment.logs());
    environment.wait_for("the stopped FTM to be killed", || (!lives(ftm)).then_some(()));
    println!("ftm stopped: killed after {} ms", since.elapsed().as_millis());
    next_life(&environment, "ftm", ftm);
    environment.wait_for("the daemon to register again", || environment.pid("echo"));
    flows(&environment);
    // What begins to listen needs it.
    let other = free_port().to_string();
    environment.launch("other", &[], &["python3", "-m", "http.server", "--bind", "127.0.0.1", &other]);
    assert_eq!(environment.process("node1", "pid"), daemon, "the daemon did not fail meanwhile");
    finishes_identical(&environment, &mut client);
    nothing_was_lost(&environment, server);
}

/// SIGSTOP to a process of the service `echo` when bytes flow; comes back when it was killed and another process serves, with what was told
/// of the hang.
fn hang_server(environment: &Environment, stopped: i32) -> serde_json::Value {
    flows(environment);
    let (hangs, since) = (environment.events("application-hung").len(), Instant::now());
    signal(stopped, Signal::STOP);
    environment.wait_for("the stopped process to be killed", || (!lives(stopped)).then_some(()));
    let detected = since.elapsed();
    let told = environment.wait_for("the event", || environment.events("application-hung").get(hangs).cloned());
    println!("server stopped: killed after {} ms, silent for {} ms", detected.as_millis(), told["values"]["silent_ms"]);
    told
}

#[test]
fn a_stopped_server_is_replaced_while_its_clients_wait() {
    let environment = Environment::up();
    let (port, mut server) = echo_server(&environment, &[]);
    // Its output is replayed from the beginning, so not for ever.
    let mut client = verifier(&environment, &port, &["4", "40000000"]);
    for round in 1..=2 {
        let told = hang_server(&environment, server);
        assert_eq!(told["values"]["pid"], server.to_string());
        server = environment.wait_for("the next server", || environment.pid("echo").filter(|pid| *pid != server));
        let failed = environment.wait_for("the failure", || environment.events("application-failed").get(round - 1).cloned());
        assert_eq!(failed["values"]["how"], "it hung and was killed");
    }
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", environment.logs());
    let recoveries = environment.recoveries("echo");
    assert_eq!(recoveries.len(), 2);
    for recovery in recoveries {
        println!("after the kill: {recovery}");
        assert!(recovery["flowing_ms"].is_u64(), "{recovery}");
    }
    assert!(environment.events("connection-reset").is_empty(), "{}", environment.logs());
}

#[test]
fn a_stopped_server_that_nobody_wants_anything_of_is_left_alone_until_somebody_does() {
    let environment = Environment::up();
    let (port, idle) = echo_server(&environment, &[]);
    let other = free_port().to_string();
    environment.launch("other", &["--policy", "stream"], &[environment.file("epoll_echo_server").to_str().unwrap(), &other]);
    for stopped in [idle, environment.wait_for("the other server", || environment.pid("other"))] {
        signal(stopped, Signal::STOP);
    }
    // A client that says nothing: what waits is its connection, which is not accepted.
    let script = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(1)";
    let client = Beside::start(environment.run(&["python3", "-c", script, &other]));
    let told = environment.wait_for("the other one to be found", || environment.events("application-hung").first().cloned());
    assert_eq!(told["values"]["service"], "other");
    drop(client);
    assert_eq!(environment.pid("echo"), Some(idle));
    let mut client = verifier(&environment, &port, &["2", "100000"]);
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", environment.logs());
    assert!(!lives(idle));
}

#[test]
fn a_server_that_its_operator_stops_is_left_alone_where_the_service_says_so() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &["--health-stopped", "0"]);
    let mut client = verifier(&environment, &port, &["2", "20000000"]);
    flows(&environment);
    signal(server, Signal::STOP);
    // Twice as long as it takes elsewhere: the daemon is stopped for that, found and replaced meanwhile.
    for _ in 0..2 {
        hang(&environment, "node1");
        environment.wait_for("the daemon to be seen again", || environment.pid("echo"));
    }
    assert!(environment.events("application-hung").is_empty());
    signal(server, Signal::CONT);
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", environment.logs());
    nothing_was_lost(&environment, server);
}

/// The children of a process that hold more than one socket: with the inherited listener, those that serve somebody.
fn serving_children(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let is_socket = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_link(entry.unwrap().path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    let serves = |pid: &i32| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|open| open.filter_map(|entry| is_socket(entry).then_some(())).count() > 1)
    };
    children.split_whitespace().map(|pid| pid.parse().unwrap()).filter(serves).collect()
}

#[test]
fn of_a_server_of_several_processes_the_stopped_one_alone_is_killed() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let program = compile(&environment, "prefork_server");
    environment.launch("echo", &["--policy", "stream"], &[&program, &port]);
    let master = environment.wait_for("the server", || environment.pid("echo"));
    let mut client = verifier(&environment, &port, &["6", "20000000"]);
    let worker = environment.wait_for("a worker that serves somebody", || serving_children(master).first().copied());
    let told = hang_server(&environment, worker);
    assert_eq!(told["values"]["pid"], worker.to_string());
    assert_eq!(client.line().as_deref(), Some("identical"), "{}", environment.logs());
    assert_eq!(environment.pid("echo"), Some(master));
    assert!(!environment.events("worker-failed").is_empty());
}

/// A server that stands still in its first life when it is told "hang", and a client that tells it.
fn hangs_when_told(environment: &Environment, name: &str, options: &[&str]) {
    let port = free_port().to_string();
    let programs = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/");
    let (server, client) = (format!("{programs}hanging_server.py"), format!("{programs}line_client.py"));
    let lives = environment.file(&format!("{name}.lives"));
    let options: Vec<String> = options.iter().map(|option| option.replace("PORT", &port)).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    environment.launch(name, &[&["--policy", "turn"], &options[..]].concat(), &["python3", &server, &port, lives.to_str().unwrap()]);
    let [mut first, mut second] = [(); 2].map(|()| {
        let mut command = environment.run(&["python3", &client, &port]);
        command.stdin(Stdio::piped());
        Beside::start(command)
    });
    let [mut to_first, mut to_second] = [&mut first, &mut second].map(|client| client.child.stdin.take().unwrap());
    let answered = |client: &mut Beside, line: &str| {
        assert_eq!(client.line().as_deref(), Some(line), "{name}\n{}\n{}", environment.logs(), environment.log(name));
    };
    for (client, input) in [(&mut first, &mut to_first), (&mut second, &mut to_second)] {
        writeln!(input, "well").unwrap();
        answered(client, "well");
    }
    writeln!(to_first, "hang").unwrap();
    environment.wait_for("the server to stand still", || environment.log(name).contains("standing still").then_some(()));
    // It has read all that the first one has said. What waits is this.
    writeln!(to_second, "and now").unwrap();
    answered(&mut second, "and now");
    answered(&mut first, "hang");
    let told = environment.events("application-hung").into_iter().find(|told| told["values"]["service"] == name);
    println!("{name}: {}", told.unwrap_or_else(|| panic!("it was not found to hang\n{}", environment.logs()))["values"]);
}

#[test]
fn a_server_that_stands_still_is_found_by_whatever_its_service_file_says() {
    let environment = Environment::up();
    let quick = ["--health-interval", "0.1", "--health-timeout", "1", "--health-failures", "2"];
    // What a client would do, which the kernel alone cannot: the port is only reserved.
    let ask = "exec python3 -c \"import socket; s = socket.create_connection(('127.0.0.1', PORT)); s.sendall(b'?\\n'); exit(s.recv(2) != b'?\\n')\"";
    for (name, options) in [
        ("progress", &["--health-progress", "1"][..]),
        ("connect", &[&["--health-connect"], &quick[..]].concat()),
        ("answer", &[&["--health-send", "?\\n", "--health-expect", "?"], &quick[..]].concat()),
        ("command", &[&["--health-command", ask], &quick[..]].concat()),
    ] {
        hangs_when_told(&environment, name, options);
    }
    assert_eq!(environment.events("application-hung").len(), 4);
}

#[test]
fn a_program_that_serves_nothing_is_probed_by_a_command() {
    let environment = Environment::up();
    let [well, passed] = ["well", "passed"].map(|name| environment.file(name));
    std::fs::write(&well, "").unwrap();
    let probe = format!("echo probed; test -e {} && touch {}", well.display(), passed.display());
    let options = ["--wait", "0", "--health-command", &probe, "--health-interval", "0.05", "--health-timeout", "5"];
    environment.launch("worker", &options, &["sleep", "1000"]);
    let first = environment.wait_for("the program", || environment.pid("worker"));
    environment.wait_for("a probe that passes", || passed.exists().then_some(()));
    assert_eq!(environment.pid("worker"), Some(first));
    std::fs::remove_file(&well).unwrap();
    let second = environment.wait_for("the next life", || environment.pid("worker").filter(|pid| *pid != first));
    let told = environment.events("application-hung");
    let why = told[0]["values"]["why"].as_str().unwrap();
    assert_eq!((told.len(), why), (1, "3 probes in a row have failed, the last one: \"/bin/sh\" ended with exit status: 1"));
    assert!(environment.log("worker").starts_with("probed\n"), "{}", environment.log("worker"));
    // The next life is probed too, also by the next life of its daemon.
    std::fs::write(&well, "").unwrap();
    environment.kill_armor("node1");
    std::fs::remove_file(&passed).unwrap();
    environment.wait_for("a probe that passes", || passed.exists().then_some(()));
    std::fs::remove_file(&well).unwrap();
    environment.wait_for("one more life", || environment.pid("worker").filter(|pid| *pid != second));
}
