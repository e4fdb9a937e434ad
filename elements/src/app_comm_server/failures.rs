//! What becomes of connections when a server's process fails or ends (thesis §4.5.1).
//!
//! Invariant: end of file is never taken for a close unless the close was announced or the process's fate says so.

use std::rc::Rc;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::{Event, now_ms};
use armor_proto::connection::ResetReason;
use armor_proto::ids::ConnectionId;

use super::connections::{Loss, Server};
use super::health::Condition;
use super::readiness::Readiness;
use super::restored::socket_key;
use super::timelines::Step;
use super::{AppCommServer, Application};
use crate::endpoints::{AT_ONCE, Ending, Proxy, is_exiting};
use crate::operations::{AppFailed, AppIsOver, AppStarted};

/// How many times longer than for a word a connection waits for the end of a process that is dying.
const DYING: u32 = 20;

/// Which look at a process whose connection has ended without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It may be on its way out: the kernel closes the sockets of a process first, one after the other.
    First,
    /// It has had the time for that.
    Last,
}

impl AppCommServer {
    pub(super) fn application_started(&mut self, started: &AppStarted, context: &mut Context<'_>) {
        context.state_changed();
        let (spec, incarnation) = (Rc::new(started.spec.clone()), started.incarnation);
        if let Some(known) = self.applications.get(&spec.name).filter(|known| known.alive && known.instance != 0) {
            if known.instance == started.instance {
                // Told again in a new life of the ARMOR.
                return self.release(started.instance, context);
            }
            // The ARMOR died before it was told of this.
            let failed = AppFailed {
                name: spec.name.clone(),
                pid: known.pid,
                incarnation: known.incarnation,
                how: "ended while its ARMOR was away".to_owned(),
                orderly: false,
                restarting: true,
                failed_at_ms: started.started_at_ms,
            };
            self.application_failed(&failed, context);
        }
        self.timelines.reached_at(&spec.name, Step::Restarted, started.started_at_ms);
        let (name, readiness, health) = (spec.name.clone(), Readiness::of(&spec), Condition::of(&spec));
        let (pid, instance) = (started.pid, started.instance);
        self.applications.insert(name, Application { spec, incarnation, pid, alive: true, readiness, health, instance, looked_at: false });
        self.release(instance, context);
    }

    pub(super) fn application_failed(&mut self, failed: &AppFailed, context: &mut Context<'_>) {
        context.state_changed();
        if let Some(application) = self.applications.get_mut(&failed.name) {
            application.alive = false;
        }
        // What was bound and did not listen was a client's.
        self.services.retain(|_, service| service.name != failed.name || service.registered);
        let addresses = self.addresses_of(&failed.name);
        // By name: a server may have closed its listener and still serve those that it has.
        let connections = self.connections_where(|server| server.supervised && *server.service == *failed.name);
        let connections: Vec<_> = connections.into_iter().filter_map(|id| Some((id, self.servers.get(&id)?.life))).collect();
        if failed.restarting && !(addresses.is_empty() && connections.is_empty()) {
            self.timelines.begin(&failed.name, failed.incarnation.0 + 1, failed.failed_at_ms);
        }
        for address in &addresses {
            if let Some(service) = self.services.get_mut(address) {
                service.forget_listeners(&self.keeping, |_| true);
                service.recovering = failed.restarting;
            }
        }
        let (how, given_up) = match (failed.restarting, failed.orderly) {
            (true, _) => (Loss::Failed, None),
            (false, true) => (Loss::Ended, Some(ResetReason::ServerGone)),
            (false, false) => (Loss::Failed, Some(ResetReason::RestartLimit)),
        };
        self.lose_some(connections, how, given_up, context);
        if !failed.restarting {
            addresses.into_iter().for_each(|address| self.unregister(address, context));
            self.applications.remove(&failed.name);
            self.rights.remove(&failed.name);
        }
    }

    /// It is said again by the next life of an ARMOR, for the case that this one had not heard it.
    pub(super) fn application_is_over(&mut self, over: &AppIsOver, context: &mut Context<'_>) {
        let Some(known) = self.applications.get(&over.name) else { return };
        let failed = AppFailed {
            name: over.name.clone(),
            pid: known.pid,
            incarnation: known.incarnation,
            how: "ended while its ARMOR was away".to_owned(),
            orderly: false,
            restarting: false,
            failed_at_ms: now_ms(),
        };
        self.application_failed(&failed, context);
    }

    /// The process behind connections is gone, in the lives that their sockets have. Those that need one are given up when none comes.
    /// Others have a turn before the rest.
    fn lose_some(&mut self, mut lost: Vec<(ConnectionId, u32)>, how: Loss, given_up: Option<ResetReason>, context: &mut Context<'_>) {
        let rest = lost.split_off(lost.len().min(AT_ONCE));
        let now = Instant::now();
        for (id, life) in lost {
            if self.servers.get(&id).is_some_and(|server| server.life == life) {
                self.lost(id, how, now, context);
            }
            if let Some(reason) = given_up
                && self.servers.get(&id).is_some_and(Server::lacks_process)
            {
                self.give_up(id, reason, context);
            }
        }
        if !rest.is_empty() {
            let handle = context.handle::<Self>();
            context.spawn(async move {
                tokio::task::yield_now().await;
                handle.call(|element, context| element.lose_some(rest, how, given_up, context));
            });
        }
    }

