//! A reset that the kernel itself shows to the application. When a unix stream socket is closed with bytes in its receive queue,
//! its peer reads what is still there and then ECONNRESET, once; SO_ERROR, poll and epoll say so too, as on TCP. With an empty
//! queue the peer reads end of file. So, before a socket is closed to reset a connection, a byte is put into its queue.
//!
//! Such a byte can come from the application's end alone, which is borrowed for it (pidfd_getfd(2)). That needs the right to
//! trace the application. Without it, or when the application holds its end elsewhere by now, the shim's hooks have to show
//! the reset, in those calls that they stand before.

use std::io;
use std::os::fd::OwnedFd;

use armor_proto::hookup::Name;
use rustix::net::{self, SendFlags, SocketAddrUnix};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Where the application's end of a connection is, as far as is known.
#[derive(Debug, Clone, Copy)]
pub struct Whereabouts {
    /// The process that has connected.
    pub pid: u32,
    /// The number under which it had the socket then.
    pub descriptor: i32,
    /// What the socket calls its peer: this says whether it is the right one.
    pub name: Name,
}

/// Sees to it that a byte lies unread in the queue of `own`, which is about to be closed.
///
/// # Errors
/// When there is none, and none can be put there.
pub(super) fn leave_one(own: &OwnedFd, whereabouts: Option<Whereabouts>) -> io::Result<()> {
    if rustix::io::ioctl_fionread(own)? > 0 {
        return Ok(());
    }
    let application = borrow(whereabouts.ok_or(io::ErrorKind::NotFound)?)?;
    net::send(&application, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

fn borrow(Whereabouts { pid, descriptor, name }: Whereabouts) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let borrowed = pidfd_getfd(process, descriptor, PidfdGetfdFlags::empty())?;
    let peer = net::getpeername(&borrowed)?.ok_or(io::ErrorKind::NotFound)?;
    let is_it = SocketAddrUnix::try_from(peer).is_ok_and(|peer| peer.abstract_name() == Some(&name.to_bytes()));
    if is_it { Ok(borrowed) } else { Err(io::ErrorKind::NotFound.into()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;
    use std::os::fd::AsRawFd;
    use std::rc::Rc;

    use super::*;
    use crate::endpoints::{ApplicationSocket, ClientPair, Read, client_pair};
    use armor_proto::hookup::{Endpoint, Role};
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    /// A connection of this process, and where its application's end is.
    fn connection(id: u64) -> (ClientPair, Whereabouts) {
        let local = Endpoint::new([127, 0, 0, 1].into(), 4000);
        let name = Name { role: Role::Client, id: id << 32 | u64::from(std::process::id()), local, peer: local };
        let pair = client_pair(&name).unwrap();
        let whereabouts = Whereabouts { pid: std::process::id(), descriptor: pair.application.as_raw_fd(), name };
        (pair, whereabouts)
    }

    fn read(socket: &OwnedFd) -> Result<usize, Errno> {
        rustix::io::read(socket, &mut [0; 64])
    }

    /// What the application reads when its other end is closed.
    fn reads(application: &OwnedFd) -> [Result<usize, Errno>; 2] {
        // Without a limit: a program that another test is just starting has a copy until it runs.
        poll(&mut [PollFd::new(application, PollFlags::empty())], None).unwrap();
        [read(application), read(application)]
    }

    #[test]
    fn a_socket_that_is_closed_with_a_byte_unread_is_reset() {
        let (ClientPair { application, own }, whereabouts) = connection(1);
        rustix::io::write(&own, b"data").unwrap();
        leave_one(&own, Some(whereabouts)).unwrap();
        drop(own);
        assert_eq!(reads(&application), [Ok(4), Err(Errno::CONNRESET)]);
        assert_eq!(read(&application), Ok(0), "once");
    }

    #[test]
    fn what_the_application_has_said_itself_is_enough() {
        let (ClientPair { application, own }, _) = connection(2);
        rustix::io::write(&application, b"unread").unwrap();
        leave_one(&own, None).unwrap();
        drop(own);
        assert_eq!(reads(&application), [Err(Errno::CONNRESET), Ok(0)]);
    }

    #[test]
    fn no_other_socket_is_touched() {
        let (ClientPair { application, own }, whereabouts) = connection(3);
        let (other, elsewhere) = connection(4);
        let wrong = Whereabouts { descriptor: elsewhere.descriptor, ..whereabouts };
        assert!(leave_one(&own, Some(wrong)).is_err() && leave_one(&own, None).is_err());
        assert_eq!(read(&other.own), Err(Errno::AGAIN));
        drop(own);
        assert_eq!(reads(&application), [Ok(0), Ok(0)], "a close");
    }

    #[tokio::test]
    async fn the_tasks_that_wait_on_a_socket_end_with_its_reset() {
        for finds in [Read::Drained, Read::Paused] {
            let (ClientPair { application, own }, whereabouts) = connection(5 + finds as u64);
            let socket = ApplicationSocket::new(own).unwrap();
            let (called, noted) = (Rc::new(Cell::new(false)), socket.watch());
            let flag = Rc::clone(&called);
            let reading = noted.readable(move || {
                flag.set(true);
                Some(finds)
            });
            rustix::io::write(&application, b"wakes it").unwrap();
            let reset = async {
                while !called.get() {
                    tokio::task::yield_now().await;
                }
                read(socket.descriptor()).unwrap();
                socket.reset(Some(whereabouts));
            };
            tokio::join!(reading, reset);
            assert_eq!(reads(&application), [Err(Errno::CONNRESET), Ok(0)]);
        }
    }
}
