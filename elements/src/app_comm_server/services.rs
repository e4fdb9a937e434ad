//! What applications bind, and which of it are servers: addresses, listeners, and the server behind each (thesis §4.2.2).
//!
//! An address is the application's from `bind` on, and a service from `listen` on: what is bound may as well connect.

use std::collections::btree_map::Entry;
use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use armor_core::context::Context;
use armor_proto::connection::ResetReason;
use armor_proto::hookup::{Endpoint, Name, Reply, Request};
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use armor_proto::message::Message;

use super::AppCommServer;
use super::connections::Server;
use super::restored::{holder_key, own_key};
use super::timelines::Step;
use crate::endpoints::{Asked, Keeping, Proxy, ReplyTo, listener_is_gone, watch_process};
use crate::operations::{
    AppRegisterServer, AppServerRegistered, AppUnregisterServer, AppcommReplayConnect, ApplicationSpec, OnDivergence, Policy, ServerRow,
};

/// Recovery deadline of a server that nobody supervises, in milliseconds.
const UNSUPERVISED_DEADLINE_MS: u64 = 30_000;
/// Most addresses that are bound at once; one more gets ENOBUFS.
const MAX_ADDRESSES: usize = 65_536;
/// Most connections in one `MSG_APPCOMM_REPLAY_CONNECT`.
const CONNECTIONS_PER_MESSAGE: usize = 1000;

/// A bound address and the server behind it.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) address: Endpoint,
    pub(super) policy: Policy,
    pub(super) settled_ms: Option<u32>,
    pub(super) on_divergence: OnDivergence,
    pub(super) deadline_ms: u64,
    pub(super) supervised: bool,
    pub(super) incarnation: Incarnation,
    /// Bound TCP socket that keeps the port while no server lives, and answers for TCP options.
    pub(super) holder: OwnedFd,
    pub(super) listeners: Vec<Listener>,
    /// Its process has failed, and has not been ready since.
    pub(super) recovering: bool,
    /// APP_SERVER_DB has been told. Until then it is but an address that somebody has bound.
    pub(super) registered: bool,
    /// It had asked for port 0: the next life gets this port again.
    pub(super) any_port: bool,
    /// Connections that wait for a process, in the order in which they came; each once.
    pub(super) waiting: VecDeque<ConnectionId>,
    /// The queue is looked at again soon.
    pub(super) dials_again: bool,
    pub(super) next_listener: usize,
}

pub(super) struct Listener {
    pub(super) id: u64,
    pub(super) name: Name,
    /// The process that is about to bind its socket to the name. Until it has, the name is not looked at: that would be in its way.
    pub(super) binder: Option<u32>,
    /// Its TCP socket, where another one holds the address already (SO_REUSEPORT).
    pub(super) own: Option<OwnedFd>,
    pub(super) progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// It may yet connect.
    Bound,
    /// It listens, and APP_SERVER_DB has yet to confirm the address.
    Registering,
    Listening,
}

/// What APP_SERVER_DB has yet to confirm.
pub(super) struct Registration {
    reply: ReplyTo,
    pub(super) address: Endpoint,
    listener: u64,
    pub(super) since: Instant,
}

impl Service {
    /// Somebody accepts connections.
    pub(super) fn is_listening(&self) -> bool {
        self.has_come(Progress::Listening)
    }

    /// Somebody accepts connections, or does as soon as APP_SERVER_DB has answered: clients may know of it earlier.
    pub(super) fn is_about_to_listen(&self) -> bool {
        self.has_come(Progress::Registering)
    }

    fn has_come(&self, to: Progress) -> bool {
        self.listeners.iter().any(|listener| listener.progress >= to)
    }

    /// As APP_SERVER_DB knows it.
    pub(super) fn registration(&self, armor: ArmorId, request: u64) -> AppRegisterServer {
        let Service { address, incarnation, policy, settled_ms, deadline_ms, supervised, any_port, .. } = *self;
        let row = ServerRow { address, armor, incarnation, service: self.name.clone(), policy, deadline_ms, settled_ms };
        AppRegisterServer { row, request, supervised, any_port }
    }

