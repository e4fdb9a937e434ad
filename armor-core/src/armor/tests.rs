//! Dispatch without actor, clock or socket.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use armor_proto::frame::Frame;
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::{Bundle, Flags, Message};
use armor_proto::operation::BundledOperation;
use bytes::BytesMut;

use super::dispatch::Queued;
use super::*;
use crate::composition::{Composition, Thread};
use crate::context::Routed;
use crate::element::{Element, ElementKind, Operations};
use crate::operations::{BundleAck, EventReport, Route, SendReliable};

armor_proto::operations! { TEST_OPERATIONS;
    0x7f00 MSG_NOTE => pub struct Note { text: String }
    0x7f01 MSG_NEST => pub struct Nest {}
    0x7f02 MSG_UNHEARD => pub struct Unheard {}
    0x7f03 MSG_BOTH => pub struct Both {}
    0x7f04 MSG_ENDLESS => pub struct Endless { bundles: bool }
}

thread_local! {
    static HEARD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static ROUTED: RefCell<Vec<Routed>> = const { RefCell::new(Vec::new()) };
}

fn heard() -> Vec<String> {
    HEARD.take()
}

fn note(text: &str) -> Note {
    Note { text: text.to_owned() }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoConfig {}

struct First;

impl Element for First {
    const NAME: &'static str = "first";
    const PURPOSE: &'static str = "hears notes";
    const EXAMPLE: &'static str = "";
    type Config = NoConfig;

    fn new(_: NoConfig, _: &Setup) -> Result<Self, String> {
        Ok(First)
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|_, operation: &Note, context| {
            HEARD.with_borrow_mut(|heard| heard.push(format!("first {}", operation.text)));
            let count = context.message_mut().map(|message| {
                let count = message.fields.read::<u32>("count").unwrap().unwrap_or(0) + 1;
                message.fields.set("count", &count).unwrap();
                count
            });
            HEARD.with_borrow_mut(|heard| heard.push(format!("count {}", count.unwrap())));
        });
        operations.on(|_, _: &Nest, context| {
            context.push_operation(note("pushed"));
            context.push_bundle(Bundle::new(ArmorId(77), note("elsewhere")));
        });
        operations.on(|_, endless: &Endless, context| {
            if endless.bundles {
                context.push_bundle(Bundle::new(ME, endless.clone()));
            } else {
                context.push_operation(endless.clone());
            }
        });
        operations.on(|_, _: &Both, context| {
            context.send_reliable(Message::to(ArmorId(9), note("reliable")));
            context.send(Message::to(ArmorId(9), note("after it")));
        });
    }
}

struct Second;

impl Element for Second {
    const NAME: &'static str = "second";
    const PURPOSE: &'static str = "hears notes and routes";
    const EXAMPLE: &'static str = "";
    const EXCLUDES: &'static [&'static str] = &["third"];
    type Config = NoConfig;

    fn new(_: NoConfig, _: &Setup) -> Result<Self, String> {
        Ok(Second)
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|_, operation: &Note, _| HEARD.with_borrow_mut(|heard| heard.push(format!("second {}", operation.text))));
        operations.on(|_, _: &Route, context| {
            if let Some(routed) = context.take_routed() {
                ROUTED.with_borrow_mut(|all| all.push(routed));
            }
        });
        operations.emits::<Unheard>();
    }
}

struct Third;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Interval {
    interval_ms: u64,
}

impl Element for Third {
    const NAME: &'static str = "third";
    const PURPOSE: &'static str = "has a key";
    const EXAMPLE: &'static str = "interval_ms = 5";
    const SAME_THREAD: &'static [&'static str] = &["first"];
    type Config = Interval;

    fn new(config: Interval, _: &Setup) -> Result<Self, String> {
        if config.interval_ms == 0 { Err("interval_ms must not be 0".to_owned()) } else { Ok(Third) }
    }

    fn operations(_: &mut Operations<Self>) {}
}

/// Takes messages that are to be sent reliably, and sends them once.
struct Keeper;

impl Element for Keeper {
    const NAME: &'static str = "keeper";
    const PURPOSE: &'static str = "keeps messages";
    const EXAMPLE: &'static str = "";
    type Config = NoConfig;

