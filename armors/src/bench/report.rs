//! What is left of a bench: JSON, and tables for the terminal and for the page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::goals::{self, Goal};
use super::metric::{Metric, Pinning};
use super::recovery::Recovered;
use super::results::{Key, Results, Told, Values};
use super::rounds::Plan;
use super::row::Row;
use super::thesis;
use crate::campaign::Machine;
use crate::output::Table;

/// Everything that was found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) begun_unix_ms: u64,
    pub(crate) took_s: f64,
    pub(crate) machine: Machine,
    /// Load average of the minute before the end.
    pub(crate) load_after: String,
    /// Core of the pinned figures.
    pub(crate) pinned_to: usize,
    pub(crate) versions: BTreeMap<String, String>,
    /// Why rows may have different congestion controls, if so.
    pub(crate) congestion_may_differ: Option<String>,
    /// Of each row's TCP sockets, as the kernel tells it.
    pub(crate) congestion: BTreeMap<Row, String>,
    pub(crate) plan: Plan,
    /// Why there are not as many idle connections as there were to be, if so.
    pub(crate) fewer_connections: Option<String>,
    pub(crate) rows: Vec<Row>,
    /// Rows that were not measured, and why.
    pub(crate) left_out: BTreeMap<Row, String>,
    #[serde(skip_deserializing)]
    pub(crate) figures: Vec<Figure>,
    pub(crate) recovery: Vec<Recovered>,
    #[serde(skip_deserializing)]
    pub(crate) goals: Vec<Goal>,
    /// What could not be measured.
    pub(crate) complaints: Vec<String>,
    #[serde(skip)]
    pub(crate) results: Results,
}

#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    #[serde(flatten)]
    key: Key,
    unit: &'static str,
    rows: Vec<Told>,
}

/// The part of a report from which all its figures follow.
#[derive(Deserialize)]
struct Measured {
    figures: Vec<MeasuredFigure>,
}

#[derive(Deserialize)]
struct MeasuredFigure {
    // No flattened key: numbers as keys of maps are not read within such a one.
    metric: Metric,
    pinning: Pinning,
    parameter: u64,
    rows: Vec<MeasuredRow>,
}

#[derive(Deserialize)]
struct MeasuredRow {
    row: Row,
    values: Values,
}

/// A table with its heading.
pub(super) struct Grid {
    pub(super) title: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Report {
    /// Whether everything could be measured, and nothing was lost in recoveries.
    pub(crate) fn is_complete(&self) -> bool {
        self.complaints.is_empty() && self.recovery.iter().all(|recovered| recovered.passed)
    }

    /// A report that was written before. Medians, ratios and goals are made again from its values.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn read(json: &str) -> anyhow::Result<Report> {
        let mut report: Report = serde_json::from_str(json).context("no report of `armor bench`")?;
        let Measured { figures } = serde_json::from_str(json).context("the figures of a report of `armor bench`")?;
        for MeasuredFigure { metric, pinning, parameter, rows } in figures {
            let key = Key { metric, pinning, parameter };
            for MeasuredRow { row, values } in rows {
                values.into_iter().for_each(|(round, value)| report.results.add(key, row, round, value));
            }
        }
        (report.figures, report.goals) = (Report::figures(&report.results), Report::goals(&report.results));
        Ok(report)
    }

    pub(super) fn figures(results: &Results) -> Vec<Figure> {
        results.keys().map(|key| Figure { key, unit: key.metric.unit(), rows: results.rows(key) }).collect()
    }

    pub(super) fn goals(results: &Results) -> Vec<Goal> {
        goals::goals(results).into_iter().chain(goals::others(results)).collect()
    }

