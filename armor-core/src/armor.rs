//! One ARMOR: its elements in their places, its start, its status and its end (thesis §3.2.1).
//!
//! `dispatch` brings messages to the elements, `effects` carries out what they ask for, `away` hears those in other threads,
//! `visit` knows which messages are or were here, `counters` counts.
//!
//! Invariants: effects are carried out after the handler has returned, never inside it; no bytes from outside can panic this
//! module; what cannot be delivered is dropped, counted and reported.

mod away;
mod counters;
mod dispatch;
mod effects;
#[cfg(test)]
mod tests;
mod visit;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Instant;

use armor_proto::operation::{Operation, OperationKind};

use crate::arbiter::Remote;
use crate::capture::{Loaded, StateStore};
use crate::cell::{ElementCell, Home, Spawner};
use crate::context::Effects;
use crate::element::{AnyElement, Decoder, Setup};
use crate::events::Event;
use crate::operations::{Shutdown, StatusQuery};
use counters::Counters;
use dispatch::Queue;
pub use dispatch::{MAX_OPERATIONS, MAX_QUEUE};
pub use effects::MAX_COMPLAINTS;
use visit::Arrivals;
pub(crate) use visit::Visit;

/// An element that is to be put into an ARMOR.
pub(crate) enum Member {
    /// Built in this thread.
    Here(Box<dyn AnyElement>),
    /// Built in a thread of its own.
    Away(Remote),
}

/// Which life of an ARMOR begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Without the states of an earlier one.
    First,
    /// With them.
    Next,
}

/// Where an element lives.
enum Place {
    Here(Rc<ElementCell>),
    Away(Remote),
}

/// One ARMOR in this process.
pub struct Armor {
    this: Weak<Armor>,
    setup: Setup,
    places: Vec<Place>,
    has_remotes: bool,
    subscribers: HashMap<OperationKind, Vec<usize>>,
    decoders: HashMap<OperationKind, Decoder>,
    queue: Queue,
    spare: Cell<Effects>,
    next_message: Cell<u64>,
    arrivals: RefCell<Arrivals>,
    counters: Counters,
    /// Since when complaints are counted, and how many there were.
    complaints: Cell<(Instant, u32)>,
    ending: Cell<bool>,
    spawner: Rc<dyn Spawner>,
    end: Box<dyn Fn()>,
}

impl Armor {
    /// Puts elements together; nothing runs yet. `end` ends the process's event loop.
    pub(crate) fn new(setup: Setup, members: Vec<Member>, nonce: u32, spawner: Rc<dyn Spawner>, end: Box<dyn Fn()>) -> Rc<Armor> {
        let mut subscribers: HashMap<OperationKind, Vec<usize>> = HashMap::new();
        let mut decoders: HashMap<OperationKind, Decoder> = own_decoders().into();
        for (index, member) in members.iter().enumerate() {
            let subscriptions = match member {
                Member::Here(element) => element.subscriptions(),
                Member::Away(remote) => remote.subscriptions().to_vec(),
            };
            for subscription in subscriptions {
                subscribers.entry(subscription.kind).or_default().push(index);
                decoders.insert(subscription.kind, subscription.decoder);
            }
        }
        Rc::new_cyclic(|armor: &Weak<Armor>| Armor {
            this: armor.clone(),
            setup,
            has_remotes: members.iter().any(|member| matches!(member, Member::Away(_))),
            places: members
                .into_iter()
                .enumerate()
                .map(|(index, member)| match member {
                    Member::Here(element) => Place::Here(ElementCell::new(index, element, armor.clone())),
                    Member::Away(remote) => Place::Away(remote),
                })
                .collect(),
            subscribers,
            decoders,
            queue: Queue::default(),
            spare: Cell::default(),
            next_message: Cell::new(u64::from(nonce) << 32),
            arrivals: RefCell::default(),
            counters: Counters::default(),
            complaints: Cell::new((Instant::now(), 0)),
            ending: Cell::new(false),
            spawner,
            end,
        })
    }

    /// The elements in this thread, in composition order.
    pub(crate) fn cells(&self) -> impl Iterator<Item = &Rc<ElementCell>> {
        self.places.iter().filter_map(|place| match place {
            Place::Here(cell) => Some(cell),
            Place::Away(_) => None,
        })
    }

    fn remotes(&self) -> impl Iterator<Item = &Remote> {
        self.places.iter().filter_map(|place| match place {
            Place::Here(_) => None,
            Place::Away(remote) => Some(remote),
        })
    }

