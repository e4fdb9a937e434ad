//! What can be wrong with a record from a peer.

use super::record::Direction;
use crate::ids::{ConnectionId, Incarnation};

/// A record that makes no sense where it arrived. The connection's state is unchanged by it; the caller counts it and
/// reports it, and may reset the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// It was routed to the wrong connection.
    #[error("record of connection {got} at connection {expected}")]
    Connection {
        /// Whose end this is.
        expected: ConnectionId,
        /// What the record named.
        got: ConnectionId,
    },
    /// Data of the stream that this end sends, or an acknowledgement of the one that it receives.
    #[error("record of direction {got:?}, expected {expected:?}")]
    Direction {
        /// The only direction that makes sense here.
        expected: Direction,
        /// What the record named.
        got: Direction,
    },
    /// An incarnation that nobody has agreed to yet.
    #[error("record of incarnation {}, which is beyond {}", got.0, expected.0)]
    Incarnation {
        /// The highest incarnation that can be in use.
        expected: Incarnation,
        /// What the record named.
        got: Incarnation,
    },
    /// Offset and length run over 2^64.
    #[error("offset {offset} with {length} bytes passes the end of the numbers")]
    Overflow {
        /// First byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// More bytes than the window allows.
    #[error("data up to offset {got}, only {expected} is allowed by the window")]
    Window {
        /// First offset that is not allowed.
        expected: u64,
        /// End of the data.
        got: u64,
    },
    /// The stream's end is at another place than was said before, or data lie beyond it.
    #[error("stream reaches or ends at {got}, expected {expected}")]
    Fin {
        /// Where the stream ends, or the first place where it can end.
        expected: u64,
        /// Where the record would have it.
        got: u64,
    },
    /// Bytes are acknowledged that were never sent.
    #[error("acknowledgement of offset {got}, only {expected} was sent")]
    AckBeyondSent {
        /// End of what was sent.
        expected: u64,
        /// What was acknowledged.
        got: u64,
    },
    /// The end of a stream is acknowledged that was never sent.
    #[error("acknowledgement of an end that was not sent")]
    AckOfUnsentFin,
    /// A connect request or reply whose offsets contradict each other or what this end knows.
    #[error("{what} is {got}, expected {expected_from}..={expected_to}")]
    Offset {
        /// Which number.
        what: &'static str,
        /// Lowest that makes sense.
        expected_from: u64,
        /// Highest that makes sense.
        expected_to: u64,
        /// What was said.
        got: u64,
    },
    /// A record, or a call of the driver, that this end never takes in the state it is in.
    #[error("{event} while {state}")]
    Unexpected {
        /// What came.
        event: &'static str,
        /// What this end is doing.
        state: &'static str,
    },
}
