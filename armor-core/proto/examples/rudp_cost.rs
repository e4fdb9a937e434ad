//! What a packet of R-UDP costs, both ends and the acknowledgements together, without sockets: `cargo run --release -p armor-proto --example rudp_cost`.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use armor_proto::rudp::{Config, Endpoint, Event, LinkId, Mode, Plain};
use bytes::Bytes;

const MESSAGE: usize = 64 << 10;
const TOTAL: u64 = 1 << 30;
/// Packets lost, of a thousand.
const LOSSES: [u64; 3] = [0, 10, 100];

fn main() {
    for loss in LOSSES {
        let addresses = [SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2))];
        let mut ends = [1, 2].map(|key| Endpoint::new(Config::default(), [key; 32], Box::new(Plain::responder(b"end"))));
        let begun = Instant::now();
        let mut now = begun;
        let link = ends[0].connect(now, addresses[1], Box::new(Plain::initiator(b"end"))).unwrap();
        let message = Bytes::from(vec![7; MESSAGE]);
        let (mut queued, mut arrived, mut packets, mut random) = (0, 0, 0u64, 1u64);
        // Batches of datagrams, each of ten at most; twenty pass in each direction in half a millisecond.
        let mut under_way: [VecDeque<(Vec<u8>, usize)>; 2] = Default::default();
        while arrived < TOTAL {
            now += Duration::from_micros(500);
            while queued < TOTAL && ends[0].send(link, 0, Mode::Reliable, std::slice::from_ref(&message)).is_ok() {
                queued += MESSAGE as u64;
            }
            for node in 0..2 {
                ends[node].handle_timeout(now);
                for _ in 0..20 {
                    let Some((mut bytes, segment)) = under_way[node].pop_front() else { break };
                    for datagram in bytes.chunks_mut(segment) {
                        packets += 1;
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        if (random >> 33) % 1000 >= loss {
                            ends[node].handle_datagram(now, addresses[1 - node], datagram);
                        }
                    }
                    while let Some(event) = ends[node].poll_event() {
                        if let Event::Readable(link) = event {
                            arrived += take(&mut ends[node], link);
                        }
                    }
                    send(&mut ends[node], now, &mut under_way[1 - node]);
                }
                send(&mut ends[node], now, &mut under_way[1 - node]);
            }
        }
        let took = begun.elapsed();
        let each = took.as_nanos() as u64 / packets;
        println!("{} per mille lost: {packets} packets, {each} ns each, {:.2} s per GiB", loss, took.as_secs_f64());
    }
}

fn send(end: &mut Endpoint, now: Instant, under_way: &mut VecDeque<(Vec<u8>, usize)>) {
    let mut buffer = Vec::new();
    while let Some(transmit) = end.poll_transmit(now, &mut buffer, 10) {
        under_way.push_back((std::mem::take(&mut buffer), transmit.segment_size.unwrap_or(transmit.size)));
    }
}

fn take(end: &mut Endpoint, link: LinkId) -> u64 {
    let mut bytes = 0;
    while let Some(received) = end.receive(link) {
        bytes += received.payload.len() as u64;
    }
    bytes
}
