//! Standbys of applications that run on other nodes: this overseer holds them for the failure of those, by order of the FTM.
//!
//! They are started, held inside their bind and started again when they die as those beside a running instance are. When the FTM orders the application to be taken over
//! here, the one that waits takes over instead of a process that would be started. The FTM is told of all that is held here at each change, and again when the daemon
//! registers: it compares that with what it wants, ends what is too much, and places elsewhere what is missing. So no order or answer that is lost, late or
//! repeated leaves a process that nobody wants.
//!
//! Invariant: what is held for another node is given no address, and nothing of it is registered, before the FTM has ordered the application to be taken over here.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::standby::{After, Instance, Standbys};
use super::{AppOversight, kill_group};
use crate::operations::{
    AppHold, AppHoldEnd, AppHolds, AppStandbyHeld, AppStandbyStarted, ApplicationSpec, HoldState, HoldTold, LaunchId, StandbyCount,
};

/// Most applications of other nodes for which a standby is held here.
const MAX_HOLDS: usize = 256;
/// One for each application.
const ONE: StandbyCount = StandbyCount(1);

/// A standby that is held for another node. All of it is captured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hold {
    spec: ApplicationSpec,
    pub(super) launch: LaunchId,
    /// Of the FTM's order.
    number: u64,
    standbys: Standbys,
}

impl Hold {
    fn told(&self) -> HoldTold {
        let state = if self.standbys.one_waits() { HoldState::Waiting } else { HoldState::Starting };
        HoldTold { launch: self.launch, number: self.number, state }
    }

    pub(super) fn status(&self) -> serde_json::Value {
        serde_json::json!({ "name": self.spec.name, "standbys": self.standbys.status(ONE) })
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.standbys.pids()
    }
}

impl AppOversight {
    /// `MSG_APP_HOLD`: an application that runs elsewhere is to have a standby here.
    pub(super) fn hold(&mut self, order: &AppHold, context: &mut Context<'_>) {
        let refusal = self.hold_refusal(order);
        if let Some(reason) = refusal {
            return self.refuse_hold(order.launch, order.number, reason, context);
        }
        if let Some(known) = self.holds.get_mut(&order.launch) {
            // The order came twice, or after one whose end was not heard here.
            known.number = known.number.max(order.number);
            context.state_changed();
            return self.tell_holds(context);
        }
        let (spec, launch) = (order.spec.clone(), order.launch);
        let name = spec.name.clone();
        self.holds.insert(launch, Hold { spec, launch, number: order.number, standbys: Standbys::held_for_another_node() });
        if self.restored {
            // One may have been started just before the death of this ARMOR, without a word.
            self.end_leftovers(&name, context);
        }
        self.start_held(launch, context);
    }

    fn hold_refusal(&self, order: &AppHold) -> Option<String> {
        let name = &order.spec.name;
        if let Err((_, reason)) = order.spec.check() {
            return Some(reason);
        }
        if self.ending {
            return Some("this ARMOR is ending".to_owned());
        }
        if self.applications.get(name).is_some_and(|app| app.state.is_meant_to_run()) {
            return Some(format!("an application {name:?} runs under this ARMOR"));
        }
        if self.holds.len() >= MAX_HOLDS && !self.holds.contains_key(&order.launch) {
            return Some(format!("{MAX_HOLDS} standbys of other nodes are held here already"));
        }
        self.isolation.refusal()
    }

    /// `MSG_APP_HOLD_END`: nobody wants it any more.
    pub(super) fn hold_end(&mut self, end: &AppHoldEnd, context: &mut Context<'_>) {
        if self.holds.get(&end.launch).is_some_and(|hold| hold.number <= end.number) {
            self.end_hold(end.launch, context);
        }
        self.tell_holds(context);
    }

    /// Its process is told to end, and is killed after a while.
    fn end_hold(&mut self, launch: LaunchId, context: &mut Context<'_>) {
        if let Some(mut hold) = self.holds.remove(&launch) {
            context.state_changed();
            self.end_instances(hold.standbys.take_all(), context);
        }
    }

    /// It is killed at once: what runs here must not run here.
    pub(super) fn kill_hold(&mut self, launch: LaunchId, context: &mut Context<'_>) {
        let Some(hold) = self.holds.get(&launch) else { return };
        let pids: Vec<u32> = hold.pids().collect();
        self.end_hold(launch, context);
        pids.into_iter().for_each(|pid| kill_group(pid, Signal::KILL));
    }

    /// Starts the process of a hold, if it lacks one.
    fn start_held(&mut self, launch: LaunchId, context: &mut Context<'_>) {
        let Some(hold) = self.holds.get(&launch).filter(|hold| !self.ending && hold.standbys.lacks_one(ONE)) else { return };
        let spec = hold.spec.clone();
        match self.start_process(&spec, context) {
            Ok(instance) => {
                context.send_to(context.armor(), AppStandbyStarted { name: spec.name, instance: instance.number });
                if let Some(hold) = self.holds.get_mut(&launch) {
                    hold.standbys.push(instance);
                }
                context.state_changed();
                self.tell_holds(context);
            }
            Err(reason) => {
                context.event(Event::new("standby-not-started").with("service", &spec.name).with("reason", &reason));
                self.give_up_hold(launch, reason, context);
            }
        }
    }

