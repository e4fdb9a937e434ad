//! `armor link` with real namespaces, TUN devices and programs. Needs root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a condition may take to come true before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts datagrams until one says `end`; tells how many came, and from where the last one.
const RECEIVER: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
s.bind(('0.0.0.0', 7000))
print('ready', flush=True)
count = 0
while True:
    data, peer = s.recvfrom(2000)
    if data == b'end': break
    count += 1
print(count, peer[0], flush=True)
";

/// Sends so many datagrams of 200 bytes, or one that says `end`.
const SENDER: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])): s.sendto(bytes(200), (sys.argv[1], 7000))
if sys.argv[2] == '0': s.sendto(b'end', (sys.argv[1], 7000))
";

/// Links that run, and the end of them.
struct Links {
    directory: tempfile::TempDir,
    emulator: Option<Child>,
}

impl Links {
    fn new() -> Links {
        assert!(rustix_is_root(), "the tests of `armor link` make network namespaces and TUN devices: run them as root");
        Links { directory: tempfile::Builder::new().prefix("armor-test-link-").tempdir().unwrap(), emulator: None }
    }

    /// `armor link up test …`, and waits until it is up.
    fn up(options: &[&str]) -> Links {
        let mut links = Links::new();
        links.start(options);
        links
    }

    fn start(&mut self, options: &[&str]) {
        let mut child = self.link("up", options).stdout(Stdio::piped()).spawn().unwrap();
        let line = first_line(&mut child);
        self.emulator = Some(child);
        assert!(line.starts_with("test: up, "), "{line}");
    }

    /// `armor link SUBCOMMAND test …`.
    fn link(&self, subcommand: &str, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_armor"));
        command.args(["link", subcommand, "test", "--run-dir"]).arg(self.directory.path().join("run")).args(options);
        command.stdin(Stdio::null());
        command
    }

    fn set(&self, options: &[&str]) {
        ok(self.link("set", options).output().unwrap());
    }

    fn python(&self, end: &str, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.link("exec", &[end, "--", "python3", "-c", program]);
        command.args(arguments).stdout(Stdio::piped());
        command
    }

    fn receiver(&self) -> Child {
        let mut receiver = self.python("b", RECEIVER, &[]).spawn().unwrap();
        assert_eq!(first_line(&mut receiver), "ready");
        receiver
    }

    fn send(&self, to: &str, count: u32) {
        ok(self.python("a", SENDER, &[to, &count.to_string()]).output().unwrap());
    }

    /// Counters of the way from a to b.
    fn there(&self) -> Value {
        let output = ok(self.link("stats", &["--json"]).output().unwrap());
        let report: Value = serde_json::from_str(&output).unwrap();
        report["ways"][0].clone()
    }

    fn addresses(&self, end: &str) -> String {
        ok(self.link("exec", &[end, "--", "ip", "-4", "-o", "address", "show", "dev", "link0"]).output().unwrap())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Some(mut emulator) = self.emulator.take() {
            let _ = emulator.kill();
            let _ = emulator.wait();
        }
    }
}

fn rustix_is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The first line of what a program says; the rest is left to be read.
fn first_line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into_owned()
}

fn last_line(mut child: Child) -> String {
    let lines: Vec<_> = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
    child.wait().unwrap();
    lines.last().cloned().unwrap_or_default()
}

fn number(counts: &Value, name: &str) -> u64 {
    counts[name].as_u64().unwrap_or_else(|| panic!("no {name} in {counts}"))
}

#[test]
fn what_a_link_loses_does_not_arrive_and_all_else_does() {
    let links = Links::up(&["--loss", "20%"]);
    let receiver = links.receiver();
    links.send("10.77.0.2", 2000);
    links.set(&["--loss", "0%"]);
    links.send("10.77.0.2", 0);
    let arrived: u64 = last_line(receiver).split(' ').next().unwrap().parse().unwrap();
    let there = links.there();
    assert_eq!(number(&there, "entered_packets"), 2001, "{there}");
    assert_eq!(number(&there, "left_packets"), arrived + 1, "{there}");
    assert_eq!(number(&there, "lost"), 2000 - arrived, "{there}");
    // 20 % of 2000 within five standard deviations.
    assert!((310..=490).contains(&number(&there, "lost")), "{there}");
}

#[test]
fn a_round_trip_takes_the_delays_of_both_ways_at_least() {
    let links = Links::up(&["--delay", "20ms", "--rate", "10mbit"]);
    let echo = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 7000))
print('ready', flush=True)
for _ in range(5):
    data, peer = s.recvfrom(2000)
    s.sendto(data, peer)
";
    let ask = "
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(5):
    begin = time.monotonic()
    s.sendto(bytes(1000), ('10.77.0.2', 7000))
    s.recvfrom(2000)
    print((time.monotonic() - begin) * 1000)
