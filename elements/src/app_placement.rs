//! `app_placement`: where every supervised application of the network runs; moves those of a node that fails (thesis §4.5.3, §4.5.4).
//!
//! Purpose: is told of applications by their overseers, chooses another node for those of a node that has failed, orders them to be taken over
//! there, and has what is left of them ended where they were when that node is back.
//! Subscribes: `MSG_APP_OVERSEER`, `MSG_APP_REPORT`, `MSG_APP_TAKEN_OVER`, `MSG_APP_FENCE_DONE`, `MSG_APP_HOLDS`, `MSG_ARMOR_READY`, `MSG_NODE_FAILED`,
//! `MSG_NODE_BACK`, `MSG_APP_REGISTER_SERVER`, `MSG_APP_UNREGISTER_SERVER` (the addresses of servers).
//! Emits: `MSG_APP_TAKE_OVER`, `MSG_APP_FENCE`, `MSG_APP_HOLD`, `MSG_APP_HOLD_END`, `MSG_INSTALL_ARMOR`, `MSG_UNINSTALL_ARMOR` (all acknowledged); `MSG_APP_MOVED` (to this ARMOR).
//! Configuration: `answer_ms` (how long a node may take to take an application over before the next one is tried).
//! Standbys on other nodes are in `holders`.
//!
//! Invariant: no two ARMORs have the right to one application. It passes on with each order, and who has lost it is fenced; orders carry
//! incarnations beyond all that the life before can come to.

#[path = "app_placement/choice.rs"]
mod choice;
#[path = "app_placement/holders.rs"]
mod holders;
#[path = "app_placement/table.rs"]
mod table;
#[cfg(test)]
#[path = "app_placement/tests.rs"]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::{Event, now_ms};
use armor_core::operations::SendReliable;
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::Message;
use serde::Deserialize;

use crate::operations::{
    AppFence, AppFenceDone, AppHold, AppHoldEnd, AppMoved, AppOverseer, AppRegisterServer, AppReport, AppTakeOver, AppTakenOver,
    AppUnregisterServer, ApplicationState, ArmorReady, InstallArmor, LaunchId, NodeBack, NodeFailed, PlacedAddress, UninstallArmor,
};
use holders::Holders;
use table::{Left, Move, Node, Placed, Table};

/// Most nodes and applications; further ones are not moved.
const MAX_NODES: usize = 4096;
const MAX_APPLICATIONS: usize = 65_536;
/// Most addresses remembered of one application.
const MAX_ADDRESSES: usize = 64;

/// Configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    answer_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { answer_ms: 5000 }
    }
}

/// The element.
pub struct AppPlacement {
    config: Config,
    table: Table,
    /// Number of the newest report of a launch; reports are sent again and may overtake each other. Not captured.
    newest: BTreeMap<LaunchId, (ArmorId, MessageId)>,
    /// Of the order, or attempt, that came last: milliseconds since 1970 times 2^20, and growing.
    numbers: u64,
}

impl Element for AppPlacement {
    const NAME: &'static str = "app_placement";
    const PURPOSE: &'static str = "where applications run; moves those of a node that fails (thesis §4.5.4)";
    const EXAMPLE: &'static str = "answer_ms = 5000\n";
    type Config = Config;