    fn new(_: NoConfig, _: &Setup) -> Result<Self, String> {
        Ok(Keeper)
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|_, _: &SendReliable, context| {
            assert_eq!(context.routed_to(), Some(ArmorId(9)));
            let Some(Routed::Message(message)) = context.take_routed() else { panic!("a message is offered") };
            assert_ne!(message.id, MessageId(0));
            context.send(message);
        });
    }
}

/// Says that it sends reliably.
struct Needy;

impl Element for Needy {
    const NAME: &'static str = "needy";
    const PURPOSE: &'static str = "sends reliably";
    const EXAMPLE: &'static str = "";
    type Config = NoConfig;

    fn new(_: NoConfig, _: &Setup) -> Result<Self, String> {
        Ok(Needy)
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.emits::<SendReliable>();
    }
}

fn kinds() -> Vec<ElementKind> {
    vec![
        ElementKind::of::<First>(),
        ElementKind::of::<Second>(),
        ElementKind::of::<Third>(),
        ElementKind::of::<Keeper>(),
        ElementKind::of::<Needy>(),
    ]
}

struct Idle;

impl Spawner for Idle {
    fn spawn(&self, _: Pin<Box<dyn Future<Output = ()>>>) {}
    fn timer(&self, _: Duration, _: Rc<ElementCell>, _: u64) {}
}

const ME: ArmorId = ArmorId(5);

fn armor() -> Rc<Armor> {
    armor_of("[[element]]\nname = \"first\"\n[[element]]\nname = \"second\"\n")
}

fn armor_of(text: &str) -> Rc<Armor> {
    heard();
    ROUTED.take();
    let setup = Setup { armor: ME, name: "me".into(), kind: "test".into(), run_dir: "/nowhere".into() };
    let composition = Composition::parse("t", text, &kinds()).unwrap();
    let members =
        (0..composition.elements().len()).map(|index| Member::Here(composition.build(index, &kinds(), &setup).unwrap())).collect();
    Armor::new(setup, members, 1, Rc::new(Idle), Box::new(|| ()))
}

impl Armor {
    fn deliver(&self, message: Message) {
        self.send(message);
        self.drain();
    }

    fn deliver_frame(&self, message: &Message) {
        let encoded = armor_proto::frame::encode(message, &mut BytesMut::new()).unwrap();
        let mut bytes = BytesMut::from(&encoded.head[..]);
        bytes.extend_from_slice(&encoded.payload);
        self.enqueue(Queued::Frame(Frame::take(&mut bytes).unwrap().unwrap()));
        self.drain();
    }
}

fn routed() -> Vec<ArmorId> {
    ROUTED.take().iter().map(Routed::destination).filter(|to| *to != ArmorId::FTM).collect()
}

#[test]
fn operations_are_delivered_in_order_to_subscribers_in_composition_order_and_share_payload_fields() {
    let armor = armor();
    armor.deliver(Message::new(Bundle::new(ME, note("a")).then(note("b"))));
    assert_eq!(heard(), ["first a", "count 1", "second a", "first b", "count 2", "second b"]);
}

#[test]
fn pushed_bundles_travel_before_the_rest_of_the_current_one_and_the_message_comes_back() {
    let armor = armor();
    armor.deliver(Message::new(Bundle::new(ME, Nest {}).then(note("rest"))));
    assert!(heard().is_empty());
    let Some(Routed::Message(mut away)) = ROUTED.take().pop() else { panic!("a message has left") };
    assert_eq!(away.destination(), Some(ArmorId(77)));
    // The other ARMOR is done with its bundle: the message comes home with what was left.
    away.pop();
    armor.deliver_frame(&away);
    assert_eq!(heard(), ["first pushed", "count 1", "second pushed", "first rest", "count 2", "second rest"]);
}

#[test]
fn a_message_whose_bundle_is_done_travels_to_the_next_destination() {
    let armor = armor();
    armor.deliver(Message::to(ME, note("here")).followed_by(Bundle::new(ArmorId(9), note("there"))));
    assert_eq!(heard().len(), 3);
    assert_eq!(routed(), [ArmorId(9)]);
}

#[test]
fn an_unknown_operation_drops_the_message_and_is_counted() {
    let armor = armor();
    armor.deliver(Message::new(Bundle::new(ME, Unheard {}).then(note("never"))));
    assert!(heard().is_empty());
    assert_eq!(armor.counters.unknown_operation.value(), 1);
}

