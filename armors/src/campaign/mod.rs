//! `armor campaign`: faults are injected into a running environment, many times and at random instants, while real clients and a real server
//! exchange bytes of which each is known (thesis §6.2.4, tables 6.4 and 6.6: 20 runs per target).
//!
//! [`matrix`] says what is done, [`stage`] is the environment, [`load`] the clients, [`inject`] the faults, [`measure`] what one run shows, [`report`] and
//! [`picture`] what is left; [`server`] and [`client`] are the programs that are run, and know nothing of ARMOR.
//!
//! Invariant: what is drawn for a run depends on seed, cell and the run's number alone, so any run can be done again.

pub(crate) mod client;
mod floor;
mod inject;
mod load;
mod matrix;
mod measure;
mod network;
mod pattern;
mod picture;
pub(crate) mod progress;
mod relay;
mod report;
pub(crate) mod server;
mod stage;
mod talk;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use armor_core::events::Event;

use crate::interrupt::{Interrupt, Interrupted};
use crate::output::{self, Table};
use floor::ByHand;
use inject::Injected;
use load::{Group, Load};
use matrix::{Cell, Choice, Fault, Placement, Planned, Policy, Target};
use measure::{Run, Verdict};
use pattern::Draw;
use progress::Progress;
pub(crate) use report::{Machine, indent};
use report::{Report, Row};
pub(crate) use stage::processes_below;
use stage::{CLIENT_NODE, SERVER_NODE, Stage};

/// Runs of the same clients; then new ones come.
const SESSION: u32 = 25;
/// From when everything flows to the fault, at most, in ms.
const DELAY_MS: u64 = 40;
/// An ARMOR that dies younger makes its vault wait before the next start: that is not what is measured.
const GROWN_UP: Duration = Duration::from_millis(260);
/// Failed runs in a row after which a cell is given up.
const PATIENCE: u32 = 3;

/// Inject faults again and again under load, and compare every byte
///
/// Starts environments of its own, and ends them again. Leaves report.txt, report.json, campaign.svg, and the logs of runs that failed.
/// Ends with status 0 only when nothing was lost, repeated, altered, diverged, reset, hung or started again.
#[derive(clap::Args)]
pub(crate) struct Campaign {
    /// What faults are injected into [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TARGET")]
    targets: Vec<Target>,
    /// What is done to it [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FAULT")]
    faults: Vec<Fault>,
    /// What a node is; namespaces need root
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PLACEMENT", default_value = "groups")]
    placements: Vec<Placement>,
    /// What clients and server speak, and how connections recover [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "POLICY")]
    policies: Vec<Policy>,
    /// Runs for each target and fault, shared out among placements and policies; slow faults get a part of it (see --list)
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: u32,
    /// Most connections of the clients; how many there are is drawn
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=200))]
    connections: u32,
    /// What all draws begin with [default: another one each time]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Do one run again, with those of the same clients before it, such as server-kill-groups-stream:17
    #[arg(long, value_name = "CELL:RUN", value_parser = replay)]
    replay: Option<(Cell, u32)>,
    /// How long connections may take to flow again after a fault
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    deadline: u64,
    /// Further keys of the server's service file, such as `standby = 1` (TOML)
    #[arg(long, value_name = "FILE")]
    service: Option<PathBuf>,
    /// Directory for report, picture and logs
    #[arg(long, value_name = "DIR", default_value = "armor-campaign")]
    out: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Show what would be run, and why the rest is left out
    #[arg(long)]
    list: bool,
}

fn replay(text: &str) -> Result<(Cell, u32), String> {
    let parse = || {
        let (name, run) = text.rsplit_once(':')?;
        let all = matrix::plan(&Choice::default(), 1);
        Some((all.iter().map(|planned| planned.cell).find(|cell| cell.to_string() == name)?, run.parse().ok()?))
    };
    parse().ok_or_else(|| "expected CELL:RUN as a failed run tells it, such as server-kill-groups-stream:17".to_owned())
}