    /// For the terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for line in self.setting() {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{line}");
        }
        for Grid { title, head, rows } in self.grids() {
            let head: Vec<&str> = head.iter().map(|cell| &**cell).collect();
            let mut table = Table::new(&head);
            rows.into_iter().for_each(|row| table.row(row));
            let _ = write!(text, "\n{title}\n{}", crate::campaign::indent(&table.render()));
        }
        for complaint in &self.complaints {
            let _ = writeln!(text, "\nNot measured: {complaint}");
        }
        text
    }

    /// Where and how it was measured.
    pub(super) fn setting(&self) -> Vec<String> {
        let Machine { kernel, processor, processors, load } = &self.machine;
        let versions: Vec<String> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let mut lines = vec![
            format!("Machine: {processor}, {processors} processors, Linux {kernel}; load average {load} before, {} after", self.load_after),
            format!("Versions: {}", versions.join(", ")),
            format!("Figures of one core: core {}. {} rounds, in each of which every row has its turn", self.pinned_to, self.plan.rounds),
        ];
        let by_name = self.congestion.iter().fold(BTreeMap::<&str, Vec<&str>>::new(), |mut names, (row, name)| {
            names.entry(name).or_default().push(row.title());
            names
        });
        let of = |rows: &[&str]| if rows.len() == self.rows.len() { "all rows".to_owned() } else { rows.join("; ") };
        let by_name: Vec<String> = by_name.iter().map(|(name, rows)| format!("{name} ({})", of(rows))).collect();
        if !by_name.is_empty() {
            lines.push(format!("Congestion control of the TCP sockets, as the kernel tells it: {}", by_name.join("; ")));
        }
        lines.extend(self.congestion_may_differ.iter().map(|why| format!("It is each program's own, since {why}")));
        lines.extend(self.fewer_connections.iter().cloned());
        lines.extend(self.left_out.iter().map(|(row, why)| format!("Left out: {}: {why}", row.title())));
        lines
    }

    /// All tables, what is asked for most first.
    pub(super) fn grids(&self) -> Vec<Grid> {
        let beside_thesis = [self.goal_table(), self.thesis_round_trips(), self.thesis_calls(), self.recoveries()];
        let mut grids: Vec<Grid> = beside_thesis.into_iter().flatten().collect();
        for metric in Metric::ALL {
            for pinning in [Pinning::OneCore, Pinning::Free] {
                grids.extend(self.grids_of(metric, pinning));
            }
        }
        grids
    }

    fn grids_of(&self, metric: Metric, pinning: Pinning) -> Vec<Grid> {
        let parameters = self.results.parameters(metric, pinning);
        let title = |what: &str| format!("{}, {}: {what}", metric.title(), pinning.title());
        let at = |row: Row, parameter: u64| self.results.told(Key { metric, pinning, parameter }, row);
        match &parameters[..] {
            [] => Vec::new(),
            [only] => {
                let head = ["", metric.unit(), "spread", "÷ direct", "÷ two HAProxy"].map(str::to_owned).to_vec();
                let told = self.rows.iter().filter_map(|row| at(*row, *only));
                let line = |told: Told| {
                    let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, digits);
                    vec![told.row.title().to_owned(), digits(told.median), told.spread(), ratio(told.to_direct), ratio(told.to_haproxy)]
                };
                vec![Grid { title: format!("{}, {}", metric.title(), pinning.title()), head, rows: told.map(line).collect() }]
            }
            _ => {
                let head = || [String::new()].into_iter().chain(parameters.iter().map(|value| metric.parameter(*value))).collect();
                let table = |what: &str, cell: &dyn Fn(Told) -> Option<String>| {
                    let line = |row: &Row| {
                        let cells: Vec<String> =
                            parameters.iter().map(|value| at(*row, *value).and_then(cell).unwrap_or_default()).collect();
                        let some = cells.iter().any(|cell| !cell.is_empty());
                        some.then(|| [row.title().to_owned()].into_iter().chain(cells).collect())
                    };
                    Grid { title: title(what), head: head(), rows: self.rows.iter().filter_map(line).collect() }
                };
                let once = metric == Metric::Memory || metric == Metric::RoundTripBeside;
                let value =
                    |told: Told| Some(if once { digits(told.median) } else { format!("{} {}", digits(told.median), told.spread()) });
                let mut grids = vec![table(metric.unit(), &value)];
                if metric != Metric::Memory {
                    grids.push(table("÷ direct", &|told| told.to_direct.map(digits)));
                }
                grids.push(table("÷ two HAProxy", &|told| told.to_haproxy.map(digits)));
                grids.retain(|grid| !grid.rows.is_empty());
                grids
            }
        }
    }

    /// Table 6.1 beside the thesis.
    fn thesis_round_trips(&self) -> Option<Grid> {
        let line = |(bytes, direct, dual, armor): (u64, f64, f64, f64)| {
            let key = Key { metric: Metric::RoundTrip, pinning: Pinning::OneCore, parameter: bytes };
            let here = |row| self.results.told(key, row).map_or_else(String::new, |told| digits(told.median));
            let ratio = self.results.ratio(key, Row::Daemon, Row::Own)?;
            let thesis = [digits(direct), digits(dual), digits(armor), digits(armor / dual)];
            let own = [here(Row::Direct), here(Row::Own), here(Row::Daemon), digits(ratio)];
            Some([format!("{bytes} B")].into_iter().chain(thesis).chain(own).collect())
        };
        let rows: Vec<Vec<String>> = thesis::ROUND_TRIP.into_iter().filter_map(line).collect();
        let head =
            ["µs", "thesis: direct", "dual proxy", "ARMOR", "ARMOR ÷ dual proxy", "here: direct", "own dual proxy", "ARMOR", "ratio"];
        let title = "Thesis table 6.1 beside the same here, all processes on one core".to_owned();
        (!rows.is_empty()).then(|| Grid { title, head: head.map(str::to_owned).to_vec(), rows })
    }

    /// Tables 6.2, 6.3 and 6.5 beside the thesis: absolute times are twenty-three years apart, ratios are not.
    fn thesis_calls(&self) -> Option<Grid> {
        let of =
            |metric, parameter, row| self.results.told(Key { metric, pinning: Pinning::OneCore, parameter }, row).map(|told| told.median);
        let figures = [
            ("init", Metric::Init, 0, Row::Direct),
            ("bind", Metric::Bind, 0, Row::Direct),
            ("connect", Metric::Connect, 0, Row::Own),
            ("close", Metric::Close, 0, Row::Own),
            ("round trip, 512 B", Metric::RoundTrip, 512, Row::Own),
        ];
        let line = |(what, metric, parameter, base): (&str, Metric, u64, Row)| {
            let (_, dual, daemon, execution) = thesis::CALLS.into_iter().find(|(name, ..)| *name == what)?;
            let here: Vec<Option<f64>> = [base, Row::Daemon, Row::Execution].map(|row| of(metric, parameter, row)).to_vec();
            let shown = |value: Option<f64>| value.map_or_else(String::new, digits);
            here.iter().any(Option::is_some).then(|| {
                let cells = [dual, Some(daemon), execution].into_iter().chain(here.iter().copied()).map(shown);
                [what.to_owned()].into_iter().chain(cells).collect()
            })
        };
        let head = ["µs", "thesis: dual proxy", "thesis: daemons", "thesis: Execution ARMORs"];
        let own = ["own dual proxy", Row::Daemon.title(), Row::Execution.title()];
        let rows: Vec<Vec<String>> = figures.into_iter().filter_map(line).collect();
        let title = "Thesis tables 6.2, 6.3 and 6.5: daemons and Execution ARMORs, all processes on one core".to_owned();
        (!rows.is_empty()).then(|| Grid { title, head: head.into_iter().chain(own).map(str::to_owned).collect(), rows })
    }

    fn recoveries(&self) -> Option<Grid> {
        let line = |recovered: &Recovered| {
            let told = thesis::RECOVERY.into_iter().find(|(target, ..)| *target == recovered.target);
            let thesis = told.map_or_else(String::new, |(_, without, with)| {
                let without = without.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
                format!("{without}, {with:.0}")
            });
            let ranks = |spread: Option<[f64; 3]>| spread.map_or_else(String::new, |ranks| ranks.map(|ms| format!("{ms:.1}")).join(" / "));
            let fine = if recovered.passed { "nothing lost" } else { "FAILED" };
            vec![
                recovered.target.clone(),
                thesis,
                ranks(recovered.detected),
                ranks(recovered.resumed),
                recovered.runs.to_string(),
                fine.to_owned(),
            ]
        };
        let head = ["failed", "thesis (ms): without, with Execution ARMOR", "detected (ms)", "first new byte (ms)", "runs", ""];
        (!self.recovery.is_empty()).then(|| Grid {
            title: "Recovery (thesis tables 6.4 and 6.6), ms since the failure: median / 95th percentile / worst".to_owned(),
            head: head.map(str::to_owned).to_vec(),
            rows: self.recovery.iter().map(line).collect(),
        })
    }

    fn goal_table(&self) -> Option<Grid> {
        let line = |goal: &Goal| {
            let (sign, limit) = goal.limit;
            let met = if goal.met { "yes" } else { "no" };
            vec![goal.what.to_owned(), format!("{sign} {limit}"), digits(goal.found), met.to_owned()]
        };
        (!self.goals.is_empty()).then(|| Grid {
            title: "Goals: medians of the ratios of the same rounds, the worst packet size of each".to_owned(),
            head: ["", "goal", "found", "met"].map(str::to_owned).to_vec(),
            rows: self.goals.iter().map(line).collect(),
        })
    }
}