#[test]
fn a_resent_message_is_processed_once_and_acknowledged_twice() {
    let armor = armor();
    let mut message = Message::to(ME, note("once")).followed_by(Bundle::new(ArmorId(9), BundleAck { message: MessageId(3) }));
    message.source = ArmorId(9);
    message.id = MessageId(3);
    message.flags = Flags::EXPECT_ACK;
    armor.deliver_frame(&message);
    armor.deliver_frame(&message);
    assert_eq!(heard(), ["first once", "count 1", "second once"]);
    assert_eq!(routed(), [ArmorId(9), ArmorId(9)]);
    assert_eq!(armor.counters.duplicates.value(), 1);
}

#[test]
fn an_acknowledged_message_comes_back_from_a_pushed_bundle_to_the_rest_and_its_copies_do_not() {
    let armor = armor();
    let mut message =
        Message::new(Bundle::new(ME, Nest {}).then(note("rest"))).followed_by(Bundle::new(ArmorId(9), BundleAck { message: MessageId(3) }));
    message.source = ArmorId(9);
    message.id = MessageId(3);
    message.flags = Flags::EXPECT_ACK;
    armor.deliver_frame(&message);
    let Some(Routed::Message(mut away)) = ROUTED.take().pop() else { panic!("a message has left") };
    assert_eq!((away.destination(), away.stack().len()), (Some(ArmorId(77)), 3));
    // Its sender has waited too long: the copy is not processed.
    armor.deliver_frame(&message);
    assert!(heard().is_empty());
    // The other ARMOR is done with its bundle: the message comes back, and what was left of its first bundle is processed.
    away.pop();
    ROUTED.take();
    armor.deliver_frame(&away);
    assert_eq!(heard(), ["first pushed", "count 1", "second pushed", "first rest", "count 2", "second rest"]);
    assert_eq!(routed(), [ArmorId(9)]);
    assert_eq!((armor.counters.duplicates.value(), armor.counters.unknown_operation.value()), (1, 0));
}

#[test]
fn a_message_to_be_sent_reliably_is_offered_in_the_order_of_effects_and_refused_when_nobody_takes_it() {
    let both = "[[element]]\nname = \"first\"\n[[element]]\nname = \"second\"\n";
    let armor = armor_of(&format!("{both}[[element]]\nname = \"keeper\"\n"));
    armor.deliver(Message::to(ME, Both {}));
    let text = |routed: &Routed| match routed {
        Routed::Message(message) => {
            armor_proto::message::downcast::<Note>(&message.top().unwrap().operations[0]).map(|note| (note.text.clone(), message.source))
        }
        Routed::Frame(_) => None,
    };
    let left: Vec<_> = ROUTED.take().iter().filter_map(text).collect();
    assert_eq!(left, [("reliable".to_owned(), ME), ("after it".to_owned(), ME)]);

    let armor = armor_of(both);
    armor.deliver(Message::to(ME, Both {}));
    let routed = ROUTED.take();
    let told = routed.iter().filter(|routed| routed.destination() == ArmorId::FTM).count();
    let left: Vec<_> = routed.iter().filter_map(text).map(|(text, _)| text).collect();
    assert_eq!((told, left), (1, vec!["after it".to_owned()]));
}

#[test]
fn an_element_that_sends_reliably_needs_one_that_keeps_its_messages() {
    let without = refusal("[[element]]\nname = \"first\"\n[[element]]\nname = \"needy\"\n");
    let expected = "c.toml:4:8: needy sends acknowledged messages, and no element here keeps them; add [[element]] name = \"keeper\"";
    assert_eq!(without, expected);
    let keeper = "[[element]]\nname = \"keeper\"\n";
    assert!(Composition::parse("c", &format!("[[element]]\nname = \"needy\"\n{keeper}"), &kinds()).is_ok());
    let own = refusal(&format!("{keeper}arbiter = true\n"));
    assert!(own.starts_with("c.toml:3:11: keeper takes messages over (MSG_SEND_RELIABLE)"), "{own}");
}

