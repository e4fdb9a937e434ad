//! What a campaign found out: for people (`report.txt`) and for programs (`report.json`).
//!
//! Invariant: a campaign passes only when every wanted run was done and nothing was lost, repeated, altered, diverged, reset, hung or started again.

use std::fmt::Write as _;

use serde::Serialize;

use super::floor::Floor;
use super::matrix::{Cell, Fault, Target};
use super::measure::{Run, Spread, Verdict};
use crate::output::{self, Table};

/// The report as a whole.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) passed: bool,
    pub(crate) seed: u64,
    pub(crate) begun_unix_ms: u64,
    pub(crate) seconds: f64,
    pub(crate) version: &'static str,
    /// Built without optimisation: its times say little.
    pub(crate) debug: bool,
    pub(crate) machine: Machine,
    pub(crate) floors: Vec<Floor>,
    pub(crate) cells: Vec<Row>,
}

/// Where it ran.
#[derive(Debug, Serialize, serde::Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    /// Load average of the minute before: what else was running.
    pub(crate) load: String,
}

impl Machine {
    pub(crate) fn this() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// One cell.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) cell: Cell,
    pub(crate) wanted: u32,
    /// Why it was not run to its end, if so.
    pub(crate) given_up: Option<String>,
    pub(crate) detection: Option<Spread>,
    pub(crate) recovery_after_detection: Option<Spread>,
    pub(crate) recovery: Option<Spread>,
    pub(crate) stall: Option<Spread>,
    pub(crate) resumed: Option<Spread>,
    /// Stall beyond the length of the cut.
    pub(crate) stall_beyond_cut: Option<Spread>,
    pub(crate) verdict: Verdict,
    pub(crate) runs: Vec<Run>,
}

impl Row {
    pub(crate) fn new(cell: Cell, wanted: u32, runs: Vec<Run>, given_up: Option<String>) -> Row {
        let spread = |value: &dyn Fn(&Run) -> Option<f64>| Spread::of(runs.iter().filter_map(value));
        let mut verdict = Verdict::default();
        for run in &runs {
            let more = &run.verdict;
            verdict.lost += more.lost;
            verdict.repeated += more.repeated;
            verdict.altered += more.altered;
            verdict.diverged += more.diverged;
            verdict.reset += more.reset;
            verdict.hung += more.hung;
            verdict.unmended += more.unmended;
            verdict.restarts += more.restarts;
            verdict.complaints.extend(more.complaints.iter().map(|complaint| format!("run {}: {complaint}", run.number)));
        }
        Row {
            detection: spread(&|run| run.detected_ms),
            recovery_after_detection: spread(&Run::after_detection_ms),
            recovery: spread(&|run| run.recovered_ms),
            stall: spread(&|run| run.stall_ms),
            resumed: spread(&|run| run.resumed_ms),
            stall_beyond_cut: spread(&|run| Some((run.stall_ms? - run.cut_ms?).max(0.0))),
            cell,
            wanted,
            given_up,
            verdict,
            runs,
        }
    }

    fn passed(&self) -> bool {
        self.verdict.is_fine() && self.given_up.is_none() && self.runs.len() >= self.wanted as usize
    }
}

impl Report {
    /// Judges.
    pub(crate) fn new(seed: u64, begun_unix_ms: u64, seconds: f64, machine: Machine, floors: Vec<Floor>, cells: Vec<Row>) -> Report {
        let passed = !cells.is_empty() && cells.iter().all(Row::passed);
        let version = env!("CARGO_PKG_VERSION");
        Report { passed, seed, begun_unix_ms, seconds, version, debug: cfg!(debug_assertions), machine, floors, cells }
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let Machine { kernel, processor, processors, load } = &self.machine;
        // Writing to a String does not fail.
        let _ = writeln!(out, "ARMOR campaign of {}, seed {}, {:.0} s", output::time(self.begun_unix_ms), self.seed, self.seconds);
        let build = if self.debug { "debug build: its times say little" } else { "release build" };
        let _ = writeln!(out, "armor {}, {build}; Linux {kernel}; {processors} x {processor}; load before {load}\n", self.version);
        let _ = writeln!(out, "Times in ms: median / 95th percentile / worst of all runs; of a run the connection that fared worst");
        let _ = writeln!(out, "{}", indent(&self.times()));
        let _ = writeln!(out, "Connections that were not what they should be\n{}", indent(&self.verdicts()));
        let floors = self.floors();
        if !floors.is_empty() {
            let _ = writeln!(
                out,
                "The server's crash beside the floor: the same server started by hand, killed after each run, started again, until it accepts.\nThe crash is to cost at most 1.5 x floor + 3 ms; with a standby 0.2 x floor; at the median\n{}",
                indent(&floors)
            );
        }
        for row in &self.cells {
            for complaint in row.verdict.complaints.iter().take(5).chain(&row.given_up) {
                let _ = writeln!(out, "{}: {complaint}", row.cell);
            }
        }
        let runs: usize = self.cells.iter().map(|row| row.runs.len()).sum();
        let wanted: u64 = self.cells.iter().map(|row| u64::from(row.wanted)).sum();
        let _ = match self.passed {
            true => writeln!(out, "Passed: {runs} faults, nothing lost, repeated, altered, diverged, reset, hung or started again."),
            false => writeln!(out, "FAILED: {runs} of {wanted} faults were injected; see above, and replay with the seed."),
        };
        out
    }