    fn new(config: Config, _: &Setup) -> Result<Self, String> {
        if config.answer_ms == 0 {
            return Err("answer_ms is at least 1".to_owned());
        }
        Ok(AppPlacement { config, table: Table::default(), newest: BTreeMap::new(), numbers: 0 })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::overseer)
            .on(Self::report)
            .on(Self::taken_over)
            .on(Self::fence_done)
            .on(Self::holds)
            .on(Self::armor_ready)
            .on(Self::node_failed)
            .on(Self::node_back)
            .on(Self::server)
            .on(Self::no_server)
            .emits::<AppTakeOver>()
            .emits::<AppFence>()
            .emits::<AppHold>()
            .emits::<AppHoldEnd>()
            .emits::<InstallArmor>()
            .emits::<UninstallArmor>()
            .emits::<AppMoved>()
            .emits::<SendReliable>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        // Whether what an earlier life had ordered has arrived is not known; orders may come twice.
        let moving: Vec<_> =
            self.table.applications.iter().filter(|(_, placed)| placed.moving.is_some()).map(|(&launch, _)| launch).collect();
        for launch in moving {
            self.order_again(launch, context);
        }
        self.order_holds_again(context);
        Ok(())
    }

    fn timer(&mut self, attempt: u64, context: &mut Context<'_>) {
        if self.hold_timer(attempt, context) {
            return;
        }
        let of = |placed: &Placed| placed.moving.as_ref().is_some_and(|moving| moving.attempt == attempt);
        let Some(launch) = self.table.applications.iter().find(|(_, placed)| of(placed)).map(|(&launch, _)| launch) else { return };
        self.attempt_failed(launch, "it did not answer in time", Answered::No, context);
    }

    fn capture(&self) -> Option<Vec<u8>> {
        rmp_serde::to_vec(&self.table).ok()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.table = rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        // Whatever the clock says.
        self.numbers = self.numbers.max(self.table.last_number());
        Ok(())
    }

    fn status(&self) -> serde_json::Value {
        let nodes =
            self.table.nodes.values().map(|node| serde_json::json!({ "name": node.name, "labels": node.labels, "failed": node.failed }));
        let applications = self.table.applications.values().map(|placed| {
            serde_json::json!({
                "name": placed.spec.name, "node": self.table.name_of(placed.node), "armor": placed.overseer.to_string(),
                "state": placed.state, "incarnation": placed.incarnation.0, "restarts": placed.restarts, "moved_from": placed.moved_from,
                "moving_to": placed.moving.as_ref().map(|moving| self.table.name_of(moving.to)), "stranded": placed.stranded,
                "standbys_elsewhere": placed.elsewhere.status(placed.spec.standby_elsewhere, &self.table),
                "to_be_fenced": placed.left.iter().map(|left| self.table.name_of(left.node)).collect::<Vec<_>>(),
            })
        });
        serde_json::json!({ "nodes": nodes.collect::<Vec<_>>(), "applications": applications.collect::<Vec<_>>() })
    }
}

/// Whether a node has said that it cannot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answered {
    Yes,
    No,
}

// What overseers tell.
impl AppPlacement {
    fn overseer(&mut self, there: &AppOverseer, context: &mut Context<'_>) {
        let node = ArmorId::of_name(&there.node);
        let is_daemon = node == there.overseer;
        if is_daemon && !self.node_is_there(node, there, context) {
            return;
        }
        context.state_changed();
        let number = context.message().map_or((ArmorId::NONE, MessageId(0)), |message| (message.source, message.id));
        let is_old = |launch: &LaunchId| self.newest.get(launch).is_some_and(|newest| overtaken(*newest, number));
        let here = |launch: &LaunchId| there.launches.contains(launch);
        let mut lost = Vec::new();
        for (launch, placed) in &mut self.table.applications {
            if placed.overseer != there.overseer || placed.moving.is_some() || !placed.state.is_meant_to_run() {
                continue;
            }
            if here(launch) {
                // It was away with its node, and goes on there.
                placed.stranded = false;
            } else if !is_old(launch) {
                // It has forgotten it: its directory was emptied, and nobody has said that the application should end.
                lost.push(*launch);
            }
        }
        for launch in lost {
            self.begin(launch, now_ms(), context);
        }
        if is_daemon {
            self.fence_on(node, context);
            self.holders_back(node, context);
            self.help_stranded(context);
            self.place_all_standbys(context);
        }
    }

    fn node_is_there(&mut self, node: ArmorId, there: &AppOverseer, context: &mut Context<'_>) -> bool {
        if self.table.nodes.len() >= MAX_NODES && !self.table.nodes.contains_key(&node) {
            let told = Event::new("placement-refused").with("node", &there.node);
            context.event(told.with("reason", format!("{MAX_NODES} nodes are known; applications are not moved to this one")));
            return false;
        }
        let known = Node { name: there.node.clone(), labels: there.labels.clone(), failed: false };
        self.table.nodes.insert(node, known);
        true
    }

