//! The eleven rules of hook-up (ARCHITECTURE.md), each with small C programs under the preload library against a mock ARMOR.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod mock;
mod options;
mod program;
mod real_programs;
