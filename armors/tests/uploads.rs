//! Clients that say more than fits the memory: their log goes on in a file, and a server that dies is told all of it again.
#![allow(clippy::unwrap_used, clippy::panic)]

mod environment;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use environment::{Environment, free_port, text};

const MEBIBYTES: usize = 64;

fn program(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name).display().to_string()
}

/// The server, which stands still after so many MiB in each of its first lives.
fn launch(environment: &Environment, port: &str, stands_still: &[&str]) {
    let (server, lives) = (program("hash_server.py"), environment.file("lives").display().to_string());
    let command = [&["python3", &server, port, &lives], stands_still].concat();
    environment.launch("hash", &["--policy", "stream"], &command);
}

/// Sizes of the files without a name that a process has open in a directory, in bytes.
fn nameless_files(pid: i32, directory: &Path) -> Vec<u64> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(|entry| entry.path());
    let nameless = open
        .filter(|path| path.read_link().is_ok_and(|file| file.starts_with(directory) && file.to_string_lossy().ends_with(" (deleted)")));
    nameless.filter_map(|path| path.metadata().ok()).map(|file| file.len()).collect()
}

fn pid_of(environment: &Environment, armor: &str) -> i32 {
    std::fs::read_to_string(environment.file("run").join(armor).join("pid")).unwrap().trim().parse().unwrap()
}

/// `expected` is what the client itself has computed.
fn assert_whole(answer: &str) {
    let (answer, expected) = answer.trim().split_once(" expected ").unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(answer, expected);
}

#[test]
fn an_upload_of_64_mb_over_two_kills_is_hashed_whole_and_answered_once() {
    upload_over_kills(None);
}

#[test]
fn a_log_in_a_file_outlives_the_daemon() {
    upload_over_kills(Some("node1"));
}

/// A server is killed twice during an upload, and each time the ARMOR of its client before it.
fn upload_over_kills(armor: Option<&str>) {
    let environment = Environment::up();
    let port = free_port().to_string();
    launch(&environment, &port, &["16", "40"]);
    let mut client = environment.run(&["python3", &program("hash_client.py"), &port, &MEBIBYTES.to_string()]);
    let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let directory = environment.file("run/node1").canonicalize().unwrap();
    let files = || nameless_files(pid_of(&environment, "node1"), &directory);
    for (life, reached) in [(1, 16), (2, 40)] {
        let told = format!("life {life} stands still\n");
        environment.wait_for(&told, || environment.log("hash").contains(&told).then_some(()));
        environment.wait_for("the file", || (files().first() >= Some(&((reached - 8) << 20))).then_some(()));
        if let Some(armor) = armor {
            environment.kill_armor(armor);
            environment.wait_for("the file again", || (!files().is_empty()).then_some(()));
        }
        environment.kill("hash");
    }
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), environment.logs());
    assert_whole(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(environment.events("replay-lost").len(), 0);
    assert!(environment.events("connection-recovered").len() >= 2);
    environment.wait_for("the file to be given back", || files().is_empty().then_some(()));
}

/// A daemon with a spill directory of its own.
struct Spilling<'a> {
    environment: &'a Environment,
    daemon: Child,
}

impl<'a> Spilling<'a> {
    fn start(environment: &'a Environment, directory: &Path) -> Self {
        let ftm = std::fs::read_to_string(environment.file("run/ftm/tcp.addr")).unwrap();
        let mut daemon = Command::new(env!("CARGO_BIN_EXE_armor"));
        daemon.args(["start", "daemon", "--name", "node2", "--run-dir"]).arg(environment.file("run/node2"));
        daemon.args(["--set", &format!("daemon_tcp_mgmt.ftm={}", ftm.trim()), "--set", "daemon_tcp_mgmt.listen=127.0.0.1:0"]);
        daemon.args(["--set", &format!("APP_COMM_CLIENT.spill_dir={}", directory.display())]);
        let log = std::fs::File::create(environment.file("node2.log")).unwrap();
        let daemon = daemon.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        environment.wait_for("node2", || environment.file("run/node2/ready").exists().then_some(()));
        Spilling { environment, daemon }
    }

    fn upload(&self, port: &str) -> Command {
        let mut run = self.environment.armor(&["run"]);
        run.args(["--node", "node2", "--", "python3", &program("hash_client.py"), port, &MEBIBYTES.to_string()]);
        run
    }
}

impl Drop for Spilling<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Runs this test once more where a small file system can be mounted; there, says where it is.
fn small_disk(test: &str) -> Option<PathBuf> {
    if let Some(mounted) = std::env::var_os("ARMOR_TEST_SMALL_DISK") {
        return Some(PathBuf::from(mounted));
    }
    let place = tempfile::tempdir().unwrap();
    let mut inside = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        inside.args(["--user", "--map-root-user"]);
    }
    inside.args(["--mount", "sh", "-c", "mount -t tmpfs -o size=8m tmpfs \"$ARMOR_TEST_SMALL_DISK\" && exec \"$@\"", "sh"]);
    inside.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env("ARMOR_TEST_SMALL_DISK", place.path());
    let status = inside.status().unwrap();
    assert!(status.success(), "{test} in a mount namespace of its own (this needs root, or user namespaces): {status}");
    None
}

#[test]
fn a_full_disk_costs_replay_is_told_and_the_upload_goes_on() {
    let Some(disk) = small_disk("a_full_disk_costs_replay_is_told_and_the_upload_goes_on") else { return };
    let environment = Environment::up();
    let port = free_port().to_string();
    launch(&environment, &port, &[]);
    let node = Spilling::start(&environment, &disk);
    let output = node.upload(&port).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), environment.logs());
    assert_whole(&String::from_utf8_lossy(&output.stdout));
    let failed = environment.wait_for("the event", || environment.events("spill-failed").into_iter().next());
    assert_eq!(failed["values"]["directory"], disk.display().to_string());
    assert_eq!(failed["values"]["reason"], "no storage space");
    let lost = environment.events("replay-lost");
    assert_eq!(lost.len(), 1);
    assert!(lost[0]["values"]["log_bytes"].as_str().unwrap().parse::<u64>().unwrap() > 8 << 20, "{lost:?}");
    // The room that the file had taken is free again.
    std::fs::write(disk.join("more"), vec![0; 7 << 20]).unwrap();
}
