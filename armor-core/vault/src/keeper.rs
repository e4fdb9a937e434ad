//! The side of the ARMOR.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::datagram::{self, Received};
use crate::message::{self, Answer, Exited, KEY_LIMIT, OWNER_LIMIT, Request};

/// A vault that is stopped, and does not take a message or say what is due for so long, counts as lost.
const PATIENCE: Duration = Duration::from_millis(200);
/// The same for one that is not stopped: the machine may have too much to do.
const LONGEST_PATIENCE: Duration = Duration::from_secs(2);

/// Why the vault cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Nobody is at its socket.
    #[error("the vault at {} cannot be reached: {source}; it is started by `armor up` and `armor start`", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// It has ended, takes no messages, or another process has said Hello for the same owner.
    #[error("the vault is lost: start another one, reconnect, and keep everything again")]
    Lost,
    /// A key or an owner.
    #[error("{name:?} cannot name what is kept: {reason}")]
    Name {
        /// Which.
        name: String,
        /// Why not.
        reason: String,
    },
    /// More is kept than this process may have open. The vault still has it.
    #[error("what the vault keeps is more than this process may have open; raise the limit of open files (ulimit -n)")]
    NoRoom,
    /// Another version's, for example.
    #[error("what the vault said cannot be understood: {0}; use the same release for the vault and its ARMORs")]
    Protocol(String),
    /// The kernel does not pass this descriptor on.
    #[error("the descriptor cannot be passed to the vault: {0}")]
    Descriptor(#[source] io::Error),
}

/// What a vault had for an ARMOR.
#[derive(Debug, Default)]
pub struct Handed {
    /// Keys and descriptors.
    pub kept: Vec<(String, OwnedFd)>,
    /// Processes that have ended after their parent, an earlier life of this ARMOR for example. The kernel gives numbers again: what is known by a
    /// pidfd is to be looked at first.
    pub exited: Vec<Exited>,
}

/// What a vault tells.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// A process whose parent had died has ended. Told again to the next life, until [`Keeper::receive`] is called again.
    Exited(Exited),
    /// A bound is reached: this is not kept.
    Refused {
        /// Its key.
        key: String,
        /// For a human.
        reason: String,
    },
}

/// A connection to the vault. It may be used from several threads.
///
/// Once [`VaultError::Lost`] was returned, everything but [`Keeper::reconnect`] does nothing; [`Keeper::receive`] returns it again.
#[derive(Debug)]
pub struct Keeper {
    /// Socket and owner; none without a vault.
    vault: Option<(PathBuf, String)>,
    line: Mutex<Option<Arc<OwnedFd>>>,
    /// Sequence of the last exit that was given to the caller; 0 when the vault knows that it was dealt with.
    given: AtomicU64,
    /// Since when a heartbeat has found the vault stopped.
    stopped: Mutex<Option<Instant>>,
}

impl Keeper {
    /// Connects, and takes what an earlier life of this owner has kept. It stays kept, under the same keys.
    ///
    /// # Errors
    /// [`VaultError::Unreachable`], [`VaultError::Lost`] while it hands over, [`VaultError::NoRoom`], [`VaultError::Protocol`].
    pub fn connect(path: &Path, owner: &str) -> Result<(Keeper, Handed), VaultError> {
        let keeper = Keeper::unconnected(path, owner)?;
        let handed = keeper.reconnect()?;
        Ok((keeper, handed))
    }

    /// As one whose vault is lost: to be connected by [`Keeper::reconnect`].
    ///
    /// # Errors
    /// [`VaultError::Name`].
    pub fn unconnected(path: &Path, owner: &str) -> Result<Keeper, VaultError> {
        check(owner, OWNER_LIMIT)?;
        Ok(Keeper { vault: Some((path.to_owned(), owner.to_owned())), ..Keeper::none() })
    }

