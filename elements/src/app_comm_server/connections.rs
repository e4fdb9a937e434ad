//! The server's ends of connections: what clients ask of them, and what the server's application does to their sockets.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::connection::{ConnectDecision, Event as EndEvent, ResetReason, ServerEnd};
use armor_proto::hookup::{Endpoint, Name, Role};
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use serde::Serialize;

use super::AppCommServer;
use super::failures::Look;
use super::health::Taken;
use super::restored::{About, socket_key};
use super::timelines::Step;
use crate::endpoints::{ConnectionOptions, Crowd, Ending, Note, Port, Proxy, Read, answer_late, connection_config, refuse};
use crate::operations::AppcommServerConnectRequest;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// For a process that listens.
    Waiting,
    Established,
    Finished,
    Reset,
}

/// One server's end.
pub(super) struct Server {
    pub(super) port: Port<ServerEnd>,
    /// Name of the service, which this outlives when the server closes its listener.
    pub(super) service: Rc<str>,
    /// Somebody starts the server again when it fails.
    pub(super) supervised: bool,
    /// The life of the application that holds the socket, or held it last.
    pub(super) process: Option<Incarnation>,
    pub(super) address: Endpoint,
    /// It is in the queue of its service.
    pub(super) queued: bool,
    pub(super) name: Name,
    /// Options set on this connection alone: they do not change the listener's.
    pub(super) options: ConnectionOptions,
    pub(super) state: State,
    /// End of file without announcement was seen: what the fate timer waits for.
    pub(super) limbo: Option<Ending>,
    /// A close that was announced while bytes before it had no room.
    announced: Option<Announced>,
    /// Life of this end's socket, so that a late task of an earlier socket is told apart.
    pub(super) life: u32,
    /// What is known of what the application has taken.
    pub(super) taken: Taken,
}

/// How a connection comes to lose its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It has died, or is replaced: the next one goes on.
    Failed,
    /// It has ended as it wanted, and with it the connection.
    Ended,
}

/// What the shim has said of the end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announced {
    /// Closed, or its sending side shut down.
    Closed,
    /// Closed so that the peer sees a reset.
    Aborted,
}

impl Server {
    pub(super) fn new(about: &About, port: Port<ServerEnd>, state: State) -> Server {
        Server {
            port,
            service: about.service.as_str().into(),
            supervised: about.supervised,
            address: about.address,
            queued: false,
            name: about.name(),
            options: ConnectionOptions::default(),
            process: None,
            state,
            limbo: None,
            announced: None,
            life: 0,
            taken: Taken::default(),
        }
    }

    /// The stream from the application has ended as it had announced.
    fn end_announced(&mut self, ending: Ending, announced: Announced, now: Instant) {
        self.limbo = None;
        self.announced = None;
        self.port.read_done = true;
        match (ending, announced) {
            (Ending::Half, _) => return self.port.end.app_eof(now),
            (Ending::Gone, Announced::Closed) => self.port.end.app_closed(now),
            (Ending::Gone, Announced::Aborted) | (Ending::Reset, _) => self.port.end.app_reset(now),
        }
        self.life += 1;
    }

    /// The process is gone, or another one serves in its place: what it had still said is read first.
    ///
    /// Why for every policy: where the stream goes on at the present (`reconnect`, or replay that was given up), nobody says
    /// these bytes again, and the client would miss them. Where it is replayed (`request`, `stream`) the next process says them
    /// again; then the end drops them as far as the client has not been given them, and they only cost the reading. And a process
    /// that had closed its connection before it died has ended it in order, under every policy, if its bytes are all read.
    pub(super) fn lose_process(&mut self, how: Loss, now: Instant) {
        if self.port.socket.is_some() {
            let cut = self.port.drain_dead(now).cut;
            match (self.announced.take(), how) {
                (Some(Announced::Aborted), _) => self.port.end.app_reset(now),
                (Some(Announced::Closed), _) | (None, Loss::Ended) if cut => self.port.end.app_reset(now),
                (Some(Announced::Closed), _) | (None, Loss::Ended) => self.port.end.app_closed(now),
                (None, Loss::Failed) => self.port.end.server_lost(now),
            }
        }
        if self.lacks_process() {
            self.state = State::Waiting;
        }
        self.limbo = None;
        self.life += 1;
    }

    /// It has no process and needs one: what its server has said is not all.
    pub(super) fn lacks_process(&self) -> bool {
        self.port.end.awaits_process() || self.port.end.needs_replay()
    }

