//! Stream sockets whose abstract names tell the application's shim everything (see `armor_proto::hookup`).

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use armor_proto::hookup::{ConnectState, Endpoint, Name};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::socket_options::set_connect_state;

/// Both ends of a client's protected connection.
#[derive(Debug)]
pub struct ClientPair {
    /// Goes to the application; its kernel peer name is the connection's name.
    pub application: OwnedFd,
    /// Stays with the ARMOR.
    pub own: OwnedFd,
}

fn stream() -> io::Result<OwnedFd> {
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

fn address(name: &Name) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(&name.to_bytes())?)
}

/// Makes the two ends of a client's connection.
///
/// # Errors
/// The kernel's (out of descriptors, the name taken).
pub fn client_pair(name: &Name) -> io::Result<ClientPair> {
    let listener = stream()?;
    let address = address(name)?;
    net::bind(&listener, &address)?;
    net::listen(&listener, 1)?;
    let application = stream()?;
    net::connect(&application, &address)?;
    let own = net::accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    Ok(ClientPair { application, own })
}

impl ClientPair {
    /// Makes the application's end look like a connect under way: not writable until it is emptied after [`Pending::announce`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn pend(&self) -> io::Result<Pending> {
        let usual = sockopt::socket_send_buffer_size(&self.application)? / 2;
        sockopt::set_socket_send_buffer_size(&self.application, 1)?;
        let filler = [0u8; 1024];
        let mut filled = 0;
        loop {
            match rustix::io::write(&self.application, &filler) {
                Ok(written) => filled += written,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        set_connect_state(self.application.as_fd(), ConnectState::Pending);
        Ok(Pending { application: self.application.try_clone()?, usual, filled })
    }
}

/// A client's connect under way: the application's socket is full.
#[derive(Debug)]
pub struct Pending {
    application: OwnedFd,
    usual: usize,
    filled: usize,
}

impl Pending {
    /// One of an earlier life of this ARMOR: the application may still wait.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_up(application: OwnedFd, filled: usize) -> io::Result<Pending> {
        let usual = sockopt::socket_send_buffer_size(stream()?)? / 2;
        Ok(Pending { application, usual, filled })
    }

    /// The application's end.
    #[must_use]
    pub fn application(&self) -> BorrowedFd<'_> {
        self.application.as_fd()
    }

    /// Bytes that fill the application's socket.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// The connect has succeeded. The application's end becomes writable when [`Pending::filled`] bytes are read from the other.
    ///
    /// # Errors
    /// The kernel's; the connection is of no use then.
    pub fn announce(&self) -> io::Result<()> {
        set_connect_state(self.application.as_fd(), ConnectState::Established);
        Ok(sockopt::set_socket_send_buffer_size(&self.application, self.usual)?)
    }

    /// The connect has failed; the caller closes its own end next, which wakes the application.
    pub fn fail(self, errno: i32) {
        let state = match errno {
            libc::ETIMEDOUT => ConnectState::TimedOut,
            libc::ENETUNREACH | libc::EHOSTUNREACH => ConnectState::Unreachable,
            libc::ECONNRESET => ConnectState::Reset,
            _ => ConnectState::Refused,
        };
        set_connect_state(self.application.as_fd(), state);
    }
}

/// Connects a new socket, bound to the connection's name, to a server's listener.
///
/// # Errors
/// `ECONNREFUSED` when nobody listens (yet, any more), `EAGAIN` when the listener's queue is full.
pub fn dial(connection: &Name, listener: &Name) -> io::Result<OwnedFd> {
    let socket = stream()?;
    net::bind(&socket, &address(connection)?)?;
    net::connect(&socket, &address(listener)?)?;
    Ok(socket)
}

/// Whether every copy of a listener is closed: the kernel then lets its name be bound again.
#[must_use]
pub fn listener_is_gone(listener: &Name) -> bool {
    let taken = || -> io::Result<()> {
        let probe = stream()?;
        Ok(net::bind(&probe, &address(listener)?)?)
    };
    taken().is_ok()
}

/// The local address that the kernel would use towards `peer`.
#[must_use]
pub fn source_address_for(peer: Endpoint) -> IpAddr {
    let any: SocketAddr = match peer.ip {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let found = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(SocketAddr::new(peer.ip, peer.port.max(1)))?;
        socket.local_addr()
    });
    found.map_or(any.ip(), |address| address.ip())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use armor_proto::hookup::Role;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::time::{SystemTime, UNIX_EPOCH};

    fn name() -> Name {
        let id = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let local = Endpoint::new([127, 0, 0, 1].into(), 4000);
        Name { role: Role::Client, id, local, peer: Endpoint::new([127, 0, 0, 1].into(), 80) }
    }

    fn writable(socket: &OwnedFd) -> PollFlags {
        let mut fds = [PollFd::new(socket, PollFlags::OUT)];
        poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        fds[0].revents()
    }

    #[test]
    fn the_application_reads_the_name_from_the_kernel() {
        let name = name();
        let pair = client_pair(&name).unwrap();
        let peer: SocketAddrUnix = rustix::net::getpeername(&pair.application).unwrap().unwrap().try_into().unwrap();
        assert_eq!(Name::from_bytes(peer.abstract_name().unwrap()).unwrap(), name);
    }

    #[test]
    fn a_pending_connect_becomes_writable_once_it_is_emptied_in_a_later_life_too() {
        let pair = client_pair(&name()).unwrap();
        let filled = pair.pend().unwrap().filled();
        assert!(writable(&pair.application).is_empty());
        let pending = Pending::take_up(pair.application.try_clone().unwrap(), filled).unwrap();
        pending.announce().unwrap();
        let mut filler = vec![0; filled];
        assert_eq!(rustix::io::read(&pair.own, &mut filler).unwrap(), filler.len());
        assert_eq!(writable(&pair.application), PollFlags::OUT);
        rustix::io::write(&pair.application, b"hello").unwrap();
        let mut read = [0; 16];
        assert_eq!(rustix::io::read(&pair.own, &mut read).unwrap(), 5);
    }

    #[test]
    fn a_failed_connect_wakes_the_application_with_its_errno() {
        let pair = client_pair(&name()).unwrap();
        pair.pend().unwrap().fail(libc::ETIMEDOUT);
        drop(pair.own);
        // Without a limit: a program that another test is just starting holds a copy until it runs.
        let mut fds = [PollFd::new(&pair.application, PollFlags::empty())];
        poll(&mut fds, None).unwrap();
        assert!(fds[0].revents().contains(PollFlags::ERR));
        let priority =
            crate::endpoints::socket_options::get_option(pair.application.as_fd(), libc::SOL_SOCKET, libc::SO_PRIORITY, 4).unwrap();
        assert_eq!(priority, ConnectState::TimedOut.priority().to_ne_bytes());
    }
}