impl Campaign {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let planned = self.plan();
        if self.list {
            output::print(&list(&planned))?;
            return Ok(ExitCode::SUCCESS);
        }
        let cells: Vec<(Cell, u32)> = planned.iter().filter_map(|planned| Some((planned.cell, planned.runs.ok()?))).collect();
        if cells.is_empty() {
            let why = planned.iter().find_map(|planned| planned.runs.err()).unwrap_or("nothing was asked for");
            bail!("there is nothing to run: {why}; --list shows what there is");
        }
        if cells.iter().any(|(cell, _)| cell.placement == Placement::Namespaces) && !rustix::process::geteuid().is_root() {
            bail!("--placements namespaces needs root, to make network namespaces; run it as root, or take --placements groups");
        }
        match self.perform(&cells) {
            Ok(report) => {
                let text = if self.json { format!("{}\n", serde_json::to_string_pretty(&report)?) } else { report.text() };
                output::print(&text)?;
                Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Err(error) if error.is::<Interrupted>() => {
                progress::say("armor: campaign: interrupted; everything that it started is ended");
                Ok(ExitCode::from(130))
            }
            Err(error) => Err(error),
        }
    }

    fn plan(&self) -> Vec<Planned> {
        if let Some((cell, run)) = self.replay {
            return vec![Planned { cell, runs: cell.why_not().map_or(Ok(run + 1), Err) }];
        }
        let choice = Choice {
            targets: self.targets.clone(),
            faults: self.faults.clone(),
            placements: self.placements.clone(),
            policies: self.policies.clone(),
        };
        matrix::plan(&choice, self.runs)
    }

    fn perform(&self, cells: &[(Cell, u32)]) -> anyhow::Result<Report> {
        let out = std::path::absolute(&self.out).with_context(|| format!("--out {}", self.out.display()))?;
        prepare(&out)?;
        let seed = self.seed.unwrap_or_else(|| {
            SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64) ^ u64::from(std::process::id()) << 44
        });
        let extra = match &self.service {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("--service {}", path.display()))?.parse()?,
            None => toml::Table::new(),
        };
        let interrupt = Interrupt::watch()?;
        let begun = Instant::now();
        let begun_unix_ms = armor_core::events::now_ms();
        let machine = Machine::this();
        let progress = Progress::new(cells.iter().map(|(_, runs)| u64::from(*runs)).sum());
        progress.tell(&format!("seed {seed}"));
        let (mut rows, mut floors) = (Vec::new(), Vec::new());
        for &(cell, runs) in cells {
            let mut series = Series { cell, seed, extra: &extra, out: &out, campaign: self, progress: &progress, interrupt: &interrupt };
            let mut by_hand = series.by_hand()?;
            let row = series.run(runs, &mut by_hand)?;
            floors.extend(by_hand.and_then(ByHand::floor));
            progress.tell(&line(&row));
            rows.push(row);
        }
        progress.finish();
        let report = Report::new(seed, begun_unix_ms, begun.elapsed().as_secs_f64(), machine, floors, rows);
        picture::write(&report, &out.join("campaign.svg"))?;
        let write = |name: &str, content: &str| {
            let path = out.join(name);
            std::fs::write(&path, content).with_context(|| format!("{} cannot be written", path.display()))
        };
        write("report.json", &format!("{}\n", serde_json::to_string_pretty(&report).context("report.json")?))?;
        write("report.txt", &report.text())?;
        Ok(report)
    }
}

/// The runs of one cell.
struct Series<'a> {
    cell: Cell,
    seed: u64,
    extra: &'a toml::Table,
    out: &'a Path,
    campaign: &'a Campaign,
    progress: &'a Progress,
    interrupt: &'a Interrupt,
}

/// What a run finds when it begins.
struct Scene {
    // The clients end before the environment does.
    load: Load,
    stage: Stage,
    /// Since when everything is as it should be.
    whole_since: Instant,
}

