//! Ending an ARMOR, and the vault that would start it again.

use std::time::{Duration, Instant};

use armor_core::operations::Shutdown;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::client::Client;
use crate::environment::ArmorDirectory;

/// A process that was surely the one that was meant.
pub(crate) struct Process {
    pub(crate) pid: u32,
    descriptor: OwnedFd,
}

impl Process {
    /// The process that `find` names. The number may become somebody else's between the finding and the opening, so it is found twice.
    pub(crate) fn of(find: impl Fn() -> Option<u32>) -> Option<Process> {
        let pid = find()?;
        let descriptor = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
        (find() == Some(pid)).then_some(Process { pid, descriptor })
    }

    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }

    /// Signals it; that it has ended already is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.descriptor, signal);
    }

    /// Whether it has ended in time.
    fn ended(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

/// An ARMOR that was asked to end.
pub(crate) struct Ending<'a> {
    armor: &'a ArmorDirectory,
    process: Option<Process>,
    vault: Option<Process>,
    /// Stays attached until the end, so that the gateway reads what was sent.
    _client: Option<Client>,
}

impl<'a> Ending<'a> {
    /// Asks; nothing when neither the ARMOR nor its vault lives.
    pub(crate) fn begin(armor: &'a ArmorDirectory) -> Option<Ending<'a>> {
        let (vault, process) = (Process::of(|| armor.vault()), Process::of(|| armor.pid()));
        let client = match (&vault, &process) {
            // It passes the signal on, and starts nothing again; but one that is just being started ends of it.
            (Some(vault), process) => {
                vault.signal(Signal::TERM);
                process.iter().for_each(|process| process.signal(Signal::TERM));
                None
            }
            (None, Some(process)) => {
                let told = Client::attach(armor).and_then(|mut client| client.send(armor.armor(), Shutdown {}).map(|()| client));
                told.inspect_err(|_| process.signal(Signal::TERM)).ok()
            }
            (None, None) => return None,
        };
        Some(Ending { armor, process, vault, _client: client })
    }

    /// Waits until the deadline, then is less patient; what has happened.
    pub(crate) fn finish(self, deadline: Instant) -> String {
        let mut how = "stopped";
        let mut ended = self.ended(deadline);
        if let (false, None, Some(process)) = (ended, &self.vault, &self.process) {
            how = "stopped by SIGTERM";
            process.signal(Signal::TERM);
            ended = self.ended(Instant::now() + Duration::from_secs(3));
        }
        if !ended {
            how = "killed";
            // The ARMOR first: it would start another vault. It may be a later life than the one that was asked.
            let later = Process::of(|| self.armor.pid());
            for process in [&self.process, &later, &self.vault].into_iter().flatten() {
                process.signal(Signal::KILL);
            }
            ended = self.ended(Instant::now() + Duration::from_secs(5));
        }
        let how = if ended { how } else { "does not end" };
        match (&self.process, &self.vault) {
            (Some(process), _) => format!("{how}, pid {}", process.pid),
            (None, Some(vault)) => format!("{how} while it was being started, vault pid {}", vault.pid),
            (None, None) => how.to_owned(),
        }
    }

    fn ended(&self, deadline: Instant) -> bool {
        [&self.vault, &self.process].into_iter().flatten().all(|process| process.ended(deadline))
    }
}