    fn listener(&mut self, id: u64) -> Option<&mut Listener> {
        self.listeners.iter_mut().find(|listener| listener.id == id)
    }

    /// The listener whose turn it is.
    pub(super) fn next_listener(&mut self) -> Option<Name> {
        let listening: Vec<_> = self.listeners.iter().filter(|listener| listener.progress == Progress::Listening).collect();
        let name = listening.get(self.next_listener.checked_rem(listening.len())?)?.name;
        self.next_listener = self.next_listener.wrapping_add(1);
        Some(name)
    }

    /// A listener has refused a connection: it is closed, or does not listen any more.
    pub(super) fn refused(&mut self, name: &Name, keeping: &Keeping) {
        for listener in self.listeners.iter_mut().filter(|listener| listener.name == *name) {
            listener.progress = Progress::Bound;
        }
        self.forget_closed_listeners(keeping);
    }

    /// Forgets listeners of which every copy is closed.
    pub(super) fn forget_closed_listeners(&mut self, keeping: &Keeping) {
        self.forget_listeners(keeping, |listener| listener.binder.is_none() && listener_is_gone(&listener.name));
    }

    /// Forgets the listeners that are `gone`, and lets the vault let go of their sockets.
    pub(super) fn forget_listeners(&mut self, keeping: &Keeping, gone: impl Fn(&Listener) -> bool) {
        for listener in self.listeners.extract_if(.., |listener| gone(listener)).filter(|listener| listener.own.is_some()) {
            keeping.forget(&own_key(listener.id));
        }
    }
}

impl AppCommServer {
    fn service_of_listener(&mut self, id: u64) -> Option<&mut Service> {
        self.services.values_mut().find(|service| service.listeners.iter().any(|listener| listener.id == id))
    }

    /// `bind(2)`: the address is the application's, whatever it will do with it.
    pub(super) fn bind(&mut self, asked: Asked, context: &mut Context<'_>) {
        let Some(asked) = self.unless_held(asked, context) else { return };
        let Request::Bind { addr, service, reuse_port, .. } = asked.request else { return };
        let Some(socket) = asked.socket else {
            return asked.reply.send(&Reply::Refused { reason: "a bind request carries the application's socket".to_owned() }, None);
        };
        let application = service.as_ref().and_then(|name| self.applications.get(name));
        let spec = application.map(|application| Rc::clone(&application.spec));
        let life = application.map(|application| application.incarnation);
        // A server that nobody supervises is known again by its program, so that it may be restarted by hand.
        let name = service.unwrap_or_else(|| program_name(asked.pid));
        let addr_again = self.address_again(addr, &name, life).unwrap_or(addr);
        let address = match self.claim(addr_again, &name, life, reuse_port, &socket, context) {
            Ok(address) => address,
            Err(errno) => return asked.reply.send(&Reply::Bound { errno, listener: 0, name: None }, None),
        };
        self.next = self.next.wrapping_add(1);
        let (id, name_of_listener) = (self.next, Name::listener(self.next, address));
        let (service, own) = self.enter(address, &name, spec.as_deref(), life, socket);
        service.any_port = addr.port == 0;
        service.listeners.push(Listener { id, name: name_of_listener, binder: Some(asked.pid), own, progress: Progress::Bound });
        self.keep_service(address.unmapped());
        context.state_changed();
        // After the capture, so that what is bound is known in the next life of this ARMOR.
        let reply = asked.reply;
        context.then(move || reply.send(&Reply::Bound { errno: 0, listener: id, name: Some(name_of_listener) }, None));
        if spec.is_none() {
            self.watch_unsupervised(asked.pid, context);
        }
    }

