//! Between C socket addresses of the application and [`Endpoint`]s.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use armor_proto::hookup::{Endpoint, IpFamily};
use libc::{c_int, sa_family_t, sockaddr, socklen_t};

use crate::detour::Errno;
use crate::sys::Address;

/// Reads the address given to `bind` or `connect`. `None`: not a whole IP address, which is for the kernel to judge.
///
/// # Safety
/// `address` points to `length` readable bytes, or is null.
pub(crate) unsafe fn read(address: *const sockaddr, length: socklen_t) -> Option<Endpoint> {
    if address.is_null() || (length as usize) < size_of::<sa_family_t>() {
        return None;
    }
    // SAFETY: at least the family is there.
    let family = c_int::from(unsafe { (&raw const (*address).sa_family).read_unaligned() });
    match family {
        libc::AF_INET if length as usize >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the length was checked.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(Endpoint::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 if length as usize >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: the length was checked.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr));
            Some(Endpoint { ip, port: u16::from_be(v6.sin6_port), scope: v6.sin6_scope_id })
        }
        _ => None,
    }
}

/// `AF_INET` or `AF_INET6`.
pub(crate) const fn domain(family: IpFamily) -> c_int {
    match family {
        IpFamily::V4 => libc::AF_INET,
        IpFamily::V6 => libc::AF_INET6,
    }
}

/// The kernel's form of `endpoint`.
pub(crate) fn kernel_form(endpoint: Endpoint) -> Address {
    match endpoint.ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; size_of::<libc::sockaddr_in>()];
            bytes[..2].copy_from_slice(&(libc::AF_INET as sa_family_t).to_ne_bytes());
            bytes[2..4].copy_from_slice(&endpoint.port.to_be_bytes());
            bytes[4..8].copy_from_slice(&ip.octets());
            Address::from_bytes(&bytes)
        }
        IpAddr::V6(ip) => {
            let mut bytes = [0; size_of::<libc::sockaddr_in6>()];
            bytes[..2].copy_from_slice(&(libc::AF_INET6 as sa_family_t).to_ne_bytes());
            bytes[2..4].copy_from_slice(&endpoint.port.to_be_bytes());
            bytes[8..24].copy_from_slice(&ip.octets());
            bytes[24..].copy_from_slice(&endpoint.scope.to_ne_bytes());
            Address::from_bytes(&bytes)
        }
    }
}

/// What the kernel checks before it reports an address: both pointers or none, no negative length.
///
/// # Safety
/// `length` points to a length, or is null.
pub(crate) unsafe fn check_room(address: *mut sockaddr, length: *mut socklen_t) -> Result<(), Errno> {
    if address.is_null() {
        return Ok(());
    }
    if length.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: not null, so the caller's promise holds.
    if unsafe { length.read_unaligned() } as c_int >= 0 { Ok(()) } else { Err(Errno(libc::EINVAL)) }
}

/// Reports `from` as the kernel does: cut to the room given, with the true length stored.
///
/// # Safety
/// `address` has room for `*length` bytes, or is null; [`check_room`] has passed.
pub(crate) unsafe fn report(from: &Address, address: *mut sockaddr, length: *mut socklen_t) {
    if address.is_null() {
        return;
    }
    let bytes = from.bytes();
    // SAFETY: copies no more than the room that the caller states.
    unsafe {
        let room = length.read_unaligned() as usize;
        address.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(room));
        length.write_unaligned(bytes.len() as socklen_t);
    }
}
