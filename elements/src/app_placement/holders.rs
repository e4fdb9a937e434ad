//! Which other nodes hold a standby of an application, for the failure of its own (`standby_elsewhere`).
//!
//! What is wanted is compared with what overseers say that they hold, whenever either changes: a node that is missing is chosen by the rules of a move, and
//! what nobody wants is ended. A move goes to a node whose standby waits before any other.
//!
//! Invariant: no order to hold goes to the node of the running instance, to one that it is moving to, or to one where lives of it may be left.

use std::collections::BTreeSet;
use std::time::Duration;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;
use serde::{Deserialize, Serialize};

use super::AppPlacement;
use super::choice::choose;
use super::table::{Placed, Table};
use crate::operations::{
    AppHold, AppHoldEnd, AppHolds, ApplicationState, ArmorReady, HoldState, InstallArmor, LaunchId, StandbyElsewhere, UninstallArmor,
};

/// Most holds on failed nodes that are remembered of one application; what their overseers say when they register ends the others.
const MAX_LOST: usize = StandbyElsewhere::MOST as usize;

/// The standbys of an application on other nodes.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Holders {
    pub(super) holds: Vec<Hold>,
    /// Nodes that have refused or did not answer, and are not asked again before they register or the application has moved. As many as there are nodes.
    unfit: BTreeSet<ArmorId>,
    /// That no node is there has been told.
    pub(super) lacking: bool,
    /// Of the last order.
    pub(super) last_number: u64,
}

/// A node that is to hold a standby.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Hold {
    pub(super) node: ArmorId,
    pub(super) overseer: ArmorId,
    /// Tells this order from others. No number comes again.
    pub(super) number: u64,
    pub(super) step: Step,
    /// Revision of the last list of its overseer that named it; 0 for none.
    told: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Step {
    /// Its Execution ARMOR is being installed there.
    Installing,
    /// The order is on its way.
    Ordered,
    Starting,
    Waiting,
    /// The node has failed. What is left there is ended when it is back.
    Lost,
}

impl Hold {
    pub(super) fn is_lost(&self) -> bool {
        self.step == Step::Lost
    }
}

impl Holders {
    pub(super) fn waits_on(&self, node: ArmorId) -> bool {
        self.holds.iter().any(|hold| hold.node == node && hold.step == Step::Waiting)
    }

    pub(super) fn is_held_on(&self, node: ArmorId) -> bool {
        self.holds.iter().any(|hold| hold.node == node && !hold.is_lost())
    }

    pub(super) fn status(&self, wanted: StandbyElsewhere, table: &Table) -> serde_json::Value {
        let state = |step| match step {
            Step::Installing | Step::Ordered => "ordered",
            Step::Starting => "starting",
            Step::Waiting => "waiting",
            Step::Lost => "lost",
        };
        let instances = self.holds.iter().map(|hold| serde_json::json!({ "node": table.name_of(hold.node), "state": state(hold.step) }));
        let unfit: Vec<String> = self.unfit.iter().map(|&node| table.name_of(node)).collect();
        serde_json::json!({ "wanted": wanted.0, "instances": instances.collect::<Vec<_>>(), "unfit": unfit, "lacking": self.lacking })
    }
}

impl Table {
    /// A node that is to hold a standby of an application.
    fn choose_holder(&self, launch: LaunchId) -> Option<ArmorId> {
        let placed = self.applications.get(&launch)?;
        let Holders { holds, unfit, .. } = &placed.elsewhere;
        let skip = |node: ArmorId| {
            node == placed.node
                || placed.left.iter().any(|left| left.node == node)
                || holds.iter().any(|hold| hold.node == node)
                || unfit.contains(&node)
        };
        choose(&placed.spec.placement, &self.candidates(launch, skip)?)
    }
}

