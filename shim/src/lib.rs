//! The preload library that hooks an unmodified program up to its ARMOR (thesis §4.1, §4.2). What must hold for
//! the program is numbered in ARCHITECTURE.md, The rules of hook-up.
//!
//! A protected socket in the program is a unix stream socket whose kernel address is an abstract
//! [`Name`](armor_proto::hookup::Name). So there is no table here that fork, dup or exec could make wrong: whether a
//! descriptor is protected, and between which addresses, is asked of the kernel each time. The data path is the
//! kernel's; these hooks set connections up, answer questions about them and announce their end.
//!
//! `hooks` holds the thin C functions, `real` the functions that they stand before, `detour` the three ways
//! out of a hook; the rest is one file per group of calls.
//!
//! Invariant: no thread, no signal, no lock; `errno` changes only to report an error; nothing is allocated on the way
//! through fork, exec, accept and close; without `ARMOR_RUN_DIR` every hook is a plain call of the real function.
#![allow(unsafe_code)]
// Unit tests run in a process of their own, which must not hook itself.
#![cfg_attr(test, allow(dead_code))]

mod accept;
mod address;
mod close;
mod complain;
mod connect;
mod control;
mod descriptors;
mod detour;
mod ends;
mod epoll;
mod exec;
mod exit;
#[cfg(not(test))]
mod hooks;
mod listen;
mod messages;
mod names;
mod options;
mod real;
mod settings;
mod signals;
mod swap;
mod sys;
mod tcp;
#[cfg(not(test))]
mod variadic;
