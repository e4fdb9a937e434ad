//! A node and the way to it in simulated time: heartbeats and answers are delayed and lost, the node dies, is cut off, is busy, restarts.

use std::collections::BTreeMap;

use super::super::chance::{NODE, Random, TIMING, ms, seeds};
use super::*;

#[derive(Clone, Copy)]
enum Arrives {
    /// At the kernel of the node, which acknowledges it even when it waits there for one that was lost.
    Segment,
    Heartbeat(u64),
    Reply(u64),
}

/// What the node is like from when to when, in ms.
struct World {
    watch: Watch,
    start: Instant,
    at: u64,
    random: Random,
    /// One in so many is lost; 0: none.
    lost: u64,
    lost_last: bool,
    /// Of each direction.
    last_arrival: [u64; 2],
    slowest: u64,
    kernel_dead_from: u64,
    silent: std::ops::Range<u64>,
    link_gone: std::ops::Range<u64>,
    under_way: BTreeMap<(u64, u64), Arrives>,
    number: u64,
    acknowledged: u64,
    unacknowledged: bool,
    told: Vec<(u64, Act)>,
}

impl World {
    fn new(seed: u64, lost: u64, slowest: u64) -> World {
        let start = Instant::now();
        let mut watch = Watch::new(TIMING, start);
        watch.registered(NODE, "b", start);
        let never = u64::MAX..u64::MAX;
        let (under_way, told) = (BTreeMap::new(), Vec::new());
        World {
            watch,
            start,
            at: 0,
            random: Random(seed),
            lost,
            lost_last: false,
            last_arrival: [0; 2],
            slowest,
            kernel_dead_from: u64::MAX,
            silent: never.clone(),
            link_gone: never,
            under_way,
            number: 0,
            acknowledged: 0,
            unacknowledged: false,
            told,
        }
    }

    fn now(&self) -> Instant {
        self.start + ms(self.at)
    }

    fn send(&mut self, what: Arrives) {
        // TCP sends what was lost again, at least 200 ms later, and what comes behind waits for it. Two in a row are not lost here: then a node may be missed.
        let lost = self.lost > 0 && !self.lost_last && self.random.below(self.lost) == 0;
        self.lost_last = lost;
        let arrival = self.at + if lost { 200 } else { 0 } + self.random.below(self.slowest + 1);
        if matches!(what, Arrives::Heartbeat(_)) {
            self.number += 1;
            self.under_way.insert((arrival, self.number), Arrives::Segment);
        }
        let last = &mut self.last_arrival[usize::from(matches!(what, Arrives::Reply(_)))];
        let when = arrival.max(*last);
        *last = when;
        self.number += 1;
        self.under_way.insert((when, self.number), what);
    }

    fn acts(&mut self) {
        while let Some(act) = self.watch.act() {
            match act {
                Act::Ask(_, sequence) => {
                    if !self.link_gone.contains(&self.at) {
                        self.unacknowledged = true;
                        self.send(Arrives::Heartbeat(sequence));
                    }
                }
                Act::LookAtLink(_) => {
                    let state = LinkState {
                        linked: !self.link_gone.contains(&self.at),
                        acknowledged: Some(ms(self.at - self.acknowledged)),
                        unacknowledged: self.unacknowledged,
                    };
                    let now = self.now();
                    self.watch.link_state(NODE, state, now);
                }
                told => self.told.push((self.at, told)),
            }
        }
    }

    fn until(&mut self, end: u64) {
        while self.at < end {
            if self.at == self.link_gone.start {
                self.under_way.clear();
                let now = self.now();
                self.watch.link_lost(NODE, now);
            } else if self.at == self.link_gone.end {
                let now = self.now();
                self.watch.registered(NODE, "b", now);
            }
            while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.at) {
                match entry.remove() {
                    _ if self.at >= self.kernel_dead_from => {}
                    Arrives::Segment => self.acknowledged = self.at,
                    Arrives::Heartbeat(sequence) => {
                        self.unacknowledged = false;
                        if !self.silent.contains(&self.at) {
                            self.send(Arrives::Reply(sequence));
                        }
                    }
                    Arrives::Reply(sequence) => {
                        let now = self.now();
                        self.watch.replied(NODE, sequence, now);
                    }
                }
            }
            if self.watch.due() <= self.now() {
                let now = self.now();
                self.watch.at(now);
            }
            self.acts();
            self.at += 1;
        }
    }
}

