//! R-UDP: messages over good and bad networks, in simulated time (thesis §5.1).
#![allow(clippy::unwrap_used, clippy::panic)]

mod rudp_sim;

use std::time::Duration;

use armor_proto::rudp::Mode;
use rudp_sim::{Bulk, Wire, World, message, ms};

#[test]
fn messages_arrive_whole_and_in_order() {
    let (mut world, a, _) = World::pair(1, Wire::default(), Wire::default());
    for number in 0..100 {
        world.send(0, a, 3, Mode::Reliable, message(3, number, 1 << (number % 17))).unwrap();
    }
    let limit = world.now + Duration::from_secs(10);
    assert!(world.run_until(limit, |world| world.nodes[1].received.len() == 100), "{} arrived", world.nodes[1].received.len());
    for (number, (_, _, received)) in world.nodes[1].received.iter().enumerate() {
        assert_eq!(received.channel, 3);
        assert_eq!(received.missing, None);
        assert_eq!(received.payload, message(3, number as u64, 1 << (number % 17)));
    }
}

#[test]
fn a_handshake_takes_one_round_trip() {
    let (world, _, _) = World::pair(1, Wire::default(), Wire::default());
    // The responder knows after the initiator's first packet of data.
    assert_eq!(world.now, ms(30));
}

#[test]
fn a_bulk_fills_the_link() {
    let (mut world, a, _) = World::pair(1, Wire::fast(), Wire::fast());
    world.nodes[1].sink = true;
    world.nodes[0].bulk.push(Bulk { link: a, channels: 1, size: 64 << 10, left: u64::MAX, next: 0 });
    world.drive(0);
    world.run_for(Duration::from_secs(10));
    let rate = world.nodes[1].bytes as f64 * 8.0 / 10.0 / 1e6;
    println!("{rate:.2} Mbit/s {:?} {:?}", world.nodes[0].endpoint.status(a), world.wires[0].counts);
    assert!(rate > 90.0);
}
