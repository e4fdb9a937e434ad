//! R-UDP: what a link carries beside loss, and beside other links. Simulated time, so these rates are the same everywhere.
#![allow(clippy::unwrap_used, clippy::panic)]

mod rudp_sim;

use std::time::Duration;

use armor_proto::rudp::Config;
use rudp_sim::{Bulk, Bursts, Wire, World, ms, seeds};

/// Mbit/s of payload on 100 Mbit/s with 20 ms round trip, once the link is at its pace.
fn rate(seed: u64, change: impl Fn(&mut Wire)) -> f64 {
    let mut wire = Wire::fast();
    change(&mut wire);
    let (mut world, a, _) = World::pair(seed, wire.clone(), wire);
    world.nodes[1].sink = true;
    world.nodes[0].bulk.push(Bulk { link: a, channels: 4, size: 64 << 10, left: u64::MAX, next: 0 });
    world.drive(0);
    world.run_for(ms(500));
    let before = world.nodes[1].bytes;
    world.run_for(ms(4000));
    let rate = (world.nodes[1].bytes - before) as f64 * 8.0 / 4e6;
    let status = world.nodes[0].endpoint.status(a).unwrap();
    let (sent, lost, late) = (status.packets_sent, status.packets_lost, status.packets_late);
    println!("seed {seed}: {rate:.2} Mbit/s, {sent} sent, {lost} lost, {late} only late, {:?}", world.wires[0].counts);
    rate
}

/// What TCP with BBR reaches on the same path, and 0.95 of what the loss leaves of what it reaches without, is the least.
fn with_random_loss(loss: f64, tcp_bbr: f64) {
    let least = f64::max(tcp_bbr, if loss > 0.0 { 0.95 * (1.0 - loss) * 95.5 } else { 0.0 });
    for seed in seeds(1) {
        let rate = rate(seed, |wire| wire.loss = loss);
        assert!(rate >= least, "{rate:.2} Mbit/s at {loss} loss, {least:.2} wanted");
    }
}

#[test]
fn a_link_without_loss_is_full() {
    with_random_loss(0.0, 95.5);
}

#[test]
fn one_percent_of_loss_costs_as_much() {
    with_random_loss(0.01, 93.8);
}

#[test]
fn two_percent_of_loss_cost_as_much() {
    with_random_loss(0.02, 92.3);
}

#[test]
fn five_percent_of_loss_cost_as_much() {
    with_random_loss(0.05, 86.3);
}

#[test]
fn ten_percent_of_loss_cost_as_much() {
    with_random_loss(0.1, 75.9);
}

#[test]
fn twenty_percent_of_loss_are_no_congestion() {
    for seed in seeds(1) {
        let rate = rate(seed, |wire| wire.loss = 0.2);
        assert!(rate >= 0.9 * 0.8 * 95.5, "{rate:.2} Mbit/s");
    }
}

#[test]
fn loss_in_bursts_costs_what_is_lost() {
    // A fiftieth of the time in bursts that lose 80 %.
    for seed in seeds(1) {
        let rate = rate(seed, |wire| wire.bursts = Some(Bursts { begin: 0.001, end: 0.05, loss: 0.8 }));
        assert!(rate >= 0.95 * (1.0 - 0.016) * 95.5, "{rate:.2} Mbit/s");
    }
}

#[test]
fn jitter_and_reordering_are_no_loss() {
    let rate = rate(1, |wire| {
        wire.jitter = ms(3);
        wire.reorder = 0.02;
        wire.reorder_by = ms(8);
    });
    assert!(rate >= 85.0, "{rate:.2} Mbit/s");
}

#[test]
fn a_short_queue_is_not_flooded() {
    for (queue, loss) in [(20_000, 0.0), (60_000, 0.0), (60_000, 0.02)] {
        let (mut offered, mut overflowed) = (0, 0);
        let rate = {
            let mut wire = Wire::fast();
            (wire.queue, wire.loss) = (queue, loss);
            let (mut world, a, _) = World::pair(1, wire.clone(), wire);
            world.nodes[1].sink = true;
            world.nodes[0].bulk.push(Bulk { link: a, channels: 1, size: 64 << 10, left: u64::MAX, next: 0 });
            world.drive(0);
            world.run_for(ms(3000));
            offered += world.wires[0].counts.offered;
            overflowed += world.wires[0].counts.overflowed;
            world.nodes[1].bytes as f64 * 8.0 / 3e6
        };
        let share = overflowed as f64 / offered as f64;
        println!("queue of {queue} bytes, {loss} loss: {rate:.2} Mbit/s, {share:.3} overflowed");
        assert!(rate > 85.0 && share < 0.12, "{rate:.2} Mbit/s, {share:.3} overflowed");
    }
}

/// Two links over one bottleneck with a queue of `queue` round trips, the second begun later: shares of the first.
fn share(seed: u64, queue: f64) -> f64 {
    let mut wire = Wire::fast();
    wire.rate = 30_000_000;
    wire.queue = (75_000.0 * queue) as usize;
    let mut world = World::new(seed, vec![wire.clone(), wire]);
    for (address, out) in [("10.0.0.1:700", 0), ("10.0.0.2:700", 1), ("10.0.0.3:700", 0), ("10.0.0.4:700", 1)] {
        world.add(address, out, Config::default());
    }
    for from in [0, 2] {
        let (a, _) = world.link(from, from + 1);
        world.nodes[from + 1].sink = true;
        world.nodes[from].bulk.push(Bulk { link: a, channels: 1, size: 64 << 10, left: u64::MAX, next: 0 });
        world.drive(from);
        world.run_for(ms(2000 + 137 * seed));
    }
    let before = [world.nodes[1].bytes, world.nodes[3].bytes];
    world.run_for(Duration::from_secs(10));
    let [first, second] = [world.nodes[1].bytes - before[0], world.nodes[3].bytes - before[1]].map(|bytes| bytes as f64 * 8.0 / 1e7);
    println!("seed {seed}, queue {queue}: {first:.2} and {second:.2} Mbit/s, {:?}", world.wires[0].counts);
    assert!(first + second > 0.9 * 30.0);
    first / (first + second)
}

#[test]
fn two_links_share_a_short_queue() {
    for seed in seeds(2) {
        let share = share(seed, 0.5);
        assert!((0.3..=0.7).contains(&share), "{share:.2}");
    }
}

#[test]
fn two_links_share_a_queue_of_a_round_trip() {
    for seed in seeds(2) {
        let share = share(seed, 1.0);
        assert!((0.3..=0.7).contains(&share), "{share:.2}");
    }
}

#[test]
fn two_links_share_a_long_queue() {
    for seed in seeds(2) {
        let share = share(seed, 3.0);
        assert!((0.3..=0.7).contains(&share), "{share:.2}");
    }
}
