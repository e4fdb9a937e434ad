//! An installed ARMOR as a process: starting it, ending it, and what it said last.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::process::{Child, Command};

use crate::endpoints::descriptors;

/// Whether an ARMOR begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// Without captured state.
    Afresh,
    /// `--restore`.
    FromCapturedState,
}

/// How a process has ended.
#[derive(Debug)]
pub struct Ended {
    /// With status 0.
    pub orderly: bool,
    /// For people: "ended with status 1".
    pub how: String,
}

impl Ended {
    /// From what waiting for the process gave.
    #[must_use]
    pub fn of(status: io::Result<ExitStatus>) -> Ended {
        match status {
            Ok(status) => {
                let how = match (status.code(), status.signal()) {
                    (Some(code), _) => format!("ended with status {code}"),
                    (None, Some(signal)) => format!("was killed by signal {signal}"),
                    (None, None) => "ended".to_owned(),
                };
                Ended { orderly: status.success(), how }
            }
            Err(error) => Ended { orderly: false, how: format!("cannot be waited for: {error}") },
        }
    }
}

/// Starts `program start COMPOSITION --name … --run-dir … --daemon …`; its output goes to `armor.log` in its directory.
///
/// # Errors
/// The directory cannot be made, or the program cannot be started.
pub fn launch(program: &Path, composition: &str, name: &str, directory: &Path, daemon: &Path, how: Launch) -> io::Result<Child> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let log = OpenOptions::new().create(true).append(true).open(directory.join("armor.log"))?;
    let mut command = Command::new(program);
    command.arg("start").arg(composition).arg("--name").arg(name);
    command.arg("--run-dir").arg(directory).arg("--daemon").arg(daemon);
    if how == Launch::FromCapturedState {
        command.arg("--restore");
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    // Ctrl-C at the daemon's terminal is the daemon's to handle.
    command.process_group(0);
    // It takes more for itself, and has to know what is usual for its applications.
    descriptors::with_usual_limit(command.as_std_mut());
    command.spawn()
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = process(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Ends processes in an orderly way and waits for them; kills those that take longer than `within`.
pub fn end_all(pids: &[u32], within: Duration) {
    let pids: Vec<Pid> = pids.iter().filter_map(|pid| process(*pid)).collect();
    for pid in &pids {
        let _ = rustix::process::kill_process(*pid, Signal::TERM);
    }
    let begun = Instant::now();
    let mut left = pids;
    while begun.elapsed() < within {
        left.retain(|pid| is_running(*pid));
        if left.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for pid in left {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

fn is_running(pid: Pid) -> bool {
    // Looks without reaping, so that the process number stays taken.
    match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT) {
        Ok(Some(_)) => false,
        Ok(None) => true,
        // Not a child: an adopted one.
        Err(_) => rustix::process::test_kill_process(pid).is_ok(),
    }
}

/// Kills a process of an earlier life of the daemon, if `pid` still is the one that works in `directory`.
pub fn kill_leftover(pid: u32, directory: &Path) {
    if is_at_work(pid, directory) {
        signal(pid, Signal::KILL);
    }
}

/// The process that works in `directory`, whoever has started it: the captured number may be that of the one before.
#[must_use]
pub fn works_in(directory: &Path) -> Option<u32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid| is_at_work(*pid, directory))
}

/// Whether the directory is in its command line. A process that has ended has none.
fn is_at_work(pid: u32, directory: &Path) -> bool {
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let directory = directory.as_os_str().as_encoded_bytes();
    command_line.split(|byte| *byte == 0).any(|argument| argument == directory)
}

/// The last line that an ARMOR wrote.
#[must_use]
pub fn last_words(directory: &Path) -> String {
    let log = std::fs::read(directory.join("armor.log")).unwrap_or_default();
    let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned();
    tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

fn process(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}
