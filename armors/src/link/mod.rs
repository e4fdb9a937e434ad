//! The link emulator: links with delay, loss, a rate and blackouts, between two network namespaces. It needs no netem in the kernel.
//!
//! [`model`] is one direction of a link, sans-IO; [`emulator`] joins it to TUN devices, and is what tests and benchmarks call; [`control`] is how a running
//! one is changed from outside.

pub(crate) mod control;
pub(crate) mod emulator;
pub(crate) mod model;
pub(crate) mod namespace;
pub(crate) mod network;
pub(crate) mod settings;
pub(crate) mod trace;
