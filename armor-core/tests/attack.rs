//! An ARMOR under attack: thousands of random messages, handlers that do random things, elements that work for themselves without end.
//! Nothing panics, every message ends somewhere and is counted there, the bounds hold, and the ARMOR goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

mod rig;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use armor_core::arbiter::MAX_PARKED;
use armor_core::armor::MAX_QUEUE;
use armor_core::context::{Context, Routed};
use armor_core::element::{Element, ElementKind, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::{BundleAck, BundleResumed, EventReport, Route, SendReliable, Shutdown, StateCaptured, StatusQuery};
use armor_proto::frame::Frame;
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::{Bundle, Flags, Message};
use armor_proto::operation::{AnyOperation, BundledOperation, Operation, OperationKind};
use bytes::{BufMut as _, Bytes, BytesMut};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rig::{ME, Number, Rig, TESTER, frame};
use serde_json::Value;

armor_proto::operations! { ATTACK_OPERATIONS;
    /// All four do something at random, with so much left for what comes of it.
    0x7f20 MSG_STIR => pub struct Stir { seed: u64, fuel: u32 }
    /// The second and the third do.
    0x7f21 MSG_STIR_MIDDLE => pub struct StirMiddle { seed: u64, fuel: u32 }
    /// All four put their number into the field `way`.
    0x7f22 MSG_PROBE => pub struct Probe {}
    /// The first pushes it again, without end; it is in the main thread.
    0x7f23 MSG_ENDLESS => pub struct Endless {}
    /// The second does; it is in a thread of its own.
    0x7f24 MSG_ENDLESS_AWAY => pub struct EndlessAway {}
    /// The first sends it to its own ARMOR so many times, until it is told to stop.
    0x7f25 MSG_AGAIN => pub struct Again { times: u32 }
    /// The second does.
    0x7f26 MSG_AGAIN_AWAY => pub struct AgainAway { times: u32 }
}

/// What comes of a message has less fuel than the message, so it ends. More than this is the work of altered bytes.
const MOST_FUEL: u32 = 4;

const NAMES: [&str; 4] = ["stirrer_0", "stirrer_1", "stirrer_2", "stirrer_3"];

/// The first and the third in the main thread, the others in their own.
const COMPOSITION: &str = "[[element]]\nname = \"stirrer_0\"\nnumber = {number}\n[[element]]\nname = \"stirrer_1\"\narbiter = true\nnumber = {number}\n\
    [[element]]\nname = \"stirrer_2\"\nnumber = {number}\n[[element]]\nname = \"stirrer_3\"\narbiter = true\nnumber = {number}\n";

fn kinds() -> Vec<ElementKind> {
    vec![
        ElementKind::of::<Stirrer<0>>(),
        ElementKind::of::<Stirrer<1>>(),
        ElementKind::of::<Stirrer<2>>(),
        ElementKind::of::<Stirrer<3>>(),
        ElementKind::of::<Keeper>(),
    ]
}

/// What a rig's elements share with the test.
#[derive(Default)]
struct Shared {
    /// Timers and tasks that have not run yet.
    pending: AtomicI64,
    stopped: AtomicBool,
    /// Operations that were sent to itself and came round.
    rounds: AtomicU64,
}

static SHARED: LazyLock<Mutex<HashMap<u64, Arc<Shared>>>> = LazyLock::new(Mutex::default);
static PANICKED: AtomicBool = AtomicBool::new(false);

fn shared(number: u64) -> Arc<Shared> {
    Arc::clone(SHARED.lock().unwrap().entry(number).or_default())
}

struct Stirrer<const N: usize> {
    shared: Arc<Shared>,
    stirred: u64,
}

impl<const N: usize> Element for Stirrer<N> {
    const NAME: &'static str = NAMES[N];
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "number = 1";
    type Config = Number;

    fn new(config: Number, _: &Setup) -> Result<Self, String> {
        Ok(Stirrer { shared: shared(config.number), stirred: 0 })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|stirrer, stir: &Stir, context| stirrer.stir(stir.seed, stir.fuel, context));
        if N == 1 || N == 2 {
            operations.on(|stirrer, stir: &StirMiddle, context| stirrer.stir(stir.seed, stir.fuel, context));
        }
        operations.on(|_, _: &Probe, context| {
            let message = context.message_mut().expect("a message");
            let mut way = message.fields.read::<Vec<usize>>("way").ok().flatten().unwrap_or_default();
            way.push(N);
            // There may be no room in what was sent at random.
            let _ = message.fields.set("way", &way);
        });
        if N == 0 {
            operations.on(|_, endless: &Endless, context| context.push_operation(endless.clone()));
            operations.on(|stirrer, again: &Again, context| stirrer.again(again.clone(), again.times, context));
        }
        if N == 1 {
            operations.on(|_, endless: &EndlessAway, context| context.push_operation(endless.clone()));
            operations.on(|stirrer, again: &AgainAway, context| stirrer.again(again.clone(), again.times, context));
        }
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        self.shared.pending.fetch_sub(1, Ordering::SeqCst);
        self.stir(token, token as u32 & 7, context);
    }

    fn capture(&self) -> Option<Vec<u8>> {
        Some(self.stirred.to_le_bytes().to_vec())
    }

    fn status(&self) -> Value {
        serde_json::json!({ "stirred": self.stirred })
    }
}

