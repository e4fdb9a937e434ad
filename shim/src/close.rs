//! Every way to close: the real close, and then the word to the ARMOR that it was meant (rule 10).
//!
//! A killed program's sockets are closed by the kernel too. What was announced is a close, the rest is for the ARMOR
//! to find out about.

use std::time::Duration;

use armor_proto::hookup::{Name, Request, Role};
use libc::{c_int, c_uint};

use crate::control::{self, Side};
use crate::{descriptors, epoll, names, settings, sys};

/// How long a close waits for an ARMOR that may be restarting.
const REACH: Duration = Duration::from_millis(250);

/// A protected descriptor that is about to be closed. Plain data: it may stand on the stack of a cancelled call.
#[derive(Clone, Copy)]
pub(crate) struct Closing {
    name: Name,
    aborts: bool,
}

/// Before a close of `fd`; `None` when there is nothing to announce.
#[inline]
pub(crate) fn before(fd: c_int) -> Option<Closing> {
    if fd < 0 || !settings::is_active() {
        return None;
    }
    let name = names::of(fd)?;
    Some(Closing { name, aborts: name.role != Role::Listener && aborts(fd) })
}

/// After it: `result` is -1 when the close failed.
#[inline]
pub(crate) fn after(closing: Option<Closing>, result: c_int) {
    // EINTR and EIO come after the descriptor is gone.
    if let Some(closing) = closing
        && (result != -1 || sys::errno() != libc::EBADF)
    {
        announce(closing);
    }
}

/// After a `dup2` that has put another file under the number of `closing`.
pub(crate) fn after_replacing(closing: Option<Closing>, fd: c_int, result: c_int) -> c_int {
    if result >= 0 && closing.is_some() {
        epoll::forget(fd);
        after(closing, result);
    }
    result
}

fn announce(closing: Closing) {
    let (name, pid) = (closing.name, sys::getpid());
    let request = if closing.aborts { Request::Aborted { name, pid } } else { Request::Closed { name, pid } };
    control::tell(Side::of(&name), &request, REACH);
}

/// `SO_LINGER` with no time to linger: TCP would send RST.
fn aborts(fd: c_int) -> bool {
    // struct linger: on, seconds
    let mut linger = [0; 8];
    let known = sys::get_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &mut linger) == Ok(8);
    known && linger[..4] != [0; 4] && linger[4..] == [0; 4]
}

/// `shutdown` has succeeded.
pub(crate) fn after_shutdown(fd: c_int, how: c_int) {
    if how == libc::SHUT_RD || !settings::is_active() {
        return;
    }
    if let Some(name) = names::of(fd).filter(|name| name.role != Role::Listener) {
        control::tell(Side::of(&name), &Request::Finished { name, pid: sys::getpid() }, REACH);
    }
}

/// Closes and announces the protected descriptors from `first` to `last`, before the real function closes the rest.
pub(crate) fn range(first: c_uint, last: c_uint, flags: c_uint) {
    if !settings::is_active() || flags & libc::CLOSE_RANGE_CLOEXEC != 0 || first > last {
        return;
    }
    if flags & libc::CLOSE_RANGE_UNSHARE != 0 && sys::unshare_files().is_err() {
        return;
    }
    descriptors::each_open(|fd| {
        if (first..=last).contains(&fd.unsigned_abs())
            && let Some(closing) = before(fd)
        {
            epoll::forget(fd);
            sys::close(fd);
            announce(closing);
        }
    });
}

/// Whether any protected descriptor is open.
pub(crate) fn any_protected() -> bool {
    let mut any = false;
    descriptors::each_open(|fd| any = any || names::of(fd).is_some());
    any
}
