//! Standbys: instances of an application that are started ahead, and wait inside their first `bind` for the failure of the running one.
//!
//! One is started when its service flows, and the next when that has come to its bind, so that none competes with a recovery. When
//! the running instance fails, one that waits in its bind takes over, else one that is still on its way there: it is ahead of any
//! that would be started now, and would fight with that for whatever it waits for. APP_COMM_SERVER holds and releases the bind.
//!
//! Invariant: a process is the running instance, a standby, or being ended; an address is given to the first alone.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::{Event, now_ms};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::restored::born_at;
use super::{AppOversight, Application, kill_group};
use crate::operations::{AppFlows, AppStandbyEnded, AppStandbyHeld, AppStandbyStarted, AppStarted, ApplicationState, StandbyCount};

/// Longest pause before a standby is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Shortest one, so that a service with `backoff_ms = 0` has one that grows.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// A standby that has waited so long did not die of its start, and the next one is started after the shortest pause again.
const SETTLED: Duration = Duration::from_secs(10);

/// One process of an application, with what it starts itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Instance {
    /// What its environment says (`ARMOR_INSTANCE`).
    pub(super) number: u64,
    /// Of the process, and of its group.
    pub(super) pid: u32,
    /// When it was started, to tell it from a later one with the same number.
    pub(super) born: u64,
    /// It has come to its bind.
    held: bool,
    /// Since when, in this life of the ARMOR.
    #[serde(skip)]
    since: Option<Instant>,
}

impl Instance {
    pub(super) fn new(number: u64, pid: u32) -> Instance {
        Instance { number, pid, born: born_at(pid).unwrap_or(0), held: false, since: None }
    }

    fn is_alive(&self) -> bool {
        born_at(self.pid) == Some(self.born)
    }
}

/// What becomes of an application's standbys after one of them has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Another one is started, but not before that.
    Pause(Duration),
    /// None is started any more: this program must not have one.
    Never,
}

/// The standbys of one application.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Standbys {
    /// The oldest first.
    instances: Vec<Instance>,
    /// The running instance serves and all its connections flow.
    flows: bool,
    /// Why none is started any more.
    given_up: Option<String>,
    /// Standbys that have died; they are no restarts of the application.
    died: u64,
    /// The last pause.
    #[serde(skip)]
    pause: Duration,
    /// That pause is not over.
    #[serde(skip)]
    pausing: bool,
}

impl Standbys {
    /// Those of an application that runs on another node: nothing here competes with them.
    pub(super) fn held_for_another_node() -> Standbys {
        Standbys { flows: true, ..Standbys::default() }
    }

    /// The application runs here from now on: a recovery, in which no further standby is started.
    pub(super) fn taken_over(self) -> Standbys {
        Standbys { flows: false, pausing: false, ..self }
    }

    pub(super) fn one_waits(&self) -> bool {
        self.instances.iter().any(|instance| instance.held)
    }

    pub(super) fn has(&self, number: u64) -> bool {
        self.numbers().any(|own| own == number)
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.instances.iter().map(|instance| instance.number)
    }

    pub(super) fn push(&mut self, instance: Instance) {
        self.instances.push(instance);
    }

    pub(super) fn take_all(&mut self) -> Vec<Instance> {
        std::mem::take(&mut self.instances)
    }

    pub(super) fn pause_is_over(&mut self) {
        self.pausing = false;
    }

    /// In a new life of the ARMOR: those that live.
    pub(super) fn still_alive(&mut self) -> Vec<Instance> {
        self.instances.retain(Instance::is_alive);
        self.instances.clone()
    }

    /// A process has ended: what comes of that, and how it ended, when it was one of these. It is told.
    pub(super) fn lost(
        &mut self,
        name: &str,
        pid: u32,
        status: Option<&ExitStatus>,
        shortest: Duration,
        context: &mut Context<'_>,
    ) -> Option<(After, String)> {
        let at = self.instances.iter().position(|instance| instance.pid == pid)?;
        let instance = self.instances.remove(at);
        forget(name, &instance, context);
        let how = status.map_or_else(|| "ended, and nobody knows how".to_owned(), ToString::to_string);
        let exited = status.and_then(ExitStatus::code).map(|_| how.as_str());
        let told = |what: &str| Event::new(what).with("service", name).with("pid", pid).with("how", &how);
        let after = self.ended(&instance, exited, shortest, Instant::now());
        match after {
            After::Never => context.event(told("standby-ended-early")),
            After::Pause(pause) => context.event(told("standby-failed").with("pause_ms", pause.as_millis())),
        }
        Some((after, how))
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.instances.iter().map(|instance| instance.pid)
    }

