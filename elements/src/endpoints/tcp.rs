//! TCP sockets of clients that have no shim, as the application's end of a connection (thesis §5.3: what a proxy listens on).
//!
//! Invariant: while a connection lasts its socket lingers for no time, so that whatever closes it, the kernel after the death of all who held it too,
//! is a reset for the client. Only an end that both sides have heard of is an orderly one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use armor_proto::hookup::Endpoint;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use rustix::time::Timespec;

/// How often, and how many times in a row, a silent client is asked before it counts as gone.
const ASKED_AGAIN: (Duration, u32) = (Duration::from_secs(10), 6);

/// Listens for clients. What is accepted inherits its options: no delay of small segments, keep-alive from `keepalive` of silence on, no lingering.
///
/// # Errors
/// The kernel's: the address is in use or not this machine's.
pub fn listen(address: SocketAddr, backlog: i32, keepalive: Duration) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, keepalive)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, backlog)?;
    Ok(socket)
}

/// A socket with what this side wants of TCP.
fn socket(family: AddressFamily, keepalive: Duration) -> io::Result<OwnedFd> {
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, keepalive)?;
    sockopt::set_tcp_keepintvl(&socket, ASKED_AGAIN.0)?;
    sockopt::set_tcp_keepcnt(&socket, ASKED_AGAIN.1)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    Ok(socket)
}

/// Connects to a server that runs without ARMOR.
///
/// # Errors
/// The server's or the network's word, or `ETIMEDOUT` when there was none `within` that time.
pub async fn dial(address: SocketAddr, keepalive: Duration, within: Duration) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, keepalive)?;
    match net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let watched = super::watched::watched(socket.try_clone()?)?;
    let connected = async {
        loop {
            let mut ready = watched.writable().await?;
            sockopt::socket_error(&socket)??;
            match net::getpeername(&socket) {
                Ok(_) => return io::Result::Ok(()),
                Err(_) => ready.clear_ready(),
            }
        }
    };
    tokio::time::timeout(within, connected).await.unwrap_or_else(|_| Err(Errno::TIMEDOUT.into()))?;
    drop(watched);
    Ok(socket)
}

/// The next client that waits.
///
/// # Errors
/// `EAGAIN` when none does, `EMFILE` when there is no descriptor left.
pub fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

/// The client's address.
///
/// # Errors
/// It has gone already.
pub fn client_of(socket: &OwnedFd) -> io::Result<Endpoint> {
    let address = net::getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok(Endpoint::from(SocketAddr::try_from(address)?))
}

/// Whether a stream socket is one of TCP.
pub(super) fn is_tcp(socket: &OwnedFd) -> bool {
    sockopt::socket_domain(socket).is_ok_and(|domain| matches!(domain, AddressFamily::INET | AddressFamily::INET6))
}

/// Ends a connection with a reset, now, whoever else has copies of the socket.
pub fn abort(socket: &OwnedFd) {
    // It has ended already when this fails.
    let _ = net::connect_unspec(socket);
}

/// Ends a connection in order. What was written still reaches the client.
pub(super) fn close(socket: &OwnedFd) {
    let _ = sockopt::set_socket_linger(socket, None);
    let _ = net::shutdown(socket, Shutdown::Both);
}

/// Whether the client has reset the connection, or does not answer any more.
#[must_use]
pub fn has_failed(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// Waits until the client resets a connection of which it has closed its own direction: no read shows that any more. Also comes back when the
/// connection ends otherwise.
pub async fn failed(copy: OwnedFd) {
    // In the event loop a second time: what this task clears the one that writes must still see.
    let Ok(socket) = super::watched::watched(copy) else { return };
    let over = PollFlags::ERR | PollFlags::HUP;
    while let Ok(mut ready) = socket.writable().await {
        let mut fds = [PollFd::from_borrowed_fd(socket.get_ref().as_fd(), PollFlags::empty())];
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_err() || fds[0].revents().intersects(over) {
            return;
        }
        ready.clear_ready();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    fn connection() -> (OwnedFd, TcpStream) {
        let listener = listen(([127, 0, 0, 1], 0).into(), 16, Duration::from_secs(60)).unwrap();
        let address = SocketAddr::try_from(net::getsockname(&listener).unwrap()).unwrap();
        let client = TcpStream::connect(address).unwrap();
        let mut fds = [PollFd::new(&listener, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        let accepted = accept(&listener).unwrap();
        assert_eq!(SocketAddr::from(client_of(&accepted).unwrap()), client.local_addr().unwrap());
        (accepted, client)
    }

    #[test]
    fn a_socket_that_is_only_dropped_is_a_reset_for_its_client_and_one_that_is_closed_an_end_of_file() {
        let (dropped, mut client) = connection();
        rustix::io::write(&dropped, b"half an answer").unwrap();
        drop(dropped);
        let mut heard = Vec::new();
        let error = client.read_to_end(&mut heard).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        let (closed, mut client) = connection();
        rustix::io::write(&closed, b"an answer").unwrap();
        close(&closed);
        drop(closed);
        heard.clear();
        client.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"an answer");
    }

    #[test]
    fn an_abort_reaches_the_client_while_others_hold_copies() {
        let (accepted, mut client) = connection();
        let copy = accepted.try_clone().unwrap();
        assert!(is_tcp(&copy) && !has_failed(&copy));
        abort(&accepted);
        assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_reset_behind_a_half_close_is_seen() {
        let (accepted, mut client) = connection();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut seen = tokio::task::JoinSet::new();
        let copy = accepted.try_clone().unwrap();
        seen.spawn(failed(copy));
        rustix::io::write(&accepted, b"not read").unwrap();
        client.flush().unwrap();
        // With bytes unread a close is a reset.
        client.peek(&mut [0; 1]).unwrap();
        drop(client);
        seen.join_next().await.unwrap().unwrap();
        assert!(has_failed(&accepted));
    }
}
