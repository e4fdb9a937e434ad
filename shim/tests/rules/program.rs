//! Runs programs, ours in C and other people's, hooked up to a [`MockArmor`].

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use armor_proto::hookup::{ENV_RUN_DIR, ENV_SERVICE, ENV_SHIM, ENV_SHIM_PATH};

use crate::mock::MockArmor;

/// Read-locked while a program is being started: until it runs it has copies of all our descriptors.
pub(crate) static STARTING: RwLock<()> = RwLock::new(());

const LIMIT: Duration = Duration::from_secs(60);

/// The library under test. `cargo test` does not build a cdylib for its integration tests, so it is built here.
pub(crate) fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--offline", "--lib", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(spawn(&mut cargo).wait().unwrap().success(), "the shim does not build");
        profile.join("libarmor_shim.so")
    })
}

/// Starts a program; comes back when it runs.
fn spawn(command: &mut Command) -> Child {
    let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; `make test` (or `make setup`) installs what the tests run"))
}

/// Compiles `tests/programs/NAME.c` once.
pub(crate) fn compiled(name: &str) -> PathBuf {
    static DONE: Mutex<Option<HashMap<String, Arc<OnceLock<PathBuf>>>>> = Mutex::new(None);
    let cell = Arc::clone(DONE.lock().unwrap().get_or_insert_default().entry(name.to_owned()).or_default());
    cell.get_or_init(|| compile(name, &[])).clone()
}

pub(crate) fn compile(name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name).with_extension("c");
    let suffix: String = flags.concat().chars().filter(char::is_ascii_alphanumeric).collect();
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shim-{name}{suffix}"));
    let fresh = output.with_extension(std::process::id().to_string());
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-g", "-pthread", "-o"]);
    compiler.arg(&fresh).arg(&source).args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
    let result = spawn(&mut compiler).wait_with_output().unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    // Whole or not at all, for other test processes that run at the same time.
    std::fs::rename(fresh, &output).unwrap();
    output
}

/// A program that runs.
pub(crate) struct Running {
    what: String,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    errors: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

/// A command that is hooked up to `armor`.
pub(crate) fn hooked(armor: &MockArmor, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_remove(ENV_SHIM)
        .env_remove(ENV_SERVICE)
        .env("LD_PRELOAD", shim())
        .env(ENV_SHIM_PATH, shim())
        .env(ENV_RUN_DIR, armor.directory());
    command
}

/// Runs one of our C programs to its end, which must be a success.
pub(crate) fn run(armor: &MockArmor, name: &str, arguments: &[&str]) {
    start(armor, name, arguments).succeed();
}

/// Starts one of our C programs.
pub(crate) fn start(armor: &MockArmor, name: &str, arguments: &[&str]) -> Running {
    let mut command = hooked(armor, compiled(name));
    command.args(arguments);
    Running::start(command)
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let what = format!("{command:?}");
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut stderr = child.stderr.take().unwrap();
        let errors = Arc::<Mutex<Vec<u8>>>::default();
        let written = Arc::clone(&errors);
        let reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut piece) {
                written.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        });
        Self { what, child, lines, seen: Vec::new(), errors, reader: Some(reader) }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Waits for a line of output that begins with `prefix`, returns the rest of it.
    pub(crate) fn line(&mut self, prefix: &str) -> String {
        let until = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return rest.trim().to_owned();
                    }
                }
                Err(_) => self.give_up(&format!("never wrote {prefix:?}")),
            }
        }
    }

    pub(crate) fn kill(&mut self) {
        self.end();
    }

    /// With its children, which a server killed in the middle of a test would leave behind.
    fn end(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::KILL);
            let _ = self.child.wait();
        }
    }

    /// Ends a program that ends on SIGTERM.
    pub(crate) fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.status();
    }

    pub(crate) fn status(&mut self) -> ExitStatus {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > until {
                self.give_up("does not end");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end, which must be a success; returns what was written to standard output and not read yet.
    pub(crate) fn succeed(mut self) -> String {
        let status = self.status();
        if !status.success() {
            self.give_up(&format!("{status}"));
        }
        self.lines.iter().map(|line| line + "\n").collect()
    }

    /// Standard error of a program that has ended.
    pub(crate) fn errors(&mut self) -> String {
        self.reader.take().unwrap().join().unwrap();
        self.errors_so_far()
    }

    fn errors_so_far(&self) -> String {
        String::from_utf8_lossy(&self.errors.lock().unwrap()).into_owned()
    }

    fn give_up(&mut self, why: &str) -> ! {
        panic!("{}: {why}", self.what);
    }

    fn last_words(&mut self) -> String {
        self.seen.extend(self.lines.try_iter());
        let errors = self.errors_so_far();
        format!("{}\n--- stdout\n{}\n--- stderr\n{errors}", self.what, self.seen.join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let status = self.child.try_wait();
        self.end();
        if thread::panicking() {
            eprintln!("{status:?} {}", self.last_words());
        }
    }
}
