//! How ends of connections come to a process: they queue at their service, and are connected to its listeners when it is ready.
//!
//! Invariant: one connection that cannot be connected does not keep the others of its service waiting.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_proto::connection::ResetReason;
use armor_proto::hookup::Endpoint;
use armor_proto::ids::ConnectionId;

use super::AppCommServer;
use super::connections::State;
use super::restored::socket_key;
use crate::endpoints::{AT_ONCE, ApplicationSocket, Proxy, dial};

/// Pause before a service is dialled again that had no room, or whose connection could not be made.
const DIAL_AGAIN: Duration = Duration::from_millis(5);

/// How an attempt to connect an end to its server went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialled {
    /// It is connected, or need not be any more.
    Over,
    /// It has to wait, and the others too: the listener's queue is full, or there is no listener.
    NoRoom,
    /// It has to wait, but others may be connected.
    NotNow,
}

impl AppCommServer {
    /// Queues a connection whose client has asked for a process, and connects it if there is one.
    pub(super) fn wait_for_process(&mut self, id: ConnectionId, address: Endpoint, context: &mut Context<'_>) {
        let (Some(server), Some(service)) = (self.servers.get_mut(&id), self.services.get_mut(&address)) else { return };
        if !server.queued {
            server.queued = true;
            service.waiting.push_back(id);
        }
        self.dial_waiting(address, context);
    }

    /// Connects who waits for a service, in the order in which they came, as long as it is ready and has room.
    pub(super) fn dial_waiting(&mut self, address: Endpoint, context: &mut Context<'_>) {
        let mut left = self.services.get(&address).map_or(0, |service| service.waiting.len());
        let mut pause = None;
        for _ in 0..left.min(AT_ONCE) {
            let Some(service) = self.services.get_mut(&address) else { return };
            let Some(id) = service.waiting.pop_front() else { return };
            let dialled = self.dial(id, address, context);
            let (server, service) = (self.servers.get_mut(&id), self.services.get_mut(&address));
            match (dialled, server, service) {
                (Dialled::NoRoom, Some(_), Some(service)) => {
                    service.waiting.push_front(id);
                    pause = Some(DIAL_AGAIN);
                    break;
                }
                (Dialled::NotNow, Some(_), Some(service)) => {
                    service.waiting.push_back(id);
                    pause = Some(DIAL_AGAIN);
                }
                (_, Some(server), _) => server.queued = false,
                (_, None, _) => {}
            }
            left -= 1;
        }
        let ready = self.services.get(&address).is_some_and(|service| self.is_ready(service));
        if ready && (left > 0 || pause.is_some()) {
            self.dial_again(address, pause, context);
        }
    }

    /// The queue of a service is looked at again: after a pause, or when others have had a turn.
    fn dial_again(&mut self, address: Endpoint, pause: Option<Duration>, context: &mut Context<'_>) {
        let Some(service) = self.services.get_mut(&address).filter(|service| !service.dials_again) else { return };
        service.dials_again = true;
        let handle = context.handle::<Self>();
        context.spawn(async move {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => tokio::task::yield_now().await,
            }
            handle.call(|element, context| {
                if let Some(service) = element.services.get_mut(&address) {
                    service.dials_again = false;
                }
                element.dial_waiting(address, context);
            });
        });
    }

    /// Connects a connection's end to one of the server's listeners.
    fn dial(&mut self, id: ConnectionId, address: Endpoint, context: &mut Context<'_>) -> Dialled {
        let ready = self.services.get(&address).is_some_and(|service| self.is_ready(service));
        let (Some(server), Some(service)) = (self.servers.get_mut(&id), self.services.get_mut(&address)) else { return Dialled::Over };
        if !server.port.end.awaits_process() {
            return Dialled::Over;
        }
        let Some(listener) = service.next_listener().filter(|_| ready) else { return Dialled::NoRoom };
        let socket = match dial(&server.name, &listener).and_then(ApplicationSocket::new) {
            Ok(socket) => socket,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Dialled::NoRoom,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                // Nobody has this listener any more. The others are tried; without any the next one is waited for.
                service.refused(&listener, &self.keeping);
                if !service.is_listening() && !service.supervised {
                    self.give_up(id, ResetReason::ServerGone, context);
                    return Dialled::Over;
                }
                service.recovering |= !service.is_listening();
                return Dialled::NoRoom;
            }
            // The dead process's socket is just being taken down, or descriptors are short.
            Err(error) => {
                tracing::debug!(%id, %error, "a connection is tried again");
                return Dialled::NotNow;
            }
        };
        let now = Instant::now();
        server.process = self.applications.get(&*server.service).map(|application| application.incarnation);
        server.port.note.word = server.process.map_or(0, |process| process.0);
        self.keeping.keep(&socket_key(id), socket.descriptor().as_fd());
        if server.port.end.attached(service.incarnation, now).is_err() {
            return Dialled::Over;
        }
        server.port.attach(socket);
        server.state = State::Established;
        server.life += 1;
        self.watch(id, context);
        self.turn(id, now, context);
        Dialled::Over
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::bench::{Bench, Client, application};
    use super::super::readiness::Readiness;
    use crate::operations::Policy;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    use serde_json::json;

    #[tokio::test]
    async fn a_connection_that_cannot_be_made_now_keeps_no_other_waiting() {
        let mut bench = Bench::new();
        bench.started(&application("web", json!({ "ready": { "expect": "x" } })), 1);
        let served = bench.serve("web");
        let clients: Vec<Client> = (0..3).map(|_| bench.client(&served, Policy::Request)).collect();
        let states = |bench: &Bench| clients.iter().filter_map(|client| bench.state(client)).collect::<Vec<_>>();
        assert_eq!(states(&bench), ["waiting", "waiting", "waiting"]);
        // The name of the first one is taken, as by a socket of its own that is just being closed.
        let name = bench.element.servers[&clients[0].id()].name;
        let taken = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&taken, &SocketAddrUnix::new_abstract_name(&name.to_bytes()).unwrap()).unwrap();
        bench.element.applications.get_mut("web").unwrap().readiness = Readiness::Ready;
        bench.call(|element, context| element.dial_waiting(served.address, context));
        assert_eq!(states(&bench), ["waiting", "established", "established"]);
        drop(taken);
        bench.call(|element, context| element.dial_waiting(served.address, context));
        assert_eq!(states(&bench), ["established", "established", "established"]);
    }

    #[tokio::test]
    async fn who_finds_the_listener_full_waits_his_turn() {
        let mut bench = Bench::new();
        bench.started(&application("web", json!({})), 1);
        let served = bench.bind("web", 0, &[]);
        bench.listen_with(&served, 0);
        let clients: Vec<Client> = (0..5).map(|_| bench.client(&served, Policy::Request)).collect();
        let established =
            |bench: &Bench| clients.iter().map(|client| bench.state(client).as_deref() == Some("established")).collect::<Vec<_>>();
        let first = established(&bench).iter().take_while(|established| **established).count();
        assert!((1..5).contains(&first), "a queue of one or two");
        let mut accepted = 0;
        while accepted < 5 {
            accepted += std::iter::from_fn(|| served.accept()).count();
            bench.call(|element, context| element.dial_waiting(served.address, context));
        }
        assert_eq!(established(&bench), [true; 5]);
    }
}
