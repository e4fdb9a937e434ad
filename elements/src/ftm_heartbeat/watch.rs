//! When a node has failed: the watch over all nodes as a state machine. It has no clock, no timer and no socket; time is passed in.
//!
//! A node is asked every `interval`. When nothing was heard of it for `interval * misses` its link is looked at:
//!
//! - there is no link: the node has failed;
//! - its kernel has acknowledged nothing for as long, though something was sent: the node has failed;
//! - its kernel acknowledges and its daemon is silent: that is busy, or hangs, and is its vault's affair. Only after `busy` the node has failed.
//!
//! A link that ends is a sign of life of the node's kernel, and perhaps of a daemon that is just being started again. So the silence counts from there, but once only:
//! a link that comes and goes and brings no answer is no life.
//!
//! Invariants: a failure is told once, and a node that answers again is told back once; time in which this ARMOR itself did not run counts against nobody.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use armor_proto::ids::ArmorId;

/// Heartbeats on their way whose round trip can still be measured.
const REMEMBERED: usize = 64;
/// A node that has failed is asked only at every so many beats.
const FAILED_EVERY: u64 = 10;
/// Clock of the kernel's time stamps of acknowledgements, at its coarsest (`CONFIG_HZ=100`).
const KERNEL_TICK: Duration = Duration::from_millis(10);

/// How nodes are watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Between two heartbeats.
    pub(super) interval: Duration,
    /// Silence after which the link is looked at.
    pub(super) limit: Duration,
    /// Silence after which a node has failed whose kernel acknowledges.
    pub(super) busy: Duration,
}

/// Why a node has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    LinkGone,
    KernelSilent,
    BusyTooLong,
}

impl Why {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Why::LinkGone => "link gone",
            Why::KernelSilent => "kernel silent",
            Why::BusyTooLong => "busy too long",
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Send a heartbeat.
    Ask(ArmorId, u64),
    /// Say how its link is: [`Watch::link_state`].
    LookAtLink(ArmorId),
    Failed(ArmorId, Duration, Why),
    Back(ArmorId),
}

/// How a node's link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkState {
    pub(super) linked: bool,
    /// How long ago the peer's kernel acknowledged something, when that is known.
    pub(super) acknowledged: Option<Duration>,
    /// Whether something waits for an acknowledgement.
    pub(super) unacknowledged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Alive,
    /// Its kernel acknowledges, its daemon is silent.
    Busy,
    Failed,
}

pub(super) struct Node {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) round_trip: Option<Duration>,
    /// Its last word.
    heard: Instant,
    /// From when its silence counts: its last word, or something later that excuses it.
    counts_from: Instant,
    /// When its link is looked at.
    look_at: Instant,
    looking: bool,
    /// Whether the end of its link was taken for a sign of life since it was heard.
    excused: bool,
    /// An earlier life of this ARMOR had told its failure.
    told_failed: bool,
}

pub(super) struct Watch {
    timing: Timing,
    pub(super) nodes: BTreeMap<ArmorId, Node>,
    sequence: u64,
    beats: u64,
    beat_at: Instant,
    sent: VecDeque<(u64, Instant)>,
    acts: VecDeque<Act>,
}

impl Watch {
    pub(super) fn new(timing: Timing, now: Instant) -> Watch {
        let (nodes, sent, acts) = (BTreeMap::new(), VecDeque::new(), VecDeque::new());
        Watch { timing, nodes, sequence: 0, beats: 0, beat_at: now + timing.interval, sent, acts }
    }

    /// A node that an earlier life of this ARMOR watched.
    pub(super) fn restored(&mut self, armor: ArmorId, name: String, told_failed: bool, now: Instant) {
        let node = self.node(armor, &name, now);
        node.told_failed = told_failed;
    }

    fn node(&mut self, armor: ArmorId, name: &str, now: Instant) -> &mut Node {
        let limit = self.timing.limit;
        self.nodes.entry(armor).or_insert_with(|| Node {
            name: name.to_owned(),
            state: State::Alive,
            round_trip: None,
            heard: now,
            counts_from: now,
            look_at: now + limit,
            looking: false,
            excused: false,
            told_failed: false,
        })
    }

    /// A daemon has registered: it lives. It is asked at once: one that had failed is back when it answers, and one that needs a lease gets it.
    pub(super) fn registered(&mut self, armor: ArmorId, name: &str, now: Instant) {
        let limit = self.timing.limit;
        let node = self.node(armor, name, now);
        if node.state != State::Failed {
            node.hear(now, limit);
        }
        self.ask(armor, now);
    }

    pub(super) fn replied(&mut self, armor: ArmorId, sequence: u64, now: Instant) {
        let Some(node) = self.nodes.get_mut(&armor) else { return };
        if let Some((_, sent)) = self.sent.iter().find(|(number, _)| *number == sequence) {
            node.round_trip = Some(now.saturating_duration_since(*sent));
        }
        self.spoke(armor, now);
    }

