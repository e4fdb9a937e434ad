//! The ARMOR runtime (thesis §3.2): a process composed of elements that react to operations.
//!
//! An [`element::Element`] is a plain state machine; [`armor::Armor`] dispatches messages to the elements that subscribed to
//! their operations; [`composition::Composition`] says in TOML which elements an ARMOR has; [`host`] makes each element an
//! actix actor and is the only module that knows actix.
//!
//! Invariant: an element never calls another element, and shares nothing with it but operations.

pub mod arbiter;
pub mod armor;
pub mod capture;
mod cell;
pub mod composition;
pub mod context;
pub mod element;
pub mod events;
pub mod host;
pub mod operations;