    /// For an ARMOR without a vault: every call does nothing.
    #[must_use]
    pub fn none() -> Keeper {
        Keeper { vault: None, line: Mutex::new(None), given: AtomicU64::new(0), stopped: Mutex::new(None) }
    }

    /// Whether there is a vault, reached at the moment or not.
    #[must_use]
    pub fn has_vault(&self) -> bool {
        self.vault.is_some()
    }

    /// Connects again, to a vault that may be another one: everything is to be kept again.
    ///
    /// # Errors
    /// As [`Keeper::connect`].
    pub fn reconnect(&self) -> Result<Handed, VaultError> {
        let Some((path, owner)) = &self.vault else { return Ok(Handed::default()) };
        *lock(&self.line) = None;
        *lock(&self.stopped) = None;
        let unreachable = |error: Errno| VaultError::Unreachable { path: path.clone(), source: error.into() };
        let address = SocketAddrUnix::new(path).map_err(unreachable)?;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(unreachable)?;
        for direction in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&socket, direction, Some(PATIENCE)).map_err(unreachable)?;
        }
        net::connect(&socket, &address).map_err(unreachable)?;
        let hello = Request::Hello { owner: owner.clone() };
        datagram::send(socket.as_fd(), &hello, &[], SendFlags::empty()).map_err(|_| VaultError::Lost)?;
        let (handed, last) = take_handed(&socket)?;
        self.given.store(last, Ordering::SeqCst);
        *lock(&self.line) = Some(Arc::new(socket));
        Ok(handed)
    }

    /// Keeps the descriptor under this key, instead of one that was there. Once this has returned it outlives this process.
    ///
    /// # Errors
    /// [`VaultError::Name`], [`VaultError::Descriptor`], [`VaultError::Lost`].
    pub fn keep(&self, key: &str, descriptor: BorrowedFd<'_>) -> Result<(), VaultError> {
        check(key, KEY_LIMIT)?;
        self.say(&Request::Keep { key: key.to_owned() }, &[descriptor])
    }

    /// Lets the vault close what is kept under this key.
    ///
    /// # Errors
    /// [`VaultError::Name`], [`VaultError::Lost`].
    pub fn forget(&self, key: &str) -> Result<(), VaultError> {
        check(key, KEY_LIMIT)?;
        self.say(&Request::Forget { key: key.to_owned() }, &[])
    }

    /// A heartbeat. After the first one an ARMOR that says nothing for too long is killed and started again.
    ///
    /// # Errors
    /// [`VaultError::Lost`].
    pub fn alive(&self) -> Result<(), VaultError> {
        self.say(&Request::Alive, &[])?;
        // The socket takes some hundred heartbeats before it says that nobody reads them.
        let Some(line) = self.socket() else { return Ok(()) };
        let mut stopped = lock(&self.stopped);
        match *stopped {
            _ if runs(&line) => *stopped = None,
            Some(since) if since.elapsed() >= PATIENCE => return Err(self.lost(&line)),
            since => *stopped = since.or_else(|| Some(Instant::now())),
        }
        Ok(())
    }

    /// This ARMOR ends by its own will: it is not started again, and nothing is kept for it any more.
    ///
    /// # Errors
    /// [`VaultError::Lost`].
    pub fn ended(&self) -> Result<(), VaultError> {
        self.say(&Request::Ended, &[])
    }

    /// Readable when [`Keeper::receive`] has something; none without a vault, or when it is lost.
    #[must_use]
    pub fn socket(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.line).clone()
    }

    /// What the vault has told; does not wait. The exit that the call before gave is taken as dealt with.
    ///
    /// # Errors
    /// [`VaultError::Lost`], [`VaultError::Protocol`].
    pub fn receive(&self) -> Result<Option<Notice>, VaultError> {
        let sequence = self.given.swap(0, Ordering::SeqCst);
        if sequence > 0 {
            self.say(&Request::Heard { sequence }, &[])?;
        }
        let Some(line) = self.socket() else {
            // Who waits for notices has to hear that another caller has found the line lost: it stays readable for ever.
            return if self.vault.is_some() { Err(VaultError::Lost) } else { Ok(None) };
        };
        match datagram::receive(line.as_fd(), RecvFlags::DONTWAIT) {
            Received::Message(Answer::Exited { sequence, process }, _) => {
                self.given.store(sequence, Ordering::SeqCst);
                Ok(Some(Notice::Exited(process)))
            }
            Received::Message(Answer::Refused { key, reason }, _) => Ok(Some(Notice::Refused { key, reason })),
            Received::Nothing => Ok(None),
            Received::End => Err(self.lost(&line)),
            other => {
                self.lost(&line);
                Err(unexpected(other))
            }
        }
    }

    fn say(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), VaultError> {
        let Some(line) = self.socket() else { return Ok(()) };
        let since = Instant::now();
        loop {
            // The socket blocks, with a timeout: EAGAIN means that it has passed and no message was taken.
            match datagram::send(line.as_fd(), request, descriptors, SendFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN) if is_slow(&line, since) => {}
                // Too many are on their way: the vault is about to take them.
                Err(Errno::TOOMANYREFS) if since.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
                Err(Errno::AGAIN | Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(self.lost(&line)),
                Err(error) => return Err(VaultError::Descriptor(error.into())),
            }
        }
    }

    /// Nothing more is said on this line. Another thread may have a new one by now.
    fn lost(&self, line: &Arc<OwnedFd>) -> VaultError {
        let _ = net::shutdown(line, net::Shutdown::Both);
        lock(&self.line).take_if(|current| Arc::ptr_eq(current, line));
        VaultError::Lost
    }
}

