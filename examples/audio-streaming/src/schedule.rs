//! When each packet of a stream is due: packet `k` at `start + k · 20 ms`, an absolute play-out clock.
//!
//! Because the clock begins with the client's start and not with the server's, a server that
//! comes late (it was started anew, or the machine was busy) owes everything that is past due at
//! once and is back in real time after that.
//!
//! Invariant: no clock is read here; everything is a function of the time since the start.

use std::ops::Range;
use std::time::Duration;

use crate::wav::StreamHeader;

/// Length of the audio in one packet, in milliseconds.
pub const PACKET_MS: u32 = 20;

/// The plan of one stream: which bytes are in packet `k`, and when it is due.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    header: StreamHeader,
    interval_ns: u64,
    packets: u64,
}

impl Schedule {
    /// The plan for a stream that is played `speed` times as fast as real time. A speed that is
    /// not positive counts as 1.
    pub fn new(header: StreamHeader, speed: f64) -> Self {
        let speed = if speed > 0.0 { speed } else { 1.0 };
        let interval_ns = (f64::from(PACKET_MS) * 1e6 / speed).round().max(1.0) as u64;
        let per_second = u64::from(1000 / PACKET_MS);
        let packets = (header.frames() * per_second).div_ceil(u64::from(header.format.sample_rate));
        Self { header, interval_ns, packets }
    }

    /// Number of packets; the last may be shorter than the others.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Time between two packets.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval_ns)
    }

    /// Time after the start at which packet `k` is due.
    pub fn due(&self, k: u64) -> Duration {
        Duration::from_nanos(self.interval_ns.saturating_mul(k))
    }

    /// How many packets are due when `elapsed` has passed since the start: packet 0 at once.
    pub fn packets_due(&self, elapsed: Duration) -> u64 {
        let passed = elapsed.as_nanos() / u128::from(self.interval_ns);
        u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1).min(self.packets)
    }

    /// The bytes of packets `from..to` as a range of the payload (which begins after the head).
    pub fn payload_range(&self, packets: Range<u64>) -> Range<u64> {
        self.packet_start(packets.start)..self.packet_start(packets.end)
    }

    /// Offset in the payload at which packet `k` begins; the length of the payload past the last.
    pub fn packet_start(&self, k: u64) -> u64 {
        if k >= self.packets {
            return self.header.payload_len();
        }
        let frames = k * u64::from(self.header.format.sample_rate) * u64::from(PACKET_MS) / 1000;
        frames * u64::from(self.header.format.frame_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wav::AudioFormat;

    fn schedule(rate: u32, bits: u16, frames: u32, speed: f64) -> Schedule {
        let format = AudioFormat::new(rate, 1, bits).unwrap();
        Schedule::new(StreamHeader { format, data_len: frames * format.frame_bytes() }, speed)
    }

    #[test]
    fn packet_k_is_due_at_k_times_20_ms_and_not_before() {
        let plan = schedule(16_000, 16, 16_000, 1.0);
        assert_eq!(plan.packets(), 50);
        assert_eq!(plan.packets_due(Duration::ZERO), 1);
        for k in 1..50 {
            assert_eq!(plan.due(k), Duration::from_millis(20 * k));
            assert_eq!(plan.packets_due(plan.due(k) - Duration::from_nanos(1)), k);
            assert_eq!(plan.packets_due(plan.due(k)), k + 1);
        }
    }

    #[test]
    fn a_late_server_owes_all_that_is_past_and_never_more_than_there_is() {
        let plan = schedule(16_000, 16, 16_000, 1.0);
        assert_eq!(plan.packets_due(Duration::from_millis(500)), 26);
        assert_eq!(plan.packets_due(Duration::from_secs(1 << 40)), 50);
    }

    #[test]
    fn packets_cover_the_payload_without_hole_for_any_rate() {
        for rate in [8_000, 11_025, 16_000, 22_050, 44_100] {
            for frames in [0, 1, 159, 160, 161, 10_001] {
                let plan = schedule(rate, 8, frames, 1.0);
                let mut end = 0;
                for k in 0..plan.packets() {
                    let range = plan.payload_range(k..k + 1);
                    assert_eq!(range.start, end);
                    assert!(range.end > range.start, "packet {k} of {frames} at {rate} is empty");
                    end = range.end;
                }
                assert_eq!(end, u64::from(frames + frames % 2));
            }
        }
    }

    #[test]
    fn speed_shortens_the_interval() {
        assert_eq!(schedule(16_000, 16, 16_000, 4.0).due(10), Duration::from_millis(50));
        assert_eq!(schedule(16_000, 16, 16_000, 1e12).interval(), Duration::from_nanos(1));
        assert_eq!(schedule(16_000, 16, 16_000, f64::NAN).interval(), Duration::from_millis(20));
    }
}
