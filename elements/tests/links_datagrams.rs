//! Links over datagrams between two elements with real sockets: loss, darkness, other addresses, peers that do not read or are not there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

#[path = "network/air.rs"]
mod air;
mod network;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use air::Air;
use armor_core::context::Context;
use armor_core::element::{Element, ElementKind, Operations, Setup};
use armor_elements::links::datagrams::{self, DatagramOwner, Datagrams, Opened};
use armor_elements::links::{Closed, LinkId, LinkOwner, Sent, encode};
use armor_proto::frame::Frame;
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;
use armor_proto::operation::BundledOperation;
use armor_proto::rudp::Plain;
use network::{Client, Node, eventually};
use serde::Deserialize;

armor_proto::operations! { TEST_OPERATIONS;
    /// A number, with a payload that belongs to it.
    0xf011 MSG_TEST_PIECE => pub struct TestPiece { lane: u64, number: u64, size: u64 }
    /// Dial an address and send pieces there, in so many lanes.
    0xf012 MSG_TEST_DIAL => pub struct TestDial { address: String, lanes: u64, count: u64, size: u64 }
    /// Send that many more by the newest link.
    0xf013 MSG_TEST_MORE => pub struct TestMore { count: u64, size: u64 }
    /// Close the newest link.
    0xf014 MSG_TEST_CLOSE => pub struct TestClose {}
}

/// What an ARMOR's element has seen.
#[derive(Default)]
struct Seen {
    opened: u64,
    pieces: u64,
    /// The next number of each sender and lane.
    next: HashMap<(ArmorId, u64), u64>,
    moved: Vec<SocketAddr>,
    silent: Vec<bool>,
    closed: Vec<String>,
    congested: u64,
    sent: u64,
    identity: Vec<u8>,
    acknowledged: Option<u32>,
}

static SEEN: LazyLock<Mutex<HashMap<ArmorId, Seen>>> = LazyLock::new(Mutex::default);

fn seen() -> MutexGuard<'static, HashMap<ArmorId, Seen>> {
    SEEN.lock().expect("no panic in an element")
}

struct TestDatagrams {
    datagrams: Option<Datagrams>,
    link: Option<LinkId>,
    lanes: u64,
    left: u64,
    next: u64,
    size: u64,
    ignores_bound: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    ignores_bound: bool,
}

fn piece(lane: u64, number: u64, size: u64) -> Vec<u8> {
    (0..size).map(|at| (lane * 31 + number * 7 + at / 3) as u8).collect()
}

impl Element for TestDatagrams {
    const NAME: &'static str = "test_datagrams";
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "";
    type Config = Keys;

    fn new(keys: Keys, _: &Setup) -> Result<Self, String> {
        Ok(TestDatagrams { datagrams: None, link: None, lanes: 1, left: 0, next: 0, size: 0, ignores_bound: keys.ignores_bound })
    }
    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::dial).on(Self::more).on(Self::close);
    }
    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        let socket = datagrams::bind("127.0.0.1:0".parse().expect("address"), "listen")?;
        let address = socket.local_addr().expect("address");
        let name = context.setup().name.clone();
        self.datagrams = Some(Datagrams::open::<Self>(socket, datagrams::config(), Box::new(Plain::responder(name.as_bytes())), context)?);
        std::fs::write(context.setup().run_dir.join("udp.addr"), address.to_string()).map_err(|error| error.to_string())
    }
    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.send(context);
    }
    fn stop(&mut self, _: &mut Context<'_>) {
        if let Some(datagrams) = &self.datagrams {
            datagrams.close_all();
        }
    }
}

