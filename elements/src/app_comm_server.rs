//! `APP_COMM_SERVER`: where server applications hook up, and the proxy of the clients towards them (thesis §4.2.2).
//!
//! Purpose: registers what servers bind, connects clients to their listeners, and puts connections back when a server's
//! process fails: its re-bind is recognised, the clients replay their connect requests, the stream goes on (thesis §4.5.1).
//! Subscribes: `MSG_APP_STARTED`, `MSG_APP_FAILED`, `MSG_APP_SERVER_REGISTERED`, `MSG_APPCOMM_SERVER_CONNECT_REQUEST`,
//! `MSG_APPCOMM_DATA`, `MSG_APPCOMM_ACK`, `MSG_APPCOMM_RESET`.
//! Emits: `MSG_APP_REGISTER_SERVER`, `MSG_APP_UNREGISTER_SERVER`, `MSG_APPCOMM_REPLAY_CONNECT`, `MSG_APPCOMM_CONNECT_REPLY`,
//! `MSG_APPCOMM_REPLAY`, `MSG_APPCOMM_DATA`, `MSG_APPCOMM_ACK`, `MSG_APPCOMM_RESET`.
//! Configuration: `allowed_uids`, `window_bytes`, `fate_ms` (how long an unannounced end of a stream waits for the process's fate).
//!
//! Invariant: end of file is never taken for a close unless the close was announced or the process's fate says so (design §5, rule 10).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::{Event, now_ms};
use armor_proto::connection::{ConnectDecision, ConnectReply, Direction, Event as EndEvent, Record, ResetReason, ServerEnd};
use armor_proto::hookup::{Endpoint, Name, Reply, Request, Role, SERVER_SOCKET};
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use armor_proto::message::Message;
use serde::Deserialize;

use crate::endpoints::{
    ApplicationSocket, Asked, Ending, Ends, HookupListener, Port, Read, ReplyTo, Turn, answer_unknown, connection_config, dial, get_option,
    listener_is_gone, set_option, watch_process,
};
use crate::operations::{
    AppFailed, AppRegisterServer, AppServerRegistered, AppStarted, AppUnregisterServer, AppcommAck, AppcommConnectReply, AppcommData,
    AppcommReplay, AppcommReplayConnect, AppcommReset, AppcommServerConnectRequest, ApplicationSpec, OnDivergence, Policy, ServerRow,
};

/// Recovery timelines kept for `armor status`.
const TIMELINES: usize = 64;
/// Pause before a listener whose queue was full is dialled again.
const DIAL_AGAIN: Duration = Duration::from_millis(5);

/// Configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    allowed_uids: Vec<u32>,
    window_bytes: u32,
    fate_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { allowed_uids: Vec::new(), window_bytes: 1 << 20, fate_ms: 100 }
    }
}

/// A bound address and the server behind it.
struct Service {
    name: String,
    address: Endpoint,
    on_divergence: OnDivergence,
    deadline_ms: u64,
    supervised: bool,
    incarnation: Incarnation,
    /// Bound TCP socket that keeps the port while no server lives, and answers for TCP options.
    holder: OwnedFd,
    listeners: Vec<Listener>,
    next_listener: usize,
    recovering: bool,
}

struct Listener {
    id: u64,
    name: Name,
    listening: bool,
}

struct Bind {
    reply: ReplyTo,
    address: Endpoint,
    listener: Listener,
}

struct Server {
    port: Port<ServerEnd>,
    address: Endpoint,
    client: ArmorId,
    name: Name,
    /// Options set on this connection alone.
    holder: Option<OwnedFd>,
    state: &'static str,
    /// End of file without announcement was seen: what the fate timer waits for.
    limbo: Option<Ending>,
    /// A close that was announced while bytes before it had no room; whether it was an abort.
    announced: Option<bool>,
    /// Life of this end's socket, so that a late task of an earlier socket is told apart.
    life: u32,
}

