//! What an end reports, and what it wants done to the application's socket.

use super::record::ResetReason;
use crate::ids::Incarnation;

/// What to do to the application's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppAction {
    /// Bytes wait: write `app_slices` and call `app_wrote`. Comes again as long as bytes wait; when the socket would
    /// block, stop polling until it is writable.
    Write,
    /// All bytes are written and the peer has ended its stream: shut the write side down. Comes once per process.
    ShutdownWrite,
    /// Close the socket so that the application sees a reset. Comes once, nothing comes after it.
    Reset(ResetReason),
}

/// How a new server process differed from the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Divergence {
    /// It said other bytes.
    Bytes,
    /// It ended its stream, reset it or closed before it had said again what the client has been given.
    Short {
        /// Bytes that it did say.
        said: u64,
        /// Bytes that the client has been given since the mark.
        expected: u64,
    },
    /// It said nothing for [`Config::regeneration_deadline`](super::Config::regeneration_deadline).
    Silent {
        /// Bytes that it did say.
        said: u64,
        /// Bytes that the client has been given since the mark.
        expected: u64,
    },
}

/// Why a [`Transcript`](super::Transcript) was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranscriptLost {
    /// It would have passed [`Reattach::transcript_bound`](super::Reattach::transcript_bound) with so many bytes.
    Bound(u64),
    /// It could not take them, or give them back.
    Failed(std::io::ErrorKind),
    /// The ARMOR's process died, and it was not there any more.
    Missing,
}

/// What happened, for the caller's log, metrics and tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The first connect succeeded.
    Established {
        /// Incarnation of the service's process.
        service: Incarnation,
    },
    /// The first connect failed; the connection is over. There is no [`AppAction`] for it.
    Refused {
        /// Why, as connect(2) would say it.
        errno: i32,
    },
    /// Client's end: the server was lost and a connect request is being replayed.
    Reconnecting {
        /// Incarnation that is asked for.
        incarnation: Incarnation,
    },
    /// A new process is attached and is fed.
    Reconnected {
        /// Incarnation of the service's process.
        service: Incarnation,
        /// Client's bytes that are fed again.
        replayed: u64,
    },
    /// Server's end: what is fed again has been written to the new process, to where the one before was.
    Replayed,
    /// Server's end: the new process has said again what the client had been given; the stream flows on.
    Recovered {
        /// Bytes that were compared and dropped.
        regenerated: u64,
    },
    /// A new process, of the server or of the client, said something else. With
    /// [`OnDivergence::Reset`](super::OnDivergence::Reset) an [`Event::Reset`] follows.
    Diverged(Divergence),
    /// Client's end: the [`Spill`](super::Spill) could not take what passed the log bound. [`Event::LogOverflow`] follows.
    SpillFailed(std::io::ErrorKind),
    /// Client's end: the log bound was passed, replay is lost until the next mark. Said once per loss.
    LogOverflow {
        /// Bytes of the log when it happened.
        bytes: u64,
    },
    /// Client's end: a [`MarkPolicy`](super::MarkPolicy) has given up; replay is lost for good.
    ReplayGivenUp,
    /// Client's end: a new mark made replay possible again.
    ReplayRegained,
    /// Client's end: its process was lost, and the connection waits for another one.
    ClientLost,
    /// Client's end: another process of the client has taken the connection up.
    Reattached {
        /// Server's bytes that it is told again.
        told: u64,
        /// Client's bytes that it has to say again.
        expected: u64,
    },
    /// Client's end: the new process has said again what the one before had said.
    SaidAgain {
        /// Bytes that were compared and dropped.
        regenerated: u64,
    },
    /// Client's end: no process has taken the connection up in time. End it as that of a client which has failed.
    NotReattached,
    /// Client's end: what the client was told is not kept any more, so no other process can take the connection up. Said once.
    TranscriptLost(TranscriptLost),
    /// Client's end: the connection has come to its end in order, and is kept for the client's next process.
    Archived,
    /// Client's end: a [`MarkPolicy`](super::MarkPolicy) set a mark that cannot be, which was ignored. Said once.
    MarkRefused(super::Mark),
    /// Both streams have ended in order and have been passed on.
    Finished,
    /// The connection was reset, by this end or the other.
    Reset(ResetReason),
    /// Nothing more will come: drop this end. Always the last event.
    Drained,
}
