//! Congestion control in the manner of BBR (draft-cardwell-iccrg-bbr-congestion-control): the path is modelled by its bottleneck's bandwidth
//! and its round-trip time without queues, and sending is paced by the model. Loss alone says nothing, as it is what radio does; loss
//! together with a queue does.
//!
//! Rates are bytes per second.

use std::time::{Duration, Instant};

use super::config::MIN_DATAGRAM;

/// What a packet remembers for the sample of the delivery rate that its acknowledgement gives (draft-cheng-iccrg-delivery-rate-estimation).
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    sent_at: Instant,
    app_limited: bool,
}

/// 2 / ln 2: doubles the rate in each round.
const STARTUP_GAIN: f64 = 2.89;
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
const WINDOW_GAIN: f64 = 2.0;
/// Rounds over which the greatest bandwidth counts.
const BANDWIDTH_ROUNDS: u64 = 10;
/// How long the lowest round-trip time counts.
const LOWEST_RTT_MEMORY: Duration = Duration::from_secs(10);
const PROBE_RTT: Duration = Duration::from_millis(200);
const INITIAL_WINDOW: u64 = 32 * MIN_DATAGRAM as u64;
const LEAST_WINDOW: u64 = 4 * MIN_DATAGRAM as u64;
const MOST_WINDOW: u64 = 40_000 * MIN_DATAGRAM as u64;
/// Rate that is assumed before there is a sample: the initial window in 20 ms.
const INITIAL_RTT: Duration = Duration::from_millis(20);
/// More ambient loss than this is not made good by sending more.
const MOST_AMBIENT_LOSS: f64 = 0.25;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Startup,
    Drain,
    ProbeBandwidth,
    ProbeRtt,
}

/// The greatest of the samples of some rounds: the best three of Kathleen Nichols' filter.
#[derive(Debug, Clone, Copy, Default)]
struct Greatest {
    best: [(u64, f64); 3],
}

impl Greatest {
    fn update(&mut self, round: u64, value: f64) {
        let sample = (round, value);
        if value >= self.best[0].1 || round.saturating_sub(self.best[2].0) > BANDWIDTH_ROUNDS {
            self.best = [sample; 3];
            return;
        }
        if value >= self.best[1].1 {
            self.best[1] = sample;
            self.best[2] = sample;
        } else if value >= self.best[2].1 {
            self.best[2] = sample;
        }
        if round - self.best[0].0 > BANDWIDTH_ROUNDS {
            self.best = [self.best[1], self.best[2], sample];
            if round - self.best[0].0 > BANDWIDTH_ROUNDS {
                self.best = [self.best[1], sample, sample];
            }
        } else if self.best[1] == self.best[0] && round - self.best[0].0 > BANDWIDTH_ROUNDS / 4 {
            self.best[1] = sample;
            self.best[2] = sample;
        } else if self.best[2] == self.best[1] && round - self.best[0].0 > BANDWIDTH_ROUNDS / 2 {
            self.best[2] = sample;
        }
    }

    fn value(&self) -> f64 {
        self.best[0].1
    }
}

#[derive(Debug)]
pub(super) struct Bbr {
    mode: Mode,
    bandwidth: Greatest,
    lowest_rtt: Option<Duration>,
    lowest_rtt_at: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    /// `delivered` beyond which samples are no longer limited by the owner; 0 when they are not.
    app_limited_until: u64,
    round: u64,
    round_ends: u64,
    round_lowest_rtt: Duration,
    round_delivered: u64,
    round_lost: u64,
    full_bandwidth: f64,
    full_rounds: u32,
    filled: bool,
    cycle: usize,
    cycle_at: Instant,
    probe_rtt_until: Option<Instant>,
    probe_rtt_round: u64,
    /// Share of what is lost while there is no queue.
    ambient: f64,
    /// What in flight was too much for the bottleneck's queue.
    too_much: Option<u64>,
    random: u64,
}