/// One recovery, in milliseconds after the failure.
#[derive(Clone, serde::Serialize)]
struct Timeline {
    service: String,
    incarnation: u32,
    at_ms: u64,
    detected_ms: Option<u64>,
    restarted_ms: Option<u64>,
    bound_ms: Option<u64>,
    reconnected_ms: Option<u64>,
    replayed_ms: Option<u64>,
    flowing_ms: Option<u64>,
}

/// The element.
pub struct AppCommServer {
    config: Config,
    socket: std::path::PathBuf,
    applications: BTreeMap<String, (ApplicationSpec, Incarnation, bool)>,
    services: BTreeMap<Endpoint, Service>,
    binds: HashMap<u64, Bind>,
    servers: HashMap<ConnectionId, Server>,
    ends: Ends,
    timelines: VecDeque<Timeline>,
    next: u64,
}

impl Element for AppCommServer {
    const NAME: &'static str = "APP_COMM_SERVER";
    const PURPOSE: &'static str = "hook-up of server applications; proxy of the clients towards them; recovery (thesis §4.2.2, §4.5.1)";
    const EXAMPLE: &'static str = "allowed_uids = []\nwindow_bytes = 1048576\nfate_ms = 100\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        Ok(AppCommServer {
            config,
            socket: setup.run_dir.join(SERVER_SOCKET),
            applications: BTreeMap::new(),
            services: BTreeMap::new(),
            binds: HashMap::new(),
            servers: HashMap::new(),
            ends: Ends::default(),
            timelines: VecDeque::new(),
            next: now_ms() << 20 ^ setup.armor.0,
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::application_started)
            .on(Self::application_failed)
            .on(Self::registered)
            .on(Self::connect_request)
            .on(Self::data)
            .on(Self::ack)
            .on(Self::reset)
            .emits::<AppRegisterServer>()
            .emits::<AppUnregisterServer>()
            .emits::<AppcommReplayConnect>()
            .emits::<AppcommConnectReply>()
            .emits::<AppcommReplay>()
            .emits::<AppcommData>()
            .emits::<AppcommAck>()
            .emits::<AppcommReset>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        let listener = HookupListener::bind(&self.socket).map_err(|error| format!("{}: {error}", self.socket.display()))?;
        listener.serve(self.config.allowed_uids.clone(), context, Self::asked);
        Ok(())
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        // A token is a whole connection id: ids use all 64 bits.
        let (id, now) = (ConnectionId(token), Instant::now());
        if let Some(server) = self.servers.get_mut(&id) {
            server.port.timeout(now);
            self.turn(id, now, context);
        }
    }

    fn status(&self) -> serde_json::Value {
        let connections: Vec<_> = self
            .servers
            .iter()
            .map(|(id, server)| {
                let service = self.services.get(&server.address).map_or("", |service| service.name.as_str());
                serde_json::json!({
                    "id": id.to_string(), "service": service, "address": SocketAddr::from(server.name.local).to_string(),
                    "peer": SocketAddr::from(server.name.peer).to_string(), "state": server.state,
                    "sent": server.port.read_bytes, "received": server.port.written_bytes, "incarnation": self.services.get(&server.address).map_or(0, |service| service.incarnation.0),
                })
            })
            .collect();
        serde_json::json!({ "connections": connections, "recoveries": self.timelines })
    }
}

impl Server {
    /// The stream from the application has ended as it had announced.
    fn end_announced(&mut self, ending: Ending, abort: bool, now: Instant) {
        self.limbo = None;
        self.announced = None;
        self.port.read_done = true;
        match ending {
            Ending::Half => self.port.end.app_eof(now),
            Ending::Gone if !abort => {
                self.port.end.app_closed(now);
                self.life += 1;
            }
            Ending::Gone | Ending::Reset => {
                self.port.end.app_reset(now);
                self.life += 1;
            }
        }
    }
}

