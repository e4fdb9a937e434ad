//! `armor_installer`: a daemon installs ARMORs on its node and keeps them alive (thesis §3.2.2, §4.5.2).
//!
//! Purpose: starts an ARMOR as a process of its own, waits until it has attached, sends it heartbeats, and starts it again
//! under the same name, so with the same identity, from its captured state when it ends or is silent.
//! Subscribes: `MSG_INSTALL_ARMOR`, `MSG_UNINSTALL_ARMOR`, `MSG_ARMOR_ATTACH`, `MSG_HEARTBEAT_REPLY`,
//! `MSG_DAEMON_REGISTERED` (installed ARMORs are told).
//! Emits: `MSG_ARMOR_READY`, `MSG_HEARTBEAT`, `MSG_DAEMON_REGISTERED`.
//! Configuration: `heartbeat_ms`, `misses`, `program`; see [`Config`].
//!
//! Invariant: at most one process of an installed ARMOR is meant to run; what ends with status 0 has ended by its own will.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::{Event, now_ms};
use armor_core::operations::SendReliable;
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::links::child::{self, Ended, Launch};
use crate::operations::{ArmorAttach, ArmorReady, DaemonRegistered, Heartbeat, HeartbeatReply, InstallArmor, UninstallArmor};

const MAX_INSTALLED: usize = 256;
/// Restarts allowed within `restart_window_s`.
const RESTART_LIMIT: usize = 10;
/// Pauses before a restart when an ARMOR died young: the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A life shorter than this makes the next pause longer.
const YOUNG: Duration = Duration::from_secs(5);
/// How long a new ARMOR may take to attach, and to answer its first heartbeat after that.
const ATTACH_WITHIN: Duration = Duration::from_secs(30);
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long ARMORs of this daemon's earlier life have to attach again before they are started anew.
const ADOPT_WITHIN: Duration = Duration::from_millis(1500);
/// From SIGTERM to SIGKILL.
const END_WITHIN: Duration = Duration::from_secs(2);

/// The element.
pub struct ArmorInstaller {
    config: Config,
    program: PathBuf,
    node: String,
    run_dir: PathBuf,
    installed: BTreeMap<String, Installed>,
    sequence: u64,
    beating: bool,
    /// This ARMOR ends: nothing is started again.
    ending: bool,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Pause between two heartbeats to installed ARMORs.
    #[serde(default = "default_heartbeat_ms")]
    heartbeat_ms: u64,
    /// An ARMOR that leaves this many heartbeats in a row unanswered is killed and started again.
    #[serde(default = "default_misses")]
    misses: u32,
    /// Seconds over which an ARMOR's restarts are counted: ten are allowed. 0: they are not counted, and none waits.
    #[serde(default = "default_restart_window_s")]
    restart_window_s: u64,
    /// The program whose `start` runs an ARMOR; this one when absent.
    program: Option<PathBuf>,
}

fn default_heartbeat_ms() -> u64 {
    200
}
fn default_misses() -> u32 {
    5
}
fn default_restart_window_s() -> u64 {
    60
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Runs, not attached yet.
    Starting,
    /// Attached.
    Running,
    /// Was told to end for good.
    Stopping,
    /// Was killed because it is silent; its end is awaited.
    Killed,
    /// Waits for its next start.
    Pausing,
    /// Of this daemon's earlier life; may attach again.
    Orphan,
    /// Failed too often.
    GivenUp,
}

struct Installed {
    composition: String,
    armor: ArmorId,
    state: State,
    pid: Option<u32>,
    /// Process of this daemon's earlier life; its number may be somebody else's by now.
    leftover: Option<u32>,
    /// Which process of this ARMOR; tells late news from new ones.
    life: u64,
    since: Instant,
    askers: Vec<ArmorId>,
    restarts: VecDeque<Instant>,
    pause: Duration,
    asked: bool,
    answered: bool,
    misses: u32,
    failed_at: Option<Instant>,
    /// Number of the order that wanted it last.
    number: u64,
}

