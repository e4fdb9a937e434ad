//! The one module that knows actix: a System per ARMOR, an actor per element, an Arbiter for each element that has one of its own.
//!
//! An element's actor owns its timers and its life; operations reach the element by a direct call from the dispatcher in the
//! same thread (see ARCHITECTURE.md, "Why direct dispatch"), or over the crossing of [`crate::arbiter`].
//!
//! Invariant: a panic anywhere ends the process at once. actix alone would leave a dead actor and silent sends.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Arbiter, Context, Handler, Message, System};

use crate::arbiter::crossing::{Exit, crossing};
use crate::arbiter::resident::Departure;
use crate::arbiter::{Answer, MAX_ANSWERS, Remote};
use crate::armor::{Armor, Life, Member};
use crate::cell::{ElementCell, Home as _, Spawner};
use crate::composition::{Composition, CompositionError, Thread};
use crate::element::{ElementKind, Setup};

/// The actor of one element.
struct ElementActor {
    cell: Rc<ElementCell>,
}

impl Actor for ElementActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(crate::armor::MAX_QUEUE);
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct SetTimer {
    pause: Duration,
    token: u64,
}

impl Handler<SetTimer> for ElementActor {
    type Result = ();

    fn handle(&mut self, timer: SetTimer, _: &mut Self::Context) {
        // Not `run_later`: whenever one of an actor's timers or a message wakes it, actix polls all of its timers.
        run_out(timer.pause, Rc::clone(&self.cell), timer.token);
    }
}

/// A timer of an element.
fn run_out(pause: Duration, cell: Rc<ElementCell>, token: u64) {
    actix_rt::spawn(async move {
        actix_rt::time::sleep(pause).await;
        cell.timer(token);
    });
}

/// The actors of one thread.
#[derive(Default)]
struct ActixThread {
    actors: RefCell<HashMap<usize, Addr<ElementActor>>>,
}

impl ActixThread {
    fn act(&self, cell: &Rc<ElementCell>) {
        self.actors.borrow_mut().insert(cell.index(), ElementActor { cell: Rc::clone(cell) }.start());
    }
}

impl Spawner for ActixThread {
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()>>>) {
        actix_rt::spawn(task);
    }

    fn timer(&self, pause: Duration, cell: Rc<ElementCell>, token: u64) {
        let actors = self.actors.borrow();
        match actors.get(&cell.index()) {
            Some(actor) if actor.try_send(SetTimer { pause, token }).is_ok() => {}
            // Before the actors exist (an element's start), or when the mailbox is full: the timer must not be lost.
            _ => run_out(pause, cell, token),
        }
    }
}

/// The Arbiters of elements that have one of their own. Dropped, it ends them and waits for their threads.
#[derive(Default)]
struct Arbiters(Vec<Arbiter>);

impl Arbiters {
    /// Brings an element to an Arbiter of its own, and waits until it is built.
    fn open(&mut self, departure: Departure) -> Result<(), RunError> {
        let arbiter = Arbiter::try_new().map_err(RunError::Arbiter)?;
        let (built, is_built) = crossbeam_channel::bounded(1);
        arbiter.spawn_fn(move || {
            let thread = Rc::new(ActixThread::default());
            let arrived = departure.arrive(thread.clone()).map(|(cell, life)| {
                thread.act(&cell);
                actix_rt::spawn(life);
            });
            // There is room for one, and the main thread waits for it.
            let _ = built.send(arrived);
        });
        self.0.push(arbiter);
        let gone = || RunError::Arbiter(std::io::Error::other("it ended while an element was being built in it"));
        is_built.recv().map_err(|_| gone())?.map_err(RunError::Composition)
    }
}

impl Drop for Arbiters {
    fn drop(&mut self) {
        for arbiter in &self.0 {
            arbiter.stop();
        }
        for arbiter in self.0.drain(..) {
            // A thread that panicked has said so.
            let _ = arbiter.join();
        }
    }
}

fn stop_system() {
    // What was sent while stopping (sockets, last events) gets a moment to leave.
    actix_rt::spawn(async {
        actix_rt::time::sleep(Duration::from_millis(20)).await;
        if let Some(system) = System::try_current() {
            system.stop();
        }
    });
}