    /// Gives captured state back and starts every element in composition order.
    ///
    /// # Errors
    /// The first element that cannot start, and why.
    pub(crate) fn start(&self, life: Life) -> Result<(), (&'static str, String)> {
        let told = |element, reason| self.report(Event::new("state-refused").with("element", element).with("reason", reason));
        // Of all elements first: the one that keeps them must know what is lost before it starts.
        let mut states = Vec::with_capacity(self.places.len());
        for place in &self.places {
            let loaded = match life {
                Life::Next => self.stored(|store| store.load(place.name())).unwrap_or_default(),
                Life::First => Loaded::default(),
            };
            loaded.refused.into_iter().for_each(|reason| told(place.name(), reason));
            states.push(loaded.state);
        }
        if life == Life::First
            && let Some(Err(error)) = self.stored(|store| store.start_afresh())
        {
            return Err(("captured states", error.to_string()));
        }
        for (place, state) in self.places.iter().zip(states) {
            let refused = |reason| {
                told(place.name(), reason);
                self.stored(|store| store.not_taken(place.name()));
            };
            let started = match place {
                Place::Here(cell) => {
                    let restored = state.map_or(Ok(()), |state| cell.element().borrow_mut().restore(&state));
                    restored.unwrap_or_else(refused);
                    let mut effects = Effects::new();
                    let started = cell.entered(&self.setup, &mut effects, |element, context| element.start(context));
                    self.carry_out(cell, effects);
                    started
                }
                Place::Away(remote) => {
                    let Ok(answer) = remote.start(state) else { self.thread_is_gone(remote) };
                    answer.restored.unwrap_or_else(refused);
                    self.carry_out_requests(remote, answer.requests);
                    answer.started
                }
            };
            started.map_err(|reason| (place.name(), reason))?;
        }
        self.drain();
        Ok(())
    }

    /// Asks the element that keeps captured states, if there is one.
    fn stored<R>(&self, ask: impl FnOnce(&mut dyn StateStore) -> R) -> Option<R> {
        let mut ask = Some(ask);
        self.cells().find_map(|cell| cell.element().borrow_mut().state_store().and_then(|store| Some(ask.take()?(store))))
    }

    /// State of the ARMOR and of its elements.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let elements: serde_json::Map<String, serde_json::Value> = self
            .places
            .iter()
            .map(|place| {
                let status = match place {
                    Place::Here(cell) => {
                        let state = cell.element().try_borrow().map_or(serde_json::Value::Null, |element| element.status());
                        serde_json::json!({ "handled": cell.handled(), "state": state })
                    }
                    Place::Away(remote) => remote.status(),
                };
                (place.name().to_owned(), status)
            })
            .collect();
        let mut counters = self.counters.status();
        counters["unfinished"] = self.arrivals.borrow().unfinished().into();
        counters["parked"] = self.remotes().map(Remote::parked).sum::<usize>().into();
        serde_json::json!({
            "armor": self.setup.armor.to_string(), "name": self.setup.name, "kind": self.setup.kind,
            "pid": std::process::id(), "run_dir": self.setup.run_dir, "counters": counters, "elements": elements,
        })
    }

    /// Ends the ARMOR in an orderly way: every element is told, in reverse order.
    pub(crate) fn shutdown(&self) {
        if self.ending.replace(true) {
            return;
        }
        for place in &self.places {
            if let Place::Here(cell) = place
                && cell.element().try_borrow_mut().is_ok()
            {
                let mut effects = Effects::new();
                cell.entered(&self.setup, &mut effects, |element, context| element.leave(context));
                self.carry_out(cell, effects);
            }
        }
        // Behind what they have sent: an element that is being stopped may wait for others.
        let armor = self.this.clone();
        self.enqueue_last(move || {
            if let Some(armor) = armor.upgrade() {
                armor.stop_before(armor.places.len());
            }
        });
    }

    /// Stops the elements before `end`, the last one first. At one in another thread it returns, and goes on when that has stopped.
    fn stop_before(&self, end: usize) {
        for (index, place) in self.places.iter().enumerate().take(end).rev() {
            match place {
                Place::Here(cell) => {
                    if cell.element().try_borrow_mut().is_ok() {
                        let mut effects = Effects::new();
                        cell.entered(&self.setup, &mut effects, |element, context| element.stop(context));
                        self.carry_out(cell, effects);
                    }
                }
                Place::Away(remote) => {
                    if remote.stop().is_err() {
                        self.thread_is_gone(remote);
                    }
                    self.watch(index, remote);
                    return;
                }
            }
        }
        (self.end)();
    }
}

impl Place {
    fn name(&self) -> &'static str {
        match self {
            Place::Here(cell) => cell.name(),
            Place::Away(remote) => remote.name(),
        }
    }
}

impl Home for Armor {
    fn setup(&self) -> &Setup {
        &self.setup
    }

    fn spare(&self) -> Effects {
        self.spare.take()
    }

    fn carry_out(&self, cell: &Rc<ElementCell>, effects: Effects) {
        Armor::carry_out(self, cell, effects);
    }

    fn left(&self) {
        self.drain();
    }
}

/// Operations that the ARMOR itself answers, whatever its elements are.
fn own_decoders() -> [(OperationKind, Decoder); 2] {
    fn decoder<O: Operation>() -> (OperationKind, Decoder) {
        (O::KIND, |bytes| Ok(Box::new(armor_proto::operation::decode::<O>(bytes)?)))
    }
    [decoder::<StatusQuery>(), decoder::<Shutdown>()]
}

/// Fail-stop (thesis §3.3): the process ends at once, without unwinding; recovery is by restart from captured state.
pub(crate) fn fail_stop(armor: &str, element: &str, reason: &str) -> ! {
    tracing::error!("fail-stop of {armor}: {element}: {reason}");
    eprintln!("armor: fail-stop of {armor}: {element}: {reason}");
    std::process::abort()
}
