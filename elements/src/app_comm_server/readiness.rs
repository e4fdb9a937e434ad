//! When a server that listens is ready to be connected to. A service may name a question that it answers as expected when it is
//! (`[ready]` in a service file); it is asked at each start, and until then it counts as not listening: clients wait.
//!
//! Invariant: a server that has a question is given no client's byte before it has answered it in this life.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::hookup::{Endpoint, IpFamily, Name, Role};
use armor_proto::ids::{ConnectionId, Incarnation};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use tokio::net::UnixStream;

use super::AppCommServer;
use super::services::Service;
use super::timelines::Step;
use crate::endpoints::{Next, Outcome, Probe, ask, dial};
use crate::operations::ApplicationSpec;

/// Whether one life of an application may be connected to.
#[derive(Debug)]
pub(super) enum Readiness {
    /// As soon as it listens.
    Ready,
    /// It has a question, and does not listen yet.
    Unasked,
    /// It is being asked.
    Asked(Asking),
}

/// How the asking goes.
#[derive(Debug)]
pub(super) struct Asking {
    since: Instant,
    /// The last answer, or why there was none.
    heard: String,
    /// Not ready within the service's deadline: connects are refused meanwhile.
    overdue: bool,
    /// The connection of the present try, and the TCP socket that answers for its options.
    connection: Option<(ConnectionId, OwnedFd)>,
}

impl Readiness {
    /// Of a process that has just been started.
    pub(super) fn of(spec: &ApplicationSpec) -> Readiness {
        if spec.ready.is_some() { Readiness::Unasked } else { Readiness::Ready }
    }

    /// Why an application that listens is not ready: what it answered last.
    pub(super) fn heard(&self) -> Option<&str> {
        match self {
            Readiness::Asked(asking) => Some(&asking.heard),
            Readiness::Ready | Readiness::Unasked => None,
        }
    }

    /// The socket that answers for the options of a connection that asks.
    pub(super) fn holder(&self, id: ConnectionId) -> Option<&OwnedFd> {
        match self {
            Readiness::Asked(asking) => asking.connection.as_ref().filter(|(own, _)| *own == id).map(|(_, holder)| holder),
            Readiness::Ready | Readiness::Unasked => None,
        }
    }
}

impl AppCommServer {
    /// Of the process that serves; `None` when there is none, or nobody supervises it.
    fn readiness(&self, service: &Service) -> Option<&Readiness> {
        let application = self.applications.get(&service.name).filter(|application| service.supervised && application.alive)?;
        Some(&application.readiness)
    }

    /// What `armor status` shows: whether an application's clients may be connected to it, and its last answer while not.
    pub(super) fn readiness_status(&self) -> serde_json::Value {
        let status = self.applications.iter().map(|(name, application)| {
            let ready = self.services.values().any(|service| service.name == *name && self.is_ready(service));
            let heard = application.readiness.heard().unwrap_or("it does not listen");
            let heard = Some(heard).filter(|_| !ready);
            (name.clone(), serde_json::json!({ "ready": ready, "heard": heard }))
        });
        serde_json::Value::Object(status.collect())
    }

    /// A client may be connected now.
    pub(super) fn is_ready(&self, service: &Service) -> bool {
        service.is_listening() && self.readiness(service).is_none_or(|readiness| matches!(readiness, Readiness::Ready))
    }

    /// It makes sense that a client waits: the service is being restarted, or is about to be ready.
    pub(super) fn is_coming(&self, service: &Service) -> bool {
        match self.readiness(service) {
            Some(Readiness::Asked(asking)) => !asking.overdue,
            Some(Readiness::Unasked) => true,
            Some(Readiness::Ready) | None => service.recovering || service.is_about_to_listen(),
        }
    }

    /// A service listens at `address`: its clients are connected, or it is asked whether it is ready.
    pub(super) fn listens(&mut self, address: Endpoint, context: &mut Context<'_>) {
        let Some(service) = self.services.get(&address) else { return };
        match self.readiness(service) {
            Some(Readiness::Unasked) => {
                let name = service.name.clone();
                self.begin_asking(&name, context);
            }
            Some(Readiness::Asked(_)) => {}
            Some(Readiness::Ready) | None => {
                self.timelines.reached(&service.name, Step::Ready);
                let name = service.name.clone();
                if let Some(service) = self.services.get_mut(&address) {
                    service.recovering = false;
                }
                self.dial_waiting(address, context);
                self.tell_when_it_flows(&name, context);
            }
        }
    }

