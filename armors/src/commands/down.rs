//! `armor down`: ends the environment of this machine.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use armor_core::operations::Shutdown;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::client::Client;
use crate::environment::{ArmorDirectory, Base, Place};
use crate::output;

/// Stop the environment: applications, daemons, then the FTM
///
/// Only what runs on this machine is stopped. Logs and captured state stay in the run directory.
#[derive(clap::Args)]
pub(crate) struct Down {
    /// How long an ARMOR may take before it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    patience: u64,
    #[command(flatten)]
    place: Place,
}

impl Down {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let base = Base::of(&self.place)?;
        let patience = Duration::from_secs(self.patience);
        let living = base.living();
        if living.is_empty() {
            output::print(&format!("Nothing runs in {}.\n", base.path().display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = String::new();
        // Daemons stop the ARMORs that they installed; what is left of those (their daemon was dead) comes next.
        end(living.iter().filter(|(armor, _)| armor.name != "ftm" && !armor.name.contains('/')), patience, &mut text)?;
        end(base.living().iter().filter(|(armor, _)| armor.name != "ftm"), patience, &mut text)?;
        end(base.living().iter(), patience, &mut text)?;
        for (armor, _) in &living {
            armor.remove_sockets();
        }
        output::print(&text)?;
        if let Some((armor, pid)) = base.living().first() {
            bail!("ARMOR {} (pid {pid}) could not be ended", armor.name);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn end<'a>(armors: impl Iterator<Item = &'a (ArmorDirectory, u32)>, patience: Duration, text: &mut String) -> anyhow::Result<()> {
    let mut asked = Vec::new();
    for (armor, pid) in armors {
        let Some(process) = Pid::from_raw(pid.cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { continue };
        // The number may have become somebody else's between the reading and the opening.
        if armor.pid() != Some(*pid) {
            continue;
        }
        let told = Client::attach(armor).and_then(|mut client| client.send(armor.armor(), Shutdown {}).map(|()| client));
        if told.is_err() {
            let _ = pidfd_send_signal(&process, Signal::TERM);
        }
        // The client stays attached until the end, so that the gateway reads what was sent.
        asked.push((armor, pid, process, told));
    }
    let deadline = Instant::now() + patience;
    for (armor, pid, process, _client) in asked {
        let mut how = "stopped";
        let mut ended = wait(&process, deadline.saturating_duration_since(Instant::now()));
        for (signal, name, pause) in [(Signal::TERM, "stopped by SIGTERM", 3), (Signal::KILL, "killed", 5)] {
            if !ended {
                let _ = pidfd_send_signal(&process, signal);
                how = name;
                ended = wait(&process, Duration::from_secs(pause));
            }
        }
        writeln!(text, "{}: {}, pid {pid}", armor.name, if ended { how } else { "does not end" })?;
    }
    Ok(())
}

/// Whether the process has ended in time.
fn wait(process: &OwnedFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}
