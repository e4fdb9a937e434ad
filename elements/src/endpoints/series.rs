//! Probes of an application, one after the other: when so many in a row have failed, it hangs.

use std::time::{Duration, Instant};

/// How the probes of one life of an application went.
#[derive(Debug)]
pub struct Series {
    /// Failures in a row that are needed.
    needed: u32,
    failures: u32,
    /// When it was last known to be well.
    well: Instant,
    /// Until it has passed a probe, failures before this time are a program that is still starting.
    patience: Option<Instant>,
}

impl Series {
    /// Of a life that is known to be well now.
    #[must_use]
    pub fn of_ready(needed: u32, now: Instant) -> Series {
        Series { needed, failures: 0, well: now, patience: None }
    }

    /// Of a life that has yet to come up, and has so long for that.
    #[must_use]
    pub fn of_starting(needed: u32, within: Duration, now: Instant) -> Series {
        Series { patience: now.checked_add(within), ..Series::of_ready(needed, now) }
    }

    /// A probe has passed.
    pub fn passed(&mut self, now: Instant) {
        (self.failures, self.well, self.patience) = (0, now, None);
    }

    /// A probe has failed. If it was one too many, for how long the application was not well.
    pub fn failed(&mut self, now: Instant) -> Option<Duration> {
        if self.patience.is_some_and(|patience| now < patience) {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        (self.failures >= self.needed).then(|| now.saturating_duration_since(self.well))
    }

    /// The failures in a row until now as the reason of a hang.
    #[must_use]
    pub fn as_reason(&self, last: impl std::fmt::Display) -> String {
        format!("{} probes in a row have failed, the last one: {last}", self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_failures_in_a_row_are_a_hang_since_it_was_last_well() {
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        let mut series = Series::of_ready(3, begun);
        assert_eq!((series.failed(at(1)), series.failed(at(2))), (None, None));
        series.passed(at(3));
        assert_eq!((series.failed(at(4)), series.failed(at(5))), (None, None));
        assert_eq!(series.failed(at(6)), Some(Duration::from_secs(3)));
    }

    #[test]
    fn what_has_never_been_well_has_time_to_start_and_no_more() {
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        let mut series = Series::of_starting(1, Duration::from_secs(10), begun);
        assert!((1..10).all(|second| series.failed(at(second)).is_none()));
        assert_eq!(series.failed(at(10)), Some(Duration::from_secs(10)));
        let mut series = Series::of_starting(1, Duration::from_secs(10), begun);
        series.passed(at(1));
        assert_eq!(series.failed(at(2)), Some(Duration::from_secs(1)), "it was well, and is not any more");
    }
}