    /// The process behind a connection is gone.
    fn lost(&mut self, id: ConnectionId, how: Loss, now: Instant, context: &mut Context<'_>) {
        if let Some(server) = self.servers.get_mut(&id) {
            server.lose_process(how, now);
            // The next process is connected under the same name, which must be free then.
            self.keeping.forget(&socket_key(id));
            self.turn(id, now, context);
        }
    }

    pub(super) fn give_up(&mut self, id: ConnectionId, reason: ResetReason, context: &mut Context<'_>) {
        self.with(id, context, |port, now| port.end.abort(reason, now));
    }

    /// A stream has ended without a word: what became of the process decides, in a while.
    pub(super) fn await_fate(&mut self, id: ConnectionId, life: u32, look: Look, context: &mut Context<'_>) {
        let pause = Duration::from_millis(self.config.fate_ms) * if look == Look::First { 1 } else { DYING };
        let handle = context.handle::<Self>();
        context.spawn(async move {
            tokio::time::sleep(pause).await;
            handle.call(|element, context| element.fate(id, life, look, context));
        });
    }

    /// The time for a word about the end of a stream is over.
    pub(super) fn fate(&mut self, id: ConnectionId, life: u32, look: Look, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.life == life) else { return };
        let Some(ending) = server.limbo else { return };
        let service = Rc::clone(&server.service);
        match self.applications.get(&*service) {
            // Nobody will start it again: end as TCP would.
            _ if !server.supervised => {
                server.limbo = None;
                server.port.read_done = true;
                match ending {
                    Ending::Reset => server.port.end.app_reset(now),
                    Ending::Gone | Ending::Half => server.port.end.app_closed(now),
                }
                self.turn(id, now, context);
            }
            // The service has failed, ended, or is about to. Its connections are dealt with when the overseer says how.
            None => {}
            Some(application) if !application.alive || server.process != Some(application.incarnation) => {}
            Some(application) if look == Look::First && is_exiting(application.pid) => self.await_fate(id, life, Look::Last, context),
            // The service lives, the process that held this connection does not: another one takes it over. Where the server
            // has closed its listener there is none; then it waits, within its deadline, for what becomes of the service.
            Some(_) => {
                let address = server.address;
                self.tell(Event::new("worker-failed").with("service", &service).with("connection", id), context);
                self.lost(id, Loss::Failed, now, context);
                if self.services.contains_key(&address) {
                    self.with(id, context, |port, now| port.end.ask_replay(now));
                }
            }
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
        bench.fate(&client, Look::First);
        assert_eq!(bench.told("worker-failed").len(), 1);
        bench.exchange(&mut client);
        let other = served.accept().unwrap();
        bench.exchange(&mut client);
        assert_eq!(read(&other), b"question");
    }

    #[tokio::test]
    async fn a_process_that_is_still_dying_is_not_taken_for_a_living_service_but_not_waited_for_without_end() {
        let (mut bench, served, mut client, socket) = answered();
        let mut dying = std::process::Command::new("true").spawn().unwrap();
        while !is_exiting(dying.id()) {
            std::thread::yield_now();
        }
        if let Some(application) = bench.element.applications.get_mut("web") {
            application.pid = dying.id();
        }
        dies(&mut bench, &client, socket);
        bench.fate(&client, Look::First);
        assert!(bench.told("worker-failed").is_empty());
        bench.fate(&client, Look::Last);
        bench.exchange(&mut client);
        assert!(bench.told("worker-failed").len() == 1 && served.accept().is_some());
        dying.wait().unwrap();
    }

    #[tokio::test]
    async fn a_connection_in_limbo_is_recovered_when_its_service_turns_out_to_have_failed() {
        let (mut bench, served, mut client, socket) = answered();
        dies(&mut bench, &client, socket);
        let port = served.address.port;
        drop(served);
        bench.failed(&web(), 1, true);
        bench.fate(&client, Look::First);
        assert_eq!(bench.state(&client).as_deref(), Some("waiting"));
        assert!(bench.told("worker-failed").is_empty());
        let _socket = comes_back(&mut bench, port, &mut client);
        assert_eq!(client.heard, b"one two");
    }

    #[tokio::test]
    async fn a_connection_of_an_earlier_life_is_not_judged_by_the_next_one() {
        let (mut bench, _served, client, socket) = answered();
        dies(&mut bench, &client, socket);
        // The next life runs already, and what the failure means for this connection is yet to be carried out.
        bench.started(&web(), 2);
        bench.fate(&client, Look::First);
        assert!(bench.told("worker-failed").is_empty());
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
                bench.fate(&client, Look::First);
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
        bench.fate(&client, Look::First);
        let give_up = Instant::now() + Duration::from_secs(10);
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
