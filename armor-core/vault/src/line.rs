//! A connection of an ARMOR. What it is told is not queued: it is found anew, so a reader that is slow costs nothing.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::datagram;
use crate::exits::Exits;
use crate::kept::Kept;
use crate::message::Answer;

pub(crate) struct Line {
    pub(crate) socket: OwnedFd,
    /// The process at the other end, the kernel's word.
    pub(crate) pid: u32,
    /// Since its Hello.
    pub(crate) owner: Option<String>,
    handing: Option<Handing>,
    /// Exits up to this sequence were told.
    told: u64,
    pub(crate) stuck: Stuck,
    /// Is about to be closed.
    pub(crate) over: bool,
}

/// A hand-over under way.
#[derive(Default)]
struct Handing {
    /// The last key.
    after: String,
    count: u64,
}

/// Why the line is not told more just now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stuck {
    No,
    /// Until the other end has read.
    Full,
    /// For a moment: too many descriptors are on their way, or memory is short.
    Short,
}

impl Line {
    pub(crate) fn new(socket: OwnedFd, pid: u32) -> Line {
        Line { socket, pid, owner: None, handing: None, told: 0, stuck: Stuck::No, over: false }
    }

    pub(crate) fn hello(&mut self, owner: String, heard: u64) {
        (self.owner, self.told, self.handing) = (Some(owner), heard, Some(Handing::default()));
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.stuck == Stuck::Full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
    }

    /// Tells as much as the socket takes: first what is kept, then exits, then the end of the hand-over, then exits as they come.
    pub(crate) fn tell(&mut self, kept: &Kept, exits: &Exits) {
        let Some(owner) = &self.owner else { return };
        self.stuck = Stuck::No;
        loop {
            let (keys, descriptors) = self.handing.as_ref().map(|handing| kept.after(owner, &handing.after)).unwrap_or_default();
            let answer = if !keys.is_empty() {
                Answer::Kept { keys }
            } else if let Some((sequence, process)) = exits.after(self.told) {
                Answer::Exited { sequence, process }
            } else if let Some(Handing { count, .. }) = self.handing {
                Answer::Handed { count }
            } else {
                return;
            };
            match datagram::send(self.socket.as_fd(), &answer, &descriptors, SendFlags::DONTWAIT) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return self.stuck = Stuck::Full,
                Err(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => return self.stuck = Stuck::Short,
                // It is closed: that is seen by reading, after what it has said before.
                Err(_) => return,
            }
            match (answer, &mut self.handing) {
                (Answer::Kept { keys }, Some(handing)) => {
                    handing.count += keys.len() as u64;
                    handing.after = keys.into_iter().last().unwrap_or_default();
                }
                (Answer::Exited { sequence, .. }, _) => self.told = sequence,
                _ => self.handing = None,
            }
        }
    }

    /// Says that a descriptor is not kept. A reader that is slow is not waited for: the log says it too.
    pub(crate) fn refuse(&self, key: String, reason: String) {
        let _ = datagram::send(self.socket.as_fd(), &Answer::Refused { key, reason }, &[], SendFlags::DONTWAIT);
    }
}
