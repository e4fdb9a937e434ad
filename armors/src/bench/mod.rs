//! `armor bench`: the measurements of thesis chapter 6 (tables 6.1 to 6.6), and what the thesis did not measure, beside other ways from a client to a server.
//!
//! [`row`] is what is measured beside each other and [`lane`] its processes; [`metric`] what is measured and [`rounds`] the measuring; [`results`] what is
//! told of it, by [`report`], [`page`] and [`picture`]. The programs that are measured with are those of `benches/`, and know nothing of ARMOR.
//!
//! Invariant: whatever was started ends with the bench, also when it is interrupted.

mod goals;
mod groups;
mod lane;
mod metric;
mod network;
mod page;
mod picture;
mod process;
mod proxies;
mod recovery;
mod report;
mod results;
mod rounds;
mod row;
mod shelter;
mod talker;
mod thesis;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::campaign::Machine;
use crate::campaign::progress::{self, Progress};
use crate::interrupt::{Interrupt, Interrupted};
use crate::output;
use crate::program::{self, Found};
use lane::{Lane, Service};
use process::Cores;
use report::Report;
use results::Results;
use rounds::{Plan, Rounds};
use row::Row;

/// What an ARMOR needs of descriptors for one connection, at most.
const DESCRIPTORS: u64 = 3;
/// What is left to all else.
const OTHER_DESCRIPTORS: u64 = 2000;

