//! Round-trip time (RFC 9002 §5) and probe timeouts (§6.2), the latter with a cap.

use std::time::Duration;

use super::config::Config;

/// Assumed before there is a sample (RFC 9002 §6.2.2 says 333 ms; links between daemons are faster, and a probe too early costs a packet).
const INITIAL: Duration = Duration::from_millis(100);
/// RFC 9002 §6.1.2.
pub(super) const GRANULARITY: Duration = Duration::from_millis(1);

#[derive(Debug, Clone)]
pub(super) struct Rtt {
    latest: Duration,
    smoothed: Option<Duration>,
    variation: Duration,
    lowest: Duration,
}

impl Rtt {
    pub(super) fn new() -> Self {
        Self { latest: INITIAL, smoothed: None, variation: INITIAL / 2, lowest: Duration::MAX }
    }

    /// Takes a sample; `delay` is how long the peer says it kept the acknowledgement.
    pub(super) fn sample(&mut self, rtt: Duration, delay: Duration) {
        self.latest = rtt;
        self.lowest = self.lowest.min(rtt);
        let adjusted = if rtt >= self.lowest + delay { rtt - delay } else { rtt };
        match self.smoothed {
            None => {
                self.smoothed = Some(adjusted);
                self.variation = adjusted / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(adjusted)) / 4;
                self.smoothed = Some((smoothed * 7 + adjusted) / 8);
            }
        }
    }

    pub(super) fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(INITIAL)
    }

    /// The longer of the smoothed and the latest.
    pub(super) fn longer(&self) -> Duration {
        self.smoothed().max(self.latest)
    }

    /// How long after the last packet a probe is sent, when `unanswered` probes were sent before. It doubles as RFC 9002 §6.2.1 says, but a
    /// radio link comes back without a word, so it never grows beyond [`Config::probe_cap`].
    pub(super) fn probe_timeout(&self, config: &Config, unanswered: u32) -> Duration {
        let base = self.smoothed() + (self.variation * 4).max(GRANULARITY) + config.ack_delay;
        match unanswered {
            0 => base,
            // Where a round trip alone is longer than the cap, two probes wait for it.
            1 => base.max((base * 2).min(config.probe_cap)),
            _ => (base * 2).min(config.probe_cap),
        }
    }
}