impl<const N: usize> Stirrer<N> {
    fn again(&mut self, operation: impl Operation, times: u32, context: &mut Context<'_>) {
        self.shared.rounds.fetch_add(1, Ordering::SeqCst);
        if !self.shared.stopped.load(Ordering::SeqCst) {
            (0..times).for_each(|_| context.send_to(ME, operation.clone()));
        }
    }

    fn stir(&mut self, seed: u64, fuel: u32, context: &mut Context<'_>) {
        self.stirred += 1;
        let Some(fuel) = fuel.min(MOST_FUEL).checked_sub(1) else { return };
        let mut random = StdRng::seed_from_u64(seed ^ (N as u64) << 32);
        for _ in 0..random.random_range(0..3) {
            self.act(fuel, &mut random, context);
        }
    }

    fn act(&mut self, fuel: u32, random: &mut StdRng, context: &mut Context<'_>) {
        let again = Stir { seed: random.random(), fuel };
        match random.random_range(0..19) {
            0 => context.push_operation(again),
            1 => context.push_operation(StirMiddle { seed: random.random(), fuel }),
            2 => context.push_bundle(Bundle::new(ME, again).then(StirMiddle { seed: random.random(), fuel })),
            3 => context.push_bundle(Bundle::new(destination(random), again)),
            4 => {
                if let Some(message) = context.message_mut() {
                    // More names than there is room for.
                    let _ = message.fields.set(&format!("field {}", random.random_range(0..100)), &random.random::<u64>());
                    let _ = message.fields.read::<String>(&format!("field {}", random.random_range(0..100)));
                }
            }
            5 => {
                if let Some(message) = context.message_mut() {
                    message.payload = Bytes::from(vec![0; random.random_range(0..100_000)]);
                }
            }
            6 => {
                context.message_mut().and_then(Message::pop);
            }
            7 => {
                if let Some(bundle) = context.message_mut().and_then(Message::top_mut) {
                    bundle.operations.extend((0..random.random_range(0..5)).map(|_| Stir { seed: random.random(), fuel: 0 }.into()));
                }
            }
            8 => context.send_to(ME, again),
            9 => context.send_to(destination(random), again),
            10 => context.send_reliable(Message::to(destination(random), again)),
            11 => context.send_reliable(Message::to(ME, again)),
            12 => context.received(frame_of(random_message(random, fuel))),
            13 => {
                self.shared.pending.fetch_add(1, Ordering::SeqCst);
                let token = random.random::<u64>() & !7 | u64::from(fuel);
                context.timer(Duration::from_micros(random.random_range(0..3000)), token);
            }
            14 => context.event(Event::new("stirred").with("fuel", fuel)),
            15 => {
                self.shared.pending.fetch_add(1, Ordering::SeqCst);
                let handle = context.handle::<Self>();
                let seed = random.random();
                context.spawn(async move {
                    tokio::task::yield_now().await;
                    handle.call(|stirrer, context| {
                        stirrer.stir(seed, fuel, context);
                        stirrer.shared.pending.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
            16 => context.state_changed(),
            17 => {
                if let Some(message) = context.message_mut() {
                    message.id = MessageId(random.random_range(1..300));
                    message.source = destination(random);
                    message.flags = Flags(random.random_range(0..2));
                }
            }
            _ => context.push_operation(random_operation(random, fuel)),
        }
    }
}

/// Takes what is to be sent reliably, now and then.
struct Keeper(StdRng);

impl Element for Keeper {
    const NAME: &'static str = "keeper";
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "number = 1";
    type Config = Number;

    fn new(config: Number, _: &Setup) -> Result<Self, String> {
        Ok(Keeper(StdRng::seed_from_u64(config.number)))
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|keeper, _: &SendReliable, context| {
            if keeper.0.random_bool(0.9)
                && let Some(Routed::Message(mut message)) = context.take_routed()
            {
                message.flags = Flags::EXPECT_ACK;
                // A copy comes again, as when the acknowledgement was lost.
                context.send(message.clone());
                context.send(message);
            }
        });
        operations.on(|_, _: &StateCaptured, _| ());
        operations.on(|_, _: &BundleAck, _| ());
    }
}

fn destination(random: &mut StdRng) -> ArmorId {
    match random.random_range(0..10) {
        0 => TESTER,
        1 => ArmorId::NONE,
        2 => ArmorId::FTM,
        3 => ArmorId(random.random()),
        _ => ME,
    }
}

fn encoded(operation: &dyn AnyOperation) -> Vec<u8> {
    let mut body = Vec::new();
    operation.encode(&mut body).unwrap();
    body
}

/// Known and unknown ones, whole, cut off and garbage. `MSG_SHUTDOWN` alone is left out.
fn random_operation(random: &mut StdRng, fuel: u32) -> BundledOperation {
    let stir = Stir { seed: random.random(), fuel };
    match random.random_range(0..15) {
        0..=4 => stir.into(),
        5 => StirMiddle { seed: random.random(), fuel }.into(),
        6 => BundledOperation::Encoded { kind: Stir::KIND, body: encoded(&stir).into() },
        7 => {
            let mut body = encoded(&stir);
            body.truncate(random.random_range(0..body.len()));
            BundledOperation::Encoded { kind: Stir::KIND, body: body.into() }
        }
        8 => {
            let body: Vec<u8> = (0..random.random_range(0..50)).map(|_| random.random()).collect();
            let kinds = [Stir::KIND, BundleAck::KIND, StatusQuery::KIND, EventReport::KIND, Probe::KIND];
            BundledOperation::Encoded { kind: kinds[random.random_range(0..kinds.len())], body: body.into() }
        }
        9 => {
            let kind = OperationKind(random.random());
            // One message in thousands would end the test.
            let kind = if kind == Shutdown::KIND { OperationKind(0) } else { kind };
            BundledOperation::Encoded { kind, body: Bytes::new() }
        }
        10 => BundleAck { message: MessageId(random.random_range(0..200)) }.into(),
        11 => StatusQuery {}.into(),
        12 => Route {}.into(),
        13 => BundleResumed {}.into(),
        _ => StateCaptured { element: "../../stirrer".into(), state: vec![0; 10] }.into(),
    }
}

fn random_message(random: &mut StdRng, fuel: u32) -> Message {
    let many_bundles = random.random_bool(0.02);
    let bundles = if many_bundles { Message::MAX_BUNDLES } else { random.random_range(1..6) };
    let mut stack = Vec::new();
    for _ in 0..bundles {
        let operations = if random.random_bool(0.01) && !many_bundles { Message::MAX_OPERATIONS } else { random.random_range(0..4) };
        // Many operations do little each.
        let fuel = if operations > 4 || many_bundles { 0 } else { fuel };
        let operations = (0..operations).map(|_| random_operation(random, fuel)).collect();
        stack.push(Bundle { destination: destination(random), operations });
    }
    let source = if random.random_bool(0.8) { TESTER } else { destination(random) };
    let flags = [Flags(0), Flags::EXPECT_ACK, Flags(random.random())][random.random_range(0..3)];
    let payload = Bytes::from(vec![1; random.random_range(0..2000)]);
    // Few numbers, so that many are seen twice.
    Message::from_parts(source, MessageId(random.random_range(1..300)), flags, stack, Default::default(), payload)
}

fn frame_of(message: Message) -> Frame {
    frame(&message)
}

/// A frame whose checksum is right and whose content is not.
fn garbage_frame(random: &mut StdRng) -> Frame {
    let mut head = frame(&random_message(random, 0)).bytes()[40..].to_vec();
    match random.random_range(0..3) {
        0 => head.truncate(random.random_range(0..head.len())),
        1 => head = (0..random.random_range(0..200)).map(|_| random.random()).collect(),
        _ => {
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..head.len());
                head[at] = random.random();
            }
        }
    }
    let mut bytes = BytesMut::new();
    bytes.put_slice(b"AR\x01\x00");
    bytes.put_u32_le(random.random_range(0..4));
    bytes.put_u32_le(head.len() as u32);
    bytes.put_u32_le(0);
    bytes.put_u64_le(TESTER.0);
    bytes.put_u64_le(ME.0);
    bytes.put_u32_le(7);
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes), &head);
    bytes.put_u32_le(sum);
    bytes.put_slice(&head);
    Frame::take(&mut bytes).unwrap().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Every message that was taken up has ended in one way, is parked, or is the question for this very status.
fn adds_up(status: &Value) {
    let counters = &status["counters"];
    let ends = ["finished", "routed", "unroutable", "unknown_operation", "undecodable", "runaway", "repeated", "congested"];
    let ended: u64 = ends.iter().map(|end| number(&counters[end])).sum();
    assert_eq!(number(&counters["taken"]), ended + number(&counters["parked"]) + 1, "{counters:#}");
    for name in ["stirrer_1", "stirrer_3"] {
        let parked = number(&status["elements"][name]["arbiter"]["parked"]);
        assert!(parked <= MAX_PARKED as u64, "{parked} messages are parked at {name}");
    }
}

/// Waits until nothing is under way.
fn quiet(rig: &mut Rig) -> Value {
    let shared = shared(rig.number);
    let mut before = 0;
    rig.eventually("everything ends", |status| {
        adds_up(status);
        let taken = number(&status["counters"]["taken"]);
        // The answer to the question before, and this question.
        let nothing_else_came = taken == before + 2;
        before = taken;
        let still = number(&status["counters"]["parked"]) == 0 && shared.pending.load(Ordering::SeqCst) == 0;
        (still && nothing_else_came).then(|| status.clone())
    })
}

/// A message still goes through all elements in order, and leaves.
fn probe(rig: &mut Rig) {
    rig.send(Message::to(ME, Probe {}).followed_by(Bundle::new(TESTER, Probe {})));
    let way = rig
        .left("the probe", |message| rig::first::<Probe>(message).and_then(|_| message.fields.read::<Vec<usize>>("way").expect("numbers")));
    assert_eq!(way, [0, 1, 2, 3]);
}

fn note_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let say = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICKED.store(true, Ordering::SeqCst);
            say(panic);
        }));
    });
}