    pub(super) fn status(&self, wanted: StandbyCount) -> serde_json::Value {
        let instances = self
            .instances
            .iter()
            .map(|instance| serde_json::json!({ "pid": instance.pid, "state": if instance.held { "waiting" } else { "starting" } }));
        serde_json::json!({ "wanted": wanted.0, "instances": instances.collect::<Vec<_>>(), "died": self.died, "given_up": self.given_up })
    }

    /// The running instance is gone: what is left of the processor's time belongs to the recovery.
    pub(super) fn application_failed(&mut self) {
        self.flows = false;
    }

    /// One more is to be started now.
    pub(super) fn lacks_one(&self, wanted: StandbyCount) -> bool {
        let others_wait = self.instances.iter().all(|instance| instance.held);
        self.flows && !self.pausing && self.given_up.is_none() && others_wait && self.instances.len() < wanted.0 as usize
    }

    /// The one that takes over: the oldest of those that wait in their bind, else the oldest.
    fn take(&mut self) -> Option<Instance> {
        let at = self.instances.iter().position(|instance| instance.held).unwrap_or(0);
        (at < self.instances.len()).then(|| self.instances.remove(at))
    }

    /// It has come to its bind: `false` when that is known, or it is none of these.
    pub(super) fn held(&mut self, number: u64, now: Instant) -> bool {
        let Some(instance) = self.instances.iter_mut().find(|instance| instance.number == number) else { return false };
        instance.since = instance.since.or(Some(now));
        !std::mem::replace(&mut instance.held, true)
    }

    /// One that is gone from the list has ended; `exited` by itself, not by a signal.
    fn ended(&mut self, instance: &Instance, exited: Option<&str>, shortest: Duration, now: Instant) -> After {
        self.died += 1;
        if let Some(how) = exited.filter(|_| !instance.held) {
            self.given_up = Some(how.to_owned());
            return After::Never;
        }
        let settled = instance.since.is_some_and(|since| now.duration_since(since) >= SETTLED);
        let shortest = shortest.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.pause = if settled || self.pause.is_zero() { shortest } else { (self.pause * 2).min(LONGEST_PAUSE) };
        self.pausing = true;
        After::Pause(self.pause)
    }
}

impl Application {
    /// For APP_COMM_SERVER: the running instance.
    pub(super) fn started_now(&self) -> AppStarted {
        let (spec, pid, incarnation, instance) = (self.spec.clone(), self.pid, self.incarnation, self.instance);
        AppStarted { spec, pid, incarnation, started_at_ms: now_ms(), instance }
    }

    /// Numbers of its instances that may live.
    pub(super) fn known_instances(&self) -> Vec<u64> {
        let running = (self.state == ApplicationState::Running).then_some(self.instance);
        running.into_iter().chain(self.standbys.numbers()).collect()
    }
}

impl AppOversight {
    /// The service of an application flows: time for what is to take over next.
    pub(super) fn application_flows(&mut self, flows: &AppFlows, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(&flows.name).filter(|app| app.incarnation == flows.incarnation) else { return };
        if application.state == ApplicationState::Running && !std::mem::replace(&mut application.standbys.flows, true) {
            context.state_changed();
            self.start_standby(&flows.name, context);
        }
    }

    /// A standby has come to its bind.
    pub(super) fn standby_held(&mut self, held: &AppStandbyHeld, context: &mut Context<'_>) {
        if self.hold_waits(held, context) {
            return;
        }
        let Some(application) = self.applications.get_mut(&held.name) else { return };
        if application.standbys.held(held.instance, Instant::now()) {
            context.state_changed();
            let pid =
                application.standbys.instances.iter().find(|instance| instance.number == held.instance).map_or(0, |instance| instance.pid);
            context.event(Event::new("standby-ready").with("service", &held.name).with("pid", pid));
            self.start_standby(&held.name, context);
        }
    }

    /// Starts a standby if one is lacking.
    pub(super) fn start_standby(&mut self, name: &str, context: &mut Context<'_>) {
        let Some(application) = self.applications.get(name) else { return };
        let wanted = application.spec.standby;
        let serves = application.state == ApplicationState::Running && application.stopping.is_none() && !self.ending;
        if !serves || !application.standbys.lacks_one(wanted) {
            return;
        }
        let (spec, shortest) = (application.spec.clone(), Duration::from_millis(application.spec.backoff_ms));
        match self.start_process(&spec, context) {
            Ok(instance) => {
                context.send_to(context.armor(), AppStandbyStarted { name: name.to_owned(), instance: instance.number });
                if let Some(application) = self.applications.get_mut(name) {
                    application.standbys.instances.push(instance);
                }
            }
            Err(reason) => {
                context.event(Event::new("standby-not-started").with("service", name).with("reason", reason));
                let Some(application) = self.applications.get_mut(name) else { return };
                if let After::Pause(pause) = application.standbys.ended(&Instance::new(0, 0), None, shortest, Instant::now()) {
                    self.start_standby_after(name, pause, context);
                }
            }
        }
        context.state_changed();
    }