    /// Another node is looked for by the FTM.
    fn give_up_hold(&mut self, launch: LaunchId, reason: String, context: &mut Context<'_>) {
        if let Some(hold) = self.holds.remove(&launch) {
            context.state_changed();
            self.refuse_hold(launch, hold.number, reason, context);
        }
    }

    /// A standby of another node's application has come to its bind: `true` when it is one.
    pub(super) fn hold_waits(&mut self, held: &AppStandbyHeld, context: &mut Context<'_>) -> bool {
        let Some(hold) = self.holds.values_mut().find(|hold| hold.standbys.has(held.instance)) else { return false };
        if hold.standbys.held(held.instance, Instant::now()) {
            let pid = hold.pids().next().unwrap_or(0);
            context.event(Event::new("standby-ready").with("service", &held.name).with("pid", pid).with("elsewhere", true));
            context.state_changed();
            self.tell_holds(context);
        }
        true
    }

    /// A process has ended: `true` when it was held for another node.
    pub(super) fn held_ended(&mut self, pid: u32, status: Option<&ExitStatus>, context: &mut Context<'_>) -> bool {
        let Some((&launch, hold)) = self.holds.iter_mut().find(|(_, hold)| hold.pids().any(|own| own == pid)) else { return false };
        let (name, shortest) = (hold.spec.name.clone(), Duration::from_millis(hold.spec.backoff_ms));
        let Some((after, how)) = hold.standbys.lost(&name, pid, status, shortest, context) else { return false };
        match after {
            After::Never => self.give_up_hold(launch, format!("it ended before its bind ({how})"), context),
            After::Pause(pause) => {
                self.start_held_after(launch, pause, context);
                self.tell_holds(context);
            }
        }
        true
    }

    fn start_held_after(&mut self, launch: LaunchId, pause: Duration, context: &mut Context<'_>) {
        let handle = context.handle::<Self>();
        context.spawn(async move {
            tokio::time::sleep(pause).await;
            handle.call(|element, context| {
                if let Some(hold) = element.holds.get_mut(&launch) {
                    hold.standbys.pause_is_over();
                    element.start_held(launch, context);
                }
            });
        });
    }

    /// The application is taken over here: what was held for it is its own from now on.
    pub(super) fn take_from_hold(&mut self, launch: LaunchId) -> Standbys {
        self.holds.remove(&launch).map_or_else(Standbys::default, |hold| hold.standbys.taken_over())
    }

    /// Numbers of instances that are held for an application of this name.
    pub(super) fn held_instances(&self, name: &str) -> impl Iterator<Item = u64> {
        self.holds.values().filter(move |hold| hold.spec.name == name).flat_map(|hold| hold.standbys.numbers())
    }

    /// The node is isolated: the FTM takes it for failed, and what it held is placed anew.
    pub(super) fn kill_all_holds(&mut self, context: &mut Context<'_>) {
        let launches: Vec<LaunchId> = self.holds.keys().copied().collect();
        launches.into_iter().for_each(|launch| self.kill_hold(launch, context));
    }

    fn refuse_hold(&mut self, launch: LaunchId, number: u64, reason: String, context: &mut Context<'_>) {
        self.tell_holds_and(vec![HoldTold { launch, number, state: HoldState::Refused(reason) }], context);
    }

    /// This ARMOR ends by its operator's will: another node is to hold them.
    pub(super) fn refuse_all_holds(&mut self, context: &mut Context<'_>) {
        let refused = |hold: &Hold| HoldTold { state: HoldState::Refused("this ARMOR is ending".to_owned()), ..hold.told() };
        let refused: Vec<HoldTold> = self.holds.values().map(refused).collect();
        if !refused.is_empty() {
            self.say_holds(refused, context);
        }
    }

    /// Tells the FTM of all that is held here.
    pub(super) fn tell_holds(&mut self, context: &mut Context<'_>) {
        self.tell_holds_and(Vec::new(), context);
    }

    fn tell_holds_and(&mut self, mut holds: Vec<HoldTold>, context: &mut Context<'_>) {
        holds.extend(self.holds.values().map(Hold::told));
        self.say_holds(holds, context);
    }

    fn say_holds(&mut self, holds: Vec<HoldTold>, context: &mut Context<'_>) {
        self.next_instance += 1;
        let (overseer, node, revision) = (context.armor(), self.node.clone(), self.next_instance);
        context.send_reliable(Message::to(ArmorId::FTM, AppHolds { overseer, node, revision, holds }));
    }

    /// In a new life of the ARMOR: what is held goes on waiting.
    pub(super) fn take_up_holds(&mut self, context: &mut Context<'_>) {
        let launches: Vec<LaunchId> = self.holds.keys().copied().collect();
        for launch in launches {
            let Some(hold) = self.holds.get_mut(&launch) else { continue };
            let name = hold.spec.name.clone();
            // Before any of them can ask again.
            for Instance { number, pid, .. } in hold.standbys.still_alive() {
                context.send_to(context.armor(), AppStandbyStarted { name: name.clone(), instance: number });
                self.watch_orphan(&name, pid, context);
            }
            // One that was started just before the death of the ARMOR is in nobody's list.
            self.end_leftovers(&name, context);
            self.start_held(launch, context);
        }
    }
}