/// Measure latency, throughput, connections and recovery, beside direct TCP and dual proxies
///
/// Everything is started by the bench, and ended again. Leaves report.txt, report.json and pictures. As root it runs in a network namespace of its own, where all
/// have the same congestion control. Ends with status 0 when everything could be measured; figures are not judged.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// What is measured beside each other [default: all whose programs are installed]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROW")]
    rows: Vec<Row>,
    /// How often each row has its turn with each figure
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Failures per target of which recovery is measured; 0: none
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    failures: u32,
    /// So little of everything that the figures mean nothing: to see that it works
    #[arg(long)]
    short: bool,
    /// Directory for report and pictures
    #[arg(long, value_name = "DIR", default_value = "armor-bench")]
    out: PathBuf,
    /// Measure nothing: tell again what the report of an earlier bench holds
    #[arg(long, value_name = "REPORT.json", conflicts_with_all = ["rows", "rounds", "failures", "short", "out"])]
    from: Option<PathBuf>,
    /// Write the page about performance, too
    #[arg(long, value_name = "PAGE.md")]
    write: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(path) = &self.from {
            let name = || path.display().to_string();
            let report = Report::read(&std::fs::read_to_string(path).with_context(name)?).with_context(name)?;
            if let Some(page) = &self.write {
                page::write(&report, page)?;
            }
            output::print(&self.told(&report)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let programs = lane::programs()?;
        let same = network::enter()?;
        match self.perform(&programs, same) {
            Ok(report) => {
                output::print(&self.told(&report)?)?;
                Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Err(error) if error.is::<Interrupted>() => {
                progress::say("armor: bench: interrupted; everything that it started is ended");
                Ok(ExitCode::from(130))
            }
            Err(error) => Err(error),
        }
    }

    fn told(&self, report: &Report) -> anyhow::Result<String> {
        Ok(if self.json { format!("{}\n", serde_json::to_string_pretty(report)?) } else { report.text() })
    }

    fn perform(&self, programs: &lane::Programs, same: network::Same) -> anyhow::Result<Report> {
        let out = std::path::absolute(&self.out).context("the working directory is gone")?;
        let files = out.join("files");
        std::fs::create_dir_all(&files).with_context(|| format!("{} cannot be made; choose another place with --out", files.display()))?;
        let interrupt = Interrupt::watch()?;
        let (begun, begun_unix_ms) = (Instant::now(), armor_core::events::now_ms());
        let machine = Machine::this();
        let cores = Cores::of_this_process().context("the cores of this process")?;
        let plan = if self.short { Plan::short() } else { Plan::full(self.rounds, most_connections()) };
        let (rows, left_out) = self.rows();

        let progress = Progress::new(Rounds::turns(&plan, rows.len()));
        progress.tell(&format!("starting {} rows", rows.len()));
        let mut lanes = Vec::new();
        for row in &rows {
            interrupt.check()?;
            let lane = Lane::start(*row, programs, &files).with_context(|| row.title())?;
            lane.rest();
            lanes.push(lane);
        }
        let mut congestion = BTreeMap::new();
        for lane in &mut lanes {
            congestion.extend(congestion_of(lane)?.map(|name| (lane.row, name)));
        }
        let (results, complaints) = (Results::default(), Vec::new());
        let mut rounds = Rounds { plan: &plan, cores: &cores, interrupt: &interrupt, progress: &progress, results, complaints };
        rounds.run(&mut lanes)?;
        let Rounds { results, mut complaints, .. } = rounds;
        progress.tell("ending the rows");
        drop(lanes);
        let failures = if self.short { self.failures.min(1) } else { self.failures };
        let recovery = if failures == 0 {
            Vec::new()
        } else {
            progress.tell("recovery: a short campaign");
            match recovery::measure(failures, &files, &interrupt) {
                Ok(recovery) => recovery,
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => {
                    complaints.push(format!("recovery: {error:#}"));
                    Vec::new()
                }
            }
        };
        progress.finish();
        let report = Report {
            begun_unix_ms,
            took_s: begun.elapsed().as_secs_f64(),
            machine,
            load_after: Machine::this().load,
            pinned_to: cores.pinned_to,
            versions: versions(),
            congestion_may_differ: same.err(),
            congestion,
            fewer_connections: fewer_connections(&plan),
            plan,
            rows,
            left_out,
            figures: Report::figures(&results),
            recovery,
            goals: Report::goals(&results),
            complaints,
            results,
        };
        self.leave(&report, &out)?;
        Ok(report)
    }

    /// Rows to be measured, and those that cannot be, with the reason.
    fn rows(&self) -> (Vec<Row>, BTreeMap<Row, String>) {
        let wanted = if self.rows.is_empty() { Row::value_variants().to_vec() } else { self.rows.clone() };
        let (mut rows, mut left_out) = (Vec::new(), BTreeMap::new());
        for row in wanted {
            match row.needs().filter(|needed| !matches!(program::find(needed.as_ref()), Found::At(_))) {
                Some(missing) => drop(left_out.insert(row, format!("{missing} is not installed"))),
                None => rows.push(row),
            }
        }
        rows.sort_unstable();
        rows.dedup();
        (rows, left_out)
    }

    fn leave(&self, report: &Report, out: &Path) -> anyhow::Result<()> {
        let write = |name: &str, content: &str| {
            let path = out.join(name);
            std::fs::write(&path, content).with_context(|| format!("{} cannot be written", path.display()))
        };
        write("report.json", &format!("{}\n", serde_json::to_string_pretty(report).context("report.json")?))?;
        write("report.txt", &report.text())?;
        picture::write(report, out)?;
        if let Some(page) = &self.write {
            page::write(report, page)?;
        }
        Ok(())
    }
}

/// How many connections can be open at once here.
fn most_connections() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // HAProxy takes the soft limit for what it may have.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    maximum.map_or(u64::MAX, |maximum| maximum.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS)
}

fn fewer_connections(plan: &Plan) -> Option<String> {
    let most = most_connections();
    plan.held.contains(&most).then(|| {
        format!(
            "Idle connections: at most {most}, since a process may have only {} descriptors here",
            most * DESCRIPTORS + OTHER_DESCRIPTORS
        )
    })
}

fn congestion_of(lane: &mut Lane) -> anyhow::Result<Option<String>> {
    const PATIENCE: Duration = Duration::from_secs(20);
    lane.wake();
    lane.ask(Service::Usual, "hold 1", PATIENCE).with_context(|| lane.row.title())?;
    let names = network::congestion_of(&lane.processes());
    lane.ask(Service::Usual, "hold 0", PATIENCE)?;
    lane.rest();
    Ok(names.filter(|names| !names.is_empty()).map(|names| names.into_iter().collect::<Vec<_>>().join(" and ")))
}

/// Of what is measured.
fn versions() -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([("armor".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    for (name, option, line) in [("haproxy", "-v", "HAProxy version "), ("socat", "-V", "socat version ")] {
        let said = Command::new(name).arg(option).stdin(Stdio::null()).output();
        let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let version = said.lines().find_map(|said| said.strip_prefix(line)?.split_whitespace().next().map(str::to_owned));
        versions.extend(version.map(|version| (name.to_owned(), version)));
    }
    versions
}