/// What outlives the daemon.
#[derive(Serialize, Deserialize)]
struct Captured {
    name: String,
    composition: String,
    pid: Option<u32>,
    #[serde(default)]
    number: u64,
    /// It was told to end for good.
    #[serde(default)]
    stopping: bool,
}

impl Element for ArmorInstaller {
    const NAME: &'static str = "armor_installer";
    const PURPOSE: &'static str = "installs ARMORs on this node as processes and keeps them alive";
    const EXAMPLE: &'static str = "heartbeat_ms = 200\nmisses = 5\nrestart_window_s = 60\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        if config.heartbeat_ms == 0 || config.misses == 0 {
            return Err("heartbeat_ms and misses are at least 1".to_owned());
        }
        let program = match &config.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(|error| format!("the own program cannot be found: {error}; set program"))?,
        };
        let run_dir = std::path::absolute(&setup.run_dir).map_err(|error| error.to_string())?;
        Ok(ArmorInstaller {
            config,
            program,
            node: setup.name.clone(),
            run_dir,
            installed: BTreeMap::new(),
            sequence: 0,
            beating: false,
            ending: false,
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::install)
            .on(Self::uninstall)
            .on(Self::attached)
            .on(Self::heartbeat_reply)
            .on(Self::registered)
            .emits::<ArmorReady>()
            .emits::<DaemonRegistered>()
            .emits::<SendReliable>()
            .emits::<Heartbeat>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        let stopping = self.installed.iter().filter(|(_, installed)| installed.state == State::Stopping).map(|(name, _)| name.clone());
        for name in stopping.collect::<Vec<_>>() {
            self.end_again(&name, context);
        }
        for (name, installed) in self.installed.iter().filter(|(_, installed)| installed.state == State::Orphan) {
            match child::works_in(&self.directory(name)) {
                Some(pid) => {
                    Self::later(ADOPT_WITHIN, name, installed.life, Self::not_adopted, context);
                    let (name, life, handle) = (name.clone(), installed.life, context.handle::<Self>());
                    context.spawn(async move {
                        crate::endpoints::watch_process(pid).await;
                        handle.call(|element, context| {
                            if element.installed.get(&name).is_some_and(|installed| installed.life == life) {
                                element.not_adopted(&name, context);
                            }
                        });
                    });
                }
                // It has died together with this daemon.
                None => Self::later(Duration::ZERO, name, installed.life, Self::not_adopted, context),
            }
        }
        self.beat_later(context);
        Ok(())
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.beating = false;
        self.beat(Instant::now(), context);
        self.beat_later(context);
    }

    fn capture(&self) -> Option<Vec<u8>> {
        let captured: Vec<Captured> = self
            .installed
            .iter()
            .map(|(name, installed)| Captured {
                name: name.clone(),
                composition: installed.composition.clone(),
                pid: installed.pid.or(installed.leftover),
                number: installed.number,
                stopping: installed.state == State::Stopping,
            })
            .collect();
        rmp_serde::to_vec(&captured).ok()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let captured: Vec<Captured> = rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        for Captured { name, composition, pid, number, stopping } in captured {
            // It had a life under the daemon before: one that fails while it starts is no reason to give the ARMOR up.
            let state = if stopping { State::Stopping } else { State::Orphan };
            let installed = Installed { state, leftover: pid, life: 1, number, ..self.fresh(&name, composition) };
            self.installed.insert(name, installed);
        }
        Ok(())
    }

    fn status(&self) -> serde_json::Value {
        let installed: Vec<serde_json::Value> = self
            .installed
            .iter()
            .map(|(name, installed)| {
                serde_json::json!({
                    "name": name, "armor": installed.armor.to_string(), "composition": installed.composition, "state": installed.state,
                    "pid": installed.pid, "restarts": installed.restarts.len(), "misses": installed.misses, "run_dir": self.directory(name),
                })
            })
            .collect();
        serde_json::json!({ "installed": installed })
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.ending = true;
        let pids: Vec<u32> = self.installed.values().filter_map(|installed| installed.pid).collect();
        child::end_all(&pids, END_WITHIN);
    }
}

