//! The ARMOR's end of a protected connection: the other end is the application's file descriptor itself.
//!
//! Invariant: end of file alone is never taken for an orderly close; [`Ending`] says what the kernel knows.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::READ_SIZE;
use super::unread_byte::{self, Whereabouts};

/// What a read gave.
#[derive(Debug)]
pub enum Reading {
    /// Bytes; `more` when the buffer was filled, so another read may give more at once.
    Bytes(Bytes, bool),
    /// Nothing now.
    Empty,
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

/// Where reads go. One for all connections of an element: what is read is copied out when it is little, so that many connections
/// that say little take little memory, and taken out when it is much.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    bytes: Vec<u8>,
}

impl ReadBuffer {
    /// From this many bytes on they are not copied.
    const MUCH: usize = READ_SIZE / 2;

    fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; READ_SIZE];
        }
        &mut self.bytes
    }

    fn take(&mut self, length: usize) -> Bytes {
        if length < Self::MUCH {
            return Bytes::copy_from_slice(&self.bytes[..length]);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.truncate(length);
        bytes.into()
    }
}

/// The socket.
#[derive(Debug, Clone)]
pub struct ApplicationSocket {
    socket: Rc<AsyncFd<OwnedFd>>,
    resume: Rc<Notify>,
    over: Rc<Over>,
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
        Ok(ApplicationSocket { socket: Rc::new(super::watched::watched(socket)?), resume: Rc::default(), over: Rc::default() })
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

    /// Reads up to `most` bytes.
    #[must_use]
    pub fn read(&self, buffer: &mut ReadBuffer, most: usize) -> Reading {
        let most = most.min(READ_SIZE);
        loop {
            return match rustix::io::read(self.socket.get_ref(), &mut buffer.room()[..most]) {
                Ok(0) => Reading::Ended(if self.hung_up() { Ending::Gone } else { Ending::Half }),
                Ok(length) => Reading::Bytes(buffer.take(length), length == most),
                Err(Errno::AGAIN) => Reading::Empty,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => Reading::Ended(Ending::Reset),
                Err(_) => Reading::Ended(Ending::Gone),
            };
        }
    }

    /// Waits until there is something to read, and reads it.
    pub async fn hear(&self, buffer: &mut ReadBuffer) -> Reading {
        loop {
            let Ok(mut ready) = self.socket.readable().await else { return Reading::Ended(Ending::Gone) };
            match self.read(buffer, READ_SIZE) {
                Reading::Empty => ready.clear_ready(),
                reading => return reading,
            }
        }
    }

    /// Writes; the number of bytes taken, 0 when the application's buffer is full.
    ///
    /// # Errors
    /// `EPIPE`, `ECONNRESET`: the application is gone.
    pub fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            return match rustix::net::sendmsg(
                self.socket.get_ref(),
                slices,
                &mut rustix::net::SendAncillaryBuffer::default(),
                rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT,
            ) {
                Ok(written) => Ok(written),
                Err(Errno::AGAIN) => Ok(0),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Tells the application that no more bytes come: it reads end of file.
    pub fn finish(&self) {
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Write);
    }

    /// Ends the connection to the application in both directions, and with it the tasks that wait on the socket. Closing alone
    /// would not: they hold the descriptor too.
    pub fn hang_up(&self) {
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
        self.resume.notify_one();
    }

    /// Closes the socket so that the application sees a reset. The kernel shows it when the last copy of the socket is closed, and as
    /// one only if it is not shut down before: so the tasks that wait on it, which have copies, are ended otherwise.
    pub fn reset(self, application: Option<Whereabouts>) {
        if let Err(error) = unread_byte::leave_one(self.socket.get_ref(), application) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[tokio::test]
    async fn little_and_much_are_read_with_one_buffer_and_never_more_than_may_be() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, application) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let socket = ApplicationSocket::new(own).unwrap();
        let mut buffer = ReadBuffer::default();
        let mut read = |most| match socket.read(&mut buffer, most) {
            Reading::Bytes(bytes, more) => (bytes, more),
            other => panic!("{other:?}"),
        };
        let said: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
        assert_eq!(rustix::io::write(&application, &said), Ok(100_000));
        let (first, more) = read(3);
        assert_eq!((&first[..], more), (&said[..3], true));
        let (second, more) = read(usize::MAX);
        assert!(second[..] == said[3..] && !more);
        rustix::io::write(&application, b"little").unwrap();
        assert_eq!(read(usize::MAX).0, "little");
        assert!(first[..] == said[..3] && second[..] == said[3..], "what was read stays as it was");
    }
}