impl AppPlacement {
    /// Brings what is held elsewhere of an application to what is wanted now.
    pub(super) fn place_standbys(&mut self, launch: LaunchId, context: &mut Context<'_>) {
        let Some(placed) = self.table.applications.get(&launch) else { return };
        if placed.spec.standby_elsewhere.0 == 0 {
            return;
        }
        if !placed.state.is_meant_to_run() {
            return self.end_holds(launch, |_, _| true, context);
        }
        if placed.moving.is_some() {
            return;
        }
        // Where it runs its standby has taken over.
        self.take_hold_on(launch, |placed, hold| hold.overseer == placed.overseer, context);
        self.end_holds(launch, |placed, hold| placed.left.iter().any(|left| left.node == hold.node), context);
        loop {
            let Some(placed) = self.table.applications.get(&launch) else { return };
            // It serves: before that nothing says that the program starts at all.
            let serves = placed.state == ApplicationState::Running && !placed.addresses.is_empty();
            let held = placed.elsewhere.holds.iter().filter(|hold| !hold.is_lost()).count();
            if !serves || held >= placed.spec.standby_elsewhere.0 as usize {
                return;
            }
            let chosen = self.table.choose_holder(launch);
            let number = self.next_number();
            let name = chosen.map(|node| self.table.name_of(node));
            let Some(placed) = self.table.applications.get_mut(&launch) else { return };
            context.state_changed();
            let (Some(node), Some(name)) = (chosen, name) else {
                if !std::mem::replace(&mut placed.elsewhere.lacking, true) {
                    context.event(Event::new("no-node-for-standby").with("service", &placed.spec.name));
                }
                return;
            };
            (placed.elsewhere.lacking, placed.elsewhere.last_number) = (false, number);
            let step = if placed.has_own_armor() { Step::Installing } else { Step::Ordered };
            let overseer = placed.overseer_on(node, &name);
            placed.elsewhere.holds.push(Hold { node, overseer, number, step, told: 0 });
            context.event(Event::new("standby-placed").with("service", &placed.spec.name).with("node", name));
            self.order_hold(launch, number, context);
        }
    }

    /// Those of all applications: a node has come, or is free again.
    pub(super) fn place_all_standbys(&mut self, context: &mut Context<'_>) {
        let wanting = |placed: &Placed| placed.spec.standby_elsewhere.0 > 0;
        let launches: Vec<_> = self.table.applications.iter().filter(|(_, placed)| wanting(placed)).map(|(&launch, _)| launch).collect();
        launches.into_iter().for_each(|launch| self.place_standbys(launch, context));
    }

    /// In a new life of the FTM: whether the orders of the earlier one have arrived is not known; they may come twice.
    pub(super) fn order_holds_again(&mut self, context: &mut Context<'_>) {
        let waits = |hold: &&Hold| matches!(hold.step, Step::Installing | Step::Ordered);
        let of = |(&launch, placed): (&LaunchId, &Placed)| {
            placed.elsewhere.holds.iter().filter(waits).map(|hold| (launch, hold.number)).collect::<Vec<_>>()
        };
        let ordered: Vec<_> = self.table.applications.iter().flat_map(of).collect();
        ordered.into_iter().for_each(|(launch, number)| self.order_hold(launch, number, context));
    }

    /// Sends what the present step of a hold needs.
    fn order_hold(&mut self, launch: LaunchId, number: u64, context: &mut Context<'_>) {
        let Some(placed) = self.table.applications.get(&launch) else { return };
        let Some(hold) = placed.elsewhere.holds.iter().find(|hold| hold.number == number) else { return };
        context.timer(Duration::from_millis(self.config.answer_ms), number);
        if hold.step == Step::Installing {
            let install = InstallArmor { name: placed.spec.name.clone(), composition: "execution".to_owned(), number };
            context.send_reliable(Message::to(hold.node, install));
        } else {
            context.send_reliable(Message::to(hold.overseer, AppHold { spec: placed.spec.clone(), launch, number }));
        }
    }

    fn hold_mut(&mut self, is_it: impl Fn(&Hold) -> bool) -> Option<(LaunchId, &mut Hold)> {
        let of = |(&launch, placed): (&LaunchId, _)| Some((launch, placed));
        let mut placed = self.table.applications.iter_mut().filter_map(|(launch, placed)| of((launch, placed)));
        placed.find_map(|(launch, placed)| Some((launch, placed.elsewhere.holds.iter_mut().find(|hold| is_it(hold))?)))
    }

