//! Servers that move between nodes (thesis §4.5.4): the clients' ends follow the server table.

use armor_core::context::Context;
use armor_proto::connection::ResetReason;

use super::AppCommClient;
use crate::endpoints::Proxy;
use crate::operations::AppServiceGone;

impl AppCommClient {
    /// Connections whose server is registered by another ARMOR than they know go there: those that wait for their first connect, which
    /// APP_SERVER_DB has not heard of, and those whose request to connect again was lost.
    pub(super) fn follow_moves(&mut self, context: &mut Context<'_>) {
        let Some(table) = &self.table else { return };
        let mut moved = Vec::new();
        for (&id, client) in &mut self.clients {
            let Some(row) = table.at(client.server.address) else { continue };
            if row.service == client.server.service && row.armor != client.server.armor && row.incarnation > client.server.incarnation {
                client.server.armor = row.armor;
                client.server.incarnation = row.incarnation;
                client.port.note.other_end = row.armor;
                moved.push((id, row.incarnation));
            }
        }
        for (id, incarnation) in moved {
            self.with(id, context, |port, now| port.end.replay(incarnation, now));
        }
    }

    /// `MSG_APP_SERVICE_GONE`: there is no use in waiting for a server.
    pub(super) fn service_gone(&mut self, gone: &AppServiceGone, context: &mut Context<'_>) {
        for &id in &gone.connections {
            self.with(id, context, |port, now| port.end.abort(ResetReason::ServerGone, now));
        }
    }
}