    fn report(&mut self, report: &AppReport, context: &mut Context<'_>) {
        let launch = report.launch;
        let ended = !report.state.is_meant_to_run();
        if let Some(message) = context.message() {
            let number = (message.source, message.id);
            if self.newest.get(&launch).is_some_and(|newest| overtaken(*newest, number)) {
                return;
            }
            let is_told_again = ended && !self.table.applications.contains_key(&launch);
            if !is_told_again && (self.newest.len() < MAX_APPLICATIONS || self.newest.contains_key(&launch)) {
                self.newest.insert(launch, number);
            }
        }
        let Some(placed) = self.table.applications.get_mut(&launch) else {
            if !ended {
                self.enter(report, context);
            }
            return;
        };
        context.state_changed();
        match placed.moving.clone() {
            Some(moving) if moving.installing && ended && placed.overseer == report.overseer => {
                // It was to end, and not to run elsewhere. Nobody there has heard of it yet.
                placed.moving = None;
                self.uninstall_unless_used(moving.overseer, moving.to, launch, context);
            }
            Some(moving) if moving.installing => {}
            Some(moving) if moving.overseer == report.overseer => {
                if !ended {
                    // Its answer to the order is on its way.
                    return;
                }
                (placed.node, placed.overseer, placed.moving) = (moving.to, moving.overseer, None);
            }
            Some(moving) if ended && placed.overseer == report.overseer => {
                // It was to end, and not to run elsewhere.
                let left = Left { node: moving.to, overseer: moving.overseer, below: placed.next_epoch() };
                placed.leave_behind(left);
                placed.moving = None;
                self.fence(launch, &left, context);
            }
            _ => {}
        }
        let Some(placed) = self.table.applications.get_mut(&launch) else { return };
        if placed.overseer != report.overseer {
            if report.incarnation <= placed.incarnation {
                if !ended {
                    let left = Left { node: ArmorId::of_name(&report.node), overseer: report.overseer, below: placed.incarnation };
                    placed.leave_behind(left);
                    self.fence(launch, &left, context);
                }
                return;
            }
            // The FTM has lost its memory and heard of the old life first.
            let left = Left { node: placed.node, overseer: placed.overseer, below: report.incarnation };
            placed.leave_behind(left);
            (placed.node, placed.overseer, placed.owner) = (ArmorId::of_name(&report.node), report.overseer, report.overseer);
            // Or this one has taken it over after it was given up on.
            placed.left.retain(|left| left.overseer != report.overseer);
            placed.stranded = false;
            self.fence(launch, &left, context);
        }
        let Some(placed) = self.table.applications.get_mut(&launch) else { return };
        placed.spec = report.spec.clone();
        (placed.incarnation, placed.restarts, placed.state) = (placed.incarnation.max(report.incarnation), report.restarts, report.state);
        if ended {
            placed.stranded = false;
            let (service, from) = (placed.spec.name.clone(), placed.owner);
            // Where it was moved to it may never have come to serve its addresses.
            context.send_to(context.armor(), AppMoved { service, from, to: ArmorId::NONE });
        }
        self.place_standbys(launch, context);
        if ended {
            self.forget_if_over(launch);
        }
    }

    fn enter(&mut self, report: &AppReport, context: &mut Context<'_>) {
        if self.table.applications.len() >= MAX_APPLICATIONS {
            let told = Event::new("placement-refused").with("service", &report.spec.name);
            context.event(
                told.with("reason", format!("{MAX_APPLICATIONS} applications are known; this one is not moved when its node fails")),
            );
            return;
        }
        let placed = Placed {
            spec: report.spec.clone(),
            node: ArmorId::of_name(&report.node),
            overseer: report.overseer,
            incarnation: report.incarnation,
            restarts: report.restarts,
            state: report.state,
            addresses: Vec::new(),
            registered: BTreeMap::new(),
            moved_from: None,
            moving: None,
            stranded: false,
            left: Vec::new(),
            owner: report.overseer,
            elsewhere: Holders::default(),
        };
        self.table.applications.insert(report.launch, placed);
        context.state_changed();
    }

    /// Nothing of an application that has ended is left anywhere.
    fn forget_if_over(&mut self, launch: LaunchId) {
        if self.table.applications.get(&launch).is_some_and(|placed| {
            !placed.state.is_meant_to_run() && placed.left.is_empty() && placed.moving.is_none() && placed.elsewhere.holds.is_empty()
        }) {
            self.table.applications.remove(&launch);
            self.newest.remove(&launch);
        }
    }

