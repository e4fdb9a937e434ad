//! `reliable_messaging`: sends messages until they are acknowledged (thesis §5.5); one of the basic elements of every ARMOR
//! (thesis §3.2.1).
//!
//! Purpose: takes what elements send with `Context::send_reliable`, puts a bundle with `MSG_BUNDLE_ACK` for its own ARMOR under it, keeps a
//! copy, and sends that again until the bundle comes home. The receiver drops copies of what it has seen: its dispatcher does, for that has to be
//! known before the first operation reaches any element.
//! Subscribes: `MSG_SEND_RELIABLE`, `MSG_BUNDLE_ACK`. Emits: nothing of its own. Configuration: none.
//!
//! Invariants: what was taken is acknowledged, sent again, or told as given up or refused; the table is bounded
//! ([`armor_proto::reliable::MAX_OUTSTANDING`]).

use std::time::Instant;

use armor_core::context::{Context, Routed};
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::{BundleAck, SendReliable};
use armor_proto::ids::ArmorId;
use armor_proto::message::{Bundle, Flags, Message};
use armor_proto::reliable::{Due, Outstanding};
use serde::Deserialize;

/// The element.
#[derive(Default)]
pub struct ReliableMessaging {
    outstanding: Outstanding,
    armed: bool,
    acknowledged: u64,
    sent_again: u64,
    given_up: u64,
    refused: u64,
}

/// No keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Element for ReliableMessaging {
    const NAME: &'static str = "reliable_messaging";
    const PURPOSE: &'static str = "sends messages that matter until they are acknowledged (thesis §5.5)";
    const EXAMPLE: &'static str = "";
    type Config = Config;

    fn new(_: Config, _: &Setup) -> Result<Self, String> {
        Ok(ReliableMessaging::default())
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::send).on(Self::acknowledged);
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.armed = false;
        self.send_again(Instant::now(), context);
        self.arm(context);
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({
            "unacknowledged": self.outstanding.len(), "acknowledged": self.acknowledged, "sent_again": self.sent_again,
            "given_up": self.given_up, "refused": self.refused,
        })
    }
}

impl ReliableMessaging {
    fn send(&mut self, _: &SendReliable, context: &mut Context<'_>) {
        let Some(Routed::Message(mut message)) = context.take_routed() else { return };
        if message.stack().len() >= Message::MAX_BUNDLES {
            return self.refuse(&message, "its stack is full", context);
        }
        message.flags = Flags(message.flags.0 | Flags::EXPECT_ACK.0);
        let acknowledgement = BundleAck { message: message.id };
        let message = message.followed_by(Bundle::new(context.armor(), acknowledgement));
        match self.outstanding.sent(message.clone(), Instant::now()) {
            Ok(()) => {
                context.send(message);
                self.arm(context);
            }
            Err(message) => self.refuse(&message, "too many messages wait for acknowledgement", context),
        }
    }

    fn refuse(&mut self, message: &Message, reason: &str, context: &mut Context<'_>) {
        self.refused += 1;
        let destination = message.destination().unwrap_or(ArmorId::NONE);
        context.event(Event::new("message-refused").with("destination", destination).with("reason", reason));
    }

    fn acknowledged(&mut self, acknowledgement: &BundleAck, _: &mut Context<'_>) {
        if self.outstanding.acknowledged(acknowledgement.message) {
            self.acknowledged += 1;
        }
    }

    fn send_again(&mut self, now: Instant, context: &mut Context<'_>) {
        for due in self.outstanding.due(now) {
            match due {
                Due::Resend(message) => {
                    self.sent_again += 1;
                    context.send(message);
                }
                Due::GivenUp(message) => {
                    self.given_up += 1;
                    let destination = message.destination().unwrap_or(ArmorId::NONE);
                    context.event(Event::new("message-given-up").with("destination", destination));
                }
            }
        }
    }

