//! The address arguments of `recvfrom`, `recvmsg`, `sendto` and `sendmsg`.
//!
//! A TCP socket reports no sender (length 0, the buffer untouched) and ignores a destination; a unix stream socket
//! reports its peer's name and refuses a destination.

use libc::{c_int, iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t};

use crate::sys::Address;
use crate::{address, ends, names, settings};

/// Nothing to correct: no sender is asked for.
#[inline]
pub(crate) fn is_plain(address: *mut sockaddr, length: *mut socklen_t) -> bool {
    address.is_null() || length.is_null() || !settings::is_active()
}

/// Fills what `recvfrom` reports of the sender; gives `got` back.
///
/// # Safety
/// As for `recvfrom`, with both pointers set.
pub(crate) unsafe fn report_sender(from: &Address, got: ssize_t, address: *mut sockaddr, length: *mut socklen_t) -> ssize_t {
    if got < 0 {
        return got;
    }
    // SAFETY: the caller's promise.
    unsafe {
        if let Err(errno) = address::check_room(address, length) {
            return errno.report() as ssize_t;
        }
        // A kernel that reports no sender stores length 0 too.
        if names::parse(from).is_some() { length.write_unaligned(0) } else { address::report(from, address, length) }
    }
    got
}

/// At least one byte is wanted.
///
/// # Safety
/// `parts` points to `count` parts.
pub(crate) unsafe fn wants(parts: *const iovec, count: size_t) -> bool {
    // SAFETY: the caller's promise.
    !parts.is_null() && (0..count).any(|index| unsafe { (*parts.add(index)).iov_len } > 0)
}

/// # Safety
/// As for `recvmsg`.
pub(crate) unsafe fn message_wants(message: *const msghdr) -> bool {
    // SAFETY: the caller's promise.
    !message.is_null() && unsafe { wants((*message).msg_iov, (*message).msg_iovlen as size_t) }
}

/// A message to receive into, with room of our own for the sender.
pub(crate) struct Named {
    header: msghdr,
    from: Address,
}

/// `Some` when `message` asks for the sender.
///
/// # Safety
/// As for `recvmsg`.
pub(crate) unsafe fn named(message: *const msghdr) -> Option<Named> {
    // SAFETY: the caller's promise.
    let wanted = !message.is_null() && settings::is_active() && unsafe { !(*message).msg_name.is_null() };
    // SAFETY: a msghdr is plain data.
    wanted.then(|| Named { header: unsafe { *message }, from: Address::empty() })
}

impl Named {
    pub(crate) fn header(&mut self) -> *mut msghdr {
        self.header.msg_name = self.from.as_mut_ptr().cast();
        // SAFETY: a pointer to our own length.
        self.header.msg_namelen = unsafe { *self.from.length_mut() };
        &raw mut self.header
    }

    /// Copies what the kernel has written to the caller's header; gives `got` back.
    ///
    /// # Safety
    /// `message` is what [`named`] was given.
    pub(crate) unsafe fn give_back(&mut self, got: ssize_t, message: *mut msghdr) -> ssize_t {
        if got < 0 {
            return got;
        }
        // SAFETY: the caller's promise; the name's buffer is as long as its header says.
        unsafe {
            *self.from.length_mut() = self.header.msg_namelen;
            (*message).msg_controllen = self.header.msg_controllen;
            (*message).msg_flags = self.header.msg_flags;
            if names::parse(&self.from).is_some() {
                (*message).msg_namelen = 0;
            } else {
                address::report(&self.from, (*message).msg_name.cast(), &raw mut (*message).msg_namelen);
            }
        }
        got
    }
}

/// What `recvmmsg` means to TCP: no senders, and a reset is an error.
///
/// # Safety
/// The first `got` of `messages` were filled by the kernel.
pub(crate) unsafe fn after_many(fd: c_int, messages: *mut mmsghdr, got: c_int) -> c_int {
    if got <= 0 || !names::is_protected(fd) {
        return got;
    }
    for index in 0..got as usize {
        // SAFETY: the caller's promise.
        unsafe { (*messages.add(index)).msg_hdr.msg_namelen = 0 };
    }
    // SAFETY: at least one was filled.
    let ended = unsafe { (*messages).msg_len == 0 && message_wants(&raw const (*messages).msg_hdr) };
    if ended && ends::judge(fd, 0) < 0 { -1 } else { got }
}

/// A copy of `message` without its destination, when there is one and `fd` is protected.
///
/// # Safety
/// As for `sendmsg`.
pub(crate) unsafe fn addressed(fd: c_int, message: *const msghdr) -> Option<msghdr> {
    // SAFETY: the caller's promise.
    if message.is_null() || unsafe { (*message).msg_name.is_null() } || !names::is_protected(fd) {
        return None;
    }
    // SAFETY: a msghdr is plain data.
    let mut plain = unsafe { *message };
    plain.msg_name = std::ptr::null_mut();
    plain.msg_namelen = 0;
    Some(plain)
}
