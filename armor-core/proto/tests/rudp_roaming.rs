//! R-UDP: outages and changes of address, of one end or of both, in simulated time (thesis §5.2).
#![allow(clippy::unwrap_used, clippy::panic)]

mod rudp_sim;

use std::time::Duration;

use armor_proto::rudp::{Event, LinkId, Liveness, Mode};
use rudp_sim::{Bulk, Wire, World, message, ms, seeds};

const OUTAGES: [u64; 4] = [1, 10, 60, 600];

fn dark(world: &mut World, for_time: Duration) -> Duration {
    let until = world.now + for_time;
    for wire in 0..2 {
        let now = world.now;
        world.wires[wire].blackouts.push((now, until));
    }
    until
}

/// Round trip of these wires, and what an outage may cost beyond it.
const BOUND: Duration = Duration::from_millis(20 + 200);

#[test]
fn what_is_sent_in_an_outage_arrives_right_after_it() {
    for outage in OUTAGES {
        for sender in 0..2 {
            let (mut world, a, b) = World::pair(outage, Wire::default(), Wire::default());
            world.run_for(Duration::from_secs(1));
            let until = dark(&mut world, Duration::from_secs(outage));
            world.run_for(ms(500));
            world.send(sender, [a, b][sender], 0, Mode::Reliable, message(0, 0, 100)).unwrap();
            world.run_for(until + BOUND - world.now);
            assert_eq!(world.nodes[1 - sender].received.len(), 1, "after {outage} s, from node {sender}");
        }
    }
}

#[test]
fn a_bulk_goes_on_right_after_an_outage() {
    for outage in OUTAGES {
        let wire = Wire { rate: 20_000_000, queue: 50_000, loss: 0.01, ..Wire::default() };
        let (mut world, a, _) = World::pair(outage, wire.clone(), wire);
        world.nodes[1].sink = true;
        world.nodes[0].bulk.push(Bulk { link: a, channels: 2, size: 3000, left: 3000, next: 0 });
        world.drive(0);
        world.run_for(Duration::from_secs(1));
        let until = dark(&mut world, Duration::from_secs(outage));
        world.nodes[1].first_byte_after = Some(until);
        world.run_for(until - world.now + Duration::from_secs(1));
        let first = world.nodes[1].first_byte_at.unwrap();
        assert!(first <= until + BOUND, "first byte {:?} after {outage} s", first - until);
        let limit = world.now + Duration::from_secs(30);
        assert!(world.run_until(limit, |world| world.nodes[1].bytes == 3000 * 3000), "{} bytes", world.nodes[1].bytes);
        // A second is as good as three: the rate was not forgotten.
        assert!(world.now < until + Duration::from_secs(6), "{:?} after the outage", world.now - until);
    }
}

#[test]
fn an_outage_is_told_and_its_end_too() {
    let (mut world, a, b) = World::pair(1, Wire::default(), Wire::default());
    for (node, link) in [(0, a), (1, b)] {
        world.nodes[node].endpoint.set_liveness(link, Liveness::Watched);
        world.drive(node);
    }
    world.run_for(Duration::from_secs(1));
    let datagrams = world.datagrams;
    world.run_for(Duration::from_secs(10));
    assert!(world.datagrams - datagrams < 10 * 4 * 5, "signs of life are few");
    let begun = world.now;
    let until = dark(&mut world, Duration::from_secs(10));
    world.run_for(until - world.now);
    world.run_for(Duration::from_secs(1));
    for (node, link) in [(0, a), (1, b)] {
        let silent: Vec<_> =
            world.nodes[node].events.iter().filter(|(_, event)| *event == Event::Silent(link)).map(|(at, _)| *at).collect();
        let [silent] = silent[..] else { panic!("{silent:?}") };
        assert!(silent > begun && silent < begun + Duration::from_secs(1));
        let answered: Vec<_> =
            world.nodes[node].events.iter().filter(|(_, event)| *event == Event::Answered(link)).map(|(at, _)| *at).collect();
        let [answered] = answered[..] else { panic!("{answered:?}") };
        assert!(answered <= until + BOUND, "{:?}", answered - until);
    }
}

fn moved(world: &World, node: usize, link: LinkId, to: &str) -> Option<Duration> {
    let remote = to.parse().unwrap();
    world.nodes[node].events.iter().rev().find(|(_, event)| *event == Event::Moved { link, remote }).map(|(at, _)| *at)
}

#[test]
fn a_change_of_address_costs_a_round_trip() {
    for mover in 0..2 {
        let (mut world, a, b) = World::pair(1, Wire::default(), Wire::default());
        let links = [a, b];
        world.run_for(Duration::from_secs(1));
        let now = world.now;
        world.move_node(mover, "10.9.9.9:900");
        let instant = world.instant();
        world.nodes[mover].endpoint.local_address_changed(instant);
        world.drive(mover);
        // The other end has something for it, meanwhile.
        world.send(1 - mover, links[1 - mover], 0, Mode::Reliable, message(0, 0, 100)).unwrap();
        world.run_for(ms(200));
        let at = moved(&world, 1 - mover, links[1 - mover], "10.9.9.9:900").unwrap();
        // There, the challenge, its response: half a round trip beyond the one that it costs the mover.
        assert!(at <= now + ms(31), "{:?}", at - now);
        assert_eq!(world.nodes[mover].received.len(), 1);
        let received = world.nodes[mover].received[0].0;
        assert!(received <= now + ms(62), "{:?}", received - now);
    }
}

