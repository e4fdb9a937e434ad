//! An isolated node: when its lease has run out, what may run elsewhere is killed here at once, and vanishes without a word to its clients, as when it is fenced.
//! (`node_lease` gets the lease from the FTM; its `term` has the argument.)
//!
//! When there is a lease again nothing is started by this overseer's own decision: the FTM is told what it does not run any more, and orders it to be taken
//! over, here when it was not moved. What was moved is fenced as ever.
//!
//! The lease is in the file `lease` of the run directory, so that the next life of this ARMOR keeps to it: written in place, a few times a second, never synced.
//! It need not outlive the machine, whose applications end with it.
//!
//! Invariant: an overseer whose lease has run out neither runs nor starts what may run elsewhere.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use armor_core::context::Context;
use armor_core::events::Event;
use rustix::process::Signal;

use super::restored::born_at;
use super::{AppOversight, Application, MAX_APPLICATIONS, kill_group};
use crate::node_lease::term::{Holding, Turn};
use crate::operations::{AppFenced, ApplicationState, LeaseTold, since_boot};

/// Token of the timer that looks at the lease. Applications are numbered from 1.
pub(super) const TIMER: u64 = 0;

/// The lease of this node, and what its end has stopped.
#[derive(Default)]
pub(super) struct Isolation {
    holding: Holding,
    file: Option<std::fs::File>,
    armed: bool,
    /// They wait for the FTM's order.
    pub(super) stopped: BTreeMap<String, Application>,
}

impl Isolation {
    /// Why nothing can be started now.
    pub(super) fn refusal(&self) -> Option<String> {
        let reason =
            "this node is isolated: it does not hear its FTM, and is set to run nothing meanwhile (node_lease, isolated = \"stop\")";
        self.is_isolated().then(|| reason.to_owned())
    }

    pub(super) fn is_isolated(&self) -> bool {
        self.holding.is_isolated()
    }

    pub(super) fn status(&self) -> serde_json::Value {
        serde_json::json!({ "isolated": self.is_isolated(), "stopped": self.stopped.keys().collect::<Vec<_>>() })
    }

    /// For the next life. Two copies: one that was written in part is none.
    fn write(&mut self, path: &Path) -> std::io::Result<()> {
        let Some(until) = self.holding.until() else {
            self.file = None;
            return match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let file = match self.file.take() {
            Some(file) => file,
            None => std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?,
        };
        let until = (until.as_micros() as u64).to_le_bytes();
        file.write_all_at(&[until, until].concat(), 0)?;
        self.file = Some(file);
        Ok(())
    }
}

/// What the last life was told. A file that says nothing is a lease that has run out.
fn read(path: &Path) -> Option<Duration> {
    let bytes = std::fs::read(path).ok()?;
    let until = bytes.split_at_checked(8).filter(|(first, second)| first == second).and_then(|(first, _)| first.try_into().ok());
    Some(Duration::from_micros(until.map_or(0, u64::from_le_bytes)))
}

impl AppOversight {
    fn lease_file(&self) -> PathBuf {
        self.run_dir.join("lease")
    }

    /// In a new life of the ARMOR, before anything is taken up.
    pub(super) fn take_up_lease(&mut self, context: &mut Context<'_>) {
        self.isolation.holding = Holding::taken_back(read(&self.lease_file()));
        self.lease_timer(context);
    }

    pub(super) fn lease_told(&mut self, told: &LeaseTold, context: &mut Context<'_>) {
        let now = since_boot();
        // It may have run out unnoticed, and then something may have been moved.
        self.look_at_lease(now, context);
        let turn = self.isolation.holding.told(told.until_us.map(Duration::from_micros), told.opening, now);
        let path = self.lease_file();
        if let Err(error) = self.isolation.write(&path) {
            tracing::warn!(
                "{}: {error}; the next life of this ARMOR will not know its node's lease, and take it for run out or for none",
                path.display()
            );
        }
        if turn == Some(Turn::Rejoined) {
            context.event(Event::new("node-rejoined").with("node", &self.node).with("stopped", self.isolation.stopped.len()));
            self.report_all(context);
        }
        self.lease_timer_on(now, context);
    }

