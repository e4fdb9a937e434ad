//! Clients that have no shim: a gateway has accepted their TCP connections and hands them over (thesis §5.3). From here on such a socket is the
//! application's end of its connection like any other, so nobody stands between it and the journal.

use std::os::fd::AsFd;
use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::hookup::{Endpoint, Name, Reply, Request, Role};
use armor_proto::ids::ConnectionId;
use rustix::net::sockopt;

use super::look_up::LookUp;
use super::restored::{About, Keys, Wait};
use super::{AppCommClient, Client, State, Waiting};
use crate::endpoints::{ApplicationSocket, Asked, Note, Port, Proxy, source_address_for, tcp};

impl AppCommClient {
    /// Takes a connection over. The gateway keeps its copy of the socket until it has heard that it is kept here.
    pub(super) fn accepted(&mut self, asked: Asked, context: &mut Context<'_>) {
        let Request::Accepted { addr, client, again } = asked.request else { return };
        let reply = asked.reply;
        if asked.pid != std::process::id() {
            // Whoever may hook up must not tell servers who their clients are.
            return reply
                .send(&Reply::Refused { reason: "connections are taken over from a gateway in this ARMOR alone".to_owned() }, None);
        }
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
            looked_up: LookUp::default(),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{SocketAddr, TcpStream};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use armor_core::context::{Effect, Effects};
    use armor_core::element::{Element as _, Setup};
    use armor_proto::ids::{ArmorId, Incarnation};
    use armor_proto::message::downcast;

    use super::*;
    use crate::app_comm_client::Config;
    use crate::endpoints::ReplyTo;
    use crate::operations::{AppServerTable, AppcommServerConnectRequest, Policy, ServerRow};

    const SERVICE: Endpoint = Endpoint { ip: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), port: 80, scope: 0 };

    struct Bench {
        element: AppCommClient,
        setup: Setup,
        /// Connect requests to servers.
        requests: Vec<AppcommServerConnectRequest>,
    }

    impl Bench {
        fn new(max_connections: usize) -> Bench {
            let setup = Setup { armor: ArmorId(7), name: "gateway".into(), kind: "gateway".into(), run_dir: "/".into() };
            let element = AppCommClient::new(Config { max_connections, spill_bytes: 0, ..Config::default() }, &setup).unwrap();
            Bench { element, setup, requests: Vec::new() }
        }

        fn call(&mut self, work: impl FnOnce(&mut AppCommClient, &mut Context<'_>)) {
            let mut effects = Effects::new();
            work(&mut self.element, &mut Context::detached(&self.setup, None, &mut effects));
            for effect in effects {
                if let Effect::Send(message) = effect {
                    let operation = message.top().unwrap().operations.front().unwrap();
                    self.requests.extend(downcast::<AppcommServerConnectRequest>(operation).cloned());
                }
            }
        }

        fn knows_the_service(&mut self) {
            let row = ServerRow {
                address: SERVICE,
                armor: ArmorId(9),
                incarnation: Incarnation(1),
                service: "web".into(),
                policy: Policy::Request,
                deadline_ms: 1000,
                settled_ms: None,
            };
            let table = AppServerTable { version: 1, rows: vec![row], node_addresses: Vec::new() };
            self.call(|element, context| element.table(&table, context));
        }

        /// Hands a socket over; the errno of the answer, `None` when it was refused as a stranger's.
        fn hands_over(&mut self, socket: OwnedFd, client: Endpoint, again: bool, pid: u32) -> Option<i32> {
            let (reply, asker) = ReplyTo::pair();
            let asked = Asked { request: Request::Accepted { addr: SERVICE, client, again }, socket: Some(socket), pid, reply };
            self.call(|element, context| element.asked(asked, context));
            let mut answer = [0; 4096];
            let length = rustix::io::read(&asker, &mut answer[..]).unwrap();
            match Reply::decode(&answer[..length]).unwrap() {
                Reply::Connected { errno, .. } => Some(errno),
                _ => None,
            }
        }
    }

    /// An accepted connection, and its client.
    fn connection() -> (OwnedFd, TcpStream, Endpoint) {
        let listener = tcp::listen(([127, 0, 0, 1], 0).into(), 16, Duration::from_secs(60)).unwrap();
        let client = TcpStream::connect(SocketAddr::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap()).unwrap();
        rustix::event::poll(&mut [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)], None).unwrap();
        let own = Endpoint::from(client.local_addr().unwrap());
        (tcp::accept(&listener).unwrap(), client, own)
    }

    #[tokio::test]
    async fn a_connection_that_is_handed_over_again_is_taken_once() {
        let own = std::process::id();
        let mut bench = Bench::new(2);
        let (socket, _client, address) = connection();
        assert_eq!(bench.hands_over(socket.try_clone().unwrap(), address, false, own), Some(libc::EAGAIN), "the table has not come");
        bench.knows_the_service();
        assert_eq!(bench.hands_over(socket.try_clone().unwrap(), address, true, own), Some(0));
        assert_eq!(bench.hands_over(socket, address, true, own), Some(0));
        assert_eq!(bench.element.clients.len(), 1);
        let told: Vec<_> = bench.requests.iter().map(|request| (request.client_address, request.dialled)).collect();
        assert_eq!(told, [(address, SERVICE)], "its server is told who it is");
    }

    #[tokio::test]
    async fn beyond_the_bound_and_from_strangers_none_is_taken() {
        let own = std::process::id();
        let mut bench = Bench::new(1);
        bench.knows_the_service();
        let [first, second] = [(); 2].map(|()| connection());
        assert_eq!(bench.hands_over(first.0.try_clone().unwrap(), first.2, false, 1), None);
        assert_eq!(bench.hands_over(first.0, first.2, false, own), Some(0));
        assert_eq!(bench.hands_over(second.0, second.2, false, own), Some(libc::EAGAIN));
        assert_eq!(bench.element.clients.len(), 1);
    }

    #[tokio::test]
    async fn a_server_of_the_other_family_is_told_an_address_that_it_can_be_told() {
        let mut bench = Bench::new(1);
        bench.knows_the_service();
        let (socket, _client, address) = connection();
        let client = Endpoint::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), address.port);
        assert_eq!(bench.hands_over(socket, client, false, std::process::id()), Some(0));
        let told = bench.requests[0].client_address;
        assert!(told.ip.is_ipv4() && told.port == address.port, "{told:?}");
    }
}
