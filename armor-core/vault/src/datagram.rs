//! One datagram of a seqpacket socket, with the descriptors that come along.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::{self, BATCH, DATAGRAM_LIMIT, Named};

/// What was received.
pub(crate) enum Received<T> {
    Message(T, Vec<OwnedFd>),
    /// Descriptors were lost: this process may have no more.
    NoRoom,
    Malformed(String),
    /// Nothing is there yet.
    Nothing,
    /// The other end is closed, and nothing more will come.
    End,
}

pub(crate) fn receive<T: DeserializeOwned + Named>(socket: BorrowedFd<'_>, flags: RecvFlags) -> Received<T> {
    let mut bytes = [0; DATAGRAM_LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            // Connection reset: the other end has died before it had read all of ours. What it had said before is still there.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(Errno::AGAIN) => return Received::Nothing,
            Err(_) => return Received::End,
        }
    };
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = rights.flatten().collect();
    if message.bytes == 0 {
        return Received::End;
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Received::NoRoom;
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Received::Malformed(format!("it is longer than {DATAGRAM_LIMIT} bytes"));
    }
    match message::decode(&bytes[..message.bytes]) {
        Ok(message) => Received::Message(message, descriptors),
        Err(reason) => Received::Malformed(reason),
    }
}

/// Sends at once or, on a blocking socket, within its timeout.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let bytes = message::encode(message).map_err(|_| Errno::MSGSIZE)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::MSGSIZE);
    }
    loop {
        match net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return sent.map(|_| ()),
        }
    }
}
