//! Applications that an earlier life of this ARMOR has started: they run on, and are overseen again (thesis §4.5.2).
//!
//! Invariant: never two lives of an application at once: what an earlier life may have started without having said so is ended first.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::hookup::{ENV_INSTANCE, ENV_RUN_DIR, ENV_SERVICE};
use armor_proto::ids::{ArmorId, Incarnation};
use armor_vault::Exited;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::holding::Hold;
use super::standby::{Instance, Standbys};
use super::{AppOversight, Application, kill_group, pid_of};
use crate::endpoints::{Stat, watch_process};
use crate::operations::{AppIsOver, ApplicationSpec, ApplicationState, LaunchId};

/// How long the vault may take to say how a process has ended whose end is seen here.
const STATUS_WITHIN: Duration = Duration::from_millis(50);
/// Ends of processes that are remembered until they are asked for; the oldest are forgotten.
const EXITS: usize = 4096;

/// What is captured of an application.
#[derive(Serialize, Deserialize)]
struct Captured {
    spec: ApplicationSpec,
    state: ApplicationState,
    pid: u32,
    /// Tells the process from a later one with the same number.
    born: u64,
    incarnation: Incarnation,
    restarts: u64,
    #[serde(default)]
    instance: u64,
    #[serde(default)]
    standbys: Standbys,
    launch: LaunchId,
    epoch: Incarnation,
    moved_from: Option<String>,
    /// It has been told to end.
    stopping: bool,
}

/// What is captured of the element.
#[derive(Serialize, Deserialize)]
struct CapturedElement {
    applications: Vec<Captured>,
    /// Standbys that are being ended.
    leaving: Vec<Instance>,
    /// Applications that were stopped because the node was isolated.
    #[serde(default)]
    isolated: Vec<Captured>,
    /// Standbys of applications that run on other nodes.
    #[serde(default)]
    holds: Vec<Hold>,
}

impl AppOversight {
    pub(super) fn captured(&self) -> Option<Vec<u8>> {
        let captured = |application: &Application| Captured {
            spec: application.spec.clone(),
            state: application.state,
            pid: application.pid,
            born: application.born,
            incarnation: application.incarnation,
            restarts: application.restarts,
            instance: application.instance,
            standbys: application.standbys.clone(),
            launch: application.launch,
            epoch: application.epoch,
            moved_from: application.moved_from.clone(),
            stopping: application.stopping.is_some(),
        };
        let applications = self.applications.values().map(captured).collect();
        let isolated = self.isolation.stopped.values().map(captured).collect();
        let holds = self.holds.values().cloned().collect();
        rmp_serde::to_vec(&CapturedElement { applications, leaving: self.leaving.clone(), isolated, holds }).ok()
    }

    pub(super) fn take_back(&mut self, state: &[u8]) -> Result<(), String> {
        let captured: CapturedElement = rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        self.leaving = captured.leaving;
        self.restored = true;
        self.holds = captured.holds.into_iter().map(|hold| (hold.launch, hold)).collect();
        for captured in captured.applications {
            let taken = self.application_of(captured);
            self.applications.insert(taken.spec.name.clone(), taken);
        }
        for captured in captured.isolated {
            let taken = self.application_of(captured);
            self.isolation.stopped.insert(taken.spec.name.clone(), taken);
        }
        Ok(())
    }

    fn application_of(&mut self, captured: Captured) -> Application {
        let Captured { spec, state, pid, born, incarnation, restarts, instance, standbys, launch, epoch, moved_from, stopping } = captured;
        let number = self.next_number;
        self.next_number += 1;
        // Who asked waits no more, or asks again.
        let stopping = stopping.then_some(ArmorId::NONE);
        let new = Application::new(spec, number, launch);
        Application { state, pid, born, instance, incarnation, restarts, stopping, standbys, epoch, moved_from, ..new }
    }

    /// Oversees what runs, and starts what was to be started.
    pub(super) fn take_up(&mut self, context: &mut Context<'_>) {
        if !self.restored {
            self.end_orphans(context);
        }
        self.take_up_standbys(context);
        self.take_up_holds(context);
        let known: Vec<_> = self.applications.values().map(|app| (app.spec.name.clone(), app.state, app.pid, app.born)).collect();
        for (name, state, pid, born) in known {
            match state {
                ApplicationState::Running if born_at(pid) == Some(born) => {
                    self.adopt(&name, pid, context);
                    self.end_again(&name, context);
                }
                ApplicationState::Running => {
                    // The next one may have been started already, without a word.
                    self.end_leftovers(&name, context);
                    self.orphan_ended(&name, pid, context);
                }
                ApplicationState::Restarting => {
                    self.end_leftovers(&name, context);
                    self.begin(&name, context);
                }
                // The elements that were to hear of it may have died before they had.
                ApplicationState::Ended | ApplicationState::GivenUp => context.send_to(context.armor(), AppIsOver { name: name.clone() }),
            }
            self.start_standby(&name, context);
        }
    }