    fn begin_asking(&mut self, name: &str, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(name) else { return };
        let Some(question) = application.spec.ready.clone() else { return };
        let now = Instant::now();
        application.readiness = Readiness::Asked(Asking { since: now, heard: "nothing yet".to_owned(), overdue: false, connection: None });
        let (life, deadline) = (application.incarnation, Duration::from_millis(application.spec.deadline_ms));
        let (service, handle) = (name.to_owned(), context.handle::<Self>());
        context.spawn(async move {
            tokio::time::sleep(deadline).await;
            handle.call(|element, context| element.ready_overdue(&service, life, context));
        });
        let (service, handle) = (name.to_owned(), context.handle::<Self>());
        let connect = move || handle.call(|element, _| element.connect_probe(&service, life))?;
        let (service, handle) = (name.to_owned(), context.handle::<Self>());
        let report = move |probe: &Probe, outcome| {
            handle.call(|element, context| element.answered(&service, life, probe, outcome, context)).unwrap_or(Next::Stop)
        };
        context.spawn(ask(Probe::new(question, now), connect, report));
    }

    /// How a life of an application is being asked; `None` when it need not be asked any more.
    fn asking(&mut self, name: &str, life: Incarnation) -> Option<&mut Asking> {
        let application = self.applications.get_mut(name).filter(|application| application.alive && application.incarnation == life)?;
        match &mut application.readiness {
            Readiness::Asked(asking) => Some(asking),
            Readiness::Ready | Readiness::Unasked => None,
        }
    }

    /// Connects to the server as a client of its own node would.
    pub(super) fn connect_probe(&mut self, name: &str, life: Incarnation) -> Option<io::Result<UnixStream>> {
        self.asking(name, life)?;
        let port = self.applications.get(name).and_then(|application| application.spec.ready.as_ref()?.port);
        let connected = self.connect_to_application(name, port);
        Some(connected.map(|(socket, connection)| {
            if let Some(asking) = self.asking(name, life) {
                asking.connection = Some(connection);
            }
            socket
        }))
    }

    /// A connection to an application, its id, and the TCP socket that answers for its options.
    pub(super) fn connect_to_application(&mut self, name: &str, port: Option<u16>) -> io::Result<(UnixStream, (ConnectionId, OwnedFd))> {
        self.next = self.next.wrapping_add(1);
        let id = ConnectionId(self.next);
        let served =
            self.services.values_mut().filter(|service| service.name == name && port.is_none_or(|port| service.address.port == port));
        let found = served.filter_map(|service| Some((service.address, service.next_listener()?))).next();
        let Some((address, listener)) = found else {
            let place = port.map_or_else(String::new, |port| format!(" at port {port}"));
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("it does not listen{place}")));
        };
        let (name, holder) = client_of(address, id)?;
        Ok((UnixStream::from_std(dial(&name, &listener)?.into())?, (id, holder)))
    }

    /// A try is over.
    pub(super) fn answered(&mut self, name: &str, life: Incarnation, probe: &Probe, outcome: Outcome, context: &mut Context<'_>) -> Next {
        let Some(asking) = self.asking(name, life) else { return Next::Stop };
        probe.heard_last().clone_into(&mut asking.heard);
        asking.connection = None;
        if outcome == Outcome::Misses {
            return Next::Again;
        }
        let told = Event::new("server-ready").with("service", name).with("incarnation", life.0).with("tries", probe.tries());
        context.event(told.with("after_ms", asking.since.elapsed().as_millis()));
        if let Some(application) = self.applications.get_mut(name) {
            application.readiness = Readiness::Ready;
            context.state_changed();
        }
        for address in self.addresses_of(name) {
            if self.services.get(&address).is_some_and(Service::is_listening) {
                self.listens(address, context);
            }
        }
        Next::Stop
    }

    /// The service's deadline is over. Who waits has a deadline of its own; who comes now is refused, until it is ready after all.
    pub(super) fn ready_overdue(&mut self, name: &str, life: Incarnation, context: &mut Context<'_>) {
        let Some(asking) = self.asking(name, life) else { return };
        asking.overdue = true;
        let told = Event::new("server-not-ready").with("service", name).with("incarnation", life.0);
        context.event(told.with("after_ms", asking.since.elapsed().as_millis()).with("heard", &asking.heard));
    }
}