    fn served_by(&mut self, overseer: ArmorId, service: &str) -> Option<(LaunchId, &mut Placed)> {
        let by = |placed: &Placed| {
            let moving = placed.moving.as_ref().is_some_and(|moving| moving.overseer == overseer);
            // One that is over may be here still, for the sake of what is left of it elsewhere, and another launch have its name by now.
            placed.spec.name == service && (placed.overseer == overseer && placed.state.is_meant_to_run() || moving)
        };
        self.table.applications.iter_mut().map(|(&launch, placed)| (launch, placed)).find(|(_, placed)| by(placed))
    }

    fn server(&mut self, registered: &AppRegisterServer, context: &mut Context<'_>) {
        let address = PlacedAddress { address: registered.row.address, any_port: registered.any_port };
        let number = context.message().map(|message| message.id).unwrap_or_default();
        let Some((launch, placed)) = self.served_by(registered.row.armor, &registered.row.service) else { return };
        let known = placed.addresses.iter().any(|known| known.address == address.address);
        if !known && placed.addresses.len() < MAX_ADDRESSES {
            placed.addresses.push(address);
        }
        if known || placed.addresses.iter().any(|known| known.address == address.address) {
            let last = placed.registered.entry(address.address).or_default();
            if !number.is_before(*last) {
                *last = number;
            }
            context.state_changed();
        }
        self.place_standbys(launch, context);
    }

    fn no_server(&mut self, gone: &AppUnregisterServer, context: &mut Context<'_>) {
        let number = context.message().map(|message| message.id).unwrap_or_default();
        for placed in self.table.applications.values_mut().filter(|placed| placed.owner == gone.armor) {
            // It may have listened there again since.
            if placed.registered.get(&gone.address).is_none_or(|last| !number.is_before(*last)) {
                placed.registered.remove(&gone.address);
                placed.addresses.retain(|known| known.address != gone.address);
            }
        }
        context.state_changed();
    }
}

// Nodes.
impl AppPlacement {
    fn node_failed(&mut self, failed: &NodeFailed, context: &mut Context<'_>) {
        let node = failed.armor;
        match self.table.nodes.get_mut(&node) {
            Some(known) => known.failed = true,
            // Nothing can be placed there.
            None => return,
        }
        context.state_changed();
        self.holders_failed(node);
        let at_ms = now_ms();
        let mut there = Vec::new();
        let mut on_the_way = Vec::new();
        for (&launch, placed) in &self.table.applications {
            match &placed.moving {
                Some(moving) if moving.to == node => on_the_way.push(launch),
                None if placed.node == node && placed.state.is_meant_to_run() => there.push(launch),
                _ => {}
            }
        }
        for launch in on_the_way {
            self.attempt_failed(launch, "the node has failed", Answered::No, context);
        }
        for launch in there {
            self.begin(launch, at_ms, context);
        }
        self.place_all_standbys(context);
    }

    fn node_back(&mut self, back: &NodeBack, context: &mut Context<'_>) {
        let Some(node) = self.table.nodes.get_mut(&back.armor) else { return };
        node.failed = false;
        context.state_changed();
        self.fence_on(back.armor, context);
        self.holders_back(back.armor, context);
        self.help_stranded(context);
        self.place_all_standbys(context);
    }

    /// Whoever could not be placed may be now.
    fn help_stranded(&mut self, context: &mut Context<'_>) {
        let stranded = self.table.applications.iter().filter(|(_, placed)| placed.stranded && placed.moving.is_none());
        let stranded: Vec<_> = stranded.map(|(&launch, _)| launch).collect();
        for launch in stranded {
            if self.table.choose(launch, &BTreeSet::new()).is_some() {
                self.attempt(launch, now_ms(), BTreeSet::new(), context);
            }
        }
    }

    /// Ends what is left on a node that is back.
    fn fence_on(&self, node: ArmorId, context: &mut Context<'_>) {
        for (&launch, placed) in &self.table.applications {
            for left in placed.left.iter().filter(|left| left.node == node) {
                self.fence(launch, left, context);
            }
        }
    }

    fn fence(&self, launch: LaunchId, left: &Left, context: &mut Context<'_>) {
        let Some(placed) = self.table.applications.get(&launch) else { return };
        let moved_to = self.table.name_of(placed.moving.as_ref().map_or(placed.node, |moving| moving.to));
        let fence = AppFence { name: placed.spec.name.clone(), launch, below: left.below, moved_to };
        context.send_reliable(Message::to(left.overseer, fence));
    }

