//! What becomes of servers whose node fails (thesis §4.5.4): supervised ones are moved, others are gone.

use std::collections::BTreeMap;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::hookup::Endpoint;
use armor_proto::ids::{ArmorId, ConnectionId};
use armor_proto::message::Message;
use serde::{Deserialize, Serialize};

use super::AppServerDb;
use crate::operations::{AppMoved, AppServiceGone, NodeBack, NodeFailed};

/// Most connections in one `MSG_APP_SERVICE_GONE`.
const CONNECTIONS_PER_MESSAGE: usize = 1000;

/// Who may serve an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Moved {
    /// Its server was never moved.
    Not,
    /// This ARMOR, which has yet to register.
    Towards(ArmorId),
    /// This ARMOR, which has registered.
    To(ArmorId),
    /// Nobody until its node is back: nobody starts its server again. Whoever comes gets the address.
    Gone,
}

impl Moved {
    pub(super) fn may_register(self, armor: ArmorId) -> bool {
        match self {
            Moved::Not | Moved::Gone => true,
            Moved::Towards(owner) | Moved::To(owner) => owner == armor,
        }
    }

    pub(super) fn registered(&mut self) {
        if let Moved::Towards(owner) = *self {
            *self = Moved::To(owner);
        }
    }

    pub(super) fn is_under_way(self) -> bool {
        matches!(self, Moved::Towards(_))
    }

    /// Who has the right to it, when `registered` has registered it last.
    fn owner(self, registered: ArmorId) -> ArmorId {
        match self {
            Moved::Not | Moved::Gone => registered,
            Moved::Towards(owner) | Moved::To(owner) => owner,
        }
    }
}

impl AppServerDb {
    /// A service's addresses go from one ARMOR to another, or to nobody.
    pub(super) fn moved(&mut self, moved: &AppMoved, context: &mut Context<'_>) {
        let mut gone = Vec::new();
        for (&address, server) in &mut self.state.servers {
            if server.row.service != moved.service || server.moved.owner(server.row.armor) != moved.from {
                continue;
            }
            if moved.to != ArmorId::NONE {
                if server.moved != Moved::To(moved.to) {
                    server.moved = Moved::Towards(moved.to);
                    context.state_changed();
                }
            } else if server.moved.is_under_way() {
                gone.push(address);
            }
        }
        for address in gone {
            self.reset_clients(address, context);
            self.state.servers.remove(&address);
            context.state_changed();
            self.publish(context);
        }
    }

    /// The servers of a failed node that nobody supervises are gone: their clients need not wait.
    pub(super) fn node_failed(&mut self, failed: &NodeFailed, context: &mut Context<'_>) {
        self.forget_subscriber(failed.armor, context);
        let of_node = self.state.servers.iter().filter(|(_, server)| server.row.armor == failed.armor && !server.supervised);
        let addresses: Vec<_> = of_node.filter(|(_, server)| server.moved == Moved::Not).map(|(&address, _)| address).collect();
        for address in &addresses {
            self.reset_clients(*address, context);
            if let Some(server) = self.state.servers.get_mut(address) {
                server.moved = Moved::Gone;
            }
        }
        if !addresses.is_empty() {
            context.state_changed();
            self.publish(context);
        }
    }

    /// It was only cut off: its servers are there.
    pub(super) fn node_back(&mut self, back: &NodeBack, context: &mut Context<'_>) {
        // Tables may have been lost on the way to it. It counts again when it has this one.
        self.tell(back.armor, context);
        let of_node = self.state.servers.values_mut().filter(|server| server.row.armor == back.armor && server.moved == Moved::Gone);
        let mut came_back = false;
        for server in of_node {
            server.moved = Moved::Not;
            came_back = true;
        }
        if came_back {
            context.state_changed();
            self.publish(context);
        }
    }

    fn reset_clients(&mut self, address: Endpoint, context: &mut Context<'_>) {
        let Some(server) = self.state.servers.get_mut(&address) else { return };
        let mut by_armor: BTreeMap<ArmorId, Vec<ConnectionId>> = BTreeMap::new();
        for (connection, armor) in std::mem::take(&mut server.clients) {
            by_armor.entry(armor).or_default().push(connection);
        }
        let told = Event::new("server-gone").with("service", &server.row.service);
        context.event(told.with("clients", by_armor.values().map(Vec::len).sum::<usize>()));
        for (armor, connections) in by_armor {
            for connections in connections.chunks(CONNECTIONS_PER_MESSAGE) {
                context.send_reliable(Message::to(armor, AppServiceGone { address, connections: connections.to_vec() }));
            }
        }
    }
}
