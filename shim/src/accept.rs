//! `accept` on a protected listener: reports who connected, and turns strangers away.

use armor_proto::hookup::Role;
use libc::{c_int, sockaddr, socklen_t};

use crate::sys::{self, Address};
use crate::{address, names, settings, swap};

/// Judges what the real `accept` returned and fills the caller's address. `None`: it was a stranger, accept again.
///
/// # Safety
/// `address` and `length` as for the C function, checked by [`address::check_room`].
pub(crate) unsafe fn admit(
    listener: c_int,
    accepted: c_int,
    from: &Address,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> Option<c_int> {
    if accepted < 0 {
        return Some(accepted);
    }
    let mut peer = *from;
    if from.family() == libc::AF_UNIX
        && let Some(own) = names::listener(listener)
    {
        let name = names::parse(from).filter(|name| name.role == Role::Server && is_armor(accepted));
        let Some(name) = name else {
            sys::close(accepted);
            return None;
        };
        swap::carry_options(listener, accepted);
        peer = names::in_family(name.peer, own.family());
    }
    // SAFETY: the caller's promise.
    unsafe { address::report(&peer, address, length) };
    Some(accepted)
}

/// The process at the other end may be an ARMOR of ours: it runs as this user, as root, or as the owner of the run
/// directory.
fn is_armor(fd: c_int) -> bool {
    // struct ucred: pid, uid, gid
    let mut credentials = [0; 12];
    if sys::get_option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut credentials) != Ok(12) {
        return false;
    }
    let [_, _, _, _, uid @ .., _, _, _, _] = credentials;
    let uid = u32::from_ne_bytes(uid);
    let owner = || settings::active().and_then(|settings| sys::owner(settings.run_dir.value_with_nul()).ok());
    uid == 0 || uid == sys::geteuid() || owner() == Some(uid)
}
