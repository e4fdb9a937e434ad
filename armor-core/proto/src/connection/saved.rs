//! What of an end outlives its ARMOR's process: the state that is saved after every step, before anybody is told of it, and the way back.
//!
//! Beside it the driver keeps the bytes that were read from the application, at least as far back as the log reaches, and what the one call after
//! the last save has done to the application's socket. From the three an end is made that goes on where the dead one was: what the peer was told is
//! still true, what the application was given is known to the byte, and what is lost on the way between the two ends is said again.
//!
//! Invariant: a state that was saved elsewhere or damaged is refused, never a panic.

use serde::{Deserialize, Serialize};

use super::mark::Prologue;
use super::record::{Mark, ResetReason};
use crate::ids::{ConnectionId, Incarnation};

/// Why an end cannot be restored. Its connection is lost: reset the application.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state cannot be read.
    #[error("the saved state cannot be read: {0}")]
    State(#[from] rmp_serde::decode::Error),
    /// The policy does not know its state.
    #[error("the saved state of the mark policy cannot be read: {0}")]
    Policy(String),
    /// Bytes that the peer does not have are missing.
    #[error("the log begins at byte {got}, byte {expected} is needed")]
    Log {
        /// First byte that is needed.
        expected: u64,
        /// First byte that is there.
        got: u64,
    },
}

#[derive(Serialize, Deserialize)]
pub(super) struct SavedSender {
    pub(super) log_from: u64,
    pub(super) log_end: u64,
    pub(super) acked: u64,
    pub(super) acked_ever: u64,
    pub(super) ended: bool,
    pub(super) fin_acked: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SavedReceiver {
    pub(super) written: u64,
    pub(super) fin_passed: bool,
    pub(super) swallow: bool,
    pub(super) swallowed: u64,
}

/// How far an end's life had come.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SavedCourse {
    Open,
    Finished,
    Over(ResetReason),
    Archived,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SavedSession {
    pub(super) connection: ConnectionId,
    pub(super) incarnation: Incarnation,
    pub(super) named: Incarnation,
    pub(super) app: bool,
    pub(super) course: SavedCourse,
    pub(super) sender: SavedSender,
    pub(super) receiver: SavedReceiver,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SavedClient<'a> {
    pub(super) session: SavedSession,
    pub(super) mark: Mark,
    pub(super) prologue: Prologue,
    pub(super) hash: u64,
    pub(super) replayable: bool,
    pub(super) established: bool,
    pub(super) service: Incarnation,
    pub(super) seen: Incarnation,
    pub(super) seen_end: u64,
    pub(super) answered_c2s: u64,
    pub(super) recovering: bool,
    #[serde(with = "serde_bytes", borrow)]
    pub(super) policy: std::borrow::Cow<'a, [u8]>,
    pub(super) reattach: Option<SavedReattach>,
}

/// What lets another process of the client take the connection up.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedReattach {
    pub(super) told: u64,
    pub(super) said: u64,
    pub(super) kept: bool,
    pub(super) closed: bool,
    pub(super) lost: bool,
    pub(super) again: Option<SavedAgain>,
}

/// A new process of the client on its way to where the one before was.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedAgain {
    pub(super) at: u64,
    pub(super) fin: bool,
    pub(super) ended: bool,
    pub(super) regeneration: Option<SavedRegeneration>,
}

/// A comparison under way.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedRegeneration {
    pub(super) from: u64,
    pub(super) at: u64,
    pub(super) until: u64,
    pub(super) expected: u64,
    pub(super) hash: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SavedServer {
    pub(super) session: SavedSession,
    pub(super) end: u64,
    pub(super) requested: Option<Incarnation>,
    pub(super) answered: bool,
    pub(super) seen: Option<Incarnation>,
    pub(super) service: Incarnation,
    pub(super) done: bool,
    pub(super) replaying: Option<u64>,
    pub(super) regeneration: Option<SavedRegeneration>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::mark::MAX_SAVED;
    use super::*;

    #[test]
    fn the_largest_state_of_a_client_s_end_fits_into_its_record() {
        /// What a slot of the journal takes, without the 12 bytes that the driver adds.
        const ROOM: usize = 1640 - 12;
        const MOST: u64 = u64::MAX;
        let regeneration = SavedRegeneration { from: MOST, at: MOST, until: MOST, expected: MOST, hash: MOST };
        let again = SavedAgain { at: MOST, fin: true, ended: true, regeneration: Some(regeneration) };
        let incarnation = Incarnation(u32::MAX);
        let saved = SavedClient {
            session: SavedSession {
                connection: ConnectionId(MOST),
                incarnation,
                named: incarnation,
                app: true,
                course: SavedCourse::Over(ResetReason::Protocol),
                sender: SavedSender { log_from: MOST, log_end: MOST, acked: MOST, acked_ever: MOST, ended: true, fin_acked: true },
                receiver: SavedReceiver { written: MOST, fin_passed: true, swallow: true, swallowed: MOST },
            },
            mark: Mark { c2s: MOST, s2c: MOST },
            // What a policy may tell in all.
            prologue: Prologue { said: vec![b'x'; 160].into(), answered: vec![b'x'; 160].into() },
            hash: MOST,
            replayable: true,
            established: true,
            service: incarnation,
            seen: incarnation,
            seen_end: MOST,
            answered_c2s: MOST,
            recovering: true,
            policy: vec![0; MAX_SAVED].into(),
            reattach: Some(SavedReattach { told: MOST, said: MOST, kept: true, closed: true, lost: true, again: Some(again) }),
        };
        let length = rmp_serde::to_vec(&saved).unwrap().len();
        assert!(length <= ROOM, "{length} bytes");
    }
}
