//! Many times, told in few numbers.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Half an hour, in ns.
const LONGEST_NS: u64 = 1 << 41;

/// Times of one series, to three digits.
#[derive(Debug)]
pub struct Times {
    histogram: Histogram<u64>,
}

/// What is told of a series, in µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many there were.
    pub count: u64,
    /// Of all of them.
    pub mean: f64,
    /// Half of them took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// 999 of 1000 took no longer.
    pub p999: f64,
}

impl Times {
    /// None yet.
    ///
    /// # Errors
    /// Never: these bounds are allowed.
    pub fn new() -> anyhow::Result<Times> {
        Ok(Times { histogram: Histogram::new_with_bounds(1, LONGEST_NS, 3)? })
    }

    /// One more.
    pub fn add(&mut self, time: Duration) {
        // What is longer counts as the longest.
        self.histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// In few numbers.
    pub fn summary(&self) -> Summary {
        let at = |quantile| self.histogram.value_at_quantile(quantile) as f64 / 1e3;
        Summary { count: self.histogram.len(), mean: self.histogram.mean() / 1e3, p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ranks_and_mean_are_those_of_what_was_added() {
        let mut times = Times::new().unwrap();
        (1..=1000).for_each(|us| times.add(Duration::from_micros(us)));
        let Summary { count, mean, p50, p99, p999 } = times.summary();
        assert_eq!(count, 1000);
        for (found, expected) in [(mean, 500.5), (p50, 500.0), (p99, 990.0), (p999, 999.0)] {
            assert!((found - expected).abs() <= expected * 0.002, "{found} instead of {expected}");
        }
    }
}
