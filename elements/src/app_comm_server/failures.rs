//! What becomes of connections when a server's process fails or ends (thesis §4.5.1).
//!
//! Invariant: end of file is never taken for a close unless the close was announced or the process's fate says so.

use std::rc::Rc;
use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::connection::ResetReason;
use armor_proto::ids::ConnectionId;

use super::connections::{Loss, Server};
use super::readiness::Readiness;
use super::timelines::Step;
use super::{AppCommServer, Application};
use crate::endpoints::{Ending, Proxy};
use crate::operations::{AppFailed, AppStarted};

impl AppCommServer {
    pub(super) fn application_started(&mut self, started: &AppStarted, _: &mut Context<'_>) {
        let (spec, incarnation) = (Rc::new(started.spec.clone()), started.incarnation);
        self.timelines.reached(&spec.name, Step::Restarted);
        let (name, readiness) = (spec.name.clone(), Readiness::of(&spec));
        self.applications.insert(name, Application { spec, incarnation, alive: true, readiness });
    }

    pub(super) fn application_failed(&mut self, failed: &AppFailed, context: &mut Context<'_>) {
        if let Some(application) = self.applications.get_mut(&failed.name) {
            application.alive = false;
        }
        // What was bound and did not listen was a client's.
        self.services.retain(|_, service| service.name != failed.name || service.registered);
        let addresses = self.addresses_of(&failed.name);
        // By name: a server may have closed its listener and still serve those that it has.
        let connections = self.connections_where(|server| server.supervised && *server.service == *failed.name);
        if failed.restarting && !(addresses.is_empty() && connections.is_empty()) {
            self.timelines.begin(&failed.name, failed.incarnation.0 + 1, failed.failed_at_ms);
        }
        for address in &addresses {
            if let Some(service) = self.services.get_mut(address) {
                service.listeners.clear();
                service.recovering = failed.restarting;
            }
        }
        let now = Instant::now();
        for id in connections {
            self.lost(id, if failed.orderly && !failed.restarting { Loss::Ended } else { Loss::Failed }, now, context);
            if !failed.restarting && self.servers.get(&id).is_some_and(Server::lacks_process) {
                let reason = if failed.orderly { ResetReason::ServerGone } else { ResetReason::RestartLimit };
                self.give_up(id, reason, context);
            }
        }
        if !failed.restarting {
            addresses.into_iter().for_each(|address| self.unregister(address, context));
            self.applications.remove(&failed.name);
        }
    }

    /// The process behind a connection is gone.
    fn lost(&mut self, id: ConnectionId, how: Loss, now: Instant, context: &mut Context<'_>) {
        if let Some(server) = self.servers.get_mut(&id) {
            server.lose_process(how, now);
            self.turn(id, now, context);
        }
    }

    pub(super) fn give_up(&mut self, id: ConnectionId, reason: ResetReason, context: &mut Context<'_>) {
        self.with(id, context, |port, now| port.end.abort(reason, now));
    }

