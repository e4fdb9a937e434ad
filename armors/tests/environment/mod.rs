//! A whole environment (FTM and one daemon) in a directory of its own, for one test. Everything ends with it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses what it needs")]
#![allow(clippy::unwrap_used, clippy::panic)]

pub mod echo;
pub mod nodes;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a condition may take to come true before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Environment {
    directory: tempfile::TempDir,
}

impl Environment {
    /// `armor up` in a fresh directory.
    pub fn up() -> Environment {
        Self::up_with(&[])
    }

    pub fn up_with(arguments: &[&str]) -> Environment {
        let environment = Environment::new();
        environment.came_up(environment.armor(&["up"]).args(arguments));
        environment
    }

    /// `armor up`, started by another program that is given the command line.
    pub fn up_in(starter: &[&str]) -> Environment {
        let environment = Environment::new();
        let up = environment.armor(&["up"]);
        let mut starting = Command::new(starter[0]);
        starting.args(&starter[1..]).arg(up.get_program()).args(up.get_args()).stdin(Stdio::null());
        environment.came_up(&mut starting);
        environment
    }

    fn new() -> Environment {
        Environment { directory: tempfile::Builder::new().prefix("armor-test-").tempdir().unwrap() }
    }

    fn came_up(&self, up: &mut Command) {
        let output = up.output().unwrap();
        assert!(output.status.success(), "armor up: {}", text(&output));
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file in the environment's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `armor SUBCOMMAND --run-dir …`.
    pub fn armor(&self, subcommand: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_armor"));
        command.args(subcommand).arg("--run-dir").arg(self.path().join("run")).stdin(Stdio::null());
        // What the user has set for his own connections is not meant for a test's.
        command.env("no_proxy", "*").env_remove("ARMOR_RUN_DIR").env_remove("ARMOR_SHIM");
        command
    }

    /// `armor launch --name NAME OPTIONS -- COMMAND`; comes back when the server has bound.
    pub fn launch(&self, name: &str, options: &[&str], command: &[&str]) {
        let output = self.armor(&["launch"]).args(["--name", name]).args(options).arg("--").args(command).output().unwrap();
        assert!(output.status.success(), "armor launch {name}: {}\n{}", text(&output), self.log(name));
    }

    /// `armor run -- COMMAND`.
    pub fn run(&self, command: &[&str]) -> Command {
        let mut run = self.armor(&["run"]);
        run.arg("--").args(command);
        run
    }

    /// Runs a client to its end.
    pub fn output(&self, command: &[&str]) -> Output {
        self.run(command).output().unwrap()
    }

    pub fn status(&self) -> Value {
        let output = self.armor(&["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("armor status --json: {error}: {}", text(&output)))
    }

    /// The application's row in the status.
    pub fn application(&self, name: &str) -> Option<Value> {
        self.listed("app_oversight", "applications").into_iter().find(|application| application["name"] == name)
    }

    /// Events of this name so far.
    pub fn events(&self, what: &str) -> Vec<Value> {
        let output = self.armor(&["events", "--json"]).output().unwrap();
        let events = String::from_utf8_lossy(&output.stdout).into_owned();
        events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|event| event["what"] == what).collect()
    }

    /// A list in the states of an element, of all ARMORs.
    fn listed(&self, element: &str, list: &str) -> Vec<Value> {
        let status = self.status();
        let armors = status["armors"].as_array().cloned().unwrap_or_default();
        armors.iter().flat_map(|armor| armor["status"]["elements"][element]["state"][list].as_array().cloned()).flatten().collect()
    }

    /// All applications, with the name of the ARMOR that oversees each as `armor_name`.
    pub fn applications(&self) -> Vec<Value> {
        let status = self.status();
        let mut applications = Vec::new();
        for armor in status["armors"].as_array().into_iter().flatten() {
            for application in armor["status"]["elements"]["app_oversight"]["state"]["applications"].as_array().into_iter().flatten() {
                let mut application = application.clone();
                application["armor_name"] = armor["name"].clone();
                applications.push(application);
            }
        }
        applications
    }

    /// Connections as the ARMORs of servers see them.
    pub fn server_ends(&self) -> Vec<Value> {
        self.listed("APP_COMM_SERVER", "connections")
    }

    /// Connections as the ARMORs of clients see them.
    pub fn client_ends(&self) -> Vec<Value> {
        self.listed("APP_COMM_CLIENT", "connections")
    }

    /// Timelines of a service's recoveries.
    pub fn recoveries(&self, service: &str) -> Vec<Value> {
        self.listed("APP_COMM_SERVER", "recoveries").into_iter().filter(|recovery| recovery["service"] == service).collect()
    }

    /// Bytes that servers have said to the clients that are connected now.
    pub fn said_by_servers(&self) -> u64 {
        self.server_ends().iter().filter_map(|end| end["sent"].as_u64()).sum()
    }

    /// Pid of the application's process while it runs.
    pub fn pid(&self, name: &str) -> Option<i32> {
        let application = self.application(name)?;
        (application.get("state")?.as_str()? == "running").then_some(application.get("pid")?.as_i64()? as i32)
    }

    /// SIGKILL to the application's process; comes back when the next life runs.
    pub fn kill(&self, name: &str) {
        let pid = self.wait_for("a running process", || self.pid(name));
        let before = self.application(name).unwrap()["incarnation"].as_i64().unwrap();
        kill(pid);
        self.wait_for("the next life", || {
            self.application(name).filter(|app| app["incarnation"].as_i64() > Some(before) && app["state"] == "running")
        });
    }

    /// The run directory of an ARMOR.
    pub fn directory(&self, armor: &str) -> PathBuf {
        self.path().join("run").join(armor)
    }

    /// Process of an ARMOR, or of its vault with `vault.pid`.
    pub fn process(&self, armor: &str, file: &str) -> i32 {
        let path = self.directory(armor).join(file);
        self.wait_for(&path.display().to_string(), || std::fs::read_to_string(&path).ok()?.trim().parse().ok())
    }

    /// SIGKILL to an ARMOR; comes back when its vault has started it again, with the new pid.
    pub fn kill_armor(&self, armor: &str) -> i32 {
        let killed = self.process(armor, "pid");
        kill(killed);
        self.wait_for("the ARMOR's next life", || {
            let ready = std::fs::read_to_string(self.directory(armor).join("ready")).ok()?.trim().parse().ok()?;
            (ready != killed && lives(ready)).then_some(ready)
        })
    }

    /// SIGKILL to an ARMOR and to its vault at once, so that nobody starts it again.
    pub fn kill_with_vault(&self, armor: &str) {
        let (armor, vault) = (self.process(armor, "pid"), self.process(armor, "vault.pid"));
        // Stopped it cannot start another vault.
        signal(armor, rustix::process::Signal::STOP);
        kill(vault);
        kill(armor);
        self.wait_for("the end of both", || (!lives(vault) && !lives(armor)).then_some(()));
    }

    pub fn wait_for<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition() {
                return found;
            }
            assert!(Instant::now() < give_up, "waited {PATIENCE:?} for {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the application has said.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(format!("run/node1/logs/{name}.log"))).unwrap_or_default()
    }

    /// The end of all logs, for a failing test.
    pub fn logs(&self) -> String {
        ["ftm", "node1"].iter().fold(String::new(), |all, node| {
            let log = std::fs::read_to_string(self.path().join(format!("run/{node}/armor.log"))).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            all + &format!("--- {node}\n") + &tail.into_iter().rev().collect::<Vec<_>>().join("\n") + "\n"
        })
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let _ = self.armor(&["down"]).output();
    }
}

pub fn kill(pid: i32) {
    signal(pid, rustix::process::Signal::KILL);
}

pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal);
}

