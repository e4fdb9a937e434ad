//! The end of a stream: FIN or reset?
//!
//! A unix socket shows both as end of file. The ARMOR keeps its end open after an orderly end, so only when the other
//! end is gone as well is it asked.

use std::time::Duration;

use armor_proto::hookup::{Reply, Request, Role};
use libc::{c_int, ssize_t};

use crate::control::{self, Patience, Side};
use crate::detour::Errno;
use crate::{connect, names, settings, sys};

const PATIENCE: Patience = Patience { reach: Duration::from_millis(500), answer: Some(Duration::from_secs(1)), interruptible: false };

/// Result of a read of at least one byte that returned `got` ≤ 0: what TCP would have said.
#[cold]
pub(crate) fn judge(fd: c_int, got: ssize_t) -> ssize_t {
    if !settings::is_active() {
        return got;
    }
    match got {
        0 => broken(fd).map_or(0, |errno| errno.report() as ssize_t),
        _ if sys::errno() == libc::ECONNRESET => connect::failure(fd).map_or(got, |errno| errno.report() as ssize_t),
        _ => got,
    }
}

/// The error that an end of file on `fd` stands for. `None`: it is what it seems.
fn broken(fd: c_int) -> Option<Errno> {
    let name = names::of(fd).filter(|name| name.role != Role::Listener)?;
    let events = sys::poll(fd, 0, Some(Duration::ZERO)).ok()?;
    if events & libc::POLLHUP == 0 {
        return None;
    }
    match control::ask(Side::of(&name), &Request::HowEnded { name }, None, PATIENCE).map(|answer| answer.reply) {
        Ok(Reply::Ended { errno: 0 }) => None,
        Ok(Reply::Ended { errno }) => Some(Errno(errno)),
        // An ARMOR that is gone has closed nothing in order.
        _ => Some(Errno(libc::ECONNRESET)),
    }
}