/// With as many digits as mean something.
fn digits(value: f64) -> String {
    let value_of = value.abs();
    match value_of {
        _ if value_of >= 1000.0 => format!("{value:.0}"),
        _ if value_of >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    pub(in super::super) fn report() -> Report {
        let mut results = Results::default();
        for round in 0..3 {
            for (row, us) in [(Row::Direct, 6.0), (Row::Own, 21.0), (Row::Haproxy, 28.0), (Row::Daemon, 26.0), (Row::Execution, 40.0)] {
                for (parameter, more) in [(32, 0.0), (512, 1.0), (65536, 90.0)] {
                    let key = Key { metric: Metric::RoundTrip, pinning: Pinning::OneCore, parameter };
                    results.add(key, row, round, us + more + f64::from(round));
                }
                for metric in [Metric::Connect, Metric::Download, Metric::Upload] {
                    results.add(Key { metric, pinning: Pinning::OneCore, parameter: 0 }, row, round, us);
                }
            }
        }
        let recovered = |target: &str, ms: f64| Recovered {
            target: target.to_owned(),
            runs: 20,
            detected: Some([ms / 2.0, ms, ms]),
            resumed: Some([ms, ms * 2.0, ms * 3.0]),
            passed: true,
        };
        Report {
            begun_unix_ms: 0,
            took_s: 1.0,
            machine: Machine { kernel: "6.1".to_owned(), processor: "cpu".to_owned(), processors: 2, load: "0.1".to_owned() },
            load_after: "1.5".to_owned(),
            pinned_to: 1,
            versions: [("armor".to_owned(), "0.1.0".to_owned())].into(),
            congestion_may_differ: None,
            congestion: [(Row::Direct, "cubic".to_owned()), (Row::Daemon, "cubic".to_owned())].into(),
            plan: Plan::short(),
            fewer_connections: None,
            rows: vec![Row::Direct, Row::Own, Row::Haproxy, Row::Daemon, Row::Execution],
            left_out: [(Row::Socat, "socat is not installed".to_owned())].into(),
            figures: Report::figures(&results),
            recovery: vec![recovered("server", 5.0), recovered("node", 370.0)],
            goals: Report::goals(&results),
            complaints: Vec::new(),
            results,
        }
    }

    #[test]
    fn tables_show_medians_ratios_and_the_thesis() {
        let report = report();
        let text = report.text();
        for expected in [
            "                           32 B       512 B      64 KB\n  direct TCP               7.00 ±7 %  8.00 ±6 %  97.0 ±1 %\n",
            "  ARMOR, daemons           0.93  0.93   0.98\n",
            "  round trip, 512 B  3877                32716            514885                    23.0            28.0            42.0\n",
            "  node    145, 1546  ",
            "Congestion control of the TCP sockets, as the kernel tells it: cubic (direct TCP; ARMOR, daemons)\n",
            "Left out: two socat: socat is not installed\n",
            "round trip to 2 KB, daemons / two HAProxy, one core",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(report.is_complete());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["figures"][0]["metric"], "round-trip");
        assert_eq!(json["figures"][0]["rows"][0]["values"].as_object().unwrap().len(), 3);
        let again = Report::read(&json.to_string()).unwrap();
        assert_eq!((again.text(), serde_json::to_value(&again).unwrap()), (text, json));
        assert!(Report::read("{}").is_err());
    }

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        assert_eq!([0.934, 9.994, 12.34, 999.9, 12345.6].map(digits), ["0.93", "9.99", "12.3", "999.9", "12346"]);
    }
}
