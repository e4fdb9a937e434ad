//! What was sent and what became of it (RFC 9002 §6): acknowledged, lost, or unknown.
//!
//! Invariant: at most [`MAX_TRACKED`] packets are remembered.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::congestion::Stamp;
use super::outbound::Fragment;
use super::ranges::RangeSet;
use super::rtt::GRANULARITY;

/// Packets remembered at once; the window is smaller.
pub(super) const MAX_TRACKED: usize = 65_536;
/// RFC 9002 §6.1.1.
const REORDER_PACKETS: u64 = 3;
/// The threshold never grows beyond it.
const MAX_REORDER_PACKETS: u64 = 256;
/// Spurious losses are forgotten, by half, after this long without one.
const REORDER_MEMORY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nobody acknowledges it by itself, or nothing depends on it.
    Unwatched,
    InFlight,
    Lost,
    Acknowledged,
}

/// What a packet has carried besides fragments, that something depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cargo {
    pub(super) window: bool,
    pub(super) mtu_probe: bool,
}

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) at: Instant,
    pub(super) size: u16,
    fate: Fate,
    pub(super) cargo: Cargo,
    fragments: Range<u64>,
    pub(super) stamp: Stamp,
}

/// A packet whose fate was told, for whom it concerns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) number: u64,
    pub(super) at: Instant,
    pub(super) size: u16,
    pub(super) cargo: Cargo,
    pub(super) stamp: Stamp,
    /// It had been taken for lost, and was not.
    pub(super) spurious: bool,
}

#[derive(Debug)]
pub(super) struct SentLog {
    base: u64,
    packets: VecDeque<Sent>,
    fragments_base: u64,
    fragments: VecDeque<Fragment>,
    acknowledged: RangeSet,
    /// All below it is acknowledged or lost.
    decided: u64,
    in_flight: u64,
    reorder_packets: u64,
    /// Eighths of a round trip beyond which a packet is lost; 9 by RFC 9002 §6.1.2.
    reorder_eighths: u32,
    last_spurious: Option<Instant>,
}

impl SentLog {
    pub(super) fn new() -> Self {
        Self {
            base: 0,
            packets: VecDeque::new(),
            fragments_base: 0,
            fragments: VecDeque::new(),
            acknowledged: RangeSet::default(),
            decided: 0,
            in_flight: 0,
            reorder_packets: REORDER_PACKETS,
            reorder_eighths: 9,
            last_spurious: None,
        }
    }

    /// The number of the next packet.
    pub(super) fn next_number(&self) -> u64 {
        self.base + self.packets.len() as u64
    }

