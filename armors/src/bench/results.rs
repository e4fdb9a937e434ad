//! What was measured, and what is told of it: medians, spread, and ratios of what was measured in the same round.

use std::collections::BTreeMap;

use serde::Serialize;

use super::metric::{Metric, Pinning};
use super::row::Row;

/// One figure: a metric with its parameter, measured in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Key {
    pub(crate) metric: Metric,
    pub(crate) pinning: Pinning,
    /// Packet size, number of connections; 0 for figures without one.
    pub(crate) parameter: u64,
}

/// Values by round.
pub(crate) type Values = BTreeMap<u32, f64>;

#[derive(Debug, Default)]
pub(crate) struct Results {
    figures: BTreeMap<Key, BTreeMap<Row, Values>>,
}

/// What is told of a row in a figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Told {
    pub(crate) row: Row,
    pub(crate) median: f64,
    /// Quartiles.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Median of the rounds' ratios.
    pub(crate) to_direct: Option<f64>,
    pub(crate) to_haproxy: Option<f64>,
    pub(crate) values: Values,
}

impl Told {
    /// Half the distance between the quartiles, in percent of the median.
    pub(crate) fn spread(&self) -> String {
        let percent = if self.median == 0.0 { 0.0 } else { (self.high - self.low) / 2.0 / self.median * 100.0 };
        // Beyond that it says only that the median means nothing.
        if percent < 1000.0 { format!("±{percent:.0} %") } else { "±>1000 %".to_owned() }
    }
}

impl Results {
    pub(crate) fn add(&mut self, key: Key, row: Row, round: u32, value: f64) {
        self.figures.entry(key).or_default().entry(row).or_default().insert(round, value);
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        self.figures.keys().copied()
    }

    /// Parameters of a metric, in order.
    pub(crate) fn parameters(&self, metric: Metric, pinning: Pinning) -> Vec<u64> {
        self.keys().filter(|key| (key.metric, key.pinning) == (metric, pinning)).map(|key| key.parameter).collect()
    }

    pub(crate) fn told(&self, key: Key, row: Row) -> Option<Told> {
        let values = self.figures.get(&key)?.get(&row)?;
        let all: Vec<f64> = values.values().copied().collect();
        Some(Told {
            row,
            median: quantile(&all, 0.5)?,
            low: quantile(&all, 0.25)?,
            high: quantile(&all, 0.75)?,
            to_direct: self.ratio(key, row, Row::Direct),
            to_haproxy: self.ratio(key, row, Row::Haproxy),
            values: values.clone(),
        })
    }

    /// Median of the ratios of two rows in the same rounds.
    pub(crate) fn ratio(&self, key: Key, row: Row, to: Row) -> Option<f64> {
        let rows = self.figures.get(&key)?;
        let (above, below) = (rows.get(&row)?, rows.get(&to)?);
        let ratios: Vec<f64> =
            above.iter().filter_map(|(round, value)| below.get(round).filter(|below| **below > 0.0).map(|below| value / below)).collect();
        quantile(&ratios, 0.5)
    }

    /// Rows of a figure.
    pub(crate) fn rows(&self, key: Key) -> Vec<Told> {
        let rows = self.figures.get(&key).into_iter().flat_map(BTreeMap::keys);
        rows.filter_map(|row| self.told(key, *row)).collect()
    }
}

/// Between the nearest ranks; nothing of nothing.
fn quantile(values: &[f64], quantile: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = quantile * values.len().checked_sub(1)? as f64;
    let (below, above) = (values.get(at.floor() as usize)?, values.get(at.ceil() as usize)?);
    Some(below + (above - below) * at.fract())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const KEY: Key = Key { metric: Metric::RoundTrip, pinning: Pinning::Free, parameter: 32 };

    #[test]
    fn quantiles_lie_between_ranks() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.25), Some(3.0));
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), Some(2.5));
        assert_eq!(quantile(&[5.0, 1.0, 2.0, 3.0, 4.0], 0.25), Some(2.0));
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let mut results = Results::default();
        // The machine becomes slower; the ratio stays.
        for (round, slowness) in [(0, 1.0), (1, 10.0), (2, 3.0)] {
            results.add(KEY, Row::Direct, round, 10.0 * slowness);
            results.add(KEY, Row::Daemon, round, 40.0 * slowness);
        }
        // One round is missing.
        results.add(KEY, Row::Haproxy, 1, 800.0);
        let told = results.told(KEY, Row::Daemon).unwrap();
        assert_eq!((told.median, told.to_direct, told.to_haproxy), (120.0, Some(4.0), Some(0.5)));
        assert_eq!(results.told(KEY, Row::Socat), None);
        assert_eq!(results.rows(KEY).len(), 3);
    }
}
