//! The protected connection: two state machines that together keep one client-server stream pair alive while the
//! server's process, its ARMOR or its whole node is replaced (thesis §4.3.3, §4.5.1; ARCHITECTURE.md, The
//! way of a recovery).
//!
//! [`ClientEnd`] lives in APP_COMM_CLIENT, [`ServerEnd`] in APP_COMM_SERVER. Each direction is a stream of bytes numbered
//! from 0 for the whole life of the connection. An end is told what happened (`app_read`, `handle_data`, `handle_timeout`,
//! …) and asked for its effects, after every call, in this order:
//!
//! 1. `poll_app` until `None`, or until the socket would block: what to do to the application's socket;
//! 2. `poll_transmit` until `None`: records (and payload) for the other end;
//! 3. `poll_event` until `None`: what to report;
//! 4. `poll_timeout`: when `handle_timeout` is due at the latest. It moves often; a driver keeps one timer, arms it anew
//!    only when the answer is *earlier*, and on firing calls `handle_timeout`, which does nothing when it is too early.
//!
//! The client's end keeps the c2s log back to the [`Mark`]. A new server process is fed the log from the mark; what it
//! says again is compared, by hash, with what the client has been given since the mark, is dropped, and then flows on.
//! How marks are set is a [`MarkPolicy`].
//!
//! A client's process may be lost too: with [`ClientEnd::set_reattach`] the connection waits for the next one, which is told again what
//! the server has said, and whose own words are compared with those of the one before.
//!
//! Invariant: no sockets, no clock (time is passed in), no thread, no panic on any record from a peer.
//! Invariant: payload is never copied, apart from a spill; no allocation per frame in steady state.
//! Invariant: every queue is bounded by [`Config::window`], [`Config::log_bound`] or [`Reattach::transcript_bound`].

mod client_end;
mod config;
mod digest;
mod error;
mod event;
mod mark;
mod reattach;
mod receiver;
mod record;
mod saved;
mod send_log;
mod sender;
mod server_end;
mod session;

pub use client_end::ClientEnd;
pub use config::{Config, OnDivergence};
pub use error::ProtocolError;
pub use event::{AppAction, Divergence, Event, TranscriptLost};
pub use mark::{
    Conversation, MAX_SAVED, MarkPolicy, PolicyStateError, Prologue, Protocol, ReconnectPolicy, RequestPolicy, StreamPolicy, TurnPolicy,
    mark_policy,
};
pub use reattach::{Reattach, ReattachPolicy, Transcript};
pub use record::{Ack, AckState, ConnectReply, ConnectRequest, Data, Direction, Mark, Record, Replay, Reset, ResetReason, Resume};
pub use saved::RestoreError;
pub use send_log::Spill;
pub use server_end::{ConnectDecision, ServerEnd};
