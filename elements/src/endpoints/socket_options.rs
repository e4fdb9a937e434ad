//! Socket options as numbers: what an application sets on a protected socket is applied to the TCP socket that is kept for it.
//!
//! The one place in this crate with `unsafe`: no crate offers get/setsockopt for options that are not known beforehand.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use armor_proto::hookup::{ConnectState, IpFamily, Reply};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Largest option value that is passed on, in bytes.
const LARGEST: usize = 1024;

/// What the shim is told of a setsockopt on a protected socket, done on the TCP socket that is kept for it.
#[must_use]
pub fn set_option_for(holder: Option<&OwnedFd>, level: i32, option: i32, value: &[u8]) -> Reply {
    let errno = holder.map_or(libc::ENOPROTOOPT, |holder| set_option(holder.as_fd(), level, option, value));
    Reply::Option { errno, value: Vec::new() }
}

/// What the shim is told of a getsockopt on a protected socket, done on the TCP socket that is kept for it.
#[must_use]
pub fn get_option_for(holder: Option<&OwnedFd>, level: i32, option: i32, length: u32) -> Reply {
    match holder.map_or(Err(libc::ENOPROTOOPT), |holder| get_option(holder.as_fd(), level, option, length)) {
        Ok(value) => Reply::Option { errno: 0, value },
        Err(errno) => Reply::Option { errno, value: Vec::new() },
    }
}

/// Options that were set on one connection, for which no TCP socket is kept.
#[derive(Debug, Default)]
pub struct ConnectionOptions {
    set: Vec<(i32, i32, Vec<u8>)>,
}

impl ConnectionOptions {
    /// Most options of a connection; a further one is refused with ENOMEM.
    const MOST: usize = 64;

    /// What the shim is told of a setsockopt on this connection: the kernel's word on a TCP socket of its family. The value is kept as
    /// the kernel would give it back.
    pub fn set(&mut self, family: IpFamily, level: i32, option: i32, value: &[u8]) -> Reply {
        let errno = self.tried(family, level, option, value).map_or_else(|errno| errno, |()| 0);
        Reply::Option { errno, value: Vec::new() }
    }

    fn tried(&mut self, family: IpFamily, level: i32, option: i32, value: &[u8]) -> Result<(), i32> {
        let socket = fresh_socket(family)?;
        match set_option(socket.as_fd(), level, option, value) {
            0 => {}
            errno => return Err(errno),
        }
        let value =
            get_option(socket.as_fd(), level, option, LARGEST as u32).unwrap_or_else(|_| value[..value.len().min(LARGEST)].to_vec());
        if let Some((.., known)) = self.set.iter_mut().find(|(known, name, _)| (*known, *name) == (level, option)) {
            *known = value;
        } else if self.set.len() < Self::MOST {
            self.set.push((level, option, value));
        } else {
            return Err(libc::ENOMEM);
        }
        Ok(())
    }

    /// What the shim is told of a getsockopt: what was set on this connection, otherwise what its listener's socket says, or a new one
    /// when the listener is closed.
    #[must_use]
    pub fn get(&self, family: IpFamily, listener: Option<&OwnedFd>, level: i32, option: i32, length: u32) -> Reply {
        if let Some((.., value)) = self.set.iter().find(|(known, name, _)| (*known, *name) == (level, option)) {
            return Reply::Option { errno: 0, value: value[..value.len().min(length as usize)].to_vec() };
        }
        let fresh = if listener.is_none() { fresh_socket(family).ok() } else { None };
        get_option_for(listener.or(fresh.as_ref()), level, option, length)
    }
}

/// A TCP socket that nothing was done to.
pub fn fresh_socket(family: IpFamily) -> Result<OwnedFd, i32> {
    let family = match family {
        IpFamily::V4 => AddressFamily::INET,
        IpFamily::V6 => AddressFamily::INET6,
    };
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(Errno::raw_os_error)
}

/// setsockopt(2); the errno, or 0.
fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> i32 {
    let length = value.len().min(LARGEST) as libc::socklen_t;
    // SAFETY: `value` is valid for `length` bytes during the call; the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    if result == 0 { 0 } else { last_errno() }
}

/// getsockopt(2); the value, or the errno.
pub(crate) fn get_option(socket: BorrowedFd<'_>, level: i32, option: i32, length: u32) -> Result<Vec<u8>, i32> {
    let mut value = vec![0u8; (length as usize).min(LARGEST)];
    let mut got = value.len() as libc::socklen_t;
    // SAFETY: `value` is valid for `got` bytes and `got` for one socklen_t during the call.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut got) };
    if result != 0 {
        return Err(last_errno());
    }
    value.truncate(got as usize);
    Ok(value)
}

/// A socket that was bound to an address without a port (IP_BIND_ADDRESS_NO_PORT) gets one at the next bind.
pub(crate) fn let_bind_choose_a_port(socket: BorrowedFd<'_>) {
    let _ = set_option(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &0_i32.to_ne_bytes());
}

/// Marks the application's socket with the state of its connect (see [`ConnectState`]).
pub(super) fn set_connect_state(socket: BorrowedFd<'_>, state: ConnectState) {
    let _ = set_option(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, &state.priority().to_ne_bytes());
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn number(reply: Reply) -> Result<i32, i32> {
        match reply {
            Reply::Option { errno: 0, value } => Ok(value.try_into().map_or(0, i32::from_ne_bytes)),
            Reply::Option { errno, .. } => Err(errno),
            _ => Err(-1),
        }
    }

    #[test]
    fn an_option_is_set_for_one_connection_and_read_back_as_the_kernel_would_give_it() {
        let listener = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let (mut one, other) = (ConnectionOptions::default(), ConnectionOptions::default());
        let nodelay =
            |options: &ConnectionOptions| number(options.get(IpFamily::V4, Some(&listener), libc::IPPROTO_TCP, libc::TCP_NODELAY, 4));
        assert_eq!(number(one.set(IpFamily::V4, libc::IPPROTO_TCP, libc::TCP_NODELAY, &7i32.to_ne_bytes())), Ok(0));
        assert_eq!((nodelay(&one), nodelay(&other)), (Ok(1), Ok(0)), "the kernel makes 1 of 7");
        assert_eq!(number(other.get(IpFamily::V6, None, libc::IPPROTO_TCP, libc::TCP_NODELAY, 4)), Ok(0), "its listener is closed");
        one.set(IpFamily::V4, libc::IPPROTO_TCP, libc::TCP_NODELAY, &0i32.to_ne_bytes());
        assert_eq!((nodelay(&one), one.set.len()), (Ok(0), 1));
        assert_eq!(number(one.set(IpFamily::V4, libc::IPPROTO_TCP, 9999, &[0; 4])), Err(libc::ENOPROTOOPT));
        assert_eq!(number(one.set(IpFamily::V4, libc::IPPROTO_TCP, libc::TCP_NODELAY, &[])), Err(libc::EINVAL));
    }
}
