//! What an element may do to the world outside its own state.
//!
//! Everything is an effect that is carried out when the handler has returned, in the order in which it was asked
//! for; so a handler can be tested without actor, clock or socket: [`Context::detached`] gives it a context, and
//! [`Effects`] shows what it wanted.

use std::future::Future;
use std::pin::Pin;
use std::rc::Weak;
use std::time::Duration;

use armor_proto::frame::Frame;
use armor_proto::ids::ArmorId;
use armor_proto::message::{Bundle, Message};
use armor_proto::operation::BundledOperation;
use bytes::BytesMut;

use crate::cell::ElementCell;
use crate::element::{Element, Setup};
use crate::events::Event;

/// A message that is offered to an element to be taken over: on its way to another ARMOR, or to be sent reliably.
#[derive(Debug)]
pub enum Routed {
    /// Made or changed in this ARMOR.
    Message(Message),
    /// Passed on as it came.
    Frame(Frame),
}

impl Routed {
    /// Where it goes.
    #[must_use]
    pub fn destination(&self) -> ArmorId {
        match self {
            Routed::Message(message) => message.destination().unwrap_or(ArmorId::NONE),
            Routed::Frame(frame) => frame.destination,
        }
    }

    /// Who began it.
    #[must_use]
    pub fn source(&self) -> ArmorId {
        match self {
            Routed::Message(message) => message.source,
            Routed::Frame(frame) => frame.source,
        }
    }

    /// Its wire form; payload bytes are not copied.
    ///
    /// # Errors
    /// When the message cannot be encoded (too large, for example).
    pub fn encode(&self, scratch: &mut BytesMut) -> Result<armor_proto::frame::Encoded, armor_proto::frame::FrameError> {
        match self {
            Routed::Message(message) => armor_proto::frame::encode(message, scratch),
            Routed::Frame(frame) => Ok(armor_proto::frame::Encoded { head: frame.bytes().clone(), payload: bytes::Bytes::new() }),
        }
    }
}

/// Something that an element asked for.
pub enum Effect {
    /// Send a message once.
    Send(Message),
    /// Send a message and send it again until its `MSG_BUNDLE_ACK` comes home.
    SendReliable(Message),
    /// A frame came in from another process.
    Received(Frame),
    /// Call [`Element::timer`] with the token after the pause.
    Timer(Duration, u64),
    /// Run a task beside the element, in its thread.
    Spawn(Pin<Box<dyn Future<Output = ()>>>),
    /// Something that an operator wants to know.
    Event(Event),
    /// Something that went wrong with a message; told at most so often ([`crate::armor::MAX_COMPLAINTS`]).
    Complaint(Event),
    /// The element's state has changed and should be captured.
    StateChanged,
    /// Do this when all that was asked for before is done.
    Then(Box<dyn FnOnce()>),
    /// End this ARMOR in an orderly way.
    Shutdown,
    /// An invariant is broken: the ARMOR goes down at once and is recovered from its last captured state.
    FailStop(String),
}

/// Effects in the order in which they were asked for.
pub type Effects = Vec<Effect>;

/// What a handler works with.
pub struct Context<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) message: Option<&'a mut Message>,
    pub(crate) routed: Option<&'a mut Option<Routed>>,
    pub(crate) effects: &'a mut Effects,
    pub(crate) cell: Weak<ElementCell>,
}

