//! Clients that have no shim: a gateway has accepted their TCP connections and hands them over (thesis §5.3). From here on such a socket is the
//! application's end of its connection like any other, so nobody stands between it and the journal.

use std::os::fd::AsFd;
use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::hookup::{Endpoint, Name, Reply, Request, Role};
use armor_proto::ids::ConnectionId;
use rustix::net::sockopt;

use super::restored::{About, Keys, Wait};
use super::{AppCommClient, Client, State, Waiting};
use crate::endpoints::{ApplicationSocket, Asked, Note, Port, Proxy, source_address_for, tcp};

impl AppCommClient {
    /// Takes a connection over. The gateway keeps its copy of the socket until it has heard that it is kept here.
    pub(super) fn accepted(&mut self, asked: Asked, context: &mut Context<'_>) {
        let Request::Accepted { addr, client, again } = asked.request else { return };
        let reply = asked.reply;
        let answer = |errno: i32| reply.send(&Reply::Connected { errno, pending: false, name: None }, None);
        let Some(socket) = asked.socket else { return answer(libc::EBADF) };
        if again && self.has(&socket) {
            return answer(0);
        }
        let Some(table) = &self.table else { return answer(libc::EAGAIN) };
        let Some(server) = table.find(addr).cloned() else { return answer(libc::ECONNREFUSED) };
        if self.clients.len() >= self.config.max_connections {
            return answer(libc::EAGAIN);
        }
        let Ok(own) = ApplicationSocket::new(socket) else { return answer(libc::EAGAIN) };
        self.next = self.next.wrapping_add(1).max(1);
        let id = ConnectionId(self.next);
        // A server of the other family cannot be told such an address.
        let nearest = || Endpoint::new(source_address_for(addr.unmapped()), client.port).in_family(addr.family()).unwrap_or(client);
        let local = client.unmapped().in_family(addr.family()).unwrap_or_else(nearest);
        let name = Name { role: Role::Client, id: id.0, local, peer: addr };
        let now = Instant::now();
        let (end, spilled) = self.new_end(id, &server, now);
        let pid = std::process::id();
        let about = About { id, local, dialled: addr, server: server.clone(), pid, descriptor: -1, reattach: None };
        let note = Note { other_end: server.armor, word: Wait::Accepted.word() };
        let mut port = match Port::begin(&self.journal, &about, note, end) {
            Ok(port) => port,
            Err(error) => {
                self.tell(Event::new("connect-refused").with("service", &server.service).with("reason", error), context);
                return answer(libc::EAGAIN);
            }
        };
        self.keeping.keep(&Keys::of(id).socket, own.descriptor().as_fd());
        port.attach(own);
        answer(0);
        let client = Client {
            port,
            name,
            server,
            dialled: addr,
            holder: None,
            waiting: Some(Waiting::Accepted),
            looked_up: false,
            state: State::Connecting,
            pid,
            descriptor: -1,
            spilled,
            reattach: None,
            life: 0,
        };
        self.clients.insert(id, client);
        self.turn(id, now, context);
    }

    /// Whether a connection has this very socket.
    fn has(&self, socket: &std::os::fd::OwnedFd) -> bool {
        let Ok(cookie) = sockopt::socket_cookie(socket) else { return false };
        let is_it = |own: &ApplicationSocket| own.is_tcp() && sockopt::socket_cookie(own.descriptor()).is_ok_and(|own| own == cookie);
        self.clients.values().any(|client| client.port.socket.as_ref().is_some_and(is_it))
    }

    /// A client without a shim that has closed its own direction may still reset the connection. No read tells of that any more.
    pub(super) fn watch_half_closed(&self, id: ConnectionId, context: &mut Context<'_>) {
        let Some(client) = self.clients.get(&id).filter(|client| client.port.read_done) else { return };
        let Some(socket) = client.port.socket.as_ref().filter(|socket| socket.is_tcp()) else { return };
        let Ok(copy) = socket.descriptor().try_clone() else { return };
        let handle = context.handle::<Self>();
        context.spawn(async move {
            tcp::failed(copy).await;
            handle.call(|element, context| {
                let failed = |port: &&mut Port<_>| port.socket.as_ref().is_some_and(|socket| tcp::has_failed(socket.descriptor()));
                if element.port(id).filter(failed).is_some() {
                    element.with(id, context, |port, now| port.end.app_reset(now));
                }
            });
        });
    }
}
