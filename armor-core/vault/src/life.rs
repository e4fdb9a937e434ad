//! The ARMOR's process: starting it, judging its end, killing it when it is silent.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, pidfd_send_signal, setrlimit};

use crate::ENV_VAULT;

/// A life shorter than this makes the next pause longer.
const YOUNG: Duration = Duration::from_millis(250);
/// The first pause, doubled each time, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often is looked whether an ARMOR is ready for the first time.
const LOOK: Duration = Duration::from_millis(50);
/// How many times longer than between two words an ARMOR that is started again may take until its first one.
const FIRST_WORD: u32 = 10;
/// Makes an ARMOR take up its captured state.
const RESTORE: &str = "--restore";

/// What a vault is started with.
#[derive(Debug)]
pub struct Settings {
    /// Name of the ARMOR, for the log.
    pub name: String,
    /// Where ARMORs connect: [`ENV_VAULT`] for what is started.
    pub socket: PathBuf,
    /// File that the ARMOR makes when it is ready. One that ends before it was ready for the first time is not started again.
    pub ready: PathBuf,
    /// The ARMOR's program and its arguments; restarts add `--restore`.
    pub command: Vec<OsString>,
    /// An ARMOR that has said Alive and then says nothing for so long is killed; so is one that is started again after such a one and has not
    /// said it after ten times as long.
    pub hang: Option<Duration>,
    /// From SIGTERM to SIGKILL when the vault is told to end.
    pub grace: Duration,
    /// What of the ARMOR is there already.
    pub found: Found,
}

/// What a vault finds when it begins.
#[derive(Debug)]
pub enum Found {
    /// Nothing: the ARMOR is started for the first time.
    Nothing,
    /// An ARMOR whose vault has died. It has to say Ended when it ends by its own will: its status is not told to who is not its parent.
    Living {
        /// Its number.
        pid: u32,
        /// Its pidfd.
        process: OwnedFd,
    },
    /// An ARMOR that has died after its vault: it is started again.
    Dead,
}

pub(crate) struct Life {
    settings: Settings,
    /// Limit of open files as it was given to the vault.
    limit: Rlimit,
    process: Option<Process>,
    /// When the next process is started.
    start_at: Option<Instant>,
    /// The vault was told to end; the process is killed then.
    kill_at: Option<Instant>,
    /// It has been ready once.
    proven: bool,
    /// Deaths in a row soon after the start.
    young_deaths: u32,
    /// One of its lives has said Alive, so the next ones will.
    talks: bool,
}

struct Process {
    pid: u32,
    /// Its pidfd, when it is no child.
    adopted: Option<OwnedFd>,
    since: Instant,
    /// From when its first word is awaited.
    awaited: Instant,
    /// Its last sign of life, once it has said Alive.
    spoke: Option<Instant>,
    /// It has said Ended.
    ended: bool,
    /// It was killed because it said nothing.
    hung: bool,
}

impl Process {
    fn new(pid: u32, adopted: Option<OwnedFd>) -> Process {
        let now = Instant::now();
        Process { pid, adopted, since: now, awaited: now, spoke: None, ended: false, hung: false }
    }

    fn signal(&self, signal: Signal) {
        // One that has ended already is no error. A child's number is its own until it was waited for.
        let _ = match (&self.adopted, Pid::from_raw(self.pid.cast_signed())) {
            (Some(process), _) => pidfd_send_signal(process, signal),
            (None, Some(pid)) => kill_process(pid, signal),
            (None, None) => Ok(()),
        };
    }
}

impl Life {
    /// Starts the ARMOR, or takes over the one that runs.
    pub(crate) fn begin(mut settings: Settings, limit: Rlimit) -> io::Result<Life> {
        let (proven, process) = match std::mem::replace(&mut settings.found, Found::Nothing) {
            Found::Nothing => (false, None),
            Found::Living { pid, process } => (true, Some(Process::new(pid, Some(process)))),
            Found::Dead => (true, None),
        };
        let mut life = Life { settings, limit, process, start_at: None, kill_at: None, proven, young_deaths: 0, talks: false };
        if life.process.is_none() {
            life.process = Some(life.start()?);
        }
        Ok(life)
    }

    fn start(&self) -> io::Result<Process> {
        let Some((program, arguments)) = self.settings.command.split_first() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut command = Command::new(program);
        command.args(arguments).env(ENV_VAULT, &self.settings.socket);
        if self.proven && arguments.iter().all(|argument| argument != RESTORE) {
            command.arg(RESTORE);
        }
        // The ARMOR gets the limit that the vault was given. No closure before exec: so this is a vfork, which a large vault does not slow down.
        let own = rustix::process::getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, self.limit);
        let child = command.spawn();
        let _ = setrlimit(Resource::Nofile, own);
        Ok(Process::new(child?.id(), None))
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Readable when the process has ended, for one that is no child.
    pub(crate) fn watched(&self) -> Option<&OwnedFd> {
        self.process.as_ref()?.adopted.as_ref()
    }

