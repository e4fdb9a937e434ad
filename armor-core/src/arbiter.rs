//! Elements with an Arbiter (a thread) of their own: `arbiter = true` in their TOML.
//!
//! An operation for such an element takes its whole message along. The message is parked: it travels to the element's thread,
//! the handler works on it as anywhere else, and it comes back with what the element asked for; then the dispatcher goes on
//! with the operation's next subscriber. Meanwhile other messages are processed.
//!
//! What order holds:
//! - Within a message nothing changes: operations in order, each to its subscribers in composition order, one after the other.
//! - What is dispatched to one element reaches it in the order of dispatch, and comes back in that order, together with what
//!   the element's timers and tasks ask for. So messages with the same operations keep their order everywhere.
//! - A parked message is overtaken by messages that do not visit the same element. An element further down its way sees them first.
//!
//! `Remote` is the element as the dispatcher sees it, `resident` is its end of the way, `crossing` the way itself.
//!
//! Invariant: once the ARMOR has started, its main thread never waits for an element's thread; what an element's thread asks for
//! beyond [`MAX_ANSWERS`] makes that thread wait. So there is no circle of threads that wait for each other.

pub(crate) mod crossing;
pub(crate) mod resident;

use std::cell::Cell;
use std::sync::Arc;

use armor_proto::frame::Frame;
use armor_proto::message::Message;
use armor_proto::operation::AnyOperation;
use dashmap::DashMap;

use crate::armor::Visit;
use crate::composition::Blueprint;
use crate::element::Subscription;
use crate::events::Event;
use crossing::{Entrance, crossing};
use resident::Departure;

/// Most messages that are parked at one element with an Arbiter of its own; one more is dropped, counted and reported.
pub const MAX_PARKED: usize = 4096;
/// Most bytes of frames and payloads parked at one such element; what exceeds them is dropped, counted and reported.
pub const MAX_PARKED_BYTES: usize = 64 << 20;
/// Most answers of all such elements that wait for the main thread; an element that has one more waits until there is room.
pub const MAX_ANSWERS: usize = 1024;
/// An element that answers nothing for so many seconds, with work before it, hangs: the ARMOR fails. As long as a sender waits for an
/// acknowledgement.
pub const HANGS_AFTER_S: u32 = 60;

/// A message that stands still in the dispatcher while one of its operations is with an element in another thread.
pub(crate) struct Parked {
    pub(crate) visit: Visit,
    pub(crate) operation: Box<dyn AnyOperation>,
    /// Position among the operation's subscribers at which the dispatcher goes on.
    pub(crate) next: usize,
    pub(crate) bytes: usize,
}

/// What the dispatcher asks of an element in another thread.
pub(crate) enum Asked {
    /// Take captured state back and start.
    Start(Box<Start>),
    /// Handle an operation.
    Handle(Box<Parked>),
    /// The ARMOR ends.
    Stop,
}

/// The start of an element. Its answer does not go through the crossing: nothing is carried out before all elements have started.
pub(crate) struct Start {
    pub(crate) captured: Option<Vec<u8>>,
    pub(crate) answer: crossbeam_channel::Sender<Started>,
}

/// How a start went.
pub(crate) struct Started {
    pub(crate) restored: Result<(), String>,
    pub(crate) started: Result<(), String>,
    pub(crate) requests: Vec<Request>,
}

/// What comes from an element in another thread.
pub(crate) struct Answer {
    /// Its place in the composition.
    pub(crate) index: usize,
    /// What it asks for, to be carried out before anything else.
    pub(crate) requests: Vec<Request>,
    pub(crate) to: AnswerTo,
}

/// What an answer answers.
pub(crate) enum AnswerTo {
    /// An operation: its message comes back.
    Handle(Box<Parked>),
    /// The element has stopped.
    Stop,
    /// A timer or a task of the element.
    Itself,
}

/// What an element in another thread asks the main thread to do; the effects that cross.
pub(crate) enum Request {
    Send(Message),
    SendReliable(Message),
    Received(Frame),
    Event(Event),
    Complaint(Event),
    Captured(Vec<u8>),
    Shutdown,
}

/// Status of elements in other threads, by name: they write it, the main thread shows it.
pub(crate) type Statuses = DashMap<&'static str, serde_json::Value>;

/// An element in another thread, as the dispatcher sees it.
pub(crate) struct Remote {
    name: &'static str,
    subscriptions: Vec<Subscription>,
    inbox: Entrance<Asked>,
    statuses: Arc<Statuses>,
    parked: Cell<usize>,
    parked_bytes: Cell<usize>,
    stopping: Cell<bool>,
    handled: Cell<u64>,
    answered: Cell<u64>,
    congested: Cell<bool>,
    watched: Cell<bool>,
}

