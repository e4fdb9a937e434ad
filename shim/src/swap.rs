//! Puts another socket under the descriptor numbers of one that the program holds, so that the program does not see it.
//!
//! What the program has set on the old socket goes over: file status flags, signal owner, socket options, epoll
//! registrations (rule 4), and all duplicates (rule 5).

use std::mem::size_of;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_int;

use crate::sys::{self, OwnFd};
use crate::{descriptors, epoll, tcp};

/// Some TCP socket of this process, or of one it was forked from, has been duplicated.
static DUPLICATED: AtomicBool = AtomicBool::new(false);

/// A `dup` of any kind has succeeded on `fd`.
pub(crate) fn note_duplicate(fd: c_int) {
    if !DUPLICATED.load(Ordering::Relaxed) && crate::settings::is_active() && tcp::family(fd).is_some() {
        DUPLICATED.store(true, Ordering::Relaxed);
    }
}

/// Replaces `fd` and every duplicate of it by `new`.
pub(crate) fn swap(fd: c_int, new: OwnFd) -> sys::Result<()> {
    carry_options(fd, new.raw());
    carry_flags(fd, new.raw());
    let cookie = cookie(fd);
    replace(fd, &new)?;
    if cookie.is_some() && DUPLICATED.load(Ordering::Relaxed) {
        descriptors::each_open(|other| {
            if other != fd && self::cookie(other) == cookie {
                // A duplicate that cannot be replaced was closed just now by another thread.
                let _ = replace(other, &new);
            }
        });
    }
    Ok(())
}

fn replace(fd: c_int, new: &OwnFd) -> sys::Result<()> {
    let close_on_exec = sys::fcntl(fd, libc::F_GETFD, 0)? & libc::FD_CLOEXEC != 0;
    // The old socket lives on in the ARMOR, and so would its registrations: they must go while the number is still its.
    let registrations = epoll::withdraw(fd);
    let replaced = sys::dup3(new.raw(), fd, close_on_exec);
    epoll::restore(fd, registrations);
    replaced
}

/// The kernel's identity of a socket.
fn cookie(fd: c_int) -> Option<[u8; 8]> {
    let mut cookie = [0; 8];
    (sys::get_option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie) == Ok(8)).then_some(cookie)
}

fn carry_flags(old: c_int, new: c_int) {
    let Ok(flags) = sys::fcntl(old, libc::F_GETFL, 0) else { return };
    if flags & libc::O_ASYNC != 0 {
        let owner = sys::fcntl(old, libc::F_GETOWN, 0).unwrap_or(0);
        let signal = sys::fcntl(old, F_GETSIG, 0).unwrap_or(0);
        let _ = sys::fcntl(new, libc::F_SETOWN, owner as usize);
        let _ = sys::fcntl(new, F_SETSIG, signal as usize);
    }
    let _ = sys::fcntl(new, libc::F_SETFL, (flags & (libc::O_NONBLOCK | libc::O_ASYNC)) as usize);
}

const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;

/// Options that mean on a unix socket what they mean on a TCP socket, and the length of their values.
const CARRIED: [(c_int, usize); 9] = [
    (libc::SO_RCVTIMEO, size_of::<libc::timeval>()),
    (libc::SO_SNDTIMEO, size_of::<libc::timeval>()),
    (libc::SO_LINGER, size_of::<libc::linger>()),
    (libc::SO_KEEPALIVE, 4),
    (libc::SO_REUSEADDR, 4),
    (libc::SO_OOBINLINE, 4),
    (libc::SO_DONTROUTE, 4),
    (libc::SO_TIMESTAMP, 4),
    (libc::SO_RCVLOWAT, 4),
];

/// Carries over what is set. A TCP socket that a listener accepts has the listener's options, so this serves there too.
pub(crate) fn carry_options(old: c_int, new: c_int) {
    for (option, length) in CARRIED {
        let mut value = [0; 16];
        let value = &mut value[..length];
        let unset: &[u8] = if option == libc::SO_RCVLOWAT { &ONE } else { &[0; 16] };
        let known = sys::get_option(old, libc::SOL_SOCKET, option, value) == Ok(length);
        if known && *value != unset[..length] {
            let _ = sys::set_option(new, libc::SOL_SOCKET, option, value);
        }
    }
}

const ONE: [u8; 4] = 1_i32.to_ne_bytes();