impl Series<'_> {
    /// The same server without ARMOR, where the server's crash is measured.
    fn by_hand(&self) -> anyhow::Result<Option<ByHand>> {
        if (self.cell.target, self.cell.fault) != (Target::Server, Fault::Kill) {
            return Ok(None);
        }
        let program = std::env::current_exe().context("the path of the armor program is unknown")?;
        ByHand::begin(self.cell, &program, self.seed).map(Some)
    }

    fn run(&mut self, wanted: u32, by_hand: &mut Option<ByHand>) -> anyhow::Result<Row> {
        let first = match self.campaign.replay {
            Some((_, run)) => run - run % self.session_length(),
            None => 0,
        };
        let mut runs: Vec<Run> = Vec::new();
        let mut scene: Option<Scene> = None;
        let mut failures = 0;
        let mut given_up = None;
        for number in first..wanted {
            self.interrupt.check()?;
            self.progress.begin(&format!("{}:{number}", self.cell));
            let outcome = match scene.take() {
                Some(scene) => Ok(scene),
                None => Stage::up(self.cell, self.seed).and_then(|mut stage| {
                    stage.launch(self.extra)?;
                    Ok(Scene { load: self.clients(&stage, number / self.session_length())?, stage, whole_since: Instant::now() })
                }),
            };
            let outcome = outcome.and_then(|mut scene| {
                let run = self.once(number, &mut scene);
                if run.is_err() {
                    self.keep_logs(number, &scene.stage);
                }
                Ok((run?, scene))
            });
            let (mut run, mut now) = match outcome {
                Ok(done) => done,
                Err(error) => {
                    failures += 1;
                    self.progress.tell(&format!("{}:{number} could not be run: {error:#}", self.cell));
                    if failures >= PATIENCE {
                        given_up = Some(format!("given up after {failures} failures in a row, the last one: {error:#}"));
                        break;
                    }
                    continue;
                }
            };
            let last = number + 1 == wanted || (number + 1) % self.session_length() == 0;
            if last && run.verdict.is_fine() {
                // Whether the ends of the streams are right is seen only at their ends.
                let load = std::mem::replace(&mut now.load, Load::new());
                let (breaks, hung) = load.end(self.deadline());
                let complaints = now.stage.complaints();
                run.verdict = Verdict::of(&breaks);
                run.verdict.hung = hung;
                run.verdict.complaints.extend(complaints);
                if hung > 0 {
                    run.verdict.complaints.push(format!("{hung} connections did not end in order"));
                }
            }
            if number + 1 == wanted && run.verdict.is_fine() {
                run.verdict.complaints = now.stage.down();
            }
            let fine = run.verdict.is_fine();
            if !fine {
                run.logs = self.keep_logs(number, &now.stage);
                let complaints = run.verdict.complaints.join("; ");
                self.progress.tell(&format!(
                    "{0}:{number} FAILED: {complaints}\n  again: armor campaign --seed {1} --connections {2} --replay {0}:{number}",
                    self.cell, self.seed, self.campaign.connections
                ));
            }
            failures = if fine { 0 } else { failures + 1 };
            runs.push(run);
            self.progress.done();
            if let Some(by_hand) = by_hand {
                by_hand.once()?;
            }
            if failures >= PATIENCE {
                given_up = Some(format!("given up after {failures} failed runs in a row"));
                break;
            }
            if fine && !self.cell.uses_up_environment() && number + 1 < wanted {
                if last {
                    now.load = self.clients(&now.stage, (number + 1) / self.session_length())?;
                }
                scene = Some(now);
            }
        }
        Ok(Row::new(self.cell, wanted - first, runs, given_up))
    }

    /// Runs of the same clients.
    fn session_length(&self) -> u32 {
        if self.cell.uses_up_environment() { 1 } else { SESSION }
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(self.campaign.deadline)
    }

    /// Clients of a session: how many, and where, is drawn.
    fn clients(&self, stage: &Stage, session: u32) -> anyhow::Result<Load> {
        let mut draw = Draw::of(self.seed, &format!("{} clients", self.cell), session.into());
        let most = self.campaign.connections;
        let mut groups = vec![Group { node: CLIENT_NODE, connections: draw.between(1, most.into()) as u32 }];
        // Some live beside the server, and share the fate of its node.
        let beside = draw.below(2) == 1 && self.cell.target != Target::Node;
        groups.extend(beside.then_some(Group { node: SERVER_NODE, connections: 1 }));
        let program = load::Program {
            server: stage.server,
            talk: self.cell.policy.talk(),
            seed: self.seed,
            pause_ms: if self.cell.policy.is_python() { 5 } else { 2 },
            first: (session % 4096) * 1024,
        };
        let mut load = Load::new();
        for Group { node, connections } in groups {
            load.start(stage.client(node), program, connections)?;
        }
        load.await_begin(self.deadline())?;
        Ok(load)
    }

    /// One fault.
    fn once(&mut self, number: u32, scene: &mut Scene) -> anyhow::Result<Run> {
        let Scene { load, stage, whole_since } = scene;
        let mut draw = Draw::of(self.seed, &self.cell.to_string(), number.into());
        let delay_ms = draw.below(DELAY_MS + 1);
        let vaulted = matches!(self.cell.target, Target::Daemon | Target::ClientDaemon | Target::Ftm);
        let grown_up = if vaulted { GROWN_UP.saturating_sub(whole_since.elapsed()) } else { Duration::ZERO };
        stage.news();
        stage.await_condition("the server's standbys", self.deadline(), |stage| stage.look().is_ok_and(|look| look.prepared))?;
        let before = stage.look()?;
        std::thread::sleep(grown_up + Duration::from_millis(delay_ms));

        let injected = inject::inject(self.cell, stage, load, &mut draw)?;
        let deadline = Instant::now() + self.deadline();
        let mended = inject::await_mended(&injected, stage, deadline);
        let flows = load.await_flow(deadline.saturating_duration_since(Instant::now()));
        // The application's process is looked for until it is there, which it is as soon as connections flow. Whom to ask is lost with its node.
        let mut after = stage.look();
        while self.cell.target != Target::Node && after.as_ref().map_or(true, |look| look.pid.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            after = stage.look();
        }
        load.catch_up();

        let mut verdict = Verdict::of(load.breaks());
        if !flows {
            let broken = u32::try_from(load.breaks().len()).unwrap_or(u32::MAX);
            verdict.hung = load.connections().saturating_sub(broken + u32::try_from(load.flows().len()).unwrap_or(u32::MAX));
            verdict.complaints.push(format!("{} connections had no new byte within {} s", verdict.hung, self.campaign.deadline));
        }
        let numbered = injected.victim.is_some();
        if numbered && mended.mended_ms.is_none() {
            verdict.unmended = 1;
            verdict.complaints.push(format!("the {} is not as before after {} s", self.cell.target, self.campaign.deadline));
        }
        match &after {
            Ok(after) => {
                let own = u64::from(self.cell.target == Target::Server);
                if self.cell.target != Target::Node && (after.restarts != before.restarts + own || (own == 0 && after.pid != before.pid)) {
                    verdict.restarts = 1;
                    verdict
                        .complaints
                        .push(format!("restarts {} -> {}, process {:?} -> {:?}", before.restarts, after.restarts, before.pid, after.pid));
                }
            }
            Err(_) if self.cell.target == Target::Node => {}
            Err(error) => verdict.complaints.push(format!("{error:#}")),
        }
        let news = stage.news();
        verdict.diverged = number_of(&news, "connection-diverged");
        verdict.complaints.extend(stage.complaints());
        if verdict.diverged > 0 && self.cell.policy.is_python() {
            // It tells the time; that is let pass by its service.
            verdict.diverged = 0;
        }
        let worst = |value: fn(&load::Flow) -> f64| load.flows().values().map(value).max_by(f64::total_cmp);
        let resumed_ms = worst(|flow| flow.resumed_ms);
        let recovered_ms = match (mended.mended_ms, resumed_ms) {
            (Some(mended), Some(resumed)) if !self.cell.target.clients_do_not_notice() => Some(mended.max(resumed)),
            (mended, resumed) => mended.or(resumed),
        };
        let look = after.unwrap_or_default();
        let run = Run {
            number,
            delay_ms,
            at_unix_ms: injected.at_unix_ms,
            connections: load.connections(),
            detected_ms: mended.detected_ms.or_else(|| detected(self.cell, &injected, &look, &news)),
            recovered_ms: recovered_ms.filter(|_| flows),
            stall_ms: worst(|flow| flow.stall_ms),
            resumed_ms,
            cut_ms: injected.cut_ms,
            verdict,
            logs: None,
        };
        *whole_since = Instant::now();
        Ok(run)
    }

    fn keep_logs(&self, number: u32, stage: &Stage) -> Option<String> {
        let directory = self.out.join("failures").join(format!("{}-{number}", self.cell));
        match stage.save_logs(&directory) {
            Ok(()) => Some(directory.display().to_string()),
            Err(error) => {
                self.progress.tell(&format!("armor: campaign: logs cannot be saved to {}: {error}", directory.display()));
                None
            }
        }
    }
}