fn rig() -> Rig {
    note_panics();
    Rig::run(&format!("{COMPOSITION}[[element]]\nname = \"keeper\"\nnumber = {{number}}\n"), kinds())
}

#[test]
fn thousands_of_random_messages_panic_nothing_and_add_up() {
    const ROUNDS: u64 = 8;
    const MESSAGES: u64 = 1000;
    let seed = std::env::var("ARMOR_TEST_SEED").map_or_else(|_| rand::random::<u64>(), |seed| seed.parse().expect("a number"));
    println!("ARMOR_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..ROUNDS {
        let mut rig = rig();
        for _ in 0..MESSAGES {
            let fuel = random.random_range(0..=MOST_FUEL);
            match random.random_range(0..10) {
                0..=5 => rig.came_as(frame_of(random_message(&mut random, fuel))),
                6..=8 => rig.send(random_message(&mut random, fuel)),
                _ => rig.came_as(garbage_frame(&mut random)),
            }
            if random.random_bool(0.01) {
                adds_up(&rig.status());
            }
        }
        let status = quiet(&mut rig);
        assert_eq!(number(&status["counters"]["unfinished"]), 0);
        // The attack reached what it was aimed at.
        for way in ["finished", "routed", "unknown_operation", "undecodable", "duplicates"] {
            assert!(number(&status["counters"][way]) > 0, "{way}: {status:#}");
        }
        for name in NAMES {
            assert!(number(&status["elements"][name]["handled"]) > 0, "{name}: {status:#}");
        }
        probe(&mut rig);
        rig.shut_down();
        assert!(!PANICKED.load(Ordering::SeqCst), "something panicked");
    }
}