    pub(super) fn status(&self, id: ConnectionId, incarnation: Incarnation) -> serde_json::Value {
        serde_json::json!({
            "id": id.to_string(), "service": &*self.service, "address": SocketAddr::from(self.name.local).to_string(),
            "peer": SocketAddr::from(self.name.peer).to_string(), "state": self.state,
            "sent": self.port.read_bytes, "received": self.port.written_bytes, "incarnation": incarnation.0,
        })
    }
}

impl AppCommServer {
    /// Connections of which something is true.
    pub(super) fn connections_where(&self, which: impl Fn(&Server) -> bool) -> Vec<ConnectionId> {
        self.servers.iter().filter(|(_, server)| which(server)).map(|(&id, _)| id).collect()
    }

    pub(super) fn connect_request(&mut self, asked: &AppcommServerConnectRequest, context: &mut Context<'_>) {
        let id = asked.request.connection;
        let address = asked.address.unmapped();
        if self.over.of(id).is_some_and(|last| asked.request.incarnation <= *last) {
            return answer_late(asked, context);
        }
        let Some(service) = self.services.get(&address) else { return refuse(asked, libc::ECONNREFUSED, context) };
        if !self.servers.contains_key(&id) {
            if self.servers.len() >= self.config.max_connections {
                let told = Event::new("connect-refused").with("service", &service.name).with("reason", "max_connections");
                self.tell(told, context);
                return refuse(asked, libc::ECONNREFUSED, context);
            }
            if !self.is_ready(service) && !self.is_coming(service) {
                return refuse(asked, libc::ECONNREFUSED, context);
            }
        }
        let now = Instant::now();
        let local = if service.address.ip.is_unspecified() { asked.dialled } else { service.address };
        let family = service.address.family();
        let in_family = |endpoint: Endpoint| endpoint.in_family(family).unwrap_or(endpoint);
        let name = Name { role: Role::Server, id: id.0, local: in_family(local), peer: in_family(asked.client_address) };
        if !self.servers.contains_key(&id) {
            let (deadline_ms, on_divergence) = (service.deadline_ms, service.on_divergence);
            let config = connection_config(self.config.window_bytes, 0, deadline_ms, on_divergence);
            let (service, supervised) = (service.name.clone(), service.supervised);
            let about = About { id, service, supervised, address, local: name.local, peer: name.peer, deadline_ms, on_divergence };
            let note = Note { other_end: asked.client, word: 0 };
            self.next = self.next.wrapping_add(1);
            let end = ServerEnd::new(id, config, now).identified_by(self.next);
            match Port::begin(&self.journal, &about, note, end) {
                Ok(port) => {
                    self.servers.insert(id, Server::new(&about, port, State::Waiting));
                }
                Err(error) => {
                    self.tell(Event::new("connect-refused").with("service", &about.service).with("reason", error), context);
                    return refuse(asked, libc::ECONNREFUSED, context);
                }
            }
        }
        let Some(server) = self.servers.get_mut(&id) else { return };
        server.port.note.other_end = asked.client;
        if server.port.end.replaces_process(&asked.request) {
            server.lose_process(Loss::Failed, now);
            self.keeping.forget(&socket_key(id));
        }
        let needs_process = matches!(server.port.end.handle_connect_request(&asked.request, now), Ok(ConnectDecision::Attach));
        if needs_process {
            // What is left of an application that had closed this connection.
            server.port.detach();
            self.keeping.forget(&socket_key(id));
            server.life += 1;
            server.state = State::Waiting;
        }
        self.turn(id, now, context);
        if needs_process {
            self.wait_for_process(id, address, context);
        }
    }

    /// Reads what the application says from now on.
    pub(super) fn watch(&self, id: ConnectionId, context: &mut Context<'_>) {
        let Some(server) = self.servers.get(&id) else { return };
        let Some(socket) = &server.port.socket else { return };
        let (watch, life, handle) = (socket.watch(), server.life, context.handle::<Self>());
        context.spawn(watch.readable(move || handle.call(|element, context| element.readable(id, life, context))));
    }

    pub(super) fn readable(&mut self, id: ConnectionId, life: u32, context: &mut Context<'_>) -> Read {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.life == life) else { return Read::Finished };
        let (read, ending) = server.port.read(now);
        match (ending, server.announced) {
            (Some(Ending::Half), _) => {
                server.port.read_done = true;
                server.port.end.app_eof(now);
            }
            (Some(ending), Some(announced)) => server.end_announced(ending, announced, now),
            // Closed or died: the announcement or the process's fate decides.
            (Some(ending), None) => {
                server.limbo = Some(ending);
                server.port.end.app_broke(now);
                self.await_fate(id, life, Look::First, context);
            }
            (None, _) => {}
        }
        self.turn(id, now, context);
        read
    }