    fn fence_done(&mut self, done: &AppFenceDone, context: &mut Context<'_>) {
        let number = self.next_number();
        let Some(placed) = self.table.applications.get_mut(&done.launch) else { return };
        context.state_changed();
        let is_needed = |armor| placed.moving.as_ref().is_some_and(|moving| moving.overseer == armor);
        for left in placed.left.extract_if(.., |left| left.overseer == done.overseer) {
            if left.overseer != left.node && !is_needed(left.overseer) {
                // Its own ARMOR has nothing left to do.
                context.send_reliable(Message::to(left.node, UninstallArmor { name: placed.spec.name.clone(), number }));
            }
        }
        self.place_standbys(done.launch, context);
        self.forget_if_over(done.launch);
    }
}

// Moving.
impl AppPlacement {
    /// Beyond those of an earlier life too, unless the clock was put back.
    fn next_number(&mut self) -> u64 {
        self.numbers = (self.numbers + 1).max(now_ms() << 20);
        self.numbers
    }

    /// An application has lost its node.
    fn begin(&mut self, launch: LaunchId, failed_at_ms: u64, context: &mut Context<'_>) {
        self.attempt(launch, failed_at_ms, BTreeSet::new(), context);
    }

    fn attempt(&mut self, launch: LaunchId, failed_at_ms: u64, tried: BTreeSet<ArmorId>, context: &mut Context<'_>) {
        context.state_changed();
        if self.table.applications.get(&launch).is_some_and(|placed| !placed.state.is_meant_to_run()) {
            return self.forget_if_over(launch);
        }
        let chosen = self.table.choose(launch, &tried);
        let attempt = self.next_number();
        let Some(placed) = self.table.applications.get_mut(&launch) else { return };
        let Some(to) = chosen else {
            placed.moving = None;
            let (node, service) = (placed.node, placed.spec.name.clone());
            if !std::mem::replace(&mut placed.stranded, true) || !tried.is_empty() {
                let what = if placed.spec.placement.migrate { "no-node-left" } else { "application-waits-for-its-node" };
                context.event(Event::new(what).with("service", service).with("node", self.table.name_of(node)));
            }
            return;
        };
        let own_armor = placed.has_own_armor();
        let to_name = self.table.nodes.get(&to).map_or_else(String::new, |node| node.name.clone());
        let overseer = placed.overseer_on(to, &to_name);
        placed.incarnation = placed.next_epoch();
        let chosen_at_ms = now_ms();
        placed.moving = Some(Move { to, overseer, installing: own_armor, tried, failed_at_ms, chosen_at_ms, attempt });
        let (service, from) = (placed.spec.name.clone(), self.table.name_of(self.table.applications[&launch].node));
        context.event(Event::new("application-moving").with("service", service).with("from", from).with("to", to_name));
        self.order_again(launch, context);
    }

    /// Sends what the present step of a move needs.
    fn order_again(&mut self, launch: LaunchId, context: &mut Context<'_>) {
        let Some(placed) = self.table.applications.get(&launch) else { return };
        let Some(moving) = &placed.moving else { return };
        context.timer(Duration::from_millis(self.config.answer_ms), moving.attempt);
        if moving.installing {
            let install = InstallArmor { name: placed.spec.name.clone(), composition: "execution".to_owned(), number: moving.attempt };
            context.send_reliable(Message::to(moving.to, install));
        } else {
            self.order(launch, context);
        }
    }