    pub(super) fn lease_timer(&mut self, context: &mut Context<'_>) {
        self.isolation.armed = false;
        let now = since_boot();
        self.look_at_lease(now, context);
        self.lease_timer_on(now, context);
    }

    /// One timer at a time: a lease that was prolonged is looked at again when the one before would have run out.
    fn lease_timer_on(&mut self, now: Duration, context: &mut Context<'_>) {
        if let Some(lasts) = self.isolation.holding.lasts(now)
            && !std::mem::replace(&mut self.isolation.armed, true)
        {
            context.timer(lasts, TIMER);
        }
    }

    fn look_at_lease(&mut self, now: Duration, context: &mut Context<'_>) {
        let Some(Turn::Isolated(late)) = self.isolation.holding.at(now) else { return };
        let elsewhere = |app: &Application| may_migrate(app) && app.state.is_meant_to_run();
        // What was told to end ends, and is not to come back.
        let comes_back = |app: &&Application| elsewhere(app) && app.stopping.is_none();
        let names: Vec<String> = self.applications.values().filter(comes_back).map(|app| app.spec.name.clone()).collect();
        // First of all the kill: the rest takes its time.
        for application in self.applications.values().filter(|app| elsewhere(app)) {
            let is_running = application.state == ApplicationState::Running && born_at(application.pid) == Some(application.born);
            is_running.then(|| kill_group(application.pid, Signal::KILL));
            application.standbys.pids().for_each(|pid| kill_group(pid, Signal::KILL));
        }
        self.kill_all_holds(context);
        let took = since_boot().saturating_sub(now);
        let told = Event::new("node-isolated").with("node", &self.node).with("stopped", names.join(" "));
        context.event(told.with("late_ms", late.as_millis()).with("kill_us", took.as_micros()));
        for name in names {
            self.end_standbys(&name, context);
            // One that was started just before the death of an earlier life is in nobody's list.
            self.end_leftovers(&name, context);
            let Some(mut application) = self.applications.remove(&name) else { continue };
            application.state = ApplicationState::Restarting;
            if self.isolation.stopped.len() < MAX_APPLICATIONS {
                self.isolation.stopped.insert(name.clone(), application);
            }
            context.send_to(context.armor(), AppFenced { name });
        }
        context.state_changed();
    }

    /// Tells the FTM of what was stopped here and may run.
    pub(super) fn report_isolated(&self, context: &mut Context<'_>) {
        for application in self.isolation.stopped.values() {
            self.report_as(application, ApplicationState::Restarting, context);
        }
    }