    /// Bytes sent whose fate is unknown.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(super) fn is_full(&self) -> bool {
        self.packets.len() >= MAX_TRACKED
    }

    /// Adds a fragment to the packet that [`SentLog::sent`] is about to tell of.
    pub(super) fn carry(&mut self, fragment: Fragment) {
        self.fragments.push_back(fragment);
    }

    /// A packet leaves with `fragments` that were [carried](SentLog::carry). `eliciting` ones are watched.
    pub(super) fn sent(&mut self, at: Instant, size: u16, eliciting: bool, cargo: Cargo, fragments: u64, stamp: Stamp) {
        let end = self.fragments_base + self.fragments.len() as u64;
        let fate = if eliciting { Fate::InFlight } else { Fate::Unwatched };
        if eliciting {
            self.in_flight += u64::from(size);
        }
        self.packets.push_back(Sent { at, size, fate, cargo, fragments: end - fragments..end, stamp });
    }

    fn index(&self, number: u64) -> Option<usize> {
        let index = number.checked_sub(self.base)? as usize;
        (index < self.packets.len()).then_some(index)
    }

    fn fragments_of(fragments: &VecDeque<Fragment>, base: u64, range: &Range<u64>) -> impl Iterator<Item = Fragment> {
        let (start, end) = (range.start.saturating_sub(base) as usize, range.end.saturating_sub(base) as usize);
        fragments.range(start.min(fragments.len())..end.min(fragments.len())).cloned()
    }

    /// The peer has acknowledged `range`, whose end is at most [`SentLog::next_number`]. Tells of each packet that was not known to be, in
    /// ascending order, with its fragments.
    pub(super) fn acknowledge(&mut self, range: Range<u64>, now: Instant, mut tell: impl FnMut(Told), mut arrived: impl FnMut(&Fragment)) {
        let range = range.start.max(self.base)..range.end;
        if range.is_empty() {
            return;
        }
        let mut new = Vec::new();
        self.acknowledged.insert_telling(range, |part| new.push(part));
        let largest = self.acknowledged.end();
        for number in new.into_iter().flatten() {
            let Some(index) = self.index(number) else { continue };
            let sent = &mut self.packets[index];
            let was = std::mem::replace(&mut sent.fate, Fate::Acknowledged);
            match was {
                Fate::Unwatched | Fate::Acknowledged => {}
                Fate::InFlight => self.in_flight -= u64::from(sent.size),
                Fate::Lost => {
                    // It was only late (RFC 9002 §6.1.1 allows to adapt).
                    self.reorder_packets = self.reorder_packets.max((largest - number).min(MAX_REORDER_PACKETS));
                    self.reorder_eighths = (self.reorder_eighths + 1).min(16);
                    self.last_spurious = Some(now);
                }
            }
            let told = Told { number, at: sent.at, size: sent.size, cargo: sent.cargo, stamp: sent.stamp, spurious: was == Fate::Lost };
            for fragment in Self::fragments_of(&self.fragments, self.fragments_base, &sent.fragments) {
                arrived(&fragment);
            }
            if was != Fate::Unwatched {
                tell(told);
            }
        }
    }

    /// Finds what is lost: what was sent enough packets or time before something that was acknowledged. Returns when the next one is.
    pub(super) fn detect(
        &mut self,
        now: Instant,
        rtt: Duration,
        mut tell: impl FnMut(Told),
        mut lost: impl FnMut(&Fragment),
    ) -> Option<Instant> {
        if self.last_spurious.is_some_and(|at| now.saturating_duration_since(at) > REORDER_MEMORY) {
            self.reorder_packets = (self.reorder_packets / 2).max(REORDER_PACKETS);
            self.reorder_eighths = (self.reorder_eighths - (self.reorder_eighths - 9).div_ceil(2)).max(9);
            self.last_spurious = (self.reorder_packets > REORDER_PACKETS || self.reorder_eighths > 9).then_some(now);
        }
        let patience = (rtt * self.reorder_eighths / 8).max(GRANULARITY);
        let largest = self.acknowledged.end();
        self.decided = self.decided.max(self.base);
        let mut next = None;
        let mut all_decided = true;
        for number in self.decided..largest {
            let Some(index) = self.index(number) else { break };
            let sent = &mut self.packets[index];
            if sent.fate == Fate::InFlight {
                if largest - number > self.reorder_packets || sent.at + patience <= now {
                    sent.fate = Fate::Lost;
                    self.in_flight -= u64::from(sent.size);
                    tell(Told { number, at: sent.at, size: sent.size, cargo: sent.cargo, stamp: sent.stamp, spurious: false });
                    for fragment in Self::fragments_of(&self.fragments, self.fragments_base, &sent.fragments) {
                        lost(&fragment);
                    }
                } else {
                    next = next.or(Some(sent.at + patience));
                    all_decided = false;
                }
            }
            if all_decided {
                self.decided = number + 1;
            }
        }
        self.forget(now, rtt);
        next
    }

    /// Takes all that is under way for lost: nobody answers.
    pub(super) fn give_up_all(&mut self, now: Instant, rtt: Duration, mut tell: impl FnMut(Told), mut lost: impl FnMut(&Fragment)) {
        let first = self.decided.max(self.base);
        for number in first..self.next_number() {
            let Some(index) = self.index(number) else { break };
            let sent = &mut self.packets[index];
            if sent.fate == Fate::InFlight {
                sent.fate = Fate::Lost;
                self.in_flight -= u64::from(sent.size);
                tell(Told { number, at: sent.at, size: sent.size, cargo: sent.cargo, stamp: sent.stamp, spurious: false });
                for fragment in Self::fragments_of(&self.fragments, self.fragments_base, &sent.fragments) {
                    lost(&fragment);
                }
            }
        }
        self.forget(now, rtt);
    }

    /// Requeues the content of the packet that waits longest, which stays in flight.
    pub(super) fn oldest_in_flight(&self, mut again: impl FnMut(&Fragment)) {
        if let Some(sent) = self.packets.iter().find(|sent| sent.fate == Fate::InFlight && !sent.fragments.is_empty()) {
            for fragment in Self::fragments_of(&self.fragments, self.fragments_base, &sent.fragments) {
                again(&fragment);
            }
        }
    }

    /// Lets go of the oldest: what is acknowledged, and what is lost for so long that no late acknowledgement is to be expected.
    pub(super) fn forget(&mut self, now: Instant, rtt: Duration) {
        let memory = rtt * 3;
        while let Some(sent) = self.packets.front() {
            let done = match sent.fate {
                Fate::Acknowledged => true,
                Fate::InFlight => false,
                Fate::Unwatched => self.base < self.decided || sent.at + memory <= now,
                Fate::Lost => sent.at + memory <= now || self.packets.len() > MAX_TRACKED / 2,
            };
            if !done {
                break;
            }
            let gone = (sent.fragments.end - self.fragments_base.min(sent.fragments.end)) as usize;
            self.fragments.drain(..gone.min(self.fragments.len()));
            self.fragments_base = self.fragments_base.max(sent.fragments.end);
            self.packets.pop_front();
            self.base += 1;
        }
        self.acknowledged.remove(0..self.base.min(self.acknowledged.end().saturating_sub(1)));
    }
}