impl TestDatagrams {
    fn dial(&mut self, dial: &TestDial, context: &mut Context<'_>) {
        (self.lanes, self.left, self.size, self.next) = (dial.lanes, dial.count, dial.size, 0);
        let name = context.setup().name.clone();
        let to = dial.address.parse().expect("address");
        let datagrams = self.datagrams.as_ref().expect("started");
        self.link = Some(datagrams.connect(to, Box::new(Plain::initiator(name.as_bytes()))).expect("begins"));
    }
    fn more(&mut self, more: &TestMore, context: &mut Context<'_>) {
        (self.left, self.size) = (self.left + more.count, more.size);
        self.send(context);
    }
    fn close(&mut self, _: &TestClose, _: &mut Context<'_>) {
        self.datagrams.as_ref().expect("started").link(self.link.expect("a link")).close();
    }
    fn send(&mut self, context: &mut Context<'_>) {
        let Some(id) = self.link else { return };
        let link = self.datagrams.as_ref().expect("started").link(id);
        while self.left > 0 {
            if !self.ignores_bound && link.queued_bytes() > 2 << 20 {
                context.timer(Duration::from_millis(1), 0);
                return;
            }
            let (lane, number) = (self.next % self.lanes, self.next / self.lanes);
            let mut message = Message::to(ArmorId(1000 + lane), TestPiece { lane, number, size: self.size })
                .with_payload(piece(lane, number, self.size).into());
            message.source = context.armor();
            let sent = link.send(encode(&message).expect("encodes"));
            let mut seen = seen();
            let seen = seen.entry(context.armor()).or_default();
            match sent {
                Sent::Written => seen.sent += 1,
                Sent::FirstDropped | Sent::Dropped => seen.congested += 1,
                other => panic!("{other:?}"),
            }
            self.next += 1;
            self.left -= 1;
        }
    }
}

impl LinkOwner for TestDatagrams {
    fn link_frame(&mut self, id: LinkId, frame: Frame, context: &mut Context<'_>) {
        let message = frame.decode().expect("message");
        let BundledOperation::Encoded { body, .. } = &message.top().expect("bundle").operations[0] else { panic!("it came in a frame") };
        let TestPiece { lane, number, size } = armor_proto::operation::decode(body).expect("a piece");
        assert!(message.payload == piece(lane, number, size), "piece {number} of lane {lane} was altered");
        let mut seen = seen();
        let seen = seen.entry(context.armor()).or_default();
        let next = seen.next.entry((frame.source, lane)).or_default();
        assert_eq!(number, *next, "lane {lane}");
        *next += 1;
        seen.pieces += 1;
        seen.acknowledged = self.datagrams.as_ref().expect("started").link(id).acknowledged().map(|acknowledged| acknowledged.ago_ms);
    }
    fn link_closed(&mut self, _: LinkId, why: &Closed, context: &mut Context<'_>) {
        seen().entry(context.armor()).or_default().closed.push(why.to_string());
    }
}

impl DatagramOwner for TestDatagrams {
    fn link_opened(&mut self, id: LinkId, opened: Opened, context: &mut Context<'_>) {
        {
            let mut seen = seen();
            let seen = seen.entry(context.armor()).or_default();
            seen.opened += 1;
            seen.next.clear();
            seen.identity = opened.identity;
        }
        if opened.dialled {
            assert_eq!(self.link, Some(id));
            self.send(context);
        }
    }
    fn link_moved(&mut self, _: LinkId, remote: SocketAddr, context: &mut Context<'_>) {
        seen().entry(context.armor()).or_default().moved.push(remote);
    }
    fn link_silent(&mut self, _: LinkId, silent: bool, context: &mut Context<'_>) {
        seen().entry(context.armor()).or_default().silent.push(silent);
    }
}

struct Pair {
    near: Node,
    far: Node,
    client: Client,
    air: Air,
    base: tempfile::TempDir,
}

const ALONE: &str = "[armor]\nkind = \"daemon\"\n[[element]]\nname = \"reliable_messaging\"\n[[element]]\nname = \"daemon_gateway\"\n\
    [[element]]\nname = \"test_datagrams\"\n";

fn start(name: &str, base: &tempfile::TempDir, more: &str) -> Node {
    let kinds = armor_elements::all().into_iter().chain([ElementKind::of::<TestDatagrams>()]).collect();
    Node::start(name, base.path(), &format!("{ALONE}{more}"), kinds)
}

fn udp_address(node: &Node) -> String {
    std::fs::read_to_string(node.run_dir.join("udp.addr")).expect("udp.addr")
}

