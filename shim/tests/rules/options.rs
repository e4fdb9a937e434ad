//! Raw socket options for the mock: whatever level, option and bytes the application gave.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};

/// Returns the errno, 0 for success.
pub(crate) fn set(socket: &OwnedFd, level: i32, option: i32, value: &[u8]) -> i32 {
    // SAFETY: pointer and length are of the same slice.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as libc::socklen_t) };
    if result == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap() }
}

/// Returns the errno and the value.
pub(crate) fn get(socket: &OwnedFd, level: i32, option: i32, length: usize) -> (i32, Vec<u8>) {
    let mut value = vec![0; length];
    let mut length = length as libc::socklen_t;
    // SAFETY: the length is that of the vector.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut length) };
    if result != 0 {
        return (std::io::Error::last_os_error().raw_os_error().unwrap(), Vec::new());
    }
    value.truncate(length as usize);
    (0, value)
}

pub(crate) fn v6_only(socket: &OwnedFd) -> bool {
    get(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 4).1.first() == Some(&1)
}

pub(crate) fn set_priority(socket: &OwnedFd, priority: i32) {
    assert_eq!(set(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, &priority.to_ne_bytes()), 0);
}