    /// Waits for the end of a process that has bound addresses without supervision.
    pub(super) fn watch_unsupervised(&mut self, pid: u32, context: &mut Context<'_>) {
        if self.watched.insert(pid) {
            let handle = context.handle::<Self>();
            context.spawn(async move {
                watch_process(pid).await;
                handle.call(|element, context| element.unsupervised_gone(pid, context));
            });
        }
    }

    /// The address that a bind gets, with its port; or the errno.
    fn claim(
        &mut self,
        asked: Endpoint,
        name: &str,
        life: Option<Incarnation>,
        reuse_port: bool,
        holder: &OwnedFd,
        context: &mut Context<'_>,
    ) -> Result<Endpoint, i32> {
        let known = self.services.get_mut(&asked.unmapped()).filter(|_| asked.port != 0);
        if let Some(known) = known {
            if known.name != name {
                return Err(libc::EADDRINUSE);
            }
            if life.is_some_and(|incarnation| incarnation > known.incarnation) {
                known.forget_listeners(&self.keeping, |_| true);
            }
            known.forget_closed_listeners(&self.keeping);
            if !known.listeners.is_empty() {
                if !reuse_port {
                    return Err(libc::EADDRINUSE);
                }
                rustix::net::bind(holder, &SocketAddr::from(asked)).map_err(rustix::io::Errno::raw_os_error)?;
            }
            return Ok(Endpoint { port: known.address.port, ..asked });
        }
        if self.services.len() >= MAX_ADDRESSES {
            return Err(libc::ENOBUFS);
        }
        if let Err(errno) = self.hold(asked, name, holder, context) {
            return Err(errno.raw_os_error());
        }
        if asked.port != 0 {
            return Ok(asked);
        }
        let bound = rustix::net::getsockname(holder);
        let bound = SocketAddr::try_from(bound.map_err(rustix::io::Errno::raw_os_error)?).map_err(|_| libc::EINVAL)?;
        Ok(Endpoint { port: bound.port(), ..asked })
    }

    /// The service at an address, in its present life; and the socket, when another one holds the address already.
    fn enter(
        &mut self,
        address: Endpoint,
        name: &str,
        spec: Option<&ApplicationSpec>,
        life: Option<Incarnation>,
        socket: OwnedFd,
    ) -> (&mut Service, Option<OwnedFd>) {
        let policy = spec.map_or(Policy::default(), |spec| spec.policy);
        let settled_ms = spec.and_then(|spec| spec.settled_ms);
        match self.services.entry(address.unmapped()) {
            Entry::Occupied(known) => {
                let service = known.into_mut();
                let shared = !service.listeners.is_empty();
                let next = if shared { service.incarnation } else { Incarnation(service.incarnation.0 + 1) };
                service.incarnation = life.unwrap_or(next);
                (service.policy, service.settled_ms) = (policy, settled_ms);
                (service, Some(socket).filter(|_| shared))
            }
            Entry::Vacant(place) => {
                let service = place.insert(Service {
                    name: name.to_owned(),
                    address,
                    policy,
                    settled_ms,
                    on_divergence: spec.map_or(OnDivergence::default(), |spec| spec.on_divergence),
                    deadline_ms: spec.map_or(UNSUPERVISED_DEADLINE_MS, |spec| spec.deadline_ms),
                    supervised: spec.is_some(),
                    incarnation: life.unwrap_or(Incarnation(1)),
                    holder: socket,
                    listeners: Vec::new(),
                    next_listener: 0,
                    recovering: false,
                    registered: false,
                    any_port: false,
                    waiting: VecDeque::new(),
                    dials_again: false,
                });
                (service, None)
            }
        }
    }

