//! An FTM that may have forgotten what it was told: it is told again of the connections (thesis §4.5.1).
//!
//! Invariant: a server's row is there before its clients are told of: APP_SERVER_DB keeps no client of a server that it does not know.

use std::collections::HashSet;

use armor_core::context::Context;
use armor_proto::hookup::Endpoint;
use armor_proto::ids::{ArmorId, ConnectionId};

use super::{AppCommClient, State};
use crate::endpoints::AT_ONCE;
use crate::operations::{AppClientConnected, AppServerSubscribe, AppServerTable, ClientRow, StateMemory};

impl AppCommClient {
    /// This node has registered with the FTM, which may be another life of it, without the clients of its last moment.
    pub(super) fn memory(&mut self, _: &StateMemory, context: &mut Context<'_>) {
        // It may count its tables anew.
        self.version = 0;
        let connected = self.clients.iter().filter(|(_, client)| !matches!(client.state, State::Connecting | State::Reset));
        self.untold = connected.map(|(&id, _)| id).collect();
        // Its answer is the table that says which servers it knows.
        context.send_to(ArmorId::FTM, AppServerSubscribe { armor: context.armor() });
    }

    /// Tells of connections to servers that are in the table.
    pub(super) fn tell_of_connections(&mut self, table: &AppServerTable, context: &mut Context<'_>) {
        if self.untold.is_empty() {
            return;
        }
        let known: HashSet<Endpoint> = table.rows.iter().map(|row| row.address.unmapped()).collect();
        let is_known = |id: &ConnectionId| self.clients.get(id).is_some_and(|client| known.contains(&client.server.address.unmapped()));
        let due: Vec<ConnectionId> = self.untold.extract_if(|id| is_known(id)).collect();
        self.untold.retain(|id| self.clients.contains_key(id));
        self.tell_some(due, context);
    }

    fn tell_some(&mut self, mut due: Vec<ConnectionId>, context: &mut Context<'_>) {
        let rest = due.split_off(due.len().min(AT_ONCE));
        for id in due {
            if let Some(client) = self.clients.get(&id) {
                let row = ClientRow { connection: id, armor: context.armor() };
                context.send_to(ArmorId::FTM, AppClientConnected { address: client.server.address, client: row, connected: true });
            }
        }
        if !rest.is_empty() {
            let handle = context.handle::<Self>();
            context.spawn(async move {
                tokio::task::yield_now().await;
                handle.call(|element, context| element.tell_some(rest, context));
            });
        }
    }
}
