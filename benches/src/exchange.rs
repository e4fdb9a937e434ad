//! Round trips: a packet, and its answer of the same length (thesis table 6.1).

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::times::{Summary, Times};
use crate::wire::{Wish, ask};

/// What came of them.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RoundTrips {
    /// With the untimed ones.
    pub exchanges: u64,
    /// Of the others.
    #[serde(flatten)]
    pub times: Summary,
}

/// One connection, `count` packets of `bytes`, one after the other. Ends earlier when `limit` is over. A tenth more is exchanged before, untimed.
///
/// # Errors
/// Those of the connection, and when an answer is not what was said.
pub fn round_trips(server: SocketAddr, bytes: usize, count: u32, limit: Duration) -> anyhow::Result<RoundTrips> {
    let mut stream = ask(server, Wish::Echo(bytes as u64)).with_context(|| server.to_string())?;
    let mut packet = vec![0; bytes];
    let mut answer = vec![0; bytes];
    let (mut times, mut exchanges) = (Times::new()?, 0);
    let until = Instant::now() + limit;
    for number in 0..count + count / 10 {
        // Each one differs, so that an answer to another one is found.
        let tag = number.to_le_bytes();
        let tagged = tag.len().min(bytes);
        packet[..tagged].copy_from_slice(&tag[..tagged]);
        let begun = Instant::now();
        stream.write_all(&packet)?;
        stream.read_exact(&mut answer)?;
        let now = Instant::now();
        exchanges += 1;
        anyhow::ensure!(answer == packet, "{server} has answered something else to packet {number} of {bytes} bytes");
        // Where even the untimed ones take too long, the last of them is timed.
        let late = now > until;
        if number >= count / 10 || late {
            times.add(now - begun);
        }
        if late {
            break;
        }
    }
    Ok(RoundTrips { exchanges, times: times.summary() })
}