#[test]
fn an_operation_that_is_pushed_without_end_is_dropped_and_the_armor_goes_on() {
    let mut rig = rig();
    let endless: [(OperationKind, BundledOperation); 2] = [(Endless::KIND, Endless {}.into()), (EndlessAway::KIND, EndlessAway {}.into())];
    for (kind, operation) in endless {
        rig.send_to_me(operation);
        assert_eq!(rig.event("message-runaway").values["operation"], format!("{:#06x}", kind.0));
        probe(&mut rig);
    }
    let status = quiet(&mut rig);
    assert_eq!(number(&status["counters"]["runaway"]), 2);
}

/// The operations that the first and the second element send to themselves.
fn again(times: u32) -> [BundledOperation; 2] {
    [Again { times }.into(), AgainAway { times }.into()]
}

#[test]
fn an_element_that_sends_to_itself_without_end_holds_up_nothing_else() {
    for operation in again(1) {
        let mut rig = rig();
        let shared = shared(rig.number);
        rig.send_to_me(operation);
        rig::wait_until("it has come round often", || shared.rounds.load(Ordering::SeqCst) > 20_000);
        // Questions, probes and what comes from outside get through.
        for _ in 0..20 {
            adds_up(&rig.status());
            probe(&mut rig);
        }
        shared.stopped.store(true, Ordering::SeqCst);
        quiet(&mut rig);
    }
}

#[test]
fn an_element_that_sends_ever_more_to_itself_fills_its_queue_and_no_more() {
    for (operation, way) in again(3).into_iter().zip(["overflow", "congested"]) {
        let mut rig = rig();
        let shared = shared(rig.number);
        rig.send_to_me(operation);
        rig::wait_until("it has come round often", || shared.rounds.load(Ordering::SeqCst) > 2 * MAX_QUEUE as u64);
        shared.stopped.store(true, Ordering::SeqCst);
        let status = quiet(&mut rig);
        assert!(number(&status["counters"][way]) > MAX_QUEUE as u64, "{status:#}");
        probe(&mut rig);
    }
}
