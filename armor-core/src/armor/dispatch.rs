//! Dispatch of messages to elements (thesis §3.2.1).
//!
//! A bundle's operations are delivered in order, each to its subscribers in composition order, by a direct call in this thread
//! (a mailbox crossing costs more than the handler, see ARCHITECTURE.md). When a bundle is done the message travels to the next one's
//! destination. At an element with an Arbiter of its own the message is parked until that has handled its operation (see [`crate::arbiter`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use armor_proto::frame::Frame;
use armor_proto::message::{Flags, Message};
use armor_proto::operation::{AnyOperation, BundledOperation, Operation, OperationKind};

use super::visit::{Arrival, Visit};
use super::{Armor, Place};
use crate::arbiter::{Parked, Remote};
use crate::context::Routed;
use crate::events::Event;
use crate::operations::{Route, SendReliable, Shutdown, StateCaptured, StatusQuery, StatusReport};

/// Most messages that may wait for dispatch in one ARMOR; one more is dropped, counted and reported.
pub const MAX_QUEUE: usize = 65_536;

/// Most operations of one message that are processed while it is in one ARMOR: as many as the largest message brings. One that has more, because
/// its operations push further ones without end, is dropped, counted and reported.
pub const MAX_OPERATIONS: u32 = (Message::MAX_BUNDLES * Message::MAX_OPERATIONS) as u32;

/// Messages and operations after which the dispatcher lets sockets, timers and tasks have the thread, although more wait.
const SLICE: u64 = 4096;

/// Operations that a dispatcher makes itself. From outside they are refused: nobody else captures an element's state, for example.
const INSIDE_ONLY: [OperationKind; 3] = [Route::KIND, SendReliable::KIND, StateCaptured::KIND];

/// What waits for dispatch.
pub(super) enum Queued {
    Message(Message),
    Frame(Frame),
    Then(Box<dyn FnOnce()>),
}

/// Messages that wait for dispatch, in the order in which they came.
#[derive(Default)]
pub(super) struct Queue {
    waiting: RefCell<VecDeque<Queued>>,
    draining: Cell<bool>,
    /// Whether a task goes on with what waits.
    later: Cell<bool>,
    /// Messages and operations dispatched so far.
    dispatched: Cell<u64>,
}

impl Queue {
    fn count(&self) {
        self.dispatched.set(self.dispatched.get() + 1);
    }
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

    /// The end of the ARMOR is done in its turn, however much waits.
    pub(super) fn enqueue_last(&self, work: impl FnOnce() + 'static) {
        self.queue.waiting.borrow_mut().push_back(Queued::Then(Box::new(work)));
    }

    /// Dispatches until nothing waits. After a slice of work the rest is left to a task, so that elements that send to themselves without
    /// end hold up nothing else.
    pub(super) fn drain(&self) {
        if self.queue.draining.replace(true) {
            return;
        }
        let until = self.queue.dispatched.get() + SLICE;
        loop {
            if self.queue.dispatched.get() >= until {
                self.drain_later();
                break;
            }
            let next = self.queue.waiting.borrow_mut().pop_front();
            let Some(next) = next else { break };
            self.queue.count();
            self.counters.taken.count();
            match next {
                Queued::Message(message) => self.begin(Visit::of(message)),
                Queued::Frame(frame) => self.receive(frame),
                Queued::Then(work) => work(),
            }
        }
        self.queue.draining.set(false);
    }

    fn drain_later(&self) {
        if self.queue.later.replace(true) {
            return;
        }
        let armor = self.this.clone();
        self.spawner.spawn(Box::pin(async move {
            tokio::task::yield_now().await;
            if let Some(armor) = armor.upgrade() {
                armor.queue.later.set(false);
                armor.drain();
            }
        }));
    }

    fn receive(&self, frame: Frame) {
        if frame.destination != self.setup.armor {
            self.route(Routed::Frame(frame));
            return;
        }
        match frame.decode() {
            Ok(message) => {
                let mut visit = Visit::of_frame(message, &frame);
                // What this ARMOR began itself has come home: its first bundle was processed elsewhere.
                if visit.resumes() || visit.message.source == self.setup.armor {
                    self.proceed(visit, None);
                } else {
                    self.begin(visit);
                }
            }
            Err(error) => {
                self.counters.undecodable.count();
                self.complain(Event::new("frame-refused").with("source", frame.source).with("reason", error));
            }
        }
    }

    /// Begins to process a message, unless it was or is being processed already.
    fn begin(&self, mut visit: Visit) {
        if visit.message.flags.contains(Flags::EXPECT_ACK) && visit.message.destination() == Some(self.setup.armor) {
            // It is taken as a whole or not at all: what is noted as arrived is not processed when it is sent again.
            if let Some(remote) = self.without_room(&visit) {
                self.refuse(remote);
                return;
            }
            match self.arrivals.borrow_mut().arrived(&visit.message) {
                Arrival::New => {}
                Arrival::Unfinished => {
                    self.counters.repeated.count();
                    return;
                }
                Arrival::Done => {
                    self.counters.duplicates.count();
                    visit.message.pop();
                }
            }
        }
        self.proceed(visit, None);
    }

