//! The ends of connections, each with a TCP connection of its own to its server.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::connection::{ConnectDecision, Event as EndEvent, ResetReason, ServerEnd};
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use serde::Serialize;

use super::restored::{About, socket_key};
use super::{LIFE, WiredServers};
use crate::endpoints::{ApplicationSocket, Crowd, Ending, Note, Port, Proxy, Read, answer_late, connection_config, refuse, tcp};
use crate::operations::{AppcommServerConnectRequest, OnDivergence};

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Established,
    Finished,
    Reset,
}

/// One server's end.
pub(super) struct Server {
    pub(super) port: Port<ServerEnd>,
    about: About,
    state: State,
}

impl Server {
    pub(super) fn new(about: About, port: Port<ServerEnd>) -> Server {
        Server { port, about, state: State::Established }
    }

    pub(super) fn status(&self, id: ConnectionId, incarnation: Incarnation) -> serde_json::Value {
        serde_json::json!({
            "id": id.to_string(), "service": self.about.service, "address": SocketAddr::from(self.about.address).to_string(),
            "peer": SocketAddr::from(self.about.client).to_string(), "state": self.state,
            "sent": self.port.read_bytes, "received": self.port.written_bytes, "incarnation": incarnation.0,
        })
    }
}

impl WiredServers {
    pub(super) fn connect_request(&mut self, asked: &AppcommServerConnectRequest, context: &mut Context<'_>) {
        let id = asked.request.connection;
        if self.over.of(id).is_some_and(|last| asked.request.incarnation <= *last) {
            return answer_late(asked, context);
        }
        if self.servers.contains_key(&id) {
            return self.asked_again(asked, context);
        }
        if let Some(under_way) = self.dialling.get_mut(&id) {
            // Repeated meanwhile.
            under_way.clone_from(asked);
            return;
        }
        let Some(server) = self.server_at(asked.address) else { return refuse(asked, libc::ECONNREFUSED, context) };
        if self.servers.len() + self.dialling.len() >= self.config.max_connections {
            let told = Event::new("connect-refused").with("service", &server.service).with("reason", "max_connections");
            self.tell(told, context);
            return refuse(asked, libc::ECONNREFUSED, context);
        }
        if asked.request.seen.0 != 0 || asked.request.acked_c2s > 0 || asked.request.received_s2c > 0 {
            // It had one here, which was lost with all that this ARMOR knew: a new one would be told half a conversation.
            return answer_late(asked, context);
        }
        let address = server.address;
        self.dialling.insert(id, asked.clone());
        let within = Duration::from_millis(self.config.connect_ms);
        let (keepalive, handle) = (Duration::from_secs(self.config.keepalive_s.into()), context.handle::<Self>());
        context.spawn(async move {
            let dialled = tcp::dial(address, keepalive, within).await;
            handle.call(|element, context| element.dialled(id, dialled, context));
        });
    }

    /// The client's end has missed an answer, or asks for another process: there is none.
    fn asked_again(&mut self, asked: &AppcommServerConnectRequest, context: &mut Context<'_>) {
        self.with(asked.request.connection, context, |port, now| {
            port.note.other_end = asked.client;
            let replaces = port.end.replaces_process(&asked.request);
            if replaces || matches!(port.end.handle_connect_request(&asked.request, now), Ok(ConnectDecision::Attach)) {
                port.end.abort(ResetReason::ServerGone, now);
            }
        });
    }

