//! Discovery of the path's MTU by packets that are as long as is asked (RFC 8899), and falling back when long ones vanish.

use std::time::{Duration, Instant};

use super::config::MIN_DATAGRAM;

/// Probes of one size that must be lost before it is too long (RFC 8899 §5.1.2, MAX_PROBES).
const MAX_PROBES: u32 = 3;
/// The search ends when it is this exact, in bytes.
const EXACT: usize = 16;
/// A longer one is looked for again after this time (RFC 8899 §5.1.1, PMTU_RAISE_TIMER).
const RAISE: Duration = Duration::from_secs(600);
/// Long packets lost one after another, none acknowledged, after which there is a black hole.
const BLACK_HOLE: u32 = 8;

#[derive(Debug)]
pub(super) struct Mtu {
    current: usize,
    /// Shorter than what is known to be too long.
    too_long: usize,
    most: usize,
    probing: Option<usize>,
    in_flight: bool,
    failures: u32,
    search_at: Option<Instant>,
    long_lost: u32,
}

impl Mtu {
    pub(super) fn new(most: usize) -> Self {
        let mut mtu = Self {
            current: MIN_DATAGRAM,
            too_long: most + 1,
            most,
            probing: None,
            in_flight: false,
            failures: 0,
            search_at: None,
            long_lost: 0,
        };
        // Most paths pass what the configuration says, so that is asked first.
        mtu.probing = (most > MIN_DATAGRAM).then_some(most);
        mtu
    }

    /// Longest datagram that may be sent, in bytes of UDP payload.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// Size of the probe that should be sent now.
    pub(super) fn probe(&mut self, now: Instant) -> Option<usize> {
        if self.search_at.is_some_and(|at| now >= at) {
            self.search_at = None;
            self.too_long = self.most + 1;
            self.failures = 0;
            self.probing = (self.most > self.current).then_some(self.most);
        }
        self.probing.filter(|_| !self.in_flight)
    }

    pub(super) fn probe_sent(&mut self) {
        self.in_flight = true;
    }

    pub(super) fn probe_acknowledged(&mut self, now: Instant, size: usize) {
        self.in_flight = false;
        self.failures = 0;
        self.long_lost = 0;
        if size > self.current && size < self.too_long {
            self.current = size;
        }
        self.search_on(now);
    }

    pub(super) fn probe_lost(&mut self, now: Instant, size: usize) {
        self.in_flight = false;
        if self.probing != Some(size) {
            return;
        }
        self.failures += 1;
        if self.failures >= MAX_PROBES {
            self.failures = 0;
            self.too_long = size;
            self.search_on(now);
        }
    }

    fn search_on(&mut self, now: Instant) {
        self.probing = (self.too_long - self.current > EXACT).then(|| self.current + (self.too_long - self.current) / 2);
        if self.probing.is_none() {
            self.search_at = Some(now + RAISE);
        }
    }

    pub(super) fn acknowledged(&mut self, size: usize) {
        if size > MIN_DATAGRAM {
            self.long_lost = 0;
        }
    }

    /// A packet that was no probe was lost.
    pub(super) fn lost(&mut self, size: usize) {
        if size > MIN_DATAGRAM {
            self.long_lost = self.long_lost.saturating_add(1);
        }
    }

    /// Something short has come through. If long packets do not, falls back and searches again; true then.
    pub(super) fn short_acknowledged(&mut self) -> bool {
        if self.current == MIN_DATAGRAM || self.long_lost < BLACK_HOLE {
            return false;
        }
        *self = Self::new(self.most);
        true
    }
}
