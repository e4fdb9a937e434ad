//! Figures to reach: ratios of rows that were measured in the same rounds.

use serde::Serialize;

use super::metric::{Metric, Pinning};
use super::results::{Key, Results};
use super::row::Row;

/// A goal, and what was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: &'static str,
    /// `≤` or `≥`, and the limit.
    pub(crate) limit: (&'static str, f64),
    /// The worst of its parameters.
    pub(crate) found: f64,
    pub(crate) met: bool,
}

struct Wanted {
    what: &'static str,
    metric: Metric,
    pinning: Pinning,
    row: Row,
    to: Row,
    most: Option<f64>,
    least: Option<f64>,
}

const fn most(what: &'static str, metric: Metric, pinning: Pinning, row: Row, to: Row, limit: f64) -> Wanted {
    Wanted { what, metric, pinning, row, to, most: Some(limit), least: None }
}

const fn least(what: &'static str, metric: Metric, pinning: Pinning, row: Row, to: Row, limit: f64) -> Wanted {
    Wanted { what, metric, pinning, row, to, most: None, least: Some(limit) }
}

/// The largest packet of the thesis's table, which is what goals for round trips are about.
const LARGEST: u64 = 2048;

const ALL: [Wanted; 12] = {
    use Metric::{Download, DownloadCpu, ExchangeCpu, Requests, RoundTrip, ShortConnection, Upload, UploadCpu};
    use Pinning::{Free, OneCore};
    use Row::{Daemon, Direct, Execution, Haproxy, HaproxyBusy};
    [
        most("round trip to 2 KB, daemons / two HAProxy, one core", RoundTrip, OneCore, Daemon, Haproxy, 0.85),
        most("round trip to 2 KB, daemons / two HAProxy, not pinned", RoundTrip, Free, Daemon, Haproxy, 0.35),
        most("round trip to 2 KB, daemons / two HAProxy with busy-polling, not pinned", RoundTrip, Free, Daemon, HaproxyBusy, 1.0),
        most("CPU of a round trip to 2 KB, daemons / two HAProxy, not pinned", ExchangeCpu, Free, Daemon, Haproxy, 1.0),
        least("requests/s of 32 sessions, daemons / two HAProxy, one core", Requests, OneCore, Daemon, Haproxy, 1.1),
        most("round trip to 2 KB, daemons / direct, one core", RoundTrip, OneCore, Daemon, Direct, 4.5),
        most("round trip to 2 KB, Execution ARMORs / daemons, one core", RoundTrip, OneCore, Execution, Daemon, 1.5),
        least("bulk to the client, daemons / two HAProxy, one core", Download, OneCore, Daemon, Haproxy, 1.0),
        least("bulk to the server, daemons / two HAProxy, one core", Upload, OneCore, Daemon, Haproxy, 1.0),
        most("CPU of bulk to the client, daemons / two HAProxy, one core", DownloadCpu, OneCore, Daemon, Haproxy, 1.0),
        most("CPU of bulk to the server, daemons / two HAProxy, one core", UploadCpu, OneCore, Daemon, Haproxy, 1.0),
        most("connect, first byte and close, daemons / two HAProxy, one core", ShortConnection, OneCore, Daemon, Haproxy, 1.0),
    ]
};

/// Goals whose rows were measured.
pub(super) fn goals(results: &Results) -> Vec<Goal> {
    ALL.iter().filter_map(|wanted| found(wanted, results)).collect()
}

fn found(wanted: &Wanted, results: &Results) -> Option<Goal> {
    let &Wanted { what, metric, pinning, row, to, most, least } = wanted;
    let parameters = results.parameters(metric, pinning).into_iter().filter(|parameter| *parameter <= LARGEST);
    let ratios = parameters.filter_map(|parameter| results.ratio(Key { metric, pinning, parameter }, row, to));
    Some(match (most, least) {
        (Some(limit), _) => {
            let found = ratios.max_by(f64::total_cmp)?;
            Goal { what, limit: ("≤", limit), found, met: found <= limit }
        }
        (None, limit) => {
            let (found, limit) = (ratios.min_by(f64::total_cmp)?, limit?);
            Goal { what, limit: ("≥", limit), found, met: found >= limit }
        }
    })
}

