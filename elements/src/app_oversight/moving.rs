//! Applications that move between nodes (thesis §4.5.4): the FTM is told of all of them, has them taken over, and has them ended where they
//! were when that node comes back.
//!
//! Invariant: a fence ends lives that came before the move that it speaks of, never one that was ordered after it.

use armor_core::context::Context;
use armor_core::events::{Event, now_ms};
use armor_proto::ids::{ArmorId, Incarnation};
use armor_proto::message::Message;
use rustix::process::Signal;

use super::{AppOversight, Application, MAX_APPLICATIONS, kill_group};
use crate::operations::{
    AppFence, AppFenceDone, AppFenced, AppOverseer, AppReport, AppStopped, AppTakeOver, AppTakenOver, ApplicationState, DaemonRegistered,
    LaunchId,
};

impl AppOversight {
    /// An identity for one more launch. It is drawn per life of the ARMOR, so that it never comes again.
    pub(super) fn next_launch(&self, context: &Context<'_>) -> LaunchId {
        LaunchId((now_ms() << 20).wrapping_add(self.next_number) ^ context.armor().0)
    }

    /// The FTM knows this node (again): it is told of everything here.
    pub(super) fn registered(&mut self, registered: &DaemonRegistered, context: &mut Context<'_>) {
        if registered.accepted && !self.ending {
            self.report_all(context);
        }
    }

    pub(super) fn report_all(&mut self, context: &mut Context<'_>) {
        // What was stopped could not be taken over here yet, and would go elsewhere. All is told when there is a lease.
        if self.isolation.is_isolated() {
            return;
        }
        // Before what runs is told: so an FTM that has forgotten them learns of them, and has them started again.
        self.report_isolated(context);
        // Those that are over too: they are not forgotten, as their reports say.
        let launches = self.applications.values().map(|app| app.launch).collect();
        let labels = self.config.labels.clone();
        let there = AppOverseer { overseer: context.armor(), node: self.node.clone(), labels, launches };
        context.send_reliable(Message::to(ArmorId::FTM, there));
        for name in self.applications.keys() {
            self.report(name, context);
        }
        self.tell_holds(context);
    }

    /// Tells the FTM how an application is doing.
    pub(super) fn report(&self, name: &str, context: &mut Context<'_>) {
        if let Some(application) = self.applications.get(name) {
            self.report_as(application, application.state, context);
        }
    }

    /// This ARMOR ends by its operator's will, and with it its applications: they are not to be started elsewhere.
    pub(super) fn report_leaving(&mut self, context: &mut Context<'_>) {
        let here = self.applications.values().filter(|app| app.state.is_meant_to_run());
        for application in here.chain(self.isolation.stopped.values()) {
            self.report_as(application, ApplicationState::Ended, context);
        }
    }

    pub(super) fn report_as(&self, application: &Application, state: ApplicationState, context: &mut Context<'_>) {
        let Application { launch, incarnation, restarts, .. } = *application;
        let (overseer, node, spec) = (context.armor(), self.node.clone(), application.spec.clone());
        context.send_reliable(Message::to(ArmorId::FTM, AppReport { overseer, node, launch, spec, incarnation, restarts, state }));
    }

    /// `MSG_APP_TAKE_OVER`: its node has failed, and it is to run here.
    pub(super) fn take_over(&mut self, order: &AppTakeOver, context: &mut Context<'_>) {
        let name = order.spec.name.clone();
        let error = match self.applications.get_mut(&name) {
            // It has never been away, or the order came twice: fences that were meant for it before this order are not any more.
            Some(known) if known.launch == order.launch && known.state.is_meant_to_run() => {
                known.epoch = known.epoch.max(order.incarnation);
                context.state_changed();
                String::new()
            }
            Some(known) if known.state.is_meant_to_run() => format!("another application {name:?} runs under this ARMOR"),
            _ => self.begin_taken_over(order, context).err().unwrap_or_default(),
        };
        let answer = AppTakenOver { name, launch: order.launch, incarnation: order.incarnation, overseer: context.armor(), error };
        context.send_reliable(Message::to(ArmorId::FTM, answer));
    }

    fn begin_taken_over(&mut self, order: &AppTakeOver, context: &mut Context<'_>) -> Result<(), String> {
        let spec = order.spec.clone();
        spec.check().map_err(|(_, reason)| reason)?;
        if self.ending {
            return Err("this ARMOR is ending".to_owned());
        }
        if let Some(refusal) = self.isolation.refusal() {
            return Err(refusal);
        }
        self.make_room();
        if self.applications.len() >= MAX_APPLICATIONS && !self.applications.contains_key(&spec.name) {
            return Err(format!("{MAX_APPLICATIONS} applications are supervised here already"));
        }
        let number = self.next_number;
        self.next_number += 1;
        let name = spec.name.clone();
        let taken = Application {
            incarnation: order.incarnation,
            restarts: order.restarts,
            epoch: order.incarnation,
            moved_from: Some(order.moved_from.clone()).filter(|from| *from != self.node),
            standbys: self.take_from_hold(order.launch),
            ..Application::new(spec, number, order.launch)
        };
        self.isolation.stopped.remove(&name);
        self.applications.insert(name.clone(), taken);
        if self.restored {
            // It may have been started just before the death of this ARMOR, without a word.
            self.end_leftovers(&name, context);
        }
        if self.release_standby(&name, context) {
            return Ok(());
        }
        self.spawn(&name, context).map(drop).inspect_err(|error| {
            context.event(Event::new("application-not-started").with("service", &name).with("reason", error));
            self.applications.remove(&name);
            context.send_to(context.armor(), AppFenced { name });
        })
    }

    /// `MSG_APP_FENCE`: it runs on another node by now.
    pub(super) fn fence(&mut self, fence: &AppFence, context: &mut Context<'_>) {
        let before = |app: &&mut Application| app.launch == fence.launch && app.epoch < fence.below && app.incarnation < fence.below;
        let standbys: Vec<u32> =
            self.applications.get_mut(&fence.name).filter(before).map_or_else(Vec::new, |app| app.standbys.pids().collect());
        if !standbys.is_empty() {
            self.end_standbys(&fence.name, context);
            standbys.into_iter().for_each(|pid| kill_group(pid, Signal::KILL));
        }
        if let Some(application) = self.applications.get_mut(&fence.name).filter(before) {
            if application.state == ApplicationState::Running {
                kill_group(application.pid, Signal::KILL);
            }
            let told = Event::new("application-fenced").with("service", &fence.name).with("incarnation", application.incarnation.0);
            context.event(told.with("pid", application.pid).with("moved_to", &fence.moved_to));
            if let Some(asker) = application.stopping.filter(|asker| *asker != ArmorId::NONE) {
                context.send_to(asker, AppStopped { name: fence.name.clone(), error: String::new() });
            }
            // Without it nobody hears of the end of its process, which is no failure.
            self.applications.remove(&fence.name);
            context.state_changed();
            context.send_to(context.armor(), AppFenced { name: fence.name.clone() });
        }
        if self.isolation.stopped.get(&fence.name).is_some_and(|app| app.launch == fence.launch && app.incarnation < fence.below) {
            self.isolation.stopped.remove(&fence.name);
            context.state_changed();
        }
        // Its order came before: where an application is fenced none is held before that is done.
        self.kill_hold(fence.launch, context);
        let done = AppFenceDone { launch: fence.launch, overseer: context.armor() };
        context.send_reliable(Message::to(ArmorId::FTM, done));
    }
}

impl Application {
    /// The incarnation of its next life.
    pub(super) fn next_incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.max(self.epoch).0.saturating_add(1))
    }
}
