//! epoll, level-triggered, around numbers that say who is meant.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Who is watched for what.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

/// What somebody is watched for, or ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read, or its end.
    pub read: bool,
    /// There is room to write.
    pub write: bool,
}

impl Ready {
    /// To be read from alone.
    pub const READ: Ready = Ready { read: true, write: false };
    /// To be written to alone.
    pub const WRITE: Ready = Ready { read: false, write: true };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

impl Poller {
    /// Watches nobody yet.
    ///
    /// # Errors
    /// When the kernel has no more descriptors.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(256) })
    }

    /// Watches somebody under a number, until it is closed.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn add(&self, who: impl AsFd, number: u64, watch: Ready) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, who, EventData::new_u64(number), watch.flags())?)
    }

    /// Watches it for something else.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn change(&self, who: impl AsFd, number: u64, watch: Ready) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, who, EventData::new_u64(number), watch.flags())?)
    }

    /// Who is ready for what; waits for somebody, at most so many ms when a limit is given.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn wait(&mut self, limit_ms: Option<u32>) -> io::Result<impl Iterator<Item = (u64, Ready)>> {
        let limit = limit_ms.map(|ms| Timespec { tv_sec: i64::from(ms / 1000), tv_nsec: i64::from(ms % 1000) * 1_000_000 });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // A broken connection is found by reading, or by writing when only that is waited for.
        let broken = EventFlags::ERR | EventFlags::HUP;
        Ok(self.events.drain(..).map(move |event| {
            let (flags, number) = (event.flags, event.data.u64());
            (number, Ready { read: flags.intersects(EventFlags::IN | broken), write: flags.intersects(EventFlags::OUT | broken) })
        }))
    }
}

/// Nothing when it would have to be waited for.
///
/// # Errors
/// All others.
pub fn unless_busy<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
