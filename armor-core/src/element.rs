//! Elements: private state and functions that operations invoke (thesis §3.2.1).

use std::any::Any;
use std::collections::HashMap;

use armor_proto::operation::{AnyOperation, Operation, OperationKind};
use serde::Deserialize as _;
use serde::de::DeserializeOwned;

use crate::capture::StateStore;
use crate::context::Context;
use crate::operations::{Route, SendReliable, StateCaptured};

/// One element. Implement it in one file, name the file after [`Element::NAME`], and list it in a composition.
///
/// It need not be `Send`: it is built, entered and dropped in one thread, which is the ARMOR's main thread or an Arbiter of its own
/// (see [`crate::arbiter`]).
///
/// Invariant: an element talks to others by operations alone; everything it wants done (sending, timers, tasks) goes
/// through its [`Context`].
pub trait Element: Sized + 'static {
    /// Its name in TOML, the thesis's where the thesis has one.
    const NAME: &'static str;
    /// What it is for, a line.
    const PURPOSE: &'static str;
    /// Its configuration keys, a TOML example that parses. `name` and `arbiter` are the composition's own.
    const EXAMPLE: &'static str;
    /// Elements that must not be in the same ARMOR.
    const EXCLUDES: &'static [&'static str] = &[];
    /// Elements that must live in the same thread as this one when they are in the same ARMOR. Needed where an operation has to reach the
    /// other before anything else does that its sender causes, such as a request of a process that it has started.
    const SAME_THREAD: &'static [&'static str] = &[];
    /// Its part of the TOML. Use `#[serde(deny_unknown_fields)]`.
    type Config: DeserializeOwned;

    /// Makes the element.
    ///
    /// # Errors
    /// When the configuration asks for what cannot be; the text goes to the operator.
    fn new(config: Self::Config, setup: &Setup) -> Result<Self, String>;

    /// Says what it subscribes to and emits.
    fn operations(operations: &mut Operations<Self>);

    /// Called once when all elements of the ARMOR exist.
    ///
    /// # Errors
    /// A reason for which the ARMOR cannot run (a port in use, a directory that cannot be written).
    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        let _ = context;
        Ok(())
    }

    /// A timer that it set has run out.
    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        let _ = (token, context);
    }

    /// State that must outlive a crash, encoded; asked for after [`Context::state_changed`].
    fn capture(&self) -> Option<Vec<u8>> {
        None
    }

    /// Takes captured state back, before `start`.
    ///
    /// # Errors
    /// When the bytes are not such a state; the element then starts afresh and it is reported.
    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let _ = state;
        Ok(())
    }

    /// For the element that hears `MSG_STATE_CAPTURED`: where the states of an earlier life come from. Asked before any element starts.
    fn state_store(&mut self) -> Option<&mut dyn StateStore> {
        None
    }

    /// What `armor status` shows of it.
    fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// The ARMOR is about to end in an orderly way. What is sent now leaves before any element is stopped; one in an Arbiter of its own is
    /// not asked.
    fn leave(&mut self, context: &mut Context<'_>) {
        let _ = context;
    }

    /// The ARMOR ends in an orderly way: close what must be closed.
    fn stop(&mut self, context: &mut Context<'_>) {
        let _ = context;
    }
}

/// What an element is told when it is made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Identity of its ARMOR.
    pub armor: armor_proto::ids::ArmorId,
    /// Name of its ARMOR, for people.
    pub name: String,
    /// Kind of its ARMOR as the composition says: "ftm", "daemon", "execution", ….
    pub kind: String,
    /// Directory of this ARMOR for sockets, logs and captured state.
    pub run_dir: std::path::PathBuf,
}

