//! Sans-IO protocols of ARMOR: everything that two processes must agree on, and nothing that touches a socket.
//!
//! Start with [`message::Message`] (a stack of bundles of operations, thesis §3.2.1), [`frame`] (how one travels),
//! [`connection`] (the protected connection, thesis §4.5.1) and [`hookup`] (how an application is joined to its ARMOR,
//! thesis §4.1).
//!
//! Invariant: no sockets, no clock, no threads, no async runtime in this crate.

pub mod connection;
pub mod frame;
pub mod hookup;
pub mod ids;
pub mod message;
pub mod operation;
pub mod reliable;
pub mod rudp;
#[cfg(feature = "secure")]
pub mod secure;
