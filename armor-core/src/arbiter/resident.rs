//! An element's end of the way: what runs in its own Arbiter.
//!
//! The element is built here, its timers and tasks run here, and what it asks for crosses to the main thread. Its status is
//! written to a table that the main thread reads.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::crossing::{Entrance, Exit};
use super::{Answer, AnswerTo, Asked, Parked, Request, Start, Started, Statuses};
use crate::armor::fail_stop;
use crate::cell::{ElementCell, Home, Spawner};
use crate::composition::{Blueprint, CompositionError};
use crate::context::{Effect, Effects};
use crate::element::Setup;

/// Shortest pause between two looks at the element's status.
const SHOWN_EVERY: Duration = Duration::from_millis(100);
/// The pause is so many times as long as the look took, for it may be costly.
const COST: u32 = 20;

/// What travels to the thread in which an element is to live.
pub(crate) struct Departure {
    pub(super) blueprint: Blueprint,
    pub(super) asked: Exit<Asked>,
    pub(super) answers: Entrance<Answer>,
    pub(super) statuses: Arc<Statuses>,
}

impl Departure {
    /// Builds the element, in its own thread. Gives its place, and the task that it lives in.
    ///
    /// # Errors
    /// When the element refuses its configuration.
    pub(crate) fn arrive(
        self,
        spawner: Rc<dyn Spawner>,
    ) -> Result<(Rc<ElementCell>, impl Future<Output = ()> + 'static), CompositionError> {
        let element = self.blueprint.build()?;
        let resident = Rc::new(Resident {
            setup: self.blueprint.setup().clone(),
            index: self.blueprint.index(),
            answers: self.answers,
            statuses: self.statuses,
            changed: Notify::new(),
            spawner,
        });
        let home: Rc<dyn Home> = Rc::clone(&resident) as Rc<dyn Home>;
        let cell = ElementCell::new(resident.index, element, Rc::downgrade(&home));
        Ok((Rc::clone(&cell), live(resident, cell, self.asked)))
    }
}

struct Resident {
    setup: Setup,
    index: usize,
    answers: Entrance<Answer>,
    statuses: Arc<Statuses>,
    changed: Notify,
    spawner: Rc<dyn Spawner>,
}

impl Home for Resident {
    fn setup(&self) -> &Setup {
        &self.setup
    }

    fn carry_out(&self, cell: &Rc<ElementCell>, effects: Effects) {
        let requests = self.requests(cell, effects);
        if requests.is_empty() {
            self.changed.notify_one();
        } else {
            self.answer(requests, AnswerTo::Itself);
        }
    }
}

impl Resident {
    /// Carries out what can be done in this thread; the rest crosses.
    fn requests(&self, cell: &Rc<ElementCell>, effects: Effects) -> Vec<Request> {
        let crossing = effects.into_iter().filter_map(|effect| {
            Some(match effect {
                Effect::Send(message) => Request::Send(message),
                Effect::SendReliable(message) => Request::SendReliable(message),
                Effect::Received(frame) => Request::Received(frame),
                Effect::Event(event) => Request::Event(event),
                Effect::Complaint(event) => Request::Complaint(event),
                Effect::Shutdown => Request::Shutdown,
                Effect::StateChanged => Request::Captured(cell.element().borrow().capture()?),
                Effect::Then(work) => {
                    work();
                    return None;
                }
                Effect::Timer(pause, token) => {
                    self.spawner.timer(pause, Rc::clone(cell), token);
                    return None;
                }
                Effect::Spawn(task) => {
                    self.spawner.spawn(task);
                    return None;
                }
                Effect::FailStop(reason) => fail_stop(&self.setup.name, cell.name(), &reason),
            })
        });
        crossing.collect()
    }

    /// Waits while there is no room: this thread may, the main thread never does.
    fn answer(&self, requests: Vec<Request>, to: AnswerTo) {
        // An ARMOR that has ended needs no answer.
        let _ = self.answers.send(Answer { index: self.index, requests, to });
        self.changed.notify_one();
    }

    fn start(&self, cell: &Rc<ElementCell>, captured: Option<Vec<u8>>) -> Started {
        let restored = captured.map_or(Ok(()), |state| cell.element().borrow_mut().restore(&state));
        let mut effects = Effects::new();
        let started = cell.entered(&self.setup, &mut effects, |element, context| element.start(context));
        Started { restored, started, requests: self.requests(cell, effects) }
    }

    fn handle(&self, cell: &Rc<ElementCell>, mut parked: Box<Parked>) {
        let mut effects = Effects::new();
        cell.handle(&*parked.operation, &self.setup, Some(&mut parked.visit.message), None, &mut effects);
        let requests = self.requests(cell, effects);
        self.answer(requests, AnswerTo::Handle(parked));
    }

    fn stop(&self, cell: &Rc<ElementCell>) {
        let mut effects = Effects::new();
        cell.entered(&self.setup, &mut effects, |element, context| element.stop(context));
        let requests = self.requests(cell, effects);
        self.answer(requests, AnswerTo::Stop);
    }
}

/// The task that an element lives in; it ends with the Arbiter.
async fn live(resident: Rc<Resident>, cell: Rc<ElementCell>, mut asked: Exit<Asked>) {
    let _alive = Alive { armor: resident.setup.name.clone(), element: cell.name() };
    resident.spawner.spawn(Box::pin(show(Rc::clone(&resident), Rc::clone(&cell))));
    loop {
        match asked.next().await {
            Asked::Start(start) => {
                let Start { captured, answer } = *start;
                // There is room for one, and the main thread waits for it.
                let _ = answer.send(resident.start(&cell, captured));
                resident.changed.notify_one();
            }
            Asked::Handle(parked) => resident.handle(&cell, parked),
            Asked::Stop => resident.stop(&cell),
        }
    }
}

/// Shows the element's status to the main thread whenever it may have changed.
async fn show(resident: Rc<Resident>, cell: Rc<ElementCell>) {
    loop {
        resident.changed.notified().await;
        let began = Instant::now();
        let status = cell.element().borrow().status();
        resident.statuses.insert(cell.name(), status);
        tokio::time::sleep((began.elapsed() * COST).max(SHOWN_EVERY)).await;
    }
}

/// No ARMOR lives on with a dead element in it, also where panics unwind and actix would catch this one.
struct Alive {
    armor: String,
    element: &'static str,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail_stop(&self.armor, self.element, "it panicked");
        }
    }
}
