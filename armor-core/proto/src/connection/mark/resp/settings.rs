//! What a connection has set for itself and a new process has to be told before anything else.
//!
//! Invariant: all texts together take at most [`ROOM`] bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::kind::Slot;
use crate::connection::mark::Prologue;

/// Bytes of all settings together, made or asked for.
const ROOM: usize = 320;
/// What a setting is answered with.
const OK: &[u8] = b"+OK\r\n";
/// Settings that may wait for an answer, and be made: as many as there are slots.
const MOST: usize = 8;

/// Settings in the order in which their slots were first set: a login comes before what it permits.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Settings {
    made: Vec<(Slot, ByteBuf)>,
    asked: Vec<(Slot, ByteBuf)>,
    #[serde(skip)]
    prologue: Prologue,
}

impl std::fmt::Debug for Settings {
    /// Tells no text: it may hold a password.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Settings {{ made: {}, asked: {}, room: {} }}", self.made.len(), self.asked.len(), self.room())
    }
}

impl Settings {
    pub(super) fn is_empty(&self) -> bool {
        self.made.is_empty() && self.asked.is_empty()
    }

    /// Bytes that another one may take.
    pub(super) fn room(&self) -> usize {
        let taken: usize = self.made.iter().chain(&self.asked).map(|(_, text)| text.len()).sum();
        ROOM.saturating_sub(taken)
    }

    /// The client asks for a setting. False when there is no room for it.
    pub(super) fn ask(&mut self, slot: Slot, text: Vec<u8>) -> bool {
        let fits = text.len() <= self.room() && self.asked.len() < MOST;
        if fits {
            self.asked.push((slot, ByteBuf::from(text)));
        }
        fits
    }

    /// The oldest that was asked for is made.
    pub(super) fn made(&mut self) {
        if self.asked.is_empty() {
            return;
        }
        let (slot, text) = self.asked.remove(0);
        match self.made.iter_mut().find(|(known, _)| *known == slot) {
            Some((_, known)) => *known = text,
            None => self.made.push((slot, text)),
        }
        self.write_prologue();
    }

    /// The oldest that was asked for is not made.
    pub(super) fn refused(&mut self) {
        if !self.asked.is_empty() {
            self.asked.remove(0);
        }
    }

    pub(super) fn write_prologue(&mut self) {
        let said: Vec<u8> = self.made.iter().flat_map(|(_, text)| text.iter().copied()).collect();
        self.prologue = Prologue { said: Bytes::from(said), answered: Bytes::from(OK.repeat(self.made.len())) };
    }

    pub(super) fn prologue(&self) -> Prologue {
        self.prologue.clone()
    }

    /// Whether it can have come to be by [`Settings::ask`] and [`Settings::made`].
    pub(super) fn is_sound(&self) -> bool {
        let taken: usize = self.made.iter().chain(&self.asked).map(|(_, text)| text.len()).sum();
        taken <= ROOM && self.asked.len() <= MOST && self.made.len() <= MOST
    }
}
