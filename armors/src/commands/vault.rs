//! `armor vault`: starts an ARMOR, keeps its descriptors and starts it again when it dies. `armor up` and `armor start` use it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use armor_vault::{Found, Settings};

use crate::ending::Process;
use crate::environment::ArmorDirectory;
use crate::log;

/// How long an ARMOR that has said Alive may be silent.
const HANG_MS: u64 = 1000;
/// The same, for vaults that `armor up` and `armor start` start.
const ENV_HANG_MS: &str = "ARMOR_HANG_MS";
/// From SIGTERM to SIGKILL. Longer than `armor down` waits, shorter than init systems do.
const GRACE: Duration = Duration::from_secs(30);

/// Start an ARMOR, keep its descriptors, and start it again when it dies (internal: `armor up` and `armor start` use it)
///
/// It ends with the ARMOR's status when that ends with status 0, is told to end, or dies before it was ready for the first time.
#[derive(clap::Args)]
pub(crate) struct Vault {
    /// Name of the ARMOR
    #[arg(long)]
    name: String,
    /// Directory of the ARMOR
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// Kill and restart the ARMOR when it has said that it is alive and then is silent for so long; 0: never [default: ARMOR_HANG_MS or 1000]
    #[arg(long, value_name = "MS")]
    hang_ms: Option<u64>,
    /// Take over this living ARMOR, whose vault has died
    #[arg(long, value_name = "PID")]
    adopt: Option<u32>,
    /// Leave the session of the terminal
    #[arg(long)]
    new_session: bool,
    /// The ARMOR's program and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Vault {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if self.new_session {
            // Fails only for a process that leads a session or group already, which is just as well.
            let _ = rustix::process::setsid();
        }
        let hang = self.hang()?;
        let run_dir = std::path::absolute(&self.run_dir).with_context(|| format!("run directory {}", self.run_dir.display()))?;
        let directory = ArmorDirectory::at(&self.name, run_dir);
        let (claim, found) = match self.adopt {
            None => (directory.claim_vault()?, Found::Nothing),
            Some(pid) => (directory.take_over_vault()?, found(&directory, pid)),
        };
        log::to_stderr();
        armor_core::host::abort_on_panic();
        let settings = Settings {
            name: self.name.clone(),
            socket: directory.vault_socket(),
            ready: directory.ready_file(),
            command: self.command,
            hang,
            grace: GRACE,
            found,
        };
        let status =
            armor_vault::run(settings).with_context(|| format!("the vault of ARMOR {} in {}", self.name, directory.path().display()))?;
        drop(claim);
        Ok(ExitCode::from(status))
    }

    fn hang(&self) -> anyhow::Result<Option<Duration>> {
        let ms = match (self.hang_ms, std::env::var(ENV_HANG_MS)) {
            (Some(ms), _) => ms,
            (None, Ok(text)) => text.parse().map_err(|_| anyhow!("{ENV_HANG_MS}={text}: expected milliseconds, or 0 for never"))?,
            (None, Err(_)) => HANG_MS,
        };
        Ok((ms > 0).then(|| Duration::from_millis(ms)))
    }
}

/// The ARMOR that is to be taken over: if it is not the one in its directory any more, it has died.
fn found(directory: &ArmorDirectory, pid: u32) -> Found {
    match Process::of(|| directory.pid().filter(|&present| present == pid)) {
        Some(process) => Found::Living { pid, process: process.into_descriptor() },
        None => Found::Dead,
    }
}