    fn dialled(&mut self, id: ConnectionId, dialled: std::io::Result<OwnedFd>, context: &mut Context<'_>) {
        let Some(asked) = self.dialling.remove(&id) else { return };
        let Some(server) = self.server_at(asked.address) else { return };
        let (service, deadline_ms, address) = (server.service.clone(), server.deadline_ms, server.address.into());
        let joined = dialled.and_then(ApplicationSocket::new).map_err(|error| error.raw_os_error().unwrap_or(libc::ECONNREFUSED));
        let joined = joined.and_then(|socket| {
            let now = Instant::now();
            let config = connection_config(self.config.window_bytes, 0, deadline_ms, OnDivergence::Reset);
            self.next = self.next.wrapping_add(1);
            let mut end = ServerEnd::new(id, config, now).identified_by(self.next);
            let attached = matches!(end.handle_connect_request(&asked.request, now), Ok(ConnectDecision::Attach));
            if !attached || end.attached(LIFE, now).is_err() {
                return Err(libc::ECONNREFUSED);
            }
            let about = About { id, service: service.clone(), address, client: asked.client_address, deadline_ms };
            let note = Note { other_end: asked.client, word: 0 };
            // The socket first: an end in the journal that says it has one must find it.
            self.keeping.keep(&socket_key(id), socket.descriptor().as_fd());
            let mut port = Port::begin(&self.journal, &about, note, end).map_err(|error| {
                tracing::warn!(%id, %error, "a connection has no room in the journal");
                libc::EAGAIN
            })?;
            port.attach(socket);
            self.servers.insert(id, Server::new(about, port));
            Ok(now)
        });
        match joined {
            Ok(now) => {
                self.watch(id, context);
                self.turn(id, now, context);
            }
            Err(errno) => {
                self.keeping.forget(&socket_key(id));
                let reason = std::io::Error::from_raw_os_error(errno);
                self.tell(Event::new("connect-refused").with("service", service).with("reason", reason), context);
                refuse(&asked, errno, context);
            }
        }
    }

    /// Reads what the server says from now on.
    pub(super) fn watch(&self, id: ConnectionId, context: &mut Context<'_>) {
        let Some(socket) = self.servers.get(&id).and_then(|server| server.port.socket.as_ref()) else { return };
        let (watch, handle) = (socket.watch(), context.handle::<Self>());
        context.spawn(watch.readable(move || handle.call(|element, context| element.readable(id, context))));
    }

    fn readable(&mut self, id: ConnectionId, context: &mut Context<'_>) -> Read {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id) else { return Read::Finished };
        let (read, ending) = server.port.read(now);
        if let Some(ending) = ending {
            server.port.read_done = true;
            match ending {
                Ending::Half => server.port.end.app_eof(now),
                Ending::Gone => server.port.end.app_closed(now),
                Ending::Reset => server.port.end.app_reset(now),
            }
            self.watch_half_closed(id, context);
        }
        self.turn(id, now, context);
        read
    }

    /// A server that has ended its stream may have closed altogether. TCP says so when it is told more.
    fn watch_half_closed(&self, id: ConnectionId, context: &mut Context<'_>) {
        let Some(socket) = self.servers.get(&id).and_then(|server| server.port.socket.as_ref()) else { return };
        let Ok(copy) = socket.descriptor().try_clone() else { return };
        let handle = context.handle::<Self>();
        context.spawn(async move {
            tcp::failed(copy).await;
            handle.call(|element, context| {
                let failed = |port: &&mut Port<_>| port.socket.as_ref().is_some_and(|socket| tcp::has_failed(socket.descriptor()));
                if element.port(id).filter(failed).is_some() {
                    // What its client still says is dropped.
                    element.with(id, context, |port, now| port.end.server_lost(now));
                }
            });
        });
    }
}

impl Proxy for WiredServers {
    type End = ServerEnd;

    fn port(&mut self, id: ConnectionId) -> Option<&mut Port<ServerEnd>> {
        self.servers.get_mut(&id).map(|server| &mut server.port)
    }

    fn connections(&self) -> Vec<ConnectionId> {
        self.servers.keys().copied().collect()
    }

    fn other_end(&self, id: ConnectionId) -> ArmorId {
        self.servers.get(&id).map_or(ArmorId::NONE, |server| server.port.note.other_end)
    }

    fn crowd(&mut self) -> &mut Crowd {
        &mut self.crowd
    }

    fn was_reset(&mut self, id: ConnectionId, _: ResetReason, _: &mut Context<'_>) {
        self.keeping.forget(&socket_key(id));
    }

    fn report(&mut self, id: ConnectionId, event: EndEvent, context: &mut Context<'_>) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        match event {
            EndEvent::Finished => server.state = State::Finished,
            EndEvent::Reset(reason) => {
                server.state = State::Reset;
                let told = Event::new("connection-reset").with("connection", id).with("service", &server.about.service);
                self.tell(told.with("reason", format!("{reason:?}")), context);
            }
            EndEvent::Drained => {
                if let Some(mut server) = self.servers.remove(&id) {
                    server.port.detach();
                    self.keeping.forget(&socket_key(id));
                    if let Some(last) = server.port.end.requested() {
                        self.over.remember(id, last);
                    }
                }
            }
            // The others tell of clients' ends, and of processes that take another one's place.
            _ => {}
        }
    }
}