    fn start_standby_after(&mut self, name: &str, pause: Duration, context: &mut Context<'_>) {
        let (name, handle) = (name.to_owned(), context.handle::<Self>());
        let Some(number) = self.applications.get(&name).map(|application| application.number) else { return };
        context.spawn(async move {
            tokio::time::sleep(pause).await;
            handle.call(|element, context| {
                if let Some(application) = element.applications.get_mut(&name).filter(|app| app.number == number) {
                    application.standbys.pausing = false;
                    element.start_standby(&name, context);
                }
            });
        });
    }

    /// The running instance has failed: a standby takes over, if there is one that lives.
    pub(super) fn release_standby(&mut self, name: &str, context: &mut Context<'_>) -> bool {
        while let Some(instance) = self.applications.get_mut(name).and_then(|application| application.standbys.take()) {
            if instance.is_alive() {
                context.event(Event::new("standby-released").with("service", name).with("pid", instance.pid));
                self.lives(name, &instance, context);
                return true;
            }
            // Its end is about to be told, and changes nothing any more.
            self.leaving.push(instance);
        }
        false
    }

    /// A process has ended: `true` when it was a standby, or had been one that was being ended.
    pub(super) fn standby_ended(&mut self, name: &str, pid: u32, status: Option<&ExitStatus>, context: &mut Context<'_>) -> bool {
        if let Some(at) = self.leaving.iter().position(|instance| instance.pid == pid) {
            let instance = self.leaving.remove(at);
            forget(name, &instance, context);
            return true;
        }
        if self.held_ended(pid, status, context) {
            return true;
        }
        let Some(application) = self.applications.get_mut(name) else { return false };
        let shortest = Duration::from_millis(application.spec.backoff_ms);
        let Some((after, _)) = application.standbys.lost(name, pid, status, shortest, context) else { return false };
        if let After::Pause(pause) = after {
            self.start_standby_after(name, pause, context);
        }
        true
    }

    /// The application is not to run any more, and so are its standbys: SIGTERM, and after a while SIGKILL. Their binds are held to their end.
    pub(super) fn end_standbys(&mut self, name: &str, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(name) else { return };
        let ending = application.standbys.take_all();
        self.end_instances(ending, context);
    }

    /// SIGTERM, and after a while SIGKILL. Their binds are held to their end.
    pub(super) fn end_instances(&mut self, ending: Vec<Instance>, context: &mut Context<'_>) {
        if ending.is_empty() {
            return;
        }
        for instance in &ending {
            kill_group(instance.pid, Signal::TERM);
        }
        let numbers: Vec<u64> = ending.iter().map(|instance| instance.number).collect();
        self.leaving.extend(ending);
        context.state_changed();
        let (grace, handle) = (Duration::from_millis(self.config.stop_grace_ms), context.handle::<Self>());
        context.spawn(async move {
            tokio::time::sleep(grace).await;
            handle.call(|element, _| {
                for instance in element.leaving.iter().filter(|instance| numbers.contains(&instance.number)) {
                    kill_group(instance.pid, Signal::KILL);
                }
            });
        });
    }

    /// In a new life of the ARMOR: standbys that live go on waiting, what was being ended is.
    pub(super) fn take_up_standbys(&mut self, context: &mut Context<'_>) {
        for instance in std::mem::take(&mut self.leaving).iter().filter(|instance| instance.is_alive()) {
            kill_group(instance.pid, Signal::KILL);
        }
        let names: Vec<String> = self.applications.keys().cloned().collect();
        for name in names {
            let Some(application) = self.applications.get_mut(&name) else { continue };
            let instances = application.standbys.still_alive();
            // Before any of them can ask again.
            for Instance { number, pid, .. } in instances {
                context.send_to(context.armor(), AppStandbyStarted { name: name.clone(), instance: number });
                self.watch_orphan(&name, pid, context);
            }
            // One that was started just before the death of the ARMOR is in nobody's list.
            if self.applications.get(&name).is_some_and(|app| app.spec.standby.0 > 0 && app.state != ApplicationState::Restarting) {
                self.end_leftovers(&name, context);
            }
        }
    }
}

