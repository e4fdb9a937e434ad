//! Many connections at once: all of them busy, or open and idle.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::poller::{Poller, Ready, unless_busy};
use crate::times::{Summary, Times};
use crate::wire::{Wish, ask};

/// Requests of many sessions.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Load {
    /// Answered requests.
    pub requests: u64,
    /// In so many s.
    pub seconds: f64,
    /// From a request to its whole answer.
    #[serde(flatten)]
    pub times: Summary,
}

struct Session {
    stream: TcpStream,
    asked: Instant,
    got: usize,
}

/// `sessions` connections, each of which sends its next packet of `bytes` when the last one is answered. One thread.
///
/// # Errors
/// Those of the connections.
pub fn load(server: SocketAddr, sessions: usize, bytes: usize, limit: Duration) -> anyhow::Result<Load> {
    let mut poller = Poller::new()?;
    let packet = vec![7; bytes];
    let mut answer = vec![0; bytes];
    let mut open = Vec::with_capacity(sessions);
    for number in 0..sessions {
        let stream = ask(server, Wish::Echo(bytes as u64)).with_context(|| server.to_string())?;
        stream.set_nonblocking(true)?;
        poller.add(&stream, number as u64, Ready::READ)?;
        open.push(Session { stream, asked: Instant::now(), got: 0 });
    }
    let mut times = Times::new()?;
    let begun = Instant::now();
    for session in &mut open {
        session.asked = Instant::now();
        // A packet is small beside what a socket takes.
        session.stream.write_all(&packet)?;
    }
    while begun.elapsed() < limit {
        for (number, _) in poller.wait(Some(1000))? {
            let Some(session) = open.get_mut(number as usize) else { continue };
            let Some(got) = unless_busy(session.stream.read(&mut answer[session.got..]))? else { continue };
            anyhow::ensure!(got > 0, "{server} has closed a connection");
            session.got += got;
            if session.got == bytes {
                let now = Instant::now();
                times.add(now - session.asked);
                (session.asked, session.got) = (now, 0);
                session.stream.write_all(&packet)?;
            }
        }
    }
    let times = times.summary();
    Ok(Load { requests: times.count, seconds: begun.elapsed().as_secs_f64(), times })
}

/// Connections that have each exchanged one packet and then say nothing.
///
/// # Errors
/// Those of the connections.
pub fn idle(server: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let one = |number: usize| -> anyhow::Result<TcpStream> {
        let mut stream = ask(server, Wish::Echo(32)).with_context(|| format!("connection {number} to {server}"))?;
        stream.write_all(&[7; 32])?;
        stream.read_exact(&mut [0; 32]).with_context(|| format!("connection {number} to {server}"))?;
        Ok(stream)
    };
    (1..=count).map(one).collect()
}