    /// `listen(2)`: the address becomes a service (thesis §4.2.2).
    pub(super) fn listen(&mut self, id: u64, reply: ReplyTo, context: &mut Context<'_>) {
        let Some(service) = self.service_of_listener(id) else {
            // It was bound in an earlier life of this ARMOR.
            return reply.send(&Reply::Registered { errno: libc::ENETDOWN }, None);
        };
        let listener = service.listener(id).filter(|listener| listener.progress != Progress::Listening);
        let Some(listener) = listener else {
            // Once more, with another backlog.
            return reply.send(&Reply::Registered { errno: 0 }, None);
        };
        listener.progress = Progress::Registering;
        listener.binder = None;
        service.registered = true;
        let (address, mut registration) = (service.address.unmapped(), service.registration(context.armor(), 0));
        self.next = self.next.wrapping_add(1);
        let request = self.next;
        registration.request = request;
        self.registrations.insert(request, Registration { reply, address, listener: id, since: Instant::now() });
        self.keep_service(address);
        // Captured first: what APP_SERVER_DB knows of, the next life of this ARMOR takes back when its server is gone by then.
        context.state_changed();
        context.send_reliable(Message::to(ArmorId::FTM, registration));
        self.wait_for_ftm(request, context);
    }

    /// APP_SERVER_DB's answer: who waits for the server may be connected.
    pub(super) fn registered(&mut self, answer: &AppServerRegistered, context: &mut Context<'_>) {
        let Some(Registration { reply, address, listener, since }) = self.registrations.remove(&answer.request) else {
            return self.registered_again(answer, context);
        };
        context.state_changed();
        self.waited_for_ftm(&address, since, context);
        let errno = answer.errno;
        context.then(move || reply.send(&Reply::Registered { errno }, None));
        let Some(service) = self.services.get_mut(&address) else { return };
        if answer.errno != 0 {
            if let Some(listener) = service.listener(listener) {
                listener.progress = Progress::Bound;
            }
            service.registered = service.is_listening();
            if !service.registered {
                self.keeping.forget(&holder_key(address));
            }
            return;
        }
        service.incarnation = service.incarnation.max(answer.incarnation);
        service.recovering |= !answer.clients.is_empty();
        if let Some(listener) = service.listener(listener) {
            listener.progress = Progress::Listening;
        }
        self.timelines.reached(&service.name, Step::Bound);
        replay_connects(answer, context);
        self.ask_the_others(address, answer, context);
        self.listens(address, context);
    }

    /// A bound socket is to connect, not to listen: the application gets it back.
    pub(super) fn withdraw(&mut self, id: u64) -> Option<OwnedFd> {
        let service = self.service_of_listener(id)?;
        let at = service.listeners.iter().position(|listener| listener.id == id && listener.progress == Progress::Bound)?;
        let withdrawn = service.listeners.remove(at);
        if withdrawn.own.is_some() {
            self.keeping.forget(&own_key(id));
            return withdrawn.own;
        }
        let address = service.address.unmapped();
        if let Some(heir) = service.listeners.iter_mut().find_map(|listener| listener.own.take()) {
            let holder = std::mem::replace(&mut service.holder, heir);
            self.keep_service(address);
            return Some(holder);
        }
        // A server that fails keeps its address, whatever its next life does.
        if service.registered {
            return None;
        }
        self.services.remove(&address).map(|service| service.holder)
    }

    /// APP_SERVER_DB forgets the clients of a server that closes its listener, and may not have heard of some. Their ends here
    /// know better, and ask for themselves.
    fn ask_the_others(&mut self, address: Endpoint, answer: &AppServerRegistered, context: &mut Context<'_>) {
        let asked: HashSet<ConnectionId> = answer.clients.values().flatten().copied().collect();
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
        self.keeping.forget(&holder_key(address));
        context.state_changed();
        let mut unregistered = self.services.remove(&address);
        if let Some(service) = &mut unregistered {
            service.forget_listeners(&self.keeping, |_| true);
        }
        if let Some(service) = unregistered.filter(|service| service.registered) {
            context.send_reliable(Message::to(ArmorId::FTM, AppUnregisterServer { address: service.address, armor: context.armor() }));
            for id in self.connections_where(|server| server.address == address && server.lacks_process()) {
                self.give_up(id, ResetReason::ServerGone, context);
            }
        }
    }

