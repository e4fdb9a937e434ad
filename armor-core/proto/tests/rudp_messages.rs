//! R-UDP: messages over good and bad networks, in simulated time (thesis §5.5).
//!
//! Every network is drawn from a seed that is printed. `ARMOR_SCHEDULES=N` runs N times as many.
#![allow(clippy::unwrap_used, clippy::panic)]

mod rudp_sim;

use std::collections::BTreeMap;
use std::time::Duration;

use armor_proto::rudp::{Config, Event, MAX_MESSAGE, Mode, SendError};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rudp_sim::{Bursts, Wire, World, message, ms, number_of, seeds};

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
fn the_parts_of_a_message_are_one_message() {
    let (mut world, a, _) = World::pair(1, Wire::default(), Wire::default());
    let parts = [Bytes::from_static(b"head"), Bytes::new(), Bytes::from_static(b"payload")];
    world.nodes[0].endpoint.send(a, 0, Mode::Reliable, &parts).unwrap();
    world.nodes[0].endpoint.send(a, 0, Mode::Reliable, &[]).unwrap();
    world.drive(0);
    world.run_for(ms(100));
    let received: Vec<_> = world.nodes[1].received.iter().map(|(_, _, received)| received.payload.to_vec()).collect();
    assert_eq!(received, [b"headpayload".to_vec(), Vec::new()]);
}

#[test]
fn an_idle_link_is_quiet_and_lives() {
    let (mut world, a, _) = World::pair(1, Wire::default(), Wire::default());
    world.run_for(Duration::from_secs(5));
    let datagrams = world.datagrams;
    world.run_for(Duration::from_secs(500));
    assert_eq!(world.datagrams, datagrams);
    world.run_for(Duration::from_secs(86_400));
    assert!(world.datagrams - datagrams < 1000, "{} datagrams in a day, for the path's MTU alone", world.datagrams - datagrams);
    world.send(0, a, 0, Mode::Reliable, message(0, 0, 100)).unwrap();
    world.run_for(ms(11));
    assert_eq!(world.nodes[1].received.len(), 1);
}

fn any_wire(random: &mut StdRng) -> Wire {
    let mut wire = Wire { delay: ms(random.random_range(0..80)), ..Wire::default() };
    if random.random_bool(0.5) {
        wire.rate = random.random_range(200_000..50_000_000);
        wire.queue = random.random_range(10_000..300_000);
    }
    if random.random_bool(0.5) {
        wire.loss = random.random_range(0.0..0.3);
    }
    if random.random_bool(0.3) {
        wire.bursts = Some(Bursts { begin: random.random_range(0.001..0.1), end: random.random_range(0.05..0.5), loss: random.random() });
    }
    if random.random_bool(0.3) {
        wire.jitter = ms(random.random_range(0..30));
    }
    if random.random_bool(0.3) {
        wire.duplicate = random.random_range(0.0..0.3);
    }
    if random.random_bool(0.3) {
        (wire.reorder, wire.reorder_by) = (random.random_range(0.0..0.3), ms(random.random_range(0..100)));
    }
    if random.random_bool(0.3) {
        wire.corrupt = random.random_range(0.0..0.2);
    }
    if random.random_bool(0.3) {
        wire.mtu = random.random_range(1228..1500);
    }
    for _ in 0..random.random_range(0..3) {
        let from = ms(random.random_range(0..5000));
        wire.blackouts.push((from, from + ms(random.random_range(0..2000))));
    }
    wire
}

#[test]
fn messages_arrive_once_and_in_order_over_any_network() {
    for seed in seeds(300) {
        let mut random = StdRng::seed_from_u64(seed);
        let (forth, back) = (any_wire(&mut random), any_wire(&mut random));
        println!("{forth:?}\n{back:?}");
        let (mut world, a, b) = World::pair(seed, forth, back);
        world.segments = random.random_range(1..12);
        let mut sent = [BTreeMap::new(), BTreeMap::new()];
        for _ in 0..random.random_range(1..40) {
            let (node, channel) = (random.random_range(0..2), random.random_range(0..4u16));
            let size = if random.random_bool(0.1) { random.random_range(0..200_000) } else { random.random_range(0..3000) };
            let number = sent[node].entry(channel).or_insert(0u64);
            world.send(node, [a, b][node], channel, Mode::Reliable, message(channel, *number, size)).unwrap();
            *number += 1;
            world.run_for(ms(random.random_range(0..200)));
        }
        let wanted = [sent[1].values().sum::<u64>() as usize, sent[0].values().sum::<u64>() as usize];
        let limit = world.now + Duration::from_secs(300);
        let done = world.run_until(limit, |world| (0..2).all(|node| world.nodes[node].received.len() >= wanted[node]));
        assert!(done, "{} and {} of {wanted:?} arrived", world.nodes[0].received.len(), world.nodes[1].received.len());
        world.run_for(Duration::from_secs(1));
        for (node, wanted) in wanted.into_iter().enumerate() {
            assert_eq!(world.nodes[node].received.len(), wanted);
            let mut next = BTreeMap::new();
            for (_, _, received) in &world.nodes[node].received {
                let number = next.entry(received.channel).or_insert(0u64);
                assert_eq!(received.payload, message(received.channel, *number, received.payload.len()));
                *number += 1;
            }
            assert!(!world.nodes[node].events.iter().any(|(_, event)| matches!(event, Event::Closed { .. })));
        }
    }
}

