//! What the two ends of a protected connection say to each other (thesis §4.4).
//!
//! Each record is a plain serde struct that rmp-serde writes as a compact array; the bytes of [`Data`] travel beside it.
//!
//! Invariant: every record names its connection and the connection's incarnation, which fences the ones before.

use serde::{Deserialize, Serialize};

use crate::ids::{ConnectionId, Incarnation};

/// One of the two streams of a connection. One byte on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Direction {
    /// Client to server.
    C2s,
    /// Server to client.
    S2c,
}

impl From<Direction> for u8 {
    fn from(direction: Direction) -> u8 {
        direction as u8
    }
}

impl TryFrom<u8> for Direction {
    type Error = &'static str;
    fn try_from(byte: u8) -> Result<Self, Self::Error> {
        match byte {
            0 => Ok(Direction::C2s),
            1 => Ok(Direction::S2c),
            _ => Err("direction is neither 0 (c2s) nor 1 (s2c)"),
        }
    }
}

/// Where a new server process may start: it is fed the client's bytes from `c2s` and then says again what lies from
/// `s2c` (ARCHITECTURE.md, The way of a recovery).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Mark {
    /// Offset in the client's stream.
    pub c2s: u64,
    /// Offset in the server's stream.
    pub s2c: u64,
}

/// How far a receiver is in the stream that comes to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AckState {
    /// Bytes that were written into the receiving application's socket; cumulative.
    pub offset: u64,
    /// Bytes beyond `offset` that are here, in order, but not written yet: they need no resending.
    pub held: u32,
    /// Bytes beyond `offset` that may be sent.
    pub window: u32,
    /// The end of the stream was passed on to the application.
    pub fin: bool,
    /// A gap was seen: send again from `offset + held`.
    pub resend: bool,
    /// This end has nothing more to say or to hear; the connection is over for it.
    pub complete: bool,
}

impl AckState {
    /// Offset up to which everything has been received in order, `None` when the numbers overflow.
    #[must_use]
    pub fn received(&self) -> Option<u64> {
        self.offset.checked_add(u64::from(self.held))
    }
}

/// A piece of one stream. Its bytes are the payload; without bytes and `fin` it is a probe, which is answered at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Data {
    /// Whose bytes.
    pub connection: ConnectionId,
    /// Incarnation of the connection.
    pub incarnation: Incarnation,
    /// Which stream.
    pub direction: Direction,
    /// Offset of the first byte of the payload.
    pub offset: u64,
    /// The stream ends after the payload.
    pub fin: bool,
    /// Acknowledgement of the other stream.
    pub ack: AckState,
}

/// An acknowledgement that found no data to ride on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ack {
    /// Whose bytes.
    pub connection: ConnectionId,
    /// Incarnation of the connection.
    pub incarnation: Incarnation,
    /// Which stream is acknowledged.
    pub direction: Direction,
    /// How far its receiver is.
    pub state: AckState,
}

/// Why a connection was reset. One byte on the wire; a byte that is not known reads as [`ResetReason::Peer`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "u8", from = "u8")]
pub enum ResetReason {
    /// The application at the other end reset it.
    Peer = 0,
    /// The new server process said something else than the one before (ARCHITECTURE.md, The way of a recovery).
    Diverged = 1,
    /// The server was restarted too often.
    RestartLimit = 2,
    /// The other end was not heard for [`Config::deadline`](super::Config::deadline).
    Deadline = 3,
    /// There is no server any more.
    ServerGone = 4,
    /// The server was lost after the log bound had been passed, so its bytes could not be replayed.
    NoReplay = 5,
    /// The application at the other end had closed and bytes came all the same, as TCP answers them.
    Closed = 6,
    /// The other end broke the protocol.
    Protocol = 7,
}

impl From<ResetReason> for u8 {
    fn from(reason: ResetReason) -> u8 {
        reason as u8
    }
}

impl From<u8> for ResetReason {
    fn from(byte: u8) -> Self {
        match byte {
            1 => ResetReason::Diverged,
            2 => ResetReason::RestartLimit,
            3 => ResetReason::Deadline,
            4 => ResetReason::ServerGone,
            5 => ResetReason::NoReplay,
            6 => ResetReason::Closed,
            7 => ResetReason::Protocol,
            _ => ResetReason::Peer,
        }
    }
}

/// The connection is over at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reset {
    /// Which connection.
    pub connection: ConnectionId,
    /// Incarnation of the connection.
    pub incarnation: Incarnation,
    /// In which its sender speaks: an ARMOR may have both ends, and a server that moves may have been where its client is.
    pub direction: Direction,
    /// Why.
    pub reason: ResetReason,
}

/// From where a new server process goes on. One byte on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Resume {
    /// From the present: nothing is said again (thesis §4.5.1, policy `reconnect`).
    Present,
    /// From the mark: the client's bytes are replayed and the server's are compared.
    Mark,
    /// With the process that there is, which must not be another one: nothing can be replayed.
    SameProcess,
}

