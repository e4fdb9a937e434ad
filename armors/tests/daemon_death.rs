//! Daemons, Execution ARMORs and vaults are killed with SIGKILL while clients stream: nothing is lost or repeated, no application is
//! started again, no connection is closed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use environment::echo::{echo_server, finishes_identical, verifier};
use environment::{Environment, free_port, kill, text};

#[test]
fn a_daemon_that_dies_again_and_again_costs_no_byte_and_no_restart() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["20"]);
    for _ in 0..12 {
        environment.kill_armor("node1");
    }
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.pid("echo"), Some(server), "the server was not started again");
    assert_eq!(environment.events("connection-lost").len(), 0, "{}", environment.logs());
    assert_eq!(environment.events("connection-reset").len(), 0, "{}", environment.logs());
}

#[test]
fn a_download_does_not_notice_that_its_daemon_dies() {
    let environment = Environment::up();
    let root = environment.file("www");
    std::fs::create_dir(&root).unwrap();
    let content: Vec<u8> = (0..64u32 << 20).map(|at| (at ^ at >> 9 ^ at >> 17) as u8).collect();
    std::fs::write(root.join("big.bin"), &content).unwrap();
    let port = free_port().to_string();
    let server = ["python3", "-m", "http.server", &port, "--bind", "127.0.0.1", "--directory", root.to_str().unwrap()];
    environment.launch("files", &[], &server);
    let (url, file) = (format!("http://127.0.0.1:{port}/big.bin"), environment.file("received.bin"));
    let mut curl = environment.run(&["curl", "-sS", "--limit-rate", "30M", "-o", file.to_str().unwrap(), &url]);
    let mut curl = curl.stderr(Stdio::piped()).spawn().unwrap();
    for part in 1..6 {
        let arrived = || std::fs::metadata(&file).ok().filter(|meta| meta.len() > part << 23);
        environment.wait_for("the download to go on", || arrived().map(|_| ()).or_else(|| curl.try_wait().unwrap().map(|_| ())));
        environment.kill_armor("node1");
    }
    let output = curl.wait_with_output().unwrap();
    assert!(output.status.success(), "curl: {}\n{}", text(&output), environment.logs());
    assert!(std::fs::read(&file).unwrap() == content, "another stream\n{}", environment.logs());
}

#[test]
fn a_server_that_nobody_supervises_frees_its_address_after_its_daemon_died() {
    let environment = Environment::up();
    let port = free_port();
    let services = || {
        let status = environment.status();
        status.pointer("/armors/0/status/elements/APP_SERVER_DB/state/servers").unwrap().as_array().unwrap().len()
    };
    // Whichever of the two dies first.
    for server_first in [false, true] {
        // A group of its own: the program may be started by a script of that name.
        let mut server = environment.run(&["python3", "-m", "http.server", &port.to_string(), "--bind", "127.0.0.1"]);
        let mut server = server.process_group(0).spawn().unwrap();
        let group = rustix::process::Pid::from_child(&server);
        let end = || rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        environment.wait_for("the service", || (services() == 1).then_some(()));
        if server_first {
            end();
        }
        environment.kill_armor("node1");
        if !server_first {
            end();
        }
        server.wait().unwrap();
        environment.wait_for("the service to be gone", || (services() == 0).then_some(()));
        environment.wait_for("the address", || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
    }
}

#[test]
fn a_server_that_dies_together_with_its_daemon_is_replayed() {
    let environment = Environment::up();
    let (port, _) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["10", "3000000"]);
    for _ in 0..4 {
        let server = environment.wait_for("the server", || environment.pid("echo"));
        kill(server);
        environment.kill_armor("node1");
        environment.wait_for("the next server", || environment.pid("echo").filter(|pid| *pid != server));
    }
    finishes_identical(&environment, &mut client);
}

#[test]
fn an_execution_armor_and_its_daemon_may_die_in_turn() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &["--execution-armor"]);
    let mut client = verifier(&environment, &port, &["10"]);
    for _ in 0..3 {
        environment.kill_armor("node1/armors/echo");
        environment.kill_armor("node1");
    }
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.pid("echo"), Some(server), "the server was not started again");
}

#[test]
fn a_vault_that_dies_is_replaced_and_keeps_everything_again() {
    let environment = Environment::up();
    let (port, server) = echo_server(&environment, &[]);
    let mut client = verifier(&environment, &port, &["10"]);
    for _ in 0..3 {
        let vault = environment.process("node1", "vault.pid");
        let kept = environment.events("kept-anew").len();
        kill(vault);
        environment.wait_for("another vault", || {
            let text = std::fs::read_to_string(environment.directory("node1").join("vault.pid")).ok()?;
            text.trim().parse::<i32>().ok().filter(|pid| *pid != vault && environment::lives(*pid))
        });
        // Both comm elements, the overseer, the links and the captured states; before that the death of the daemon would be the death of the node.
        environment.wait_for("everything to be kept again", || (environment.events("kept-anew").len() >= kept + 5).then_some(()));
        environment.kill_armor("node1");
    }
    finishes_identical(&environment, &mut client);
    assert_eq!(environment.pid("echo"), Some(server), "the server was not started again");
}

#[test]
fn what_was_being_stopped_when_its_daemon_died_is_ended_by_the_next_life() {
    let environment = Environment::up();
    let deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\nwhile True: time.sleep(1)";
    environment.launch("deaf", &["--wait", "0"], &["python3", "-c", deaf]);
    environment.wait_for("the program", || environment.log("deaf").contains("deaf").then_some(()));
    let process = environment.pid("deaf").unwrap();
    let mut stop = environment.armor(&["stop", "deaf"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // SIGTERM comes after the capture; a program that ignores it shows it as ignored and no longer pending, so the status of the ARMOR is asked.
    environment.wait_for("the stop", || environment.application("deaf").filter(|row| row["stopping"] == true));
    environment.kill_armor("node1");
    environment.wait_for("its end", || (!environment::lives(process)).then_some(()));
    environment.wait_for("its state", || environment.application("deaf").filter(|row| row["state"] == "ended"));
    assert_eq!(environment.events("application-failed").len(), 0);
    let _ = stop.wait();
}