// Installing.
impl ArmorInstaller {
    fn install(&mut self, install: &InstallArmor, context: &mut Context<'_>) {
        let asker = context.source();
        let refused = match self.installed.get(&install.name) {
            Some(known) if known.composition != install.composition => {
                Some(format!("an ARMOR {:?} is installed from {:?}: uninstall it first", install.name, known.composition))
            }
            Some(known) if known.state == State::Stopping => Some("it is being uninstalled: try again in a moment".to_owned()),
            Some(_) => None,
            None if !is_name(&install.name) => {
                Some("a name has 1 to 64 letters, digits, '-', '_' and '.', and begins with no '.'".to_owned())
            }
            None if self.installed.len() >= MAX_INSTALLED => Some(format!("{MAX_INSTALLED} ARMORs are installed on this node")),
            None => None,
        };
        if let Some(error) = refused {
            self.answer(&[asker], &install.name, &error, context);
            return;
        }
        // An operator's is as new as it comes.
        let number = if install.number == 0 { now_ms() << 20 } else { install.number };
        if let Some(known) = self.installed.get_mut(&install.name).filter(|known| known.number < number) {
            known.number = number;
            context.state_changed();
        }
        match self.installed.get_mut(&install.name).map(|known| (known.state, known)) {
            Some((State::Running, _)) => self.answer(&[asker], &install.name, "", context),
            Some((State::GivenUp, known)) => {
                known.askers.push(asker);
                known.restarts.clear();
                self.launch(&install.name, Launch::FromCapturedState, context);
            }
            Some((_, known)) => known.askers.push(asker),
            None => {
                let installed = Installed { askers: vec![asker], number, ..self.fresh(&install.name, install.composition.clone()) };
                self.installed.insert(install.name.clone(), installed);
                self.launch(&install.name, Launch::Afresh, context);
                self.beat_later(context);
            }
        }
    }

