//! What servers bind: addresses, listeners, and the server behind each (thesis §4.2.2).

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use armor_core::context::Context;
use armor_proto::connection::ResetReason;
use armor_proto::hookup::{Endpoint, Name, Reply, Request};
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use armor_proto::message::Message;

use super::timelines::Step;
use super::AppCommServer;
use super::connections::Server;
use crate::endpoints::{Asked, Proxy, ReplyTo, listener_is_gone, watch_process};
use crate::operations::{
    AppRegisterServer, AppServerRegistered, AppUnregisterServer, AppcommReplayConnect, ApplicationSpec, ClientRow, OnDivergence, Policy, ServerRow,
};

/// Recovery deadline of a server that nobody supervises, in milliseconds.
const UNSUPERVISED_DEADLINE_MS: u64 = 30_000;
/// Most connections in one `MSG_APPCOMM_REPLAY_CONNECT`.
const CONNECTIONS_PER_MESSAGE: usize = 1000;

/// A bound address and the server behind it.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) address: Endpoint,
    pub(super) on_divergence: OnDivergence,
    pub(super) deadline_ms: u64,
    pub(super) supervised: bool,
    pub(super) incarnation: Incarnation,
    /// Bound TCP socket that keeps the port while no server lives, and answers for TCP options.
    pub(super) holder: OwnedFd,
    pub(super) listeners: Vec<Listener>,
    /// Its process has failed, and has not been ready since.
    pub(super) recovering: bool,
    /// Connections that wait for a process, in the order in which they came; each once.
    pub(super) waiting: VecDeque<ConnectionId>,
    /// The queue is looked at again soon.
    pub(super) dials_again: bool,
    next_listener: usize,
}

pub(super) struct Listener {
    id: u64,
    name: Name,
    listening: bool,
}

/// A bind that APP_SERVER_DB has yet to confirm.
pub(super) struct Bind {
    reply: ReplyTo,
    address: Endpoint,
    listener: Listener,
}

impl Service {
    /// Somebody accepts connections.
    pub(super) fn is_listening(&self) -> bool {
        self.listeners.iter().any(|listener| listener.listening)
    }

    /// The listener whose turn it is.
    pub(super) fn next_listener(&mut self) -> Option<Name> {
        let listening: Vec<_> = self.listeners.iter().filter(|listener| listener.listening).collect();
        let name = listening.get(self.next_listener.checked_rem(listening.len())?)?.name;
        self.next_listener = self.next_listener.wrapping_add(1);
        Some(name)
    }

    /// A listener has refused a connection: it is closed, or does not listen any more.
    pub(super) fn refused(&mut self, name: &Name) {
        for listener in self.listeners.iter_mut().filter(|listener| listener.name == *name) {
            listener.listening = false;
        }
        self.forget_closed_listeners();
    }

    /// Forgets listeners of which every copy is closed.
    fn forget_closed_listeners(&mut self) {
        self.listeners.retain(|listener| !listener_is_gone(&listener.name));
    }
}

impl AppCommServer {
    fn service_of_listener(&mut self, id: u64) -> Option<&mut Service> {
        self.services.values_mut().find(|service| service.listeners.iter().any(|listener| listener.id == id))
    }

