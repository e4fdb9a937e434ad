//! R-UDP: what strangers send, and what becomes of what peers send on its way.
#![allow(clippy::unwrap_used, clippy::panic)]

mod rudp_sim;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use armor_proto::rudp::{Config, Endpoint, Handshake, HandshakeError, Mode, Plain, Session};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rudp_sim::{Wire, World, message, ms, seeds};

fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 1, 1, host], port))
}

proptest! {
    #[test]
    fn garbage_is_dropped(datagrams in prop::collection::vec((prop::option::of(0x51u8..0x54), prop::collection::vec(any::<u8>(), 0..80)), 0..50)) {
        let (mut world, a, _) = World::pair(1, Wire::default(), Wire::default());
        let now = world.instant();
        for (first, mut datagram) in datagrams {
            if let (Some(first), Some(byte)) = (first, datagram.first_mut()) {
                *byte = first;
            }
            // To the link of one, from the address of the other, whatever follows.
            if datagram.len() >= 5 && datagram[0] == 0x51 {
                datagram[1..5].copy_from_slice(&a.0.to_be_bytes());
            }
            let from = world.nodes[1].address;
            world.nodes[0].endpoint.handle_datagram(now, from, &mut datagram);
            world.drive(0);
        }
        world.send(0, a, 0, Mode::Reliable, message(0, 0, 10_000)).unwrap();
        world.run_for(Duration::from_secs(2));
        prop_assert_eq!(world.nodes[1].received.len(), 1);
    }
}

