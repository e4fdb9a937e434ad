//! Watch and lease together in simulated time: whatever is lost, late or cut, the lease of a node has run out before its failure is told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::chance::{NODE, Random, TIMING, ms, seeds};
use super::watch::{Act, LinkState, Watch};
use crate::node_lease::term::{self, Holding, Turn};

const LONGEST: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
enum Arrives {
    Heartbeat,
    Ask(Duration),
    Granted(Duration),
}

/// What happens between the FTM and the node from one millisecond on.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Open,
    /// Nothing passes to the node, to the FTM, or at all.
    Deaf,
    Mute,
    Cut,
    /// Both pass, and much of it is lost or late.
    Bad,
    /// The daemon does nothing; its kernel acknowledges.
    Busy,
    /// There is no link.
    Gone,
}

struct World {
    random: Random,
    start: Instant,
    at: u64,
    watch: Watch,
    holding: Holding,
    /// Thousandths that the node's clock runs fast or slow.
    pace: i64,
    way: Way,
    changes_at: u64,
    under_way: BTreeMap<(u64, u64), Arrives>,
    number: u64,
    acknowledged: u64,
    has_lease: bool,
    failures: u64,
    isolations: u64,
    ftm_down_until: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let start = Instant::now();
        let mut random = Random(seed);
        let pace = random.below(201).cast_signed() - 100;
        let mut watch = Watch::new(TIMING, start);
        watch.registered(NODE, "b", start);
        World {
            random,
            start,
            at: 0,
            watch,
            holding: Holding::default(),
            pace,
            way: Way::Open,
            changes_at: 500,
            under_way: BTreeMap::new(),
            number: 0,
            acknowledged: 0,
            has_lease: false,
            failures: 0,
            isolations: 0,
            ftm_down_until: 0,
        }
    }

    fn now(&self) -> Instant {
        self.start + ms(self.at)
    }

    /// On the node's clock.
    fn node_now(&self) -> Duration {
        Duration::from_micros(5_000_000 + self.at * (1000 + self.pace).cast_unsigned())
    }

    fn send(&mut self, what: Arrives) {
        let to_node = !matches!(what, Arrives::Ask(_));
        let lost = match self.way {
            Way::Open | Way::Busy => false,
            Way::Deaf => to_node,
            Way::Mute => !to_node,
            Way::Cut | Way::Gone => true,
            Way::Bad => self.random.below(3) == 0,
        };
        // What TCP has accepted before a cut may arrive long after it, and in another order by another link.
        let late = if self.way == Way::Bad || (!self.is_calm() && self.random.below(50) == 0) { 2000 } else { 5 };
        let copies = if lost { u64::from(self.random.below(20) == 0) } else { 1 + u64::from(self.random.below(20) == 0) };
        for _ in 0..copies {
            self.number += 1;
            let arrival = self.at + self.random.below(late) + if lost { 300 } else { 0 };
            self.under_way.insert((arrival, self.number), what);
        }
    }

    /// Nothing ever happens between the two.
    fn is_calm(&self) -> bool {
        self.changes_at == u64::MAX
    }

    fn change(&mut self) {
        let ways = [Way::Open, Way::Open, Way::Deaf, Way::Mute, Way::Cut, Way::Bad, Way::Busy, Way::Gone];
        self.way = ways[self.random.below(ways.len() as u64) as usize];
        self.changes_at = self.at + 20 + self.random.below(if self.way == Way::Busy { 5000 } else { 1200 });
        match self.way {
            Way::Gone => self.watch.link_lost(NODE, self.now()),
            // A word of the node, as its registration by a new link.
            Way::Open => self.watch.registered(NODE, "b", self.now()),
            _ => {}
        }
        if self.random.below(10) == 0 {
            // The FTM dies and is back a while later, with a new count.
            self.ftm_down_until = self.at + self.random.below(400);
        }
    }

    fn step(&mut self) {
        if self.at == self.changes_at {
            self.change();
        }
        if self.ftm_down_until != 0 && self.at >= self.ftm_down_until {
            self.ftm_down_until = 0;
            let now = self.now();
            self.watch = Watch::new(TIMING, now);
            self.watch.restored(NODE, "b".into(), self.random.below(2) == 0, now);
        }
        let ftm_lives = self.ftm_down_until == 0;
        if !matches!(self.way, Way::Cut | Way::Gone | Way::Deaf | Way::Mute) {
            self.acknowledged = self.at;
        }
        // The overseer's timer.
        let node_now = self.node_now();
        if self.way != Way::Busy || self.holding.lasts(node_now).is_some_and(|lasts| lasts.is_zero()) {
            self.isolations += u64::from(matches!(self.holding.at(node_now), Some(Turn::Isolated(_))));
        }
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.at) {
            match entry.remove() {
                Arrives::Heartbeat if self.way != Way::Busy => self.send(Arrives::Ask(node_now)),
                Arrives::Ask(asked) if ftm_lives => {
                    let now = self.now();
                    if self.watch.spoke(NODE, now) {
                        self.send(Arrives::Granted(asked));
                    }
                }
                Arrives::Granted(asked) if self.way != Way::Busy => {
                    self.holding.at(node_now);
                    self.holding.told(Some(term::until(asked, LONGEST, TIMING.limit)), false, node_now);
                    self.has_lease = true;
                }
                // Lost with who it was for.
                _ => {}
            }
        }
        if ftm_lives {
            if self.watch.due() <= self.now() {
                let now = self.now();
                self.watch.at(now);
            }
            self.acts();
        }
        self.at += 1;
    }

    fn acts(&mut self) {
        while let Some(act) = self.watch.act() {
            match act {
                Act::Ask(..) => self.send(Arrives::Heartbeat),
                Act::LookAtLink(_) => {
                    let (linked, acknowledged) = (self.way != Way::Gone, Some(ms(self.at - self.acknowledged)));
                    let now = self.now();
                    self.watch.link_state(NODE, LinkState { linked, acknowledged, unacknowledged: true }, now);
                }
                Act::Failed(_, _, why) => {
                    self.failures += 1;
                    let left = self.holding.until().filter(|_| self.has_lease).map(|until| until.saturating_sub(self.node_now()));
                    assert!(left.is_none_or(|left| left.is_zero()), "at {}: {why:?}, and the lease lasts another {left:?}", self.at);
                }
                Act::Back(_) => {}
            }
        }
    }
}

#[test]
fn the_lease_has_run_out_before_a_failure_is_told() {
    let (mut failures, mut isolations) = (0, 0);
    for seed in seeds(600) {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            while world.at < 20_000 {
                world.step();
            }
            (world.failures, world.isolations)
        });
        let Ok((failed, isolated)) = outcome else { panic!("seed {seed}") };
        failures += failed;
        isolations += isolated;
    }
    assert!(failures > 1000 && isolations > 1000, "{failures} failures, {isolations} isolations: this tests nothing");
}

#[test]
fn a_node_that_is_well_is_never_isolated() {
    for seed in seeds(600) {
        let mut world = World::new(seed);
        world.changes_at = u64::MAX;
        while world.at < 5000 {
            world.step();
        }
        assert!(world.has_lease && (world.failures, world.isolations) == (0, 0), "seed {seed}: {} isolations", world.isolations);
    }
}