    fn fresh(&self, name: &str, composition: String) -> Installed {
        Installed {
            composition,
            armor: ArmorId::of_name(&self.full_name(name)),
            state: State::Starting,
            pid: None,
            leftover: None,
            life: 0,
            since: Instant::now(),
            askers: Vec::new(),
            restarts: VecDeque::new(),
            pause: Duration::ZERO,
            asked: false,
            answered: false,
            misses: 0,
            failed_at: None,
            number: 0,
        }
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.node)
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.run_dir.join("armors").join(name)
    }

    fn launch(&mut self, name: &str, how: Launch, context: &mut Context<'_>) {
        let (full_name, directory) = (self.full_name(name), self.directory(name));
        let Some(installed) = self.installed.get_mut(name) else { return };
        installed.life += 1;
        installed.state = State::Starting;
        installed.since = Instant::now();
        let launched = child::launch(&self.program, &installed.composition, &full_name, &directory, &self.run_dir.join("armor.sock"), how);
        match launched {
            Ok(mut process) => {
                installed.pid = process.id();
                let (name, life, handle) = (name.to_owned(), installed.life, context.handle::<Self>());
                context.spawn(async move {
                    let ended = Ended::of(process.wait().await);
                    handle.call(|element, context| element.ended(&name, life, &ended, context));
                });
                context.state_changed();
            }
            Err(error) => {
                let life = installed.life;
                self.ended(name, life, &Ended { orderly: false, how: format!("cannot be started: {error}") }, context);
            }
        }
    }

    fn attached(&mut self, attach: &ArmorAttach, context: &mut Context<'_>) {
        let Some((name, installed)) = self.installed.iter_mut().find(|(_, installed)| installed.armor == attach.armor) else { return };
        match installed.state {
            State::Orphan => {
                // Not a child of this process: its end is seen by pidfd.
                installed.life += 1;
                installed.pid = Some(attach.pid);
                Self::watch_orphan(name, installed.life, attach.pid, context);
                context.event(Event::new("armor-adopted").with("name", self.node.clone() + "/" + name_of(attach)).with("pid", attach.pid));
                context.state_changed();
            }
            State::Starting => {}
            // It lost its link for a moment.
            _ => return,
        }
        installed.state = State::Running;
        installed.since = Instant::now();
        (installed.asked, installed.answered, installed.misses) = (false, false, 0);
        if let Some(failed_at) = installed.failed_at.take() {
            let away_ms = failed_at.elapsed().as_millis();
            context.event(Event::new("armor-restarted").with("name", &attach.name).with("pid", attach.pid).with("away_ms", away_ms));
        }
        let (askers, name) = (std::mem::take(&mut installed.askers), name.clone());
        self.answer(&askers, &name, "", context);
    }

    fn not_adopted(&mut self, name: &str, context: &mut Context<'_>) {
        if let Some(installed) = self.installed.get_mut(name)
            && installed.state == State::Orphan
        {
            installed.failed_at = Some(Instant::now());
            if let Some(pid) = installed.leftover.take() {
                child::kill_leftover(pid, &self.directory(name));
            }
            self.launch(name, Launch::FromCapturedState, context);
        }
    }

    fn answer(&self, askers: &[ArmorId], name: &str, error: &str, context: &mut Context<'_>) {
        for asker in askers.iter().filter(|asker| **asker != ArmorId::NONE) {
            let ready = ArmorReady {
                name: name.to_owned(),
                armor: ArmorId::of_name(&self.full_name(name)),
                run_dir: self.directory(name).display().to_string(),
                error: error.to_owned(),
            };
            context.send_to(*asker, ready);
        }
    }

    fn uninstall(&mut self, uninstall: &UninstallArmor, context: &mut Context<'_>) {
        let name = &uninstall.name;
        let directory = self.directory(name);
        let Some(installed) = self.installed.get_mut(name) else {
            context.event(Event::new("uninstall-refused").with("name", name).with("reason", "no such ARMOR is installed on this node"));
            return;
        };
        if uninstall.number != 0 && uninstall.number < installed.number {
            let told = Event::new("uninstall-refused").with("name", name);
            context.event(told.with("reason", "it was installed by a later order; this one was held up on its way"));
            return;
        }
        let askers = std::mem::take(&mut installed.askers);
        installed.state = State::Stopping;
        if let Some(pid) = installed.pid {
            child::signal(pid, Signal::TERM);
            Self::later(END_WITHIN, name, installed.life, Self::kill, context);
        } else {
            if let Some(pid) = installed.leftover {
                child::kill_leftover(pid, &directory);
            }
            self.installed.remove(name);
        }
        self.answer(&askers, name, "it was uninstalled", context);
        context.state_changed();
    }

    /// It was told to end by an earlier life of this daemon, which was to see to it.
    fn end_again(&mut self, name: &str, context: &mut Context<'_>) {
        let directory = self.directory(name);
        let Some(installed) = self.installed.get_mut(name) else { return };
        installed.leftover = None;
        installed.pid = child::works_in(&directory);
        let Some(pid) = installed.pid else {
            self.installed.remove(name);
            return context.state_changed();
        };
        child::signal(pid, Signal::TERM);
        let life = installed.life;
        Self::later(END_WITHIN, name, life, Self::kill, context);
        Self::watch_orphan(name, life, pid, context);
    }

    /// Waits for the end of a process that is no child of this one.
    fn watch_orphan(name: &str, life: u64, pid: u32, context: &mut Context<'_>) {
        let (name, handle) = (name.to_owned(), context.handle::<Self>());
        context.spawn(async move {
            crate::endpoints::watch_process(pid).await;
            let ended = Ended { orderly: false, how: "ended".to_owned() };
            handle.call(|element, context| element.ended(&name, life, &ended, context));
        });
    }

    fn kill(&mut self, name: &str, _: &mut Context<'_>) {
        if let Some(pid) = self.installed.get(name).and_then(|installed| installed.pid) {
            child::signal(pid, Signal::KILL);
        }
    }

    /// Calls `then` after a pause unless the ARMOR has another process by then.
    fn later(pause: Duration, name: &str, life: u64, then: fn(&mut Self, &str, &mut Context<'_>), context: &mut Context<'_>) {
        let (name, handle) = (name.to_owned(), context.handle::<Self>());
        context.spawn(async move {
            tokio::time::sleep(pause).await;
            handle.call(|element, context| {
                if element.installed.get(&name).is_some_and(|installed| installed.life == life) {
                    then(element, &name, context);
                }
            });
        });
    }
}

