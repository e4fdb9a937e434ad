//! Relays between nodes of one machine: a node's links pass through this process, which can hold them up, reset them, or flip a bit in
//! what passes. Plain TCP; nothing is known of ARMOR here.
//!
//! A relay listens where the node's address is told to be (`daemon_tcp_mgmt.advertise`) and connects to where the node does listen.
//!
//! Invariants: bytes pass in order and unchanged unless a flip was asked for; a flip changes one bit once. A relay ends, with its connections, when
//! it is dropped.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::client::now_ns;

/// How often a listener looks whether the relay has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What is to be done to bytes, shared by all pumps of a relay.
#[derive(Default)]
struct Orders {
    target: Option<SocketAddr>,
    cut: bool,
    /// Flip this bit (modulo the size) of the next bytes that pass.
    flip: Option<u64>,
    /// When it was done, in ns.
    flipped: Option<u64>,
    pipes: Vec<Pipe>,
    ended: bool,
}

/// One relayed connection.
struct Pipe {
    ends: [TcpStream; 2],
}

struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
    passed: AtomicU64,
    ended: AtomicBool,
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One relay.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
}

impl Relay {
    /// Listens on a port of loopback; nobody is connected to before there is a target.
    pub(crate) fn listen() -> anyhow::Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0").context("no port for a relay on 127.0.0.1")?;
        let address = listener.local_addr().context("relay")?;
        listener.set_nonblocking(true).context("relay")?;
        let shared = Arc::new(Shared {
            orders: Mutex::default(),
            changed: Condvar::new(),
            passed: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || accept(&listener, &accepting))
            .context("no thread for a relay")?;
        Ok(Relay { shared, address })
    }

    pub(crate) fn to(&self, target: SocketAddr) {
        self.shared.orders().target = Some(target);
    }

    /// Bytes that have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// Lets nothing pass, or lets everything pass again. What waits is kept.
    pub(crate) fn cut(&self, cut: bool) {
        self.shared.orders().cut = cut;
        self.shared.changed.notify_all();
    }

    /// Resets every connection; how many.
    pub(crate) fn reset(&self) -> usize {
        let mut orders = self.shared.orders();
        orders.pipes.retain(|pipe| pipe.ends.iter().all(|end| end.peer_addr().is_ok()));
        let pipes = std::mem::take(&mut orders.pipes);
        for pipe in &pipes {
            for end in &pipe.ends {
                // The kernel sends RST in place of FIN when the last descriptor is closed.
                let _ = rustix::net::sockopt::set_socket_linger(end, Some(Duration::ZERO));
                // Wakes the pumps without a FIN of this end's.
                let _ = end.shutdown(Shutdown::Read);
            }
        }
        pipes.len()
    }

    /// Flips a bit in the next bytes that pass.
    pub(crate) fn flip(&self, bit: u64) {
        let mut orders = self.shared.orders();
        (orders.flip, orders.flipped) = (Some(bit), None);
    }

    /// When it was flipped, in ns of CLOCK_MONOTONIC, or nothing when nothing has passed.
    pub(crate) fn flipped(&self, patience: Duration) -> Option<u64> {
        let deadline = Instant::now() + patience;
        let mut orders = self.shared.orders();
        while orders.flipped.is_none() {
            let left = deadline.checked_duration_since(Instant::now())?;
            orders = self.shared.changed.wait_timeout(orders, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        orders.flipped
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let mut orders = self.shared.orders();
        orders.ended = true;
        for end in orders.pipes.drain(..).flat_map(|pipe| pipe.ends) {
            let _ = end.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.ended.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((near, _)) => {
                // Who cannot be connected is closed, as by a host that forwards a port.
                let _ = near.set_nonblocking(false).and_then(|()| relay(near, shared));
            }
            Err(_) => std::thread::sleep(LOOK / 10),
        }
    }
}

fn relay(near: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let target = shared.orders().target.ok_or(io::ErrorKind::NotConnected)?;
    let far = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
    }
    let pipe = Pipe { ends: [near.try_clone()?, far.try_clone()?] };
    for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        let shared = Arc::clone(shared);
        std::thread::Builder::new().name("relay".to_owned()).spawn(move || pump(from, to, &shared))?;
    }
    let mut orders = shared.orders();
    // Those whose ends have gone.
    orders.pipes.retain(|pipe| pipe.ends.iter().all(|end| end.peer_addr().is_ok()));
    orders.pipes.push(pipe);
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let got = match from.read(&mut buffer) {
            Ok(got @ 1..) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            _ => break,
        };
        let mut orders = shared.orders();
        while orders.cut && !orders.ended {
            orders = shared.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(bit) = orders.flip.take() {
            let bit = bit % (got as u64 * 8);
            buffer[(bit / 8) as usize] ^= 1 << (bit % 8);
            orders.flipped = Some(now_ns());
            shared.changed.notify_all();
        }
        drop(orders);
        if to.write_all(&buffer[..got]).is_err() {
            break;
        }
        shared.passed.fetch_add(got as u64, Ordering::Relaxed);
    }
    // After a reset the last descriptor of each end sends RST by itself.
    let linger = |end: &TcpStream| rustix::net::sockopt::socket_linger(end).ok().flatten();
    if linger(&to).is_none() {
        let _ = to.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn relayed() -> (Relay, TcpStream, TcpStream) {
        let relay = Relay::listen().unwrap();
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        relay.to(far.local_addr().unwrap());
        let near = TcpStream::connect(relay.address).unwrap();
        let (far, _) = far.accept().unwrap();
        (relay, near, far)
    }

    #[test]
    fn bytes_pass_both_ways_to_the_end() {
        let (relay, mut near, mut far) = relayed();
        near.write_all(b"question").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let mut said = Vec::new();
        far.read_to_end(&mut said).unwrap();
        assert_eq!(said, b"question");
        far.write_all(b"answer").unwrap();
        drop(far);
        said.clear();
        near.read_to_end(&mut said).unwrap();
        assert_eq!((&said[..], relay.passed()), (&b"answer"[..], 14));
    }

    #[test]
    fn one_bit_is_flipped_once() {
        let (relay, mut near, mut far) = relayed();
        relay.flip(8 * 4 * 1000 + 9);
        near.write_all(&[0; 4]).unwrap();
        let mut heard = [0; 4];
        far.read_exact(&mut heard).unwrap();
        assert_eq!(heard.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert!(relay.flipped(Duration::from_secs(60)).is_some());
        near.write_all(&[0; 4]).unwrap();
        far.read_exact(&mut heard).unwrap();
        assert_eq!(heard, [0; 4]);
        assert_eq!(relay.flipped(Duration::from_secs(60)), relay.flipped(Duration::ZERO).or(relay.flipped(Duration::from_secs(60))));
    }

    #[test]
    fn a_cut_keeps_what_waits_and_a_reset_is_seen_at_both_ends() {
        let (relay, mut near, mut far) = relayed();
        relay.cut(true);
        near.write_all(b"waits").unwrap();
        far.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(far.read(&mut [0; 8]).is_err());
        relay.cut(false);
        far.set_read_timeout(None).unwrap();
        let mut heard = [0; 5];
        far.read_exact(&mut heard).unwrap();
        assert_eq!((&heard, relay.reset()), (b"waits", 1));
        for end in [&mut near, &mut far] {
            assert_eq!(end.read(&mut heard).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
