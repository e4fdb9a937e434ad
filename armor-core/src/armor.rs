//! One ARMOR: its elements, and the dispatch of messages to them (thesis §3.2.1).
//!
//! A bundle's operations are delivered in order, each to its subscribers in composition order, by a direct call in this thread
//! (a mailbox crossing costs more than the handler, see ARCHITECTURE.md). When a bundle is done the message travels to the next one's destination.
//!
//! Invariants: effects are carried out after the handler has returned, never inside it; no bytes from outside can panic this
//! module; what cannot be delivered is dropped, counted and reported.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Instant;

use armor_proto::frame::Frame;
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::{Bundle, Flags, Message};
use armor_proto::operation::{AnyOperation, BundledOperation, Operation, OperationKind};
use armor_proto::reliable::{Due, Outstanding, Seen};

use crate::capture::CaptureStore;
use crate::context::{Context, Effect, Effects, Routed};
use crate::element::{AnyElement, Decoder, Element, Setup};
use crate::events::Event;
use crate::operations::{BundleAck, EventReport, Route, Shutdown, StateCaptured, StatusQuery, StatusReport};

/// An element in its place in an ARMOR.
pub struct ElementCell {
    index: usize,
    name: &'static str,
    element: RefCell<Box<dyn AnyElement>>,
    armor: Weak<Armor>,
    handled: Cell<u64>,
}

impl ElementCell {
    pub(crate) fn call<E: Element, R>(cell: &Weak<ElementCell>, work: impl FnOnce(&mut E, &mut Context<'_>) -> R) -> Option<R> {
        let cell = cell.upgrade()?;
        let armor = cell.armor.upgrade()?;
        let mut effects = armor.spare.take();
        let result = {
            let mut element = cell.element.borrow_mut();
            let mut context = armor.context(&cell, None, None, &mut effects);
            let element = element.as_any_mut().downcast_mut::<E>()?;
            work(element, &mut context)
        };
        armor.carry_out(&cell, effects);
        armor.drain();
        Some(result)
    }
}

/// What an ARMOR counts, for `armor status`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages whose top bundle was processed here.
    pub processed: Cell<u64>,
    /// Messages handed to a transport.
    pub routed: Cell<u64>,
    /// Messages dropped because no element hears one of their operations.
    pub unknown_operation: Cell<u64>,
    /// Messages or operations that could not be decoded.
    pub undecodable: Cell<u64>,
    /// Messages dropped because they were processed before.
    pub duplicates: Cell<u64>,
    /// Messages for which no transport knew a way.
    pub unroutable: Cell<u64>,
    /// Messages refused because the queue was full.
    pub overflow: Cell<u64>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Most messages that may wait for dispatch in one ARMOR; one more is dropped, counted and reported.
pub const MAX_QUEUE: usize = 65_536;

enum Queued {
    Message(Message),
    Frame(Frame),
}

/// One ARMOR in this process.
pub struct Armor {
    setup: Setup,
    cells: Vec<Rc<ElementCell>>,
    subscribers: HashMap<OperationKind, Vec<usize>>,
    decoders: HashMap<OperationKind, Decoder>,
    queue: RefCell<VecDeque<Queued>>,
    draining: Cell<bool>,
    spare: Cell<Effects>,
    next_message: Cell<u64>,
    outstanding: RefCell<Outstanding>,
    resend_armed: Cell<bool>,
    seen: RefCell<Seen>,
    counters: Counters,
    ending: Cell<bool>,
    spawner: Box<dyn Spawner>,
}

/// What the dispatcher needs of the thread that it runs in; [`crate::host`] gives it.
pub trait Spawner {
    /// Runs a task in this thread.
    fn spawn(&self, task: std::pin::Pin<Box<dyn Future<Output = ()>>>);
    /// Calls `Armor::timer` of the cell after a pause.
    fn timer(&self, pause: std::time::Duration, cell: Rc<ElementCell>, token: u64);
    /// Calls `Armor::resend` after a pause.
    fn resend(&self, pause: std::time::Duration, armor: Rc<Armor>);
    /// Ends the process's System.
    fn stop(&self);
}

impl Armor {
    /// Puts elements together; nothing runs yet.
    pub(crate) fn new(setup: Setup, elements: Vec<Box<dyn AnyElement>>, nonce: u32, spawner: Box<dyn Spawner>) -> Rc<Armor> {
        let mut subscribers: HashMap<OperationKind, Vec<usize>> = HashMap::new();
        let mut decoders = HashMap::new();
        for (index, element) in elements.iter().enumerate() {
            for subscription in element.subscriptions() {
                subscribers.entry(subscription.kind).or_default().push(index);
                decoders.insert(subscription.kind, subscription.decoder);
            }
        }
        for (kind, decoder) in own_decoders() {
            decoders.insert(kind, decoder);
        }
        Rc::new_cyclic(|armor| Armor {
            setup,
            cells: elements
                .into_iter()
                .enumerate()
                .map(|(index, element)| {
                    Rc::new(ElementCell {
                        index,
                        name: element.name(),
                        element: RefCell::new(element),
                        armor: armor.clone(),
                        handled: Cell::new(0),
                    })
                })
                .collect(),
            subscribers,
            decoders,
            queue: RefCell::default(),
            draining: Cell::new(false),
            spare: Cell::default(),
            next_message: Cell::new(u64::from(nonce) << 32),
            outstanding: RefCell::default(),
            resend_armed: Cell::new(false),
            seen: RefCell::default(),
            counters: Counters::default(),
            ending: Cell::new(false),
            spawner,
        })
    }