/// Whether a process lives. A zombie waits for whoever adopts orphans here; it is dead, once its last thread is, which may still hold files.
pub fn lives(pid: i32) -> bool {
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ") || threads() > 1)
}

pub fn text(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A port that nobody listens on. It lies below those that the kernel gives away by itself, so that it stays free until it is bound.
/// Found by connecting: a probe that binds would be held for a moment by a program that another test is just starting.
pub fn free_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        let tried = std::process::id().wrapping_mul(97).wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (tried % 20_000) as u16;
        if TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
}

/// Compiles a C program from tests/programs into the environment's directory.
pub fn compile(environment: &Environment, name: &str) -> String {
    let program = environment.file(name);
    compile_to(&program, name);
    program.display().to_string()
}

pub fn compile_to(program: &Path, name: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(format!("{name}.c"));
    let output = Command::new("gcc").args(["-O1", "-Wall", "-pthread", "-o"]).arg(program).arg(source).output().unwrap();
    assert!(output.status.success(), "gcc {name}.c: {}", text(&output));
}

/// A client that runs beside the test, its output read line by line.
pub struct Beside {
    pub child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Beside {
    pub fn start(mut command: Command) -> Beside {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Beside { child, lines }
    }

    /// The next line; `None` at the end.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.lines.read_line(&mut line).unwrap() > 0).then(|| line.trim_end().to_owned())
    }

    /// SIGTERM.
    pub fn end(&self) {
        signal(self.child.id().cast_signed(), rustix::process::Signal::TERM);
    }

    pub fn finish(mut self) -> bool {
        while self.line().is_some() {}
        self.child.wait().unwrap().success()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
