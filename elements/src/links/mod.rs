//! Links: what the elements that carry messages between processes share (thesis §5.4).
//!
//! A [`Link`] carries frames over one connected socket, in the element's own thread; [`Waiting`] keeps messages whose way is
//! not known or not open yet; [`Locations`] remembers which daemon an ARMOR was heard from; [`Backoff`] paces reconnecting;
//! [`security::Security`] knows the keys, [`answered`] and [`dialled`] make a [`Channel`] out of a connection.
//!
//! Invariant: everything here is bounded; nothing that a peer sends can do more than close its own link.

mod backoff;
pub mod child;
pub mod daemons;
pub mod datagrams;
mod handshake;
mod link;
mod locations;
mod node_addresses;
pub mod security;
mod stream;
mod told_address;
mod waiting;

pub use backoff::Backoff;
pub use handshake::{Channel, Greeting, Greetings, NoHandshake, answered, dialled};
pub use link::{Closed, Link, LinkId, LinkOwner, OUT_LIMIT, Sent};
pub use locations::Locations;
pub use node_addresses::node_addresses;
pub use stream::{Acknowledged, Stream, acknowledged};
pub use told_address::write_address;
pub use waiting::Waiting;

use armor_proto::frame::{Encoded, Frame, FrameError};
use armor_proto::message::Message;
use armor_proto::operation::{BundledOperation, Operation};
use bytes::BytesMut;

/// The first operation of a frame's top bundle when it is of type `O`: how the first frame of a link says who speaks.
#[must_use]
pub fn introduction<O: Operation>(frame: &Frame) -> Option<O> {
    let message = frame.decode().ok()?;
    match message.top()?.operations.front()? {
        BundledOperation::Encoded { kind, body } if *kind == O::KIND => armor_proto::operation::decode(body).ok(),
        _ => None,
    }
}

/// Encodes a message that is written to a link beside the dispatcher (introductions).
///
/// # Errors
/// When the message cannot be encoded.
pub fn encode(message: &Message) -> Result<Encoded, FrameError> {
    armor_proto::frame::encode(message, &mut BytesMut::new())
}

/// An encoded message as the frame that its receiver would have got, to hand it back to the own dispatcher.
#[must_use]
pub fn as_frame(encoded: &Encoded) -> Option<Frame> {
    let mut bytes = BytesMut::with_capacity(encoded.len());
    bytes.extend_from_slice(&encoded.head);
    bytes.extend_from_slice(&encoded.payload);
    Frame::take(&mut bytes).ok().flatten()
}