// Keeping alive.
impl ArmorInstaller {
    fn ended(&mut self, name: &str, life: u64, ended: &Ended, context: &mut Context<'_>) {
        let directory = self.directory(name);
        if self.ending {
            return;
        }
        let Some(installed) = self.installed.get_mut(name).filter(|installed| installed.life == life) else { return };
        installed.pid = None;
        context.state_changed();
        if installed.state == State::Stopping || ended.orderly && installed.state == State::Running {
            context.event(Event::new("armor-ended").with("name", name));
            self.installed.remove(name);
            return;
        }
        let how = if installed.state == State::Killed {
            format!("{} heartbeats unanswered, killed", installed.misses)
        } else {
            ended.how.clone()
        };
        context.event(Event::new("armor-failed").with("name", name).with("how", &how));
        let askers = std::mem::take(&mut installed.askers);
        if life == 1 && installed.state == State::Starting {
            // It has never worked, so it is refused instead of tried again.
            let error = format!("it {how}: {}", child::last_words(&directory));
            self.installed.remove(name);
            self.answer(&askers, name, &error, context);
            return;
        }
        installed.askers = askers;
        let now = Instant::now();
        installed.failed_at.get_or_insert(now);
        match self.next_pause(name, now) {
            Some(pause) => {
                Self::later(pause, name, life, |element, name, context| element.launch(name, Launch::FromCapturedState, context), context)
            }
            None => {
                context.event(Event::new("armor-given-up").with("name", name).with("restarts", RESTART_LIMIT));
                let askers = self.installed.get_mut(name).map(|installed| std::mem::take(&mut installed.askers)).unwrap_or_default();
                self.answer(&askers, name, "it failed too often; its last words are in armor.log of its run directory", context);
            }
        }
    }

    /// How long to wait before the next start; `None` when there were too many.
    fn next_pause(&mut self, name: &str, now: Instant) -> Option<Duration> {
        let window = Duration::from_secs(self.config.restart_window_s);
        let installed = self.installed.get_mut(name)?;
        while installed.restarts.front().is_some_and(|restart| now.saturating_duration_since(*restart) >= window) {
            installed.restarts.pop_front();
        }
        if installed.restarts.len() >= RESTART_LIMIT {
            installed.state = State::GivenUp;
            return None;
        }
        installed.restarts.push_back(now);
        let young = now.saturating_duration_since(installed.since) < YOUNG && installed.restarts.len() > 1;
        installed.pause = if young { (installed.pause * 2).clamp(PAUSES.0, PAUSES.1) } else { Duration::ZERO };
        installed.state = State::Pausing;
        Some(installed.pause)
    }

    fn beat_later(&mut self, context: &mut Context<'_>) {
        if !self.installed.is_empty() && !std::mem::replace(&mut self.beating, true) {
            context.timer(Duration::from_millis(self.config.heartbeat_ms), 0);
        }
    }