/// When the fault was found, by ARMOR's own word, in ms since it.
fn detected(cell: Cell, injected: &Injected, look: &stage::Look, news: &[Event]) -> Option<f64> {
    let since = |at_ms: u64| (at_ms as f64 - injected.at_unix_ms).max(0.0);
    // Their times are whole milliseconds.
    let is_after = |at_ms: u64| at_ms as f64 + 1.0 > injected.at_unix_ms;
    if (cell.target, cell.fault) == (Target::Server, Fault::Kill) {
        let recovery = look.recoveries.iter().filter(|recovery| is_after(recovery.at_ms)).min_by_key(|recovery| recovery.at_ms)?;
        return Some(since(recovery.at_ms + recovery.detected_ms?));
    }
    let told = match cell.target {
        Target::Node => &["node-failed"][..],
        // In the timeline the recovery of what hangs begins when it is killed.
        Target::Server => &["application-hung"],
        _ => &["link-down", "link-refused", "frame-refused"],
    };
    news.iter().filter(|event| told.contains(&&*event.what) && is_after(event.at_ms)).map(|event| since(event.at_ms)).min_by(f64::total_cmp)
}

/// How many connections events of a name tell of.
fn number_of(news: &[Event], what: &str) -> u32 {
    let count = |event: &Event| event.values.get("connections").and_then(|number| number.parse().ok()).unwrap_or(1);
    news.iter().filter(|event| event.what == what).map(count).sum()
}

