//! Carries out what elements ask for, when their handlers have returned.

use std::rc::Rc;
use std::time::Instant;

use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::{Bundle, Flags, Message};
use armor_proto::operation::Operation;
use armor_proto::reliable::Due;

use super::dispatch::Queued;
use super::{Armor, fail_stop};
use crate::cell::ElementCell;
use crate::context::{Effect, Effects};
use crate::events::Event;
use crate::operations::{BundleAck, EventReport, StateCaptured};

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
                Effect::StateChanged => self.capture(cell),
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

    /// Thesis §5.5: a self-addressed acknowledgement bundle, a copy kept, a timer.
    pub(super) fn send_reliable(&self, message: Message) {
        let mut message = self.stamp(message);
        message.flags = Flags(message.flags.0 | Flags::EXPECT_ACK.0);
        let id = message.id;
        let message = message.followed_by(Bundle::new(self.setup.armor, BundleAck { message: id }));
        if self.outstanding.borrow_mut().sent(message.clone(), Instant::now()).is_err() {
            self.counters.overflow.count();
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
        if let Some(due) = self.outstanding.borrow().next_due() {
            self.resend_armed.set(true);
            self.later(due.saturating_duration_since(Instant::now()), Armor::resend);
        }
    }

    /// Sends what was not acknowledged in time again.
    fn resend(&self) {
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
