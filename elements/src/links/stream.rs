//! A connected TCP or unix socket, split into what one task reads and what the element writes.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};

use bytes::BytesMut;
use rustix::net::Shutdown;
use rustix::net::sockopt;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use crate::endpoints::get_option;

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

/// What a peer's kernel says by itself, whatever its process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Milliseconds since its last acknowledgement, in steps of the kernel's clock.
    pub ago_ms: u32,
    /// Segments that wait for one.
    pub waiting: u32,
}

/// Up to `tcpi_last_ack_recv`, and the places of what is read there.
const TCP_INFO_BYTES: u32 = 60;
const TCPI_UNACKED: usize = 4;
const TCPI_LAST_ACK_RECV: usize = 12;

/// What the kernel at the other end of a TCP socket has acknowledged; `None` when this kernel does not say.
#[must_use]
pub fn acknowledged(socket: BorrowedFd<'_>) -> Option<Acknowledged> {
    // struct tcp_info of linux/tcp.h: 8 bytes, then numbers of 32 bits.
    let info = get_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, TCP_INFO_BYTES).ok()?;
    let number = |index: usize| info.get(8 + 4 * index..)?.first_chunk().copied().map(u32::from_ne_bytes);
    Some(Acknowledged { ago_ms: number(TCPI_LAST_ACK_RECV)?, waiting: number(TCPI_UNACKED)? })
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

    /// Of a link between nodes; inside a node there is nothing to acknowledge.
    pub(super) fn acknowledged(&self) -> Option<Acknowledged> {
        let WriteHalf::Tcp(half) = self else { return None };
        acknowledged(AsRef::<TcpStream>::as_ref(half).as_fd())
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
