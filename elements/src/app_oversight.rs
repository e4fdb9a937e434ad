//! `app_oversight`: launches applications, watches them and starts them again (thesis §3.2.2, Execution ARMOR; §4.5.1).
//!
//! Purpose: one supervised process group per application, watched by pidfd, restarted at once when it fails, with a limit
//! and a growing pause when it fails young. Lives in the daemon or in an Execution ARMOR (thesis §6.3).
//! Subscribes: `MSG_APP_LAUNCH`, `MSG_APP_STOP`, `MSG_APP_HUNG`, `MSG_APP_STANDBY_HELD`, `MSG_APP_FLOWS`, `MSG_APP_TAKE_OVER`, `MSG_APP_FENCE`,
//! `MSG_APP_HOLD`, `MSG_APP_HOLD_END`, `MSG_DAEMON_REGISTERED`, `MSG_LEASE_TOLD`. Emits: `MSG_APP_LAUNCHED`, `MSG_APP_STOPPED`, `MSG_APP_STARTED`, `MSG_APP_IS_OVER`, `MSG_APP_FAILED`, `MSG_APP_STANDBY_STARTED`,
//! `MSG_APP_STANDBY_ENDED`, `MSG_APP_FENCED`; to the FTM (acknowledged) `MSG_APP_OVERSEER`, `MSG_APP_REPORT`, `MSG_APP_TAKEN_OVER`,
//! `MSG_APP_FENCE_DONE`, `MSG_APP_HOLDS`.
//! Configuration: `stop_grace_ms` (between SIGTERM and SIGKILL), `max_log_bytes` (an application's log is begun anew at a restart beyond it),
//! `labels` (what this node says of itself, for placement).
//! What waits for a failure is in `standby`, for that of another node in `holding`, what moves between nodes in `moving`, what hangs in `hangs`, what a node's isolation ends in `isolation`.
//!
//! Invariants: APP_COMM_SERVER, in the same thread, is told of a life before its process can say anything; never two lives of an application at once: its whole process group is killed before the next one starts.

#[path = "app_oversight/hangs.rs"]
mod hangs;
#[path = "app_oversight/holding.rs"]
mod holding;
#[path = "app_oversight/isolation.rs"]
mod isolation;
#[path = "app_oversight/moving.rs"]
mod moving;
#[path = "app_oversight/program.rs"]
mod program;
#[path = "app_oversight/restored.rs"]
mod restored;
#[path = "app_oversight/standby.rs"]
mod standby;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::{Event, now_ms};
use armor_core::operations::SendReliable;
use armor_proto::hookup::{ENV_INSTANCE, ENV_SERVICE};
use armor_proto::ids::{ArmorId, Incarnation};
use armor_vault::Exited;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use crate::endpoints::Keeping;
use crate::operations::{
    AppFailed, AppFenceDone, AppFenced, AppHolds, AppIsOver, AppLaunch, AppLaunched, AppOverseer, AppReport, AppStandbyEnded,
    AppStandbyStarted, AppStarted, AppStop, AppStopped, AppTakenOver, ApplicationSpec, ApplicationState, Labels, LaunchId, check_labels,
};
use holding::Hold;
use isolation::Isolation;
use standby::{Instance, Standbys};

/// Most applications per ARMOR; one more is refused.
const MAX_APPLICATIONS: usize = 1024;
/// A program that lived longer than this is restarted without a pause.
const GROWN_UP: Duration = Duration::from_millis(250);
/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    stop_grace_ms: u64,
    max_log_bytes: u64,
    labels: Labels,
}

impl Default for Config {
    fn default() -> Self {
        Config { stop_grace_ms: 3000, max_log_bytes: 16 << 20, labels: Labels::new() }
    }
}

struct Application {
    spec: ApplicationSpec,
    state: ApplicationState,
    pid: u32,
    /// When that process was started, to tell it from a later one with the same number.
    born: u64,
    /// Tells it and its children from those of other lives and from standbys.
    instance: u64,
    incarnation: Incarnation,
    started: Instant,
    failures: VecDeque<Instant>,
    restarts: u64,
    pause: Duration,
    stopping: Option<ArmorId>,
    /// When it was killed because it hung, in milliseconds since 1970.
    hung_at_ms: Option<u64>,
    number: u64,
    standbys: Standbys,
    launch: LaunchId,
    /// Given out by the FTM when it ordered this application here; its lives here come after it.
    epoch: Incarnation,
    /// The node that it was on before.
    moved_from: Option<String>,
}