impl<'a> Context<'a> {
    /// A context without a running ARMOR, for tests of an element.
    #[must_use]
    pub fn detached(setup: &'a Setup, message: Option<&'a mut Message>, effects: &'a mut Effects) -> Context<'a> {
        Context { setup, message, routed: None, effects, cell: Weak::new() }
    }

    /// The same for `MSG_ROUTE` and `MSG_SEND_RELIABLE`, with a message that can be taken.
    #[must_use]
    pub fn detached_with(setup: &'a Setup, routed: &'a mut Option<Routed>, effects: &'a mut Effects) -> Context<'a> {
        Context { setup, message: None, routed: Some(routed), effects, cell: Weak::new() }
    }

    /// This ARMOR's identity, name, kind and run directory.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        self.setup
    }

    /// This ARMOR's identity.
    #[must_use]
    pub fn armor(&self) -> ArmorId {
        self.setup.armor
    }

    /// The message that is being processed (payload, fields, source); `None` in timers and tasks.
    #[must_use]
    pub fn message(&self) -> Option<&Message> {
        self.message.as_deref()
    }

    /// The same, to be changed. Push operations and bundles with the methods below.
    pub fn message_mut(&mut self) -> Option<&mut Message> {
        self.message.as_deref_mut()
    }

    /// Who began the message that is being processed.
    #[must_use]
    pub fn source(&self) -> ArmorId {
        self.message.as_ref().map_or(ArmorId::NONE, |message| message.source)
    }

    /// Puts an operation in front of those that are left in the current bundle (thesis §3.2.1: nested invocation).
    pub fn push_operation(&mut self, operation: impl Into<BundledOperation>) {
        let Some(bundle) = self.message.as_deref_mut().and_then(Message::top_mut) else { return };
        if bundle.operations.len() < Message::MAX_OPERATIONS {
            bundle.operations.push_front(operation.into());
        } else {
            let refused = Event::new("operation-refused").with("operation", format!("{:#06x}", operation.into().kind().0));
            self.effects.push(Effect::Complaint(refused.with("reason", "the message's bundle is full")));
        }
    }

    /// Puts a bundle on the stack of the current message: it is processed, wherever its destination is, before the rest of
    /// the current bundle.
    pub fn push_bundle(&mut self, bundle: Bundle) {
        if let Some(message) = self.message.as_deref_mut()
            && message.push(bundle).is_err()
        {
            self.effects.push(Effect::Complaint(Event::new("bundle-refused").with("reason", "the message's stack is full")));
        }
    }

    /// Takes over the message that is offered: the one that wants to leave this ARMOR, for transport elements, in `MSG_ROUTE`; the one that is to
    /// be sent reliably, in `MSG_SEND_RELIABLE`. Look first with [`Context::routed_to`]: what is taken is the element's to deliver.
    pub fn take_routed(&mut self) -> Option<Routed> {
        self.routed.as_mut().and_then(|routed| routed.take())
    }

    /// Where the message that is offered goes.
    #[must_use]
    pub fn routed_to(&self) -> Option<ArmorId> {
        self.routed.as_ref().and_then(|routed| routed.as_ref()).map(Routed::destination)
    }

    /// Sends a message; it may be lost with a link.
    pub fn send(&mut self, message: Message) {
        self.effects.push(Effect::Send(message));
    }

    /// Sends one operation to one ARMOR.
    pub fn send_to(&mut self, destination: ArmorId, operation: impl Into<BundledOperation>) {
        self.send(Message::to(destination, operation));
    }

    /// Sends a message until it is acknowledged (thesis §5.5); the receiver processes it once. The element that hears
    /// `MSG_SEND_RELIABLE` does it. Say `operations.emits::<SendReliable>()`, so that a composition without one is refused.
    pub fn send_reliable(&mut self, message: Message) {
        self.effects.push(Effect::SendReliable(message));
    }

    /// Hands a frame that came from another process to the dispatcher.
    pub fn received(&mut self, frame: Frame) {
        self.effects.push(Effect::Received(frame));
    }

    /// Calls [`Element::timer`] after `pause`.
    pub fn timer(&mut self, pause: Duration, token: u64) {
        self.effects.push(Effect::Timer(pause, token));
    }

    /// Runs a task in this element's thread; it reaches the element through a [`Handle`].
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        self.effects.push(Effect::Spawn(Box::pin(task)));
    }

    /// Tells operators.
    pub fn event(&mut self, event: Event) {
        self.effects.push(Effect::Event(event));
    }

    /// Says that [`Element::capture`] has something new.
    pub fn state_changed(&mut self) {
        self.effects.push(Effect::StateChanged);
    }

    /// Does something when what was asked for before is done, so that nobody is told of a state before it is captured. In an Arbiter of its
    /// own an element is not told when that is: there it is done at once.
    pub fn then(&mut self, work: impl FnOnce() + 'static) {
        self.effects.push(Effect::Then(Box::new(work)));
    }

    /// Ends this ARMOR in an orderly way.
    pub fn shutdown(&mut self) {
        self.effects.push(Effect::Shutdown);
    }

    /// Takes this ARMOR down at once: an invariant is broken.
    pub fn fail_stop(&mut self, reason: impl Into<String>) {
        self.effects.push(Effect::FailStop(reason.into()));
    }

    /// A way for the element's own tasks to call it.
    #[must_use]
    pub fn handle<E: Element>(&self) -> Handle<E> {
        Handle { cell: self.cell.clone(), element: std::marker::PhantomData }
    }
}

/// A way for an element's own tasks (sockets, child processes) to call it, in the element's thread.
pub struct Handle<E> {
    cell: Weak<ElementCell>,
    element: std::marker::PhantomData<fn(E)>,
}

impl<E> Clone for Handle<E> {
    fn clone(&self) -> Self {
        Handle { cell: self.cell.clone(), element: std::marker::PhantomData }
    }
}

impl<E: Element> Handle<E> {
    /// Calls the element; `None` when the ARMOR has ended. Effects are carried out before this returns; those of an element with an
    /// Arbiter of its own are handed to the main thread, and this waits while that has no room ([`crate::arbiter::MAX_ANSWERS`]).
    pub fn call<R>(&self, work: impl FnOnce(&mut E, &mut Context<'_>) -> R) -> Option<R> {
        ElementCell::call(&self.cell, work)
    }
}