    fn times(&self) -> String {
        let mut table = Table::new(&[
            "TARGET",
            "FAULT",
            "PLACEMENT",
            "POLICY",
            "RUNS",
            "DETECTION",
            "RECOVERY AFTER IT",
            "CLIENT'S STALL",
            "FIRST NEW BYTE",
            "STALL BEYOND CUT",
        ]);
        for row in &self.cells {
            let Cell { target, fault, placement, policy } = row.cell;
            let spread = |spread: &Option<Spread>| spread.map_or_else(String::new, |spread| spread.to_string());
            table.row([
                target.to_string(),
                fault.to_string(),
                placement.to_string(),
                policy.to_string(),
                row.runs.len().to_string(),
                spread(&row.detection),
                spread(&row.recovery_after_detection),
                spread(&row.stall),
                spread(&row.resumed),
                spread(&row.stall_beyond_cut),
            ]);
        }
        table.render()
    }

    fn verdicts(&self) -> String {
        let heads = Verdict::default().counts().map(|(name, _)| name.to_uppercase());
        let columns: Vec<&str> = ["TARGET", "FAULT", "RUNS", "CONNECTIONS"].into_iter().chain(heads.iter().map(String::as_str)).collect();
        let mut table = Table::new(&columns);
        let mut kinds: Vec<(Target, Fault)> = self.cells.iter().map(|row| (row.cell.target, row.cell.fault)).collect();
        kinds.dedup();
        for (target, fault) in kinds {
            let rows = || self.cells.iter().filter(move |row| (row.cell.target, row.cell.fault) == (target, fault));
            let runs: usize = rows().map(|row| row.runs.len()).sum();
            let connections: u64 = rows().flat_map(|row| &row.runs).map(|run| u64::from(run.connections)).sum();
            let count = |number: usize| rows().map(|row| u64::from(row.verdict.counts()[number].1)).sum::<u64>().to_string();
            let counts = (0..heads.len()).map(count);
            table.row([target.to_string(), fault.to_string(), runs.to_string(), connections.to_string()].into_iter().chain(counts));
        }
        table.render()
    }

    fn floors(&self) -> String {
        let mut table = Table::new(&["SERVER", "FLOOR", "FIRST NEW BYTE", "AT MOST", "WITHIN"]);
        for floor in &self.floors {
            let row = self.cells.iter().find(|row| row.cell == floor.cell);
            let Some(resumed) = row.and_then(|row| row.resumed) else { continue };
            let program = floor.command.iter().take(3).map(|word| word.rsplit('/').next().unwrap_or(word)).collect::<Vec<_>>().join(" ");
            let within = if resumed.median_ms <= floor.allowed_ms() { "yes" } else { "no" };
            let allowed = format!("{:.1}", floor.allowed_ms());
            table.row([
                format!("{program} ({}, {})", floor.cell.policy, floor.cell.placement),
                floor.spread.to_string(),
                resumed.to_string(),
                allowed,
                within.to_owned(),
            ]);
        }
        table.render()
    }
}

pub(crate) fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::matrix::{Placement, Policy};
    use super::*;

    pub(in super::super) fn run(number: u32, detected: f64, resumed: f64) -> Run {
        Run {
            number,
            delay_ms: 0,
            at_unix_ms: 0.0,
            connections: 4,
            detected_ms: Some(detected),
            recovered_ms: Some(resumed),
            stall_ms: Some(resumed + 1.0),
            resumed_ms: Some(resumed),
            cut_ms: None,
            verdict: Verdict::default(),
            logs: None,
        }
    }

    pub(in super::super) fn row(target: Target, runs: Vec<Run>) -> Row {
        let cell = Cell { target, fault: Fault::Kill, placement: Placement::Groups, policy: Policy::Request };
        Row::new(cell, 2, runs, None)
    }

    fn report(rows: Vec<Row>) -> Report {
        let machine = Machine { kernel: "6.1".to_owned(), processor: "cpu".to_owned(), processors: 2, load: "0.1".to_owned() };
        let spread = Spread { median_ms: 2.0, p95_ms: 3.0, worst_ms: 4.0 };
        let cell = Cell { target: Target::Server, fault: Fault::Kill, placement: Placement::Groups, policy: Policy::Request };
        let floor = Floor { cell, command: vec!["/bin/armor".to_owned(), "campaign-server".to_owned()], runs: 20, spread };
        Report::new(7, 0, 1.0, machine, vec![floor], rows)
    }

    #[test]
    fn a_campaign_passes_only_when_all_runs_were_done_and_fine() {
        let fine = || row(Target::Server, vec![run(0, 1.0, 5.0), run(1, 2.0, 7.0)]);
        assert!(report(vec![fine()]).passed);
        assert!(!report(Vec::new()).passed);
        assert!(!report(vec![fine(), row(Target::Daemon, vec![run(0, 1.0, 5.0)])]).passed);
        for number in 0..Verdict::default().counts().len() {
            let mut bad = run(1, 1.0, 5.0);
            let Verdict { lost, repeated, altered, diverged, reset, hung, unmended, restarts, .. } = &mut bad.verdict;
            *[lost, repeated, altered, diverged, reset, hung, unmended, restarts][number] = 1;
            let report = report(vec![row(Target::Server, vec![run(0, 1.0, 5.0), bad])]);
            assert!(!report.passed && report.text().contains("FAILED"), "{number}");
        }
    }

    #[test]
    fn the_tables_show_times_counts_and_the_floor() {
        let text = report(vec![row(Target::Server, vec![run(0, 1.0, 5.0), run(1, 2.0, 7.0)])]).text();
        for expected in [
            "  server  kill   groups     request  2     1.0 / 2.0 / 2.0  4.0 / 5.0 / 5.0    6.0 / 8.0 / 8.0  5.0 / 7.0 / 7.0  -\n",
            "  server  kill   2     8            0     0 ",
            "  armor campaign-server (request, groups)  2.0 / 3.0 / 4.0  5.0 / 7.0 / 7.0  6.0      yes\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
