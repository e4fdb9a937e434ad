//! When the bytes of a stream arrived, and what a listener would have heard of it (thesis §6.1:
//! "a delay in the arrival of packets … would be noticed in the form of poor playback quality").
//!
//! Times are durations since the start of playing, given by the caller.
//!
//! Invariant: no clock and no socket here, and memory is bounded: lists end at a limit and say
//! how much they left out; one number is kept for each packet.

use std::time::Duration;

use serde::Serialize;

use crate::schedule::Schedule;

/// Gaps between arrivals longer than this are listed, in milliseconds.
pub const GAP_LISTED_MS: u64 = 60;

/// Pauses of the simulated player shorter than this are nobody's underrun, in milliseconds.
pub const UNDERRUN_TOLERANCE_MS: u64 = 5;

/// Most entries of a list of gaps.
pub const GAPS_LIMIT: usize = 1000;

/// Most entries of the series of arrivals; when there are more, two become one.
pub const SERIES_LIMIT: usize = 2000;

/// First width of an entry of the series of arrivals, in milliseconds.
pub const SERIES_BUCKET_MS: u64 = 100;

/// A time in which nothing arrived.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gap {
    /// When it began, that is when the last bytes before it came, in milliseconds since the start.
    pub at_ms: f64,
    /// How long it was, in milliseconds.
    pub length_ms: f64,
}

impl Gap {
    fn between(from: Duration, to: Duration) -> Self {
        Self { at_ms: millis(from), length_ms: millis(to.saturating_sub(from)) }
    }
}

/// Records arrivals; ask [`ArrivalRecorder::summary`] at the end.
#[derive(Debug)]
pub struct ArrivalRecorder {
    schedule: Schedule,
    playout: Playout,
    arrivals: u64,
    payload: u64,
    first: Option<Duration>,
    last: Option<Duration>,
    longest: Gap,
    gaps: Vec<Gap>,
    gaps_left_out: u64,
    /// How late each whole packet was, in microseconds; negative when it came early.
    lateness_us: Vec<i64>,
    series: Series,
}

impl ArrivalRecorder {
    /// A recorder for a stream of this plan, whose player begins `buffer` after the first packet.
    pub fn new(schedule: Schedule, buffer: Duration) -> Self {
        Self {
            schedule,
            playout: Playout::new(buffer, schedule.interval()),
            arrivals: 0,
            payload: 0,
            first: None,
            last: None,
            longest: Gap { at_ms: 0.0, length_ms: 0.0 },
            gaps: Vec::new(),
            gaps_left_out: 0,
            lateness_us: Vec::new(),
            series: Series::new(),
        }
    }

    /// Takes note of `bytes` of payload that came `at`. Times never go back.
    pub fn arrived(&mut self, at: Duration, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.arrivals += 1;
        self.first.get_or_insert(at);
        if let Some(last) = self.last {
            self.note_gap(Gap::between(last, at));
        }
        self.last = Some(at);
        self.payload += bytes;
        self.series.add(at, bytes);
        while self.packets() < self.schedule.packets() && self.schedule.packet_start(self.packets() + 1) <= self.payload {
            let due = self.schedule.due(self.packets());
            self.lateness_us.push(micros(at) - micros(due));
            self.playout.packet(at);
        }
    }

    fn note_gap(&mut self, gap: Gap) {
        if gap.length_ms > self.longest.length_ms {
            self.longest = gap;
        }
        if gap.length_ms > GAP_LISTED_MS as f64 {
            if self.gaps.len() < GAPS_LIMIT {
                self.gaps.push(gap);
            } else {
                self.gaps_left_out += 1;
            }
        }
    }

    /// Packets that arrived whole.
    pub fn packets(&self) -> u64 {
        self.lateness_us.len() as u64
    }

    /// How late each whole packet was, in microseconds; negative when it came early.
    pub fn lateness_us(&self) -> &[i64] {
        &self.lateness_us
    }

