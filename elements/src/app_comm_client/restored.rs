//! Connections of an earlier life of this ARMOR: taken up where they were (thesis §4.5.2).
//!
//! Invariant: an application that has its socket goes on with it; one that waits for its connect asks again, or goes on waiting.

use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_journal::{LastCall, Recovered, Recovery};
use armor_proto::connection::{ClientEnd, ResetReason, Spill};
use armor_proto::hookup::{Endpoint, Name, Role};
use armor_proto::ids::ConnectionId;
use serde::{Deserialize, Serialize};

use super::look_up::LookUp;
use super::reattach::AboutReattach;
use super::{AppCommClient, Client, State, Waiting};
use crate::endpoints::{ApplicationSocket, Handed, Note, Pending, Port, Proxy, SpillFile, connection_config, policy};
use crate::operations::{OnDivergence, ServerRow};

/// What a connection is about for good, in its record.
#[derive(Serialize, Deserialize)]
pub(super) struct About {
    pub(super) id: ConnectionId,
    pub(super) local: Endpoint,
    pub(super) dialled: Endpoint,
    pub(super) server: ServerRow,
    pub(super) pid: u32,
    pub(super) descriptor: i32,
    /// How it outlives that process, if it does.
    #[serde(default)]
    pub(super) reattach: Option<AboutReattach>,
}

impl About {
    pub(super) fn name(&self) -> Name {
        Name { role: Role::Client, id: self.id.0, local: self.local, peer: self.dialled }
    }
}

/// How the application waits for its connect, as it stands in the word of a note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// It has its socket.
    Over,
    /// In poll: so many bytes fill its socket.
    Polling(usize),
    /// The same, and they are being taken out.
    Emptying(usize),
    /// For our answer.
    Blocked,
    /// It does not: a client without a shim, whose kernel has told it already that it is connected.
    Accepted,
}

impl Wait {
    pub(super) fn word(self) -> u32 {
        let (kind, filled) = match self {
            Wait::Over => (0, 0),
            Wait::Polling(filled) => (1, filled),
            Wait::Emptying(filled) => (2, filled),
            Wait::Blocked => (3, 0),
            Wait::Accepted => (4, 0),
        };
        kind | (filled as u32) << 3
    }

    fn of(word: u32) -> Wait {
        let filled = (word >> 3) as usize;
        match word & 7 {
            0 => Wait::Over,
            1 => Wait::Polling(filled),
            2 => Wait::Emptying(filled),
            4 => Wait::Accepted,
            _ => Wait::Blocked,
        }
    }
}

/// Keys of a connection's descriptors in the vault.
pub(super) struct Keys {
    pub(super) socket: String,
    pub(super) application: String,
    pub(super) spill: String,
    pub(super) transcript: String,
    pub(super) copy: String,
}

impl Keys {
    pub(super) fn of(id: ConnectionId) -> Keys {
        let key = |what| format!("{what}-{:x}", id.0);
        Keys {
            socket: key("socket"),
            application: key("application"),
            spill: key("spill"),
            transcript: key("transcript"),
            copy: key("copy"),
        }
    }
}

impl AppCommClient {
    /// Takes up what an earlier life has left.
    pub(super) fn take_up(&mut self, recovery: Result<Recovery, String>, handed: &mut Handed, context: &mut Context<'_>) {
        let recovery = match recovery {
            Ok(recovery) => recovery,
            Err(reason) => {
                self.keeping.forget_rest(handed);
                return context.event(Event::new("connections-lost").with("reason", reason));
            }
        };
        let begun = Instant::now();
        let count = recovery.records.len();
        for about in recovery.damaged {
            let id = rmp_serde::from_slice::<About>(&about).map_or(ConnectionId(0), |about| about.id);
            self.lose(id, "its record in the journal is damaged", context);
        }
        for recovered in recovery.records {
            let id = rmp_serde::from_slice::<About>(&recovered.about).map_or(ConnectionId(0), |about| about.id);
            if let Err(reason) = self.take_up_one(recovered, handed, context) {
                self.lose(id, &reason, context);
            }
        }
        self.keeping.forget_rest(handed);
        if count > 0 {
            context.event(
                Event::new("connections-taken-up").with("connections", self.clients.len()).with("took_us", begun.elapsed().as_micros()),
            );
        }
    }

