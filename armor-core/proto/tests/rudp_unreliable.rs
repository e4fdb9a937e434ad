//! R-UDP: messages for which late is useless, in simulated time (thesis §5.4).
#![allow(clippy::unwrap_used, clippy::panic)]

mod rudp_sim;

use std::time::Duration;

use armor_proto::rudp::{Mode, SendError};
use rudp_sim::{Bulk, Wire, World, message, ms, number_of, seeds};

#[test]
fn what_arrives_is_in_order_and_what_does_not_is_counted() {
    for seed in seeds(30) {
        let wire = Wire { loss: 0.1, duplicate: 0.1, reorder: 0.2, reorder_by: ms(50), corrupt: 0.02, ..Wire::default() };
        let (mut world, a, _) = World::pair(seed, wire.clone(), wire);
        let count = 200u64;
        for number in 0..count {
            let deadline = world.instant() + ms(100);
            // Every fourth is longer than a packet.
            let size = if number % 4 == 0 { 5000 } else { 160 };
            world.send(0, a, 9, Mode::Unreliable { deadline }, message(9, number, size)).unwrap();
            world.run_for(ms(20));
        }
        world.run_for(ms(500));
        let mut next = 0;
        for (at, _, received) in &world.nodes[1].received {
            let number = number_of(&received.payload);
            assert_eq!(received.missing, Some(number - next), "message {number}");
            assert_eq!(received.payload, message(9, number, received.payload.len()));
            assert!(*at < ms(20) * number as u32 + Duration::from_secs(1));
            next = number + 1;
        }
        let arrived = world.nodes[1].received.len();
        assert!(arrived > 100 && arrived < 200, "{arrived} of {count}");
    }
}

#[test]
fn what_is_lost_is_not_sent_again() {
    let (mut world, a, _) = World::pair(1, Wire::default(), Wire::default());
    world.run_for(Duration::from_secs(1));
    let now = world.now;
    world.wires[0].blackouts.push((now, now + ms(5)));
    let deadline = world.instant() + ms(500);
    world.send(0, a, 0, Mode::Unreliable { deadline }, message(0, 0, 100)).unwrap();
    world.run_for(Duration::from_secs(5));
    assert!(world.nodes[1].received.is_empty());
    let deadline = world.instant() + ms(500);
    world.send(0, a, 0, Mode::Unreliable { deadline }, message(0, 1, 100)).unwrap();
    world.run_for(ms(11));
    let received: Vec<_> =
        world.nodes[1].received.iter().map(|(_, _, received)| (received.missing, number_of(&received.payload))).collect();
    assert_eq!(received, [(Some(1), 1)]);
}

#[test]
fn what_cannot_leave_in_time_is_dropped_at_the_sender() {
    // 100 kbit/s take a message of 1250 bytes each 100 ms; one is sent each 20.
    let slow = Wire { rate: 100_000, queue: 5000, ..Wire::default() };
    let (mut world, a, _) = World::pair(1, slow, Wire::default());
    let mut sent = Vec::new();
    for number in 0..500 {
        let deadline = world.instant() + ms(60);
        sent.push(world.now);
        world.send(0, a, 0, Mode::Unreliable { deadline }, message(0, number, 1100)).unwrap();
        world.run_for(ms(20));
    }
    world.run_for(Duration::from_secs(3));
    let dropped = world.nodes[0].endpoint.status(a).unwrap().dropped;
    assert!(dropped > 250, "{dropped} were dropped");
    let received = &world.nodes[1].received;
    let missing: u64 = received.iter().filter_map(|(_, _, received)| received.missing).sum();
    let last = number_of(&received.last().unwrap().2.payload);
    assert_eq!(received.len() as u64 + missing, last + 1);
    assert!(received.len() > 50, "{} arrived", received.len());
    // The path is slow, but what passes is not old: its time at the sender, and what waits in the bottleneck.
    for (at, _, received) in received {
        let late = *at - sent[number_of(&received.payload) as usize];
        assert!(late < ms(60 + 400 + 100 + 10), "{late:?} late");
    }
}

#[test]
fn reliable_bulk_does_not_hold_it_up() {
    let wire = Wire { rate: 10_000_000, queue: 25_000, loss: 0.02, ..Wire::default() };
    let (mut world, a, _) = World::pair(1, wire.clone(), wire);
    world.nodes[0].bulk.push(Bulk { link: a, channels: 1, size: 64 << 10, left: u64::MAX, next: 0 });
    world.drive(0);
    world.run_for(Duration::from_secs(1));
    let mut sent = Vec::new();
    for number in 0..250u64 {
        let deadline = world.instant() + ms(200);
        sent.push(world.now);
        world.send(0, a, 50, Mode::Unreliable { deadline }, message(50, number, 160)).unwrap();
        world.run_for(ms(20));
    }
    let mut delays: Vec<_> = world.nodes[1]
        .received
        .iter()
        .filter(|(_, _, received)| received.missing.is_some())
        .map(|(at, _, received)| *at - sent[number_of(&received.payload) as usize])
        .collect();
    delays.sort();
    assert!(delays.len() > 230, "{} arrived", delays.len());
    // 10 ms of path, at most 20 ms of its queue, and the sender's pace.
    assert!(delays[delays.len() * 9 / 10] < ms(45), "{delays:?}");
}

#[test]
fn one_too_long_is_refused() {
    let (mut world, a, _) = World::pair(1, Wire::default(), Wire::default());
    let deadline = world.instant() + ms(100);
    let refused = world.send(0, a, 0, Mode::Unreliable { deadline }, message(0, 0, (1 << 20) + 1));
    assert_eq!(refused, Err(SendError::TooLong { length: (1 << 20) + 1, most: 1 << 20 }));
    world.send(0, a, 0, Mode::Unreliable { deadline: deadline + Duration::from_secs(10) }, message(0, 0, 1 << 20)).unwrap();
    world.run_for(Duration::from_secs(5));
    assert_eq!(world.nodes[1].received.len(), 1);
}