/// The name of a connection from the server's own host to `served`, and the TCP socket that keeps its port.
fn client_of(served: Endpoint, id: ConnectionId) -> io::Result<(Name, OwnedFd)> {
    let (family, loopback) = match served.family() {
        IpFamily::V4 => (AddressFamily::INET, IpAddr::from([127, 0, 0, 1])),
        IpFamily::V6 => (AddressFamily::INET6, IpAddr::V6(Ipv6Addr::LOCALHOST)),
    };
    let local = if served.ip.is_unspecified() { Endpoint::new(loopback, served.port) } else { served };
    let holder = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    net::bind(&holder, &SocketAddr::from(Endpoint { port: 0, ..local }))?;
    let bound = SocketAddr::try_from(net::getsockname(&holder)?)?;
    let peer = Endpoint { port: bound.port(), ..local };
    Ok((Name { role: Role::Server, id: id.0, local, peer }, holder))
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)]
mod tests {
    use super::super::bench::{Bench, Client, Served, application, peer_name, read, write};
    use super::*;
    use crate::endpoints::Want;
    use crate::operations::Policy;
    use armor_core::element::Element;
    use armor_proto::connection::Event as EndEvent;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn redis() -> ApplicationSpec {
        application("cache", json!({ "ready": { "send": "PING\r\n", "expect": "+PONG" }, "deadline_ms": 5000 }))
    }

    /// A try: the server is asked and answers. The test is the task that [`ask`] is in an ARMOR.
    async fn asked(bench: &mut Bench, served: &Served, life: u32, answer: &[u8]) -> Next {
        let question = redis().ready.unwrap();
        let mut probe = Probe::new(question, Instant::now());
        assert_eq!(probe.poll(Instant::now()), Want::Connect);
        let mut socket = bench.call(|element, _| element.connect_probe("cache", Incarnation(life))).unwrap().unwrap();
        probe.connected();
        let Want::Say(question) = probe.poll(Instant::now()) else { panic!("it asks") };
        socket.write_all(question).await.unwrap();
        probe.said();
        let accepted = served.accept().unwrap();
        assert_eq!(read(&accepted), b"PING\r\n");
        let name = peer_name(&accepted);
        assert_eq!((name.role, name.local, name.peer.ip), (Role::Server, served.address, served.address.ip));
        assert!(name.peer.port != 0 && bench.element.holder(&name).is_some(), "options can be set on it");
        write(&accepted, answer);
        let mut heard = [0; 64];
        let length = socket.read(&mut heard).await.unwrap();
        probe.heard(&heard[..length]);
        let Want::Report(outcome) = probe.poll(Instant::now()) else { panic!("it has heard enough") };
        let next = bench.call(|element, context| element.answered("cache", Incarnation(life), &probe, outcome, context));
        assert!(bench.element.holder(&name).is_none(), "forgotten after the try");
        next
    }

    fn established(client: &Client) -> bool {
        client.events.iter().any(|event| matches!(event, EndEvent::Established { .. }))
    }

    #[tokio::test]
    async fn first_connects_wait_until_the_server_answers_as_expected() {
        let mut bench = Bench::new();
        bench.started(&redis(), 1);
        let served = bench.serve("cache");
        let mut client = bench.client(&served, Policy::Request);
        assert_eq!((bench.state(&client).as_deref(), established(&client)), (Some("waiting"), false));
        assert_eq!(asked(&mut bench, &served, 1, b"-LOADING\r\n").await, Next::Again);
        assert!(served.accept().is_none() && bench.told("server-ready").is_empty());
        assert_eq!(asked(&mut bench, &served, 1, b"+PONG\r\n").await, Next::Stop);
        bench.exchange(&mut client);
        assert!(established(&client) && served.accept().is_some());
        assert_eq!(bench.told("server-ready")[0].values["service"], "cache");
        let mut next = bench.client(&served, Policy::Request);
        bench.exchange(&mut next);
        assert!(established(&next), "it is not asked again in this life");
    }

