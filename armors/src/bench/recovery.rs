//! Recovery times (thesis tables 6.4 and 6.6): a short campaign, as `armor campaign` runs it.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::groups;
use crate::interrupt::Interrupt;

/// A campaign gives nodes a fifth of the runs that it is asked for.
const NODE_PART: u32 = 5;

/// How the failures of one target were recovered from, in ms since the failure; median, 95th percentile, worst.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recovered {
    pub(crate) target: String,
    pub(crate) runs: usize,
    pub(crate) detected: Option<[f64; 3]>,
    /// The first new byte at the client that waited longest.
    pub(crate) resumed: Option<[f64; 3]>,
    /// Nothing was lost, repeated, altered, reset or hung.
    pub(crate) passed: bool,
}

/// Runs it and ends it.
///
/// # Errors
/// When it cannot be run, or somebody wants the end.
pub(super) fn measure(runs: u32, out: &Path, interrupt: &Interrupt) -> anyhow::Result<Vec<Recovered>> {
    let mut found = Vec::new();
    for (targets, runs) in [("server,daemon,execution", runs), ("node", runs * NODE_PART)] {
        found.extend(campaign(targets, runs, &out.join(targets), interrupt)?);
    }
    Ok(found)
}

fn campaign(targets: &str, runs: u32, out: &Path, interrupt: &Interrupt) -> anyhow::Result<Vec<Recovered>> {
    let program = std::env::current_exe().context("the path of the armor program is unknown")?;
    let log = out.with_extension("log");
    let errors = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = Command::new(program);
    command.args([
        "campaign",
        "--faults",
        "kill,loss",
        "--policies",
        "request",
        "--targets",
        targets,
        "--runs",
        &runs.to_string(),
        "--out",
    ]);
    // A group of its own: it is told to end by the bench.
    command.arg(out).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).process_group(0);
    let mut child = command.spawn().context("`armor campaign` cannot be executed")?;
    loop {
        if let Err(wanted) = interrupt.check() {
            groups::signal(child.id(), Signal::INT);
            groups::end(&mut child, Duration::from_secs(30));
            return Err(wanted);
        }
        if child.try_wait().context("`armor campaign`")?.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = std::fs::read(out.join("report.json"));
    let Ok(report) = report else { bail!("`armor campaign` has left no report; {}", crate::environment::tail(&log)) };
    let report: Value = serde_json::from_slice(&report).context("the report of `armor campaign`")?;
    Ok(crate::survey::entries(&report["cells"]).iter().map(recovered).collect())
}

fn recovered(cell: &Value) -> Recovered {
    let spread = |name: &str| {
        let number = |rank: &str| cell[name][rank].as_f64();
        Some([number("median_ms")?, number("p95_ms")?, number("worst_ms")?])
    };
    let runs = crate::survey::entries(&cell["runs"]);
    let broken = ["lost", "repeated", "altered", "diverged", "reset", "hung", "unmended", "restarts"];
    let passed = cell["given_up"].is_null() && broken.iter().all(|what| cell["verdict"][what] == 0);
    Recovered {
        target: cell["cell"]["target"].as_str().unwrap_or_default().to_owned(),
        runs: runs.len(),
        detected: spread("detection"),
        resumed: spread("resumed"),
        passed,
    }
}
