//! Standbys: instances that wait inside their bind take over when the running one is killed, whatever is killed besides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::Write;
use std::process::Stdio;

use environment::{Beside, Environment, free_port, kill, lives, signal, text};
use serde_json::Value;

/// A server that tells its process number, with standbys that all wait; its port.
fn server(environment: &Environment, standbys: u32, options: &[&str]) -> String {
    let port = free_port().to_string();
    let standby = standbys.to_string();
    let options = [&["--standby", &standby, "--on-divergence", "continue"], options].concat();
    environment.launch("web", &options, &["python3", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/standby_server.py"), &port]);
    assert_eq!(waiting(environment).len(), standbys as usize, "`armor launch` waits until they wait\n{}", environment.logs());
    port
}

fn standbys(environment: &Environment) -> Value {
    environment.application("web").map_or(Value::Null, |application| application["standbys"].clone())
}

/// Standbys that wait inside their bind, the oldest first.
fn waiting(environment: &Environment) -> Vec<i32> {
    let instances = standbys(environment)["instances"].as_array().cloned().unwrap_or_default();
    instances
        .iter()
        .filter(|instance| instance["state"] == "waiting")
        .filter_map(|instance| Some(instance["pid"].as_i64()? as i32))
        .collect()
}

fn wait_for_standbys(environment: &Environment, count: usize) -> Vec<i32> {
    environment.wait_for("standbys to wait", || Some(waiting(environment)).filter(|waiting| waiting.len() == count))
}

/// Whom a new client speaks to.
fn asked(environment: &Environment, port: &str) -> String {
    let output = environment.output(&["curl", "-sS", &format!("http://127.0.0.1:{port}/")]);
    assert!(output.status.success(), "curl: {}\n{}", text(&output), environment.logs());
    String::from_utf8(output.stdout).unwrap()
}

/// The running instance is killed: this one takes over.
fn takes_over(environment: &Environment, port: &str, standby: i32) {
    environment.kill("web");
    assert_eq!(environment.pid("web"), Some(standby), "{}", environment.logs());
    assert_eq!(asked(environment, port), standby.to_string());
}

#[test]
fn a_download_goes_on_over_ten_kills_each_time_from_the_standby() {
    let environment = Environment::up();
    let root = environment.file("www");
    std::fs::create_dir(&root).unwrap();
    let content: Vec<u8> = (0..32u32 << 20).map(|at| (at ^ at >> 9 ^ at >> 17) as u8).collect();
    std::fs::write(root.join("big.bin"), &content).unwrap();
    // How long it takes without is printed for comparison.
    for (standbys, kills) in [("0", 3), ("1", 10)] {
        let port = free_port().to_string();
        let server = ["python3", "-m", "http.server", &port, "--bind", "127.0.0.1", "--directory", root.to_str().unwrap()];
        let options = ["--standby", standbys, "--on-divergence", "continue", "--restart-limit", "100"];
        environment.launch("web", &options, &server);
        let (url, file) = (format!("http://127.0.0.1:{port}/big.bin"), root.join("big.bin"));
        let client = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/step_download.py");
        let mut command = environment.run(&["python3", client, &url, file.to_str().unwrap()]);
        command.stdin(Stdio::piped());
        let mut client = Beside::start(command);
        assert_eq!(client.line().as_deref(), Some("begun"));
        let mut input = client.child.stdin.take().unwrap();
        let mut told = |line: &str| {
            writeln!(input, "{line}").unwrap();
            client.line()
        };
        for _ in 0..kills {
            let next = if standbys == "1" { wait_for_standbys(&environment, 1).first().copied() } else { None };
            environment.kill("web");
            if next.is_some() {
                assert_eq!(environment.pid("web"), next, "the standby takes over\n{}", environment.logs());
            }
            assert_eq!(told("more").as_deref(), Some("more"), "{}", environment.logs());
        }
        assert_eq!(told("rest").as_deref(), Some("identical"), "{}", environment.logs());
        let recoveries = environment.recoveries("web");
        recoveries.iter().rev().take(kills).for_each(|recovery| println!("standby = {standbys}: {recovery}"));
        assert!(environment.armor(&["stop", "web"]).output().unwrap().status.success());
    }
}

#[test]
fn a_standby_goes_on_waiting_when_its_daemon_dies_and_takes_over_afterwards() {
    let environment = Environment::up();
    let port = server(&environment, 1, &[]);
    let standby = waiting(&environment)[0];
    let running = environment.pid("web");
    for _ in 0..3 {
        environment.kill_armor("node1");
        environment.wait_for("the application", || environment.application("web"));
        assert_eq!((environment.pid("web"), wait_for_standbys(&environment, 1)), (running, vec![standby]), "{}", environment.logs());
    }
    takes_over(&environment, &port, standby);
    assert!(wait_for_standbys(&environment, 1) != [standby], "another one is behind it");
}

#[test]
fn a_server_and_its_daemon_that_die_together_are_followed_by_the_standby() {
    let environment = Environment::up();
    let port = server(&environment, 1, &[]);
    let (running, standby) = (environment.pid("web").unwrap(), waiting(&environment)[0]);
    // Stopped, the daemon learns of the server's death in its next life alone.
    let daemon = environment.process("node1", "pid");
    signal(daemon, rustix::process::Signal::STOP);
    kill(running);
    environment.kill_armor("node1");
    environment.wait_for("the standby to take over", || environment.pid("web").filter(|&pid| pid == standby));
    assert_eq!(asked(&environment, &port), standby.to_string());
}

#[test]
fn a_standby_that_is_killed_is_replaced_and_costs_no_restart() {
    let environment = Environment::up();
    let port = server(&environment, 1, &[]);
    let first = waiting(&environment)[0];
    kill(first);
    let next = environment.wait_for("another standby", || waiting(&environment).first().copied().filter(|&next| next != first));
    let application = environment.application("web").unwrap();
    assert_eq!((&application["restarts"], &application["standbys"]["died"]), (&0.into(), &1.into()), "{application}");
    assert_eq!(environment.events("standby-failed").len(), 1);
    takes_over(&environment, &port, next);
}

#[test]
fn two_standbys_take_over_one_after_the_other() {
    let environment = Environment::up();
    let port = server(&environment, 2, &[]);
    let [first, second] = waiting(&environment)[..] else { panic!("two") };
    takes_over(&environment, &port, first);
    takes_over(&environment, &port, second);
    wait_for_standbys(&environment, 2);
    assert_eq!(environment.events("application-failed").len(), 2);
}

#[test]
fn a_program_that_must_not_have_a_standby_is_told_and_serves_without() {
    let environment = Environment::up();
    let (port, lock) = (free_port().to_string(), environment.file("lock").display().to_string());
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/standby_server.py");
    let mut launch = environment.armor(&["launch"]);
    launch.args(["--name", "web", "--standby", "1", "--", "python3", program, &port, "lock", &lock]);
    let output = launch.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "the service runs: {}", text(&output));
    assert!(
        said.contains("armor: a standby of web has ended before it bound an address (exit status: 1), so this program must not"),
        "{said}"
    );
    assert!(environment.log("web").contains("another one has the lock"));
    assert_eq!(environment.events("standby-ended-early").len(), 1);
    let before = environment.pid("web");
    environment.kill("web");
    let now = environment.wait_for("the next life", || environment.pid("web").filter(|&pid| Some(pid) != before));
    assert_eq!(asked(&environment, &port), now.to_string());
    assert_eq!(standbys(&environment)["instances"], serde_json::json!([]));
}

#[test]
fn a_standby_that_takes_over_is_asked_whether_it_is_ready() {
    let environment = Environment::up();
    let port = server(&environment, 1, &["--ready-send", r"GET / HTTP/1.0\r\n\r\n", "--ready-expect", "HTTP/1.0 200"]);
    takes_over(&environment, &port, waiting(&environment)[0]);
    let lives: Vec<_> = environment.events("server-ready").iter().map(|event| event["values"]["incarnation"].to_string()).collect();
    assert_eq!(lives, ["\"1\"", "\"2\""]);
}

#[test]
fn standbys_end_with_their_service_however_it_ends() {
    let environment = Environment::up();
    let gone = |pids: &[i32]| environment.wait_for("the end of the standbys", || pids.iter().all(|&pid| !lives(pid)).then_some(()));
    server(&environment, 2, &[]);
    let pids = waiting(&environment);
    assert!(environment.armor(&["stop", "web"]).output().unwrap().status.success());
    gone(&pids);

    server(&environment, 1, &[]);
    let pids = waiting(&environment);
    // It ends with status 0, by its own will.
    signal(environment.pid("web").unwrap(), rustix::process::Signal::TERM);
    environment.wait_for("the end of the service", || environment.application("web").filter(|application| application["state"] == "ended"));
    gone(&pids);

    server(&environment, 1, &["--restart-limit", "0"]);
    let pids = waiting(&environment);
    kill(environment.pid("web").unwrap());
    environment
        .wait_for("the service to be given up", || environment.application("web").filter(|application| application["state"] == "given-up"));
    gone(&pids);

    server(&environment, 1, &[]);
    let pids = [waiting(&environment), vec![environment.pid("web").unwrap()]].concat();
    assert!(environment.armor(&["down"]).output().unwrap().status.success());
    assert!(pids.iter().all(|&pid| !lives(pid)), "`armor down` leaves nothing behind");
}

#[test]
fn a_standby_that_hears_no_sigterm_inside_its_bind_is_killed() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/standby_server.py");
    environment.launch("web", &["--standby", "1"], &["python3", program, &port, "deaf"]);
    let standby = waiting(&environment)[0];
    assert!(environment.armor(&["stop", "web"]).output().unwrap().status.success());
    environment.wait_for("the end of the standby", || (!lives(standby)).then_some(()));
    assert_eq!(environment.events("standby-failed").len(), 0, "it was ended, it has not failed");
    let again = environment.output(&["curl", "-sS", &format!("http://127.0.0.1:{port}/")]);
    assert!(!again.status.success(), "nobody serves: {}", text(&again));
}

#[test]
fn a_service_whose_node_fails_is_started_on_another_one_and_has_its_standby_there() {
    let environment = Environment::up_with(&["--node", "a", "--node", "b"]);
    let port = server(&environment, 1, &["--node", "a"]);
    let (running, standby) = (environment.pid("web").unwrap(), waiting(&environment)[0]);
    let (daemon, vault) = (environment.process("a", "pid"), environment.process("a", "vault.pid"));
    // Stopped, nobody starts anything again.
    for pid in [vault, daemon] {
        signal(pid, rustix::process::Signal::STOP);
    }
    for pid in [running, standby, vault, daemon] {
        kill(pid);
    }
    let there =
        environment.wait_for("the next life on the other node", || environment.pid("web").filter(|pid| ![running, standby].contains(pid)));
    let behind = wait_for_standbys(&environment, 1)[0];
    let ask = |from: &str| {
        let mut run = environment.armor(&["run", "--node", "b"]);
        let output = run.args(["--", "curl", "-sS", &format!("http://127.0.0.1:{port}/")]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), from, "{}", text(&output));
    };
    ask(&there.to_string());
    environment.kill("web");
    ask(&behind.to_string());
}