    /// The shim says that the application has closed its copy, or its sending side; counts if the kernel says so too.
    pub(super) fn announced(&mut self, id: ConnectionId, announced: Announced, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id) else { return };
        let (read, ending) = match server.limbo {
            Some(ending) => (Read::Finished, Some(ending)),
            None => server.port.read_all(now),
        };
        if read == Read::Paused {
            // The end of the stream lies behind bytes for which there is no room yet.
            server.announced = Some(announced);
        }
        if let Some(ending) = ending {
            server.end_announced(ending, announced, now);
        }
        self.turn(id, now, context);
    }
}

impl Proxy for AppCommServer {
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

    fn was_reset(&mut self, id: ConnectionId, reason: ResetReason, _: &mut Context<'_>) {
        self.resets.remember(id, reason);
        // The application sees the reset when the last copy of this end is closed.
        self.keeping.forget(&socket_key(id));
        if let Some(server) = self.servers.get_mut(&id) {
            server.life += 1;
        }
    }

    fn report(&mut self, id: ConnectionId, event: EndEvent, context: &mut Context<'_>) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let service = Rc::clone(&server.service);
        let told = |what: &str| Event::new(what).with("connection", id).with("service", &service);
        match event {
            EndEvent::Diverged(how) => {
                self.timelines.reached(&service, Step::Flowing);
                self.tell(told("connection-diverged").with("how", format!("{how:?}")), context);
            }
            EndEvent::Recovered { regenerated } => {
                self.timelines.reached(&service, Step::Flowing);
                self.tell(told("stream-flows").with("regenerated_bytes", regenerated), context);
            }
            EndEvent::Reconnected { .. } => self.timelines.reached(&service, Step::Reconnected),
            EndEvent::Replayed => self.timelines.reached(&service, Step::Replayed),
            EndEvent::Finished => server.state = State::Finished,
            EndEvent::Reset(reason) => {
                server.state = State::Reset;
                self.tell(told("connection-reset").with("reason", format!("{reason:?}")), context);
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
            // These are said by a client's end.
            EndEvent::Established { .. }
            | EndEvent::Refused { .. }
            | EndEvent::Reconnecting { .. }
            | EndEvent::SpillFailed(_)
            | EndEvent::LogOverflow { .. }
            | EndEvent::ReplayGivenUp
            | EndEvent::ReplayRegained
            | EndEvent::ClientLost
            | EndEvent::Reattached { .. }
            | EndEvent::SaidAgain { .. }
            | EndEvent::NotReattached
            | EndEvent::TranscriptLost(_)
            | EndEvent::Archived
            | EndEvent::MarkRefused(_) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::super::bench::{Bench, Client, Served, read, write};
    use super::*;
    use crate::operations::{LinkChanged, Policy};
    use armor_proto::connection::{AppAction, Record};
    use std::os::fd::OwnedFd;

    /// A server that nobody supervises, and a client that has asked it something.
    fn asked(policy: Policy) -> (Bench, Served, Client, OwnedFd) {
        let mut bench = Bench::new();
        let served = bench.serve("web");
        let mut client = bench.client(&served, policy);
        let Some(socket) = served.accept() else { panic!("the client is connected") };
        client.says(b"question");
        bench.exchange(&mut client);
        assert_eq!(read(&socket), b"question");
        (bench, served, client, socket)
    }

    /// Another process binds the address of a server whose death nobody has noticed yet.
    fn another_process(bench: &mut Bench, served: Served, client: &Client) -> Served {
        let port = served.address.port;
        drop(served);
        let served = bench.bind("web", port, &[client.id()]);
        bench.listen(&served);
        served
    }

    #[tokio::test]
    async fn a_connect_request_that_comes_late_makes_no_ghost() {
        let (mut bench, served, mut client, socket) = asked(Policy::Request);
        write(&socket, b"answer");
        drop(socket);
        bench.announce_close(&client);
        bench.exchange(&mut client);
        client.end.app_closed(Instant::now());
        bench.exchange(&mut client);
        assert_eq!((&client.heard[..], bench.state(&client)), (&b"answer"[..], None));
        let late = client.requests[0].clone();
        bench.request(&late);
        assert!(bench.state(&client).is_none() && served.accept().is_none(), "a ghost");
        // One that knows more than this end did is no duplicate.
        let mut higher = late;
        higher.request.incarnation = Incarnation(9);
        bench.request(&higher);
        assert!(bench.state(&client).is_some() && served.accept().is_some());
    }

    #[tokio::test]
    async fn a_client_that_has_not_heard_of_the_end_of_its_connection_hears_it_when_it_asks_again() {
        let (mut bench, served, mut client, _socket) = asked(Policy::Request);
        let port = served.address.port;
        drop(served);
        let served = bench.bind("web", port, &[client.id()]);
        client.replay(2);
        bench.exchange(&mut client);
        bench.call(|element, context| {
            element.give_up(client.id(), ResetReason::RestartLimit, context);
            element.with(client.id(), context, |port, _| port.end.vanish());
        });
        bench.lose_records();
        assert_eq!((bench.state(&client), &client.actions[..]), (None, &[][..]));
        bench.listen(&served);
        let again = client.requests[1].clone();
        bench.request(&again);
        bench.exchange(&mut client);
        assert_eq!(client.actions, [AppAction::Reset(ResetReason::ServerGone)]);
        assert!(served.accept().is_none());
    }

    #[tokio::test]
    async fn with_reconnect_the_last_words_of_a_process_that_is_replaced_reach_the_client() {
        let (mut bench, served, mut client, old) = asked(Policy::Reconnect);
        write(&old, b"last words, ");
        let served = another_process(&mut bench, served, &client);
        client.replay(2);
        bench.exchange(&mut client);
        let Some(new) = served.accept() else { panic!("connected to the new process") };
        write(&new, b"first words");
        bench.readable(&client);
        bench.exchange(&mut client);
        assert_eq!(client.heard, b"last words, first words");
    }

    #[tokio::test]
    async fn with_replay_the_new_process_says_it_again_and_the_client_hears_it_once() {
        for policy in [Policy::Request, Policy::Stream] {
            let (mut bench, served, mut client, old) = asked(policy);
            write(&old, b"one ");
            bench.readable(&client);
            bench.exchange(&mut client);
            write(&old, b"two ");
            let served = another_process(&mut bench, served, &client);
            client.replay(2);
            bench.exchange(&mut client);
            let Some(new) = served.accept() else { panic!("connected to the new process") };
            assert_eq!(read(&new), b"question");
            write(&new, b"one two three");
            bench.readable(&client);
            bench.exchange(&mut client);
            assert_eq!(client.heard, b"one two three", "{policy:?}");
        }
    }

    #[tokio::test]
    async fn a_close_that_was_announced_counts_although_the_process_is_replaced_before_its_bytes_had_room() {
        for policy in [Policy::Reconnect, Policy::Request, Policy::Stream] {
            let (mut bench, served, mut client, old) = asked(policy);
            let window = bench.fill_window(&client, &old);
            write(&old, b"the end");
            drop(old);
            bench.announce_close(&client);
            let served = another_process(&mut bench, served, &client);
            client.replay(2);
            bench.exchange(&mut client);
            assert_eq!((client.heard.len(), client.heard.ends_with(b"the end")), (window + 7, true), "{policy:?}");
            assert_eq!(client.actions, [AppAction::ShutdownWrite], "{policy:?}");
            assert!(served.accept().is_none(), "{policy:?}: nobody has to say anything again");
        }
    }

    #[tokio::test]
    async fn a_listener_is_not_dialled_for_a_client_that_has_not_asked_again_yet() {
        let (mut bench, served, mut client, _old) = asked(Policy::Request);
        bench.call(|element, context| {
            if let Some(server) = element.servers.get_mut(&client.id()) {
                server.lose_process(Loss::Failed, Instant::now());
            }
            element.turn(client.id(), Instant::now(), context);
        });
        let served = another_process(&mut bench, served, &client);
        assert!(served.accept().is_none(), "a ghost");
        client.replay(2);
        bench.exchange(&mut client);
        assert!(served.accept().is_some());
    }

    #[tokio::test]
    async fn what_was_lost_with_a_link_comes_again_when_a_link_is_up_and_ends_that_miss_nothing_are_silent() {
        let mut bench = Bench::new();
        let served = bench.serve("web");
        let mut client = bench.client(&served, Policy::Request);
        let mut idle = bench.client(&served, Policy::Request);
        let sockets = [served.accept().unwrap(), served.accept().unwrap()];
        rustix::io::write(&sockets[0], b"an answer").unwrap();
        bench.readable(&client);
        bench.lose_records();
        bench.exchange(&mut client);
        assert_eq!(client.heard, b"", "nothing has run out yet");
        bench.call(|element, context| element.link_changed(&LinkChanged { peer: ArmorId(7) }, context));
        assert!(bench.records.iter().all(|(record, _)| matches!(record, Record::Data(data) if data.connection == client.id())));
        bench.exchange(&mut client);
        bench.exchange(&mut idle);
        assert_eq!(client.heard, b"an answer");
    }
}