#[test]
fn an_operation_with_wrong_fields_is_refused_and_counted() {
    let armor = armor();
    let garbage = BundledOperation::Encoded { kind: Note::KIND, body: bytes::Bytes::from_static(&[0xc1]) };
    armor.deliver(Message::to(ME, garbage));
    assert_eq!(armor.counters.undecodable.value(), 1);
}

#[test]
fn operations_that_a_dispatcher_makes_itself_are_refused_from_outside() {
    let armor = armor();
    let mut message = Message::new(Bundle::new(ME, Route {}).then(note("never")));
    message.source = ArmorId(9);
    armor.deliver_frame(&message);
    assert_eq!(armor.counters.undecodable.value(), 1);
    assert!(heard().is_empty());
}

#[test]
fn a_message_whose_operations_push_further_ones_without_end_is_dropped_counted_and_told() {
    let armor = armor();
    armor.deliver(Message::new(Bundle::new(ME, Endless { bundles: false }).then(note("never"))));
    assert_eq!(armor.counters.runaway.value(), 1);
    armor.deliver(Message::to(ME, note("next")));
    assert_eq!(heard(), ["first next", "count 1", "second next"]);
    let told: Vec<Event> = ROUTED.take().iter().filter_map(event).collect();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].what.as_str(), told[0].values["operations"].as_str()), ("message-runaway", MAX_OPERATIONS.to_string().as_str()));
}

#[test]
fn a_message_whose_bundles_push_further_ones_ends_when_its_stack_is_full() {
    let armor = armor();
    armor.deliver(Message::new(Bundle::new(ME, Endless { bundles: true }).then(note("rest"))));
    assert_eq!(heard(), ["first rest", "count 1", "second rest"]);
    let told: Vec<String> = ROUTED.take().iter().filter_map(event).map(|event| event.what).collect();
    assert_eq!(told, ["bundle-refused"]);
    assert_eq!((armor.counters.finished.value(), armor.counters.processed.value()), (1, Message::MAX_BUNDLES as u64));
}

#[test]
fn the_largest_message_is_processed_to_its_end() {
    let armor = armor();
    let bundle = || {
        let mut bundle = Bundle::new(ME, note("x"));
        bundle.operations.extend((1..Message::MAX_OPERATIONS).map(|_| note("x").into()));
        bundle
    };
    let mut message = Message::new(bundle());
    while message.push(bundle()).is_ok() {}
    armor.deliver(message);
    assert_eq!((armor.counters.finished.value(), armor.counters.runaway.value()), (1, 0));
    assert_eq!(heard().len(), 3 * MAX_OPERATIONS as usize);
}

#[test]
fn complaints_are_told_at_a_bounded_rate_and_the_others_counted() {
    let armor = armor();
    let began = Instant::now();
    for _ in 0..1000 {
        armor.deliver(Message::to(ME, Unheard {}));
    }
    let seconds = began.elapsed().as_secs() + 1;
    let told = ROUTED.take().iter().filter_map(event).count() as u64;
    assert_eq!(armor.counters.unknown_operation.value(), 1000);
    assert_eq!(told + armor.counters.untold.value(), 1000);
    assert!((1..=(seconds + 1) * u64::from(MAX_COMPLAINTS)).contains(&told), "{told} told in {seconds} s");
}

fn event(routed: &Routed) -> Option<Event> {
    let Routed::Message(message) = routed else { return None };
    armor_proto::message::downcast::<EventReport>(&message.top()?.operations[0]).map(|report| report.event.clone())
}

#[test]
fn a_full_bundle_takes_no_more_operations_and_says_so() {
    let armor = armor();
    let mut bundle = Bundle::new(ME, Nest {});
    bundle.operations.extend((0..Message::MAX_OPERATIONS).map(|number| note(&number.to_string()).into()));
    armor.deliver(Message::new(bundle));
    let told: Vec<Event> = ROUTED.take().iter().filter_map(event).collect();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].what.as_str(), told[0].values["operation"].as_str()), ("operation-refused", "0x7f00"));
}

#[test]
fn status_is_answered_to_the_one_who_asked() {
    let armor = armor();
    let mut query = Message::to(ME, StatusQuery {});
    query.source = ArmorId(12);
    armor.deliver(query);
    assert_eq!(routed(), [ArmorId(12)]);
}

