//! Three elements for tests: `alpha`, `beta` and `gamma` hear notes and write them into a journal; `beta` does what it is told.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use armor_core::capture::{CapturedStates, StateStore};
use armor_core::context::Context;
use armor_core::element::{Element, ElementKind, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::{SendReliable, StateCaptured};
use armor_proto::frame::Frame;
use armor_proto::message::{Bundle, Message};

use super::{ME, Number, Rig, TESTER, frame};

armor_proto::operations! { PLAYERS_OPERATIONS;
    /// Written down by all three.
    0x7f00 MSG_NOTE => pub struct Note { text: String }
    /// Written down by gamma alone.
    0x7f01 MSG_GAMMA => pub struct Gamma { text: String }
    /// Written down by beta alone.
    0x7f02 MSG_BETA => pub struct Beta { text: String }
    /// Holds the thread of beta until the test opens the gate.
    0x7f03 MSG_GATE => pub struct Gate {}
    /// Beta pushes a note, and a bundle for the tester.
    0x7f04 MSG_NEST => pub struct Nest {}
    /// Beta asks for an effect.
    0x7f05 MSG_ASK => pub struct Ask { what: String }
    /// A task of beta calls it so many times, and each time it sends a number to the tester.
    0x7f06 MSG_FLOOD => pub struct Flood { count: u32 }
    /// One of those numbers.
    0x7f07 MSG_COUNTED => pub struct Counted { number: u32 }
    /// Holds the main thread until the test opens the gate.
    0x7f08 MSG_MAIN_GATE => pub struct MainGate {}
    /// The main thread's clock jumps to its next timer whenever the thread has nothing to do.
    0x7f09 MSG_JUMP => pub struct Jump {}
}

/// `alpha` and `gamma` in the main thread, `beta` between them in an Arbiter of its own.
pub const ALPHA_BETA_GAMMA: &str = "[[element]]\nname = \"alpha\"\nnumber = {number}\n[[element]]\nname = \"beta\"\narbiter = true\nnumber = {number}\n\
    [[element]]\nname = \"gamma\"\nnumber = {number}\n";

/// Numbers with which beta does not come to life.
pub const NOT_BUILT: u64 = u64::MAX >> 1;
pub const NOT_STARTED: u64 = NOT_BUILT - 1;

pub fn kinds() -> Vec<ElementKind> {
    vec![ElementKind::of::<AlphaElement>(), ElementKind::of::<BetaElement>(), ElementKind::of::<GammaElement>()]
}

pub fn note(text: &str) -> Note {
    Note { text: text.to_owned() }
}

/// What a rig's elements have written down, and where they wait.
#[derive(Default)]
pub struct Stage {
    journal: Mutex<Vec<String>>,
    /// Holds beta.
    pub gate: Barrier,
    /// Holds the main thread.
    pub main_gate: Barrier,
    /// Calls of the flooding task that have begun.
    pub flooding: std::sync::atomic::AtomicU32,
    threads: Mutex<Vec<(String, ThreadId)>>,
}

/// Something to wait at until the test opens it.
#[derive(Default)]
pub struct Barrier {
    state: Mutex<(bool, u32)>,
    opened: Condvar,
}

impl Barrier {
    fn wait(&self) {
        let mut state = self.state.lock().expect("barrier");
        state.1 += 1;
        while !state.0 {
            state = self.opened.wait(state).expect("barrier");
        }
    }

    /// Waits until somebody waits.
    pub fn reached(&self) {
        super::wait_until("somebody comes to the barrier", || self.state.lock().expect("barrier").1 > 0);
    }

    pub fn open(&self) {
        self.state.lock().expect("barrier").0 = true;
        self.opened.notify_all();
    }
}

static STAGES: LazyLock<Mutex<HashMap<u64, Arc<Stage>>>> = LazyLock::new(Mutex::default);

impl Stage {
    pub fn of(number: u64) -> Arc<Stage> {
        Arc::clone(STAGES.lock().expect("stages").entry(number).or_default())
    }

    fn write(&self, line: String) {
        self.journal.lock().expect("journal").push(line);
    }

    pub fn journal(&self) -> Vec<String> {
        self.journal.lock().expect("journal").clone()
    }

    /// Waits until that many lines are written, and gives them.
    pub fn lines(&self, count: usize) -> Vec<String> {
        super::wait_until(&format!("{count} lines in the journal"), || self.journal().len() >= count);
        self.journal()
    }

    fn entered(&self, what: &str) {
        self.threads.lock().expect("threads").push((what.to_owned(), std::thread::current().id()));
    }

    /// In which threads what was called.
    pub fn threads(&self) -> Vec<(String, ThreadId)> {
        self.threads.lock().expect("threads").clone()
    }
}

impl Rig {
    pub fn stage(&self) -> Arc<Stage> {
        Stage::of(self.number)
    }
}

fn write_note(name: &str, stage: &Stage, operation: &Note, context: &mut Context<'_>) {
    let count = context.message_mut().map_or(0, |message| {
        let count = message.fields.read::<u32>("count").expect("a number").unwrap_or(0) + 1;
        message.fields.set("count", &count).expect("room");
        count
    });
    stage.write(format!("{name} {} {count}", operation.text));
}

pub struct AlphaElement(Arc<Stage>);

impl Element for AlphaElement {
    const NAME: &'static str = "alpha";
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "number = 1";
    type Config = Number;

    fn new(config: Number, _: &Setup) -> Result<Self, String> {
        Ok(AlphaElement(Stage::of(config.number)))
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|alpha, operation: &Note, context| write_note("alpha", &alpha.0, operation, context));
        operations.on(|alpha, _: &MainGate, _| alpha.0.main_gate.wait());
        operations.on(|_, _: &Jump, _| tokio::time::pause());
    }

    fn start(&mut self, _: &mut Context<'_>) -> Result<(), String> {
        self.0.entered("main");
        Ok(())
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.0.write("alpha stops".into());
    }
}

