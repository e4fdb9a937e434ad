//! An FTM and daemons over real sockets: routing on demand, acknowledged messages over a link that is cut, node failures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

mod network;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, ElementKind, Operations, Setup};
use armor_elements::operations::{ArmorLocation, Events, EventsQuery, LocateArmor};
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::{Bundle, Flags, Message};
use network::{Client, FTM, Node, WITHIN, Wire, daemon, eventually};
use serde::Deserialize;

fn daemons(ftm: &serde_json::Value) -> usize {
    ftm["elements"]["daemon_registry"]["state"]["daemons"].as_array().map_or(0, Vec::len)
}

#[test]
fn an_acknowledged_message_reaches_a_daemon_that_the_sender_has_never_heard_of() {
    let base = tempfile::tempdir().expect("directory");
    let ftm = Node::start("ftm", base.path(), FTM, armor_elements::all());
    let one = Node::start("one", base.path(), &daemon(&ftm.tcp_address(), ""), armor_elements::all());
    let two = Node::start("two", base.path(), &daemon(&ftm.tcp_address(), ""), armor_elements::all());
    let mut client = one.client();
    eventually("all daemons register", || (daemons(&client.status(ArmorId::FTM)) == 3).then_some(()));

    let query = Bundle::new(two.armor, armor_core::operations::StatusQuery {});
    let mut message =
        Message::new(query).followed_by(Bundle::new(client.armor, armor_core::operations::BundleAck { message: MessageId(77) }));
    message.id = MessageId(77);
    message.flags = Flags::EXPECT_ACK;
    client.send_message(message);
    let mut report = None;
    let mut acknowledged = false;
    // The two may come in either order.
    while report.is_none() || !acknowledged {
        if !acknowledged && let Some(ack) = client.receive::<armor_core::operations::BundleAck>(Duration::from_millis(500)) {
            assert_eq!(ack.message, MessageId(77));
            acknowledged = true;
            client.send(two.armor, armor_core::operations::StatusQuery {});
        }
        report = report.or_else(|| client.receive::<armor_core::operations::StatusReport>(Duration::from_secs(5)));
        assert!(report.is_some(), "no report");
    }
    assert_eq!(report.expect("report").armor, two.armor);

    // What nobody knows is said to be unknown.
    client.send(ArmorId::FTM, LocateArmor { armor: ArmorId::of_name("nobody"), asker: client.armor });
    assert_eq!(client.receive::<ArmorLocation>(WITHIN).expect("answer").daemon, ArmorId::NONE);
}

#[test]
fn a_node_that_fails_and_comes_back_is_told_in_the_event_log() {
    a_node_fails_and_comes_back(FTM, |daemon| daemon);
}

#[test]
fn the_same_when_every_element_that_may_has_an_arbiter_of_its_own() {
    a_node_fails_and_comes_back(&in_own_arbiters(FTM), |daemon| in_own_arbiters(&daemon));
}

/// The composition with `arbiter = true` for each element that may have one.
fn in_own_arbiters(composition: &str) -> String {
    let mut text = composition.to_owned();
    let kinds = armor_elements::all();
    let together: Vec<&str> =
        kinds.iter().filter(|kind| !kind.same_thread.is_empty()).flat_map(|kind| [&[kind.name], kind.same_thread].concat()).collect();
    for kind in kinds.iter().filter(|kind| kind.takes_messages().is_none() && !kind.keeps_states() && !together.contains(&kind.name)) {
        let name = format!("name = \"{}\"\n", kind.name);
        text = text.replace(&name, &format!("{name}arbiter = true\n"));
    }
    assert!(text.matches("arbiter = true").count() >= 1, "{text}");
    text
}

fn a_node_fails_and_comes_back(ftm: &str, daemon_with: impl Fn(String) -> String) {
    let base = tempfile::tempdir().expect("directory");
    let ftm = Node::start("ftm", base.path(), ftm, armor_elements::all());
    let more = "[[element]]\nname = \"app_oversight\"\n[[element]]\nname = \"APP_COMM_SERVER\"\n[[element]]\nname = \"APP_COMM_CLIENT\"\n";
    let composition = daemon_with(daemon(&ftm.tcp_address(), more));
    let mut client = ftm.client();
    let mut told = Vec::new();
    let mut next = 0;
    let mut wait_for = |client: &mut Client, what: &str| {
        eventually(what, || {
            client.send(ArmorId::FTM, EventsQuery { from: next });
            let events = client.receive::<Events>(WITHIN).expect("events");
            next = events.next;
            told.extend(events.events.into_iter().map(|event| event.what));
            let at = told.iter().position(|told| told == what)?;
            told.drain(..=at);
            Some(())
        });
    };
    let node = Node::start("one", base.path(), &composition, armor_elements::all());
    wait_for(&mut client, "daemon-registered");
    drop(node);
    wait_for(&mut client, "node-failed");
    let node = Node::start("one", base.path(), &composition, armor_elements::all());
    wait_for(&mut client, "node-back");
    drop(node);
    assert!(base.path().join("ftm/events.jsonl").exists());
}

