//! Dispatch of messages to elements (thesis §3.2.1).
//!
//! A bundle's operations are delivered in order, each to its subscribers in composition order, by a direct call in this thread
//! (a mailbox crossing costs more than the handler, see ARCHITECTURE.md). When a bundle is done the message travels to the next one's destination.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use armor_proto::frame::Frame;
use armor_proto::message::{Flags, Message};
use armor_proto::operation::{AnyOperation, BundledOperation, Operation};

use super::Armor;
use crate::context::Routed;
use crate::events::Event;
use crate::operations::{BundleAck, Route, Shutdown, StatusQuery, StatusReport};

/// Most messages that may wait for dispatch in one ARMOR; one more is dropped, counted and reported.
pub const MAX_QUEUE: usize = 65_536;

/// What waits for dispatch.
pub(super) enum Queued {
    Message(Message),
    Frame(Frame),
}

/// Messages that wait for dispatch, in the order in which they came.
#[derive(Default)]
pub(super) struct Queue {
    waiting: RefCell<VecDeque<Queued>>,
    draining: Cell<bool>,
}

impl Armor {
    pub(super) fn enqueue(&self, queued: Queued) {
        let mut waiting = self.queue.waiting.borrow_mut();
        if waiting.len() >= MAX_QUEUE {
            self.counters.overflow.count();
            tracing::warn!("a message was dropped: {MAX_QUEUE} wait already");
            return;
        }
        waiting.push_back(queued);
    }

    /// Dispatches until nothing waits.
    pub(super) fn drain(&self) {
        if self.queue.draining.replace(true) {
            return;
        }
        loop {
            let next = self.queue.waiting.borrow_mut().pop_front();
            let Some(next) = next else { break };
            self.counters.taken.count();
            match next {
                Queued::Message(message) => self.process(message),
                Queued::Frame(frame) => self.receive(frame),
            }
        }
        self.queue.draining.set(false);
    }

    fn receive(&self, frame: Frame) {
        if frame.destination != self.setup.armor {
            self.route(Routed::Frame(frame));
            return;
        }
        match frame.decode() {
            Ok(mut message) => {
                if message.flags.contains(Flags::EXPECT_ACK)
                    && message.source != self.setup.armor
                    && !self.seen.borrow_mut().is_new(message.source, message.id)
                {
                    // Processed before; only the acknowledgement was lost.
                    self.counters.duplicates.count();
                    message.pop();
                }
                self.process(message);
            }
            Err(error) => {
                self.counters.undecodable.count();
                self.report(Event::new("frame-refused").with("source", frame.source).with("reason", error));
            }
        }
    }

    /// Processes bundles that are for this ARMOR, and lets the message travel on.
    fn process(&self, mut message: Message) {
        loop {
            let Some(destination) = message.destination() else {
                self.counters.finished.count();
                return;
            };
            if destination != self.setup.armor {
                self.route(Routed::Message(message));
                return;
            }
            let Some(operation) = message.top_mut().and_then(|bundle| bundle.operations.pop_front()) else {
                message.pop();
                self.counters.processed.count();
                continue;
            };
            let operation = match self.decode(operation) {
                Ok(operation) => operation,
                Err(why) => {
                    self.report(why.with("source", message.source));
                    return;
                }
            };
            self.own(&*operation, &message);
            if let Some(subscribers) = self.subscribers.get(&operation.kind()) {
                for &index in subscribers {
                    let cell = &self.cells[index];
                    let mut effects = self.spare.take();
                    cell.handle(&*operation, &self.setup, Some(&mut message), None, &mut effects);
                    self.carry_out(cell, effects);
                }
            }
        }
    }

    fn decode(&self, operation: BundledOperation) -> Result<Box<dyn AnyOperation>, Event> {
        match operation {
            BundledOperation::Typed(typed) => {
                if self.decoders.contains_key(&typed.kind()) {
                    return Ok(typed);
                }
                self.counters.unknown_operation.count();
                Err(Event::new("unknown-operation").with("operation", typed.name()))
            }
            BundledOperation::Encoded { kind, body } => {
                let Some(decoder) = self.decoders.get(&kind) else {
                    self.counters.unknown_operation.count();
                    return Err(Event::new("unknown-operation").with("operation", format!("{:#06x}", kind.0)));
                };
                decoder(&body).map_err(|error| {
                    self.counters.undecodable.count();
                    Event::new("operation-refused").with("operation", format!("{:#06x}", kind.0)).with("reason", error)
                })
            }
        }
    }

    /// What the ARMOR itself answers, whatever its elements are.
    fn own(&self, operation: &dyn AnyOperation, message: &Message) {
        if let Some(ack) = operation.as_any().downcast_ref::<BundleAck>() {
            self.outstanding.borrow_mut().acknowledged(ack.message);
        } else if operation.as_any().is::<StatusQuery>() {
            let report = StatusReport { armor: self.setup.armor, json: self.status().to_string() };
            self.send(Message::to(message.source, report));
        } else if operation.as_any().is::<Shutdown>() {
            self.shutdown();
        }
    }

    fn route(&self, routed: Routed) {
        let destination = routed.destination();
        let source = routed.source();
        let mut routed = Some(routed);
        for &index in self.subscribers.get(&Route::KIND).map_or(&[][..], Vec::as_slice) {
            let cell = &self.cells[index];
            let mut effects = self.spare.take();
            cell.handle(&Route {}, &self.setup, None, Some(&mut routed), &mut effects);
            self.carry_out(cell, effects);
            if routed.is_none() {
                self.counters.routed.count();
                return;
            }
        }
        self.counters.unroutable.count();
        tracing::debug!(%destination, %source, "no way to the destination of a message");
    }
}