    /// Has it taken over: from here on its new overseer has the right to it.
    fn order(&mut self, launch: LaunchId, context: &mut Context<'_>) {
        let Some(placed) = self.table.applications.get_mut(&launch) else { return };
        let Some(moving) = placed.moving.clone().filter(|_| placed.state.is_meant_to_run()) else { return };
        let below = placed.incarnation;
        if placed.overseer != moving.overseer {
            placed.leave_behind(Left { node: placed.node, overseer: placed.overseer, below });
        }
        placed.left.retain(|left| left.overseer != moving.overseer);
        let service = placed.spec.name.clone();
        let from = std::mem::replace(&mut placed.owner, moving.overseer);
        context.send_to(context.armor(), AppMoved { service, from, to: moving.overseer });
        let Some(placed) = self.table.applications.get(&launch) else { return };
        let order = AppTakeOver {
            spec: placed.spec.clone(),
            launch,
            incarnation: below,
            restarts: placed.restarts + 1,
            moved_from: self.table.name_of(placed.node),
            addresses: placed.addresses.clone(),
            failed_at_ms: moving.failed_at_ms,
            chosen_at_ms: moving.chosen_at_ms,
        };
        context.send_reliable(Message::to(moving.overseer, order));
        // Where the old node lives after all, it need not wait for its return to be announced.
        for left in placed.left.iter().filter(|left| self.table.nodes.get(&left.node).is_some_and(|node| !node.failed)) {
            self.fence(launch, left, context);
        }
        context.state_changed();
    }

    /// The Execution ARMOR for an application is there, or cannot be.
    fn armor_ready(&mut self, ready: &ArmorReady, context: &mut Context<'_>) {
        let waits = |placed: &Placed| placed.moving.as_ref().is_some_and(|moving| moving.installing && moving.overseer == ready.armor);
        self.holder_ready(ready, context);
        let found = self.table.applications.iter_mut().find(|(_, placed)| waits(placed));
        let Some((&launch, placed)) = found else { return };
        if ready.error.is_empty() {
            if let Some(moving) = &mut placed.moving {
                moving.installing = false;
            }
            self.order(launch, context);
        } else {
            self.attempt_failed(launch, &ready.error, Answered::Yes, context);
        }
    }

    fn taken_over(&mut self, answer: &AppTakenOver, context: &mut Context<'_>) {
        let Some(placed) = self.table.applications.get_mut(&answer.launch) else { return };
        let answers = |moving: &&Move| !moving.installing && moving.overseer == answer.overseer && answer.incarnation == placed.incarnation;
        let Some(moving) = placed.moving.as_ref().filter(answers).cloned() else { return };
        if !answer.error.is_empty() {
            return self.attempt_failed(answer.launch, &answer.error, Answered::Yes, context);
        }
        context.state_changed();
        let before = std::mem::replace(&mut placed.node, moving.to);
        placed.overseer = moving.overseer;
        (placed.moving, placed.stranded, placed.state) = (None, false, ApplicationState::Running);
        placed.restarts += 1;
        let from = self.table.name_of(before);
        let to = self.table.name_of(moving.to);
        let Some(placed) = self.table.applications.get_mut(&answer.launch) else { return };
        if before != moving.to {
            placed.moved_from = Some(from.clone());
        }
        let told = Event::new("application-moved").with("service", &placed.spec.name).with("from", from).with("to", to);
        context.event(told.with("incarnation", placed.incarnation.0).with("took_ms", now_ms().saturating_sub(moving.failed_at_ms)));
        self.moved_away(answer.launch, context);
    }

    /// A node has not taken an application over: the next one is tried.
    fn attempt_failed(&mut self, launch: LaunchId, reason: &str, answered: Answered, context: &mut Context<'_>) {
        let below = match self.table.applications.get(&launch) {
            Some(placed) => placed.next_epoch(),
            None => return,
        };
        let Some(placed) = self.table.applications.get_mut(&launch) else { return };
        let Some(moving) = placed.moving.take() else { return };
        let service = placed.spec.name.clone();
        if answered == Answered::No && !moving.installing && moving.overseer != placed.overseer {
            placed.leave_behind(Left { node: moving.to, overseer: moving.overseer, below });
        } else {
            self.uninstall_unless_used(moving.overseer, moving.to, launch, context);
        }
        let told = Event::new("take-over-failed").with("service", service).with("node", self.table.name_of(moving.to));
        context.event(told.with("reason", reason));
        // What it held for it may have been used up.
        self.end_holds(launch, |_, hold| hold.node == moving.to, context);
        let mut tried = moving.tried;
        tried.insert(moving.to);
        self.attempt(launch, moving.failed_at_ms, tried, context);
    }
}

/// Whether `number` was sent before `newest` in the same life of the same sender.
fn overtaken(newest: (ArmorId, MessageId), number: (ArmorId, MessageId)) -> bool {
    newest.0 == number.0 && number.1.is_before(newest.1)
}
