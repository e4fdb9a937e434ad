//! R-UDP: links between daemons over datagrams (thesis §5.3, §5.5). Reliable messages in channels, unreliable ones for which late is useless, over
//! networks that lose, reorder and repeat, go away for minutes, and come back under another address.
//!
//! [`Endpoint`] holds the links of one socket. Its owner tells it what happened and asks for the effects, after every call, in this order:
//!
//! 1. [`Endpoint::poll_transmit`] until `None`: datagrams to be sent;
//! 2. [`Endpoint::poll_event`] until `None`: what to report, and which links [`receive`](Endpoint::receive) gives messages for;
//! 3. [`Endpoint::poll_timeout`]: when [`Endpoint::handle_timeout`] is due at the latest.
//!
//! A link is known by connection ids that each side has chosen, and by what the handshake has made ([`Protection`]), never by an address. A packet that
//! opens, and is newer than all before, moves the link to where it came from.
//!
//! Invariant: no sockets, no clock (time is passed in), no thread, no randomness but from the owner's secret; no panic on any datagram.
//! Invariant: every queue and table is bounded by [`Config`] or a constant beside it; no allocation per packet but for the bytes that wait.

mod config;
mod congestion;
mod endpoint;
mod handshake;
mod inbound;
mod link;
mod mtu;
mod outbound;
mod path;
mod protection;
mod ranges;
mod recovery;
mod rtt;
mod secret;
mod unreliable;
mod wire;

pub use config::{Config, INITIAL_WINDOW, MAX_MESSAGE, MIN_DATAGRAM};
pub use endpoint::{CloseReason, ConnectError, Endpoint, Event, LinkId, Liveness, Mode, Received, Refusals, SendError, Status, Transmit};
pub use protection::{Acceptor, Handshake, HandshakeError, MAX_HANDSHAKE_MESSAGE, OpenError, Plain, Protection, Session};