armor_proto::operations! { TEST_OPERATIONS;
    /// A number.
    0xf001 MSG_TEST_NUMBER => pub struct TestNumber { number: u32 }
    /// Send that many numbers.
    0xf002 MSG_TEST_BEGIN => pub struct TestBegin { count: u32, first: u32, destination: ArmorId }
}

/// How often which number came.
static CAME: LazyLock<Mutex<HashMap<u32, u32>>> = LazyLock::new(Mutex::default);

/// Sends numbers, one a millisecond, and counts those that come.
struct TestNumbers {
    left: u32,
    first: u32,
    destination: ArmorId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoKeys {}

impl Element for TestNumbers {
    const NAME: &'static str = "test_numbers";
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "";
    type Config = NoKeys;

    fn new(_: NoKeys, _: &Setup) -> Result<Self, String> {
        Ok(TestNumbers { left: 0, first: 0, destination: ArmorId::NONE })
    }
    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::begin).on(Self::number);
    }
    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        let number = self.first + self.left;
        let payload = vec![number as u8; 20_000];
        context.send_reliable(Message::to(self.destination, TestNumber { number }).with_payload(payload.into()));
        self.left -= 1;
        if self.left > 0 {
            context.timer(Duration::from_millis(1), 0);
        }
    }
}

impl TestNumbers {
    fn begin(&mut self, begin: &TestBegin, context: &mut Context<'_>) {
        self.left = begin.count;
        self.first = begin.first;
        self.destination = begin.destination;
        context.timer(Duration::from_millis(1), 0);
    }
    fn number(&mut self, number: &TestNumber, context: &mut Context<'_>) {
        let payload = context.message().expect("message").payload.clone();
        assert!(payload.len() == 20_000 && payload.iter().all(|byte| *byte == number.number as u8));
        *CAME.lock().expect("counts").entry(number.number).or_default() += 1;
    }
}

#[test]
fn a_message_is_sent_again_until_its_acknowledgement_comes_home() {
    let base = tempfile::tempdir().expect("directory");
    let ftm = Node::start("ftm", base.path(), FTM, armor_elements::all());
    let kinds = armor_elements::all().into_iter().chain([ElementKind::of::<TestNumbers>()]).collect();
    let one = Node::start("one", base.path(), &daemon(&ftm.tcp_address(), "[[element]]\nname = \"test_numbers\"\n"), kinds);
    let mut client = one.client();
    client.send(one.armor, TestBegin { count: 1, first: 10_000, destination: client.armor });
    let receive = |client: &mut Client| client.receive_message::<TestNumber>(WITHIN).expect("the message");
    let (first, mut again) = (receive(&mut client), receive(&mut client));
    assert!(first.flags.contains(Flags::EXPECT_ACK));
    assert_eq!((first.id, first.source), (again.id, one.armor));
    let state = |status: &serde_json::Value, key: &str| status["elements"]["reliable_messaging"]["state"][key].as_u64().expect("a number");
    assert!(state(&client.status(one.armor), "sent_again") >= 1);
    assert!(state(&client.status(one.armor), "unacknowledged") >= 1);
    again.pop();
    client.send_home(again);
    eventually("all is acknowledged", || (state(&client.status(one.armor), "unacknowledged") == 0).then_some(()));
    assert!(state(&client.status(one.armor), "acknowledged") >= 1);
}

#[test]
fn every_reliable_message_arrives_once_although_the_link_is_cut_again_and_again() {
    const COUNT: u32 = 300;
    let base = tempfile::tempdir().expect("directory");
    let kinds = || armor_elements::all().into_iter().chain([ElementKind::of::<TestNumbers>()]).collect::<Vec<_>>();
    let numbers = "[[element]]\nname = \"test_numbers\"\n";
    let ftm = Node::start("ftm", base.path(), FTM, armor_elements::all());
    // Whoever dials, the link leads over a wire that can be cut.
    let wires = [Wire::new(), Wire::new()];
    let composition = |wire: &Wire| daemon(&ftm.tcp_address(), &format!("advertise = \"{}\"\n{numbers}", wire.address));
    let one = Node::start("one", base.path(), &composition(&wires[0]), kinds());
    // One of the two numbers in a thread of its own.
    let two = Node::start("two", base.path(), &format!("{}arbiter = true\n", composition(&wires[1])), kinds());
    wires[0].leads_to(&one.tcp_address());
    wires[1].leads_to(&two.tcp_address());
    let mut client = one.client();
    eventually("all daemons register", || (daemons(&client.status(ArmorId::FTM)) == 3).then_some(()));
    // Both begin at once, so both dial, mostly: two links between the same pair.
    client.send(one.armor, TestBegin { count: COUNT, first: 0, destination: two.armor });
    two.client().send(two.armor, TestBegin { count: COUNT, first: COUNT, destination: one.armor });
    let mut cuts = 0;
    eventually("all numbers arrive", || {
        let came = CAME.lock().expect("counts").len();
        if cuts < 10 {
            cuts += wires.iter().map(Wire::cut).sum::<usize>();
        }
        (came == 2 * COUNT as usize).then_some(())
    });
    assert!(cuts > 0, "the link was never cut");
    let twice: Vec<u32> = CAME.lock().expect("counts").iter().filter(|(_, times)| **times != 1).map(|(number, _)| *number).collect();
    assert!(twice.is_empty(), "processed more than once: {twice:?}");
}