#[test]
fn damaged_and_cut_packets_change_nothing() {
    for seed in seeds(20) {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut world, a, b) = World::pair(seed, Wire::default(), Wire::default());
        for number in 0..30 {
            world.send(0, a, 0, Mode::Reliable, message(0, number, 700)).unwrap();
            world.send(1, b, 0, Mode::Reliable, message(0, number, 700)).unwrap();
            for (to, mut datagram) in world.under_way() {
                let node = usize::from(to == world.nodes[1].address);
                let from = world.nodes[1 - node].address;
                if random.random_bool(0.5) {
                    datagram.truncate(random.random_range(0..datagram.len()));
                } else {
                    let index = random.random_range(0..datagram.len());
                    datagram[index] ^= random.random_range(1..=255u8);
                }
                let now = world.instant();
                world.nodes[node].endpoint.handle_datagram(now, from, &mut datagram);
                world.drive(node);
            }
            world.run_for(ms(25));
        }
        world.run_for(Duration::from_secs(2));
        for node in 0..2 {
            let received: Vec<_> = world.nodes[node].received.iter().map(|(_, _, received)| received.payload.clone()).collect();
            assert_eq!(received, (0..30).map(|number| message(0, number, 700)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn what_was_opened_once_is_not_opened_again() {
    let (mut world, a, b) = World::pair(1, Wire::default(), Wire::default());
    let mut copies = Vec::new();
    for number in 0..50 {
        let deadline = world.instant() + ms(100);
        world.send(0, a, 0, Mode::Unreliable { deadline }, message(0, number, 100)).unwrap();
        copies.extend(world.under_way());
        world.run_for(ms(20));
    }
    let received = world.nodes[1].endpoint.status(b).unwrap().packets_received;
    let now = world.instant();
    for (to, mut copy) in copies {
        if to == world.nodes[1].address {
            world.nodes[1].endpoint.handle_datagram(now, "10.6.6.6:6".parse().unwrap(), &mut copy);
        }
    }
    world.drive(1);
    let status = world.nodes[1].endpoint.status(b).unwrap();
    assert_eq!(status.packets_received, received);
    assert!(status.refused >= 50);
    assert_eq!(status.remote, world.nodes[0].address);
    assert_eq!(world.nodes[1].received.len(), 50);
}

/// First packets of handshakes, as anybody can make them.
fn hello(now: Instant, number: u64) -> Vec<u8> {
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&number.to_be_bytes());
    let mut stranger = Endpoint::new(Config::default(), secret, Box::new(Plain::responder(b"")));
    stranger.connect(now, address(1, 1), Box::new(Plain::initiator(b"stranger"))).unwrap();
    let mut buffer = Vec::new();
    stranger.poll_transmit(now, &mut buffer, 1).unwrap();
    buffer
}

#[test]
fn a_flood_of_handshakes_is_bounded_and_does_not_keep_others_out() {
    let config = Config { max_half_open: 32, max_links: 100, ..Config::default() };
    let mut world = World::new(1, vec![Wire::default(), Wire::default()]);
    world.add("10.0.0.1:700", 0, config.clone());
    world.add("10.0.0.2:700", 1, config);
    let mut by_strangers = 0;
    let mut link = None;
    for number in 0..5000u64 {
        let now = world.instant();
        let mut datagram = hello(now, number);
        by_strangers += datagram.len();
        world.nodes[1].endpoint.handle_datagram(now, address(number as u8, number as u16), &mut datagram);
        assert!(world.nodes[1].endpoint.len() <= 32 + 1);
        world.drive(1);
        if number == 2000 {
            link = Some(world.connect(0, 1));
        }
        world.run_for(ms(1));
    }
    // What is for strangers arrives nowhere here.
    assert!(world.astray > 0 && world.astray <= 3 * by_strangers, "{} bytes for {by_strangers}", world.astray);
    let refusals = world.nodes[1].endpoint.refusals();
    assert!(refusals.cookies_demanded > 4000, "{refusals:?}");
    world.send(0, link.unwrap(), 0, Mode::Reliable, message(0, 0, 100)).unwrap();
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.nodes[1].received.len(), 1);
    world.run_for(Duration::from_secs(30));
    assert_eq!(world.nodes[1].endpoint.len(), 1);
}

/// Answers with what nobody understands, or takes nobody.
struct Distrustful;

impl Handshake for Distrustful {
    fn write(&mut self, out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        out.extend_from_slice(b"hello");
        Ok(())
    }

    fn read(&mut self, _: &[u8]) -> Result<(), HandshakeError> {
        Err(HandshakeError { reason: "a stranger".to_string() })
    }

    fn is_finished(&self) -> bool {
        false
    }

    fn finish(self: Box<Self>) -> Result<Session, HandshakeError> {
        Err(HandshakeError { reason: "not finished".to_string() })
    }
}

#[test]
fn a_stranger_is_refused_and_forgotten() {
    let mut world = World::new(1, vec![Wire::default(), Wire::default()]);
    world.add("10.0.0.1:700", 0, Config::default());
    world.add("10.0.0.2:700", 1, Config::default());
    let now = world.instant();
    let to = world.nodes[1].address;
    world.nodes[0].endpoint.connect(now, to, Box::new(Distrustful)).unwrap();
    world.drive(0);
    world.run_for(ms(500));
    assert!(world.nodes[1].endpoint.is_empty());
    assert!(world.nodes[1].endpoint.refusals().handshakes >= 1);
    world.run_for(Duration::from_secs(20));
    assert!(world.nodes[0].endpoint.is_empty());
    assert!(world.nodes[1].events.is_empty());
}

#[test]
fn a_link_too_many_is_refused() {
    let config = Config { max_links: 1, ..Config::default() };
    let (mut world, _, _) = World::pair_with(1, Wire::default(), Wire::default(), config);
    let now = world.instant();
    let to = world.nodes[1].address;
    assert!(world.nodes[0].endpoint.connect(now, to, Box::new(Plain::initiator(b"again"))).is_err());
}

#[test]
fn a_handshake_survives_any_loss_that_ends() {
    for seed in seeds(100) {
        let wire = Wire { loss: 0.6, duplicate: 0.2, corrupt: 0.1, reorder: 0.3, reorder_by: ms(100), ..Wire::default() };
        let mut world = World::new(seed, vec![wire.clone(), wire]);
        let config = Config { handshake_timeout: Duration::from_secs(60), ..Config::default() };
        world.add("10.0.0.1:700", 0, config.clone());
        world.add("10.0.0.2:700", 1, config);
        let (a, _) = world.link(0, 1);
        world.send(0, a, 0, Mode::Reliable, message(0, 0, 100)).unwrap();
        world.run_for(Duration::from_secs(20));
        assert_eq!(world.nodes[1].received.len(), 1);
        // However often its messages came, there is one link.
        assert_eq!(world.nodes[1].endpoint.len(), 1);
    }
}