    fn beat(&mut self, now: Instant, context: &mut Context<'_>) {
        self.sequence += 1;
        for installed in self.installed.values_mut() {
            let age = now.saturating_duration_since(installed.since);
            let silent = match installed.state {
                State::Starting => age >= ATTACH_WITHIN,
                State::Running => {
                    if installed.asked {
                        installed.misses += 1;
                    }
                    installed.misses >= self.config.misses && (installed.answered || age >= FIRST_ANSWER_WITHIN)
                }
                _ => continue,
            };
            if silent {
                if installed.state == State::Running {
                    installed.state = State::Killed;
                }
                if let Some(pid) = installed.pid {
                    child::signal(pid, Signal::KILL);
                }
            } else if installed.state == State::Running {
                installed.asked = true;
                context.send_to(installed.armor, Heartbeat { sequence: self.sequence, asker: context.armor() });
            }
        }
    }

    /// The FTM knows this node: what ARMORs here have to tell it they tell now.
    fn registered(&mut self, registered: &DaemonRegistered, context: &mut Context<'_>) {
        for installed in self.installed.values().filter(|installed| installed.state == State::Running) {
            context.send_reliable(Message::to(installed.armor, registered.clone()));
        }
    }

    fn heartbeat_reply(&mut self, reply: &HeartbeatReply, _: &mut Context<'_>) {
        if let Some(installed) = self.installed.values_mut().find(|installed| installed.armor == reply.armor) {
            (installed.asked, installed.answered, installed.misses) = (false, true, 0);
        }
    }
}

fn name_of(attach: &ArmorAttach) -> &str {
    attach.name.rsplit('/').next().unwrap_or_default()
}

