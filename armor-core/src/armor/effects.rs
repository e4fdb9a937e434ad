//! Carries out what elements ask for, when their handlers have returned.

use std::rc::Rc;
use std::time::{Duration, Instant};

use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::Message;
use armor_proto::operation::Operation;

use super::dispatch::Queued;
use super::{Armor, fail_stop};
use crate::cell::ElementCell;
use crate::context::{Effect, Effects, Routed};
use crate::events::Event;
use crate::operations::{EventReport, SendReliable, StateCaptured};

/// Most events a second about messages that were refused or dropped; the counters tell of the rest.
pub const MAX_COMPLAINTS: u32 = 100;

impl Armor {
    pub(super) fn carry_out(&self, cell: &Rc<ElementCell>, mut effects: Effects) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(message) => self.send(message),
                Effect::SendReliable(message) => self.send_reliable(message),
                Effect::Received(frame) => self.enqueue(Queued::Frame(frame)),
                Effect::Timer(pause, token) => self.spawner.timer(pause, Rc::clone(cell), token),
                Effect::Spawn(task) => self.spawner.spawn(task),
                Effect::Event(event) => self.report(event),
                Effect::Complaint(event) => self.complain(event),
                Effect::StateChanged => self.capture(cell),
                Effect::Then(work) => self.enqueue(Queued::Then(work)),
                Effect::Shutdown => self.shutdown(),
                Effect::FailStop(reason) => fail_stop(&self.setup.name, cell.name(), &reason),
            }
        }
        self.spare.set(effects);
    }

    pub(super) fn send(&self, message: Message) {
        let message = self.stamp(message);
        self.enqueue(Queued::Message(message));
    }

    /// Fills in source and number of a message that begins here.
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

    /// Hands a message to the element that sends until there is an acknowledgement.
    pub(super) fn send_reliable(&self, message: Message) {
        let message = self.stamp(message);
        let destination = message.destination().unwrap_or(ArmorId::NONE);
        if !self.offer(&SendReliable {}, Routed::Message(message)) {
            let reason = "no element of this ARMOR hears MSG_SEND_RELIABLE; add reliable_messaging to its composition";
            self.complain(Event::new("message-refused").with("destination", destination).with("reason", reason));
        }
    }

    /// Sends an event to the FTM's event log and writes it to this ARMOR's own log.
    pub(super) fn report(&self, mut event: Event) {
        event.armor.clone_from(&self.setup.name);
        tracing::info!(target: "armor::event", what = %event.what, values = ?event.values);
        let heard_here = self.subscribers.contains_key(&EventReport::KIND);
        let destination = if heard_here { self.setup.armor } else { ArmorId::FTM };
        if destination == self.setup.armor && !heard_here {
            // An FTM without an event log: sent to itself it would be an unknown operation, which is an event again.
            return;
        }
        self.send(Message::to(destination, EventReport { event }));
    }

    /// Reports what a message or an element did wrong. Whoever can do so without end must not fill the event log.
    pub(super) fn complain(&self, event: Event) {
        let now = Instant::now();
        let (since, told) = self.complaints.get();
        if now.saturating_duration_since(since) >= Duration::from_secs(1) {
            self.complaints.set((now, 1));
        } else if told < MAX_COMPLAINTS {
            self.complaints.set((since, told + 1));
        } else {
            self.counters.untold.count();
            return;
        }
        self.report(event);
    }

    fn capture(&self, cell: &ElementCell) {
        if !self.subscribers.contains_key(&StateCaptured::KIND) {
            return;
        }
        // An element that is being handled right now reports after its handler has returned, so this borrow is free.
        let state = cell.element().try_borrow().ok().and_then(|element| element.capture());
        if let Some(state) = state {
            self.captured(cell.name(), state);
        }
    }

    pub(super) fn captured(&self, element: &str, state: Vec<u8>) {
        if self.subscribers.contains_key(&StateCaptured::KIND) {
            self.send(Message::to(self.setup.armor, StateCaptured { element: element.to_owned(), state }));
        }
    }
}