    /// One timer runs while anything waits.
    fn arm(&mut self, context: &mut Context<'_>) {
        if !self.armed
            && let Some(due) = self.outstanding.next_due()
        {
            self.armed = true;
            context.timer(due.saturating_duration_since(Instant::now()), 0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;
    use armor_core::context::{Effect, Effects};
    use armor_core::operations::StatusQuery;
    use armor_proto::ids::MessageId;
    use armor_proto::message::downcast;
    use armor_proto::reliable::{GIVE_UP, MAX_OUTSTANDING};

    const ME: ArmorId = ArmorId(5);

    fn setup() -> Setup {
        Setup { armor: ME, name: "e".into(), kind: "test".into(), run_dir: "/".into() }
    }

    fn message(id: u64) -> Message {
        let mut message = Message::to(ArmorId(9), StatusQuery {});
        message.source = ME;
        message.id = MessageId(id);
        message
    }

    fn handed_over(element: &mut ReliableMessaging, message: Message) -> Effects {
        let (setup, mut effects, mut routed) = (setup(), Effects::new(), Some(Routed::Message(message)));
        element.send(&SendReliable {}, &mut Context::detached_with(&setup, &mut routed, &mut effects));
        assert!(routed.is_none(), "it is taken");
        effects
    }

    fn acknowledged(element: &mut ReliableMessaging, id: u64) {
        let (setup, mut effects) = (setup(), Effects::new());
        element.acknowledged(&BundleAck { message: MessageId(id) }, &mut Context::detached(&setup, None, &mut effects));
        assert!(effects.is_empty());
    }

    fn after(element: &mut ReliableMessaging, now: Instant) -> Effects {
        let (setup, mut effects) = (setup(), Effects::new());
        element.send_again(now, &mut Context::detached(&setup, None, &mut effects));
        effects
    }

    #[test]
    fn a_message_leaves_with_an_acknowledgement_for_home_under_it_and_waits_for_that() {
        let mut element = ReliableMessaging::default();
        let effects = handed_over(&mut element, message(7));
        let [Effect::Send(sent), Effect::Timer(..)] = &effects[..] else { panic!("sent, and a timer") };
        assert!(sent.flags.contains(Flags::EXPECT_ACK));
        let [home, there] = sent.stack() else { panic!("two bundles") };
        assert_eq!((there.destination, home.destination), (ArmorId(9), ME));
        assert_eq!(downcast::<BundleAck>(&home.operations[0]), Some(&BundleAck { message: MessageId(7) }));
        assert_eq!(element.status()["unacknowledged"], 1);
        acknowledged(&mut element, 8);
        assert_eq!(element.status()["unacknowledged"], 1);
        acknowledged(&mut element, 7);
        acknowledged(&mut element, 7);
        assert_eq!((element.status()["unacknowledged"].as_u64(), element.status()["acknowledged"].as_u64()), (Some(0), Some(1)));
    }

    #[test]
    fn one_timer_runs_however_many_wait() {
        let mut element = ReliableMessaging::default();
        assert_eq!(handed_over(&mut element, message(1)).len(), 2);
        assert!(matches!(handed_over(&mut element, message(2))[..], [Effect::Send(_)]));
        let (setup, mut effects) = (setup(), Effects::new());
        element.timer(0, &mut Context::detached(&setup, None, &mut effects));
        assert!(matches!(effects[..], [Effect::Timer(..)]), "it is set again while messages wait");
        acknowledged(&mut element, 1);
        acknowledged(&mut element, 2);
        effects.clear();
        element.timer(0, &mut Context::detached(&setup, None, &mut effects));
        assert!(effects.is_empty());
    }

    #[test]
    fn a_message_that_nobody_acknowledges_is_sent_again_and_then_given_up_with_an_event() {
        let mut element = ReliableMessaging::default();
        let sent = Instant::now();
        handed_over(&mut element, message(7));
        let again = after(&mut element, sent + GIVE_UP / 2);
        let [Effect::Send(copy)] = &again[..] else { panic!("sent again") };
        assert_eq!((copy.id, copy.stack().len()), (MessageId(7), 2));
        let end = after(&mut element, Instant::now() + GIVE_UP);
        let [Effect::Event(event)] = &end[..] else { panic!("an event") };
        assert_eq!((event.what.as_str(), event.values["destination"].as_str()), ("message-given-up", ArmorId(9).to_string().as_str()));
        assert_eq!(element.status()["unacknowledged"], 0);
    }

    #[test]
    fn what_there_is_no_room_for_is_refused_with_an_event() {
        let mut element = ReliableMessaging::default();
        let now = Instant::now();
        for id in 1..=MAX_OUTSTANDING as u64 {
            assert!(element.outstanding.sent(message(id), now).is_ok());
        }
        let effects = handed_over(&mut element, message(0));
        let [Effect::Event(event)] = &effects[..] else { panic!("an event") };
        assert_eq!(event.what, "message-refused");
        let mut full = message(1);
        while full.push(Bundle::new(ArmorId(9), StatusQuery {})).is_ok() {}
        assert!(
            matches!(&handed_over(&mut ReliableMessaging::default(), full)[..], [Effect::Event(event)] if event.what == "message-refused")
        );
        assert_eq!(element.status()["refused"], 1);
    }
}
