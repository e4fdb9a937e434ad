//! The ARMOR's end of a protected connection: the other end is the application's file descriptor itself. Bytes move through the
//! connection's record in the journal, so that what has moved is known even if this process dies in the middle.
//!
//! Invariant: end of file alone is never taken for an orderly close; [`Ending`] says what the kernel knows.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use armor_journal::{Keep, Received, Record};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::unread_byte::{self, Whereabouts};
use super::{READ_SIZE, tcp};

/// What a read gave.
#[derive(Debug)]
pub enum Reading {
    /// Bytes.
    Bytes(Received),
    /// Nothing now.
    Empty,
    /// The journal has no room for bytes: they stay in the socket.
    NoRoom,
    /// No byte will come any more.
    Ended(Ending),
}

/// How the stream from the application ended, as far as the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `shutdown(SHUT_WR)`: the application still reads.
    Half,
    /// Every copy of the application's descriptor is closed: by close(2), or because the process died.
    Gone,
    /// Gone, with bytes unread.
    Reset,
}

/// The socket.
#[derive(Debug, Clone)]
pub struct ApplicationSocket {
    socket: Rc<AsyncFd<OwnedFd>>,
    resume: Rc<Notify>,
    over: Rc<Over>,
    /// Not the descriptor of an application that has a shim, but the TCP socket to one that has none.
    is_tcp: bool,
    /// A write has found the TCP connection reset, which the kernel tells once: what the next read finds is not the end that it looks like.
    was_reset: Rc<Cell<bool>>,
}

/// What the watching tasks wait on.
#[derive(Debug, Clone)]
pub struct Watch {
    socket: Rc<AsyncFd<OwnedFd>>,
    resume: Rc<Notify>,
    over: Rc<Over>,
}

/// The end of the tasks that wait on a socket.
#[derive(Debug, Default)]
struct Over {
    is_over: Cell<bool>,
    told: Notify,
}

/// What the reader found, for [`Watch::readable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Read until there was nothing: wait for the kernel.
    Drained,
    /// There is more; let others have a turn.
    More,
    /// Back-pressure: wait for [`ApplicationSocket::resume`].
    Paused,
    /// The socket is done.
    Finished,
}

impl ApplicationSocket {
    /// Takes over a non-blocking socket.
    ///
    /// # Errors
    /// When the event loop cannot watch it.
    pub fn new(socket: OwnedFd) -> io::Result<ApplicationSocket> {
        let is_tcp = tcp::is_tcp(&socket);
        Ok(ApplicationSocket {
            socket: Rc::new(super::watched::watched(socket)?),
            resume: Rc::default(),
            over: Rc::default(),
            is_tcp,
            was_reset: Rc::default(),
        })
    }

    /// Whether it is the TCP socket to an application without a shim.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    /// For the tasks that wait.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { socket: Rc::clone(&self.socket), resume: Rc::clone(&self.resume), over: Rc::clone(&self.over) }
    }

    /// The descriptor.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        self.socket.get_ref()
    }

    /// Reads up to `most` bytes. A state was saved in `record` before.
    #[must_use]
    pub fn read(&self, record: &mut Record, most: usize) -> Reading {
        match record.receive(self.socket.get_ref().as_fd(), most.min(READ_SIZE)) {
            Ok(received) if received.first.is_empty() && self.was_reset.get() => Reading::Ended(Ending::Reset),
            Ok(received) if received.first.is_empty() => Reading::Ended(if self.hung_up() { Ending::Gone } else { Ending::Half }),
            Ok(received) => Reading::Bytes(received),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Reading::Empty,
                io::ErrorKind::StorageFull => Reading::NoRoom,
                io::ErrorKind::ConnectionReset => Reading::Ended(Ending::Reset),
                // It does not answer any more, or the network says that it cannot be reached: no close.
                _ if self.is_tcp => Reading::Ended(Ending::Reset),
                _ => Reading::Ended(Ending::Gone),
            },
        }
    }

    /// Writes; the number of bytes taken, 0 when the application's buffer is full. A state was saved in `record` before.
    ///
    /// # Errors
    /// `EPIPE`, `ECONNRESET`: the application is gone.
    pub fn write(&self, record: &mut Record, slices: &[IoSlice<'_>], keep: Keep) -> io::Result<usize> {
        match record.send(self.socket.get_ref().as_fd(), slices, keep) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            Err(error) => {
                self.was_reset.set(self.is_tcp);
                Err(error)
            }
            sent => sent,
        }
    }

    /// Tells the application that no more bytes come: it reads end of file.
    pub fn finish(&self) {
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Write);
    }

    /// Ends the connection to the application in both directions, and with it the tasks that wait on the socket. Closing alone
    /// would not: they hold the descriptor too.
    pub fn hang_up(&self) {
        if self.is_tcp {
            tcp::close(self.socket.get_ref());
        } else {
            let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
        }
        self.resume.notify_one();
    }

    /// Closes the socket so that the application sees a reset. The kernel shows it when the last copy of the socket is closed, and as
    /// one only if it is not shut down before: so the tasks that wait on it, which have copies, are ended otherwise.
    pub fn reset(self, application: Option<Whereabouts>) {
        if self.is_tcp {
            tcp::abort(self.socket.get_ref());
        } else if let Err(error) = unread_byte::leave_one(self.socket.get_ref(), application) {
            tracing::debug!(%error, "the kernel shows the application an end of file in place of a reset");
        }
        self.over.is_over.set(true);
        self.over.told.notify_waiters();
    }

    /// Wakes the reading task after back-pressure.
    pub fn resume(&self) {
        self.resume.notify_one();
    }

    /// Whether the application has read or lost everything: both directions are shut at its side.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        let socket = self.socket.get_ref().as_fd();
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }
}

impl Over {
    async fn wait(&self) {
        let told = self.told.notified();
        if !self.is_over.get() {
            told.await;
        }
    }
}

impl Watch {
    /// Calls `read` whenever there may be something to read, until it says [`Read::Finished`] or `None`.
    pub async fn readable(self, mut read: impl FnMut() -> Option<Read>) {
        loop {
            let ready = tokio::select! {
                biased;
                () = self.over.wait() => return,
                ready = self.socket.readable() => ready,
            };
            let Ok(mut ready) = ready else { return };
            match read() {
                Some(Read::Drained) => ready.clear_ready(),
                Some(Read::More) => tokio::task::yield_now().await,
                Some(Read::Paused) => tokio::select! {
                    () = self.over.wait() => return,
                    () = self.resume.notified() => {}
                },
                Some(Read::Finished) | None => return,
            }
        }
    }

    /// Waits until the application's buffer may have room.
    pub async fn writable(self) {
        tokio::select! {
            () = self.over.wait() => {}
            ready = self.socket.writable() => if let Ok(mut ready) = ready {
                ready.clear_ready();
            }
        }
    }
}