/// What an idle protected connection may cost in both daemons together, in KiB.
const MEMORY_KIB: f64 = 8.0;
/// How much slower a round trip may be beside as many idle connections as there can be.
const SLOWER: f64 = 1.3;

/// What a bind may cost more than a plain one, in round trips on this machine.
const BIND_ROUND_TRIPS: f64 = 1.0;

/// Goals that are no ratios of rows.
pub(super) fn others(results: &Results) -> Vec<Goal> {
    bind(results).into_iter().chain(of_connections(results)).collect()
}

fn bind(results: &Results) -> Option<Goal> {
    let pinning = Pinning::OneCore;
    let smallest = results.parameters(Metric::RoundTrip, pinning).into_iter().min()?;
    let at = |metric, parameter, row| results.told(Key { metric, pinning, parameter }, row).map(|told| told.median);
    let more = at(Metric::Bind, 0, Row::Daemon)? - at(Metric::Bind, 0, Row::Direct)?;
    let found = more / at(Metric::RoundTrip, smallest, Row::Direct)?;
    let what = "bind and listen, daemons, less plain ones / direct round trip of the smallest packet, one core";
    Some(Goal { what, limit: ("≤", BIND_ROUND_TRIPS), found, met: found <= BIND_ROUND_TRIPS })
}

fn of_connections(results: &Results) -> Vec<Goal> {
    let at = |metric, parameter| results.told(Key { metric, pinning: Pinning::Free, parameter }, Row::Daemon).map(|told| told.median);
    let parameters = results.parameters(Metric::RoundTripBeside, Pinning::Free);
    let (Some(&fewest), Some(&most)) = (parameters.first(), parameters.last()) else { return Vec::new() };
    let memory = at(Metric::Memory, most).map(|found| Goal {
        what: "memory per idle connection, both daemons, the FTM and vaults together (KiB)",
        limit: ("≤", MEMORY_KIB),
        found,
        met: found <= MEMORY_KIB,
    });
    let slower = at(Metric::RoundTripBeside, most).zip(at(Metric::RoundTripBeside, fewest)).map(|(many, one)| Goal {
        what: "round trip beside the most idle connections / beside one, daemons",
        limit: ("≤", SLOWER),
        found: many / one,
        met: many / one <= SLOWER,
    });
    memory.into_iter().chain(slower).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_bind_is_told_in_round_trips_beyond_a_plain_one() {
        let mut results = Results::default();
        let key = |metric, parameter| Key { metric, pinning: Pinning::OneCore, parameter };
        results.add(key(Metric::RoundTrip, 32), Row::Direct, 0, 6.0);
        results.add(key(Metric::Bind, 0), Row::Direct, 0, 2.0);
        assert_eq!(others(&results), []);
        results.add(key(Metric::Bind, 0), Row::Daemon, 0, 17.0);
        let goals = others(&results);
        assert_eq!((goals.len(), goals[0].found, goals[0].met), (1, 2.5, false));
    }

    #[test]
    fn the_worst_packet_size_of_the_thesis_counts() {
        let mut results = Results::default();
        for (parameter, daemon) in [(32, 8.0), (2048, 9.0), (65536, 99.0)] {
            let key = Key { metric: Metric::RoundTrip, pinning: Pinning::OneCore, parameter };
            results.add(key, Row::Daemon, 0, daemon);
            results.add(key, Row::Haproxy, 0, 10.0);
        }
        let goals = goals(&results);
        assert_eq!(goals.len(), 1, "what was not measured is no goal: {goals:?}");
        assert_eq!((goals[0].limit, goals[0].found, goals[0].met), (("≤", 0.85), 0.9, false));
    }
}
