//! An ARMOR environment of the bench: an FTM, and a node each for server and client.
//!
//! Invariant: whatever was started ends when the shelter is dropped, and its run directory goes.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use rustix::process::Pid;

use crate::campaign::processes_below;
use crate::ending::Ending;
use crate::environment::{Base, Place, fresh_directory};

const SERVER_NODE: &str = "node1";
const CLIENT_NODE: &str = "node2";

pub(super) struct Shelter {
    program: PathBuf,
    base: Base,
    execution: bool,
}

impl Shelter {
    /// Starts the FTM and both daemons. With `execution` client and server are overseen by Execution ARMORs.
    ///
    /// # Errors
    /// When they do not come up.
    pub(super) fn up(execution: bool) -> anyhow::Result<Shelter> {
        let program = std::env::current_exe().context("the path of the armor program is unknown")?;
        let base = Base::of(&Place { run_dir: Some(fresh_directory("armor-bench")?) })?;
        let shelter = Shelter { program, base, execution };
        shelter.call("up", &["--node", SERVER_NODE, "--node", CLIENT_NODE], &[])?;
        Ok(shelter)
    }

    /// Launches a server and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn launch(&self, name: &str, policy: &str, server: &Path, listen: SocketAddr) -> anyhow::Result<()> {
        let own = if self.execution { vec!["--execution-armor"] } else { Vec::new() };
        let options = [vec!["--name", name, "--node", SERVER_NODE, "--policy", policy], own].concat();
        self.call("launch", &options, &[&server.to_string_lossy(), "--listen", &listen.to_string()])
    }

    /// A client with protected connections, ready to be started.
    pub(super) fn client(&self, client: &Path, server: SocketAddr) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["run", "--run-dir"]).arg(self.base.path()).args(["--node", CLIENT_NODE]);
        if self.execution {
            command.arg("--execution-armor");
        }
        command.arg("--").arg(client).arg(server.to_string()).current_dir("/");
        command
    }

    pub(super) fn processes(&self) -> Vec<Pid> {
        processes_below(self.base.path())
    }

    fn call(&self, subcommand: &str, options: &[&str], command: &[&str]) -> anyhow::Result<()> {
        let mut armor = Command::new(&self.program);
        // A group of its own: Ctrl-C is for the bench, which ends the rest in order.
        armor.arg(subcommand).arg("--run-dir").arg(self.base.path()).args(options).stdin(Stdio::null()).process_group(0);
        if !command.is_empty() {
            armor.arg("--").args(command);
        }
        let output = armor.output().with_context(|| format!("{} cannot be executed", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`armor {subcommand}` failed ({}): {}", output.status, said.trim().trim_start_matches("armor: "));
        }
        Ok(())
    }
}

impl Drop for Shelter {
    fn drop(&mut self) {
        let ended = self.call("down", &["--patience", "10"], &[]);
        // `armor down` has failed: there is no patience left.
        for armor in self.base.present() {
            if let Some(ending) = Ending::begin(&armor) {
                ending.finish(Instant::now());
            }
        }
        let removed = std::fs::remove_dir_all(self.base.path());
        let removed = removed.with_context(|| format!("{} cannot be removed", self.base.path().display()));
        for error in [ended.err(), removed.err()].into_iter().flatten() {
            crate::campaign::progress::say(&format!("armor: bench: {error:#}"));
        }
    }
}