/// Names become directories, so they must not lead anywhere else.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;
    use armor_core::context::Effect;

    fn setup() -> Setup {
        Setup { armor: ArmorId(5), name: "node1".into(), kind: "daemon".into(), run_dir: "/nowhere".into() }
    }

    fn installer() -> ArmorInstaller {
        let config = Config { heartbeat_ms: 200, misses: 3, restart_window_s: 60, program: Some("/nowhere/armor".into()) };
        ArmorInstaller::new(config, &setup()).expect("works")
    }

    /// An installer with the ARMOR "x" running, without a process.
    fn with_running() -> ArmorInstaller {
        let mut installer = installer();
        let installed = Installed { state: State::Starting, life: 1, ..installer.fresh("x", "execution".into()) };
        installer.installed.insert("x".into(), installed);
        let attach = ArmorAttach { armor: ArmorId::of_name("node1/x"), name: "node1/x".into(), pid: 0 };
        installer.attached(&attach, &mut Context::detached(&setup(), None, &mut Vec::new()));
        assert_eq!(installer.installed["x"].state, State::Running);
        installer
    }

    #[test]
    fn an_armor_that_runs_is_told_with_acknowledgement_that_the_ftm_knows_the_node() {
        let (mut installer, mut effects) = (with_running(), Vec::new());
        let registered = DaemonRegistered { accepted: true, reason: String::new() };
        installer.registered(&registered, &mut Context::detached(&setup(), None, &mut effects));
        let [Effect::SendReliable(message)] = &effects[..] else { panic!("{} effects", effects.len()) };
        assert_eq!(message.destination(), Some(ArmorId::of_name("node1/x")));
    }

    fn told(effects: &[Effect]) -> Vec<&str> {
        effects.iter().filter_map(|effect| if let Effect::Event(event) = effect { Some(event.what.as_str()) } else { None }).collect()
    }

    #[test]
    fn names_that_lead_out_of_the_directory_are_refused() {
        for name in ["", ".", "..", ".x", "a/b", "a b", &"x".repeat(65)] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_name("web-1_a.b"));
    }

    #[test]
    fn what_cannot_be_started_is_answered_with_the_reason_and_forgotten() {
        let (setup, mut installer, mut effects) = (setup(), installer(), Vec::new());
        let mut message =
            armor_proto::message::Message::to(ArmorId(5), InstallArmor { name: "x".into(), composition: "execution".into(), number: 0 });
        message.source = ArmorId(9);
        let install = InstallArmor { name: "x".into(), composition: "execution".into(), number: 0 };
        installer.install(&install, &mut Context::detached(&setup, Some(&mut message), &mut effects));
        assert!(installer.installed.is_empty());
        let answers: Vec<&ArmorReady> = effects
            .iter()
            .filter_map(|effect| if let Effect::Send(message) = effect { message.top() } else { None })
            .filter_map(|bundle| armor_proto::message::downcast::<ArmorReady>(&bundle.operations[0]))
            .collect();
        assert!(answers.len() == 1 && answers[0].error.contains("cannot be started"), "{answers:?}");
    }

    #[test]
    fn a_silent_armor_is_killed_after_the_misses_and_an_answer_forgives() {
        let (setup, mut installer, mut effects) = (setup(), with_running(), Vec::new());
        let mut context = Context::detached(&setup, None, &mut effects);
        let reply = HeartbeatReply { sequence: 1, armor: ArmorId::of_name("node1/x") };
        for _ in 0..3 {
            installer.beat(Instant::now(), &mut context);
        }
        installer.heartbeat_reply(&reply, &mut context);
        for _ in 0..3 {
            installer.beat(Instant::now(), &mut context);
            assert_eq!(installer.installed["x"].state, State::Running);
        }
        installer.beat(Instant::now(), &mut context);
        assert_eq!(installer.installed["x"].state, State::Killed);
        installer.ended("x", 1, &Ended { orderly: false, how: "was killed by signal 9".into() }, &mut context);
        assert_eq!(installer.installed["x"].state, State::Pausing);
        assert_eq!(told(&effects), ["armor-failed"]);
    }

    #[test]
    fn an_armor_that_fails_too_often_is_given_up() {
        let (setup, mut installer, mut effects) = (setup(), with_running(), Vec::new());
        let mut context = Context::detached(&setup, None, &mut effects);
        let ended = Ended { orderly: false, how: "was killed by signal 9".into() };
        for _ in 0..RESTART_LIMIT {
            installer.ended("x", 1, &ended, &mut context);
            assert_eq!(installer.installed["x"].state, State::Pausing);
        }
        assert!(installer.installed["x"].pause > PAUSES.0);
        installer.ended("x", 1, &ended, &mut context);
        assert_eq!(installer.installed["x"].state, State::GivenUp);
        installer.ended("x", 0, &ended, &mut context);
        assert_eq!(told(&effects).last(), Some(&"armor-given-up"));
    }

    #[test]
    fn what_is_killed_while_the_daemon_ends_is_not_started_again() {
        let (setup, mut installer, mut effects) = (setup(), with_running(), Vec::new());
        // No process of this test's.
        installer.installed.get_mut("x").expect("installed").pid = None;
        installer.stop(&mut Context::detached(&setup, None, &mut effects));
        let ended = Ended { orderly: false, how: "was killed by signal 9".into() };
        installer.ended("x", 1, &ended, &mut Context::detached(&setup, None, &mut effects));
        assert!(effects.is_empty() && installer.installed["x"].state == State::Running);
    }

    #[test]
    fn an_order_to_uninstall_that_was_held_up_ends_nothing_that_was_installed_after_it() {
        let (setup, mut installer, mut effects) = (setup(), with_running(), Vec::new());
        let mut context = Context::detached(&setup, None, &mut effects);
        let name = || "x".to_owned();
        // The FTM has brought its application back, in an ARMOR that was there still.
        installer.install(&InstallArmor { name: name(), composition: "execution".into(), number: 8 }, &mut context);
        let mut next = self::installer();
        next.restore(&installer.capture().unwrap_or_default()).expect("works");
        for installer in [&mut installer, &mut next] {
            installer.installed.get_mut("x").expect("installed").pid = None;
            installer.uninstall(&UninstallArmor { name: name(), number: 7 }, &mut context);
            assert!(installer.installed.contains_key("x"), "also in the daemon's next life");
        }
        // An operator wants it.
        installer.install(&InstallArmor { name: name(), composition: "execution".into(), number: 0 }, &mut context);
        installer.uninstall(&UninstallArmor { name: name(), number: 8 }, &mut context);
        assert!(installer.installed.contains_key("x"));
        // What was ordered later, and an operator, are obeyed.
        installer.uninstall(&UninstallArmor { name: name(), number: u64::MAX }, &mut context);
        next.uninstall(&UninstallArmor { name: name(), number: 0 }, &mut context);
        assert!(installer.installed.is_empty() && next.installed.is_empty());
    }

    #[test]
    fn what_was_to_end_when_the_daemon_died_is_ended_by_its_next_life() {
        let (setup, mut installer, mut effects) = (setup(), with_running(), Vec::new());
        let directory = tempfile::tempdir().expect("directory");
        installer.run_dir = directory.path().to_owned();
        // One that does not end when it is told to, and is known by its directory.
        let path = installer.directory("x");
        let script = "trap '' TERM; echo ready; read line";
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).arg(&path).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut process = command.spawn().expect("a shell");
        std::io::Read::read_exact(process.stdout.as_mut().expect("piped"), &mut [0; 6]).expect("it is ready");
        let mut context = Context::detached(&setup, None, &mut effects);
        installer.installed.get_mut("x").expect("installed").pid = Some(process.id());
        installer.uninstall(&UninstallArmor { name: "x".into(), number: 0 }, &mut context);

        let mut next = self::installer();
        next.run_dir = directory.path().to_owned();
        next.restore(&installer.capture().unwrap_or_default()).expect("works");
        next.start(&mut context).expect("works");
        let known = &next.installed["x"];
        assert_eq!((known.state, known.pid), (State::Stopping, Some(process.id())));
        next.kill("x", &mut context);
        assert!(!process.wait().expect("it was killed").success());
        next.ended("x", 1, &Ended { orderly: false, how: String::new() }, &mut context);
        assert!(next.installed.is_empty(), "nor is it started again");

        // One that has ended together with the daemon.
        let mut next = self::installer();
        next.run_dir = directory.path().to_owned();
        next.restore(&installer.capture().unwrap_or_default()).expect("works");
        next.start(&mut context).expect("works");
        assert!(next.installed.is_empty());
    }

    #[test]
    fn without_a_window_restarts_are_not_counted_and_do_not_wait() {
        let (setup, mut installer, mut effects) = (setup(), with_running(), Vec::new());
        installer.config.restart_window_s = 0;
        let ended = Ended { orderly: false, how: "was killed by signal 9".into() };
        for _ in 0..3 * RESTART_LIMIT {
            installer.ended("x", 1, &ended, &mut Context::detached(&setup, None, &mut effects));
            let installed = &installer.installed["x"];
            assert_eq!((installed.state, installed.pause), (State::Pausing, Duration::ZERO));
        }
    }

    #[test]
    fn what_ends_by_its_own_will_is_not_started_again_and_installed_armors_outlive_the_daemon() {
        let (setup, mut installer, mut effects) = (setup(), with_running(), Vec::new());
        let mut next = self::installer();
        next.restore(&installer.capture().unwrap_or_default()).expect("works");
        assert_eq!(next.installed["x"].state, State::Orphan);
        // It dies before it has attached to the next daemon, and so does its next life.
        next.installed.values_mut().for_each(|installed| (installed.state, installed.life) = (State::Starting, installed.life + 1));
        let life = next.installed["x"].life;
        let killed = Ended { orderly: false, how: "was killed by signal 9".to_owned() };
        next.ended("x", life, &killed, &mut Context::detached(&setup, None, &mut effects));
        assert_eq!((told(&effects), next.installed["x"].state), (vec!["armor-failed"], State::Pausing));
        effects.clear();
        installer.ended("x", 1, &Ended { orderly: true, how: String::new() }, &mut Context::detached(&setup, None, &mut effects));
        assert!(installer.installed.is_empty());
        assert_eq!(told(&effects), ["armor-ended"]);
    }
}
