//! Servers and connections of an earlier life of this ARMOR: taken up where they were (thesis §4.5.2).
//!
//! Invariant: a socket is joined only to an end that says it has a process; another one was dialled and never used.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_journal::{Recovered, Recovery};
use armor_proto::connection::ServerEnd;
use armor_proto::hookup::{Endpoint, Name, Role};
use armor_proto::ids::{ConnectionId, Incarnation};
use serde::{Deserialize, Serialize};

use super::connections::{Server, State};
use super::health::Condition;
use super::readiness::Readiness;
use super::services::{Listener, Progress, Service};
use super::{AppCommServer, Application};
use crate::endpoints::{ApplicationSocket, End as _, Handed, Note, Port, Proxy, connection_config};
use crate::operations::{ApplicationSpec, OnDivergence, Policy};

/// What a connection is about for good, in its record.
#[derive(Serialize, Deserialize)]
pub(super) struct About {
    pub(super) id: ConnectionId,
    pub(super) service: String,
    pub(super) supervised: bool,
    pub(super) address: Endpoint,
    pub(super) local: Endpoint,
    pub(super) peer: Endpoint,
    pub(super) deadline_ms: u64,
    pub(super) on_divergence: OnDivergence,
}

impl About {
    pub(super) fn name(&self) -> Name {
        Name { role: Role::Server, id: self.id.0, local: self.local, peer: self.peer }
    }
}

/// Key of a connection's socket in the vault.
pub(super) fn socket_key(id: ConnectionId) -> String {
    format!("socket-{:x}", id.0)
}

/// Key of a service's holder.
pub(super) fn holder_key(address: Endpoint) -> String {
    format!("holder-{}", std::net::SocketAddr::from(address))
}

/// Key of the socket of a listener whose address another one holds.
pub(super) fn own_key(listener: u64) -> String {
    format!("listener-{listener:x}")
}

impl CapturedListener {
    fn of(listener: &Listener) -> CapturedListener {
        CapturedListener { id: listener.id, binder: listener.binder, listening: listener.progress == Progress::Listening }
    }
}

/// What is captured of the element beside its connections.
#[derive(Serialize, Deserialize)]
struct Captured {
    services: Vec<CapturedService>,
    applications: Vec<CapturedApplication>,
    /// Processes that have bound addresses without supervision.
    watched: Vec<u32>,
    rights: super::moved::Rights,
}

#[derive(Serialize, Deserialize)]
struct CapturedService {
    name: String,
    address: Endpoint,
    on_divergence: OnDivergence,
    deadline_ms: u64,
    supervised: bool,
    incarnation: Incarnation,
    policy: Policy,
    settled_ms: Option<u32>,
    recovering: bool,
    registered: bool,
    any_port: bool,
    listeners: Vec<CapturedListener>,
}

#[derive(Serialize, Deserialize)]
struct CapturedListener {
    id: u64,
    binder: Option<u32>,
    listening: bool,
}

#[derive(Serialize, Deserialize)]
struct CapturedApplication {
    spec: ApplicationSpec,
    incarnation: Incarnation,
    pid: u32,
    alive: bool,
    ready: bool,
    #[serde(default)]
    instance: u64,
}

impl AppCommServer {
    pub(super) fn captured(&self) -> Option<Vec<u8>> {
        let services = self.services.values().map(|service| CapturedService {
            name: service.name.clone(),
            address: service.address,
            on_divergence: service.on_divergence,
            deadline_ms: service.deadline_ms,
            supervised: service.supervised,
            incarnation: service.incarnation,
            policy: service.policy,
            settled_ms: service.settled_ms,
            recovering: service.recovering,
            registered: service.registered,
            any_port: service.any_port,
            listeners: service.listeners.iter().map(CapturedListener::of).collect(),
        });
        let applications = self.applications.values().map(|application| CapturedApplication {
            spec: (*application.spec).clone(),
            incarnation: application.incarnation,
            pid: application.pid,
            alive: application.alive,
            ready: matches!(application.readiness, Readiness::Ready),
            instance: application.instance,
        });
        rmp_serde::to_vec(&Captured {
            services: services.collect(),
            applications: applications.collect(),
            watched: self.watched.iter().copied().collect(),
            rights: self.rights.clone(),
        })
        .ok()
    }