type Handler<E> = Box<dyn Fn(&mut E, &dyn Any, &mut Context<'_>)>;

/// Decodes the fields of one operation type.
pub type Decoder = fn(&[u8]) -> Result<Box<dyn AnyOperation>, rmp_serde::decode::Error>;

/// What an element subscribes to and emits.
pub struct Operations<E> {
    handlers: Vec<(Subscription, Handler<E>)>,
    emits: Vec<Subscription>,
}

/// One operation type that is listened to or emitted.
#[derive(Debug, Clone, Copy)]
pub struct Subscription {
    /// Number.
    pub kind: OperationKind,
    /// `MSG_…`.
    pub name: &'static str,
    /// How to decode it.
    pub decoder: Decoder,
}

impl Subscription {
    fn of<O: Operation>() -> Subscription {
        Subscription { kind: O::KIND, name: O::NAME, decoder: |bytes| Ok(Box::new(armor_proto::operation::decode::<O>(bytes)?)) }
    }
}

impl<E: Element> Operations<E> {
    fn collect() -> Operations<E> {
        let mut operations = Operations { handlers: Vec::new(), emits: Vec::new() };
        E::operations(&mut operations);
        operations
    }

    /// Subscribes: `handler` is called for each operation of type `O`.
    pub fn on<O: Operation>(&mut self, handler: fn(&mut E, &O, &mut Context<'_>)) -> &mut Self {
        self.handlers.push((
            Subscription::of::<O>(),
            Box::new(move |element, operation, context| {
                // The dispatcher looks handlers up by kind, so the type always fits.
                if let Some(operation) = operation.downcast_ref::<O>() {
                    handler(element, operation, context);
                }
            }),
        ));
        self
    }

    /// Says that the element sends operations of type `O`; `armor check` then looks whether anybody hears them.
    pub fn emits<O: Operation>(&mut self) -> &mut Self {
        self.emits.push(Subscription::of::<O>());
        self
    }
}

/// An element of any type.
pub(crate) trait AnyElement {
    fn name(&self) -> &'static str;
    fn subscriptions(&self) -> Vec<Subscription>;
    fn handle(&mut self, operation: &dyn AnyOperation, context: &mut Context<'_>);
    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String>;
    fn timer(&mut self, token: u64, context: &mut Context<'_>);
    fn capture(&self) -> Option<Vec<u8>>;
    fn restore(&mut self, state: &[u8]) -> Result<(), String>;
    fn state_store(&mut self) -> Option<&mut dyn StateStore>;
    fn status(&self) -> serde_json::Value;
    fn leave(&mut self, context: &mut Context<'_>);
    fn stop(&mut self, context: &mut Context<'_>);
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

struct Erased<E: Element> {
    element: E,
    operations: Operations<E>,
    by_kind: HashMap<OperationKind, usize>,
}

impl<E: Element> AnyElement for Erased<E> {
    fn name(&self) -> &'static str {
        E::NAME
    }
    fn subscriptions(&self) -> Vec<Subscription> {
        self.operations.handlers.iter().map(|(subscription, _)| *subscription).collect()
    }
    fn handle(&mut self, operation: &dyn AnyOperation, context: &mut Context<'_>) {
        if let Some(&index) = self.by_kind.get(&operation.kind()) {
            (self.operations.handlers[index].1)(&mut self.element, operation.as_any(), context);
        }
    }
    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        self.element.start(context)
    }
    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        self.element.timer(token, context);
    }
    fn capture(&self) -> Option<Vec<u8>> {
        self.element.capture()
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.element.restore(state)
    }
    fn state_store(&mut self) -> Option<&mut dyn StateStore> {
        self.element.state_store()
    }
    fn status(&self) -> serde_json::Value {
        self.element.status()
    }
    fn leave(&mut self, context: &mut Context<'_>) {
        self.element.leave(context);
    }
    fn stop(&mut self, context: &mut Context<'_>) {
        self.element.stop(context);
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        &mut self.element
    }
}

/// A kind of element as compositions and `armor elements` know it.
#[derive(Clone)]
pub struct ElementKind {
    /// Its name in TOML.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// A TOML example of its configuration.
    pub example: &'static str,
    /// Elements that must not be beside it.
    pub excludes: &'static [&'static str],
    /// Elements that must be in its thread when they are beside it.
    pub same_thread: &'static [&'static str],
    /// Operations that it listens to.
    pub subscribes: Vec<Subscription>,
    /// Operations that it sends.
    pub emits: Vec<Subscription>,
    pub(crate) check: fn(toml::de::DeTable<'_>) -> Result<(), toml::de::Error>,
    pub(crate) build: Build,
}

type Build = fn(toml::de::DeTable<'_>, &Setup) -> Result<Box<dyn AnyElement>, BuildError>;

/// Why an element could not be made.
pub(crate) enum BuildError {
    Toml(toml::de::Error),
    Refused(String),
}

impl ElementKind {
    /// The kind of element `E`.
    #[must_use]
    pub fn of<E: Element>() -> ElementKind {
        let operations = Operations::<E>::collect();
        ElementKind {
            name: E::NAME,
            purpose: E::PURPOSE,
            example: E::EXAMPLE,
            excludes: E::EXCLUDES,
            same_thread: E::SAME_THREAD,
            subscribes: operations.handlers.iter().map(|(subscription, _)| *subscription).collect(),
            emits: operations.emits,
            check: |table| configuration::<E>(table).map(|_| ()),
            build: |table, setup| {
                let config = configuration::<E>(table).map_err(BuildError::Toml)?;
                let element = E::new(config, setup).map_err(BuildError::Refused)?;
                let operations = Operations::<E>::collect();
                let by_kind = operations.handlers.iter().enumerate().map(|(index, (subscription, _))| (subscription.kind, index)).collect();
                Ok(Box::new(Erased { element, operations, by_kind }))
            },
        }
    }
}

impl ElementKind {
    /// The operation with which such an element takes messages over, if it does. Its handler is called while the message is
    /// handed on, so it has to be in the ARMOR's main thread.
    #[must_use]
    pub fn takes_messages(&self) -> Option<&'static str> {
        let offers = [Route::KIND, SendReliable::KIND];
        self.subscribes.iter().find(|subscription| offers.contains(&subscription.kind)).map(|subscription| subscription.name)
    }
}

impl ElementKind {
    /// Whether such an element keeps captured states. It gives them back before any element starts, so it has to be in the ARMOR's main thread.
    #[must_use]
    pub fn keeps_states(&self) -> bool {
        self.subscribes.iter().any(|subscription| subscription.kind == StateCaptured::KIND)
    }
}

fn configuration<E: Element>(table: toml::de::DeTable<'_>) -> Result<E::Config, toml::de::Error> {
    let value = toml::Spanned::new(0..0, toml::de::DeValue::Table(table));
    E::Config::deserialize(toml::de::ValueDeserializer::from(value))
}
