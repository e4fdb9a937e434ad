//! One ARMOR in a thread of this process, with a door: what the test sends goes in as if it had come from another process or
//! from an element, and what leaves the ARMOR comes to the test.

pub mod players;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use armor_core::composition::Composition;
use armor_core::context::{Context, Routed};
use armor_core::element::{Element, ElementKind, Operations, Setup};
use armor_core::operations::{EventReport, Route, Shutdown, StatusQuery, StatusReport};
use armor_proto::frame::Frame;
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::Message;
use armor_proto::operation::{BundledOperation, Operation, decode};
use bytes::BytesMut;
use serde::Deserialize;
use tokio::sync::mpsc as task_mpsc;

pub const WITHIN: Duration = Duration::from_secs(30);
/// The ARMOR under test.
pub const ME: ArmorId = ArmorId(5);
/// Whom messages of the test come from.
pub const TESTER: ArmorId = ArmorId(900);
/// Who asks for the status: this and the following.
const ASKERS: u64 = 1_000_000;

/// What the test puts through the door.
pub enum In {
    /// As if an element of the ARMOR had sent it.
    Sent(Message),
    /// As if it had come from another process.
    Came(Frame),
}

type Ends = (task_mpsc::UnboundedReceiver<In>, mpsc::Sender<Message>);

static DOORS: LazyLock<Mutex<HashMap<u64, Ends>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The element: takes everything that wants to leave.
pub struct Door {
    ends: Option<Ends>,
    out: mpsc::Sender<Message>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Number {
    pub number: u64,
}

impl Element for Door {
    const NAME: &'static str = "door";
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "number = 1";
    type Config = Number;

    fn new(config: Number, _: &Setup) -> Result<Self, String> {
        let ends = DOORS.lock().expect("doors").remove(&config.number).ok_or("no such door")?;
        Ok(Door { out: ends.1.clone(), ends: Some(ends) })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|door, _: &Route, context| {
            let message = match context.take_routed() {
                Some(Routed::Message(message)) => message,
                Some(Routed::Frame(frame)) => match frame.decode() {
                    Ok(message) => message,
                    // Passed on as it came; whoever it is for refuses it.
                    Err(_) => return,
                },
                None => return,
            };
            // A test that is over hears no more.
            let _ = door.out.send(message);
        });
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        let Some((mut through, _)) = self.ends.take() else { return Err("started twice".into()) };
        let handle = context.handle::<Door>();
        context.spawn(async move {
            while let Some(first) = through.recv().await {
                // What lies there already goes in at once, as from a socket.
                let mut come = vec![first];
                while let Ok(next) = through.try_recv() {
                    come.push(next);
                }
                handle.call(|_, context| {
                    for one in come {
                        match one {
                            In::Sent(message) => context.send(message),
                            In::Came(frame) => context.received(frame),
                        }
                    }
                });
            }
        });
        Ok(())
    }
}

/// A running ARMOR. Dropped, it is shut down.
pub struct Rig {
    pub number: u64,
    door: task_mpsc::UnboundedSender<In>,
    out: mpsc::Receiver<Message>,
    passed_over: Vec<Message>,
    thread: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
    next_message: u64,
}

impl Rig {
    /// Runs the elements of `composition`, in which `{number}` is the rig's number, behind a door.
    pub fn run(composition: &str, kinds: Vec<ElementKind>) -> Rig {
        Rig::run_in(tempfile::tempdir().expect("directory"), composition, kinds)
    }