    /// Everything that was found.
    pub fn summary(&self) -> ArrivalSummary {
        let expected_gap_ms = millis(self.schedule.interval());
        ArrivalSummary {
            packets: self.packets(),
            packets_expected: self.schedule.packets(),
            arrivals_total: self.arrivals,
            first_arrival_ms: self.first.map(millis),
            last_arrival_ms: self.last.map(millis),
            expected_gap_ms,
            longest_gap_ms: self.longest.length_ms,
            longest_gap_at_ms: self.longest.at_ms,
            longest_gap_excess_ms: (self.longest.length_ms - expected_gap_ms).max(0.0),
            gap_listed_ms: GAP_LISTED_MS,
            gaps: self.gaps.clone(),
            gaps_left_out: self.gaps_left_out,
            lateness_ms: Lateness::of(&self.lateness_us, self.schedule.interval()),
            playback: self.playout.summary(),
            arrivals: self.series.clone(),
        }
    }
}

/// What [`ArrivalRecorder`] found; part of the report.
#[derive(Debug, Clone, Serialize)]
pub struct ArrivalSummary {
    /// Packets that arrived whole.
    pub packets: u64,
    /// Packets that the stream has.
    pub packets_expected: u64,
    /// Number of times at which bytes arrived.
    pub arrivals_total: u64,
    /// When the first bytes of audio came.
    pub first_arrival_ms: Option<f64>,
    /// When the last bytes of audio came.
    pub last_arrival_ms: Option<f64>,
    /// Time between packets as planned (20 ms at speed 1).
    pub expected_gap_ms: f64,
    /// Longest time between two arrivals.
    pub longest_gap_ms: f64,
    /// When that began.
    pub longest_gap_at_ms: f64,
    /// By how much it was longer than expected.
    pub longest_gap_excess_ms: f64,
    /// Gaps longer than this are in `gaps`.
    pub gap_listed_ms: u64,
    /// Long gaps in the order of time.
    pub gaps: Vec<Gap>,
    /// How many more there were.
    pub gaps_left_out: u64,
    /// Lateness of packets.
    pub lateness_ms: Lateness,
    /// What a player would have done.
    pub playback: PlayoutSummary,
    /// Bytes over time.
    pub arrivals: Series,
}

/// How late packets were against the time at which they were due (`start + k · 20 ms`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Lateness {
    /// Mean in milliseconds.
    pub mean: f64,
    /// Half of the packets were no later.
    pub p50: f64,
    /// 95 of 100 packets were no later.
    pub p95: f64,
    /// 99 of 100 packets were no later.
    pub p99: f64,
    /// The latest one.
    pub max: f64,
    /// How many packets were later than the length of one packet.
    pub over_one_packet: u64,
}

impl Lateness {
    fn of(lateness_us: &[i64], interval: Duration) -> Self {
        let mut sorted = lateness_us.to_vec();
        sorted.sort_unstable();
        let rank = |part: f64| {
            let index = (part * sorted.len() as f64).ceil() as usize;
            sorted.get(index.saturating_sub(1)).map_or(0.0, |us| *us as f64 / 1000.0)
        };
        let sum: i64 = sorted.iter().sum();
        Self {
            mean: sum as f64 / 1000.0 / sorted.len().max(1) as f64,
            p50: rank(0.5),
            p95: rank(0.95),
            p99: rank(0.99),
            max: rank(1.0),
            over_one_packet: sorted.iter().filter(|us| **us > micros(interval)).count() as u64,
        }
    }
}

/// A simulated player: it begins some time after the first packet, plays without pause while
/// there are packets, falls silent when there are none, and goes on when one comes.
#[derive(Debug)]
struct Playout {
    buffer: Duration,
    packet: Duration,
    /// Until when there is something to play.
    filled_to: Option<Duration>,
    underruns: u64,
    total: Duration,
    longest: Gap,
}