/// The element's thread is gone.
pub(crate) struct Gone;

/// Whether an element in another thread gets on with its work.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pulse {
    /// Nothing is asked of it.
    Idle,
    /// It has answered so much by now.
    Works(u64),
    /// It has not answered since, although something is asked of it.
    Silent,
}

impl Remote {
    /// An element that is to be built in another thread: the dispatcher's end, and what travels there.
    pub(crate) fn new(blueprint: Blueprint, answers: Entrance<Answer>, statuses: Arc<Statuses>) -> (Remote, Departure) {
        // Room for everything that may be parked, the start and the stop: the main thread never finds it full.
        let (inbox, asked) = crossing(MAX_PARKED + 2);
        let kind = blueprint.kind();
        let remote = Remote {
            name: kind.name,
            subscriptions: kind.subscribes.clone(),
            inbox,
            statuses: Arc::clone(&statuses),
            parked: Cell::new(0),
            parked_bytes: Cell::new(0),
            stopping: Cell::new(false),
            handled: Cell::new(0),
            answered: Cell::new(0),
            congested: Cell::new(false),
            watched: Cell::new(false),
        };
        (remote, Departure { blueprint, asked, answers, statuses })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn subscriptions(&self) -> &[Subscription] {
        &self.subscriptions
    }

    /// Starts the element and waits for it.
    pub(crate) fn start(&self, captured: Option<Vec<u8>>) -> Result<Started, Gone> {
        let (answer, started) = crossbeam_channel::bounded(1);
        self.ask(Asked::Start(Box::new(Start { captured, answer })))?;
        started.recv().map_err(|_| Gone)
    }

    /// Whether one more message of so many bytes may be parked.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let parked = self.parked.get();
        parked < MAX_PARKED && (parked == 0 || self.parked_bytes.get().saturating_add(bytes) <= MAX_PARKED_BYTES)
    }

    /// A message was dropped because there was no room. Gives the event that says so, once until there is ample room again.
    pub(crate) fn refused(&self) -> Option<Event> {
        (!self.congested.replace(true)).then(|| {
            Event::new("element-congested")
                .with("element", self.name)
                .with("parked", self.parked.get())
                .with("bytes", self.parked_bytes.get())
        })
    }

    /// Sends a message to the element.
    pub(crate) fn handle(&self, parked: Parked) -> Result<(), Gone> {
        self.parked.set(self.parked.get() + 1);
        self.parked_bytes.set(self.parked_bytes.get() + parked.bytes);
        self.ask(Asked::Handle(Box::new(parked)))
    }

    /// A message has come back.
    pub(crate) fn handled(&self, bytes: usize) {
        self.parked.set(self.parked.get() - 1);
        self.parked_bytes.set(self.parked_bytes.get() - bytes);
        self.handled.set(self.handled.get() + 1);
        self.answered.set(self.answered.get() + 1);
        if self.parked.get() < MAX_PARKED / 2 && self.parked_bytes.get() < MAX_PARKED_BYTES / 2 {
            self.congested.set(false);
        }
    }

    /// Tells the element that the ARMOR ends.
    pub(crate) fn stop(&self) -> Result<(), Gone> {
        self.stopping.set(true);
        self.ask(Asked::Stop)
    }

    /// The element has stopped.
    pub(crate) fn stopped(&self) {
        self.stopping.set(false);
        self.answered.set(self.answered.get() + 1);
    }

    fn ask(&self, asked: Asked) -> Result<(), Gone> {
        self.inbox.send_now(asked).map_err(|_| Gone)
    }

    /// Begins to watch the element; false when it is watched already.
    pub(crate) fn watch(&self) -> bool {
        !self.watched.replace(true)
    }

    /// How the element gets on, compared with what it had answered before.
    pub(crate) fn pulse(&self, answered_before: u64) -> Pulse {
        if self.parked.get() == 0 && !self.stopping.get() {
            self.watched.set(false);
            return Pulse::Idle;
        }
        if self.answered.get() == answered_before { Pulse::Silent } else { Pulse::Works(self.answered.get()) }
    }

    /// How much it has answered.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.get()
    }

    /// Messages that are parked.
    pub(crate) fn parked(&self) -> usize {
        self.parked.get()
    }

    /// What `armor status` shows; nothing waits for the element's thread.
    pub(crate) fn status(&self) -> serde_json::Value {
        let state = self.statuses.get(self.name).map_or(serde_json::Value::Null, |state| state.clone());
        serde_json::json!({
            "handled": self.handled.get(), "state": state,
            "arbiter": { "parked": self.parked.get(), "parked_bytes": self.parked_bytes.get(), "congested": self.congested.get() },
        })
    }
}

#[cfg(test)]
mod tests;
