//! Where links are accepted: the listener, an earlier life's or a new one.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use tokio::net::TcpListener;

/// The listener of an earlier life, if it is the one that is wanted.
pub(super) fn still_listens(kept: OwnedFd, wanted: SocketAddr) -> Option<TcpListener> {
    let listener = std::net::TcpListener::from(kept);
    let address =
        listener.local_addr().ok().filter(|address| address.ip() == wanted.ip() && [0, address.port()].contains(&wanted.port()))?;
    listener.set_nonblocking(true).ok()?;
    tracing::debug!(%address, "the listener for links was kept");
    TcpListener::from_std(listener).ok()
}

pub(super) fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    bound.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!(
                "{address} is in use by another process; stop that one, or set daemon_tcp_mgmt.listen to another port (0: any free one)"
            )
        }
        std::io::ErrorKind::AddrNotAvailable => {
            format!("{address} is no address of this node; set daemon_tcp_mgmt.listen to one of its own")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("{address} may not be used by this user; set daemon_tcp_mgmt.listen to a port from 1024 on")
        }
        _ => format!("{address}: {error}"),
    })
}
