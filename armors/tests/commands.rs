//! The subcommands on a running environment, from `up` to `down`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub, missing_docs)]

mod environment;

use std::path::Path;
use std::process::{Command, Stdio};

use environment::{Environment, free_port, lives, text};

fn stdout(environment: &Environment, arguments: &[&str]) -> String {
    let output = environment.armor(arguments).output().unwrap();
    assert!(output.status.success(), "armor {arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn pid(environment: &Environment, armor: &str) -> i32 {
    environment.process(armor, "pid")
}

/// Ends whatever still runs of an environment; what it was.
fn end_leftovers(environment: &Environment) -> Vec<String> {
    let run_dir = environment.path().to_str().unwrap();
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let variables = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let own = String::from_utf8_lossy(&variables)
            .split('\0')
            .any(|variable| variable.starts_with("ARMOR_RUN_DIR=") && variable.contains(run_dir));
        if own && let Ok(pid) = entry.file_name().to_string_lossy().parse() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            left.push(String::from_utf8_lossy(&command).replace('\0', " "));
            environment::kill(pid);
        }
    }
    left
}

#[test]
fn an_environment_comes_up_is_seen_and_goes_down() {
    let environment = Environment::up();
    let again = stdout(&environment, &["up"]);
    assert!(again.contains("node1: runs already, pid "), "{again}");
    assert!(again.contains("The environment is up already. Run directory: "), "{again}");

    let status = stdout(&environment, &["status"]);
    assert!(status.starts_with("Nodes\n  NODE "), "{status}");
    assert!(status.contains("\n  node1  127.0.0.1:"), "{status}");
    for (armor, kind) in [("ftm", "ftm"), ("node1", "daemon")] {
        let own = environment.status()["armors"].as_array().unwrap().iter().find(|row| row["name"] == armor).cloned().unwrap();
        assert_eq!(own["status"]["kind"], kind);
        assert_eq!(own["status"]["pid"].as_i64(), Some(i64::from(pid(&environment, armor))));
    }

    let pids = [pid(&environment, "ftm"), pid(&environment, "node1")];
    assert!(pids.iter().all(|&pid| lives(pid)));
    let down = stdout(&environment, &["down"]);
    assert_eq!(down, format!("node1: stopped, pid {}\nftm: stopped, pid {}\n", pids[1], pids[0]));
    assert!(!pids.iter().any(|&pid| lives(pid)));
    for left in ["pid", "ready", "vault.pid", "vault.sock", "armor.sock", "tcp.addr", "app_comm_client.sock", "app_comm_server.sock"] {
        assert!(!environment.path().join("run/node1").join(left).exists(), "{left} is left");
    }
    let output = environment.armor(&["status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
}

#[test]
fn a_second_node_joins_and_one_that_was_killed_with_its_vault_comes_back_with_up() {
    let environment = Environment::up();
    let joined = stdout(&environment, &["up", "--node", "node2"]);
    assert!(joined.contains("ftm: runs already") && joined.contains("node2: started"), "{joined}");
    environment.kill_with_vault("node2");
    let again = stdout(&environment, &["up", "--node", "node2"]);
    assert!(again.contains("node2: started"), "{again}");
    assert!(environment.path().join("run/node2/armor.log.old").exists());
    let down = stdout(&environment, &["down"]);
    assert_eq!(down.lines().count(), 3, "{down}");
}

#[test]
fn an_ftm_that_was_killed_with_its_vault_comes_back_with_its_tables_at_its_address() {
    let environment = Environment::up();
    let port = free_port().to_string();
    stdout_of_launch(&environment, &["--name", "web"], &["python3", "-m", "http.server", "--bind", "127.0.0.1", &port]);
    let address = environment.path().join("run/ftm/tcp.addr");
    let before = std::fs::read_to_string(&address).unwrap();
    environment.kill_with_vault("ftm");
    let again = stdout(&environment, &["up"]);
    assert!(again.contains("ftm: started") && again.contains("node1: runs already"), "{again}");
    assert_eq!(std::fs::read_to_string(&address).unwrap(), before);
    let status = stdout(&environment, &["status"]);
    assert!(status.contains(&format!("\n  web      127.0.0.1:{port} ")), "{status}");
    stdout(&environment, &["down"]);
    assert_eq!(end_leftovers(&environment), Vec::<String>::new(), "`armor down` left programs of the environment running");
}

#[test]
fn a_server_is_launched_seen_and_stopped() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let launched = stdout_of_launch(&environment, &["--name", "web"], &["python3", "-m", "http.server", "--bind", "127.0.0.1", &port]);
    assert!(launched.starts_with("web: launched on node1, pid "), "{launched}");
    assert!(launched.contains(&format!(", serves 127.0.0.1:{port}\nlog: ")), "{launched}");
    let log = launched.lines().nth(1).unwrap().strip_prefix("log: ").unwrap();
    assert!(Path::new(log).exists(), "{log}");
    let status = stdout(&environment, &["status"]);
    assert!(status.contains("\n  web          node1  running  "), "{status}");
    assert_eq!(stdout(&environment, &["stop", "web"]), "web: stopped\n");
    let events = stdout(&environment, &["events", "--json"]);
    for line in events.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn an_application_has_an_execution_armor_of_its_own() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let options = ["--name", "web", "--execution-armor"];
    stdout_of_launch(&environment, &options, &["python3", "-m", "http.server", "--bind", "127.0.0.1", &port]);
    let status = stdout(&environment, &["status"]);
    assert!(status.contains("\n  web          node1/web  running  "), "{status}");
    let url = format!("http://127.0.0.1:{port}/");
    let client = ["--", "python3", "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)", &url];
    let mut run = environment.armor(&["run", "--execution-armor"]);
    let output = run.args(client).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200\n", "{}", text(&output));
    assert_eq!(stdout(&environment, &["stop", "web"]), "web: stopped\n");
}

#[test]
fn an_execution_armor_outlives_its_daemon() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let options = ["--name", "web", "--execution-armor"];
    stdout_of_launch(&environment, &options, &["python3", "-m", "http.server", "--bind", "127.0.0.1", &port]);
    let server = environment.pid("web").unwrap();
    for round in 0..2 {
        // Its vault starts it again; when that is dead too, `armor up` does.
        if round == 0 {
            environment.kill_armor("node1");
        } else {
            environment.kill_with_vault("node1");
            stdout(&environment, &["up"]);
        }
        let again = environment.wait_for("the application to be seen again", || environment.pid("web"));
        assert_eq!(again, server);
    }
    stdout(&environment, &["down"]);
    assert!(!lives(server));
}

