//! The vault's one loop.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, Signal, WaitOptions, getrlimit, setrlimit};

use crate::datagram::{self, Received};
use crate::exits::Exits;
use crate::kept::Kept;
use crate::life::{Life, Settings, Word};
use crate::line::{Line, Stuck};
use crate::message::{Exited, Request};

/// Most connections; one that has said no Hello makes room.
const MAX_LINES: usize = 512;
/// Descriptors for the vault's own use, beside connections and what is kept.
const OWN_DESCRIPTORS: usize = 128;
/// Most datagrams of one connection in a turn, and most new connections: so that the others have theirs.
const TURN: usize = 256;
/// Pause when the kernel is short of something.
const SHORT: Duration = Duration::from_millis(10);
/// Pause after connections could not be accepted.
const DEAF: Duration = Duration::from_secs(1);
/// Coming back so late from waiting, the vault itself was stopped.
const OVERSLEPT: Duration = Duration::from_millis(100);

/// Runs a vault until its ARMOR has ended for good; the status that the process shall end with.
///
/// It is this process's business alone: it waits for all children, and for SIGTERM and SIGINT.
///
/// # Errors
/// When the socket cannot be made, or the ARMOR's program cannot be started the first time.
pub fn run(settings: Settings) -> io::Result<u8> {
    let socket = settings.socket.clone();
    let mut vault = Vault::begin(settings)?;
    let status = loop {
        if let Some(status) = vault.turn()? {
            break status;
        }
    };
    // Nobody is to knock where nobody is.
    let _ = std::fs::remove_file(socket);
    Ok(status)
}

struct Vault {
    listener: OwnedFd,
    /// Readable after a signal.
    signals: UnixStream,
    told_to_end: Arc<AtomicBool>,
    lines: Vec<Line>,
    kept: Kept,
    exits: Exits,
    life: Life,
    /// No connection is accepted until then.
    deaf_until: Option<Instant>,
}

impl Vault {
    fn begin(settings: Settings) -> io::Result<Vault> {
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
        let most = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        // Handlers, not a blocked mask: what is started inherits a mask.
        let (signals, wake) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        let told_to_end = Arc::new(AtomicBool::new(false));
        for signal in [Signal::TERM, Signal::INT] {
            signal_hook::flag::register(signal.as_raw(), Arc::clone(&told_to_end))?;
        }
        for signal in [Signal::TERM, Signal::INT, Signal::CHILD] {
            signal_hook::low_level::pipe::register(signal.as_raw(), wake.try_clone()?)?;
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Vault {
            listener: listen(&settings.socket)?,
            signals,
            told_to_end,
            lines: Vec::new(),
            kept: Kept::new(most.saturating_sub(MAX_LINES + OWN_DESCRIPTORS)),
            exits: Exits::default(),
            life: Life::begin(settings, limit)?,
            deaf_until: None,
        })
    }

    fn turn(&mut self) -> io::Result<Option<u8>> {
        let due = self.due(Instant::now());
        let ready = self.wait(due)?;
        let now = Instant::now();
        if due.is_some_and(|due| now > due + OVERSLEPT) {
            self.life.forgive(now);
        }
        while self.signals.read(&mut [0; 64]).is_ok_and(|got| got > 0) {}
        if self.told_to_end.swap(false, Ordering::SeqCst)
            && let Some(status) = self.life.end(now)
        {
            return Ok(Some(status));
        }
        for at in ready {
            self.read(at, TURN, now);
        }
        self.lines.retain(|line| !line.over);
        self.accept(now);
        if let Some(status) = self.reap(now) {
            return Ok(Some(status));
        }
        self.life.on_time(now);
        for line in &mut self.lines {
            line.tell(&self.kept, &self.exits);
        }
        Ok(None)
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        let short = self.lines.iter().any(|line| line.stuck == Stuck::Short).then(|| now + SHORT);
        [self.life.due(now), self.deaf_until, short].into_iter().flatten().min()
    }