    pub(super) fn bind(&mut self, asked: Asked, context: &mut Context<'_>) {
        let Request::Register { addr, service, reuse_port, .. } = asked.request else { return };
        let Some(holder) = asked.socket else {
            return asked.reply.send(&Reply::Refused { reason: "a register request carries the application's socket".to_owned() }, None);
        };
        let application = service.as_ref().and_then(|name| self.applications.get(name));
        let spec = application.map(|application| Rc::clone(&application.spec));
        let life = application.map(|application| application.incarnation);
        // A server that nobody supervises is known again by its program, so that it may be restarted by hand.
        let name = service.unwrap_or_else(|| program_name(asked.pid));
        let address = match self.claim(addr, &name, life, reuse_port, &holder) {
            Ok(address) => address,
            Err(errno) => return asked.reply.send(&Reply::Registered { errno, listener: 0, name: None }, None),
        };
        let service = self.enter(address, &name, spec.as_deref(), life, holder);
        let (incarnation, deadline_ms) = (service.incarnation, service.deadline_ms);
        let policy = spec.as_ref().map_or(Policy::default(), |spec| spec.policy);
        let settled_ms = spec.as_ref().and_then(|spec| spec.settled_ms);
        let row = ServerRow { address, armor: context.armor(), incarnation, service: name, policy, deadline_ms, settled_ms };
        self.next = self.next.wrapping_add(1);
        let (id, request) = (self.next, self.next);
        let listener = Listener { id, name: Name::listener(id, address), listening: false };
        let key = address.unmapped();
        self.binds.insert(request, Bind { reply: asked.reply, address: key, listener });
        context.send_reliable(Message::to(ArmorId::FTM, AppRegisterServer { row, request }));
        if spec.is_none() {
            let (pid, handle) = (asked.pid, context.handle::<Self>());
            context.spawn(async move {
                watch_process(pid).await;
                handle.call(|element, context| element.unsupervised_gone(key, context));
            });
        }
    }

    /// The address that a bind gets, with its port; or the errno.
    fn claim(&mut self, asked: Endpoint, name: &str, life: Option<Incarnation>, reuse_port: bool, holder: &OwnedFd) -> Result<Endpoint, i32> {
        let known = self.services.get_mut(&asked.unmapped()).filter(|_| asked.port != 0);
        if let Some(known) = known {
            if known.name != name {
                return Err(libc::EADDRINUSE);
            }
            if life.is_some_and(|incarnation| incarnation > known.incarnation) {
                known.listeners.clear();
            }
            known.forget_closed_listeners();
            if !known.listeners.is_empty() && !reuse_port {
                return Err(libc::EADDRINUSE);
            }
            return Ok(Endpoint { port: known.address.port, ..asked });
        }
        let bound = rustix::net::bind(holder, &SocketAddr::from(asked)).and_then(|()| rustix::net::getsockname(holder));
        let bound = SocketAddr::try_from(bound.map_err(rustix::io::Errno::raw_os_error)?).map_err(|_| libc::EINVAL)?;
        Ok(Endpoint { port: bound.port(), ..asked })
    }

    /// The service at an address, in its present life.
    fn enter(&mut self, address: Endpoint, name: &str, spec: Option<&ApplicationSpec>, life: Option<Incarnation>, holder: OwnedFd) -> &mut Service {
        let mut known = true;
        let service = self.services.entry(address.unmapped()).or_insert_with(|| {
            known = false;
            Service {
                name: name.to_owned(),
                address,
                on_divergence: spec.map_or(OnDivergence::default(), |spec| spec.on_divergence),
                deadline_ms: spec.map_or(UNSUPERVISED_DEADLINE_MS, |spec| spec.deadline_ms),
                supervised: spec.is_some(),
                incarnation: life.unwrap_or(Incarnation(1)),
                holder,
                listeners: Vec::new(),
                next_listener: 0,
                recovering: false,
                waiting: VecDeque::new(),
                dials_again: false,
            }
        });
        if known {
            let next = if service.listeners.is_empty() { Incarnation(service.incarnation.0 + 1) } else { service.incarnation };
            service.incarnation = life.unwrap_or(next);
        }
        service
    }

    /// APP_SERVER_DB's answer to a bind.
    pub(super) fn registered(&mut self, answer: &AppServerRegistered, context: &mut Context<'_>) {
        let Some(Bind { reply, address, listener }) = self.binds.remove(&answer.request) else { return };
        let Some(service) = self.services.get_mut(&address) else { return };
        if answer.errno != 0 {
            reply.send(&Reply::Registered { errno: answer.errno, listener: 0, name: None }, None);
            if service.listeners.is_empty() {
                self.services.remove(&address);
            }
            return;
        }
        let (id, name) = (listener.id, listener.name);
        service.incarnation = service.incarnation.max(answer.incarnation);
        service.listeners.push(listener);
        service.recovering |= !answer.clients.is_empty();
        reply.send(&Reply::Registered { errno: 0, listener: id, name: Some(name) }, None);
        self.timelines.reached(&service.name, Step::Bound);
        replay_connects(answer, context);
        self.ask_the_others(address, answer, context);
    }