    /// The Execution ARMOR that is to hold a standby is there, or cannot be.
    pub(super) fn holder_ready(&mut self, ready: &ArmorReady, context: &mut Context<'_>) {
        let waits = |hold: &Hold| hold.step == Step::Installing && hold.overseer == ready.armor;
        let Some((launch, hold)) = self.hold_mut(waits) else { return };
        let number = hold.number;
        context.state_changed();
        if ready.error.is_empty() {
            hold.step = Step::Ordered;
            self.order_hold(launch, number, context);
        } else {
            self.not_held(launch, number, &ready.error, context);
        }
    }

    /// The time for an answer to an order is over: `false` when the number is none of a hold.
    pub(super) fn hold_timer(&mut self, number: u64, context: &mut Context<'_>) -> bool {
        let Some((launch, hold)) = self.hold_mut(|hold| hold.number == number) else { return false };
        if matches!(hold.step, Step::Installing | Step::Ordered) {
            self.not_held(launch, number, "it did not answer in time", context);
        }
        true
    }

    /// A node does not hold a standby: another one is looked for.
    fn not_held(&mut self, launch: LaunchId, number: u64, reason: &str, context: &mut Context<'_>) {
        let Some(placed) = self.table.applications.get_mut(&launch) else { return };
        let Some(node) = placed.elsewhere.holds.iter().find(|hold| hold.number == number).map(|hold| hold.node) else { return };
        placed.elsewhere.unfit.insert(node);
        let service = placed.spec.name.clone();
        let told = Event::new("standby-refused").with("service", service).with("node", self.table.name_of(node));
        context.event(told.with("reason", reason));
        self.end_holds(launch, |_, hold| hold.number == number, context);
        self.place_standbys(launch, context);
    }

    /// `MSG_APP_HOLDS`: all that an overseer holds.
    pub(super) fn holds(&mut self, there: &AppHolds, context: &mut Context<'_>) {
        let mut refused = Vec::new();
        for told in &there.holds {
            let placed = self.table.applications.get_mut(&told.launch);
            let mut holds = placed.into_iter().flat_map(|placed| &mut placed.elsewhere.holds);
            let wanted = holds.find(|hold| hold.overseer == there.overseer && hold.number == told.number && !hold.is_lost());
            match (wanted, &told.state) {
                (Some(hold), _) if hold.told >= there.revision => {}
                (Some(hold), HoldState::Starting) => (hold.step, hold.told) = (Step::Starting, there.revision),
                (Some(hold), HoldState::Waiting) => (hold.step, hold.told) = (Step::Waiting, there.revision),
                (Some(hold), HoldState::Refused(reason)) => {
                    // Its list names it this once.
                    hold.told = there.revision;
                    refused.push((told.launch, told.number, reason));
                }
                (None, HoldState::Refused(_)) => {}
                (None, _) => {
                    let end = AppHoldEnd { launch: told.launch, number: told.number };
                    context.send_reliable(Message::to(there.overseer, end));
                    self.uninstall_unless_used(there.overseer, ArmorId::of_name(&there.node), told.launch, context);
                }
            }
        }
        // What it has said that it holds, and does not any more. Where the application is being taken over it has become that.
        let mut gone = Vec::new();
        for (&launch, placed) in &self.table.applications {
            let is_gone = |hold: &&Hold| hold.overseer == there.overseer && hold.told > 0 && hold.told < there.revision && !hold.is_lost();
            let becomes = placed.moving.as_ref().is_some_and(|moving| moving.overseer == there.overseer);
            gone.extend(placed.elsewhere.holds.iter().filter(is_gone).filter(|_| !becomes).map(|hold| (launch, hold.number)));
        }
        context.state_changed();
        for (launch, number, reason) in refused {
            self.not_held(launch, number, reason, context);
        }
        for (launch, number) in gone {
            self.take_hold_on(launch, |_, hold| hold.number == number, context);
            self.place_standbys(launch, context);
        }
    }

