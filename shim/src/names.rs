//! Which name a descriptor carries: the kernel's answer to "is this one protected, and what is it?".

use armor_proto::hookup::{Endpoint, IpFamily, NAME_LENGTH, Name, Role};
use libc::{c_int, sockaddr, socklen_t};

use crate::address;
use crate::detour::{Bypass, Detour, Errno};
use crate::settings;
use crate::sys::{self, Address};

/// Family, the NUL that makes it abstract, the name.
const UNIX_LENGTH: usize = 2 + 1 + NAME_LENGTH;

/// The name in a kernel address, if an ARMOR wrote it.
pub(crate) fn parse(address: &Address) -> Option<Name> {
    if address.family() != libc::AF_UNIX || address.bytes().len() != UNIX_LENGTH || address.bytes()[2] != 0 {
        return None;
    }
    Name::from_bytes(&address.bytes()[3..]).ok()
}

/// The abstract unix address of `name`.
pub(crate) fn kernel_form(name: &Name) -> Address {
    let mut bytes = [0; UNIX_LENGTH];
    bytes[..2].copy_from_slice(&(libc::AF_UNIX as libc::sa_family_t).to_ne_bytes());
    bytes[3..].copy_from_slice(&name.to_bytes());
    Address::from_bytes(&bytes)
}

/// Name of a protected descriptor; `None` for every other. An accepted connection has its listener's name as its
/// own, so the peer's name is asked first.
pub(crate) fn of(fd: c_int) -> Option<Name> {
    match sys::getpeername(fd) {
        Ok(peer) => parse(&peer).filter(|name| name.role != Role::Listener),
        Err(Errno(libc::ENOTCONN)) => listener(fd),
        Err(_) => None,
    }
}

/// Name of the listener that `fd` is or was accepted from.
pub(crate) fn listener(fd: c_int) -> Option<Name> {
    parse(&sys::getsockname(fd).ok()?).filter(|name| name.role == Role::Listener)
}

/// The family in which `fd`, whose name is `name`, reports addresses.
pub(crate) fn family(fd: c_int, name: &Name) -> IpFamily {
    match name.role {
        Role::Server => listener(fd).map_or(name.family(), |listener| listener.family()),
        Role::Listener | Role::Client => name.family(),
    }
}

/// `endpoint` as the kernel would report it on a socket of `family`.
pub(crate) fn in_family(endpoint: Endpoint, family: IpFamily) -> Address {
    address::kernel_form(endpoint.in_family(family).unwrap_or(endpoint))
}

/// `getsockname` of a protected descriptor.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> Detour<c_int> {
    let name = protected(fd)?;
    // SAFETY: the caller's promise.
    unsafe { tell(in_family(name.local, family(fd, &name)), address, length) }
}

/// `getpeername` of a protected descriptor.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> Detour<c_int> {
    use armor_proto::hookup::ConnectState::Established;

    let name = protected(fd)?;
    if name.role == Role::Client && crate::connect::state(fd) != Established {
        return Err(Errno(libc::ENOTCONN).into());
    }
    if name.role == Role::Listener {
        return Err(Bypass::Native.into());
    }
    // SAFETY: the caller's promise.
    unsafe { tell(in_family(name.peer, family(fd, &name)), address, length) }
}

/// The name of a protected descriptor, or the reason to leave it alone.
pub(crate) fn protected(fd: c_int) -> Detour<Name> {
    if !settings::is_active() {
        return Err(Bypass::Inactive.into());
    }
    of(fd).ok_or(Bypass::NotProtected.into())
}

/// A descriptor that an ARMOR made, in a process that is hooked up.
pub(crate) fn is_protected(fd: c_int) -> bool {
    protected(fd).is_ok()
}

/// # Safety
/// As for `getsockname`.
unsafe fn tell(from: Address, address: *mut sockaddr, length: *mut socklen_t) -> Detour<c_int> {
    if address.is_null() || length.is_null() {
        return Err(Errno(libc::EFAULT).into());
    }
    // SAFETY: the caller's promise, pointers checked.
    unsafe {
        address::check_room(address, length)?;
        address::report(&from, address, length);
    }
    Ok(0)
}
