//! One half of a minimal dual proxy: what it reads on one side it writes on the other at once, by one thread and one buffer for all connections.
//!
//! Invariant: a side is not read from while what it has said before waits for room on the other one.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use anyhow::Context as _;

use crate::poller::{Poller, Ready, unless_busy};

const LISTENER: u64 = u64::MAX;
const BUFFER: usize = 64 << 10;

/// Passes connections on for ever.
///
/// # Errors
/// When it cannot listen.
pub fn relay(listen: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("{listen} cannot be listened at"))?;
    listener.set_nonblocking(true)?;
    let mut poller = Poller::new()?;
    poller.add(&listener, LISTENER, Ready::READ)?;
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut free = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut ready = Vec::new();
    loop {
        ready.extend(poller.wait(None)?);
        for (number, now) in ready.drain(..) {
            if number == LISTENER {
                // Who cannot be passed on is closed.
                if let Ok(pair) = listener.accept().and_then(|(client, _)| Pair::of(client, to)) {
                    let index = free.pop().unwrap_or(pairs.len());
                    for (side, end) in (0..).zip(&pair.sides) {
                        poller.add(&end.stream, 2 * index as u64 + side, Ready::READ)?;
                    }
                    pairs.resize_with(pairs.len().max(index + 1), || None);
                    pairs[index] = Some(pair);
                }
                continue;
            }
            // It may have been closed in this very turn.
            let (index, side) = ((number / 2) as usize, (number % 2) as usize);
            let Some(pair) = pairs.get_mut(index).and_then(Option::as_mut) else { continue };
            if pair.pass(side, now, &mut buffer).is_err() || pair.is_over() {
                pairs[index] = None;
                free.push(index);
                continue;
            }
            for (side, end) in (0..).zip(&mut pair.sides) {
                let watch = Ready { read: !end.ended && !end.holds, write: !end.waiting.is_empty() };
                if watch != end.watch {
                    end.watch = watch;
                    poller.change(&end.stream, 2 * index as u64 + side, watch)?;
                }
            }
        }
    }
}

struct Pair {
    sides: [Side; 2],
}

struct Side {
    stream: TcpStream,
    /// What it could not take yet.
    waiting: Vec<u8>,
    /// It is not read from: the other side cannot take what it has said.
    holds: bool,
    /// It says nothing more.
    ended: bool,
    watch: Ready,
}

impl Pair {
    fn of(client: TcpStream, to: SocketAddr) -> io::Result<Pair> {
        // On loopback a connect takes no time that others would notice.
        let server = TcpStream::connect(to)?;
        let side = |stream: TcpStream| -> io::Result<Side> {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(Side { stream, waiting: Vec::new(), holds: false, ended: false, watch: Ready::READ })
        };
        Ok(Pair { sides: [side(client)?, side(server)?] })
    }

    /// A side is ready.
    fn pass(&mut self, side: usize, now: Ready, buffer: &mut [u8]) -> io::Result<()> {
        let [first, second] = &mut self.sides;
        let (own, other) = if side == 0 { (first, second) } else { (second, first) };
        if now.write && !own.waiting.is_empty() {
            let gone = unless_busy(own.stream.write(&own.waiting))?.unwrap_or(0);
            own.waiting.drain(..gone);
            if own.waiting.is_empty() {
                other.holds = false;
                if other.ended {
                    own.stream.shutdown(Shutdown::Write)?;
                }
            }
        }
        if now.read && !own.ended && !own.holds {
            match unless_busy(own.stream.read(buffer))? {
                None => {}
                Some(0) => {
                    own.ended = true;
                    if other.waiting.is_empty() {
                        other.stream.shutdown(Shutdown::Write)?;
                    }
                }
                Some(got) => {
                    let gone = unless_busy(other.stream.write(&buffer[..got]))?.unwrap_or(0);
                    if gone < got {
                        other.waiting.extend_from_slice(&buffer[gone..got]);
                        own.holds = true;
                    }
                }
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.sides.iter().all(|side| side.ended && side.waiting.is_empty())
    }
}
