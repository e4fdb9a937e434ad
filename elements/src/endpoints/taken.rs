//! What an application has taken of what an ARMOR gave it, as the kernel knows it: whether bytes lie unread in its socket, and
//! whether it has accepted the connection at all.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::ioctl::{Getter, ioctl};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// Bytes of memory that hold what the application has not read yet; more than these bytes are, and 0 when it has read everything.
#[must_use]
pub fn unread(socket: BorrowedFd<'_>) -> u64 {
    // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int to where its argument points, which is what `Getter` gives it.
    let queued = unsafe { ioctl(socket, Getter::<{ libc::TIOCOUTQ as rustix::ioctl::Opcode }, libc::c_int>::new()) };
    queued.ok().and_then(|queued| u64::try_from(queued).ok()).unwrap_or(0)
}

/// Whether the application has accepted this connection, which is connected to its listener. `None` when the kernel does not say
/// (without `unix_diag`). It costs some ten microseconds.
///
/// A connection is established before it is accepted, so its own end cannot tell. But the other end has an inode only from then on, and
/// the kernel tells which one (sock_diag(7), `UNIX_DIAG_PEER`).
#[must_use]
pub fn is_accepted(socket: BorrowedFd<'_>) -> Option<bool> {
    peer_inode(socket).ok().flatten().map(|inode| inode != 0)
}

/// `SOCK_DIAG_BY_FAMILY`, of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `UDIAG_SHOW_PEER` and `UNIX_DIAG_PEER`, of linux/unix_diag.h.
const SHOW_PEER: u32 = 4;
const PEER: u16 = 2;
/// Lengths of `nlmsghdr`, and with it of `unix_diag_req` and `unix_diag_msg`.
const HEAD: usize = 16;
const REQUEST: usize = HEAD + 24;
const ANSWER: usize = HEAD + 16;

fn peer_inode(socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    // Inodes of sockets have 32 bits.
    let Ok(inode) = u32::try_from(rustix::fs::fstat(socket)?.st_ino) else { return Ok(None) };
    let diag = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    let mut request = Vec::with_capacity(REQUEST);
    request.extend((REQUEST as u32).to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    // NLM_F_REQUEST; sequence; port.
    request.extend(1u16.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    // Of any state, by inode, with any cookie.
    for word in [u32::MAX, inode, SHOW_PEER, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    send(&diag, &request, SendFlags::empty())?;
    // The kernel has answered before `send` returns.
    let mut answer = [0; 1024];
    let (length, _) = recv(diag.as_fd(), &mut answer[..], RecvFlags::DONTWAIT)?;
    Ok(peer_in(&answer[..length]))
}

/// The inode of the peer, in an answer.
fn peer_in(answer: &[u8]) -> Option<u32> {
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if half(4)? != BY_FAMILY {
        return None;
    }
    let mut at = ANSWER;
    loop {
        let (length, kind) = (usize::from(half(at)?), half(at + 2)?);
        if kind == PEER {
            return Some(u32::from_ne_bytes(answer.get(at + 4..at + 8)?.try_into().ok()?));
        }
        at += length.max(4).next_multiple_of(4);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    #[test]
    fn a_connection_is_accepted_only_when_it_was_accepted_and_its_bytes_are_unread_until_they_were_read() {
        let name = SocketAddr::from_abstract_name(format!("armor-taken-{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let mut socket = UnixStream::connect_addr(&name).unwrap();
        assert_eq!((is_accepted(socket.as_fd()), unread(socket.as_fd())), (Some(false), 0));
        socket.write_all(&[1; 100]).unwrap();
        assert!(unread(socket.as_fd()) >= 100);
        let (mut accepted, _) = listener.accept().unwrap();
        assert_eq!(is_accepted(socket.as_fd()), Some(true));
        assert!(unread(socket.as_fd()) >= 100);
        accepted.read_exact(&mut [0; 100]).unwrap();
        assert_eq!(unread(socket.as_fd()), 0);
    }

    #[test]
    fn answers_that_are_cut_short_say_nothing() {
        let mut whole = vec![0; ANSWER];
        whole[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        whole.extend([8u16.to_ne_bytes(), PEER.to_ne_bytes()].concat());
        whole.extend(7u32.to_ne_bytes());
        assert_eq!(peer_in(&whole), Some(7));
        for length in 0..whole.len() {
            assert_eq!(peer_in(&whole[..length]), None, "{length}");
        }
        assert_eq!(peer_in(&[0; 1024]), None);
    }
}
