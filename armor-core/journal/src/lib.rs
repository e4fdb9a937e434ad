//! Shared memory that outlives the process which writes it. An ARMOR may be killed with SIGKILL at any instruction; what it had
//! taken from an application, what it had given to one, and the state of each connection are found exactly as they were.
//!
//! [`Journal`] is one memfd, kept by another process too. It holds [`Record`]s, one per end of a connection: a saved state
//! (double-buffered, checksummed, committed by one store) and blocks with the bytes received. Bytes move by
//! [`Record::receive`] and [`Record::send`]: `recvmmsg` and `sendmmsg` with one message, whose header lies in the shared memory. The kernel
//! stores the number of bytes there before the call returns, so it is known even if the caller never returns.
//! [`Journal::open`] gives everything back.
//!
//! Invariant: what is known after a death is the last saved state and, exactly, what the one call after it has done.
//! Invariant: a block is given up only after a state has been saved that needs it no more.
//! Invariant: this crate and the shim are the only ones with `unsafe` in them.

mod blocks;
mod call;
mod journal;
mod layout;
mod mapping;
mod record;
mod recovery;

pub use call::Keep;
pub use journal::{Bounds, Journal, JournalError};
pub use record::{Received, Record};
pub use recovery::{LastCall, Recovered, Recovery};

/// Most bytes that describe a record for good; see [`Journal::begin`].
pub const ABOUT_LIMIT: usize = layout::ABOUT_SIZE;
/// Most bytes of a saved state.
pub const STATE_LIMIT: usize = layout::STATE_SIZE;