    /// What had been told to end is told so by this life of the ARMOR, with the time for it from now on.
    fn end_again(&self, name: &str, context: &mut Context<'_>) {
        if let Some(application) = self.applications.get(name).filter(|app| app.stopping.is_some()) {
            kill_group(application.pid, Signal::TERM);
            context.timer(Duration::from_millis(self.config.stop_grace_ms), application.number << 1 | super::KILL);
        }
    }

    fn adopt(&mut self, name: &str, pid: u32, context: &mut Context<'_>) {
        context.event(Event::new("application-adopted").with("service", name).with("pid", pid));
        self.probe_by_command(name, context);
        if let Some(application) = self.applications.get(name) {
            // It may have been started just before the death of the ARMOR, so that nobody heard of it.
            context.send_to(context.armor(), application.started_now());
        }
        self.watch_orphan(name, pid, context);
    }

    /// Waits for the end of a process that is no child of this one.
    pub(super) fn watch_orphan(&mut self, name: &str, pid: u32, context: &mut Context<'_>) {
        let (name, handle) = (name.to_owned(), context.handle::<Self>());
        context.spawn(async move {
            watch_process(pid).await;
            let known = handle.call(|element, _| element.exits.iter().any(|exit| exit.pid == pid));
            if known == Some(false) {
                tokio::time::sleep(STATUS_WITHIN).await;
            }
            handle.call(|element, context| element.orphan_ended(&name, pid, context));
        });
    }

    /// The vault says how a process has ended that is no child of this one.
    pub(super) fn process_exited(&mut self, exited: &Exited, _: &mut Context<'_>) {
        self.exits.push_back(*exited);
        if self.exits.len() > EXITS {
            self.exits.pop_front();
        }
    }

    fn orphan_ended(&mut self, name: &str, pid: u32, context: &mut Context<'_>) {
        let status = self.exits.iter().position(|exit| exit.pid == pid).and_then(|at| self.exits.remove(at)).map(|exit| exit.status);
        let status = status.map(ExitStatus::from_raw);
        if self.standby_ended(name, pid, status.as_ref(), context) {
            return;
        }
        let (how, orderly) = match status {
            Some(status) => (status.to_string(), status.success()),
            None => ("ended, and nobody knows how".to_owned(), false),
        };
        self.ended(name, pid, &how, orderly, context);
    }

    /// A process that was started just before the death of the ARMOR, so that its number was never captured.
    pub(super) fn end_leftovers(&self, name: &str, context: &mut Context<'_>) {
        let known = self.applications.get(name).map(Application::known_instances).unwrap_or_default();
        let known: Vec<_> = known.into_iter().chain(self.held_instances(name)).map(|number| number.to_string()).collect();
        self.kill_started_here(context, |service, instance| {
            service == name.as_bytes() && !known.iter().any(|known| known.as_bytes() == instance)
        });
    }

    /// Nothing is known of an earlier life: the ARMOR has died together with its vault, or its captured state is lost. What it had started and lives on has no connection
    /// any more and nobody who watches it, and runs on another node by now, or is about to.
    fn end_orphans(&self, context: &mut Context<'_>) {
        // An ARMOR that is started by such an application itself.
        if std::env::var_os(ENV_RUN_DIR).is_none_or(|run_dir| run_dir != self.run_dir) {
            self.kill_started_here(context, |_, instance| !instance.is_empty());
        }
    }

    /// Kills processes that an overseer in this run directory has started, and what they have started: those whose service and instance are meant.
    fn kill_started_here(&self, context: &mut Context<'_>, is_meant: impl Fn(&[u8], &[u8]) -> bool) {
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
            let value = |key: &str| {
                let of = |entry| <[u8]>::strip_prefix(entry, key.as_bytes())?.strip_prefix(b"=");
                environment.split(|byte| *byte == 0).find_map(of)
            };
            let here = value(ENV_RUN_DIR) == Some(self.run_dir.as_os_str().as_encoded_bytes());
            let (Some(service), true) = (value(ENV_SERVICE), here) else { continue };
            if is_meant(service, value(ENV_INSTANCE).unwrap_or_default()) {
                let told = Event::new("application-leftover-killed").with("service", String::from_utf8_lossy(service)).with("pid", pid);
                context.event(told);
                kill_group(pid, Signal::KILL);
                if let Some(pid) = pid_of(pid) {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        }
    }
}

/// When a process that lives was started, in clock ticks after boot.
pub(super) fn born_at(pid: u32) -> Option<u64> {
    Stat::of(pid).filter(|stat| !stat.has_ended()).map(|stat| stat.born)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_number_and_birth() {
        assert!(born_at(std::process::id()).is_some_and(|born| born > 0));
        assert_eq!(born_at(0), None);
    }
}