impl Application {
    /// One that has yet to be started.
    fn new(spec: ApplicationSpec, number: u64, launch: LaunchId) -> Application {
        let pause = Duration::from_millis(spec.backoff_ms);
        Application {
            spec,
            state: ApplicationState::Restarting,
            pid: 0,
            born: 0,
            instance: 0,
            incarnation: Incarnation(0),
            started: Instant::now(),
            failures: VecDeque::new(),
            restarts: 0,
            pause,
            stopping: None,
            hung_at_ms: None,
            number,
            standbys: Standbys::default(),
            launch,
            epoch: Incarnation(0),
            moved_from: None,
        }
    }
}

/// The element.
pub struct AppOversight {
    config: Config,
    run_dir: PathBuf,
    node: String,
    applications: BTreeMap<String, Application>,
    /// Standbys of applications that run on other nodes.
    holds: BTreeMap<LaunchId, Hold>,
    next_number: u64,
    next_instance: u64,
    /// Standbys that are being ended.
    leaving: Vec<Instance>,
    /// This ARMOR is being shut down: nothing is started any more.
    ending: bool,
    /// An earlier life has said what it had started.
    restored: bool,
    keeping: Keeping,
    /// How processes of an earlier life have ended.
    exits: VecDeque<Exited>,
    isolation: Isolation,
}

/// Timer tokens: an application's number, and what is due.
const RESTART: u64 = 0;
const KILL: u64 = 1;

