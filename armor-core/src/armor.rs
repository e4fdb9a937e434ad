//! One ARMOR: its elements in their places, its start, its status and its end (thesis §3.2.1).
//!
//! `dispatch` brings messages to the elements, `effects` carries out what they ask for, `counters` counts.
//!
//! Invariants: effects are carried out after the handler has returned, never inside it; no bytes from outside can panic this
//! module; what cannot be delivered is dropped, counted and reported.

mod counters;
mod dispatch;
mod effects;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use armor_proto::operation::{Operation, OperationKind};
use armor_proto::reliable::{Outstanding, Seen};

use crate::capture::CaptureStore;
use crate::cell::{ElementCell, Home, Spawner};
use crate::context::Effects;
use crate::element::{AnyElement, Decoder, Setup};
use crate::events::Event;
use crate::operations::{BundleAck, Shutdown, StatusQuery};
use counters::Counters;
pub use dispatch::MAX_QUEUE;
use dispatch::Queue;

/// One ARMOR in this process.
pub struct Armor {
    this: Weak<Armor>,
    setup: Setup,
    cells: Vec<Rc<ElementCell>>,
    subscribers: HashMap<OperationKind, Vec<usize>>,
    decoders: HashMap<OperationKind, Decoder>,
    queue: Queue,
    spare: Cell<Effects>,
    next_message: Cell<u64>,
    outstanding: RefCell<Outstanding>,
    resend_armed: Cell<bool>,
    seen: RefCell<Seen>,
    counters: Counters,
    ending: Cell<bool>,
    spawner: Rc<dyn Spawner>,
    end: Box<dyn Fn()>,
}

impl Armor {
    /// Puts elements together; nothing runs yet. `end` ends the process's event loop.
    pub(crate) fn new(
        setup: Setup,
        elements: Vec<Box<dyn AnyElement>>,
        nonce: u32,
        spawner: Rc<dyn Spawner>,
        end: Box<dyn Fn()>,
    ) -> Rc<Armor> {
        let mut subscribers: HashMap<OperationKind, Vec<usize>> = HashMap::new();
        let mut decoders: HashMap<OperationKind, Decoder> = own_decoders().into();
        for (index, element) in elements.iter().enumerate() {
            for subscription in element.subscriptions() {
                subscribers.entry(subscription.kind).or_default().push(index);
                decoders.insert(subscription.kind, subscription.decoder);
            }
        }
        Rc::new_cyclic(|armor: &Weak<Armor>| Armor {
            this: armor.clone(),
            setup,
            cells: elements.into_iter().enumerate().map(|(index, element)| ElementCell::new(index, element, armor.clone())).collect(),
            subscribers,
            decoders,
            queue: Queue::default(),
            spare: Cell::default(),
            next_message: Cell::new(u64::from(nonce) << 32),
            outstanding: RefCell::default(),
            resend_armed: Cell::new(false),
            seen: RefCell::default(),
            counters: Counters::default(),
            ending: Cell::new(false),
            spawner,
            end,
        })
    }

    /// The elements in composition order.
    pub(crate) fn cells(&self) -> &[Rc<ElementCell>] {
        &self.cells
    }

    /// Gives captured state back and starts every element in composition order.
    ///
    /// # Errors
    /// The first element that cannot start, and why.
    pub(crate) fn start(&self, captured: Option<&CaptureStore>) -> Result<(), (&'static str, String)> {
        for cell in &self.cells {
            if let Some(state) = captured.and_then(|store| store.load(cell.name()))
                && let Err(reason) = cell.element().borrow_mut().restore(&state)
            {
                self.report(Event::new("state-refused").with("element", cell.name()).with("reason", reason));
            }
            let mut effects = Effects::new();
            let started = cell.entered(&self.setup, &mut effects, |element, context| element.start(context));
            self.carry_out(cell, effects);
            started.map_err(|reason| (cell.name(), reason))?;
        }
        self.drain();
        Ok(())
    }

    /// State of the ARMOR and of its elements.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let elements: serde_json::Map<String, serde_json::Value> = self
            .cells
            .iter()
            .map(|cell| {
                let status = cell.element().try_borrow().map_or(serde_json::Value::Null, |element| element.status());
                (cell.name().to_owned(), serde_json::json!({ "handled": cell.handled(), "state": status }))
            })
            .collect();
        let mut counters = self.counters.status();
        counters["unacknowledged"] = self.outstanding.borrow().len().into();
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
        for cell in self.cells.iter().rev() {
            if cell.element().try_borrow_mut().is_ok() {
                let mut effects = Effects::new();
                cell.entered(&self.setup, &mut effects, |element, context| element.stop(context));
                self.carry_out(cell, effects);
            }
        }
        (self.end)();
    }

    /// Calls back after a pause.
    fn later(&self, pause: Duration, work: fn(&Armor)) {
        let armor = self.this.clone();
        self.spawner.spawn(Box::pin(async move {
            tokio::time::sleep(pause).await;
            if let Some(armor) = armor.upgrade() {
                work(&armor);
            }
        }));
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
fn own_decoders() -> [(OperationKind, Decoder); 3] {
    fn decoder<O: Operation>() -> (OperationKind, Decoder) {
        (O::KIND, |bytes| Ok(Box::new(armor_proto::operation::decode::<O>(bytes)?)))
    }
    [decoder::<BundleAck>(), decoder::<StatusQuery>(), decoder::<Shutdown>()]
}

/// Fail-stop (thesis §3.3): the process ends at once, without unwinding; recovery is by restart from captured state.
pub(crate) fn fail_stop(armor: &str, element: &str, reason: &str) -> ! {
    tracing::error!("fail-stop of {armor}: {element}: {reason}");
    eprintln!("armor: fail-stop of {armor}: {element}: {reason}");
    std::process::abort()
}