fn refusal(text: &str) -> String {
    Composition::parse("c.toml", text, &kinds()).unwrap_err().to_string()
}

#[test]
fn compositions_are_refused_with_file_line_and_column() {
    assert_eq!(
        refusal("[[element]]\nname = \"frist\"\n"),
        "c.toml:2:8: unknown element \"frist\". Did you mean \"first\"? `armor elements` lists all of them"
    );
    let unknown_key = refusal("[[element]]\nname = \"third\"\ninterval_ms = 5\nintervall = 3\n");
    assert!(unknown_key.starts_with("c.toml:4:1: unknown field `intervall`"), "{unknown_key}");
    let ill_typed = refusal("[[element]]\nname = \"third\"\ninterval_ms = \"x\"\n");
    assert!(ill_typed.starts_with("c.toml:3:15: invalid type: string \"x\""), "{ill_typed}");
    let excluded = refusal("[[element]]\nname = \"second\"\n[[element]]\nname = \"third\"\ninterval_ms = 1\n");
    assert!(excluded.starts_with("c.toml:4:8: elements \"third\" and \"second\" exclude each other"), "{excluded}");
    let ill_typed = refusal("[[element]]\nname = \"first\"\narbiter = 1\n");
    assert_eq!(ill_typed, "c.toml:3:11: arbiter is true (the element has a thread of its own) or false");
    let takes_messages = refusal("[[element]]\nname = \"second\"\narbiter = true\n");
    let expected = "c.toml:3:11: second takes messages over (MSG_ROUTE), which it can in the main thread only; remove arbiter";
    assert_eq!(takes_messages, expected);
    assert!(refusal("[[element]]\nname = \"first\"\n[[element]]\nname = \"first\"\n").contains("listed twice"));
    assert!(refusal("[armor]\nkind = \"x\"\n").contains("no [[element]]"));
    assert!(refusal("[other]\n").contains("unknown table \"other\""));
}

#[test]
fn an_operation_that_nobody_hears_is_a_warning() {
    let composition = Composition::parse("c", "[[element]]\nname = \"second\"\n", &kinds()).unwrap();
    let warnings = Composition::unheard(&[&composition], &kinds());
    assert_eq!(warnings, [crate::composition::Warning("second emits MSG_UNHEARD and no element hears it".to_owned())]);
}

#[test]
fn the_composition_says_which_elements_have_a_thread_of_their_own() {
    let text =
        "[[element]]\narbiter = true\nname = \"first\"\n[[element]]\nname = \"needy\"\narbiter = false\n[[element]]\nname = \"keeper\"\n";
    let composition = Composition::parse("c", text, &kinds()).unwrap();
    assert_eq!(composition.threads(), [Thread::Own, Thread::Main, Thread::Main]);
    let set = composition.with_settings(&[("needy".into(), "arbiter".into(), "true".into())], &kinds()).unwrap();
    assert_eq!(set.threads(), [Thread::Own, Thread::Own, Thread::Main]);
}

#[test]
fn elements_that_must_live_in_one_thread_are_refused_in_two() {
    let third = "[[element]]\nname = \"third\"\ninterval_ms = 1\n";
    let expected =
        |line: usize| format!("c.toml:{line}:11: third and first must live in one thread, which is the main one; remove arbiter");
    assert_eq!(refusal(&format!("[[element]]\nname = \"first\"\n{third}arbiter = true\n")), expected(6));
    assert_eq!(refusal(&format!("{third}[[element]]\nname = \"first\"\narbiter = true\n")), expected(6));
    assert!(Composition::parse("c", &format!("[[element]]\nname = \"first\"\n{third}"), &kinds()).is_ok());
    assert!(Composition::parse("c", &format!("{third}arbiter = true\n"), &kinds()).is_ok());
}

#[test]
fn settings_replace_keys_of_a_composition() {
    let composition = Composition::parse("c", "[[element]]\nname = \"third\"\ninterval_ms = 5\n", &kinds()).unwrap();
    let set = |value: &str| composition.with_settings(&[("third".into(), "interval_ms".into(), value.into())], &kinds());
    assert!(set("7").is_ok());
    assert!(set("word").is_err());
    assert!(composition.with_settings(&[("fourth".into(), "a".into(), "1".into())], &kinds()).is_err());
}