impl From<Resume> for u8 {
    fn from(resume: Resume) -> u8 {
        resume as u8
    }
}

impl TryFrom<u8> for Resume {
    type Error = &'static str;
    fn try_from(byte: u8) -> Result<Self, Self::Error> {
        match byte {
            0 => Ok(Resume::Present),
            1 => Ok(Resume::Mark),
            2 => Ok(Resume::SameProcess),
            _ => Err("resume is none of 0 (present), 1 (mark), 2 (same process)"),
        }
    }
}

/// What `MSG_APPCOMM_SERVER_CONNECT_REQUEST` says about the streams (thesis §4.4 step 6, §4.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// Which connection.
    pub connection: ConnectionId,
    /// Incarnation that the client asks for; 0 at the first connect, higher at every replay.
    pub incarnation: Incarnation,
    /// Last incarnation in which the client's end took a reply; 0 when it never did. Tells a server's end that knows this
    /// client from one that was made by a request which came late.
    pub seen: Incarnation,
    /// The server's end that gave that reply ([`ConnectReply::end`]).
    pub seen_end: u64,
    /// Highest incarnation of the service that the client's end was told of; a process of an older one is not kept.
    pub service: Incarnation,
    /// Whether to start at the mark or at the present.
    pub resume: Resume,
    /// Where the new process may start; before the mark proper, as far back as what it is told and answers before that.
    pub mark: Mark,
    /// Client's bytes that were written into a server process: the present, in case the server's end is gone.
    pub acked_c2s: u64,
    /// Server's bytes that were written into the client.
    pub written_s2c: u64,
    /// Server's bytes that have reached the client's end.
    pub received_s2c: u64,
    /// The end of the server's stream has reached the client's end: the server has said all, no process is needed.
    pub fin_s2c: bool,
    /// CRC32C and CRC32 of the server's bytes from `mark.s2c` to `received_s2c`.
    pub hash_s2c: u64,
    /// Server's bytes beyond `written_s2c` that may be sent.
    pub window: u32,
    /// When the server's end knows that the process had been silent for so long before it was lost, with all that it had said
    /// written to the client, the answer counts as complete: the new process starts at the present instead of the mark.
    pub settled_ms: Option<u32>,
}

/// Outcome of a [`ConnectRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectReply {
    /// Which connection.
    pub connection: ConnectionId,
    /// [`ConnectRequest::incarnation`] of the request that is answered.
    pub requested: Incarnation,
    /// Incarnation that every frame carries from now on; not below `requested`.
    pub incarnation: Incarnation,
    /// Incarnation of the service's process that was attached.
    pub service: Incarnation,
    /// Which server's end this is, among all that the connection comes to have.
    pub end: u64,
    /// 0, or why there is no connection.
    pub errno: i32,
    /// From where the client's bytes are wanted.
    pub c2s: AckState,
}

/// The server's end asks for a new [`ConnectRequest`] (thesis §4.5.1): when one worker process of a service died and the
/// service did not, or when its ARMOR's process did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replay {
    /// Which connection.
    pub connection: ConnectionId,
    /// Incarnation of the connection that has lost its process, or its end.
    pub incarnation: Incarnation,
    /// The process lives, or has said all: only the server's end was lost, and is restored.
    pub process_lives: bool,
}

/// Any record, as `poll_transmit` yields it. Elements may send the struct inside as an operation of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Record {
    Data(Data),
    Ack(Ack),
    Reset(Reset),
    ConnectRequest(ConnectRequest),
    ConnectReply(ConnectReply),
    Replay(Replay),
}

impl Record {
    /// The connection it belongs to.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        match self {
            Record::Data(r) => r.connection,
            Record::Ack(r) => r.connection,
            Record::Reset(r) => r.connection,
            Record::ConnectRequest(r) => r.connection,
            Record::ConnectReply(r) => r.connection,
            Record::Replay(r) => r.connection,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_data_record_takes_few_bytes_on_the_wire() {
        let data = Data {
            connection: ConnectionId(u64::MAX),
            incarnation: Incarnation(3),
            direction: Direction::S2c,
            offset: 70_000,
            fin: false,
            ack: AckState { offset: 80_000, window: 1 << 20, ..AckState::default() },
        };
        let bytes = rmp_serde::to_vec(&data).unwrap();
        assert!(bytes.len() <= 34, "{} bytes", bytes.len());
        assert_eq!(rmp_serde::from_slice::<Data>(&bytes).unwrap(), data);
    }

    #[test]
    fn enums_are_one_byte_and_foreign_bytes_are_refused_or_mapped() {
        assert_eq!(rmp_serde::to_vec(&Direction::S2c).unwrap(), [1]);
        assert!(rmp_serde::from_slice::<Direction>(&[2]).is_err());
        assert_eq!(rmp_serde::from_slice::<ResetReason>(&[77]).unwrap(), ResetReason::Peer);
        for byte in 0..8u8 {
            assert_eq!(u8::from(ResetReason::from(byte)), byte);
        }
    }
}
