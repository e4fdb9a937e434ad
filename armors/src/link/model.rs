//! One direction of an emulated link: packets go in with a time and come out with a time.
//!
//! A packet that goes in, and is not lost at once (blackout, MTU), waits in the drop-tail queue for its transmission at the link's rate. It is lost
//! then (bursty loss, random loss), or travels for the delay and the jitter. Time is passed in as the time since the link's start.
//!
//! Invariants: no clock and no socket; the same seed, settings, packets and times give the same result. Nothing comes out while the link is
//! dark. Packets keep their order but for those that reordering picks. What is held is bounded.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::settings::{Bursts, Queue, Rate, Settings, Share, Span};
use super::trace::Trace;

/// What one direction holds at most, waiting and travelling; what comes on top is dropped as by a full queue.
const MOST_HELD_BYTES: u64 = 64 << 20;
const MOST_HELD_PACKETS: usize = 1 << 16;
/// A queue that is given in time holds two full packets, however slow the link is.
const LEAST_QUEUE_BYTES: u64 = 3_000;

/// What has happened to the packets of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) entered_packets: u64,
    pub(crate) entered_bytes: u64,
    pub(crate) left_packets: u64,
    pub(crate) left_bytes: u64,
    /// By random loss.
    pub(crate) lost: u64,
    /// By the chain of bursty loss.
    pub(crate) lost_in_bursts: u64,
    pub(crate) lost_in_blackouts: u64,
    /// The queue was full.
    pub(crate) queue_dropped: u64,
    /// Larger than the MTU.
    pub(crate) too_large: u64,
    /// Held back so that others could overtake.
    pub(crate) reordered: u64,
    /// Copies, counted beside the originals. They are in `left_packets`, not in `entered_packets`.
    pub(crate) duplicated: u64,
    pub(crate) corrupted: u64,
    /// Bytes that waited for transmission, at most.
    pub(crate) longest_queue_bytes: u64,
}

/// A packet on its way, ordered by when it comes out, then by when it was sent.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Travelling {
    due: Duration,
    number: u64,
    packet: Vec<u8>,
}

/// See the head of this file.
pub(crate) struct Direction {
    random: StdRng,
    settings: Settings,
    trace: Option<Trace>,
    /// The chain of bursty loss is in its bad state.
    bad: bool,
    /// Blackouts beyond the schedule: from, until.
    dark: Option<(Duration, Duration)>,
    waiting: VecDeque<(Duration, Vec<u8>)>,
    waiting_bytes: u64,
    /// The packet in transmission has left the transmitter at this time.
    free_at: Duration,
    travelling: BinaryHeap<Reverse<Travelling>>,
    held_bytes: u64,
    sent: u64,
    /// When the last packet that keeps the order comes out.
    last_due: Duration,
    counts: Counts,
}

impl Direction {
    pub(crate) fn new(settings: Settings, trace: Option<Trace>, seed: u64) -> Direction {
        Direction {
            random: StdRng::seed_from_u64(seed),
            settings,
            trace,
            bad: false,
            dark: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            free_at: Duration::ZERO,
            travelling: BinaryHeap::new(),
            held_bytes: 0,
            sent: 0,
            last_due: Duration::ZERO,
            counts: Counts::default(),
        }
    }

    /// From now on. What a trace says wins over the settings while it plays.
    pub(crate) fn change(&mut self, now: Duration, change: Settings) {
        self.transmit(now);
        self.settings = change.over(std::mem::take(&mut self.settings));
    }