#[test]
fn the_longest_message_passes_and_a_longer_one_is_refused() {
    let (mut world, a, _) = World::pair(1, Wire::default(), Wire { loss: 0.01, ..Wire::default() });
    let longest = message(0, 7, MAX_MESSAGE);
    world.send(0, a, 0, Mode::Reliable, longest.clone()).unwrap();
    let refused = world.send(0, a, 0, Mode::Reliable, message(0, 8, MAX_MESSAGE + 1));
    assert_eq!(refused, Err(SendError::TooLong { length: MAX_MESSAGE + 1, most: MAX_MESSAGE }));
    let limit = world.now + Duration::from_secs(60);
    assert!(world.run_until(limit, |world| !world.nodes[1].received.is_empty()));
    assert_eq!(world.nodes[1].received[0].2.payload, longest);
}

#[test]
fn long_messages_on_many_channels_do_not_wait_for_each_other_for_ever() {
    // Together they are longer than the window; each alone would fit.
    let config = Config { receive_window: 0, send_buffer: 200 << 20, ..Config::default() };
    let (mut world, a, _) = World::pair_with(1, Wire::default(), Wire::default(), config);
    for channel in 0..4 {
        world.send(0, a, channel, Mode::Reliable, message(channel, 1, 10 << 20)).unwrap();
    }
    let limit = world.now + Duration::from_secs(60);
    assert!(world.run_until(limit, |world| world.nodes[1].received.len() == 4), "{} arrived", world.nodes[1].received.len());
}

#[test]
fn a_loss_in_one_channel_holds_up_no_other() {
    let (mut world, a, _) = World::pair(1, Wire::default(), Wire::default());
    world.run_for(Duration::from_secs(1));
    let now = world.now;
    world.wires[0].blackouts.push((now, now + ms(1)));
    world.send(0, a, 1, Mode::Reliable, message(1, 0, 500)).unwrap();
    world.run_for(ms(2));
    world.send(0, a, 2, Mode::Reliable, message(2, 0, 500)).unwrap();
    world.send(0, a, 1, Mode::Reliable, message(1, 1, 500)).unwrap();
    world.run_for(Duration::from_secs(1));
    let order: Vec<_> = world.nodes[1].received.iter().map(|(_, _, received)| (received.channel, number_of(&received.payload))).collect();
    assert_eq!(order, [(2, 0), (1, 0), (1, 1)]);
    assert_eq!(world.nodes[1].received[0].0, now + ms(12));
}

#[test]
fn a_receiver_that_does_not_read_stops_the_sender() {
    let config = Config { send_buffer: 1 << 20, ..Config::default() };
    let window = config.receive_window as usize;
    let (mut world, a, b) = World::pair_with(1, Wire::default(), Wire::default(), config);
    world.nodes[1].reads = false;
    let (mut sent, size) = (0u64, 60_000);
    let mut idle = 0;
    while idle < 20 {
        match world.send(0, a, 0, Mode::Reliable, message(0, sent, size)) {
            Ok(()) => {
                sent += 1;
                idle = 0;
            }
            Err(SendError::Full { room }) => {
                assert!(room < size);
                idle += 1;
                world.run_for(ms(50));
            }
            Err(error) => panic!("{error}"),
        }
    }
    let held = sent as usize * size;
    assert!(held <= window + (1 << 20), "{held} bytes are somewhere");
    assert!(held >= window, "{held} bytes are somewhere");
    let events = world.nodes[0].events.len();
    for number in 0..sent {
        let received = world.nodes[1].endpoint.receive(b);
        let Some(received) = received else {
            world.drive(1);
            world.run_for(ms(50));
            let received = world.nodes[1].endpoint.receive(b).unwrap();
            assert_eq!(number_of(&received.payload), number);
            continue;
        };
        assert_eq!(number_of(&received.payload), number);
    }
    world.drive(1);
    world.run_for(ms(50));
    assert!(world.nodes[0].events[events..].iter().any(|(_, event)| *event == Event::Writable(a)));
}

#[test]
fn a_closed_link_is_closed_at_both_ends() {
    for seed in seeds(20) {
        let lossy = Wire { loss: 0.2, ..Wire::default() };
        let (mut world, a, b) = World::pair(seed, lossy.clone(), lossy);
        // The peer asks until it hears.
        world.nodes[1].endpoint.set_liveness(b, armor_proto::rudp::Liveness::Watched);
        world.drive(1);
        world.run_for(ms(300));
        let now = world.instant();
        world.nodes[0].endpoint.close(now, a, 7);
        world.drive(0);
        assert_eq!(world.nodes[0].endpoint.send(a, 0, Mode::Reliable, &[]), Err(SendError::NotConnected(a)));
        world.run_for(Duration::from_secs(2));
        let closed = Event::Closed { link: b, reason: armor_proto::rudp::CloseReason::ByPeer(7) };
        assert_eq!(world.nodes[1].events.iter().filter(|(_, event)| *event == closed).count(), 1);
        assert!(world.nodes.iter().all(|node| node.endpoint.is_empty()));
    }
}

#[test]
fn who_does_not_answer_a_handshake_is_given_up() {
    let mut world = World::new(1, vec![Wire { loss: 1.0, ..Wire::default() }, Wire::default()]);
    world.add("10.0.0.1:700", 0, Config::default());
    world.add("10.0.0.2:700", 1, Config::default());
    let link = world.connect(0, 1);
    world.run_for(Duration::from_secs(11));
    assert!(matches!(&world.nodes[0].events[..], [(_, Event::Closed { link: closed, .. })] if *closed == link));
    assert!(world.nodes[0].endpoint.is_empty());
}