    /// An operator ends an application for good that is stopped here already. Gives why that may not be the end of it.
    pub(super) fn stop_isolated(&mut self, name: &str, context: &mut Context<'_>) -> Option<String> {
        let mut application = self.isolation.stopped.remove(name)?;
        application.state = ApplicationState::Ended;
        self.report_as(&application, ApplicationState::Ended, context);
        self.make_room();
        if self.applications.len() < MAX_APPLICATIONS {
            // The FTM, which may not hear of it now, is told again whenever it is told of all that is here.
            self.applications.entry(name.to_owned()).or_insert(application);
        }
        context.state_changed();
        Some(format!(
            "{name:?} was stopped here already, when this node was isolated, and is not started here again; but the FTM may have moved it: see with \
             `armor status` whether it runs on another node, and stop it there"
        ))
    }
}

fn may_migrate(application: &Application) -> bool {
    application.spec.placement.migrate
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use armor_core::context::{Effect, Effects};
    use armor_core::element::{Element as _, Setup};
    use armor_proto::ids::{ArmorId, Incarnation};
    use armor_proto::message::{Message, downcast};

    use super::super::Config;
    use super::*;
    use crate::operations::{AppFence, AppOverseer, AppReport, AppStop, AppStopped, LaunchId};

    /// An overseer whose node was isolated while "web" ran there.
    fn after_an_isolation(setup: &Setup) -> AppOversight {
        let mut element = AppOversight::new(Config::default(), setup).unwrap();
        let spec = serde_json::from_value(serde_json::json!({ "name": "web", "command": ["web"] })).unwrap();
        let application = Application { incarnation: Incarnation(3), ..Application::new(spec, 1, LaunchId(7)) };
        element.isolation.stopped.insert("web".into(), application);
        element
    }

    fn setup() -> Setup {
        Setup { armor: ArmorId::of_name("b"), name: "b".into(), kind: "daemon".into(), run_dir: "/nowhere".into() }
    }

    fn sent<O: armor_proto::operation::Operation + Clone>(effects: &Effects) -> Vec<O> {
        let sent = effects.iter().filter_map(|effect| {
            let (Effect::Send(message) | Effect::SendReliable(message)) = effect else { return None };
            downcast::<O>(message.top()?.operations.front()?).cloned()
        });
        sent.collect()
    }

    fn states(effects: &Effects) -> Vec<ApplicationState> {
        sent::<AppReport>(effects).into_iter().map(|report| report.state).collect()
    }

    #[test]
    fn whoever_stops_what_an_isolation_has_stopped_hears_that_it_may_run_elsewhere_and_the_ftm_hears_of_the_end() {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut element = after_an_isolation(&setup);
        let mut asked = Message::to(setup.armor, AppStop { name: "web".into() });
        asked.source = ArmorId(9);
        element.stop_application(&AppStop { name: "web".into() }, &mut Context::detached(&setup, Some(&mut asked), &mut effects));
        let answers = sent::<AppStopped>(&effects);
        assert!(answers.len() == 1 && answers[0].error.contains("another node"), "{answers:?}");
        assert_eq!(states(&effects), [ApplicationState::Ended]);
        // It is told again when the FTM is heard again, and not for lost.
        effects.clear();
        let mut next = AppOversight::new(Config::default(), &setup).unwrap();
        next.restore(&element.capture().unwrap()).unwrap();
        next.report_all(&mut Context::detached(&setup, None, &mut effects));
        assert_eq!(states(&effects), [ApplicationState::Ended]);
        assert_eq!(sent::<AppOverseer>(&effects)[0].launches, [LaunchId(7)]);
        // It had been moved.
        let fence = AppFence { name: "web".into(), launch: LaunchId(7), below: Incarnation(65_536), moved_to: "c".into() };
        next.fence(&fence, &mut Context::detached(&setup, None, &mut effects));
        assert!(next.applications.is_empty() && next.isolation.stopped.is_empty());
    }

    #[test]
    fn what_waits_for_the_ftm_s_order_ends_with_its_node_by_the_operator_s_will() {
        let (setup, mut effects) = (setup(), Effects::new());
        after_an_isolation(&setup).report_leaving(&mut Context::detached(&setup, None, &mut effects));
        assert_eq!(states(&effects), [ApplicationState::Ended]);
    }

    #[test]
    fn a_lease_outlives_the_process_and_a_damaged_file_is_one_that_has_run_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lease");
        assert_eq!(read(&path), None);
        let mut isolation = Isolation::default();
        for until in [1_000_000, 2_000_000] {
            isolation.holding.told(Some(Duration::from_micros(until)), false, Duration::ZERO);
            isolation.write(&path).unwrap();
            assert_eq!(read(&path), Some(Duration::from_micros(until)));
        }
        for length in 0..16 {
            std::fs::write(&path, &[7, 1, 1, 1, 1, 1, 1, 1, 9, 1, 1, 1, 1, 1, 1, 1][..length]).unwrap();
            assert_eq!(read(&path), Some(Duration::ZERO), "{length} bytes");
        }
        isolation.holding.told(None, true, Duration::ZERO);
        isolation.write(&path).unwrap();
        assert_eq!(read(&path), None);
        isolation.write(&path).unwrap();
    }
}