impl AppCommServer {
    fn asked(&mut self, asked: Asked, context: &mut Context<'_>) {
        match &asked.request {
            Request::Register { .. } => self.bind(asked, context),
            Request::Listening { listener, .. } => self.listening(*listener, context),
            Request::Unregister { listener } => {
                self.close_listener(*listener, context);
                asked.reply.send(&Reply::Done, None);
            }
            Request::Closed { name, .. } if name.role == Role::Listener => self.close_listener(name.id, context),
            Request::Closed { name, .. } | Request::Finished { name, .. } => self.announced(ConnectionId(name.id), false, context),
            Request::Aborted { name, .. } => self.announced(ConnectionId(name.id), true, context),
            Request::HowEnded { name } => asked.reply.send(&Reply::Ended { errno: self.ends.how(ConnectionId(name.id)) }, None),
            Request::SetOption { name, level, option, value } => {
                let errno = self.holder_for_set(name).map_or(libc::ENOPROTOOPT, |holder| set_option(holder.as_fd(), *level, *option, value));
                asked.reply.send(&Reply::Option { errno, value: Vec::new() }, None);
            }
            Request::GetOption { name, level, option, length } => {
                let got = self.holder(name).map_or(Err(libc::ENOPROTOOPT), |holder| get_option(holder.as_fd(), *level, *option, *length));
                let (errno, value) = got.map_or_else(|errno| (errno, Vec::new()), |value| (0, value));
                asked.reply.send(&Reply::Option { errno, value }, None);
            }
            Request::Connect { .. } => {
                asked.reply.send(&Reply::Refused { reason: "this socket serves servers; clients ask at app_comm_client.sock".to_owned() }, None);
            }
        }
    }

    fn service_of_listener(&mut self, id: u64) -> Option<&mut Service> {
        self.services.values_mut().find(|service| service.listeners.iter().any(|listener| listener.id == id))
    }

    fn holder(&self, name: &Name) -> Option<&OwnedFd> {
        if name.role == Role::Listener {
            return self.services.get(&name.local.unmapped()).map(|service| &service.holder);
        }
        let server = self.servers.get(&ConnectionId(name.id))?;
        server.holder.as_ref().or_else(|| self.services.get(&server.address).map(|service| &service.holder))
    }

    /// Options that are set on an accepted socket do not change the listener's.
    fn holder_for_set(&mut self, name: &Name) -> Option<&OwnedFd> {
        if name.role != Role::Listener {
            let server = self.servers.get_mut(&ConnectionId(name.id))?;
            if server.holder.is_none() {
                let family = match name.family() {
                    armor_proto::hookup::IpFamily::V4 => rustix::net::AddressFamily::INET,
                    armor_proto::hookup::IpFamily::V6 => rustix::net::AddressFamily::INET6,
                };
                let flags = rustix::net::SocketFlags::CLOEXEC;
                server.holder = rustix::net::socket_with(family, rustix::net::SocketType::STREAM, flags, None).ok();
            }
        }
        self.holder(name)
    }