    /// Waits; which connections have something.
    fn wait(&self, due: Option<Instant>) -> io::Result<Vec<usize>> {
        let accepting = if self.deaf_until.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let mut polled: Vec<PollFd<'_>> = self.lines.iter().map(|line| PollFd::new(&line.socket, line.interest())).collect();
        polled.extend([PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener, accepting)]);
        polled.extend(self.life.watched().map(|process| PollFd::new(process, PollFlags::IN)));
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok((0..self.lines.len()).filter(|&at| !polled[at].revents().is_empty()).collect())
    }

    fn accept(&mut self, now: Instant) {
        self.deaf_until = self.deaf_until.filter(|until| *until > now);
        for _ in 0..TURN {
            match net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.accepted(socket),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::error!("connections cannot be accepted: {error}");
                    self.deaf_until = Some(now + DEAF);
                    return;
                }
            }
        }
    }

    fn accepted(&mut self, socket: OwnedFd) {
        let Ok(peer) = net::sockopt::socket_peercred(&socket) else { return };
        let (pid, uid) = (peer.pid.as_raw_nonzero().get().cast_unsigned(), peer.uid);
        if !uid.is_root() && uid != rustix::process::geteuid() {
            tracing::warn!("process {pid} of user {} is refused", uid.as_raw());
            return;
        }
        if self.lines.len() >= MAX_LINES {
            match self.lines.iter().position(|line| line.owner.is_none()) {
                Some(silent) => drop(self.lines.remove(silent)),
                None => return tracing::warn!("process {pid} is refused: there are {MAX_LINES} connections"),
            }
        }
        self.lines.push(Line::new(socket, pid));
    }

    /// Reads what a connection has said, at most so many datagrams.
    fn read(&mut self, at: usize, most: usize, now: Instant) {
        for _ in 0..most {
            let line = &self.lines[at];
            let pid = line.pid;
            match datagram::receive(line.socket.as_fd(), RecvFlags::DONTWAIT) {
                Received::Message(request, descriptors) => {
                    if let Err(reason) = self.obey(at, request, descriptors, now) {
                        tracing::warn!("the connection of process {pid} is closed: {reason}");
                        return self.lines[at].over = true;
                    }
                }
                Received::NoRoom => tracing::error!("a descriptor of process {pid} is not kept: this process may have no more"),
                Received::Nothing => return,
                Received::End => return self.lines[at].over = true,
                Received::Malformed(reason) => {
                    tracing::warn!("the connection of process {pid} is closed: what it said cannot be read: {reason}");
                    return self.lines[at].over = true;
                }
            }
        }
    }

    fn obey(&mut self, at: usize, request: Request, mut descriptors: Vec<OwnedFd>, now: Instant) -> Result<(), String> {
        let pid = self.lines[at].pid;
        let known = self.lines[at].owner.clone();
        if descriptors.len() != usize::from(matches!(request, Request::Keep { .. })) {
            return Err(format!("{} descriptors came with {request:?}", descriptors.len()));
        }
        self.life.spoke(pid, Word::Other, now);
        match (request, known) {
            (Request::Hello { owner }, None) => {
                self.take_over(&owner, now);
                let lines = &self.lines;
                self.kept.hello(&owner, |name| lines.iter().any(|line| line.owner.as_deref() == Some(name)))?;
                let heard = self.kept.heard(&owner);
                self.lines[at].hello(owner, heard);
            }
            (Request::Keep { key }, Some(owner)) => {
                let Some(descriptor) = descriptors.pop() else { return Err("no descriptor".to_owned()) };
                if let Err(reason) = self.kept.keep(&owner, key.clone(), descriptor) {
                    tracing::error!("{key:?} of {owner} is not kept: {reason}");
                    self.lines[at].refuse(key, reason);
                }
            }
            (Request::Forget { key }, Some(owner)) => self.kept.forget(&owner, &key),
            (Request::Heard { sequence }, Some(owner)) => self.kept.set_heard(&owner, sequence.min(self.exits.newest)),
            (Request::Alive, Some(_)) => self.life.spoke(pid, Word::Alive, now),
            (Request::Ended, Some(owner)) => {
                self.life.spoke(pid, Word::Ended, now);
                self.kept.forget_all(&owner);
            }
            (Request::Hello { .. }, Some(owner)) => return Err(format!("a second Hello, after that of {owner}")),
            (request, None) => return Err(format!("{request:?} before Hello")),
        }
        Ok(())
    }

    /// Ends an earlier connection of an owner. What it has said until now counts, later it can say nothing.
    fn take_over(&mut self, owner: &str, now: Instant) {
        while let Some(at) = self.lines.iter().position(|line| !line.over && line.owner.as_deref() == Some(owner)) {
            let _ = net::shutdown(&self.lines[at].socket, Shutdown::Read);
            self.read(at, usize::MAX, now);
            self.lines[at].over = true;
        }
    }

    /// Waits for the ARMOR and for what it has left behind; the vault's status when the ARMOR has ended for good.
    fn reap(&mut self, now: Instant) -> Option<u8> {
        let poll_now = |process: &OwnedFd| poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if self.life.watched().is_some_and(|process| poll_now(process) == Ok(1))
            && let Some(status) = self.died(None, now)
        {
            return Some(status);
        }
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let (pid, status) = (pid.as_raw_nonzero().get().cast_unsigned(), status.as_raw());
            if self.life.pid() != Some(pid) {
                self.exits.push(Exited { pid, status });
            } else if let Some(status) = self.died(Some(ExitStatus::from_raw(status)), now) {
                return Some(status);
            }
        }
        None
    }

    /// The ARMOR is dead. What it had said before comes first: it may have been Ended.
    fn died(&mut self, status: Option<ExitStatus>, now: Instant) -> Option<u8> {
        let pid = self.life.pid();
        for at in 0..self.lines.len() {
            if Some(self.lines[at].pid) == pid && !self.lines[at].over {
                self.read(at, usize::MAX, now);
            }
        }
        self.life.died(status, now)
    }
}

/// Listens at `path`, for the own user alone, in the place of whoever listened there.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    let fresh = path.with_file_name(format!(".vault.{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    net::bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    net::listen(&socket, MAX_LINES as i32)?;
    std::fs::rename(&fresh, path)?;
    Ok(socket)
}