impl Element for AppOversight {
    const NAME: &'static str = "app_oversight";
    const PURPOSE: &'static str = "launches, watches and restarts applications (thesis §3.2.2)";
    const EXAMPLE: &'static str = "stop_grace_ms = 3000\nmax_log_bytes = 16777216\nlabels = { zone = \"a\" }\n";
    // They have to know of a new life of an application before that binds an address, or connects to one.
    const SAME_THREAD: &'static [&'static str] = &["APP_COMM_SERVER", "APP_COMM_CLIENT"];
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        check_labels(&config.labels)?;
        let (keeping, handed) = Keeping::open(setup, Self::NAME)?;
        // An installed ARMOR is named after its node: node1/web.
        let node = setup.name.split('/').next().unwrap_or_default().to_owned();
        let (run_dir, applications, exits) = (setup.run_dir.clone(), BTreeMap::new(), handed.exited.into());
        // No life of this ARMOR uses a number again.
        let next_instance = now_ms() << 16;
        Ok(AppOversight {
            config,
            run_dir,
            node,
            applications,
            holds: BTreeMap::new(),
            next_number: 1,
            next_instance,
            leaving: Vec::new(),
            ending: false,
            restored: false,
            keeping,
            exits,
            isolation: Isolation::default(),
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::launch)
            .on(Self::stop_application)
            .on(Self::hung)
            .on(Self::standby_held)
            .on(Self::application_flows)
            .on(Self::take_over)
            .on(Self::fence)
            .on(Self::hold)
            .on(Self::hold_end)
            .on(Self::registered)
            .on(Self::lease_told)
            .emits::<AppFenced>()
            .emits::<AppHolds>()
            .emits::<AppOverseer>()
            .emits::<AppReport>()
            .emits::<AppTakenOver>()
            .emits::<AppFenceDone>()
            .emits::<SendReliable>()
            .emits::<AppLaunched>()
            .emits::<AppStopped>()
            .emits::<AppStarted>()
            .emits::<AppIsOver>()
            .emits::<AppFailed>()
            .emits::<AppStandbyStarted>()
            .emits::<AppStandbyEnded>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        // Orphans are left to the vault, which waits for them: here nobody would, and whoever looks whether a group has ended would see their zombies.
        let logs = self.run_dir.join("logs");
        std::fs::create_dir_all(&logs).map_err(|error| format!("{}: {error}", logs.display()))?;
        self.keeping.watch(context, Self::process_exited, |_| {});
        self.take_up_lease(context);
        self.take_up(context);
        if context.setup().kind == "execution" {
            // A daemon does so when the FTM has heard of it.
            self.report_all(context);
        }
        Ok(())
    }

    fn capture(&self) -> Option<Vec<u8>> {
        self.captured()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.take_back(state)
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        if token == isolation::TIMER {
            return self.lease_timer(context);
        }
        let Some(name) = self.applications.iter().find(|(_, app)| app.number == token >> 1).map(|(name, _)| name.clone()) else { return };
        match token & 1 {
            RESTART => self.begin(&name, context),
            _ => {
                if let Some(application) = self.applications.get(&name) {
                    kill_group(application.pid, Signal::KILL);
                }
            }
        }
    }

    fn status(&self) -> serde_json::Value {
        let applications: Vec<_> = self
            .applications
            .values()
            .map(|app| {
                serde_json::json!({
                    "name": app.spec.name, "state": app.state, "pid": app.pid, "restarts": app.restarts,
                    "incarnation": app.incarnation.0, "stopping": app.stopping.is_some(), "log": self.log(&app.spec.name), "command": app.spec.command, "standbys": app.standbys.status(app.spec.standby),
                    "moved_from": app.moved_from,
                })
            })
            .collect();
        let holds: Vec<_> = self.holds.values().map(Hold::status).collect();
        serde_json::json!({ "applications": applications, "holds": holds, "isolated": self.isolation.status() })
    }

    fn leave(&mut self, context: &mut Context<'_>) {
        self.ending = true;
        self.report_leaving(context);
        self.refuse_all_holds(context);
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.ending = true;
        self.keeping.ended();
        let running = self.applications.values().filter(|app| app.state == ApplicationState::Running).map(|app| app.pid);
        let standbys = self.applications.values().flat_map(|app| app.standbys.pids());
        let standbys = standbys.chain(self.holds.values().flat_map(Hold::pids));
        let groups: Vec<u32> = running.chain(standbys).chain(self.leaving.iter().map(|instance| instance.pid)).collect();
        for &group in &groups {
            kill_group(group, Signal::TERM);
        }
        let patience = Instant::now() + Duration::from_millis(self.config.stop_grace_ms);
        for group in groups {
            while group_exists(group) && Instant::now() < patience {
                reap(group);
                std::thread::sleep(Duration::from_millis(5));
            }
            kill_group(group, Signal::KILL);
        }
    }
}

impl AppOversight {
    fn log(&self, name: &str) -> PathBuf {
        self.run_dir.join("logs").join(format!("{name}.log"))
    }

    fn launch(&mut self, asked: &AppLaunch, context: &mut Context<'_>) {
        let spec = asked.spec.clone();
        let name = spec.name.clone();
        let asker = context.source();
        self.make_room();
        let refusal = if let Err((_, reason)) = spec.check() {
            Some(reason)
        } else if self.ending {
            Some("this ARMOR is ending".to_owned())
        } else if self.applications.get(&name).is_some_and(|app| app.state.is_meant_to_run()) {
            Some(format!("an application {name:?} is running already; `armor stop {name}` ends it"))
        } else if self.applications.len() >= MAX_APPLICATIONS && !self.applications.contains_key(&name) {
            Some(format!("{MAX_APPLICATIONS} applications are supervised here already"))
        } else {
            self.isolation.refusal()
        };
        if let Some(error) = refusal {
            context.send_to(asker, AppLaunched { name, pid: 0, error });
            return;
        }
        let (number, launch) = (self.next_number, self.next_launch(context));
        self.next_number += 1;
        let incarnation = self.applications.get(&name).map_or(Incarnation(0), |app| app.incarnation);
        let application = Application { incarnation, ..Application::new(spec, number, launch) };
        self.applications.insert(name.clone(), application);
        if self.restored {
            // It may have been started just before the death of this ARMOR, without a word.
            self.end_leftovers(&name, context);
        }
        match self.spawn(&name, context) {
            Ok(pid) => context.send_to(asker, AppLaunched { name, pid, error: String::new() }),
            Err(error) => {
                self.applications.remove(&name);
                context.send_to(asker, AppLaunched { name, pid: 0, error });
            }
        }
    }

