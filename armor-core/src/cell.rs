//! An element in its place, and the thread that it lives in.
//!
//! The dispatcher calls an element's handlers; its timers and tasks enter it through its [`ElementCell`]. Either way what the
//! element asks for is carried out by its [`Home`] when it has been left again, so no element is entered twice.
//!
//! Invariant: an element is built, entered and dropped in one thread.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use armor_proto::message::Message;
use armor_proto::operation::AnyOperation;

use crate::context::{Context, Effects, Routed};
use crate::element::{AnyElement, Element, Setup};

/// An element in its place in an ARMOR.
pub(crate) struct ElementCell {
    index: usize,
    name: &'static str,
    element: RefCell<Box<dyn AnyElement>>,
    home: Weak<dyn Home>,
    handled: Cell<u64>,
}

/// Who carries out what an element asks for: its ARMOR, or the element's end of the way to its ARMOR.
pub(crate) trait Home {
    /// What the element's contexts say of the ARMOR.
    fn setup(&self) -> &Setup;
    /// An empty list, recycled where there is one.
    fn spare(&self) -> Effects {
        Effects::new()
    }
    /// Carries out what the element asked for.
    fn carry_out(&self, cell: &Rc<ElementCell>, effects: Effects);
    /// A timer or a task has left the element: whatever waits for that goes on.
    fn left(&self) {}
}

/// What a thread does for the elements that live in it; [`crate::host`] gives it.
pub(crate) trait Spawner {
    /// Runs a task in this thread.
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()>>>);
    /// Calls [`ElementCell::timer`] after a pause.
    fn timer(&self, pause: Duration, cell: Rc<ElementCell>, token: u64);
}

impl ElementCell {
    pub(crate) fn new(index: usize, element: Box<dyn AnyElement>, home: Weak<dyn Home>) -> Rc<ElementCell> {
        Rc::new(ElementCell { index, name: element.name(), element: RefCell::new(element), home, handled: Cell::new(0) })
    }

    /// Its place in the composition.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The element's name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The element, when it is not being entered.
    pub(crate) fn element(&self) -> &RefCell<Box<dyn AnyElement>> {
        &self.element
    }

    /// Operations that its handlers were given.
    pub(crate) fn handled(&self) -> u64 {
        self.handled.get()
    }

    /// Gives an operation to the element's handler.
    pub(crate) fn handle(
        self: &Rc<Self>,
        operation: &dyn AnyOperation,
        setup: &Setup,
        message: Option<&mut Message>,
        routed: Option<&mut Option<Routed>>,
        effects: &mut Effects,
    ) {
        self.handled.set(self.handled.get() + 1);
        let mut context = Context { setup, message, routed, effects, cell: Rc::downgrade(self) };
        self.element.borrow_mut().handle(operation, &mut context);
    }

    /// Enters the element from outside the dispatcher; `None` when its ARMOR has ended.
    pub(crate) fn enter<R>(self: &Rc<Self>, work: impl FnOnce(&mut dyn AnyElement, &mut Context<'_>) -> R) -> Option<R> {
        let home = self.home.upgrade()?;
        let mut effects = home.spare();
        let result = self.entered(home.setup(), &mut effects, work);
        home.carry_out(self, effects);
        home.left();
        Some(result)
    }

    /// Enters the element and leaves what it asks for in `effects`.
    pub(crate) fn entered<R>(
        self: &Rc<Self>,
        setup: &Setup,
        effects: &mut Effects,
        work: impl FnOnce(&mut dyn AnyElement, &mut Context<'_>) -> R,
    ) -> R {
        let mut context = Context { setup, message: None, routed: None, effects, cell: Rc::downgrade(self) };
        work(&mut **self.element.borrow_mut(), &mut context)
    }

    /// A timer of the element has run out.
    pub(crate) fn timer(self: &Rc<Self>, token: u64) {
        self.enter(|element, context| element.timer(token, context));
    }

    /// A call of the element's own task, through its handle.
    pub(crate) fn call<E: Element, R>(cell: &Weak<ElementCell>, work: impl FnOnce(&mut E, &mut Context<'_>) -> R) -> Option<R> {
        cell.upgrade()?.enter(|element, context| element.as_any_mut().downcast_mut::<E>().map(|element| work(element, context)))?
    }
}