fn check(name: &str, limit: usize) -> Result<(), VaultError> {
    message::check_name(name, limit).map_err(|reason| VaultError::Name { name: name.to_owned(), reason })
}

/// All that is handed over after Hello, and the sequence of the last exit.
fn take_handed(socket: &OwnedFd) -> Result<(Handed, u64), VaultError> {
    let (mut handed, mut last) = (Handed::default(), 0);
    let mut since = Instant::now();
    loop {
        let received = datagram::receive(socket.as_fd(), RecvFlags::empty());
        if matches!(received, Received::Nothing) && is_slow(socket, since) {
            continue;
        }
        since = Instant::now();
        match received {
            Received::Message(Answer::Kept { keys }, descriptors) if keys.len() == descriptors.len() => {
                handed.kept.extend(keys.into_iter().zip(descriptors));
            }
            Received::Message(Answer::Exited { sequence, process }, _) => {
                handed.exited.push(process);
                last = sequence;
            }
            Received::Message(Answer::Handed { count }, _) if count == handed.kept.len() as u64 => return Ok((handed, last)),
            Received::Nothing | Received::End => return Err(VaultError::Lost),
            other => return Err(unexpected(other)),
        }
    }
}

/// Whether a vault that has let a timeout pass is to be waited for.
fn is_slow(socket: &OwnedFd, since: Instant) -> bool {
    since.elapsed() < LONGEST_PATIENCE && runs(socket)
}

/// Whether the vault is neither stopped nor dead.
fn runs(socket: &OwnedFd) -> bool {
    let Ok(vault) = net::sockopt::socket_peercred(socket) else { return false };
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", vault.pid)).unwrap_or_default();
    // The state comes after the name, which is in parentheses.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, Some('R' | 'S' | 'D'))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unexpected(received: Received<Answer>) -> VaultError {
    match received {
        Received::NoRoom => VaultError::NoRoom,
        Received::Malformed(reason) => VaultError::Protocol(reason),
        Received::Message(answer, descriptors) => VaultError::Protocol(format!("{answer:?} with {} descriptors", descriptors.len())),
        Received::Nothing | Received::End => VaultError::Lost,
    }
}