    /// Processes bundles that are for this ARMOR, and lets the message travel on. `resumed` is an operation, and the position
    /// among its subscribers from which it is still to be delivered.
    pub(super) fn proceed(&self, mut visit: Visit, mut resumed: Option<(Box<dyn AnyOperation>, usize)>) {
        let unfinished = visit.unfinished;
        loop {
            let (operation, from) = match resumed.take() {
                Some(resumed) => resumed,
                None => {
                    let Some(destination) = visit.message.destination() else {
                        self.counters.finished.count();
                        break;
                    };
                    if destination != self.setup.armor {
                        self.route(Routed::Message(visit.leave()));
                        break;
                    }
                    let Some(operation) = visit.message.top_mut().and_then(|bundle| bundle.operations.pop_front()) else {
                        visit.message.pop();
                        visit.current = None;
                        self.counters.processed.count();
                        continue;
                    };
                    visit.current = Some(visit.message.stack().len() - 1);
                    if visit.operations >= MAX_OPERATIONS {
                        self.counters.runaway.count();
                        let runaway =
                            Event::new("message-runaway").with("source", visit.message.source).with("operations", visit.operations);
                        self.complain(runaway.with("operation", format!("{:#06x}", operation.kind().0)));
                        break;
                    }
                    visit.operations += 1;
                    self.queue.count();
                    match self.decode(operation) {
                        Ok(operation) => {
                            self.own(&*operation, &visit.message);
                            (operation, 0)
                        }
                        Err(why) => {
                            self.complain(why.with("source", visit.message.source));
                            break;
                        }
                    }
                }
            };
            let subscribers = self.subscribers.get(&operation.kind()).map_or(&[][..], Vec::as_slice);
            for (position, &index) in subscribers.iter().enumerate().skip(from) {
                match &self.places[index] {
                    Place::Here(cell) => {
                        let mut effects = self.spare.take();
                        cell.handle(&*operation, &self.setup, Some(&mut visit.message), None, &mut effects);
                        self.carry_out(cell, effects);
                    }
                    Place::Away(remote) => {
                        self.park(remote, index, visit, operation, position + 1);
                        return;
                    }
                }
            }
        }
        if let Some(key) = unfinished {
            self.arrivals.borrow_mut().left(key);
        }
    }

    /// Sends a message to an element in another thread; the dispatcher goes on when it has come back.
    fn park(&self, remote: &Remote, index: usize, mut visit: Visit, operation: Box<dyn AnyOperation>, next: usize) {
        let bytes = visit.bytes();
        if !remote.has_room(bytes) {
            if let Some(key) = visit.unfinished {
                self.arrivals.borrow_mut().left(key);
            }
            self.refuse(remote);
            return;
        }
        self.arrivals.borrow_mut().lasts(&mut visit);
        if remote.handle(Parked { visit, operation, next, bytes }).is_err() {
            self.thread_is_gone(remote);
        }
        self.watch(index, remote);
    }

    fn refuse(&self, remote: &Remote) {
        self.counters.congested.count();
        if let Some(event) = remote.refused() {
            self.complain(event);
        }
    }

    /// An element in another thread that hears an operation of the message's next bundle and has no room for it.
    fn without_room(&self, visit: &Visit) -> Option<&Remote> {
        if !self.has_remotes {
            return None;
        }
        let operations = &visit.message.top()?.operations;
        let hearing = operations.iter().filter_map(|operation| self.subscribers.get(&operation.kind())).flatten();
        hearing
            .filter_map(|&index| match &self.places[index] {
                Place::Here(_) => None,
                Place::Away(remote) => Some(remote),
            })
            .find(|remote| !remote.has_room(visit.bytes()))
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
            BundledOperation::Encoded { kind, .. } if INSIDE_ONLY.contains(&kind) => {
                self.counters.undecodable.count();
                let operation = format!("{:#06x}", kind.0);
                Err(Event::new("operation-refused").with("operation", operation).with("reason", "it is for use inside one ARMOR"))
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
        if operation.as_any().is::<StatusQuery>() {
            let report = StatusReport { armor: self.setup.armor, json: self.status().to_string() };
            self.send(Message::to(message.source, report));
        } else if operation.as_any().is::<Shutdown>() {
            self.shutdown();
        }
    }

    fn route(&self, routed: Routed) {
        let (destination, source) = (routed.destination(), routed.source());
        if self.offer(&Route {}, routed) {
            self.counters.routed.count();
        } else {
            self.counters.unroutable.count();
            tracing::debug!(%destination, %source, "no way to the destination of a message");
        }
    }

    /// Offers a message to those that hear the operation, until one takes it; false when none does.
    pub(super) fn offer<O: Operation>(&self, operation: &O, offered: Routed) -> bool {
        let mut offered = Some(offered);
        for &index in self.subscribers.get(&O::KIND).map_or(&[][..], Vec::as_slice) {
            // A composition gives no Arbiter to an element that takes messages.
            let Place::Here(cell) = &self.places[index] else { continue };
            let mut effects = self.spare.take();
            cell.handle(operation, &self.setup, None, Some(&mut offered), &mut effects);
            self.carry_out(cell, effects);
            if offered.is_none() {
                return true;
            }
        }
        false
    }
}
