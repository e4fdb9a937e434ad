//! What the FTM knows of applications and of the nodes that they may run on. All of it is captured.

use std::collections::{BTreeMap, BTreeSet};

use armor_proto::hookup::Endpoint;
use armor_proto::ids::{ArmorId, Incarnation, MessageId};
use serde::{Deserialize, Serialize};

use super::choice::{Candidate, choose};
use super::holders::Holders;
use crate::operations::{ApplicationSpec, ApplicationState, Labels, LaunchId, PlacedAddress};

/// Incarnations that an application may come to by itself before it has to be moved again: ten restarts a minute for four days.
const ROOM: u32 = 1 << 16;

#[derive(Default, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) nodes: BTreeMap<ArmorId, Node>,
    pub(super) applications: BTreeMap<LaunchId, Placed>,
}

/// A node, by the ARMOR of its daemon.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) labels: Labels,
    pub(super) failed: bool,
}

/// An application.
#[derive(Serialize, Deserialize)]
pub(super) struct Placed {
    pub(super) spec: ApplicationSpec,
    pub(super) node: ArmorId,
    pub(super) overseer: ArmorId,
    pub(super) incarnation: Incarnation,
    pub(super) restarts: u64,
    pub(super) state: ApplicationState,
    pub(super) addresses: Vec<PlacedAddress>,
    pub(super) moved_from: Option<String>,
    pub(super) moving: Option<Move>,
    /// It has to run again, and no node was there for it.
    pub(super) stranded: bool,
    /// Where lives of it may be left, which have to be ended.
    pub(super) left: Vec<Left>,
    /// The ARMOR that has the right to its addresses.
    pub(super) owner: ArmorId,
    /// The last message that registered each of its addresses.
    #[serde(default)]
    pub(super) registered: BTreeMap<Endpoint, MessageId>,
    /// Its standbys on other nodes.
    #[serde(default)]
    pub(super) elsewhere: Holders,
}

/// A move under way.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Move {
    pub(super) to: ArmorId,
    pub(super) overseer: ArmorId,
    /// Its Execution ARMOR is being installed there.
    pub(super) installing: bool,
    /// Nodes that have been tried in vain.
    pub(super) tried: BTreeSet<ArmorId>,
    pub(super) failed_at_ms: u64,
    pub(super) chosen_at_ms: u64,
    /// Tells this attempt from others.
    pub(super) attempt: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Left {
    pub(super) node: ArmorId,
    pub(super) overseer: ArmorId,
    pub(super) below: Incarnation,
}

impl Placed {
    /// An ARMOR of its own oversees it.
    pub(super) fn has_own_armor(&self) -> bool {
        self.overseer != self.node
    }

    /// The ARMOR that oversees it on a node of this name.
    pub(super) fn overseer_on(&self, node: ArmorId, name: &str) -> ArmorId {
        if self.has_own_armor() { ArmorId::of_name(&format!("{name}/{}", self.spec.name)) } else { node }
    }

    /// An incarnation beyond all that it can have come to where it was.
    pub(super) fn next_epoch(&self) -> Incarnation {
        let base = self.incarnation.0 / ROOM * ROOM;
        Incarnation(base.checked_add(ROOM).unwrap_or_else(|| self.incarnation.0.saturating_add(1)))
    }

    /// Lives of it below an incarnation may be left under an ARMOR.
    pub(super) fn leave_behind(&mut self, left: Left) {
        self.left.retain(|other| other.overseer != left.overseer);
        self.left.push(left);
    }
}

impl Table {
    /// A node for an application whose own has failed.
    pub(super) fn choose(&self, launch: LaunchId, tried: &BTreeSet<ArmorId>) -> Option<ArmorId> {
        let placed = self.applications.get(&launch)?;
        choose(&placed.spec.placement, &self.candidates(launch, |node| tried.contains(&node))?)
    }

    /// Nodes that are there and may have an application, without those that are to be skipped.
    pub(super) fn candidates(&self, launch: LaunchId, skip: impl Fn(ArmorId) -> bool) -> Option<Vec<Candidate<'_>>> {
        let placed = self.applications.get(&launch)?;
        let group = placed.spec.placement.spread.as_ref();
        let mut candidates = Vec::new();
        for (&node, Node { name, labels, .. }) in self.nodes.iter().filter(|(node, known)| !known.failed && !skip(**node)) {
            let others =
                self.applications.iter().filter(|(other, app)| **other != launch && app.node == node && app.state.is_meant_to_run());
            let there: Vec<_> = others.map(|(_, app)| &app.spec).collect();
            // Names are unique on a node.
            if there.iter().any(|spec| spec.name == placed.spec.name) {
                continue;
            }
            // A standby may have to run there as well.
            let held = self.applications.iter().filter(|(other, app)| **other != launch && app.elsewhere.is_held_on(node));
            let there: Vec<_> = there.into_iter().chain(held.map(|(_, app)| &app.spec)).collect();
            let of_group = there.iter().filter(|spec| group.is_some() && spec.placement.spread.as_ref() == group).count();
            let (home, waits) = (node == placed.node, placed.elsewhere.waits_on(node));
            candidates.push(Candidate { node, name, labels, home, waits, applications: there.len(), of_group });
        }
        Some(candidates)
    }

    /// The greatest number that was given to an attempt or an order.
    pub(super) fn last_number(&self) -> u64 {
        let of = |placed: &Placed| placed.moving.as_ref().map_or(0, |moving| moving.attempt).max(placed.elsewhere.last_number);
        self.applications.values().map(of).max().unwrap_or(0)
    }

    pub(super) fn name_of(&self, node: ArmorId) -> String {
        self.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone())
    }
}