";
    let mut echo = links.python("b", echo, &[]).spawn().unwrap();
    assert_eq!(first_line(&mut echo), "ready");
    let output = ok(links.python("a", ask, &[]).output().unwrap());
    let took: Vec<f64> = output.lines().map(|line| line.parse().unwrap()).collect();
    // 1028 bytes at 10 Mbit/s take 0.8 ms each way.
    assert!(took.len() == 5 && took.iter().all(|ms| *ms >= 41.6), "{took:?}");
    echo.wait().unwrap();
}

#[test]
fn nothing_passes_a_link_that_is_down() {
    let links = Links::up(&[]);
    let receiver = links.receiver();
    links.set(&["--down"]);
    links.send("10.77.0.2", 10);
    // The packets are in the kernel's hands when they are sent; here they have been read.
    let begun = Instant::now();
    while number(&links.there(), "lost_in_blackouts") < 10 {
        assert!(begun.elapsed() < PATIENCE, "{}", links.there());
    }
    links.set(&["--up"]);
    links.send("10.77.0.2", 3);
    links.send("10.77.0.2", 0);
    assert_eq!(last_line(receiver), "3 10.77.0.1");
}

#[test]
fn both_ends_change_their_addresses_at_once() {
    let links = Links::up(&[]);
    links.set(&["--address-a", "10.77.0.7/24", "--address-b", "10.99.0.8/16"]);
    let (a, b) = (links.addresses("a"), links.addresses("b"));
    assert!(a.contains("10.77.0.7/24") && !a.contains("10.77.0.1"), "{a}");
    assert!(b.contains("10.99.0.8/16") && !b.contains("10.77.0.2"), "{b}");
    let receiver = links.receiver();
    links.send("10.99.0.8", 5);
    links.send("10.99.0.8", 0);
    assert_eq!(last_line(receiver), "5 10.77.0.7");
    // And one alone; the other end finds it.
    links.set(&["--address-a", "172.20.0.1/30"]);
    let receiver = links.receiver();
    links.send("10.99.0.8", 2);
    links.send("10.99.0.8", 0);
    assert_eq!(last_line(receiver), "2 172.20.0.1");
    // An address that both would have is refused.
    assert!(!links.link("set", &["--address-a", "10.99.0.8/16"]).output().unwrap().status.success());
}

#[test]
fn nothing_is_left_of_an_emulator_that_is_killed() {
    let mut links = Links::up(&[]);
    let of = |end| ok(links.link("exec", &[end, "--", "readlink", "/proc/self/ns/net"]).output().unwrap()).trim().to_owned();
    let namespaces = [of("a"), of("b")];
    assert_ne!(namespaces[0], namespaces[1]);
    assert!(namespaces.iter().all(|namespace| held(namespace)));
    // A second one of the name is refused while it runs.
    let second = links.link("up", &[]).output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("runs already"));
    // A program inside sees its link go; then it ends, and the namespace with it.
    let until_gone = "
import time
print('ready', flush=True)
while 'link0' in open('/proc/net/dev').read(): time.sleep(0.01)
print('gone')
";
    let mut inside = links.python("a", until_gone, &[]).spawn().unwrap();
    assert_eq!(first_line(&mut inside), "ready");
    let mut emulator = links.emulator.take().unwrap();
    emulator.kill().unwrap();
    emulator.wait().unwrap();
    assert_eq!(last_line(inside), "gone");
    let begun = Instant::now();
    while namespaces.iter().any(|namespace| held(namespace)) {
        assert!(begun.elapsed() < PATIENCE, "{namespaces:?} are still held");
    }
    // Who asks it is told, and the name is free again.
    let asked = links.link("stats", &[]).output().unwrap();
    assert!(String::from_utf8_lossy(&asked.stderr).contains("armor link up test"));
    links.start(&[]);
    ok(links.link("down", &[]).output().unwrap());
    assert!(links.emulator.take().unwrap().wait().unwrap().success());
    assert!(!links.directory.path().join("run/links/test.sock").exists());
}

/// Whether a process is in a namespace, or holds it open, or it is mounted.
fn held(namespace: &str) -> bool {
    let is_it = |path: &Path| std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == namespace);
    std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(namespace)
        || std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
            let descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            is_it(&process.path().join("ns/net")) || descriptors.map(|entry| entry.path()).any(|path| is_it(&path))
        })
}

#[test]
fn a_program_runs_over_the_links_of_a_file_and_its_status_is_given_back() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/links/roaming.toml");
    let links = Links::new();
    let program = "ip -4 -o address; exit 7";
    let output = links.link("up", &["--file", file, "--json", "--", "sh", "-c", program]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("10.77.1.1/24") && said.contains("10.77.2.1/24"), "{said}");
    let report = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    assert_eq!(report["seed"], 1);
    assert_eq!(report["ways"].as_array().unwrap().len(), 4);
}

#[test]
fn without_the_right_to_make_namespaces_it_says_what_to_do() {
    let links = Links::new();
    let up = links.link("up", &[]);
    let mut weak = Command::new("setpriv");
    weak.args(["--bounding-set", "-sys_admin,-net_admin"]).arg(up.get_program()).args(up.get_args());
    let output = weak.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("need root"), "{said}");
}
