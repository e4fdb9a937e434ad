//! A connected TCP or unix socket, split into what one task reads and what the element writes.

use std::io::{self, IoSlice};
use std::net::IpAddr;

use bytes::BytesMut;
use rustix::net::Shutdown;
use rustix::net::sockopt;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixStream, tcp, unix};

/// Sent bytes that nobody acknowledges for this long break the link, in milliseconds.
const USER_TIMEOUT_MS: u32 = 10_000;

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// Between nodes.
    Tcp(TcpStream),
    /// Inside a node.
    Unix(UnixStream),
}

#[derive(Debug)]
pub(super) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
}

#[derive(Debug)]
pub(super) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
}

impl Stream {
    pub(super) fn split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Tcp(stream) => {
                tune(&stream);
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Stream::Unix(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
        }
    }
}

/// None of these is needed for correctness, so a kernel that refuses one is no error.
fn tune(stream: &TcpStream) {
    let _ = sockopt::set_tcp_nodelay(stream, true);
    let _ = sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS);
    if stream.peer_addr().is_ok_and(|peer| is_near(peer.ip())) {
        // What is tuned for long fat paths costs latency on a short one.
        let _ = sockopt::set_tcp_congestion(stream, "cubic");
    }
}

fn is_near(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

impl ReadHalf {
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            ReadHalf::Tcp(half) => half.read_buf(buffer).await,
            ReadHalf::Unix(half) => half.read_buf(buffer).await,
        }
    }
}

impl WriteHalf {
    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            WriteHalf::Tcp(half) => half.try_write_vectored(slices),
            WriteHalf::Unix(half) => half.try_write_vectored(slices),
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            WriteHalf::Tcp(half) => half.writable().await,
            WriteHalf::Unix(half) => half.writable().await,
        }
    }

    /// Ends both directions at once; whoever reads the link sees its end.
    pub(super) fn shutdown(&self) {
        // Fails only when the socket is not connected any more.
        let _ = match self {
            WriteHalf::Tcp(half) => rustix::net::shutdown(AsRef::<TcpStream>::as_ref(half), Shutdown::Both),
            WriteHalf::Unix(half) => rustix::net::shutdown(AsRef::<UnixStream>::as_ref(half), Shutdown::Both),
        };
    }
}