    /// A process that has bound addresses without supervision has ended.
    fn unsupervised_gone(&mut self, pid: u32, context: &mut Context<'_>) {
        self.watched.remove(&pid);
        for service in self.services.values_mut().filter(|service| !service.supervised) {
            for listener in service.listeners.iter_mut().filter(|listener| listener.binder == Some(pid)) {
                listener.binder = None;
            }
            service.forget_closed_listeners(&self.keeping);
        }
        let unused = self.services.values().filter(|service| !service.supervised && service.listeners.is_empty());
        let unused: Vec<_> = unused.map(|service| service.address.unmapped()).collect();
        for address in unused {
            self.unregister(address, context);
        }
    }
}

/// Thesis §4.5.1: asks the clients' ARMORs to replay their connect requests.
fn replay_connects(answer: &AppServerRegistered, context: &mut Context<'_>) {
    for (&armor, connections) in &answer.clients {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::bench::{Bench, Wanted, application};
    use super::*;
    use serde_json::json;

    fn port_of(socket: &OwnedFd) -> u16 {
        SocketAddr::try_from(rustix::net::getsockname(socket).unwrap()).unwrap().port()
    }

    #[tokio::test]
    async fn a_client_that_comes_before_the_registration_is_confirmed_waits() {
        let mut bench = Bench::new();
        let served = bench.bind("web", 0, &[]);
        let early = bench.client(&served, Policy::Request);
        assert_eq!(bench.state(&early), None, "what is only bound is no service");
        let _asker = bench.begin_to_listen(&served);
        let client = bench.client(&served, Policy::Request);
        assert_eq!(bench.state(&client).as_deref(), Some("waiting"));
        assert!(served.accept().is_none());
        bench.register(&[]);
        assert!(served.accept().is_some());
        assert_eq!(bench.state(&client).as_deref(), Some("established"));
    }

    #[tokio::test]
    async fn a_service_is_captured_before_it_is_registered() {
        let mut bench = Bench::new();
        let served = bench.bind("web", 0, &[]);
        let (wanted, _asker) = bench.wanted(|bench| bench.begin_to_listen(&served));
        let at = |what: fn(&Wanted) -> bool| wanted.iter().position(what).unwrap();
        assert!(at(|wanted| *wanted == Wanted::Capture) < at(|wanted| *wanted == Wanted::Registration), "{wanted:?}");
    }

    #[tokio::test]
    async fn a_bound_socket_is_given_back_to_a_client_and_only_to_a_client() {
        let mut bench = Bench::new();
        let bound = bench.bind("web", 0, &[]);
        let port = bound.address.port;
        assert_eq!(bench.withdraw(&bound).map(|socket| port_of(&socket)), Some(port));
        assert!(bench.element.services.is_empty());
        let served = bench.serve("web");
        assert!(bench.withdraw(&served).is_none(), "it listens");
        let shares = bench.bind_again("web", &served);
        assert_eq!(bench.withdraw(&shares).map(|socket| port_of(&socket)), Some(served.address.port));
        assert_eq!(bench.element.services.len(), 1);
    }

    #[tokio::test]
    async fn of_two_that_share_an_address_each_may_connect() {
        let mut bench = Bench::new();
        let first = bench.bind("web", 0, &[]);
        let second = bench.bind_again("web", &first);
        let port = first.address.port;
        for bound in [&first, &second] {
            assert_eq!(bench.withdraw(bound).map(|socket| port_of(&socket)), Some(port));
        }
        assert!(bench.element.services.is_empty());
    }

    #[tokio::test]
    async fn what_a_failed_application_had_bound_for_a_connect_is_free_again() {
        let mut bench = Bench::new();
        let web = application("web", json!({}));
        bench.started(&web, 1);
        let served = bench.serve("web");
        let bound = bench.bind("web", 0, &[]);
        assert_eq!(bench.element.services.len(), 2);
        bench.failed(&web, 1, true);
        let left: Vec<_> = bench.element.services.keys().copied().collect();
        assert_eq!(left, [served.address], "{} is not kept", bound.address);
    }
}