#[test]
fn a_program_that_cannot_serve_is_told_with_its_log() {
    let environment = Environment::up();
    let mut launch = environment.armor(&["launch"]);
    let output = launch.args(["--name", "bad", "--restart-limit", "0", "--", "sh", "-c", "echo no port today; exit 3"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("armor: bad has failed for good after 0 restarts without serving anything; the last lines of "), "{said}");
    assert!(said.contains("\n    no port today"), "{said}");

    let mut launch = environment.armor(&["launch"]);
    let output = launch.args(["--name", "quiet", "--wait", "0.2", "--", "sleep", "1000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert_eq!(stdout(&environment, &["stop", "quiet"]), "quiet: stopped\n");
    let output = environment.armor(&["stop", "nobody"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).starts_with("armor: no application \"nobody\" is supervised here; "),
        "{}",
        text(&output)
    );
}

#[test]
fn a_daemon_that_cannot_reach_its_ftm_is_told_and_not_left_behind() {
    let environment = Environment::up();
    stdout(&environment, &["down"]);
    let nobody = format!("127.0.0.1:{}", free_port());
    let output = environment.armor(&["up", "--ftm", &nobody]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with(&format!("armor: the FTM at {nobody} does not answer daemon node1; ")), "{said}");
    assert_eq!(stdout(&environment, &["down"]), format!("Nothing runs in {}.\n", environment.path().join("run").display()));
}

fn stdout_of_launch(environment: &Environment, options: &[&str], command: &[&str]) -> String {
    let output = environment.armor(&["launch"]).args(options).arg("--").args(command).output().unwrap();
    assert!(output.status.success(), "armor launch: {}\n{}", text(&output), environment.logs());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_armor_whose_log_cannot_be_written_lives() {
    let environment = Environment::up();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut other = Command::new(env!("CARGO_BIN_EXE_armor"));
    let ftm = std::fs::read_to_string(environment.file("run/ftm/tcp.addr")).unwrap();
    other.args(["start", "daemon", "--name", "node2", "--run-dir"]).arg(environment.file("run/node2"));
    other.args(["--set", &format!("daemon_tcp_mgmt.ftm={}", ftm.trim()), "--set", "daemon_tcp_mgmt.listen=127.0.0.1:0"]);
    let mut other = other.stdin(Stdio::null()).stderr(full).spawn().unwrap();
    let registered = || environment.events("daemon-registered").iter().any(|event| event["values"]["daemon"] == "node2").then_some(());
    environment.wait_for("node2", registered);
    assert!(other.try_wait().unwrap().is_none(), "it ended");
    environment::signal(other.id().cast_signed(), rustix::process::Signal::TERM);
    assert!(other.wait().unwrap().success());
}