impl Pair {
    fn new(test: &str, more: &str) -> Pair {
        let base = tempfile::tempdir().expect("directory");
        let (near, far) = (start(&format!("near-{test}"), &base, more), start(&format!("far-{test}"), &base, ""));
        let seed = std::env::var("ARMOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
        let air = Air::new(seed);
        air.leads_to(&udp_address(&far));
        let client = near.client();
        Pair { near, far, client, air, base }
    }
    fn dial(&mut self, lanes: u64, count: u64, size: u64) {
        let dial = TestDial { address: self.air.address().to_string(), lanes, count, size };
        self.client.send(self.near.armor, dial);
    }
    fn arrive(&self, count: u64) {
        eventually("all pieces arrive", || (seen().get(&self.far.armor)?.pieces == count).then_some(()));
    }
}

#[test]
fn frames_of_every_size_arrive_in_order_although_every_tenth_datagram_is_lost() {
    let mut pair = Pair::new("loss", "");
    pair.air.loses(100);
    pair.dial(5, 1000, 3000);
    pair.arrive(1000);
    // The longest of all.
    pair.dial(1, 3, 1 << 20);
    eventually("the long ones too", || (seen().get(&pair.far.armor)?.pieces == 1003).then_some(()));
    let seen = seen();
    assert_eq!(seen[&pair.far.armor].identity, b"near-loss");
    assert!(seen[&pair.far.armor].acknowledged.is_some());
    assert!(pair.air.lost() > 100, "{} of {}", pair.air.lost(), pair.air.passed());
}

#[test]
fn a_link_outlives_darkness_and_both_ends_moves() {
    let mut pair = Pair::new("moves", "");
    pair.dial(3, 30, 20_000);
    pair.arrive(30);
    pair.air.is_dark(true);
    pair.client.send(pair.near.armor, TestMore { count: 30, size: 20_000 });
    eventually("the silence is told", || (seen().get(&pair.near.armor)?.silent.last() == Some(&true)).then_some(()));
    assert_eq!(seen()[&pair.far.armor].pieces, 30);
    // The near end is elsewhere when it is light again.
    pair.air.moves_near_end();
    pair.air.is_dark(false);
    pair.arrive(60);
    eventually("the answer is told", || (seen().get(&pair.near.armor)?.silent.last() == Some(&false)).then_some(()));
    eventually("the move is told", || (seen().get(&pair.far.armor)?.moved.len() == 1).then_some(()));
    assert!(seen()[&pair.near.armor].closed.is_empty() && seen()[&pair.far.armor].closed.is_empty());
    assert_eq!(seen()[&pair.near.armor].opened, 1);
}

#[test]
fn a_peer_that_takes_nothing_makes_no_more_wait_than_the_bound() {
    let mut pair = Pair::new("bound", "ignores_bound = true\n");
    pair.dial(1, 1, 1);
    pair.arrive(1);
    pair.air.is_dark(true);
    pair.client.send(pair.near.armor, TestMore { count: 100, size: 200_000 });
    eventually("all are sent or dropped", || {
        let seen = seen();
        let near = seen.get(&pair.near.armor)?;
        (near.sent + near.congested == 101).then_some(())
    });
    // 8 MiB of them.
    assert_eq!(seen()[&pair.near.armor].sent, 1 + (8 << 20) / 200_000);
}

#[test]
fn closing_is_told_to_both_ends_and_who_is_not_there_does_not_answer() {
    let mut pair = Pair::new("close", "");
    pair.dial(1, 1, 10);
    pair.arrive(1);
    pair.client.send(pair.near.armor, TestClose {});
    for armor in [pair.near.armor, pair.far.armor] {
        eventually("the end is told", || (seen().get(&armor)?.closed == ["closed"]).then_some(()));
    }
    pair.air.is_dark(true);
    pair.dial(1, 1, 10);
    eventually("nobody answers", || seen().get(&pair.near.armor)?.closed.get(1).map(|why| assert!(why.contains("no answer"), "{why}")));
    pair.air.is_dark(false);
    pair.dial(1, 1, 10);
    eventually("a new link", || (seen().get(&pair.far.armor)?.opened == 2).then_some(()));
    let Pair { near, far, base, .. } = pair;
    drop(near);
    // An ARMOR that ends in order says so.
    eventually("its end is told", || (seen().get(&far.armor)?.closed == ["closed", "closed"]).then_some(()));
    drop(far);
    drop(base);
}