    /// Takes back what was captured. The holders come from the vault: a service without one has lost its port.
    pub(super) fn take_back(&mut self, state: &[u8]) -> Result<(), String> {
        let captured: Captured = rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        for CapturedApplication { spec, incarnation, pid, alive, ready, instance } in captured.applications {
            let readiness = if ready || spec.ready.is_none() { Readiness::Ready } else { Readiness::Unasked };
            let health = Condition::of(&spec);
            self.applications.insert(
                spec.name.clone(),
                Application { spec: Rc::new(spec), incarnation, pid, alive, readiness, health, instance, looked_at: false },
            );
        }
        // Watched from `take_up` on, once their services are back.
        self.unsupervised = captured.watched;
        self.rights = captured.rights;
        let Some((_, handed)) = &mut self.left else { return Ok(()) };
        for service in captured.services {
            let Some(holder) = handed.take(&holder_key(service.address.unmapped())) else { continue };
            let listeners = service.listeners.iter().map(|listener| {
                let (id, binder) = (listener.id, listener.binder);
                // A listen that was under way is asked for again.
                let progress = if listener.listening { Progress::Listening } else { Progress::Bound };
                Listener { id, name: Name::listener(id, service.address), binder, own: handed.take(&own_key(id)), progress }
            });
            let mut taken = Service {
                listeners: listeners.collect(),
                policy: service.policy,
                settled_ms: service.settled_ms,
                registered: service.registered,
                any_port: service.any_port,
                name: service.name,
                address: service.address,
                on_divergence: service.on_divergence,
                deadline_ms: service.deadline_ms,
                supervised: service.supervised,
                incarnation: service.incarnation,
                holder,
                recovering: service.recovering,
                waiting: VecDeque::new(),
                dials_again: false,
                next_listener: 0,
            };
            taken.forget_closed_listeners(&self.keeping);
            self.services.insert(service.address.unmapped(), taken);
        }
        Ok(())
    }

    /// Takes up the connections that an earlier life has left, once the services are back.
    pub(super) fn take_up(&mut self, recovery: Result<Recovery, String>, handed: &mut Handed, context: &mut Context<'_>) {
        for pid in std::mem::take(&mut self.unsupervised) {
            self.watch_unsupervised(pid, context);
        }
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
        for address in self.services.keys().copied().collect::<Vec<_>>() {
            if self.services.get(&address).is_some_and(Service::is_listening) {
                self.listens(address, context);
            }
        }
    }

    fn take_up_one(&mut self, recovered: Recovered, handed: &mut Handed, context: &mut Context<'_>) -> Result<(), String> {
        let now = Instant::now();
        let Recovered { record, about, state, log, last } = recovered;
        let about: About = rmp_serde::from_slice(&about).map_err(|error| error.to_string())?;
        let (note, end) = Note::read(&state).ok_or("its state is cut")?;
        let config = connection_config(self.config.window_bytes, 0, about.deadline_ms, about.on_divergence);
        let mut end = ServerEnd::restore(end, log, config, now).map_err(|error| error.to_string())?;
        if let Some(call) = last {
            end.last_call(call, now);
        }
        let (id, key) = (about.id, socket_key(about.id));
        let socket = handed.take(&key).filter(|_| end.is_attached());
        let socket = socket.map(ApplicationSocket::new).transpose().map_err(|error| error.to_string())?;
        if socket.is_none() {
            end.server_lost(now);
            self.keeping.forget(&key);
        }
        end.resume(now);
        let state = if socket.is_some() { State::Established } else { State::Waiting };
        let process = (note.word != 0).then_some(Incarnation(note.word));
        let mut server = Server::new(&about, Port::new(end, note, record), state);
        server.process = process.filter(|_| socket.is_some());
        if let Some(socket) = socket {
            server.port.attach(socket);
        }
        self.servers.insert(id, server);
        self.watch(id, context);
        self.turn(id, now, context);
        Ok(())
    }

    /// Keeps the sockets that hold an address, once it is a service: before, an application that goes on without it frees it at once.
    pub(super) fn keep_service(&self, address: Endpoint) {
        let Some(service) = self.services.get(&address).filter(|service| service.registered) else { return };
        self.keeping.keep_some(&holder_key(address), Some(&service.holder));
        for listener in &service.listeners {
            self.keeping.keep_some(&own_key(listener.id), listener.own.as_ref());
        }
    }

    /// Another vault keeps nothing yet.
    pub(super) fn keep_again(&mut self) {
        self.keeping.keep_journal(&self.journal);
        for address in self.services.keys() {
            self.keep_service(*address);
        }
        for (&id, server) in &self.servers {
            self.keeping.keep_some(&socket_key(id), server.port.socket.as_ref().map(ApplicationSocket::descriptor));
        }
    }
}

fn lose(about: &[u8], reason: &str, context: &mut Context<'_>) {
    let id = rmp_serde::from_slice::<About>(about).map_or(ConnectionId(0), |about| about.id);
    context.event(Event::new("connection-lost").with("connection", id).with("reason", reason));
}