/// Nobody holds its bind any more. What it has left behind in its group is no standby.
fn forget(name: &str, instance: &Instance, context: &mut Context<'_>) {
    kill_group(instance.pid, Signal::KILL);
    context.state_changed();
    context.send_to(context.armor(), AppStandbyEnded { name: name.to_owned(), instance: instance.number });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(number: u64) -> Instance {
        Instance { number, pid: 1000 + number as u32, born: 1, held: false, since: None }
    }

    /// Standbys of a service that flows.
    fn standbys(numbers: &[u64]) -> Standbys {
        Standbys { instances: numbers.iter().copied().map(instance).collect(), flows: true, ..Standbys::default() }
    }

    #[test]
    fn one_is_started_after_the_other_and_only_while_the_service_flows() {
        let (two, now) = (StandbyCount(2), Instant::now());
        let mut standbys = standbys(&[]);
        assert!(standbys.lacks_one(two) && !standbys.lacks_one(StandbyCount(0)));
        standbys.instances.push(instance(1));
        assert!(!standbys.lacks_one(two), "the first is not there yet");
        assert!(standbys.held(1, now) && !standbys.held(1, now), "it asks again after the death of its ARMOR");
        assert!(standbys.lacks_one(two));
        standbys.application_failed();
        assert!(!standbys.lacks_one(two));
        standbys.flows = true;
        standbys.instances.push(instance(2));
        standbys.held(2, now);
        assert!(!standbys.lacks_one(two));
    }

    #[test]
    fn the_oldest_that_waits_takes_over_and_else_the_oldest() {
        let mut standbys = standbys(&[1, 2, 3]);
        standbys.held(2, Instant::now());
        let taken: Vec<_> = std::iter::from_fn(|| standbys.take()).map(|instance| instance.number).collect();
        assert_eq!(taken, [2, 1, 3]);
    }

    #[test]
    fn pauses_grow_to_their_bound_and_begin_anew_after_one_that_had_settled() {
        let (shortest, now) = (Duration::from_millis(50), Instant::now());
        let mut standbys = standbys(&[]);
        let mut pause = |instance: &Instance, now| {
            let After::Pause(pause) = standbys.ended(instance, None, shortest, now) else { return None };
            assert!(!standbys.lacks_one(StandbyCount(1)), "not before the pause is over");
            Some(pause.as_millis())
        };
        let grown: Vec<_> = (0..13).filter_map(|_| pause(&instance(1), now)).collect();
        assert_eq!((&grown[..4], grown[12]), (&[50, 100, 200, 400][..], 60_000));
        let quick = Instance { held: true, since: Some(now), ..instance(1) };
        assert_eq!(pause(&quick, now + SETTLED / 2), Some(60_000));
        assert_eq!(pause(&quick, now + SETTLED), Some(50));
    }

    #[test]
    fn a_pause_is_never_nothing_for_ever() {
        let mut standbys = standbys(&[]);
        assert_eq!(standbys.ended(&instance(1), None, Duration::ZERO, Instant::now()), After::Pause(SHORTEST_PAUSE));
        assert_eq!(standbys.ended(&instance(1), None, Duration::ZERO, Instant::now()), After::Pause(SHORTEST_PAUSE * 2));
    }

    #[test]
    fn one_that_exits_before_its_bind_is_the_last_one_and_one_that_is_killed_there_is_not() {
        let (shortest, now) = (Duration::from_millis(50), Instant::now());
        let mut standbys = standbys(&[]);
        assert_eq!(standbys.ended(&instance(1), None, shortest, now), After::Pause(shortest));
        let held = Instance { held: true, ..instance(2) };
        assert_eq!(standbys.ended(&held, Some("exit status: 1"), shortest, now), After::Pause(shortest * 2), "it had come to its bind");
        assert_eq!(standbys.ended(&instance(3), Some("exit status: 1"), shortest, now), After::Never);
        standbys.pausing = false;
        assert!(!standbys.lacks_one(StandbyCount(1)));
        assert_eq!(standbys.status(StandbyCount(1))["given_up"], "exit status: 1");
    }

    #[test]
    fn what_is_captured_comes_back() {
        let mut standbys = standbys(&[1]);
        standbys.held(1, Instant::now());
        let captured = rmp_serde::to_vec(&standbys).unwrap_or_default();
        let back: Option<Standbys> = rmp_serde::from_slice(&captured).ok();
        let back = back.map(|standbys| (standbys.flows, standbys.instances.iter().map(|at| (at.number, at.held)).collect::<Vec<_>>()));
        assert_eq!(back, Some((true, vec![(1, true)])));
    }
}
