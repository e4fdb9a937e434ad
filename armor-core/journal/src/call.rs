//! The one call under way: `recvmmsg` or `sendmmsg` with a single message whose header lies in the shared memory.
//!
//! Why not `recvmsg` and a counter: SIGKILL lands on the way out of the system call, after the kernel has moved the bytes and before the
//! counter is raised. The kernel stores `msg_len` of an `mmsghdr` before the call returns, so it is exact whatever happens to the caller.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::Ordering;

use crate::journal::Shared;
use crate::layout;

// No flipped bit makes one of another.
pub(crate) const NONE: u32 = 0;
pub(crate) const RECEIVE: u32 = 3;
/// A send whose bytes lie in the stage.
pub(crate) const SEND_STAGED: u32 = 5;
/// A send of which the number of bytes is known alone.
pub(crate) const SEND_COUNTED: u32 = 6;

/// Most slices in one send.
const SLICES: usize = 32;

/// What is to be known of a send after a death.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// The bytes themselves, for who has to compare them later. Costs a copy of at most 64 KiB into warm memory.
    Bytes,
    /// Their number.
    Count,
}

/// Whom a call is for: a record in a saved state.
pub(crate) struct Caller {
    pub(crate) ticket: u64,
    pub(crate) sequence: u64,
}

/// Receives into `parts` (address and length); the number of bytes, 0 at the end of the stream.
pub(crate) fn receive(shared: &Shared, caller: &Caller, socket: BorrowedFd<'_>, parts: &[(*mut u8, usize)]) -> io::Result<usize> {
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2];
    for (vector, (base, length)) in vectors.iter_mut().zip(parts) {
        *vector = libc::iovec { iov_base: base.cast(), iov_len: *length };
    }
    let known = Known { kind: RECEIVE, room: parts.iter().map(|(_, length)| *length).sum(), staged_sum: 0 };
    let message = arm(shared, caller, &known, vectors.as_mut_ptr(), parts.len());
    // SAFETY: one message whose header is in the journal; its parts are free room in blocks of the caller's record.
    let got = unsafe { libc::recvmmsg(socket.as_raw_fd(), message, 1, libc::MSG_DONTWAIT as _, std::ptr::null_mut()) };
    outcome(got, message)
}

/// Sends from `slices`; the number of bytes that were taken.
pub(crate) fn send(shared: &Shared, caller: &Caller, socket: BorrowedFd<'_>, slices: &[IoSlice<'_>], keep: Keep) -> io::Result<usize> {
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SLICES];
    let (known, count) = match keep {
        Keep::Bytes => {
            let (staged, staged_sum) = stage(shared, slices);
            vectors[0] = libc::iovec { iov_base: shared.map.at(layout::STAGE, staged).cast(), iov_len: staged };
            (Known { kind: SEND_STAGED, room: staged, staged_sum }, 1)
        }
        Keep::Count => {
            for (vector, slice) in vectors.iter_mut().zip(slices) {
                *vector = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
            }
            let count = slices.len().min(SLICES);
            (Known { kind: SEND_COUNTED, room: slices[..count].iter().map(|slice| slice.len()).sum(), staged_sum: 0 }, count)
        }
    };
    let message = arm(shared, caller, &known, vectors.as_mut_ptr(), count);
    // SAFETY: one message whose header is in the journal; its parts are readable for the length of the call.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), message, 1, (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _) };
    outcome(sent, message)
}

/// Copies the bytes; how many, and their checksum.
fn stage(shared: &Shared, slices: &[IoSlice<'_>]) -> (usize, u32) {
    // The call before is over for good: its effects were saved. Only then may its bytes be overwritten.
    shared.map.u32(layout::CALL_KIND).store(NONE, Ordering::SeqCst);
    let (mut staged, mut sum) = (0, 0);
    for slice in slices {
        let length = slice.len().min(layout::STAGE_SIZE - staged);
        shared.map.write(layout::STAGE + staged, &slice[..length]);
        sum = crc32c::crc32c_append(sum, &slice[..length]);
        staged += length;
    }
    (staged, sum)
}

/// What is known of a call before it is made.
pub(crate) struct Known {
    pub(crate) kind: u32,
    /// Most bytes that it moves.
    pub(crate) room: usize,
    /// Of the bytes in the stage.
    pub(crate) staged_sum: u32,
}

impl Known {
    pub(crate) fn sum(&self, caller: &Caller) -> u32 {
        let words = [
            u64::from(self.kind),
            caller.ticket,
            caller.sequence,
            u64::from(u32::try_from(self.room).unwrap_or(u32::MAX)),
            u64::from(self.staged_sum),
        ];
        words.iter().fold(0, |sum, word| crc32c::crc32c_append(sum, &word.to_le_bytes()))
    }
}

fn arm(shared: &Shared, caller: &Caller, known: &Known, parts: *mut libc::iovec, count: usize) -> *mut libc::mmsghdr {
    let map = &shared.map;
    map.u32(layout::CALL_KIND).store(NONE, Ordering::SeqCst);
    let message: *mut libc::mmsghdr = map.at(layout::CALL_MESSAGE, size_of::<libc::mmsghdr>()).cast();
    // SAFETY: the place is inside the mapping, aligned to 64 bytes, and only this thread's calls use it; zero is a valid mmsghdr.
    unsafe {
        message.write(std::mem::zeroed());
        (*message).msg_hdr.msg_iov = parts;
        (*message).msg_hdr.msg_iovlen = count as _;
    }
    map.u64(layout::CALL_TICKET).store(caller.ticket, Ordering::SeqCst);
    map.u64(layout::CALL_SEQUENCE).store(caller.sequence, Ordering::SeqCst);
    // At most 64 KiB in the stage, two blocks, or what 32 slices of memory hold.
    map.u32(layout::CALL_ROOM).store(u32::try_from(known.room).unwrap_or(u32::MAX), Ordering::SeqCst);
    map.u32(layout::CALL_STAGED_SUM).store(known.staged_sum, Ordering::SeqCst);
    map.u32(layout::CALL_SUM).store(known.sum(caller), Ordering::SeqCst);
    map.u32(layout::CALL_KIND).store(known.kind, Ordering::SeqCst);
    message
}

fn outcome(messages: libc::c_int, message: *mut libc::mmsghdr) -> io::Result<usize> {
    if messages < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the header that the call has just filled.
    Ok(unsafe { (*message).msg_len } as usize)
}

/// Bytes that the call under way at the death of the process had moved.
pub(crate) fn moved(shared: &Shared) -> usize {
    let message: *const libc::mmsghdr = shared.map.at(layout::CALL_MESSAGE, size_of::<libc::mmsghdr>()).cast();
    // SAFETY: inside the mapping, aligned; any bytes are a number.
    unsafe { (*message).msg_len as usize }
}
