//! The orderly end of the process: with status 0 its sockets are closed and announced, as by `close`.
//!
//! Never at another status, abort or a signal: then it is the process's fate that decides (rule 10).

use std::ptr::null_mut;

use libc::{FILE, c_int, c_void};

use crate::{close, names, settings};

/// Asks to be called by `exit` and by the return from `main`, after the program's own handlers. Early enough that the
/// C library has room for the request without allocating.
pub(crate) fn register() {
    unsafe extern "C" {
        fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    // SAFETY: the handler lives as long as the process; a preloaded library is not unloaded.
    unsafe { on_exit(leaving, null_mut()) };
}

extern "C" fn leaving(status: c_int, _: *mut c_void) {
    if status & 0xff == 0 && close::any_protected() {
        flush_streams();
        leave(status);
    }
}

/// Before the process ends without further ado.
pub(crate) fn leave(status: c_int) {
    if status & 0xff == 0 && settings::is_active() {
        close::range(0, u32::MAX, 0);
    }
}

/// Writes out the buffered streams that stand on protected descriptors: `exit` would do that after us.
///
/// `fflush(NULL)` would wait for a stream whose lock another thread holds while it reads, so the C library's list is
/// walked as its own last clean-up walks it, without waiting.
#[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
fn flush_streams() {
    unsafe extern "C" {
        fn fflush_unlocked(stream: *mut FILE) -> c_int;
        fn ftrylockfile(stream: *mut FILE) -> c_int;
        fn funlockfile(stream: *mut FILE);
        fn fileno_unlocked(stream: *mut FILE) -> c_int;
    }
    /// Offset of `_chain` in glibc's `struct _IO_FILE`, part of its ABI.
    const CHAIN: usize = 104;
    // SAFETY: the C library's public head of its list of streams; null when it has none.
    let head = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_IO_list_all".as_ptr()) };
    if head.is_null() {
        return;
    }
    // SAFETY: streams on the list are live; nobody opens or closes one while the process leaves, or the same risk is
    // run by the C library's own walk right after this one.
    unsafe {
        let mut stream = head.cast::<*mut FILE>().read();
        while !stream.is_null() {
            if names::of(fileno_unlocked(stream)).is_some() && ftrylockfile(stream) == 0 {
                fflush_unlocked(stream);
                funlockfile(stream);
            }
            stream = stream.byte_add(CHAIN).cast::<*mut FILE>().read();
        }
    }
}

#[cfg(not(all(target_env = "gnu", target_pointer_width = "64")))]
fn flush_streams() {
    let _: *mut FILE = null_mut();
}