#[test]
fn a_node_that_dies_is_found_after_two_to_three_intervals_and_once() {
    for seed in seeds(400) {
        let mut world = World::new(seed, 0, 5);
        let dies = 1000 + Random(seed ^ 9).below(100);
        world.kernel_dead_from = dies;
        world.until(5000);
        let [(at, Act::Failed(NODE, _, Why::KernelSilent))] = world.told[..] else { panic!("seed {seed}: {:?}", world.told) };
        // A heartbeat that is under way when it dies is never answered.
        assert!((195..=310).contains(&(at - dies)), "seed {seed}: after {} ms", at - dies);
    }
}

#[test]
fn a_node_behind_a_slow_way_that_loses_single_segments_has_not_failed() {
    for seed in seeds(400) {
        let mut world = World::new(seed, 20, 30);
        world.until(20_000);
        assert_eq!(world.told, [], "seed {seed}");
    }
}

#[test]
fn a_busy_daemon_has_not_failed_while_its_kernel_acknowledges_and_fails_when_it_takes_too_long() {
    for seed in seeds(400) {
        let mut world = World::new(seed, 0, 10);
        world.silent = 1000..3500;
        world.until(6000);
        assert_eq!(world.told, [], "seed {seed}");
        world.silent = 7000..u64::MAX;
        world.until(12_000);
        let [(at, Act::Failed(NODE, _, Why::BusyTooLong))] = world.told[..] else { panic!("seed {seed}: {:?}", world.told) };
        assert!((9890..=10_110).contains(&at), "seed {seed}: at {at}");
    }
}

#[test]
fn a_busy_node_that_then_dies_is_found_by_its_kernel() {
    for seed in seeds(400) {
        let mut world = World::new(seed, 0, 10);
        world.silent = 1000..u64::MAX;
        world.kernel_dead_from = 2000;
        world.until(6000);
        let [(at, Act::Failed(NODE, _, Why::KernelSilent))] = world.told[..] else { panic!("seed {seed}: {:?}", world.told) };
        assert!((2190..=2420).contains(&at), "seed {seed}: at {at}");
    }
}

#[test]
fn a_daemon_that_restarts_within_the_limit_has_not_failed_and_one_that_stays_away_has() {
    for seed in seeds(400) {
        let away = 1 + Random(seed).below(280);
        let mut world = World::new(seed, 0, 10);
        world.link_gone = 1050..1050 + away;
        world.until(5000);
        assert_eq!(world.told, [], "seed {seed}: away for {away} ms");
        let mut world = World::new(seed, 0, 10);
        world.link_gone = 1050..4000;
        world.until(7000);
        let [(at, Act::Failed(NODE, _, Why::LinkGone)), (back, Act::Back(NODE))] = world.told[..] else {
            panic!("seed {seed}: {:?}", world.told)
        };
        assert_eq!(at, 1350, "seed {seed}");
        assert!((4000..=4030).contains(&back), "seed {seed}: back at {back}");
    }
}

#[test]
fn time_in_which_the_ftm_did_not_run_counts_against_nobody() {
    let mut world = World::new(1, 0, 5);
    world.until(1000);
    world.at += 5000;
    world.under_way.clear();
    world.until(7500);
    assert_eq!(world.told, []);
}

#[test]
fn a_link_that_comes_and_goes_and_brings_no_answer_is_no_life() {
    let start = Instant::now();
    let mut watch = Watch::new(TIMING, start);
    watch.registered(NODE, "b", start);
    for step in 1..100 {
        let now = start + ms(step * 10);
        watch.link_lost(NODE, now);
        if watch.due() <= now {
            watch.at(now);
        }
        while let Some(act) = watch.act() {
            match act {
                Act::LookAtLink(_) => watch.link_state(NODE, LinkState { linked: false, acknowledged: None, unacknowledged: false }, now),
                Act::Failed(_, silent, Why::LinkGone) => return assert!(silent <= ms(320), "{silent:?}"),
                _ => {}
            }
        }
    }
    panic!("it is still alive");
}

#[test]
fn a_node_that_an_earlier_life_watched_fails_again_or_comes_back() {
    for answers in [false, true] {
        let start = Instant::now();
        let mut watch = Watch::new(TIMING, start);
        watch.restored(NODE, "b".into(), true, start);
        let mut told = Vec::new();
        for step in 1..500 {
            let now = start + ms(step);
            if watch.due() <= now {
                watch.at(now);
            }
            while let Some(act) = watch.act() {
                match act {
                    Act::Ask(_, sequence) if answers => watch.replied(NODE, sequence, now),
                    Act::Ask(..) => {}
                    Act::LookAtLink(_) => {
                        watch.link_state(NODE, LinkState { linked: false, acknowledged: None, unacknowledged: false }, now)
                    }
                    act => told.push(act),
                }
            }
        }
        let expected = if answers { Act::Back(NODE) } else { Act::Failed(NODE, ms(300), Why::LinkGone) };
        assert_eq!(told, [expected]);
    }
}