impl Playout {
    fn new(buffer: Duration, packet: Duration) -> Self {
        let longest = Gap { at_ms: 0.0, length_ms: 0.0 };
        Self { buffer, packet, filled_to: None, underruns: 0, total: Duration::ZERO, longest }
    }

    fn packet(&mut self, at: Duration) {
        let begin = match self.filled_to {
            None => at + self.buffer,
            Some(filled_to) if at <= filled_to => filled_to,
            Some(filled_to) => {
                let silence = at - filled_to;
                if silence > Duration::from_millis(UNDERRUN_TOLERANCE_MS) {
                    self.underruns += 1;
                    self.total += silence;
                    let gap = Gap::between(filled_to, at);
                    if gap.length_ms > self.longest.length_ms {
                        self.longest = gap;
                    }
                }
                at
            }
        };
        self.filled_to = Some(begin + self.packet);
    }

    fn summary(&self) -> PlayoutSummary {
        PlayoutSummary {
            buffer_ms: millis(self.buffer),
            tolerance_ms: UNDERRUN_TOLERANCE_MS,
            underruns: self.underruns,
            underrun_total_ms: millis(self.total),
            longest_underrun_ms: self.longest.length_ms,
            longest_underrun_at_ms: self.longest.at_ms,
        }
    }
}

/// What a player with the stated buffer would have done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PlayoutSummary {
    /// Time between the first packet and the begin of playing; 0: each is played as it arrives.
    pub buffer_ms: f64,
    /// Silences up to this are not counted (a sound card has that much in hand).
    pub tolerance_ms: u64,
    /// Number of silences within the playing.
    pub underruns: u64,
    /// Their length together.
    pub underrun_total_ms: f64,
    /// The longest of them.
    pub longest_underrun_ms: f64,
    /// When that began.
    pub longest_underrun_at_ms: f64,
}

/// Bytes that arrived in each `bucket_ms` of time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Width of an entry in milliseconds.
    pub bucket_ms: u64,
    /// Begin of an entry in milliseconds since the start, and bytes of audio that came in it.
    pub series: Vec<(u64, u64)>,
}

impl Series {
    fn new() -> Self {
        Self { bucket_ms: SERIES_BUCKET_MS, series: Vec::new() }
    }

    fn add(&mut self, at: Duration, bytes: u64) {
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        while at_ms / self.bucket_ms >= SERIES_LIMIT as u64 {
            self.halve();
        }
        let index = (at_ms / self.bucket_ms) as usize;
        while self.series.len() <= index {
            self.series.push((self.series.len() as u64 * self.bucket_ms, 0));
        }
        self.series[index].1 += bytes;
    }

    fn halve(&mut self) {
        self.bucket_ms = self.bucket_ms.saturating_mul(2);
        self.series = self.series.chunks(2).map(|two| (two[0].0, two.iter().map(|entry| entry.1).sum())).collect();
    }
}