    /// A process has said something; what counts is the ARMOR's own word.
    pub(crate) fn spoke(&mut self, pid: u32, word: Word, now: Instant) {
        let Some(process) = self.process.as_mut().filter(|process| process.pid == pid) else { return };
        if word == Word::Alive || process.spoke.is_some() {
            process.spoke = Some(now);
        }
        process.ended |= word == Word::Ended;
        self.talks |= word == Word::Alive;
    }

    /// The vault itself did not run: that is no silence of the ARMOR's.
    pub(crate) fn forgive(&mut self, now: Instant) {
        if let Some(process) = &mut self.process {
            (process.awaited, process.spoke) = (now, process.spoke.map(|_| now));
        }
    }

    /// The vault is told to end; its status when there is nothing to wait for.
    pub(crate) fn end(&mut self, now: Instant) -> Option<u8> {
        let Some(process) = &self.process else { return Some(0) };
        process.signal(Signal::TERM);
        self.kill_at.get_or_insert(now + self.settings.grace);
        None
    }

    /// When [`Life::on_time`] has something to do.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let look = (!self.proven).then(|| now + LOOK);
        [self.start_at, self.kill_at, self.silent_at(), look].into_iter().flatten().min()
    }

    fn silent_at(&self) -> Option<Instant> {
        let process = self.process.as_ref().filter(|process| !process.ended && self.kill_at.is_none())?;
        let hang = self.settings.hang?;
        match process.spoke {
            Some(spoke) => Some(spoke + hang),
            None => (self.talks && !process.hung).then_some(process.awaited + hang.saturating_mul(FIRST_WORD)),
        }
    }

    pub(crate) fn on_time(&mut self, now: Instant) {
        self.proven = self.proven || self.settings.ready.exists();
        if self.silent_at().is_some_and(|silent_at| silent_at <= now)
            && let Some(process) = &mut self.process
        {
            (process.spoke, process.hung) = (None, true);
            process.signal(Signal::KILL);
        }
        if self.kill_at.is_some_and(|kill_at| kill_at <= now)
            && let Some(process) = &self.process
        {
            tracing::warn!("ARMOR {} (pid {}) does not end and is killed", self.settings.name, process.pid);
            process.signal(Signal::KILL);
            self.kill_at = Some(now + self.settings.grace);
        }
        if self.start_at.is_some_and(|start_at| start_at <= now) {
            self.start_again(now);
        }
    }

    fn start_again(&mut self, now: Instant) {
        self.start_at = None;
        match self.start() {
            Ok(process) => self.process = Some(process),
            Err(error) => {
                let pause = self.pause(Duration::ZERO);
                tracing::error!("ARMOR {} cannot be started: {error}; trying again in {pause:?}", self.settings.name);
                self.start_at = Some(now + pause.max(PAUSES.0));
            }
        }
    }

    /// How long to wait before the next start.
    fn pause(&mut self, lived: Duration) -> Duration {
        self.young_deaths = if lived < YOUNG { self.young_deaths.saturating_add(1) } else { 0 };
        match self.young_deaths {
            0 | 1 => Duration::ZERO,
            deaths => PAUSES.0.saturating_mul(1 << (deaths - 2).min(16)).min(PAUSES.1),
        }
    }

    /// The process has ended, a child with a status. The vault's own status when that is the end.
    pub(crate) fn died(&mut self, status: Option<ExitStatus>, now: Instant) -> Option<u8> {
        let process = self.process.take()?;
        let (name, pid, lived) = (&self.settings.name, process.pid, now.saturating_duration_since(process.since));
        let told_to_end = self.kill_at.is_some();
        let own = status.map_or(0, |status| status.code().unwrap_or(128 + status.signal().unwrap_or(0))).try_into().unwrap_or(1);
        let how = match (status, self.settings.hang) {
            (_, Some(hang)) if process.hung => format!("was silent for {hang:?} and killed"),
            (Some(status), _) => format!("ended, {status},"),
            (None, _) => "ended".to_owned(),
        };
        if process.ended || status.is_some_and(|status| status.success()) {
            return Some(0);
        }
        if told_to_end {
            return Some(own);
        }
        if !self.proven && !self.settings.ready.exists() {
            tracing::error!("ARMOR {name} (pid {pid}) {how} before it was ready");
            return Some(own);
        }
        self.proven = true;
        let pause = self.pause(lived);
        let (name, often) = (&self.settings.name, self.young_deaths);
        let next = if pause.is_zero() { "at once".to_owned() } else { format!("in {pause:?}: it has died young {often} times in a row") };
        tracing::warn!("ARMOR {name} (pid {pid}) {how} after {lived:.3?}; starting it again {next}");
        if pause.is_zero() {
            self.start_again(now);
        } else {
            self.start_at = Some(now + pause);
        }
        None
    }
}

/// What an ARMOR has said, as far as its life is concerned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Alive,
    Ended,
    Other,
}
