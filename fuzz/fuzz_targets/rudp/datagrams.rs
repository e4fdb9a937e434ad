//! Two endpoints with a link, and a third party whose words are the input.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use armor_proto::rudp::{Config, Endpoint, Event, LinkId, Mode, Plain};
use bytes::Bytes;

const ADDRESSES: [([u8; 4], u16); 3] = [([10, 0, 0, 1], 1), ([10, 0, 0, 2], 2), ([10, 0, 0, 3], 3)];

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(ADDRESSES[node % 3])
}

struct Pair {
    ends: [Endpoint; 2],
    links: [Option<LinkId>; 2],
    received: usize,
}

impl Pair {
    /// Delivers all that the two say until they are quiet, or a bound.
    fn settle(&mut self, now: Instant) {
        let mut buffer = Vec::new();
        for _ in 0..200 {
            let mut quiet = true;
            for node in 0..2 {
                while let Some(event) = self.ends[node].poll_event() {
                    match event {
                        Event::Connected { link, .. } => self.links[node] = Some(link),
                        Event::Readable(link) => {
                            while let Some(received) = self.ends[node].receive(link) {
                                self.received += received.payload.len();
                            }
                        }
                        _ => {}
                    }
                }
                while let Some(transmit) = self.ends[node].poll_transmit(now, &mut buffer, 4) {
                    quiet = false;
                    for datagram in buffer.chunks_mut(transmit.segment_size.unwrap_or(transmit.size).max(1)) {
                        if transmit.to == address(1 - node) {
                            self.ends[1 - node].handle_datagram(now, address(node), datagram);
                        }
                    }
                }
            }
            if quiet {
                break;
            }
        }
    }
}

/// Each command is its length, a byte that says what it is, and content. Returns the bytes that have arrived.
pub(crate) fn run(data: &[u8]) -> usize {
    let mut now = Instant::now();
    let end = |key| Endpoint::new(Config::default(), [key; 32], Box::new(Plain::responder(b"end")));
    let mut pair = Pair { ends: [end(1), end(2)], links: [None; 2], received: 0 };
    if let Ok(link) = pair.ends[0].connect(now, address(1), Box::new(Plain::initiator(b"end"))) {
        pair.links[0] = Some(link);
    }
    pair.settle(now);
    let mut rest = data;
    while let [length, kind, tail @ ..] = rest {
        let (content, after) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = after;
        let node = usize::from(kind & 1);
        match kind >> 1 & 7 {
            0 => pair.ends[node].handle_datagram(now, address(usize::from(kind >> 4)), &mut content.to_vec()),
            1 => {
                // Frames that are anything in a packet that opens: number 2^20 and more, by the initiator for the responder or the other way round.
                if let Some(link) = pair.links[node] {
                    let number = 0x10_0000 + u64::from(kind >> 4) + (data.len() - rest.len()) as u64 * 16;
                    let mut packet = vec![0x51];
                    packet.extend_from_slice(&link.0.to_be_bytes());
                    packet.extend_from_slice(&number.to_be_bytes()[5..]);
                    let header = packet.clone();
                    packet.extend_from_slice(content);
                    let seed = crc32c::crc32c(&(number << 1 | u64::from(node == 1)).to_be_bytes());
                    let sum = crc32c::crc32c_append(crc32c::crc32c_append(seed, &header), content);
                    packet.extend_from_slice(&sum.to_be_bytes());
                    pair.ends[node].handle_datagram(now, address(1 - node), &mut packet);
                }
            }
            2 => now += Duration::from_millis(content.iter().map(|byte| u64::from(*byte)).sum()),
            3 => {
                if let Some(link) = pair.links[node] {
                    let mode =
                        if kind >> 4 & 1 == 0 { Mode::Reliable } else { Mode::Unreliable { deadline: now + Duration::from_millis(50) } };
                    let _ = pair.ends[node].send(link, u16::from(kind >> 5), mode, &[Bytes::copy_from_slice(content)]);
                }
            }
            _ => pair.settle(now),
        }
        for end in &mut pair.ends {
            end.handle_timeout(now);
        }
    }
    pair.settle(now);
    pair.received
}