    fn bind(&mut self, asked: Asked, context: &mut Context<'_>) {
        let Request::Register { addr, service, reuse_port, .. } = asked.request else { return };
        let refuse = |errno| asked.reply.send(&Reply::Registered { errno, listener: 0, name: None }, None);
        let Some(holder) = asked.socket else {
            return asked.reply.send(&Reply::Refused { reason: "a register request carries the application's socket".to_owned() }, None);
        };
        let supervised = service.as_ref().and_then(|name| self.applications.get(name)).cloned();
        // A server that nobody supervises is known again by its program, so that it may be restarted by hand.
        let name = service.unwrap_or_else(|| program_name(asked.pid));
        let key = addr.unmapped();
        let known = self.services.get_mut(&key).filter(|_| addr.port != 0);
        let address = match known {
            Some(known) if known.name != name => return refuse(libc::EADDRINUSE),
            Some(known) => {
                let fresh_life = supervised.as_ref().is_some_and(|(_, incarnation, _)| *incarnation > known.incarnation);
                known.listeners.retain(|listener| !fresh_life && !listener_is_gone(&listener.name));
                if !known.listeners.is_empty() && !reuse_port {
                    return refuse(libc::EADDRINUSE);
                }
                Endpoint { port: known.address.port, ..addr }
            }
            None => {
                let bound = rustix::net::bind(&holder, &SocketAddr::from(addr)).and_then(|()| rustix::net::getsockname(&holder));
                match bound.map(SocketAddr::try_from) {
                    Ok(Ok(bound)) => Endpoint { port: bound.port(), ..addr },
                    Ok(Err(_)) => return refuse(libc::EINVAL),
                    Err(errno) => return refuse(errno.raw_os_error()),
                }
            }
        };
        let key = address.unmapped();
        self.next = self.next.wrapping_add(1);
        let (id, request) = (self.next, self.next);
        let listener = Listener { id, name: Name::listener(id, address), listening: false };
        let spec = supervised.as_ref().map(|(spec, ..)| spec);
        let policy = spec.map_or(Policy::default(), |spec| spec.policy);
        let deadline_ms = spec.map_or(30_000, |spec| spec.deadline_ms);
        let life = supervised.as_ref().map(|(_, incarnation, _)| *incarnation);
        let fresh = |incarnation| Service {
            name: name.clone(),
            address,
            on_divergence: spec.map_or(OnDivergence::default(), |spec| spec.on_divergence),
            deadline_ms,
            supervised: spec.is_some(),
            incarnation,
            holder,
            listeners: Vec::new(),
            next_listener: 0,
            recovering: false,
        };
        let incarnation = match self.services.get_mut(&key) {
            Some(known) => {
                known.incarnation = life.unwrap_or_else(|| if known.listeners.is_empty() { Incarnation(known.incarnation.0 + 1) } else { known.incarnation });
                known.incarnation
            }
            None => {
                let incarnation = life.unwrap_or(Incarnation(1));
                self.services.insert(key, fresh(incarnation));
                incarnation
            }
        };
        let row = ServerRow { address, armor: context.armor(), incarnation, service: name, policy, deadline_ms };
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

    fn registered(&mut self, answer: &AppServerRegistered, context: &mut Context<'_>) {
        let Some(bind) = self.binds.remove(&answer.request) else { return };
        let Some(service) = self.services.get_mut(&bind.address) else { return };
        if answer.errno != 0 {
            bind.reply.send(&Reply::Registered { errno: answer.errno, listener: 0, name: None }, None);
            if service.listeners.is_empty() {
                self.services.remove(&bind.address);
            }
            return;
        }
        let (id, name) = (bind.listener.id, bind.listener.name);
        service.incarnation = service.incarnation.max(answer.incarnation);
        service.listeners.push(bind.listener);
        bind.reply.send(&Reply::Registered { errno: 0, listener: id, name: Some(name) }, None);
        let service_name = service.name.clone();
        self.stamp(&service_name, |timeline| &mut timeline.bound_ms);
        if answer.clients.is_empty() {
            return;
        }
        // Thesis §4.5.1: ask the clients' ARMORs to replay their connect requests.
        if let Some(service) = self.services.get_mut(&bind.address) {
            service.recovering = true;
        }
        let mut by_armor: BTreeMap<ArmorId, Vec<ConnectionId>> = BTreeMap::new();
        for client in &answer.clients {
            by_armor.entry(client.armor).or_default().push(client.connection);
        }
        for (armor, connections) in by_armor {
            for connections in connections.chunks(1000) {
                let operation = AppcommReplayConnect {
                    address: answer.address,
                    server: context.armor(),
                    incarnation: answer.incarnation,
                    connections: connections.to_vec(),
                };
                context.send_reliable(Message::to(armor, operation));
            }
        }
    }

    fn listening(&mut self, id: u64, context: &mut Context<'_>) {
        let Some(service) = self.service_of_listener(id) else { return };
        for listener in service.listeners.iter_mut().filter(|listener| listener.id == id) {
            listener.listening = true;
        }
        let address = service.address.unmapped();
        let waiting: Vec<_> =
            self.servers.iter().filter(|(_, server)| server.address == address && server.state == "waiting").map(|(&id, _)| id).collect();
        for id in waiting {
            self.dial(id, context);
        }
    }

    /// The application has closed a listener: it is gone when the kernel says so.
    fn close_listener(&mut self, id: u64, context: &mut Context<'_>) {
        let Some(service) = self.service_of_listener(id) else { return };
        service.listeners.retain(|listener| listener.id != id || !listener_is_gone(&listener.name));
        if service.listeners.is_empty() {
            let address = service.address.unmapped();
            self.unregister(address, context);
        }
    }

    fn unregister(&mut self, address: Endpoint, context: &mut Context<'_>) {
        if let Some(service) = self.services.remove(&address) {
            context.send_reliable(Message::to(ArmorId::FTM, AppUnregisterServer { address: service.address, armor: context.armor() }));
            let waiting: Vec<_> =
                self.servers.iter().filter(|(_, server)| server.address == address && server.port.socket.is_none()).map(|(&id, _)| id).collect();
            for id in waiting {
                self.give_up(id, ResetReason::ServerGone, context);
            }
        }
    }

    /// The process that bound this address without supervision has ended.
    fn unsupervised_gone(&mut self, address: Endpoint, context: &mut Context<'_>) {
        let Some(service) = self.services.get_mut(&address).filter(|service| !service.supervised) else { return };
        service.listeners.retain(|listener| !listener_is_gone(&listener.name));
        if service.listeners.is_empty() {
            self.unregister(address, context);
        }
    }

    fn application_started(&mut self, started: &AppStarted, _: &mut Context<'_>) {
        let name = started.spec.name.clone();
        self.stamp(&name, |timeline| &mut timeline.restarted_ms);
        self.applications.insert(name, (started.spec.clone(), started.incarnation, true));
    }

    fn application_failed(&mut self, failed: &AppFailed, context: &mut Context<'_>) {
        if let Some((_, _, alive)) = self.applications.get_mut(&failed.name) {
            *alive = false;
        }
        let addresses: Vec<_> = self.services.values().filter(|service| service.name == failed.name).map(|service| service.address.unmapped()).collect();
        if addresses.is_empty() {
            return;
        }
        if failed.restarting {
            self.begin_timeline(failed);
        }
        let now = Instant::now();
        for address in addresses {
            if let Some(service) = self.services.get_mut(&address) {
                service.listeners.clear();
                service.recovering = failed.restarting;
            }
            let connections: Vec<_> = self.servers.iter().filter(|(_, server)| server.address == address).map(|(&id, _)| id).collect();
            for id in connections {
                if failed.restarting {
                    self.lost(id, now, context);
                } else if failed.orderly {
                    self.ended_orderly(id, now, context);
                } else {
                    self.give_up(id, ResetReason::RestartLimit, context);
                }
            }
            if !failed.restarting {
                self.unregister(address, context);
            }
        }
        if !failed.restarting {
            self.applications.remove(&failed.name);
        }
    }

    fn begin_timeline(&mut self, failed: &AppFailed) {
        if self.timelines.len() >= TIMELINES {
            self.timelines.pop_front();
        }
        self.timelines.push_back(Timeline {
            service: failed.name.clone(),
            incarnation: failed.incarnation.0 + 1,
            at_ms: failed.failed_at_ms,
            detected_ms: Some(now_ms().saturating_sub(failed.failed_at_ms)),
            restarted_ms: None,
            bound_ms: None,
            reconnected_ms: None,
            replayed_ms: None,
            flowing_ms: None,
        });
    }

    fn stamp(&mut self, service: &str, field: impl Fn(&mut Timeline) -> &mut Option<u64>) {
        if let Some(timeline) = self.timelines.iter_mut().rev().find(|timeline| timeline.service == service) {
            let after = now_ms().saturating_sub(timeline.at_ms);
            field(timeline).get_or_insert(after);
        }
    }

    /// The process behind a connection is dead: what it had written is still read, then the end waits for the next process.
    fn lost(&mut self, id: ConnectionId, now: Instant, context: &mut Context<'_>) {
        if let Some(server) = self.servers.get_mut(&id) {
            if server.port.socket.is_some() {
                server.port.drain_dead(now);
                server.port.end.server_lost(now);
            }
            server.state = "waiting";
            server.limbo = None;
            server.life += 1;
            self.turn(id, now, context);
        }
    }

    fn ended_orderly(&mut self, id: ConnectionId, now: Instant, context: &mut Context<'_>) {
        if let Some(server) = self.servers.get_mut(&id) {
            if server.port.socket.is_none() {
                return self.give_up(id, ResetReason::ServerGone, context);
            }
            server.port.drain_dead(now);
            server.port.end.app_closed(now);
            server.life += 1;
            self.turn(id, now, context);
        }
    }

    fn give_up(&mut self, id: ConnectionId, reason: ResetReason, context: &mut Context<'_>) {
        let now = Instant::now();
        if let Some(server) = self.servers.get_mut(&id) {
            server.port.end.abort(reason, now);
            self.turn(id, now, context);
        }
    }

    fn connect_request(&mut self, asked: &AppcommServerConnectRequest, context: &mut Context<'_>) {
        let id = asked.request.connection;
        let address = asked.address.unmapped();
        let refused = |requested| ConnectReply {
            connection: id,
            requested,
            incarnation: requested,
            service: Incarnation(0),
            errno: libc::ECONNREFUSED,
            c2s: armor_proto::connection::AckState::default(),
        };
        let Some(service) = self.services.get(&address) else {
            context.send_to(asked.client, AppcommConnectReply { reply: refused(asked.request.incarnation) });
            return;
        };
        let listening = service.listeners.iter().any(|listener| listener.listening);
        if !listening && !service.recovering && !self.servers.contains_key(&id) {
            context.send_to(asked.client, AppcommConnectReply { reply: refused(asked.request.incarnation) });
            return;
        }
        let now = Instant::now();
        let local = if service.address.ip.is_unspecified() { asked.dialled } else { service.address };
        let family = service.address.family();
        let in_family = |endpoint: Endpoint| endpoint.in_family(family).unwrap_or(endpoint);
        let name = Name { role: Role::Server, id: id.0, local: in_family(local), peer: in_family(asked.client_address) };
        let config = connection_config(self.config.window_bytes, 0, service.deadline_ms, service.on_divergence);
        let server = self.servers.entry(id).or_insert_with(|| Server {
            port: Port::new(ServerEnd::new(id, config, now)),
            address,
            client: asked.client,
            name,
            holder: None,
            state: "waiting",
            limbo: None,
            announced: None,
            life: 0,
        });
        server.client = asked.client;
        let needs_process = matches!(server.port.end.handle_connect_request(&asked.request, now), Ok(ConnectDecision::Attach));
        if needs_process {
            server.port.detach();
            server.life += 1;
            server.limbo = None;
            server.announced = None;
            server.state = "waiting";
        }
        self.turn(id, now, context);
        if needs_process && listening {
            self.dial(id, context);
        }
    }

    /// Connects a connection's end to the server's listener.
    fn dial(&mut self, id: ConnectionId, context: &mut Context<'_>) {
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.port.socket.is_none() && server.state == "waiting") else { return };
        let Some(service) = self.services.get_mut(&server.address) else { return };
        let ready: Vec<_> = service.listeners.iter().filter(|listener| listener.listening).collect();
        if ready.is_empty() {
            return;
        }
        let listener = ready[service.next_listener % ready.len()].name;
        service.next_listener = service.next_listener.wrapping_add(1);
        match dial(&server.name, &listener).and_then(ApplicationSocket::new) {
            Ok(socket) => {
                let now = Instant::now();
                let watch = socket.watch();
                if server.port.end.attached(service.incarnation, now).is_err() {
                    return;
                }
                server.port.attach(socket);
                server.state = "established";
                server.life += 1;
                let (life, name) = (server.life, service.name.clone());
                let handle = context.handle::<Self>();
                context.spawn(watch.readable(move || handle.call(|element, context| element.readable(id, life, context))));
                self.stamp(&name, |timeline| &mut timeline.reconnected_ms);
                self.turn(id, now, context);
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EADDRINUSE)) => {
                // The listener's queue is full, or the dead process's socket is just being taken down.
                let handle = context.handle::<Self>();
                context.spawn(async move {
                    tokio::time::sleep(DIAL_AGAIN).await;
                    handle.call(|element, context| element.dial(id, context));
                });
            }
            Err(_) if service.supervised => service.recovering = true,
            Err(_) => self.give_up(id, ResetReason::ServerGone, context),
        }
    }

    fn data(&mut self, data: &AppcommData, context: &mut Context<'_>) {
        if data.data.direction != Direction::C2s {
            return;
        }
        let payload = context.message().map(|message| message.payload.clone()).unwrap_or_default();
        let known = self.with(data.data.connection, context, |server, now| {
            let _ = server.port.end.handle_data(&data.data, payload, now);
        });
        if !known {
            answer_unknown(data.data.connection, data.data.incarnation, context);
        }
    }

    fn ack(&mut self, ack: &AppcommAck, context: &mut Context<'_>) {
        if ack.ack.direction == Direction::S2c {
            self.with(ack.ack.connection, context, |server, now| {
                let _ = server.port.end.handle_ack(&ack.ack, now);
            });
        }
    }

    fn reset(&mut self, reset: &AppcommReset, context: &mut Context<'_>) {
        self.with(reset.reset.connection, context, |server, now| {
            let _ = server.port.end.handle_reset(&reset.reset, now);
        });
    }

    fn with(&mut self, id: ConnectionId, context: &mut Context<'_>, work: impl FnOnce(&mut Server, Instant)) -> bool {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id) else { return false };
        work(server, now);
        self.turn(id, now, context);
        true
    }

    fn readable(&mut self, id: ConnectionId, life: u32, context: &mut Context<'_>) -> Read {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.life == life) else { return Read::Finished };
        let (read, ending) = server.port.read(now);
        match ending {
            Some(Ending::Half) => {
                server.port.read_done = true;
                server.port.end.app_eof(now);
            }
            Some(ending) if server.announced.is_some() => {
                let abort = server.announced == Some(true);
                server.end_announced(ending, abort, now);
            }
            // Closed or died: the announcement or the process's fate decides.
            Some(ending) => {
                server.limbo = Some(ending);
                let (patience, handle) = (Duration::from_millis(self.config.fate_ms), context.handle::<Self>());
                context.spawn(async move {
                    tokio::time::sleep(patience).await;
                    handle.call(|element, context| element.fate(id, life, context));
                });
            }
            None => {}
        }
        self.turn(id, now, context);
        read
    }

    /// The shim says that the application has closed its copy, or its sending side; counts if the kernel says so too.
    fn announced(&mut self, id: ConnectionId, abort: bool, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id) else { return };
        let (read, ending) = match server.limbo {
            Some(ending) => (Read::Finished, Some(ending)),
            None => server.port.read_all(now),
        };
        if read == Read::Paused {
            // The end of the stream lies behind bytes for which there is no room yet.
            server.announced = Some(abort);
        }
        let Some(ending) = ending else {
            self.turn(id, now, context);
            return;
        };
        server.end_announced(ending, abort, now);
        self.turn(id, now, context);
    }

    /// A stream ended without a word, and the time for one is over.
    fn fate(&mut self, id: ConnectionId, life: u32, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.life == life) else { return };
        let Some(ending) = server.limbo else { return };
        let supervised = self.services.get(&server.address).filter(|service| service.supervised);
        let Some(service) = supervised else {
            // Nobody will start it again, or it has closed its listener: end as TCP would.
            server.limbo = None;
            server.port.read_done = true;
            match ending {
                Ending::Reset => server.port.end.app_reset(now),
                _ => server.port.end.app_closed(now),
            }
            self.turn(id, now, context);
            return;
        };
        let alive = self.applications.get(&service.name).is_some_and(|(_, _, alive)| *alive);
        if alive {
            // The service lives, the process that held this connection does not: another one takes it over.
            let told = Event::new("worker-failed").with("service", &service.name).with("connection", id);
            context.event(told);
            self.lost(id, now, context);
            if let Some(server) = self.servers.get_mut(&id) {
                server.port.end.ask_replay(now);
            }
            self.turn(id, now, context);
        }
    }

    fn turn(&mut self, id: ConnectionId, now: Instant, context: &mut Context<'_>) {
        if let Some(server) = self.servers.get_mut(&id) {
            let turn = server.port.turn(now);
            self.carry_out(id, turn, context);
        }
    }

    fn carry_out(&mut self, id: ConnectionId, turn: Turn, context: &mut Context<'_>) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let to = server.client;
        for (record, payload) in turn.records {
            let message = match record {
                Record::Data(data) => Message::to(to, AppcommData { data }).with_payload(payload),
                Record::Ack(ack) => Message::to(to, AppcommAck { ack }),
                Record::Reset(reset) => Message::to(to, AppcommReset { reset }),
                Record::ConnectReply(reply) => Message::to(to, AppcommConnectReply { reply }),
                Record::Replay(replay) => Message::to(to, AppcommReplay { replay }),
                Record::ConnectRequest(_) => continue,
            };
            context.send(message);
        }
        if let Some(due) = turn.arm {
            context.timer(due.saturating_duration_since(Instant::now()), id.0);
        }
        if turn.wait_writable
            && let Some(socket) = &server.port.socket
        {
            let (watch, handle) = (socket.watch(), context.handle::<Self>());
            context.spawn(async move {
                watch.writable().await;
                handle.call(|element, context| {
                    element.with(id, context, |server, _| server.port.writable());
                });
            });
        }
        if turn.reset.is_some() {
            self.ends.remember_reset(id);
            server.port.detach();
            server.life += 1;
        }
        for event in turn.events {
            self.report(id, event, context);
        }
    }

    fn report(&mut self, id: ConnectionId, event: EndEvent, context: &mut Context<'_>) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let service = self.services.get(&server.address).map_or_else(String::new, |service| service.name.clone());
        let told = |what: &str| Event::new(what).with("connection", id).with("service", &service);
        match event {
            EndEvent::Diverged(how) => {
                context.event(told("connection-diverged").with("how", format!("{how:?}")));
                self.stamp(&service, |timeline| &mut timeline.flowing_ms);
            }
            EndEvent::Recovered { regenerated } => {
                context.event(told("stream-flows").with("regenerated_bytes", regenerated));
                self.stamp(&service, |timeline| &mut timeline.flowing_ms);
            }
            EndEvent::Reconnected { .. } => self.stamp(&service, |timeline| &mut timeline.replayed_ms),
            EndEvent::Finished => server.state = "finished",
            EndEvent::Reset(reason) => {
                server.state = "reset";
                context.event(told("connection-reset").with("reason", format!("{reason:?}")));
            }
            EndEvent::Drained => {
                if let Some(mut server) = self.servers.remove(&id) {
                    server.port.detach();
                }
            }
            _ => {}
        }
    }
}

fn program_name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| format!("pid-{pid}"), |name| name.trim().to_owned())
}