    /// The application finds its socket closed, and is told that this was a reset.
    fn lose(&mut self, id: ConnectionId, reason: &str, context: &mut Context<'_>) {
        self.resets.remember(id, ResetReason::NoReplay);
        self.let_go(id);
        context.event(Event::new("connection-lost").with("connection", id).with("reason", reason));
    }

    fn take_up_one(&mut self, recovered: Recovered, handed: &mut Handed, context: &mut Context<'_>) -> Result<(), String> {
        let now = Instant::now();
        let Recovered { record, about, state, log, last } = recovered;
        let about: About = rmp_serde::from_slice(&about).map_err(|error| error.to_string())?;
        let (note, end) = Note::read(&state).ok_or("its state is cut")?;
        let (id, name) = (about.id, about.name());
        let keys = Keys::of(id);
        let server = about.server.clone();
        let config = connection_config(self.config.window_bytes, self.config.log_bytes, server.deadline_ms, OnDivergence::Reset);
        let policy = policy(server.policy, server.settled_ms);
        let spill = match (self.spill(id), handed.take(&keys.spill)) {
            (Some(spill), Some(file)) => Some(spill.found(file)),
            (spill, _) => spill,
        };
        let spilled = spill.as_ref().map(SpillFile::shared);
        let spill = spill.map(|spill| Box::new(spill) as Box<dyn Spill + Send>);
        let mut end = ClientEnd::restore(end, log, spill, config, policy, now).map_err(|error| error.to_string())?;
        let (transcript, copy) = (handed.take(&keys.transcript), handed.take(&keys.copy));
        let reattach = about.reattach.clone().map(|about| Self::let_reattach_again(about, &mut end, transcript, copy, now));
        let mut port = Port::new(end, note, record);
        let socket = handed.take(&keys.socket).map(ApplicationSocket::new).transpose().map_err(|error| error.to_string())?;
        let application = handed.take(&keys.application);
        let mut waiting = None;
        let wait = Wait::of(note.word);
        match (wait, last) {
            (Wait::Emptying(_), Some(LastCall::Received(_))) => port.note.word = Wait::Over.word(),
            (Wait::Polling(filled) | Wait::Emptying(filled), _) => {
                let application = application.ok_or("the socket of a pending connect is gone")?;
                waiting = Some(Waiting::Polling(Pending::take_up(application, filled).map_err(|error| error.to_string())?));
            }
            (Wait::Accepted, _) => waiting = Some(Waiting::Accepted),
            (_, Some(call)) => port.last_call(call, now),
            (_, None) => {}
        }
        if waiting.is_none() {
            self.keeping.forget(&keys.application);
        }
        port.end.resume(now);
        match socket {
            // Whoever waited for our answer asks again; this connect was in vain.
            _ if wait == Wait::Blocked => port.end.app_reset(now),
            // It was closed, and waits for the client's next process.
            Some(_) if reattach.is_some() && port.end.is_past() && !port.end.is_attached() => self.keeping.forget(&keys.socket),
            Some(socket) => port.attach(socket),
            // Its process is gone, or had closed it.
            None if reattach.is_some() && (port.end.is_lost() || port.end.can_reattach()) => {}
            None => port.end.app_closed(now),
        }
        let hung_up = reattach.is_some() && port.socket.as_ref().is_some_and(ApplicationSocket::hung_up);
        let state = if wait == Wait::Over { State::Recovering } else { State::Connecting };
        let About { dialled, pid, descriptor, .. } = about;
        // Options that were set before are forgotten; further ones can be.
        let is_tcp = port.socket.as_ref().is_some_and(ApplicationSocket::is_tcp);
        let holder = if is_tcp { None } else { crate::endpoints::fresh_socket(name.family()).ok() };
        let client = Client {
            port,
            name,
            server,
            dialled,
            holder,
            waiting,
            looked_up: LookUp::default(),
            state,
            pid,
            descriptor,
            spilled,
            reattach,
            life: 0,
        };
        self.clients.insert(id, client);
        if hung_up {
            self.found_hung_up(id, context);
        }
        self.watch(id, context);
        self.turn(id, now, context);
        Ok(())
    }
}