fn line(row: &Row) -> String {
    let spread = |name: &str, spread: Option<measure::Spread>| spread.map_or_else(String::new, |spread| format!(", {name} {spread}"));
    let counts: Vec<String> =
        row.verdict.counts().iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    let counts = if counts.is_empty() { "fine".to_owned() } else { counts.join(", ") };
    let times = spread("detection", row.detection) + &spread("recovery", row.recovery) + &spread("stall", row.stall);
    format!("{}: {} of {} runs, {counts}{times} ms", row.cell, row.runs.len(), row.wanted)
}

/// What is run, then what is left out: policies with the same reason together.
fn list(planned: &[Planned]) -> String {
    let mut table = Table::new(&["TARGET", "FAULT", "PLACEMENT", "POLICY", "RUNS"]);
    for Planned { cell: Cell { target, fault, placement, policy }, runs } in planned {
        if let Ok(runs) = runs {
            table.row([target.to_string(), fault.to_string(), placement.to_string(), policy.to_string(), runs.to_string()]);
        }
    }
    let mut out: Vec<(Cell, String, &str)> = Vec::new();
    for &Planned { cell, runs } in planned {
        let Err(why) = runs else { continue };
        match out.last_mut() {
            Some((last, policies, same))
                if (last.target, last.fault, last.placement, *same) == (cell.target, cell.fault, cell.placement, why) =>
            {
                policies.push_str(&format!(", {}", cell.policy));
            }
            _ => out.push((cell, cell.policy.to_string(), why)),
        }
    }
    let mut left_out = Table::new(&["TARGET", "FAULT", "PLACEMENT", "POLICY", "LEFT OUT BECAUSE"]);
    for (Cell { target, fault, placement, .. }, policies, why) in out {
        left_out.row([target.to_string(), fault.to_string(), placement.to_string(), policies, why.to_owned()]);
    }
    format!("{}\n{}", table.render(), left_out.render())
}

/// Makes the directory, without what an earlier campaign left.
fn prepare(out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made; choose another place with --out", out.display()))?;
    for name in ["report.txt", "report.json", "campaign.svg", "failures"] {
        let path = out.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(anyhow!("{} of an earlier campaign cannot be removed: {error}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