    /// A stream ended without a word, and the time for one is over.
    pub(super) fn fate(&mut self, id: ConnectionId, life: u32, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.life == life) else { return };
        let Some(ending) = server.limbo.take() else { return };
        let service = Rc::clone(&server.service);
        match self.applications.get(&*service).filter(|_| server.supervised) {
            // Nobody will start it again: end as TCP would.
            None => {
                server.port.read_done = true;
                match ending {
                    Ending::Reset => server.port.end.app_reset(now),
                    Ending::Gone | Ending::Half => server.port.end.app_closed(now),
                }
                self.turn(id, now, context);
            }
            // The service lives, the process that held this connection does not: another one takes it over. Where the server
            // has closed its listener there is none; then it waits, within its deadline, for what becomes of the service.
            Some(application) if application.alive => {
                context.event(Event::new("worker-failed").with("service", &service).with("connection", id));
                let address = server.address;
                self.lost(id, Loss::Failed, now, context);
                if self.services.contains_key(&address) {
                    self.with(id, context, |port, now| port.end.ask_replay(now));
                }
            }
            // It is being started again.
            Some(_) => self.lost(id, Loss::Failed, now, context),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::super::bench::{Bench, Client, Served, application, read, write};
    use super::*;
    use crate::endpoints::Read;
    use crate::operations::{ApplicationSpec, Policy};
    use armor_proto::connection::AppAction;
    use serde_json::json;

    fn web() -> ApplicationSpec {
        application("web", json!({ "policy": "stream" }))
    }

    /// A supervised server that has answered its client's question in part.
    fn answered() -> (Bench, Served, Client, OwnedFd) {
        let mut bench = Bench::new();
        bench.started(&web(), 1);
        let served = bench.serve("web");
        let mut client = bench.client(&served, Policy::Stream);
        let socket = served.accept().unwrap();
        client.says(b"question");
        bench.exchange(&mut client);
        assert_eq!(read(&socket), b"question");
        write(&socket, b"one ");
        bench.readable(&client);
        bench.exchange(&mut client);
        (bench, served, client, socket)
    }

    /// The process that holds a connection dies: the end of its stream is seen, and nobody has said a word.
    fn dies(bench: &mut Bench, client: &Client, socket: OwnedFd) {
        drop(socket);
        assert_eq!(bench.readable(client), Some(Read::Finished));
    }

    /// The next life binds, listens, is asked and answers in full. APP_SERVER_DB knows of no client.
    fn comes_back(bench: &mut Bench, port: u16, client: &mut Client) -> OwnedFd {
        bench.started(&web(), 2);
        let served = bench.bind("web", port, &[]);
        bench.listen(&served);
        bench.exchange(client);
        let socket = served.accept().unwrap();
        bench.exchange(client);
        assert_eq!(read(&socket), b"question");
        write(&socket, b"one two");
        bench.readable(client);
        bench.exchange(client);
        socket
    }

    #[tokio::test]
    async fn a_dead_worker_s_connection_goes_to_another_one() {
        let (mut bench, served, mut client, socket) = answered();
        dies(&mut bench, &client, socket);
        bench.fate(&client);
        assert_eq!(bench.told("worker-failed").len(), 1);
        bench.exchange(&mut client);
        let other = served.accept().unwrap();
        bench.exchange(&mut client);
        assert_eq!(read(&other), b"question");
    }

    #[tokio::test]
    async fn a_connection_in_limbo_is_recovered_when_its_service_turns_out_to_have_failed() {
        let (mut bench, served, mut client, socket) = answered();
        dies(&mut bench, &client, socket);
        let port = served.address.port;
        drop(served);
        bench.failed(&web(), 1, true);
        bench.fate(&client);
        assert_eq!(bench.state(&client).as_deref(), Some("waiting"));
        assert!(bench.told("worker-failed").is_empty());
        let _socket = comes_back(&mut bench, port, &mut client);
        assert_eq!(client.heard, b"one two");
    }

    #[tokio::test]
    async fn a_connection_in_limbo_is_reset_when_its_service_is_given_up() {
        let (mut bench, _served, mut client, socket) = answered();
        dies(&mut bench, &client, socket);
        bench.failed(&web(), 1, false);
        bench.exchange(&mut client);
        assert_eq!(client.actions, [AppAction::Reset(ResetReason::RestartLimit)]);
        assert_eq!(bench.state(&client), None, "nothing is left of it");
    }

    #[tokio::test]
    async fn a_connection_that_waits_is_reset_when_its_service_is_given_up() {
        let (mut bench, _served, mut client, socket) = answered();
        dies(&mut bench, &client, socket);
        bench.failed(&web(), 1, true);
        bench.failed(&web(), 1, false);
        bench.exchange(&mut client);
        assert_eq!(client.actions, [AppAction::Reset(ResetReason::RestartLimit)]);
    }

    #[tokio::test]
    async fn a_connection_in_limbo_is_closed_when_its_application_ends_in_order() {
        let (mut bench, _served, mut client, socket) = answered();
        dies(&mut bench, &client, socket);
        bench.ended(&web(), 1, "exit status: 0", false);
        bench.exchange(&mut client);
        assert_eq!((&client.heard[..], &client.actions[..]), (&b"one "[..], &[AppAction::ShutdownWrite][..]));
    }

    #[tokio::test]
    async fn what_a_server_had_said_in_full_is_delivered_although_its_service_is_given_up() {
        let (mut bench, _served, mut client, socket) = answered();
        write(&socket, b"two");
        drop(socket);
        bench.announce_close(&client);
        bench.failed(&web(), 1, false);
        bench.exchange(&mut client);
        assert_eq!((&client.heard[..], &client.actions[..]), (&b"one two"[..], &[AppAction::ShutdownWrite][..]));
    }

    #[tokio::test]
    async fn a_server_that_had_closed_its_listener_is_recovered_with_those_whom_it_served() {
        for time_is_over in [false, true] {
            let (mut bench, served, mut client, socket) = answered();
            let port = served.address.port;
            bench.close(served);
            assert_eq!(bench.state(&client).as_deref(), Some("established"), "it goes on serving whom it has");
            dies(&mut bench, &client, socket);
            if time_is_over {
                // A busy machine: the end of the stream is known long before the end of the process.
                bench.fate(&client);
            }
            bench.failed(&web(), 1, true);
            let _socket = comes_back(&mut bench, port, &mut client);
            assert_eq!((&client.heard[..], &client.actions[..]), (&b"one two"[..], &[][..]));
            assert_eq!(bench.told("stream-flows").len(), 1);
        }
    }

    #[tokio::test]
    async fn a_server_that_had_closed_its_listener_and_is_given_up_resets_those_whom_it_served() {
        let (mut bench, served, mut client, _socket) = answered();
        bench.close(served);
        bench.failed(&web(), 1, false);
        bench.exchange(&mut client);
        assert_eq!(client.actions, [AppAction::Reset(ResetReason::RestartLimit)]);
    }

    #[tokio::test]
    async fn a_connection_without_a_process_and_without_a_listener_ends_by_its_deadline() {
        let mut bench = Bench::new();
        bench.started(&application("web", json!({ "deadline_ms": 50 })), 1);
        let served = bench.serve("web");
        let mut client = bench.client(&served, Policy::Stream);
        let socket = served.accept().unwrap();
        bench.close(served);
        dies(&mut bench, &client, socket);
        bench.fate(&client);
        let give_up = Instant::now() + std::time::Duration::from_secs(10);
        while client.actions.is_empty() && Instant::now() < give_up {
            bench.call(|element, context| element.time_is_up(client.id(), context));
            bench.exchange(&mut client);
        }
        assert_eq!(client.actions, [AppAction::Reset(ResetReason::Deadline)]);
    }

    #[tokio::test]
    async fn a_client_that_the_server_table_does_not_know_is_asked_by_its_server_s_end() {
        let (mut bench, served, mut client, socket) = answered();
        let port = served.address.port;
        drop((served, socket));
        bench.failed(&web(), 1, true);
        let _socket = comes_back(&mut bench, port, &mut client);
        assert_eq!(client.heard, b"one two");
    }

    #[tokio::test]
    async fn a_process_that_dies_after_a_half_close_is_noticed_by_what_the_client_says() {
        let (mut bench, _served, mut client, socket) = answered();
        rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).unwrap();
        bench.readable(&client);
        bench.exchange(&mut client);
        assert_eq!(client.actions, [AppAction::ShutdownWrite]);
        drop(socket);
        client.says(b"more");
        bench.exchange(&mut client);
        assert_eq!(client.actions, [AppAction::ShutdownWrite, AppAction::Reset(ResetReason::Closed)]);
    }

    #[tokio::test]
    async fn a_listener_that_died_without_a_word_is_passed_over() {
        let mut bench = Bench::new();
        bench.started(&web(), 1);
        let first = bench.serve("web");
        let second = bench.bind_again("web", &first);
        bench.listen(&second);
        drop(first);
        let clients: Vec<Client> = (0..4).map(|_| bench.client(&second, Policy::Stream)).collect();
        bench.call(|element, context| element.dial_waiting(second.address, context));
        assert!(clients.iter().all(|client| bench.state(client).as_deref() == Some("established")));
        assert_eq!(std::iter::from_fn(|| second.accept()).count(), 4);
    }
}