    /// The same in a run directory that may hold captured state, which is given back.
    pub fn run_in(directory: tempfile::TempDir, composition: &str, kinds: Vec<ElementKind>) -> Rig {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (door, through) = task_mpsc::unbounded_channel();
        let (out_sender, out) = mpsc::channel();
        DOORS.lock().expect("doors").insert(number, (through, out_sender));
        let kinds: Vec<ElementKind> = kinds.into_iter().chain([ElementKind::of::<Door>()]).collect();
        let text = format!("{composition}\n[[element]]\nname = \"door\"\nnumber = {{number}}\n").replace("{number}", &number.to_string());
        let composition = Composition::parse("rig", &text, &kinds).expect("composition");
        let setup = Setup { armor: ME, name: "me".into(), kind: "test".into(), run_dir: directory.path().into() };
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            armor_core::host::run(&composition, &kinds, setup, true, || ready.send(()).expect("the test waits")).expect("runs");
        });
        is_ready.recv_timeout(WITHIN).expect("starts");
        Rig { number, door, out, passed_over: Vec::new(), thread: Some(thread), directory, next_message: 0 }
    }

    pub fn run_dir(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// As if an element had sent it.
    pub fn send(&self, message: Message) {
        self.door.send(In::Sent(message)).map_err(|_| ()).expect("the ARMOR runs");
    }

    pub fn send_to_me(&self, operation: impl Into<BundledOperation>) {
        self.send(Message::to(ME, operation));
    }

    /// As if it had come from another process.
    pub fn came(&mut self, mut message: Message) {
        if message.source == ArmorId::NONE {
            message.source = TESTER;
        }
        if message.id == MessageId(0) {
            self.next_message += 1;
            message.id = MessageId(self.next_message);
        }
        self.came_as(frame(&message));
    }

    pub fn came_as(&self, frame: Frame) {
        self.door.send(In::Came(frame)).map_err(|_| ()).expect("the ARMOR runs");
    }

    /// The next message that has left and of which `wanted` gives something; others are kept for later.
    pub fn left<T>(&mut self, what: &str, wanted: impl FnMut(&Message) -> Option<T>) -> T {
        self.left_within(WITHIN, wanted).unwrap_or_else(|| panic!("{what}: not within {WITHIN:?}"))
    }

    fn left_within<T>(&mut self, within: Duration, mut wanted: impl FnMut(&Message) -> Option<T>) -> Option<T> {
        if let Some((index, found)) = self.passed_over.iter().enumerate().find_map(|(index, message)| Some((index, wanted(message)?))) {
            self.passed_over.remove(index);
            return Some(found);
        }
        let until = Instant::now() + within;
        loop {
            let message = self.out.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
            match wanted(&message) {
                Some(found) => return Some(found),
                None => self.passed_over.push(message),
            }
        }
    }

    /// The next operation of type `O` that has left for `destination`.
    pub fn operation<O: Operation>(&mut self, destination: ArmorId) -> O {
        self.left(O::NAME, |message| (message.destination() == Some(destination)).then(|| first(message))?)
    }

    /// The next event called `what`.
    pub fn event(&mut self, what: &str) -> armor_core::events::Event {
        self.left(what, |message| first::<EventReport>(message).map(|report| report.event).filter(|event| event.what == what))
    }

    /// The status, asked for again when the question was lost.
    pub fn status(&mut self) -> serde_json::Value {
        let until = Instant::now() + WITHIN;
        while Instant::now() < until {
            self.next_message += 1;
            // Every question has an asker of its own, so that no other's answer is taken for this one's.
            let asker = ArmorId(ASKERS + self.next_message);
            let mut message = Message::to(ME, StatusQuery {});
            message.source = asker;
            self.came_as(frame(&message));
            let answer = |message: &Message| (message.destination() == Some(asker)).then(|| first::<StatusReport>(message))?;
            if let Some(report) = self.left_within(Duration::from_secs(1), answer) {
                return serde_json::from_str(&report.json).expect("JSON");
            }
        }
        panic!("the status: not within {WITHIN:?}");
    }

    /// Asks for the status until `fact` gives something.
    pub fn eventually<T>(&mut self, what: &str, mut fact: impl FnMut(&serde_json::Value) -> Option<T>) -> T {
        let until = Instant::now() + WITHIN;
        loop {
            let status = self.status();
            if let Some(found) = fact(&status) {
                return found;
            }
            assert!(Instant::now() < until, "{what}: not within {WITHIN:?}; {status:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the ARMOR has ended by itself.
    pub fn ended(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the ARMOR's thread");
        }
    }

    /// Shuts the ARMOR down and waits until its threads have ended.
    pub fn shut_down(&mut self) {
        if let Some(thread) = self.thread.take() {
            let mut message = Message::to(ME, Shutdown {});
            message.source = TESTER;
            // It may have ended by itself.
            let _ = self.door.send(In::Came(frame(&message)));
            thread.join().expect("the ARMOR's thread");
        }
    }

    /// Everything that has left and was not looked at.
    pub fn rest(&mut self) -> Vec<Message> {
        let mut rest = std::mem::take(&mut self.passed_over);
        rest.extend(self.out.try_iter());
        rest
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.shut_down();
        }
    }
}

/// The wire form of a message.
pub fn frame(message: &Message) -> Frame {
    let encoded = armor_proto::frame::encode(message, &mut BytesMut::new()).expect("encodes");
    let mut bytes = BytesMut::from(&encoded.head[..]);
    bytes.extend_from_slice(&encoded.payload);
    Frame::take(&mut bytes).expect("a frame").expect("a whole one")
}

/// The first operation of the next bundle, if it is an `O`.
pub fn first<O: Operation>(message: &Message) -> Option<O> {
    match message.top()?.operations.front()? {
        BundledOperation::Typed(typed) => typed.as_any().downcast_ref::<O>().cloned(),
        BundledOperation::Encoded { kind, body } => (*kind == O::KIND).then(|| decode(body).ok())?,
    }
}

/// Waits until `fact` holds.
pub fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let until = Instant::now() + WITHIN;
    while !fact() {
        assert!(Instant::now() < until, "{what}: not within {WITHIN:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