    /// Nobody holds it any more, and nobody need be told.
    fn take_hold_on(&mut self, launch: LaunchId, is_it: impl Fn(&Placed, &Hold) -> bool, context: &mut Context<'_>) -> Vec<Hold> {
        let Some(placed) = self.table.applications.get_mut(&launch) else { return Vec::new() };
        let mut holds = std::mem::take(&mut placed.elsewhere.holds);
        let taken: Vec<Hold> = holds.extract_if(.., |hold| is_it(placed, hold)).collect();
        placed.elsewhere.holds = holds;
        if !taken.is_empty() {
            context.state_changed();
        }
        taken
    }

    /// Ends what is held somewhere. On a failed node that is done when it is back.
    pub(super) fn end_holds(&mut self, launch: LaunchId, is_it: impl Fn(&Placed, &Hold) -> bool, context: &mut Context<'_>) {
        let ended = self.take_hold_on(launch, |placed, hold| !hold.is_lost() && is_it(placed, hold), context);
        for hold in &ended {
            self.end_hold(launch, hold, context);
        }
    }

    fn end_hold(&mut self, launch: LaunchId, hold: &Hold, context: &mut Context<'_>) {
        context.send_reliable(Message::to(hold.overseer, AppHoldEnd { launch, number: hold.number }));
        self.uninstall_unless_used(hold.overseer, hold.node, launch, context);
    }

    /// An Execution ARMOR that was there for a standby or for a move that comes to nothing, and for nothing else: what was there before may be running all the time, or has
    /// yet to be fenced.
    pub(super) fn uninstall_unless_used(&mut self, overseer: ArmorId, node: ArmorId, launch: LaunchId, context: &mut Context<'_>) {
        let uses = |placed: &Placed| {
            placed.overseer == overseer
                || placed.moving.as_ref().is_some_and(|moving| moving.overseer == overseer)
                || placed.left.iter().any(|left| left.overseer == overseer)
                || placed.elsewhere.holds.iter().any(|hold| hold.overseer == overseer)
        };
        let number = self.next_number();
        let Some(placed) = self.table.applications.get(&launch) else { return };
        if overseer != node && !self.table.applications.values().any(uses) {
            context.send_reliable(Message::to(node, UninstallArmor { name: placed.spec.name.clone(), number }));
        }
    }

    /// A node has failed, and what it held with it: other nodes are to hold it, once those that have lost their application are dealt with.
    pub(super) fn holders_failed(&mut self, node: ArmorId) {
        for placed in self.table.applications.values_mut() {
            placed.elsewhere.unfit.remove(&node);
            let holds = &mut placed.elsewhere.holds;
            holds.iter_mut().filter(|hold| hold.node == node).for_each(|hold| hold.step = Step::Lost);
            while holds.iter().filter(|hold| hold.is_lost()).count() > MAX_LOST {
                holds.iter().position(Hold::is_lost).map(|at| holds.remove(at));
            }
        }
    }

    /// A node is there (again): what it may still hold is ended, and it may be chosen.
    pub(super) fn holders_back(&mut self, node: ArmorId, context: &mut Context<'_>) {
        let mut lost = Vec::new();
        for (&launch, placed) in &mut self.table.applications {
            placed.elsewhere.unfit.remove(&node);
            let taken = placed.elsewhere.holds.extract_if(.., |hold| hold.is_lost() && hold.node == node);
            lost.extend(taken.map(|hold| (launch, hold)));
        }
        for (launch, hold) in lost {
            context.state_changed();
            self.end_hold(launch, &hold, context);
            self.forget_if_over(launch);
        }
    }

    /// An application has come to another node: each node may be asked again.
    pub(super) fn moved_away(&mut self, launch: LaunchId, context: &mut Context<'_>) {
        if let Some(placed) = self.table.applications.get_mut(&launch) {
            placed.elsewhere.unfit.clear();
        }
        self.place_standbys(launch, context);
    }
}
