//! What the kernel knows about a socket that is not protected yet.

use armor_proto::hookup::IpFamily;
use libc::c_int;

use crate::detour::{Bypass, Detour};
use crate::sys;

/// `TCP_CLOSE` of `tcpi_state`: neither connected nor listening.
const TCP_CLOSE: u8 = 7;

/// A TCP socket that the kernel has neither connected nor set to listen: the family it speaks.
pub(crate) fn idle(fd: c_int) -> Detour<IpFamily> {
    let family = family(fd).ok_or(Bypass::NotTcp)?;
    let mut info = [0; 1];
    let length = sys::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    if length == 1 && info[0] == TCP_CLOSE { Ok(family) } else { Err(Bypass::KernelHasIt.into()) }
}

/// Family of a TCP socket, `None` for everything else.
pub(crate) fn family(fd: c_int) -> Option<IpFamily> {
    if sys::int_option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) != Ok(libc::IPPROTO_TCP) {
        return None;
    }
    match sys::int_option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) {
        Ok(libc::AF_INET) => Some(IpFamily::V4),
        Ok(libc::AF_INET6) => Some(IpFamily::V6),
        _ => None,
    }
}

/// The kernel has given `fd` a local port.
pub(crate) fn is_bound(fd: c_int) -> bool {
    sys::getsockname(fd).is_ok_and(|address| address.bytes().get(2..4).is_some_and(|port| port != [0, 0]))
}

/// Only its address is to be bound; the port is chosen by `connect`. So it is a client's.
pub(crate) fn wants_no_port(fd: c_int) -> bool {
    sys::int_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT).is_ok_and(|set| set != 0)
}

pub(crate) fn is_nonblocking(fd: c_int) -> bool {
    sys::fcntl(fd, libc::F_GETFL, 0).is_ok_and(|flags| flags & libc::O_NONBLOCK != 0)
}