    /// One that is over makes room for another.
    fn make_room(&mut self) {
        let over = self.applications.iter().find(|(_, app)| !app.state.is_meant_to_run()).map(|(name, _)| name.clone());
        if self.applications.len() >= MAX_APPLICATIONS
            && let Some(name) = over
        {
            self.applications.remove(&name);
        }
    }

    /// Starts the next life of an application.
    fn begin(&mut self, name: &str, context: &mut Context<'_>) {
        if self.ending || self.applications.get(name).is_none_or(|app| app.state != ApplicationState::Restarting || app.stopping.is_some())
        {
            return;
        }
        if self.release_standby(name, context) {
            return;
        }
        if let Err(error) = self.spawn(name, context) {
            context.event(Event::new("application-not-started").with("service", name).with("reason", &error));
            self.failed(name, 0, &error, false, now_ms(), context);
        }
    }

    fn spawn(&mut self, name: &str, context: &mut Context<'_>) -> Result<u32, String> {
        let log = self.log(name);
        let Some(application) = self.applications.get(name) else { return Err("no such application".to_owned()) };
        if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > self.config.max_log_bytes) {
            let _ = std::fs::rename(&log, log.with_extension("log.1"));
        }
        let spec = application.spec.clone();
        let process = self.start_process(&spec, context)?;
        let pid = process.pid;
        self.lives(name, &process, context);
        Ok(pid)
    }

    /// Starts a process of an application, and watches it. What it is to the application is the caller's to say, in the same turn.
    fn start_process(&mut self, spec: &ApplicationSpec, context: &mut Context<'_>) -> Result<Instance, String> {
        let mut command = program::protected(spec, &spec.command, &self.run_dir, &self.log(&spec.name))?;
        self.next_instance += 1;
        let instance = self.next_instance;
        command.env(ENV_SERVICE, &spec.name).env(ENV_INSTANCE, instance.to_string());
        let mut child = command.spawn().map_err(|error| format!("cannot start {:?}: {error}", spec.command[0]))?;
        let pid = child.id().unwrap_or(0);
        let handle = context.handle::<Self>();
        let name = spec.name.clone();
        context.spawn(async move {
            let status = child.wait().await;
            handle.call(|element, context| {
                if element.standby_ended(&name, pid, status.as_ref().ok(), context) {
                    return;
                }
                let (how, orderly) = match status {
                    Ok(status) => (status.to_string(), status.success()),
                    Err(error) => (error.to_string(), false),
                };
                element.ended(&name, pid, &how, orderly, context);
            });
        });
        Ok(Instance::new(instance, pid))
    }

    /// A process is the application's next life.
    fn lives(&mut self, name: &str, process: &Instance, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(name) else { return };
        (application.pid, application.born, application.instance) = (process.pid, process.born, process.number);
        context.state_changed();
        application.incarnation = application.next_incarnation();
        application.started = Instant::now();
        application.state = ApplicationState::Running;
        let (pid, incarnation) = (application.pid, application.incarnation);
        context.event(Event::new("application-started").with("service", name).with("pid", pid).with("incarnation", incarnation.0));
        context.send_to(context.armor(), application.started_now());
        self.probe_by_command(name, context);
        self.report(name, context);
    }

    fn ended(&mut self, name: &str, pid: u32, how: &str, orderly: bool, context: &mut Context<'_>) {
        // What the dead process left behind in its group must not hold the address or the files of the next life.
        kill_group(pid, Signal::KILL);
        self.failed(name, pid, how, orderly, now_ms(), context);
    }

    fn failed(&mut self, name: &str, pid: u32, how: &str, orderly: bool, at_ms: u64, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(name).filter(|app| app.pid == pid || pid == 0) else { return };
        context.state_changed();
        let now = Instant::now();
        application.standbys.application_failed();
        let window = Duration::from_secs(application.spec.restart_window_s);
        let stopping = application.stopping.take();
        // Recovery counts from when it was decided to kill it.
        let hung_at_ms = application.hung_at_ms.take().filter(|_| !orderly);
        let (how, at_ms) = (hung_at_ms.map_or(how, |_| "it hung and was killed"), hung_at_ms.unwrap_or(at_ms));
        let mut restarting = false;
        if stopping.is_some() || orderly || self.ending {
            application.state = ApplicationState::Ended;
        } else {
            application.failures.push_back(now);
            while application.failures.front().is_some_and(|first| now.duration_since(*first) > window) {
                application.failures.pop_front();
            }
            restarting = application.failures.len() <= application.spec.restart_limit as usize;
            application.state = if restarting { ApplicationState::Restarting } else { ApplicationState::GivenUp };
        }
        let failure = AppFailed {
            name: name.to_owned(),
            pid,
            incarnation: application.incarnation,
            how: how.to_owned(),
            orderly: orderly || stopping.is_some(),
            restarting,
            failed_at_ms: at_ms,
        };
        let what = match application.state {
            ApplicationState::Ended => "application-ended",
            ApplicationState::GivenUp => "application-given-up",
            _ => "application-failed",
        };
        context.event(Event::new(what).with("service", name).with("pid", pid).with("how", how));
        context.send_to(context.armor(), failure);
        if let Some(asker) = stopping.filter(|asker| *asker != ArmorId::NONE) {
            context.send_to(asker, AppStopped { name: name.to_owned(), error: String::new() });
        }
        if restarting {
            application.restarts += 1;
            let young = pid == 0 || now.duration_since(application.started) < GROWN_UP;
            // The first failure never waits: most crashes are not a crash at start-up.
            let pause = if young && application.failures.len() > 1 { application.pause } else { Duration::ZERO };
            application.pause = if young && application.failures.len() > 1 {
                (application.pause * 2).min(LONGEST_PAUSE)
            } else {
                Duration::from_millis(application.spec.backoff_ms)
            };
            if pause.is_zero() {
                self.begin(name, context);
            } else {
                context.timer(pause, application.number << 1 | RESTART);
            }
        } else {
            self.end_standbys(name, context);
            self.report(name, context);
        }
    }

    fn stop_application(&mut self, asked: &AppStop, context: &mut Context<'_>) {
        let asker = context.source();
        let name = asked.name.clone();
        if let Some(error) = self.stop_isolated(&name, context) {
            return context.send_to(asker, AppStopped { name, error });
        }
        match self.applications.get_mut(&name) {
            Some(application) if application.state == ApplicationState::Running => {
                application.stopping = Some(asker);
                context.state_changed();
                let pid = application.pid;
                // After the capture: what was to stop must not be started again by the next life of this ARMOR.
                context.then(move || kill_group(pid, Signal::TERM));
                context.timer(Duration::from_millis(self.config.stop_grace_ms), application.number << 1 | KILL);
                self.end_standbys(&name, context);
            }
            Some(application) if application.state == ApplicationState::Restarting => {
                application.state = ApplicationState::Ended;
                context.state_changed();
                let (pid, incarnation) = (application.pid, application.incarnation);
                self.end_standbys(&name, context);
                let how = "stopped".to_owned();
                let ended =
                    AppFailed { name: name.clone(), pid, incarnation, how, orderly: true, restarting: false, failed_at_ms: now_ms() };
                context.send_to(context.armor(), ended);
                self.report(&name, context);
                context.send_to(asker, AppStopped { name, error: String::new() });
            }
            Some(_) => context.send_to(asker, AppStopped { name, error: String::new() }),
            None => {
                let error = format!("no application {name:?} is supervised here; `armor status` lists them");
                context.send_to(asker, AppStopped { name, error });
            }
        }
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn kill_group(pid: u32, signal: Signal) {
    if let Some(group) = pid_of(pid) {
        let _ = kill_process_group(group, signal);
    }
}

fn group_exists(pid: u32) -> bool {
    pid_of(pid).is_some_and(|group| rustix::process::test_kill_process_group(group).is_ok())
}

fn reap(pid: u32) {
    if let Some(group) = pid_of(pid) {
        let _ = rustix::process::waitpgid(group, rustix::process::WaitOptions::NOHANG);
    }
}