    /// Dark from now on for this long; [`Duration::MAX`] for until it is changed, zero ends it.
    pub(crate) fn darken(&mut self, now: Duration, length: Duration) {
        self.dark = Some((now, now.saturating_add(length)));
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A packet goes in.
    pub(crate) fn enter(&mut self, now: Duration, mut packet: Vec<u8>) {
        self.transmit(now);
        let bytes = packet.len() as u64;
        self.counts.entered_packets += 1;
        self.counts.entered_bytes += bytes;
        if self.settings.mtu.is_some_and(|mtu| packet.len() > mtu) {
            self.counts.too_large += 1;
            return;
        }
        if self.is_dark(now) {
            self.counts.lost_in_blackouts += 1;
            return;
        }
        if self.chance(self.settings.corrupt) && !packet.is_empty() {
            let bit = self.random.random_range(0..packet.len() * 8);
            packet[bit / 8] ^= 1 << (bit % 8);
            self.counts.corrupted += 1;
        }
        let copy = self.chance(self.settings.duplicate).then(|| packet.clone());
        if !self.wait(now, packet) {
            self.counts.queue_dropped += 1;
            return;
        }
        if let Some(copy) = copy
            && self.wait(now, copy)
        {
            self.counts.duplicated += 1;
        }
        self.transmit(now);
    }

    /// The next packet that has come out by now.
    pub(crate) fn leave(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.transmit(now);
        while let Some(Reverse(first)) = self.travelling.peek()
            && first.due <= now
        {
            let due = first.due;
            let Some(Reverse(Travelling { packet, .. })) = self.travelling.pop() else { break };
            self.held_bytes -= packet.len() as u64;
            if self.is_dark(due) {
                self.counts.lost_in_blackouts += 1;
                continue;
            }
            self.counts.left_packets += 1;
            self.counts.left_bytes += packet.len() as u64;
            return Some(packet);
        }
        None
    }

    /// When to ask again: something comes out, or a transmission can begin.
    pub(crate) fn next(&self, now: Duration) -> Option<Duration> {
        let out = self.travelling.peek().map(|Reverse(first)| first.due);
        let begins = self.waiting.front().map(|(came, _)| {
            let from = self.free_at.max(*came);
            if from <= now && self.rate(now) == Some(0) {
                // Only a trace ends this by itself.
                self.trace.as_ref().map_or(Duration::MAX, |trace| trace.next_change(now))
            } else {
                from
            }
        });
        [out, begins].into_iter().flatten().min()
    }

    /// Puts a packet into the queue, if there is room.
    fn wait(&mut self, now: Duration, packet: Vec<u8>) -> bool {
        let bytes = packet.len() as u64;
        let held = self.waiting.len() + self.travelling.len();
        if held >= MOST_HELD_PACKETS || self.held_bytes + bytes > MOST_HELD_BYTES {
            return false;
        }
        let room = match (self.rate(now), self.settings.queue.unwrap_or(Queue::Span(Duration::from_millis(100)))) {
            (None, _) => u64::MAX,
            (Some(_), Queue::Bytes(bytes)) => bytes,
            (Some(bits), Queue::Span(span)) => ((bits as f64 / 8.0 * span.as_secs_f64()) as u64).max(LEAST_QUEUE_BYTES),
        };
        // A link that is idle takes a packet whatever the queue holds: it is not queued.
        let idle = self.waiting.is_empty() && self.free_at <= now;
        if !idle && self.waiting_bytes + bytes > room {
            return false;
        }
        self.held_bytes += bytes;
        self.waiting_bytes += bytes;
        self.waiting.push_back((now, packet));
        if !idle {
            self.counts.longest_queue_bytes = self.counts.longest_queue_bytes.max(self.waiting_bytes);
        }
        true
    }

    /// Begins every transmission that can begin by now, each at the rate of the time when it begins.
    fn transmit(&mut self, now: Duration) {
        while let Some((came, _)) = self.waiting.front() {
            let mut begin = self.free_at.max(*came);
            while begin <= now && self.rate(begin) == Some(0) {
                let Some(trace) = &self.trace else {
                    // The rate was set to nothing, and nothing says when that ends. What waits begins when it has ended.
                    self.free_at = self.free_at.max(now);
                    return;
                };
                begin = trace.next_change(begin);
            }
            if begin > now {
                self.free_at = self.free_at.max(begin);
                return;
            }
            let Some((_, packet)) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= packet.len() as u64;
            let takes = match self.rate(begin) {
                Some(bits) => Duration::from_nanos((packet.len() as u64 * 8).saturating_mul(1_000_000_000) / bits.max(1)),
                None => Duration::ZERO,
            };
            self.free_at = begin + takes;
            self.travel(begin, packet);
        }
    }

    /// The packet was in transmission from `begin` until now. One that is lost has taken the time of its transmission, as on the air.
    fn travel(&mut self, begin: Duration, packet: Vec<u8>) {
        let loss = self.trace.as_ref().and_then(|trace| trace.at(begin).loss).or(self.settings.loss);
        let lost = if self.burst_takes() {
            Some(&mut self.counts.lost_in_bursts)
        } else if self.chance(loss) {
            Some(&mut self.counts.lost)
        } else {
            None
        };
        if let Some(counter) = lost {
            *counter += 1;
            self.held_bytes -= packet.len() as u64;
            return;
        }
        let from = self.free_at;
        let traced = self.trace.as_ref().and_then(|trace| trace.at(from).delay);
        let mut due = from + traced.or(self.settings.delay).unwrap_or_default().0;
        if let Some(Span(jitter)) = self.settings.jitter
            && !jitter.is_zero()
        {
            due += jitter.mul_f64(self.random.random::<f64>());
        }
        if self.chance(self.settings.reorder) {
            self.counts.reordered += 1;
            due += self.settings.reorder_by.map_or(Duration::from_millis(5), |by| by.0);
        } else {
            due = due.max(self.last_due);
            self.last_due = due;
        }
        self.sent += 1;
        self.travelling.push(Reverse(Travelling { due, number: self.sent, packet }));
    }

    fn rate(&self, at: Duration) -> Option<u64> {
        let traced = self.trace.as_ref().and_then(|trace| trace.at(at).rate);
        traced.or(self.settings.rate).and_then(|Rate(bits)| bits)
    }

    fn is_dark(&self, at: Duration) -> bool {
        let within = |(from, until): (Duration, Duration)| from <= at && at < until;
        let scheduled = self.settings.blackout.as_ref();
        self.dark.is_some_and(within)
            || scheduled.is_some_and(|schedule| schedule.0.iter().any(|(start, length)| within((*start, *start + *length))))
    }

    fn burst_takes(&mut self) -> bool {
        let Some(Bursts { to_bad, to_good, bad_loss, good_loss }) = self.settings.burst_loss else { return false };
        let leaves = if self.bad { to_good } else { to_bad };
        if self.chance(Some(Share(leaves))) {
            self.bad = !self.bad;
        }
        self.chance(Some(Share(if self.bad { bad_loss } else { good_loss })))
    }

    fn chance(&mut self, share: Option<Share>) -> bool {
        share.is_some_and(|Share(share)| share > 0.0 && self.random.random::<f64>() < share)
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