/// Runs an ARMOR in this thread until it is shut down (`MSG_SHUTDOWN`, SIGTERM or SIGINT).
///
/// With `restore`, the state of an earlier life that the composition's `state_capture` has kept is given back to the elements. `ready` is called when all
/// have started, inside the event loop: what it spawns with `tokio::task::spawn_local` runs beside them.
///
/// # Errors
/// When the composition is wrong, the run directory cannot be written, or an element cannot start.
pub fn run(composition: &Composition, kinds: &[ElementKind], setup: Setup, restore: bool, ready: impl FnOnce()) -> Result<(), RunError> {
    let directory = |source| RunError::RunDirectory { path: setup.run_dir.clone(), source };
    std::fs::create_dir_all(&setup.run_dir).map_err(directory)?;
    let nonce = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| (since.as_nanos() >> 10) as u32);

    // Dropped after the System, whose end frees those that wait for it.
    let mut arbiters = Arbiters::default();
    let system = System::new();
    let started = system.block_on(async {
        let thread = Rc::new(ActixThread::default());
        let (members, answers) = members(composition, kinds, &setup, &mut arbiters)?;
        let armor = Armor::new(setup.clone(), members, nonce, thread.clone(), Box::new(stop_system));
        armor.cells().for_each(|cell| thread.act(cell));
        if let Some(answers) = answers {
            armor.hear(answers);
        }
        armor.start(if restore { Life::Next } else { Life::First }).map_err(|(element, reason)| RunError::Start {
            armor: setup.name.clone(),
            element,
            reason,
        })?;
        end_on_signals(&armor);
        ready();
        Ok(armor)
    })?;
    let ended = system.run().map_err(RunError::System);
    drop(started);
    ended
}

/// Builds the elements in composition order, each in its thread. Gives them, and where those in other threads are heard.
fn members(
    composition: &Composition,
    kinds: &[ElementKind],
    setup: &Setup,
    arbiters: &mut Arbiters,
) -> Result<(Vec<Member>, Option<Exit<Answer>>), RunError> {
    let (entrance, exit) = composition.threads().contains(&Thread::Own).then(|| crossing(MAX_ANSWERS)).unzip();
    let statuses = Arc::default();
    let mut members = Vec::with_capacity(composition.threads().len());
    for (index, thread) in composition.threads().iter().enumerate() {
        members.push(match (thread, &entrance) {
            (Thread::Own, Some(answers)) => {
                let blueprint = composition.blueprint(index, kinds, setup).map_err(RunError::Composition)?;
                let (remote, departure) = Remote::new(blueprint, answers.clone(), Arc::clone(&statuses));
                arbiters.open(departure)?;
                Member::Away(remote)
            }
            _ => Member::Here(composition.build(index, kinds, setup).map_err(RunError::Composition)?),
        });
    }
    Ok((members, exit))
}

fn end_on_signals(armor: &Rc<Armor>) {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let armor = Rc::downgrade(armor);
        if let Ok(mut signals) = signal(kind) {
            actix_rt::spawn(async move {
                signals.recv().await;
                if let Some(armor) = armor.upgrade() {
                    armor.shutdown();
                    // What elements sent when they were stopped.
                    armor.left();
                }
            });
        }
    }
}

/// Makes any panic end the process at once (fail-stop), in builds that unwind too.
pub fn abort_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort();
    }));
}

/// Why an ARMOR could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The TOML.
    #[error(transparent)]
    Composition(CompositionError),
    /// The run directory.
    #[error("run directory {} cannot be used: {source}; choose another with --run-dir", path.display())]
    RunDirectory {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An element.
    #[error("ARMOR {armor}: element {element} cannot start: {reason}")]
    Start {
        /// ARMOR.
        armor: String,
        /// Element.
        element: &'static str,
        /// Why.
        reason: String,
    },
    /// A thread for an element.
    #[error("no Arbiter for an element: {0}")]
    Arbiter(std::io::Error),
    /// actix.
    #[error("the event loop ended: {0}")]
    System(std::io::Error),
}