    /// The elements in composition order.
    pub(crate) fn cells(&self) -> &[Rc<ElementCell>] {
        &self.cells
    }

    /// Gives captured state back and starts every element in composition order.
    ///
    /// # Errors
    /// The first element that cannot start, and why.
    pub(crate) fn start(&self, captured: Option<&CaptureStore>) -> Result<(), (&'static str, String)> {
        for cell in &self.cells {
            if let Some(state) = captured.and_then(|store| store.load(cell.name))
                && let Err(reason) = cell.element.borrow_mut().restore(&state)
            {
                self.report(Event::new("state-refused").with("element", cell.name).with("reason", reason));
            }
            let mut effects = Effects::new();
            let started = {
                let mut element = cell.element.borrow_mut();
                element.start(&mut self.context(cell, None, None, &mut effects))
            };
            self.carry_out(cell, effects);
            started.map_err(|reason| (cell.name, reason))?;
        }
        self.drain();
        Ok(())
    }

    fn context<'a>(
        &'a self,
        cell: &Rc<ElementCell>,
        message: Option<&'a mut Message>,
        routed: Option<&'a mut Option<Routed>>,
        effects: &'a mut Effects,
    ) -> Context<'a> {
        Context { setup: &self.setup, message, routed, effects, cell: Rc::downgrade(cell) }
    }

    /// A timer of an element has run out.
    pub(crate) fn timer(&self, cell: &Rc<ElementCell>, token: u64) {
        let mut effects = self.spare.take();
        cell.element.borrow_mut().timer(token, &mut self.context(cell, None, None, &mut effects));
        self.carry_out(cell, effects);
        self.drain();
    }

    /// Whom the cell belongs to.
    pub(crate) fn of(cell: &ElementCell) -> Option<Rc<Armor>> {
        cell.armor.upgrade()
    }

    fn carry_out(&self, cell: &Rc<ElementCell>, mut effects: Effects) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(message) => self.enqueue(Queued::Message(self.stamp(message))),
                Effect::SendReliable(message) => self.send_reliable(message),
                Effect::Received(frame) => self.enqueue(Queued::Frame(frame)),
                Effect::Timer(pause, token) => self.spawner.timer(pause, Rc::clone(cell), token),
                Effect::Spawn(task) => self.spawner.spawn(task),
                Effect::Event(event) => self.report(event),
                Effect::StateChanged => self.captured(cell),
                Effect::Shutdown => self.shutdown(),
                Effect::FailStop(reason) => fail_stop(&self.setup.name, cell.name, &reason),
            }
        }
        self.spare.set(effects);
    }

    fn captured(&self, cell: &Rc<ElementCell>) {
        if !self.subscribers.contains_key(&StateCaptured::KIND) {
            return;
        }
        // An element that is being handled right now reports after its handler has returned, so this borrow is free.
        let Ok(element) = cell.element.try_borrow() else { return };
        if let Some(state) = element.capture() {
            let message = Message::to(self.setup.armor, StateCaptured { element: cell.name.to_owned(), state });
            self.enqueue(Queued::Message(self.stamp(message)));
        }
    }

    fn stamp(&self, mut message: Message) -> Message {
        if message.source == ArmorId::NONE {
            message.source = self.setup.armor;
        }
        if message.id == MessageId(0) {
            let id = self.next_message.get().wrapping_add(1);
            self.next_message.set(id);
            message.id = MessageId(id);
        }
        message
    }

    /// Thesis §5.5: a self-addressed acknowledgement bundle, a copy kept, a timer.
    fn send_reliable(&self, message: Message) {
        let mut message = self.stamp(message);
        message.flags = Flags(message.flags.0 | Flags::EXPECT_ACK.0);
        let id = message.id;
        let message = message.followed_by(Bundle::new(self.setup.armor, BundleAck { message: id }));
        if self.outstanding.borrow_mut().sent(message.clone(), Instant::now()).is_err() {
            count(&self.counters.overflow);
            self.report(Event::new("message-refused").with("reason", "too many messages wait for acknowledgement"));
            return;
        }
        self.enqueue(Queued::Message(message));
        self.arm_resend();
    }

    fn arm_resend(&self) {
        if self.resend_armed.get() {
            return;
        }
        if let Some(due) = self.outstanding.borrow().next_due()
            && let Some(armor) = self.cells.first().and_then(|cell| cell.armor.upgrade())
        {
            self.resend_armed.set(true);
            self.spawner.resend(due.saturating_duration_since(Instant::now()), armor);
        }
    }

    /// Sends what was not acknowledged in time again.
    pub(crate) fn resend(&self) {
        self.resend_armed.set(false);
        let due = self.outstanding.borrow_mut().due(Instant::now());
        for due in due {
            match due {
                Due::Resend(message) => self.enqueue(Queued::Message(message)),
                Due::GivenUp(message) => {
                    self.report(Event::new("message-given-up").with("destination", message.destination().unwrap_or(ArmorId::NONE)))
                }
            }
        }
        self.arm_resend();
        self.drain();
    }

    /// Sends an event to the FTM's event log and writes it to this ARMOR's own log.
    fn report(&self, mut event: Event) {
        event.armor.clone_from(&self.setup.name);
        tracing::info!(target: "armor::event", what = %event.what, values = ?event.values);
        let heard_here = self.subscribers.contains_key(&EventReport::KIND);
        let destination = if heard_here { self.setup.armor } else { ArmorId::FTM };
        if destination == self.setup.armor && !heard_here {
            // An FTM without an event log: sent to itself it would be an unknown operation, which is an event again.
            return;
        }
        self.enqueue(Queued::Message(self.stamp(Message::to(destination, EventReport { event }))));
    }

    fn enqueue(&self, queued: Queued) {
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= MAX_QUEUE {
            count(&self.counters.overflow);
            tracing::warn!("a message was dropped: {MAX_QUEUE} wait already");
            return;
        }
        queue.push_back(queued);
    }

    /// Dispatches until nothing waits.
    fn drain(&self) {
        if self.draining.replace(true) {
            return;
        }
        loop {
            let next = self.queue.borrow_mut().pop_front();
            match next {
                Some(Queued::Message(message)) => self.process(message),
                Some(Queued::Frame(frame)) => self.receive(frame),
                None => break,
            }
        }
        self.draining.set(false);
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
                    count(&self.counters.duplicates);
                    message.pop();
                }
                self.process(message);
            }
            Err(error) => {
                count(&self.counters.undecodable);
                self.report(Event::new("frame-refused").with("source", frame.source).with("reason", error));
            }
        }
    }

    /// Processes bundles that are for this ARMOR, and lets the message travel on.
    fn process(&self, mut message: Message) {
        loop {
            let Some(destination) = message.destination() else { return };
            if destination != self.setup.armor {
                self.route(Routed::Message(message));
                return;
            }
            let Some(operation) = message.top_mut().and_then(|bundle| bundle.operations.pop_front()) else {
                message.pop();
                count(&self.counters.processed);
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
                    cell.handled.set(cell.handled.get() + 1);
                    cell.element.borrow_mut().handle(&*operation, &mut self.context(cell, Some(&mut message), None, &mut effects));
                    self.carry_out(cell, effects);
                }
            }
        }
    }

    fn decode(&self, operation: BundledOperation) -> Result<Box<dyn AnyOperation>, Event> {
        match operation {
            BundledOperation::Typed(typed) => {
                let kind = typed.kind();
                if self.decoders.contains_key(&kind) {
                    return Ok(typed);
                }
                count(&self.counters.unknown_operation);
                Err(Event::new("unknown-operation").with("operation", typed.name()))
            }
            BundledOperation::Encoded { kind, body } => {
                let Some(decoder) = self.decoders.get(&kind) else {
                    count(&self.counters.unknown_operation);
                    return Err(Event::new("unknown-operation").with("operation", format!("{:#06x}", kind.0)));
                };
                decoder(&body).map_err(|error| {
                    count(&self.counters.undecodable);
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
            self.enqueue(Queued::Message(self.stamp(Message::to(message.source, report))));
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
            cell.element.borrow_mut().handle(&Route {}, &mut self.context(cell, None, Some(&mut routed), &mut effects));
            self.carry_out(cell, effects);
            if routed.is_none() {
                count(&self.counters.routed);
                return;
            }
        }
        count(&self.counters.unroutable);
        tracing::debug!(%destination, %source, "no way to the destination of a message");
    }

    /// State of the ARMOR and of its elements.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let elements: serde_json::Map<String, serde_json::Value> = self
            .cells
            .iter()
            .map(|cell| {
                let status = cell.element.try_borrow().map_or(serde_json::Value::Null, |element| element.status());
                (cell.name.to_owned(), serde_json::json!({ "handled": cell.handled.get(), "state": status }))
            })
            .collect();
        serde_json::json!({
            "armor": self.setup.armor.to_string(), "name": self.setup.name, "kind": self.setup.kind,
            "pid": std::process::id(), "run_dir": self.setup.run_dir,
            "counters": {
                "processed": self.counters.processed.get(), "routed": self.counters.routed.get(),
                "unknown_operation": self.counters.unknown_operation.get(), "undecodable": self.counters.undecodable.get(),
                "duplicates": self.counters.duplicates.get(), "unroutable": self.counters.unroutable.get(),
                "overflow": self.counters.overflow.get(), "unacknowledged": self.outstanding.borrow().len(),
            },
            "elements": elements,
        })
    }

    /// Ends the ARMOR in an orderly way: every element is told, in reverse order.
    pub(crate) fn shutdown(&self) {
        if self.ending.replace(true) {
            return;
        }
        for cell in self.cells.iter().rev() {
            if let Ok(mut element) = cell.element.try_borrow_mut() {
                let mut effects = Effects::new();
                element.stop(&mut self.context(cell, None, None, &mut effects));
                drop(element);
                self.carry_out(cell, effects);
            }
        }
        self.spawner.stop();
    }

    /// Position of a cell, for tests and tracing.
    pub(crate) fn position(cell: &ElementCell) -> usize {
        cell.index
    }
}

fn own_decoders() -> [(OperationKind, Decoder); 3] {
    fn decoder<O: Operation>() -> (OperationKind, Decoder) {
        (O::KIND, |bytes| Ok(Box::new(armor_proto::operation::decode::<O>(bytes)?)))
    }
    [decoder::<BundleAck>(), decoder::<StatusQuery>(), decoder::<Shutdown>()]
}

/// Fail-stop (thesis §3.3): the process ends at once, without unwinding; recovery is by restart from captured state.
fn fail_stop(armor: &str, element: &str, reason: &str) -> ! {
    tracing::error!("fail-stop of {armor}: {element}: {reason}");
    eprintln!("armor: fail-stop of {armor}: {element}: {reason}");
    std::process::abort()
}

#[cfg(test)]
mod tests;
