//! Socket options as numbers: what an application sets on a protected socket is applied to the TCP socket that is kept for it.
//!
//! The one place in this crate with `unsafe`: no crate offers get/setsockopt for options that are not known beforehand.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use armor_proto::hookup::{ConnectState, Reply};

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

/// setsockopt(2); the errno, or 0.
fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> i32 {
    let length = value.len().min(LARGEST) as libc::socklen_t;
    // SAFETY: `value` is valid for `length` bytes during the call; the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    if result == 0 { 0 } else { last_errno() }
}

/// getsockopt(2); the value, or the errno.
pub(super) fn get_option(socket: BorrowedFd<'_>, level: i32, option: i32, length: u32) -> Result<Vec<u8>, i32> {
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
