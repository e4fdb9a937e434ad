//! The UDP socket with its batches, and a timer that is finer than the runtime's.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::endpoints::watched_descriptor as watched;

/// Wanted of the kernel in each direction, in bytes; it gives no more than net.core.rmem_max and wmem_max.
const KERNEL_BUFFER: usize = 8 << 20;
/// Buffers of a batch, and their size: GRO puts up to 64 KiB into one.
const BATCH: usize = 8;
const BUFFER: usize = 64 << 10;
/// Most bytes of one datagram of the kernel's, before it is cut up (GSO).
const LONGEST: usize = 65_000;

/// Binds a UDP socket that is as others should be: IPv6 wildcards reach IPv4 too.
///
/// # Errors
/// What is wrong with the address, and what to do.
pub fn bind(address: SocketAddr, key: &str) -> Result<UdpSocket, String> {
    UdpSocket::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("UDP {address} is in use by another process; stop that one, or set {key} to another port (0: any free one)")
        }
        io::ErrorKind::AddrNotAvailable => format!("{address} is no address of this node; set {key} to one of its own"),
        io::ErrorKind::PermissionDenied => {
            format!("{address} may not be used by this user; set {key} to a port from 1024 on")
        }
        _ => format!("UDP {address}: {error}"),
    })
}

/// Drawn anew for each endpoint.
pub(super) fn secret() -> Result<[u8; 32], String> {
    let mut secret = [0; 32];
    match rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty()) {
        Ok(32) => Ok(secret),
        Ok(_) => Err("the kernel gives no random bytes".to_owned()),
        Err(error) => Err(format!("the kernel gives no random bytes: {error}")),
    }
}

/// Most datagrams of that size in one call.
pub(super) fn segments(datagram: usize) -> usize {
    (LONGEST / datagram.max(1)).max(1)
}

pub(super) struct Socket {
    io: AsyncFd<OwnedFd>,
    state: UdpSocketState,
    segments: usize,
}

/// Where a batch is read to.
pub(super) struct Batch(Vec<u8>);

impl Batch {
    pub(super) fn new() -> Batch {
        Batch(vec![0; BATCH * BUFFER])
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Socket").field(self.io.get_ref()).finish()
    }
}

impl Socket {
    pub(super) fn new(socket: UdpSocket, segments: usize) -> io::Result<Socket> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // A kernel that gives less only loses more in bursts.
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&socket), KERNEL_BUFFER);
        let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), KERNEL_BUFFER);
        socket.set_nonblocking(true)?;
        Ok(Socket { io: watched(socket.into())?, state, segments })
    }

    /// Most datagrams in one call now.
    pub(super) fn segments(&self) -> usize {
        self.segments.min(self.state.max_gso_segments())
    }

    pub(super) async fn readable(&self) {
        // An error shows when it is read.
        let _ = self.io.ready(Interest::READABLE).await;
    }

    pub(super) async fn writable(&self) {
        let _ = self.io.ready(Interest::WRITABLE).await;
    }

    /// Hands out the datagrams of one batch; how many buffers they filled, none when there are none.
    pub(super) fn receive(&self, batch: &mut Batch, mut each: impl FnMut(SocketAddr, &mut [u8])) -> usize {
        let mut metas = [RecvMeta::default(); BATCH];
        let (io, state) = (&self.io, &self.state);
        let mut slices: Vec<IoSliceMut<'_>> = batch.0.chunks_mut(BUFFER).map(IoSliceMut::new).collect();
        let received = io.try_io(Interest::READABLE, |socket| state.recv(UdpSockRef::from(socket), &mut slices, &mut metas));
        let Ok(count) = received else { return 0 };
        for (meta, buffer) in metas.iter().take(count).zip(&mut slices) {
            let length = meta.len.min(buffer.len());
            for datagram in buffer[..length].chunks_mut(meta.stride.max(1)) {
                each(meta.addr, datagram);
            }
        }
        count
    }

    /// False when the kernel takes no more now. What it refuses otherwise counts as lost on the way.
    pub(super) fn send(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> bool {
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
        let sent = self.io.try_io(Interest::WRITABLE, |socket| self.state.try_send(UdpSockRef::from(socket), &transmit));
        match sent {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::trace!(%to, %error, "a datagram was refused");
                true
            }
        }
    }
}

/// One timerfd; the runtime's timers are as coarse as a millisecond, which is many packets.
pub(super) struct Timer {
    io: AsyncFd<OwnedFd>,
    armed: Option<Instant>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Timer> {
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Timer { io: watched(timer)?, armed: None })
    }

    /// To run out at `at`, or a little earlier when it was armed so before.
    pub(super) fn arm(&mut self, at: Instant, now: Instant) {
        if self.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        // Zero would disarm it.
        let left = at.saturating_duration_since(now).max(Duration::from_nanos(1));
        let value = Timespec { tv_sec: left.as_secs().min(86_400) as i64, tv_nsec: left.subsec_nanos().into() };
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Fails for values out of range alone.
        let _ = rustix::time::timerfd_settime(
            self.io.get_ref(),
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: nothing, it_value: value },
        );
        self.armed = Some(at);
    }

    /// Waits until it has run out.
    pub(super) async fn expired(&mut self) {
        let Ok(mut ready) = self.io.readable().await else { return };
        let mut count = [0; 8];
        let read = ready.try_io(|io| rustix::io::read(io.get_ref(), &mut count).map_err(io::Error::from));
        if matches!(read, Ok(Ok(_))) {
            self.armed = None;
        }
    }
}