/// With the states of an earlier life, where the run directory has some.
pub struct GammaElement(Arc<Stage>, Option<CapturedStates>);

impl Element for GammaElement {
    const NAME: &'static str = "gamma";
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "number = 1";
    type Config = Number;

    fn new(config: Number, setup: &Setup) -> Result<Self, String> {
        let file = setup.run_dir.join("state.redb");
        let states = file.exists().then(|| CapturedStates::open(None, Some(&file))).transpose()?;
        Ok(GammaElement(Stage::of(config.number), states))
    }

    fn state_store(&mut self) -> Option<&mut dyn StateStore> {
        self.1.as_mut().map(|states| states as &mut dyn StateStore)
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|gamma, operation: &Note, context| write_note("gamma", &gamma.0, operation, context));
        operations.on(|gamma, operation: &Gamma, _| gamma.0.write(format!("gamma {}", operation.text)));
        operations.on(|gamma, _: &SendReliable, context| {
            if let Some(message) = context.take_routed() {
                gamma.0.write(format!("gamma keeps a message for {}", message.destination()));
            }
        });
        operations.on(|gamma, captured: &StateCaptured, _| {
            gamma.0.write(format!("gamma sees the state of {}: {:?}", captured.element, captured.state));
        });
    }

    fn stop(&mut self, context: &mut Context<'_>) {
        self.0.write("gamma stops".into());
        context.send_to(TESTER, note("gamma says goodbye"));
    }
}

/// Not `Send`, as elements may be.
pub struct BetaElement {
    stage: Arc<Stage>,
    written: Rc<std::cell::Cell<u32>>,
    refuses: bool,
}

impl Element for BetaElement {
    const NAME: &'static str = "beta";
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "number = 1";
    type Config = Number;

    fn new(config: Number, _: &Setup) -> Result<Self, String> {
        let stage = Stage::of(config.number);
        stage.entered("new");
        if config.number == NOT_BUILT {
            return Err("it refuses to be built".into());
        }
        Ok(BetaElement { stage, written: Rc::default(), refuses: config.number == NOT_STARTED })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|beta, operation: &Note, context| {
            beta.stage.entered("handler");
            beta.written.set(beta.written.get() + 1);
            write_note("beta", &beta.stage, operation, context);
        });
        operations.on(|beta, operation: &Beta, _| {
            beta.written.set(beta.written.get() + 1);
            beta.stage.write(format!("beta {}", operation.text));
        });
        operations.on(|beta, _: &Gate, _| beta.stage.gate.wait());
        operations.on(|_, _: &Nest, context| {
            context.push_operation(note("pushed"));
            context.push_bundle(Bundle::new(TESTER, note("elsewhere")));
        });
        operations.on(Self::ask).on(Self::flood);
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        self.stage.entered("start");
        context.send_to(TESTER, note("started"));
        if self.refuses { Err("it refuses to start".into()) } else { Ok(()) }
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        self.stage.entered("timer");
        context.send_to(TESTER, note(&format!("timer {token}")));
    }

    fn capture(&self) -> Option<Vec<u8>> {
        Some(self.written.get().to_le_bytes().to_vec())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.stage.entered("restore");
        self.written.set(u32::from_le_bytes(state.try_into().map_err(|_| "not a number")?));
        Ok(())
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "written": self.written.get() })
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.stage.entered("stop");
        self.stage.write("beta stops".into());
    }
}

impl BetaElement {
    fn ask(&mut self, ask: &Ask, context: &mut Context<'_>) {
        match ask.what.as_str() {
            "send" => context.send_to(TESTER, note("sent")),
            "send_reliable" => context.send_reliable(Message::to(TESTER, note("sent reliably"))),
            "received" => {
                let mut message = Message::to(ME, Gamma { text: "received".into() });
                message.source = TESTER;
                let came: Frame = frame(&message);
                context.received(came);
            }
            "timer" => context.timer(Duration::from_millis(1), 7),
            "event" => context.event(Event::new("beta-event").with("of", "beta")),
            "state_changed" => context.state_changed(),
            "shutdown" => context.shutdown(),
            "fail_stop" => context.fail_stop("beta wants it"),
            "panic" => panic!("beta panics"),
            "hang" => loop {
                std::thread::park();
            },
            "spawn" => {
                let handle = context.handle::<BetaElement>();
                context.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let written = handle.call(|beta, context| {
                        beta.stage.entered("task");
                        context.send_to(TESTER, note("from the task"));
                        beta.written.get()
                    });
                    assert!(written.is_some());
                });
            }
            other => panic!("no effect {other:?}"),
        }
    }

    fn flood(&mut self, flood: &Flood, context: &mut Context<'_>) {
        let handle = context.handle::<BetaElement>();
        let count = flood.count;
        context.spawn(async move {
            for number in 0..count {
                handle.call(|beta, context| {
                    beta.stage.flooding.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    context.send_to(TESTER, Counted { number });
                });
            }
        });
    }
}
