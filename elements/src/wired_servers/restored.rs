//! Connections of an earlier life of this ARMOR: taken up where they were (thesis §4.5.2).

use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_journal::{Recovered, Recovery};
use armor_proto::connection::{ResetReason, ServerEnd};
use armor_proto::hookup::Endpoint;
use armor_proto::ids::ConnectionId;
use serde::{Deserialize, Serialize};

use super::WiredServers;
use super::connections::Server;
use crate::endpoints::{ApplicationSocket, End as _, Handed, Note, Port, Proxy, connection_config};
use crate::operations::OnDivergence;

/// What a connection is about for good, in its record.
#[derive(Serialize, Deserialize)]
pub(super) struct About {
    pub(super) id: ConnectionId,
    pub(super) service: String,
    pub(super) address: Endpoint,
    pub(super) client: Endpoint,
    pub(super) deadline_ms: u64,
}

/// Key of a connection's socket in the vault.
pub(super) fn socket_key(id: ConnectionId) -> String {
    format!("socket-{:x}", id.0)
}

impl WiredServers {
    /// Takes up what an earlier life has left.
    pub(super) fn take_up(&mut self, recovery: Result<Recovery, String>, handed: &mut Handed, context: &mut Context<'_>) {
        let recovery = match recovery {
            Ok(recovery) => recovery,
            Err(reason) => {
                self.keeping.forget_rest(handed);
                return context.event(Event::new("connections-lost").with("reason", reason));
            }
        };
        for about in &recovery.damaged {
            lose(about, "its record in the journal is damaged", context);
        }
        for recovered in recovery.records {
            let about = recovered.about.clone();
            if let Err(reason) = self.take_up_one(recovered, handed, context) {
                lose(&about, &reason, context);
            }
        }
        self.keeping.forget_rest(handed);
    }

    fn take_up_one(&mut self, recovered: Recovered, handed: &mut Handed, context: &mut Context<'_>) -> Result<(), String> {
        let now = Instant::now();
        let Recovered { record, about, state, log, last } = recovered;
        let about: About = rmp_serde::from_slice(&about).map_err(|error| error.to_string())?;
        let (note, end) = Note::read(&state).ok_or("its state is cut")?;
        let config = connection_config(self.config.window_bytes, 0, about.deadline_ms, OnDivergence::Reset);
        let mut end = ServerEnd::restore(end, log, config, now).map_err(|error| error.to_string())?;
        if let Some(call) = last {
            end.last_call(call, now);
        }
        let id = about.id;
        let socket = handed.take(&socket_key(id)).map(ApplicationSocket::new).transpose().map_err(|error| error.to_string())?;
        if socket.is_none() && end.is_attached() {
            // Another TCP connection would be told half a conversation.
            end.abort(ResetReason::ServerGone, now);
        }
        end.resume(now);
        let mut port = Port::new(end, note, record);
        if let Some(socket) = socket {
            port.attach(socket);
        }
        self.servers.insert(id, Server::new(about, port));
        self.watch(id, context);
        self.turn(id, now, context);
        Ok(())
    }

    /// Another vault keeps nothing yet.
    pub(super) fn keep_again(&mut self) {
        self.keeping.keep_journal(&self.journal);
        for (&id, server) in &self.servers {
            self.keeping.keep_some(&socket_key(id), server.port.socket.as_ref().map(ApplicationSocket::descriptor));
        }
    }
}

fn lose(about: &[u8], reason: &str, context: &mut Context<'_>) {
    let id = rmp_serde::from_slice::<About>(about).map_or(ConnectionId(0), |about| about.id);
    context.event(Event::new("connection-lost").with("connection", id).with("reason", reason));
}
