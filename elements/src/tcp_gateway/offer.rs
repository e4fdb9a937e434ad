//! Handing a client over: what a shim says at the hook-up socket, a gateway says for a client that has none.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use armor_proto::hookup::{DATAGRAM_LIMIT, Reply, Request};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::endpoints::watched_descriptor;

/// Asks at the hook-up socket in `hook_up` to take `socket`.
///
/// # Errors
/// Why it is not taken: now, or at all.
pub(super) async fn offer(hook_up: &Path, request: &Request, socket: &OwnedFd) -> Result<(), Errno> {
    let request = request.encode().map_err(|_| Errno::INVAL)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let asker = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    net::connect(&asker, &SocketAddrUnix::new(hook_up)?)?;
    let sockets = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&sockets));
    net::sendmsg(&asker, &[IoSlice::new(&request)], &mut control, SendFlags::NOSIGNAL)?;
    let asker = watched_descriptor(asker).map_err(|_| Errno::MFILE)?;
    let mut answer = [0; DATAGRAM_LIMIT];
    loop {
        let mut ready = asker.readable().await.map_err(|_| Errno::IO)?;
        match net::recv(asker.get_ref(), &mut answer[..], RecvFlags::empty()) {
            Ok((length, _)) => {
                return match Reply::decode(&answer[..length]) {
                    Ok(Reply::Connected { errno: 0, .. }) => Ok(()),
                    Ok(Reply::Connected { errno, .. }) => Err(Errno::from_raw_os_error(errno)),
                    _ => Err(Errno::PROTO),
                };
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Err(error),
        }
    }
}
