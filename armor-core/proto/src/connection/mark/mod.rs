//! How marks are set: where a new server process may start. A file per policy.
//!
//! A researcher teaches a protocol by implementing [`MarkPolicy`]: it sees the bytes of both streams and says where a
//! conversation can be taken up by a process that knows nothing of what came before.
//!
//! Each policy sees every byte of both streams once and in order, over all server processes: what a new process says again is
//! dropped before it comes here. So a policy that follows a protocol need not know that there was a recovery.
//!
//! Invariant: a policy never changes bytes; a mark that cannot be is ignored and reported, never used.
//! Invariant: a policy that does not know sets no mark. One that is too old replays more; one that is wrong loses bytes silently.

mod http;
mod line;
mod reconnect;
mod request;
mod resp;
mod saved;
mod stream;
mod turn;
mod waiting;

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use reconnect::ReconnectPolicy;
pub use request::{Protocol, RequestPolicy};
pub use saved::{MAX_SAVED, PolicyStateError};
pub use stream::StreamPolicy;
pub use turn::TurnPolicy;

use super::record::{Mark, Resume};

/// What a policy is told of the connection, as the client's end sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conversation {
    /// The mark that holds now.
    pub mark: Mark,
    /// Client's bytes so far, without the ones that are just being looked at.
    pub c2s_end: u64,
    /// Client's bytes that were written into the present server process.
    pub c2s_acked: u64,
    /// [`Conversation::c2s_acked`] when the server last said something new: what it knew of when it answered.
    pub c2s_answered: u64,
    /// Server's bytes that the client was given so far, without the ones that are just being looked at.
    pub s2c_received: u64,
    /// Server's bytes behind them that are here and wait for the client to take them.
    pub s2c_waiting: u64,
    /// The server was lost, and no new process has yet said anything that the client had not been given before. Marks
    /// that are returned between the loss and the new connection are ignored.
    pub recovering: bool,
    /// The time.
    pub now: Instant,
}

impl Conversation {
    /// The present: everything said so far by both.
    #[must_use]
    pub fn present(&self) -> Mark {
        Mark { c2s: self.c2s_end, s2c: self.s2c_received }
    }
}

/// What a new process is told before the client's bytes from the mark on, and what it must answer: a login, say, or a choice of
/// database, which the client made long before the mark. The answer is compared and dropped like everything else that the
/// client was given already.
///
/// Neither part may be longer than what the client, or the server, has said before the mark.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prologue {
    /// What the new process is told.
    pub said: Bytes,
    /// What it must answer.
    pub answered: Bytes,
}

impl std::fmt::Debug for Prologue {
    /// Tells lengths only: it may hold a password.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Prologue {{ said: {} bytes, answered: {} bytes }}", self.said.len(), self.answered.len())
    }
}

/// Extension point: where a new server process may start.
///
/// A mark that is returned must lie, in c2s, between the mark that holds and the end of the client's bytes (including the
/// ones just looked at), and in s2c at the present, or inside the bytes just looked at. It must be such that a server
/// that is fed the [prologue](MarkPolicy::prologue) and then the client's bytes from `c2s` answers the prologue and then says
/// the server's bytes from `s2c`.
pub trait MarkPolicy {
    /// Whether a new process starts at the mark or at the present. With [`Resume::Present`] no log is kept and the
    /// functions below are not called.
    fn resume(&self) -> Resume {
        Resume::Mark
    }

    /// The client is about to say `bytes`.
    fn client_spoke(&mut self, conversation: &Conversation, bytes: &[u8]) -> Option<Mark>;

    /// The client was given `bytes`, which the server has said.
    fn server_answered(&mut self, _conversation: &Conversation, _bytes: &[u8]) -> Option<Mark> {
        None
    }

    /// The server process was lost. How long it must have been silent before, without being held up by the client's reading, for
    /// everything that it was asked to count as answered: a new process then starts at the present. `None`: silence tells nothing.
    fn settles_after(&self, _conversation: &Conversation) -> Option<Duration> {
        None
    }

    /// The connection goes on with a process that is told nothing again, because the log was over its bound: requests that had no
    /// answer will never have one.
    fn went_on_without_replay(&mut self) {}

    /// What belongs before the mark that was returned last.
    fn prologue(&self) -> Prologue {
        Prologue::default()
    }

    /// No process can take up this conversation any more, from whatever mark: it depends on a state of the connection that cannot be
    /// made again. The log is dropped, and when the server is lost the client is reset at once, with nothing executed twice.
    fn gave_up(&self) -> bool {
        false
    }

    /// Appends the policy's state to `out`, at most [`MAX_SAVED`] bytes, so that it can outlive the ARMOR's process.
    fn save(&self, out: &mut Vec<u8>);

    /// Takes the state that [`MarkPolicy::save`] has appended, at the same place in both streams. From then on it sets the
    /// same marks as the policy that was saved, or fewer of them until what was under way is over.
    ///
    /// # Errors
    /// When the bytes are something else.
    fn restore(&mut self, state: &[u8]) -> Result<(), PolicyStateError>;
}

/// The policy of this name, as TOML gives it: `reconnect`, `request`, `http`, `resp`, `turn` or `stream`.
#[must_use]
pub fn mark_policy(name: &str) -> Option<Box<dyn MarkPolicy + Send>> {
    match name {
        "reconnect" => Some(Box::new(ReconnectPolicy)),
        "request" => Some(Box::new(RequestPolicy::default())),
        "http" => Some(Box::new(RequestPolicy::of(Protocol::Http))),
        "resp" => Some(Box::new(RequestPolicy::of(Protocol::Resp))),
        "turn" => Some(Box::new(TurnPolicy::default())),
        "stream" => Some(Box::new(StreamPolicy)),
        _ => None,
    }
}