/// What one acknowledgement has told.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) acknowledged: u64,
    pub(super) lost: u64,
    /// Stamp of the packet sent last among those acknowledged.
    pub(super) newest: Option<Stamp>,
    pub(super) rtt: Option<Duration>,
}

impl Bbr {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            mode: Mode::Startup,
            bandwidth: Greatest::default(),
            lowest_rtt: None,
            lowest_rtt_at: now,
            delivered: 0,
            delivered_at: now,
            first_sent_at: now,
            app_limited_until: 0,
            round: 0,
            round_ends: 0,
            round_lowest_rtt: Duration::MAX,
            round_delivered: 0,
            round_lost: 0,
            full_bandwidth: 0.0,
            full_rounds: 0,
            filled: false,
            cycle: 2,
            cycle_at: now,
            probe_rtt_until: None,
            probe_rtt_round: 0,
            ambient: 0.0,
            too_much: None,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// A packet leaves while `in_flight` bytes are under way.
    pub(super) fn stamp(&mut self, now: Instant, in_flight: u64) -> Stamp {
        if in_flight == 0 {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        Stamp {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            sent_at: now,
            app_limited: self.app_limited_until != 0,
        }
    }

    /// The owner has nothing to send although the window has room.
    pub(super) fn app_limited(&mut self, in_flight: u64) {
        self.app_limited_until = (self.delivered + in_flight).max(1);
    }

    pub(super) fn acknowledged(&mut self, now: Instant, batch: &Batch, in_flight: u64) {
        self.delivered += batch.acknowledged;
        self.round_delivered += batch.acknowledged;
        self.round_lost += batch.lost;
        if batch.acknowledged > 0 {
            self.delivered_at = now;
        }
        if self.app_limited_until != 0 && self.delivered > self.app_limited_until {
            self.app_limited_until = 0;
        }
        let mut round_start = false;
        if let Some(stamp) = batch.newest {
            self.first_sent_at = self.first_sent_at.max(stamp.sent_at);
            if stamp.delivered >= self.round_ends {
                self.round_ends = self.delivered;
                self.round += 1;
                round_start = true;
            }
            self.sample(now, &stamp);
        }
        if let Some(rtt) = batch.rtt {
            self.round_lowest_rtt = self.round_lowest_rtt.min(rtt);
        }
        if round_start {
            self.end_of_round(in_flight);
        }
        self.update_mode(now, in_flight, round_start);
        if let Some(rtt) = batch.rtt {
            self.update_lowest_rtt(now, rtt);
        }
    }

    fn sample(&mut self, now: Instant, stamp: &Stamp) {
        let sending = stamp.sent_at.saturating_duration_since(stamp.first_sent_at);
        let receiving = now.saturating_duration_since(stamp.delivered_at);
        let interval = sending.max(receiving);
        if interval.is_zero() || self.lowest_rtt.is_some_and(|lowest| interval < lowest) {
            return;
        }
        let rate = self.delivered.saturating_sub(stamp.delivered) as f64 / interval.as_secs_f64();
        if !stamp.app_limited || rate >= self.bandwidth.value() {
            self.bandwidth.update(self.round, rate);
        }
    }

    /// True when this round's round-trip times show a queue.
    fn queue(&self) -> bool {
        let Some(lowest) = self.lowest_rtt else { return false };
        self.round_lowest_rtt != Duration::MAX && self.round_lowest_rtt > lowest + (lowest / 12).max(Duration::from_millis(1))
    }

    fn end_of_round(&mut self, in_flight: u64) {
        let all = self.round_delivered + self.round_lost;
        if all >= 10 * MIN_DATAGRAM as u64 {
            let share = self.round_lost as f64 / all as f64;
            // After a probe has overflowed a short queue there is no delay to show it. So only what is lost while nothing is probed is the path's.
            let probing = match self.mode {
                Mode::Startup | Mode::Drain => true,
                Mode::ProbeBandwidth => self.cycle < 3,
                Mode::ProbeRtt => false,
            };
            if !self.queue() && !probing {
                self.ambient += (share.min(MOST_AMBIENT_LOSS) - self.ambient) / 8.0;
            } else if share > self.ambient * 1.5 + 0.02 && self.mode != Mode::Startup {
                let least = self.product(1.0);
                // Part of what was taken for the path's own loss may be ours.
                self.ambient -= self.ambient / 32.0;
                self.too_much = Some((((in_flight + self.round_lost) as f64 * 0.85) as u64).max(least));
            } else if let Some(too_much) = self.too_much {
                self.too_much =
                    Some(too_much + too_much / 16 + 2 * MIN_DATAGRAM as u64).filter(|limit| *limit < 2 * self.product(WINDOW_GAIN));
            }
        }
        if !self.queue()
            && let Some(too_much) = self.too_much
        {
            self.too_much = Some(too_much + too_much / 16 + 2 * MIN_DATAGRAM as u64).filter(|limit| *limit < 2 * self.product(WINDOW_GAIN));
        }
        self.round_delivered = 0;
        self.round_lost = 0;
        self.round_lowest_rtt = Duration::MAX;
        if !self.filled && self.app_limited_until == 0 {
            if self.bandwidth.value() >= self.full_bandwidth * 1.25 {
                self.full_bandwidth = self.bandwidth.value();
                self.full_rounds = 0;
            } else {
                self.full_rounds += 1;
                self.filled = self.full_rounds >= 3;
            }
        }
    }

    fn update_mode(&mut self, now: Instant, in_flight: u64, round_start: bool) {
        match self.mode {
            Mode::Startup if self.filled => self.mode = Mode::Drain,
            Mode::Drain if in_flight <= self.product(1.0) => self.probe_bandwidth(now),
            Mode::ProbeBandwidth => {
                let lowest = self.lowest_rtt.unwrap_or(INITIAL_RTT);
                let long_enough = now.saturating_duration_since(self.cycle_at) > lowest;
                let gain = CYCLE[self.cycle];
                let next = if gain > 1.0 {
                    let full = in_flight >= self.product(gain) || in_flight + LEAST_WINDOW >= self.window();
                    let limited = full || self.app_limited_until != 0 || now.saturating_duration_since(self.cycle_at) > lowest * 3;
                    long_enough && limited
                } else if gain < 1.0 {
                    long_enough || in_flight <= self.product(1.0)
                } else {
                    long_enough
                };
                if next {
                    self.cycle = (self.cycle + 1) % CYCLE.len();
                    self.cycle_at = now;
                }
            }
            Mode::ProbeRtt => {
                if self.probe_rtt_until.is_none() && in_flight <= self.probe_rtt_window() {
                    self.probe_rtt_until = Some(now + PROBE_RTT);
                    self.probe_rtt_round = self.round;
                }
                if let Some(until) = self.probe_rtt_until
                    && now >= until
                    && (round_start || self.round > self.probe_rtt_round)
                {
                    self.lowest_rtt_at = now;
                    if self.filled { self.probe_bandwidth(now) } else { self.mode = Mode::Startup }
                }
            }
            _ => {}
        }
    }

    fn probe_bandwidth(&mut self, now: Instant) {
        self.mode = Mode::ProbeBandwidth;
        // A cycle begins anywhere but with draining, so that flows that share a bottleneck do not probe together.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.cycle = 2 + (self.random % 6) as usize;
        self.cycle_at = now;
    }

    fn update_lowest_rtt(&mut self, now: Instant, rtt: Duration) {
        let lowest = self.lowest_rtt.unwrap_or(Duration::MAX);
        let expired = now.saturating_duration_since(self.lowest_rtt_at) > LOWEST_RTT_MEMORY;
        if rtt <= lowest {
            self.lowest_rtt = Some(rtt);
            self.lowest_rtt_at = now;
        } else if rtt <= lowest + lowest / 32 {
            // The queue is empty every now and then, so that nothing has to be stopped to measure it.
            self.lowest_rtt_at = now;
        } else if expired && self.mode != Mode::ProbeRtt {
            self.mode = Mode::ProbeRtt;
            self.lowest_rtt = Some(rtt);
            self.probe_rtt_until = None;
        }
    }

    /// `gain` times bandwidth times lowest round-trip time, in bytes.
    fn product(&self, gain: f64) -> u64 {
        let Some(lowest) = self.lowest_rtt.filter(|_| self.bandwidth.value() > 0.0) else {
            return (INITIAL_WINDOW as f64 * gain.max(1.0)) as u64;
        };
        (self.bandwidth.value() * lowest.as_secs_f64() * gain / (1.0 - self.ambient)) as u64
    }

    fn probe_rtt_window(&self) -> u64 {
        self.product(0.5).max(LEAST_WINDOW)
    }

    fn gain(&self) -> f64 {
        match self.mode {
            Mode::Startup => STARTUP_GAIN,
            Mode::Drain => 1.0 / STARTUP_GAIN,
            Mode::ProbeBandwidth => CYCLE[self.cycle],
            Mode::ProbeRtt => 1.0,
        }
    }

    /// Bytes per second at which packets may leave.
    pub(super) fn pace(&self) -> f64 {
        let bandwidth = self.bandwidth.value();
        if bandwidth == 0.0 {
            let rtt = self.lowest_rtt.unwrap_or(INITIAL_RTT).max(Duration::from_millis(1));
            return STARTUP_GAIN * INITIAL_WINDOW as f64 / rtt.as_secs_f64();
        }
        self.gain() * bandwidth / (1.0 - self.ambient)
    }

    /// Bytes that may be in flight.
    pub(super) fn window(&self) -> u64 {
        let window = match self.mode {
            Mode::Startup | Mode::Drain => self.product(STARTUP_GAIN).max(INITIAL_WINDOW),
            Mode::ProbeBandwidth => self.product(WINDOW_GAIN) + 16 * MIN_DATAGRAM as u64,
            Mode::ProbeRtt => self.probe_rtt_window(),
        };
        window.min(self.too_much.unwrap_or(u64::MAX)).clamp(LEAST_WINDOW, MOST_WINDOW)
    }

    /// The bandwidth that the model believes in.
    pub(super) fn bandwidth(&self) -> f64 {
        self.bandwidth.value()
    }
}

/// Lets packets leave at a rate: a bucket. It holds more than leaves at once, so that a driver that wakes up late still keeps the pace.
#[derive(Debug)]
pub(super) struct Pacer {
    credit: f64,
    at: Instant,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Self {
        Self { credit: 10.0 * MIN_DATAGRAM as f64, at: now }
    }

    /// Most bytes that leave at once: two to ten packets, about a millisecond's worth.
    fn burst(rate: f64, datagram: usize) -> f64 {
        (rate / 1000.0).clamp(2.0 * datagram as f64, 10.0 * datagram as f64)
    }

    fn refill(&mut self, now: Instant, rate: f64, datagram: usize) {
        let passed = now.saturating_duration_since(self.at);
        self.credit = (self.credit + rate * passed.as_secs_f64()).min((rate / 400.0).max(Self::burst(rate, datagram)));
        self.at = now;
    }

    /// May a packet leave now?
    pub(super) fn allows(&mut self, now: Instant, rate: f64, datagram: usize) -> bool {
        self.refill(now, rate, datagram);
        self.credit > 0.0
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.credit -= bytes as f64;
    }

    /// When packets may leave again. Not at the first byte of credit but at half a burst, so that few wake-ups send many packets.
    pub(super) fn next(&self, rate: f64, datagram: usize) -> Instant {
        let wanted = Self::burst(rate, datagram) / 2.0 - self.credit;
        self.at + Duration::from_secs_f64((wanted / rate.max(1.0)).clamp(0.000_01, 1.0))
    }
}
