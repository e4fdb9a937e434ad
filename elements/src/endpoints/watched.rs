//! File descriptors in the event loop.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Puts a non-blocking descriptor into the event loop.
///
/// # Errors
/// When the kernel's epoll does not take it.
pub fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same open descriptor from `as_raw_fd` until it is dropped, and nothing in this crate takes it out
    // of the `AsyncFd` or closes it behind its back.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}