/// Milliseconds with three digits after the point.
pub(crate) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wav::{AudioFormat, StreamHeader};

    const PACKET: u64 = 160;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn recorder(packets: u64, buffer: Duration) -> ArrivalRecorder {
        let format = AudioFormat::new(8_000, 1, 8).unwrap();
        let header = StreamHeader { format, data_len: (packets * PACKET) as u32 };
        ArrivalRecorder::new(Schedule::new(header, 1.0), buffer)
    }

    #[test]
    fn packets_in_time_are_no_gap_no_underrun_and_not_late() {
        let mut recorder = recorder(100, Duration::ZERO);
        (0..100).for_each(|k| recorder.arrived(ms(20 * k + 2), PACKET));
        let found = recorder.summary();
        assert_eq!((found.packets, found.packets_expected, found.arrivals_total), (100, 100, 100));
        assert_eq!((found.longest_gap_ms, found.longest_gap_excess_ms), (20.0, 0.0));
        assert!(found.gaps.is_empty());
        assert_eq!(found.playback.underruns, 0);
        assert_eq!((found.lateness_ms.mean, found.lateness_ms.max), (2.0, 2.0));
        assert_eq!(found.arrivals.series[3], (300, 5 * PACKET));
    }

    /// Packets 0 to 49 in time, then nothing until 1500 ms, then all that is past due.
    fn with_outage(buffer: Duration) -> ArrivalSummary {
        let mut recorder = recorder(100, buffer);
        (0..50).for_each(|k| recorder.arrived(ms(20 * k), PACKET));
        recorder.arrived(ms(1500), 26 * PACKET);
        (76..100).for_each(|k| recorder.arrived(ms(20 * k), PACKET));
        recorder.summary()
    }

    #[test]
    fn an_outage_is_one_gap_and_one_underrun() {
        let found = with_outage(Duration::ZERO);
        assert_eq!(found.gaps, [Gap { at_ms: 980.0, length_ms: 520.0 }]);
        assert_eq!((found.longest_gap_at_ms, found.longest_gap_excess_ms), (980.0, 500.0));
        assert_eq!((found.playback.underruns, found.playback.underrun_total_ms), (1, 500.0));
        assert_eq!(found.playback.longest_underrun_at_ms, 1000.0);
        assert_eq!(found.lateness_ms.max, 500.0);
        assert_eq!(found.lateness_ms.over_one_packet, 24);
        assert_eq!(found.arrivals.series[12], (1200, 0));
    }

    #[test]
    fn a_playout_buffer_hides_an_outage_that_is_shorter() {
        assert_eq!(with_outage(ms(600)).playback.underruns, 0);
        let partly = with_outage(ms(300)).playback;
        assert_eq!((partly.underruns, partly.underrun_total_ms), (1, 200.0));
    }

    #[test]
    fn parts_of_packets_count_when_they_are_whole() {
        let mut recorder = recorder(3, Duration::ZERO);
        recorder.arrived(ms(0), PACKET + 10);
        assert_eq!(recorder.packets(), 1);
        recorder.arrived(ms(30), PACKET - 20);
        assert_eq!(recorder.packets(), 1);
        recorder.arrived(ms(45), PACKET + 10);
        assert_eq!(recorder.lateness_us(), [0, 25_000, 5_000]);
        recorder.arrived(ms(50), 999);
        assert_eq!(recorder.packets(), 3, "more than the stream has is no packet");
    }

    #[test]
    fn early_packets_have_negative_lateness() {
        let mut recorder = recorder(3, Duration::ZERO);
        recorder.arrived(ms(10), 3 * PACKET);
        assert_eq!(recorder.lateness_us(), [10_000, -10_000, -30_000]);
    }

    #[test]
    fn gaps_of_60_ms_are_not_listed_and_the_list_is_bounded() {
        let mut recorder = recorder(1, Duration::ZERO);
        recorder.arrived(ms(0), 1);
        recorder.arrived(ms(60), 1);
        assert!(recorder.summary().gaps.is_empty());
        (1..=GAPS_LIMIT as u64 + 5).for_each(|k| recorder.arrived(ms(60 + 61 * k), 1));
        let found = recorder.summary();
        assert_eq!((found.gaps.len(), found.gaps_left_out), (GAPS_LIMIT, 5));
    }

    #[test]
    fn a_long_series_gets_coarser_and_loses_nothing() {
        let mut recorder = recorder(1, Duration::ZERO);
        (0..10_000).for_each(|k| recorder.arrived(ms(100 * k), 3));
        let series = recorder.summary().arrivals;
        assert!(series.series.len() <= SERIES_LIMIT);
        assert_eq!(series.series.iter().map(|entry| entry.1).sum::<u64>(), 30_000);
        assert!(series.series.iter().enumerate().all(|(i, entry)| entry.0 == i as u64 * series.bucket_ms));
    }

    #[test]
    fn nothing_at_all_is_a_summary_too() {
        let found = recorder(5, Duration::ZERO).summary();
        assert_eq!((found.packets, found.first_arrival_ms, found.lateness_ms.mean), (0, None, 0.0));
    }
}