    /// A node is heard, and has not failed any more. Says whether it is watched.
    pub(super) fn spoke(&mut self, armor: ArmorId, now: Instant) -> bool {
        let limit = self.timing.limit;
        let Some(node) = self.nodes.get_mut(&armor) else { return false };
        node.hear(now, limit);
        let had_failed = node.state == State::Failed || node.told_failed;
        node.state = State::Alive;
        node.told_failed = false;
        if had_failed {
            self.acts.push_back(Act::Back(armor));
        }
        true
    }

    /// No failure is told before a node has been silent for so long.
    pub(super) fn limit(&self) -> Duration {
        self.timing.limit
    }

    /// The own link to a node has ended.
    pub(super) fn link_lost(&mut self, armor: ArmorId, now: Instant) {
        let limit = self.timing.limit;
        let Some(node) = self.nodes.get_mut(&armor) else { return };
        if !std::mem::replace(&mut node.excused, true) {
            node.counts_from = now;
            node.look_at = now + limit;
            node.looking = false;
        }
        self.ask(armor, now);
    }

    /// Somebody else has lost his link to a node.
    pub(super) fn doubted(&mut self, armor: ArmorId, now: Instant) {
        if self.nodes.get(&armor).is_some_and(|node| node.state != State::Failed) {
            self.ask(armor, now);
        }
    }

    pub(super) fn link_state(&mut self, armor: ArmorId, link: LinkState, now: Instant) {
        let Timing { interval, limit, busy } = self.timing;
        let Some(node) = self.nodes.get_mut(&armor) else { return };
        if !std::mem::replace(&mut node.looking, false) || node.state == State::Failed {
            return;
        }
        let silent = now.saturating_duration_since(node.counts_from);
        let acknowledged = link.acknowledged.filter(|ago| *ago + KERNEL_TICK < limit);
        let why = match link {
            LinkState { linked: false, .. } => Why::LinkGone,
            LinkState { unacknowledged: true, .. } if acknowledged.is_none() => Why::KernelSilent,
            _ if silent >= busy => Why::BusyTooLong,
            _ => {
                node.state = State::Busy;
                // When the kernel would have been silent for too long, if it says nothing more.
                let kernel = acknowledged.map_or(interval, |ago| limit.saturating_sub(ago));
                node.look_at = now + kernel.clamp(KERNEL_TICK, interval.max(KERNEL_TICK)).min((busy - silent).max(KERNEL_TICK));
                return;
            }
        };
        self.fail(armor, why, now);
    }

    fn fail(&mut self, armor: ArmorId, why: Why, now: Instant) {
        let Some(node) = self.nodes.get_mut(&armor) else { return };
        node.state = State::Failed;
        node.looking = false;
        self.acts.push_back(Act::Failed(armor, now.saturating_duration_since(node.heard), why));
    }

    fn ask(&mut self, armor: ArmorId, now: Instant) {
        self.sequence += 1;
        self.note(now);
        self.acts.push_back(Act::Ask(armor, self.sequence));
    }

    fn note(&mut self, now: Instant) {
        self.sent.push_back((self.sequence, now));
        if self.sent.len() > REMEMBERED {
            self.sent.pop_front();
        }
    }

    /// Time has come to `now`.
    pub(super) fn at(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.due());
        if late > self.timing.interval / 2 {
            // This ARMOR did not run, and has not read what came meanwhile.
            for node in self.nodes.values_mut() {
                node.counts_from += late;
                node.look_at += late;
            }
        }
        if now >= self.beat_at {
            self.beat_at = now + self.timing.interval;
            self.beats += 1;
            self.sequence += 1;
            self.note(now);
            let failed_too = self.beats.is_multiple_of(FAILED_EVERY);
            let asked = self.nodes.iter().filter(|(_, node)| node.state != State::Failed || failed_too);
            self.acts.extend(asked.map(|(armor, _)| Act::Ask(*armor, self.sequence)));
        }
        let due: Vec<ArmorId> =
            self.nodes.iter().filter(|(_, node)| node.state != State::Failed && node.look_at <= now).map(|(armor, _)| *armor).collect();
        for armor in due {
            let Some(node) = self.nodes.get_mut(&armor) else { continue };
            node.look_at = now + self.timing.interval;
            if std::mem::replace(&mut node.looking, true) {
                // Nobody here knows of links.
                self.fail(armor, Why::LinkGone, now);
            } else {
                self.acts.push_back(Act::LookAtLink(armor));
            }
        }
    }

    /// When [`Watch::at`] is to be called next.
    pub(super) fn due(&self) -> Instant {
        let looks = self.nodes.values().filter(|node| node.state != State::Failed).map(|node| node.look_at);
        looks.fold(self.beat_at, Instant::min)
    }

    pub(super) fn act(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    /// Whether a failure was told, also by an earlier life of this ARMOR, and no return since.
    pub(super) fn is_told_failed(node: &Node) -> bool {
        node.state == State::Failed || node.told_failed
    }
}

impl Node {
    fn hear(&mut self, now: Instant, limit: Duration) {
        (self.heard, self.counts_from, self.look_at) = (now, now, now + limit);
        (self.looking, self.excused) = (false, false);
        if self.state == State::Busy {
            self.state = State::Alive;
        }
    }

    pub(super) fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
