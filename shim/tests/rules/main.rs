//! The eleven rules of hook-up (ARCHITECTURE.md), each with small C programs under the preload library against a mock
//! ARMOR. One module per group of rules; the programs are in `tests/programs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod mock;
mod options;
mod program;

mod addresses;
mod binding;
mod connecting;
mod ends;
mod processes;
mod quiet;
mod real_programs;
mod standby;
mod untouched;

/// Both families, as the programs take them.
const FAMILIES: [&str; 2] = ["4", "6"];
