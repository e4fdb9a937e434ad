//! The environment of a demo: FTM, two daemons and the audio server, in a run directory of its own.
//!
//! The `armor` program is started as a user would start it; only the status is asked for directly.
//!
//! Invariant: whatever was started ends when the stage is dropped, and its run directory goes, unless it is to be kept.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::client::Client;
use crate::ending::Ending;
use crate::environment::{Base, Place, fresh_directory};
use crate::recovery::Recovery;
use crate::survey::{element, entries};

/// The server's name as a service.
pub(crate) const SERVICE: &str = "audio";
/// Node of the server.
pub(crate) const SERVER_NODE: &str = "node1";
/// Node of the clients.
pub(crate) const CLIENT_NODE: &str = "node2";

/// What the server's daemon says.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Process of the server, while one runs.
    pub(crate) pid: Option<u32>,
    /// In the order of time.
    pub(crate) recoveries: Vec<Recovery>,
}

pub(crate) struct Stage {
    program: PathBuf,
    base: Base,
    keep: bool,
    /// Where logs are saved before the run directory goes.
    logs: PathBuf,
}

impl Stage {
    /// Makes the run directory; nothing runs yet.
    pub(crate) fn new(keep: bool, logs: PathBuf) -> anyhow::Result<Stage> {
        let program = std::env::current_exe().context("the path of the armor program is unknown")?;
        let path = fresh_directory("armor-demo")?;
        let base = Base::of(&Place { run_dir: Some(path) })?;
        Ok(Stage { program, base, keep, logs })
    }

    pub(crate) fn path(&self) -> &Path {
        self.base.path()
    }

    /// Starts the FTM and both daemons.
    pub(crate) fn up(&self) -> anyhow::Result<()> {
        self.call(self.armor("up").args(["--node", SERVER_NODE, "--node", CLIENT_NODE]), "armor up")
    }

    /// Launches the audio server under supervision.
    pub(crate) fn launch(&self, restart_limit: usize, command: &[&OsStr]) -> anyhow::Result<()> {
        let limit = restart_limit.to_string();
        let options = ["--name", SERVICE, "--node", SERVER_NODE, "--policy", "stream", "--restart-limit", &limit, "--deadline", "15"];
        self.call(self.armor("launch").args(options).arg("--").args(command), "armor launch")
    }

    /// A client with protected connections, ready to be started.
    pub(crate) fn client(&self, command: &[&OsStr]) -> Command {
        let mut run = self.armor("run");
        run.args(["--node", CLIENT_NODE]).arg("--").args(command);
        run
    }

    /// Asks the server's daemon.
    pub(crate) fn look(&self) -> anyhow::Result<Look> {
        let daemon = self.base.armor(SERVER_NODE);
        let status = Client::attach(&daemon)?.statuses(&[daemon.armor()], Duration::from_secs(1))?.remove(&daemon.armor());
        let Some(status) = status else { bail!("daemon {SERVER_NODE} does not answer; {}", daemon.log_tail()) };
        Ok(Look::of(&status))
    }

    /// SIGKILL to the server's process. Says when, in milliseconds since 1970: before the signal, so that nothing that follows
    /// from it is earlier.
    pub(crate) fn kill(&self, pid: u32) -> anyhow::Result<u64> {
        let process = Pid::from_raw(pid.cast_signed()).context("no process")?;
        let process = pidfd_open(process, PidfdFlags::empty()).with_context(|| format!("process {pid} of {SERVICE} is gone"))?;
        // The number may have become somebody else's between the status and the opening.
        if self.look()?.pid != Some(pid) {
            bail!("process {pid} of {SERVICE} is gone");
        }
        let at_ms = super::unix_ms();
        pidfd_send_signal(&process, Signal::KILL).with_context(|| format!("process {pid} of {SERVICE} cannot be killed"))?;
        Ok(at_ms)
    }

    fn armor(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        // A group of its own: Ctrl-C is for the demo, which ends the rest in order.
        command.arg(subcommand).arg("--run-dir").arg(self.base.path()).stdin(Stdio::null()).process_group(0);
        command
    }

    fn call(&self, command: &mut Command, name: &str) -> anyhow::Result<()> {
        let output = command.output().with_context(|| format!("{} cannot be executed", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().trim_start_matches("armor: ");
            bail!("`{name}` failed ({}): {said}", output.status);
        }
        Ok(())
    }

    fn save_logs(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.logs)?;
        for name in ["ftm", SERVER_NODE, CLIENT_NODE] {
            let log = self.base.armor(name).log();
            if log.exists() {
                std::fs::copy(log, self.logs.join(format!("{name}.log")))?;
            }
        }
        let log = self.base.path().join(SERVER_NODE).join("logs").join(format!("{SERVICE}.log"));
        if log.exists() {
            std::fs::copy(log, self.logs.join("audio-server.log"))?;
        }
        Ok(())
    }
}

impl Look {
    fn of(status: &Value) -> Look {
        let applications = entries(&element(status, "app_oversight")["applications"]);
        let running = applications.iter().find(|row| row["name"] == SERVICE && row["state"] == "running");
        let pid = running.and_then(|row| row["pid"].as_u64()).and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 1);
        let recoveries = entries(&element(status, "APP_COMM_SERVER")["recoveries"]).iter();
        let recoveries =
            recoveries.filter_map(|row| serde_json::from_value(row.clone()).ok()).filter(|row: &Recovery| row.service == SERVICE);
        Look { pid, recoveries: recoveries.collect() }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let ended = self.call(self.armor("down").args(["--patience", "5"]), "armor down");
        let saved = self.save_logs();
        // `armor down` has failed: there is no patience left.
        for armor in self.base.present() {
            if let Some(ending) = Ending::begin(&armor) {
                ending.finish(Instant::now());
            }
        }
        let removed = if self.keep { Ok(()) } else { std::fs::remove_dir_all(self.base.path()) };
        let saved = saved.with_context(|| format!("logs cannot be saved to {}", self.logs.display()));
        let removed = removed.with_context(|| format!("{} cannot be removed", self.base.path().display()));
        for error in [ended.err(), saved.err(), removed.err()].into_iter().flatten() {
            super::progress::say(&format!("armor: demo: {error:#}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn process_and_recoveries_are_those_of_the_audio_server() {
        let status = |state: &str| {
            json!({ "elements": {
                "app_oversight": { "state": { "applications": [
                    { "name": "other", "state": "running", "pid": 7 }, { "name": "audio", "state": state, "pid": 8 }] } },
                "APP_COMM_SERVER": { "state": { "recoveries": [
                    { "service": "other", "at_ms": 1 }, { "service": "audio", "incarnation": 2, "at_ms": 2, "flowing_ms": null }] } },
            } })
        };
        let look = Look::of(&status("running"));
        assert_eq!((look.pid, look.recoveries.len(), look.recoveries[0].at_ms), (Some(8), 1, 2));
        assert_eq!(Look::of(&status("restarting")).pid, None);
        assert_eq!(Look::of(&Value::Null).pid, None);
    }
}
