//! What one run has shown, and what many have.

use serde::Serialize;

use super::client::Broken;
use super::load::Break;

/// One fault and what became of it. Times are in ms since the fault unless they say otherwise.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    /// From 0; with seed and cell it says what is drawn.
    pub(crate) number: u32,
    /// From when everything flowed to the fault.
    pub(crate) delay_ms: u64,
    pub(crate) at_unix_ms: f64,
    pub(crate) connections: u32,
    /// ARMOR knows.
    pub(crate) detected_ms: Option<f64>,
    /// Everything is as it was before.
    pub(crate) recovered_ms: Option<f64>,
    /// The longest time without bytes at any client that has a part after the fault.
    pub(crate) stall_ms: Option<f64>,
    /// The end of that: the first new byte at the client that waited longest.
    pub(crate) resumed_ms: Option<f64>,
    /// How long the link was cut.
    pub(crate) cut_ms: Option<f64>,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    /// Where the logs are, when they were kept.
    pub(crate) logs: Option<String>,
}

impl Run {
    /// From detection to recovery.
    pub(crate) fn after_detection_ms(&self) -> Option<f64> {
        Some((self.recovered_ms? - self.detected_ms?).max(0.0))
    }
}

/// What must not be.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Verdict {
    /// Connections that missed bytes, were given some twice, or were given wrong ones.
    pub(crate) lost: u32,
    pub(crate) repeated: u32,
    pub(crate) altered: u32,
    /// Connections whose server has said something else in its next life.
    pub(crate) diverged: u32,
    /// Connections that were reset, closed or refused.
    pub(crate) reset: u32,
    /// Connections without a new byte at the deadline.
    pub(crate) hung: u32,
    /// The target did not come back by the deadline.
    pub(crate) unmended: u32,
    /// Restarts of the application that nobody had killed.
    pub(crate) restarts: u32,
    /// In words.
    pub(crate) complaints: Vec<String>,
}

impl Verdict {
    pub(crate) fn of(breaks: &[Break]) -> Verdict {
        let mut verdict = Verdict::default();
        for Break { connection, how, what } in breaks {
            let count = match how {
                Broken::Lost => &mut verdict.lost,
                Broken::Repeated => &mut verdict.repeated,
                Broken::Altered => &mut verdict.altered,
                Broken::Reset | Broken::Closed | Broken::Refused => &mut verdict.reset,
            };
            *count += 1;
            verdict.complaints.push(format!("connection {connection}: {what}"));
        }
        verdict
    }

    /// Name and count of each thing that must not be.
    pub(crate) fn counts(&self) -> [(&'static str, u32); 8] {
        let Verdict { lost, repeated, altered, diverged, reset, hung, unmended, restarts, .. } = *self;
        [
            ("lost", lost),
            ("repeated", repeated),
            ("altered", altered),
            ("diverged", diverged),
            ("reset", reset),
            ("hung", hung),
            ("unmended", unmended),
            ("restarts", restarts),
        ]
    }

    pub(crate) fn is_fine(&self) -> bool {
        self.counts().iter().all(|(_, count)| *count == 0) && self.complaints.is_empty()
    }
}

/// Of many values in ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) worst_ms: f64,
}

impl Spread {
    /// Nearest rank; nothing of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Spread { median_ms: rank(50)?, p95_ms: rank(95)?, worst_ms: rank(100)? })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Spread { median_ms, p95_ms, worst_ms } = self;
        write!(f, "{median_ms:.1} / {p95_ms:.1} / {worst_ms:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_by_nearest_rank() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some(Spread { median_ms: 3.0, p95_ms: 3.0, worst_ms: 3.0 }));
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(spread(&hundred), Some(Spread { median_ms: 50.0, p95_ms: 95.0, worst_ms: 100.0 }));
    }

    #[test]
    fn one_bad_connection_is_enough_for_a_bad_run() {
        assert!(Verdict::of(&[]).is_fine());
        for how in [Broken::Lost, Broken::Repeated, Broken::Altered, Broken::Reset, Broken::Closed, Broken::Refused] {
            let verdict = Verdict::of(&[Break { connection: 1, how, what: "x".to_owned() }]);
            assert!(!verdict.is_fine() && verdict.counts().iter().map(|(_, count)| count).sum::<u32>() == 1, "{how:?}");
        }
    }
}