#[test]
fn a_bulk_goes_on_at_another_address() {
    for seed in seeds(10) {
        for mover in 0..2 {
            let wire = Wire { rate: 20_000_000, queue: 50_000, loss: 0.02, ..Wire::default() };
            let (mut world, a, b) = World::pair(seed, wire.clone(), wire);
            world.nodes[1].sink = true;
            world.nodes[0].bulk.push(Bulk { link: a, channels: 2, size: 3000, left: 1000, next: 0 });
            // A receiver says nothing by itself; with signs of life its peer learns where it is.
            world.nodes[1].endpoint.set_liveness(b, Liveness::Watched);
            world.drive(0);
            world.drive(1);
            for address in ["10.1.1.1:1", "10.1.1.2:2", "10.1.1.2:3"] {
                world.run_for(ms(300));
                world.move_node(mover, address);
                // Nobody tells the endpoint: a network address translator has forgotten.
            }
            let limit = world.now + Duration::from_secs(30);
            assert!(world.run_until(limit, |world| world.nodes[1].bytes == 1000 * 3000), "mover {mover}: {} bytes", world.nodes[1].bytes);
            assert!(world.now < Duration::from_secs(8), "{:?}", world.now);
        }
    }
}

#[test]
fn when_both_change_their_address_one_round_trip_after_one_of_them_is_told_they_go_on() {
    for told in 0..2 {
        let (mut world, a, b) = World::pair(1, Wire::default(), Wire::default());
        let links = [a, b];
        for (node, link) in links.into_iter().enumerate() {
            world.nodes[node].endpoint.set_liveness(link, Liveness::Watched);
            world.drive(node);
        }
        world.run_for(Duration::from_secs(1));
        world.move_node(0, "10.1.1.1:1");
        world.move_node(1, "10.2.2.2:2");
        world.send(0, a, 0, Mode::Reliable, message(0, 0, 100)).unwrap();
        world.send(1, b, 0, Mode::Reliable, message(0, 0, 100)).unwrap();
        world.run_for(Duration::from_secs(30));
        assert!(world.nodes.iter().all(|node| node.received.is_empty()));
        let now = world.now;
        let instant = world.instant();
        let other = ["10.2.2.2:2", "10.1.1.1:1"][told];
        world.nodes[told].endpoint.add_candidate(instant, links[told], "10.77.0.1:7".parse().unwrap());
        world.nodes[told].endpoint.add_candidate(instant, links[told], other.parse().unwrap());
        world.drive(told);
        world.run_for(ms(200));
        let at = moved(&world, told, links[told], other).unwrap();
        assert!(at <= now + ms(21), "{:?}", at - now);
        for node in 0..2 {
            let at = world.nodes[node].received[0].0;
            assert!(at <= now + ms(32), "node {node}: {:?}", at - now);
        }
    }
}

#[test]
fn a_suspended_process_goes_on_where_it_was() {
    for (suspended, moves) in [(0, false), (1, false), (0, true), (1, true)] {
        let (mut world, a, b) = World::pair(1, Wire::default(), Wire::default());
        world.run_for(ms(50));
        world.nodes[0].bulk.push(Bulk { link: a, channels: 1, size: 1000, left: 500, next: 0 });
        world.nodes[1].bulk.push(Bulk { link: b, channels: 1, size: 1000, left: 500, next: 0 });
        world.nodes[0].sink = true;
        world.nodes[1].sink = true;
        world.run_for(ms(3));
        world.drive(0);
        world.run_for(ms(5));
        world.nodes[suspended].suspended = true;
        world.run_for(Duration::from_secs(600));
        world.nodes[suspended].suspended = false;
        if moves {
            world.move_node(suspended, "10.5.5.5:5");
            let instant = world.instant();
            world.nodes[suspended].endpoint.local_address_changed(instant);
        }
        let now = world.now;
        let instant = world.instant();
        world.nodes[suspended].endpoint.handle_timeout(instant);
        world.drive(suspended);
        world.drive(1 - suspended);
        let limit = now + Duration::from_secs(5);
        assert!(world.run_until(limit, |world| world.nodes.iter().all(|node| node.bytes == 500_000)));
        assert!(world.now < now + Duration::from_secs(1), "{:?}", world.now - now);
    }
}

#[test]
fn a_copied_packet_does_not_take_a_link_away() {
    let (mut world, a, b) = World::pair(1, Wire::default(), Wire::default());
    world.run_for(Duration::from_secs(1));
    // Somebody on the way is faster with a copy of the newest packet, from another address.
    world.send(0, a, 0, Mode::Reliable, message(0, 0, 1000)).unwrap();
    let mut copies = world.under_way();
    copies.retain(|(to, _)| *to == world.nodes[1].address);
    let now = world.instant();
    for (_, mut copy) in copies {
        world.nodes[1].endpoint.handle_datagram(now, "10.66.6.6:6".parse().unwrap(), &mut copy);
    }
    world.send(1, b, 0, Mode::Reliable, message(0, 0, 100_000)).unwrap();
    let limit = world.now + Duration::from_secs(5);
    assert!(world.run_until(limit, |world| world.nodes[0].received.len() == 1));
    assert_eq!(world.nodes[1].endpoint.status(b).unwrap().remote, world.nodes[0].address);
    let astray = world.astray;
    assert!(astray <= 3 * 1100, "{astray} bytes were sent to an address that has not answered");
    assert_eq!(moved(&world, 1, b, "10.66.6.6:6"), None);
}
