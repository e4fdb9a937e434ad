//! A message while it is in this ARMOR, and which acknowledged messages were here before.
//!
//! Duplicates are dropped here and not by an element: whether a message is new has to be known before the first of its
//! operations is delivered to anybody, and elements are given operations, not messages.

use std::collections::HashSet;

use armor_proto::frame::Frame;
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::{Bundle, Flags, Message};
use armor_proto::operation::Operation as _;
use armor_proto::reliable::Seen;

use crate::operations::BundleResumed;

/// By what acknowledged messages are told apart.
pub(super) type Key = (ArmorId, MessageId);

/// A message while it is in this ARMOR.
pub(crate) struct Visit {
    pub(crate) message: Message,
    /// Size of the frame in which it came; 0 when it was made here.
    pub(super) frame_bytes: usize,
    /// Where in the stack, from below, the bundle is of which an operation was processed last.
    pub(super) current: Option<usize>,
    /// Operations that were processed.
    pub(super) operations: u32,
    /// As what [`Arrivals`] knows that it is not done yet. Handlers may change the message's own source and number.
    pub(super) unfinished: Option<Key>,
}

impl Visit {
    /// Of a message that was made here.
    pub(crate) fn of(message: Message) -> Visit {
        Visit { message, frame_bytes: 0, current: None, operations: 0, unfinished: None }
    }

    /// Of a message that came in a frame.
    pub(super) fn of_frame(message: Message, frame: &Frame) -> Visit {
        Visit { message, frame_bytes: frame.bytes().len(), current: None, operations: 0, unfinished: None }
    }

    /// The message leaves. When it has bundles on top of one that is not done here, that one is marked: the message comes back to it, and
    /// must not be taken for a copy of one that was here before.
    pub(super) fn leave(mut self) -> Message {
        let Some(current) = self.current else { return self.message };
        let on_top: Vec<Bundle> = (current + 1..self.message.stack().len()).filter_map(|_| self.message.pop()).collect();
        if !on_top.is_empty()
            && self.message.flags.contains(Flags::EXPECT_ACK)
            && let Some(rest) = self.message.top_mut()
            && rest.operations.len() < Message::MAX_OPERATIONS
        {
            rest.operations.push_front(BundleResumed {}.into());
        }
        for bundle in on_top.into_iter().rev() {
            // It was there before, so there is room.
            let _ = self.message.push(bundle);
        }
        self.message
    }

    /// Whether the message comes back to a bundle that was marked so; the mark is taken off.
    pub(super) fn resumes(&mut self) -> bool {
        let Some(bundle) = self.message.top_mut() else { return false };
        let marked = bundle.operations.front().is_some_and(|operation| operation.kind() == BundleResumed::KIND);
        if marked {
            bundle.operations.pop_front();
        }
        marked
    }

    /// Bytes that it holds on to while it is parked.
    pub(super) fn bytes(&self) -> usize {
        self.frame_bytes.max(self.message.payload.len())
    }
}

/// What is known of an acknowledged message that arrives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It was not here before.
    New,
    /// It is still being processed: it will be acknowledged when that is done.
    Unfinished,
    /// It was processed; only the acknowledgement was lost.
    Done,
}

/// Acknowledged messages that have arrived.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    seen: Seen,
    /// Those that are parked: an element in another thread works on them. At most as many as may be parked.
    unfinished: HashSet<Key>,
}

impl Arrivals {
    pub(super) fn arrived(&mut self, message: &Message) -> Arrival {
        if self.unfinished.contains(&key(message)) {
            Arrival::Unfinished
        } else if self.seen.is_new(message.source, message.id) {
            Arrival::New
        } else {
            Arrival::Done
        }
    }

    /// The visit lasts longer than the call that began it.
    pub(super) fn lasts(&mut self, visit: &mut Visit) {
        if visit.message.flags.contains(Flags::EXPECT_ACK) && visit.unfinished.is_none() {
            let key = key(&visit.message);
            visit.unfinished = self.unfinished.insert(key).then_some(key);
        }
    }

    /// Such a visit is over.
    pub(super) fn left(&mut self, key: Key) {
        self.unfinished.remove(&key);
    }

    /// How many such visits there are.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished.len()
    }
}

fn key(message: &Message) -> Key {
    (message.source, message.id)
}