    #[tokio::test]
    async fn a_recovering_client_s_bytes_are_replayed_when_the_next_life_is_ready_and_not_before() {
        let mut bench = Bench::new();
        bench.started(&redis(), 1);
        let served = bench.serve("cache");
        assert_eq!(asked(&mut bench, &served, 1, b"+PONG\r\n").await, Next::Stop);
        let mut client = bench.client(&served, Policy::Request);
        let dead = served.accept().unwrap();
        client.says(b"INCR x");
        bench.exchange(&mut client);
        assert_eq!(read(&dead), b"INCR x");
        drop(dead);
        let port = served.address.port;
        drop(served);
        bench.failed(&redis(), 1, true);
        bench.started(&redis(), 2);
        let served = bench.bind("cache", port, &[client.id()]);
        client.replay(2);
        bench.exchange(&mut client);
        bench.listen(&served);
        assert_eq!(asked(&mut bench, &served, 2, b"-LOADING\r\n").await, Next::Again);
        assert!(served.accept().is_none(), "not ready");
        assert_eq!(asked(&mut bench, &served, 2, b"+PONG\r\n").await, Next::Stop);
        let fed = served.accept().unwrap();
        bench.exchange(&mut client);
        assert_eq!(read(&fed), b"INCR x");
        let steps = bench.element.status()["recoveries"][0].clone();
        for step in ["detected_ms", "restarted_ms", "bound_ms", "ready_ms", "reconnected_ms", "replayed_ms"] {
            assert!(steps[step].is_u64(), "{step} is not in {steps}");
        }
    }

    #[tokio::test]
    async fn a_life_that_is_over_is_not_asked_any_more() {
        let mut bench = Bench::new();
        bench.started(&redis(), 1);
        let served = bench.serve("cache");
        assert_eq!(asked(&mut bench, &served, 1, b"-LOADING\r\n").await, Next::Again);
        bench.failed(&redis(), 1, true);
        assert!(bench.call(|element, _| element.connect_probe("cache", Incarnation(1))).is_none());
        bench.started(&redis(), 2);
        assert!(bench.call(|element, _| element.connect_probe("cache", Incarnation(1))).is_none());
        assert!(bench.call(|element, _| element.connect_probe("cache", Incarnation(2))).is_none(), "it does not listen yet");
    }

    #[tokio::test]
    async fn a_server_that_does_not_become_ready_in_time_is_told_with_its_last_answer_and_refuses_connects_until_it_is() {
        let mut bench = Bench::new();
        bench.started(&redis(), 1);
        let served = bench.serve("cache");
        asked(&mut bench, &served, 1, b"-MASTERDOWN\r\n").await;
        bench.call(|element, context| element.ready_overdue("cache", Incarnation(1), context));
        let told = bench.told("server-not-ready")[0].clone();
        assert_eq!((&told.values["service"][..], &told.values["heard"][..]), ("cache", r#""-MASTERDOWN\r\n""#));
        let mut refused = bench.client(&served, Policy::Request);
        bench.exchange(&mut refused);
        assert!(refused.events.contains(&EndEvent::Refused { errno: libc::ECONNREFUSED }), "{:?}", refused.events);
        asked(&mut bench, &served, 1, b"+PONG\r\n").await;
        let mut client = bench.client(&served, Policy::Request);
        bench.exchange(&mut client);
        assert!(established(&client), "ready after all");
    }

    #[tokio::test]
    async fn it_is_asked_at_its_port_and_all_its_addresses_wait_for_the_answer() {
        let mut bench = Bench::new();
        let (other, asked) = (bench.free_port(), bench.free_port());
        let spec = application("cache", json!({ "ready": { "expect": "220", "port": asked } }));
        bench.started(&spec, 1);
        let first = bench.bind("cache", other, &[]);
        bench.listen(&first);
        let refused = bench.call(|element, _| element.connect_probe("cache", Incarnation(1))).unwrap();
        assert_eq!(refused.unwrap_err().to_string(), format!("it does not listen at port {asked}"));
        let client = bench.client(&first, Policy::Request);
        assert_eq!(bench.state(&client).as_deref(), Some("waiting"));
        let second = bench.bind("cache", asked, &[]);
        bench.listen(&second);
        assert!(bench.call(|element, _| element.connect_probe("cache", Incarnation(1))).unwrap().is_ok());
        assert!(second.accept().is_some() && first.accept().is_none());
    }
}