    /// APP_SERVER_DB forgets the clients of a server that closes its listener, and may not have heard of some. Their ends here
    /// know better, and ask for themselves.
    fn ask_the_others(&mut self, address: Endpoint, answer: &AppServerRegistered, context: &mut Context<'_>) {
        let asked: HashSet<ConnectionId> = answer.clients.iter().map(|client| client.connection).collect();
        let Some(service) = self.services.get(&address).map(|service| service.name.clone()) else { return };
        let lost = |server: &Server| server.address == address && *server.service == *service && server.port.end.needs_replay();
        for id in self.connections_where(lost) {
            if !asked.contains(&id) {
                self.with(id, context, |port, now| port.end.ask_replay(now));
            }
        }
    }

    /// Addresses that a service has bound.
    pub(super) fn addresses_of(&self, name: &str) -> Vec<Endpoint> {
        self.services.iter().filter(|(_, service)| service.name == name).map(|(&address, _)| address).collect()
    }

    /// A server listens.
    pub(super) fn listening(&mut self, id: u64, context: &mut Context<'_>) {
        let Some(service) = self.service_of_listener(id) else { return };
        for listener in service.listeners.iter_mut().filter(|listener| listener.id == id) {
            listener.listening = true;
        }
        let address = service.address.unmapped();
        self.listens(address, context);
    }

    /// The application has closed a listener: it is gone when the kernel says so.
    pub(super) fn close_listener(&mut self, id: u64, context: &mut Context<'_>) {
        let Some(service) = self.service_of_listener(id) else { return };
        service.listeners.retain(|listener| listener.id != id || !listener_is_gone(&listener.name));
        if service.listeners.is_empty() {
            let address = service.address.unmapped();
            self.unregister(address, context);
        }
    }

    pub(super) fn unregister(&mut self, address: Endpoint, context: &mut Context<'_>) {
        if let Some(service) = self.services.remove(&address) {
            context.send_reliable(Message::to(ArmorId::FTM, AppUnregisterServer { address: service.address, armor: context.armor() }));
            for id in self.connections_where(|server| server.address == address && server.lacks_process()) {
                self.give_up(id, ResetReason::ServerGone, context);
            }
        }
    }

    /// The process that bound this address without supervision has ended.
    fn unsupervised_gone(&mut self, address: Endpoint, context: &mut Context<'_>) {
        let Some(service) = self.services.get_mut(&address).filter(|service| !service.supervised) else { return };
        service.forget_closed_listeners();
        if service.listeners.is_empty() {
            self.unregister(address, context);
        }
    }
}

/// Thesis §4.5.1: asks the clients' ARMORs to replay their connect requests.
fn replay_connects(answer: &AppServerRegistered, context: &mut Context<'_>) {
    let mut by_armor: BTreeMap<ArmorId, Vec<ConnectionId>> = BTreeMap::new();
    for &ClientRow { connection, armor } in &answer.clients {
        by_armor.entry(armor).or_default().push(connection);
    }
    for (armor, connections) in by_armor {
        for connections in connections.chunks(CONNECTIONS_PER_MESSAGE) {
            let (address, incarnation, connections) = (answer.address, answer.incarnation, connections.to_vec());
            let operation = AppcommReplayConnect { address, server: context.armor(), incarnation, connections };
            context.send_reliable(Message::to(armor, operation));
        }
    }
}

fn program_name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| format!("pid-{pid}"), |name| name.trim().to_owned())
}
