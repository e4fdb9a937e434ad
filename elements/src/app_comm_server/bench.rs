//! For tests: the element between server applications that the test plays, with real sockets, and clients' ends that it holds.
//! There is no ARMOR; what the element wants is carried to where it belongs, watching tasks are called by hand.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Instant;

use armor_core::context::{Context, Effect, Effects};
use armor_core::element::{Element, Setup};
use armor_core::events::Event;
use armor_proto::connection::{AppAction, ClientEnd, Config as EndConfig, Event as EndEvent, Record};
use armor_proto::hookup::{Endpoint, Name, Reply, Request};
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use armor_proto::message::{Message, downcast};
use bytes::Bytes;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::AppCommServer;
use super::connections::Announced;
use super::failures::Look;
use crate::endpoints::{Asked, Proxy, Read, ReplyTo, policy};
use crate::operations::{
    AppFailed, AppHung, AppRegisterServer, AppServerRegistered, AppStarted, AppcommAck, AppcommConnectReply, AppcommData, AppcommReplay,
    AppcommReset, AppcommServerConnectRequest, ApplicationSpec, Policy,
};

/// The ARMOR of the clients.
const CLIENTS: ArmorId = ArmorId(77);

pub(super) struct Bench {
    pub(super) element: AppCommServer,
    setup: Setup,
    pub(super) events: Vec<Event>,
    pub(super) hung: Vec<AppHung>,
    pub(super) registrations: VecDeque<AppRegisterServer>,
    pub(super) records: Vec<(Record, Bytes)>,
    wanted: Vec<Wanted>,
}

/// What the element wanted, where the order matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Capture,
    Registration,
}

/// A server application's listener.
pub(super) struct Served {
    pub(super) listener: OwnedFd,
    id: u64,
    pub(super) address: Endpoint,
    /// Whom APP_SERVER_DB names when it listens.
    clients: Vec<ConnectionId>,
}

/// A client application and its ARMOR's end.
pub(super) struct Client {
    pub(super) end: ClientEnd,
    id: ConnectionId,
    address: Endpoint,
    pub(super) heard: Vec<u8>,
    pub(super) events: Vec<EndEvent>,
    pub(super) actions: Vec<AppAction>,
    /// Connect requests that were sent, to be delivered again.
    pub(super) requests: Vec<AppcommServerConnectRequest>,
}

/// A supervised application of this name.
pub(super) fn application(name: &str, keys: serde_json::Value) -> ApplicationSpec {
    let mut spec = serde_json::json!({ "name": name, "command": ["server"] });
    spec.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

impl Bench {
    pub(super) fn new() -> Bench {
        // A number of its own, so that tests beside each other make other names.
        let number = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let armor = ArmorId(number ^ u64::from(std::process::id()) << 48);
        let setup = Setup { armor, name: "node".into(), kind: "daemon".into(), run_dir: "/".into() };
        let element = AppCommServer::new(super::Config::default(), &setup).unwrap();
        Bench {
            element,
            setup,
            events: Vec::new(),
            hung: Vec::new(),
            registrations: VecDeque::new(),
            records: Vec::new(),
            wanted: Vec::new(),
        }
    }

    /// Calls the element and sorts what it wants.
    pub(super) fn call<R>(&mut self, work: impl FnOnce(&mut AppCommServer, &mut Context<'_>) -> R) -> R {
        self.call_with(None, work)
    }

    fn call_with<R>(&mut self, message: Option<&mut Message>, work: impl FnOnce(&mut AppCommServer, &mut Context<'_>) -> R) -> R {
        let mut effects = Effects::new();
        let result = work(&mut self.element, &mut Context::detached(&self.setup, message, &mut effects));
        for effect in effects {
            match effect {
                Effect::Event(event) => self.events.push(event),
                Effect::Send(message) | Effect::SendReliable(message) => self.sent(&message),
                Effect::Then(work) => work(),
                Effect::StateChanged => self.wanted.push(Wanted::Capture),
                _ => {}
            }
        }
        result
    }

    /// What the element wants meanwhile, in its order.
    pub(super) fn wanted<R>(&mut self, work: impl FnOnce(&mut Bench) -> R) -> (Vec<Wanted>, R) {
        self.wanted.clear();
        let result = work(self);
        (std::mem::take(&mut self.wanted), result)
    }

    fn sent(&mut self, message: &Message) {
        let operation = message.top().unwrap().operations.front().unwrap();
        let record = if let Some(registration) = downcast::<AppRegisterServer>(operation) {
            self.wanted.push(Wanted::Registration);
            return self.registrations.push_back(registration.clone());
        } else if let Some(hung) = downcast::<AppHung>(operation) {
            return self.hung.push(hung.clone());
        } else if let Some(AppcommConnectReply { reply }) = downcast(operation) {
            Record::ConnectReply(*reply)
        } else if let Some(AppcommData { data }) = downcast(operation) {
            Record::Data(*data)
        } else if let Some(AppcommAck { ack }) = downcast(operation) {
            Record::Ack(*ack)
        } else if let Some(AppcommReset { reset }) = downcast(operation) {
            Record::Reset(*reset)
        } else if let Some(AppcommReplay { replay }) = downcast(operation) {
            Record::Replay(*replay)
        } else {
            return;
        };
        assert_eq!(message.destination(), Some(CLIENTS));
        self.records.push((record, message.payload.clone()));
    }

    pub(super) fn started(&mut self, spec: &ApplicationSpec, incarnation: u32) {
        self.started_as(spec, incarnation, 0);
    }

    /// A life of an application that is this one of its instances.
    pub(super) fn started_as(&mut self, spec: &ApplicationSpec, incarnation: u32, instance: u64) {
        let (pid, started_at_ms) = (std::process::id(), armor_core::events::now_ms());
        let started = AppStarted { spec: spec.clone(), pid, incarnation: Incarnation(incarnation), started_at_ms, instance };
        self.call(|element, context| element.application_started(&started, context));
    }

    pub(super) fn failed(&mut self, spec: &ApplicationSpec, incarnation: u32, restarting: bool) {
        self.ended(spec, incarnation, "signal: 9", restarting);
    }

    /// The process has ended: `how` is "exit status: 0" when in order.
    pub(super) fn ended(&mut self, spec: &ApplicationSpec, incarnation: u32, how: &str, restarting: bool) {
        let failed = AppFailed {
            name: spec.name.clone(),
            pid: 1,
            incarnation: Incarnation(incarnation),
            how: how.into(),
            orderly: how == "exit status: 0",
            restarting,
            failed_at_ms: armor_core::events::now_ms(),
        };
        self.call(|element, context| element.application_failed(&failed, context));
    }

    /// An application binds: what its shim gets from the ARMOR. When it listens, APP_SERVER_DB answers with these clients.
    pub(super) fn bind(&mut self, service: &str, port: u16, clients: &[ConnectionId]) -> Served {
        self.bind_with(service, port, clients, false)
    }

    /// Another of its processes binds the same address, with SO_REUSEPORT.
    pub(super) fn bind_again(&mut self, service: &str, served: &Served) -> Served {
        self.bind_with(service, served.address.port, &[], true)
    }

    fn bind_with(&mut self, service: &str, port: u16, clients: &[ConnectionId], reuse_port: bool) -> Served {
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::sockopt::set_socket_reuseport(&socket, true).unwrap();
        let addr = Endpoint::new([127, 0, 0, 1].into(), port);
        let request = Request::Bind { addr, service: Some(service.into()), pid: 1, v6_only: false, reuse_port, instance: 0 };
        let Reply::Bound { errno: 0, listener: id, name: Some(name) } = answer(&self.ask(request, Some(socket))) else { panic!("refused") };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new_abstract_name(&name.to_bytes()).unwrap()).unwrap();
        Served { listener, id, address: name.local, clients: clients.to_vec() }
    }

    /// A shim asks; what reads the answer.
    pub(super) fn ask(&mut self, request: Request, socket: Option<OwnedFd>) -> OwnedFd {
        let (reply, asker) = ReplyTo::pair();
        self.call(|element, context| element.asked(Asked { request, socket, pid: 1, reply }, context));
        asker
    }

    /// APP_SERVER_DB answers the oldest registration.
    pub(super) fn register(&mut self, clients: &[ConnectionId]) {
        let AppRegisterServer { row, request, .. } = self.registrations.pop_front().unwrap();
        let clients = if clients.is_empty() { BTreeMap::new() } else { BTreeMap::from([(CLIENTS, clients.to_vec())]) };
        let answer = AppServerRegistered { address: row.address, request, errno: 0, incarnation: row.incarnation, clients };
        self.call(|element, context| element.registered(&answer, context));
    }

    /// The application listens, and waits for APP_SERVER_DB.
    pub(super) fn begin_to_listen(&mut self, served: &Served) -> OwnedFd {
        self.ask_to_listen(served, 16)
    }

    fn ask_to_listen(&mut self, served: &Served, backlog: i32) -> OwnedFd {
        rustix::net::listen(&served.listener, backlog).unwrap();
        self.ask(Request::Listen { listener: served.id, backlog, pid: 1 }, None)
    }

    /// A bound application is to connect: the socket that it gets back.
    pub(super) fn withdraw(&mut self, served: &Served) -> Option<OwnedFd> {
        let asker = self.ask(Request::Withdraw { listener: served.id }, None);
        let (mut bytes, mut space) = ([0; 64], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = rustix::net::recvmsg(&asker, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).unwrap().bytes;
        assert_eq!(Reply::decode(&bytes[..length]).unwrap(), Reply::Withdrawn);
        control.drain().find_map(|message| if let RecvAncillaryMessage::ScmRights(mut sockets) = message { sockets.next() } else { None })
    }

    /// A port that was free a moment ago.
    pub(super) fn free_port(&self) -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    pub(super) fn listen(&mut self, served: &Served) {
        self.listen_with(served, 16);
    }

    pub(super) fn listen_with(&mut self, served: &Served, backlog: i32) {
        let asker = self.ask_to_listen(served, backlog);
        self.register(&served.clients);
        assert_eq!(answer(&asker), Reply::Registered { errno: 0 });
    }

    pub(super) fn serve(&mut self, service: &str) -> Served {
        let served = self.bind(service, 0, &[]);
        self.listen(&served);
        served
    }

    /// The application closes its listener, announced.
    pub(super) fn close(&mut self, served: Served) {
        let id = served.id;
        drop(served);
        self.call(|element, context| element.close_listener(id, context));
    }

    /// The watching task of a connection finds it readable.
    pub(super) fn readable(&mut self, client: &Client) -> Option<Read> {
        let life = self.element.servers.get(&client.id)?.life;
        Some(self.call(|element, context| element.readable(client.id, life, context)))
    }

    /// The shim tells that the application has closed its socket.
    pub(super) fn announce_close(&mut self, client: &Client) {
        self.call(|element, context| element.announced(client.id, Announced::Closed, context));
    }

    /// The time for a word about the end of a connection's stream is over.
    pub(super) fn fate(&mut self, client: &Client, look: Look) {
        let life = self.element.servers[&client.id].life;
        self.call(|element, context| element.fate(client.id, life, look, context));
    }

    pub(super) fn client(&mut self, served: &Served, recovery: Policy) -> Client {
        self.element.next += 1;
        let id = ConnectionId(self.element.next);
        let end = ClientEnd::new(id, EndConfig::default(), policy(recovery, None), Instant::now());
        let mut client =
            Client { end, id, address: served.address, heard: Vec::new(), events: Vec::new(), actions: Vec::new(), requests: Vec::new() };
        self.exchange(&mut client);
        client
    }

    /// Delivers a connect request.
    pub(super) fn request(&mut self, asked: &AppcommServerConnectRequest) {
        self.call(|element, context| element.connect_request(asked, context));
    }

    /// Carries records to and fro until nothing moves.
    pub(super) fn exchange(&mut self, client: &mut Client) {
        loop {
            let now = Instant::now();
            let mut moved = client.applications(now);
            while let Some((record, payload)) = client.end.poll_transmit(now) {
                moved = true;
                self.deliver(client, record, payload);
            }
            let own: Vec<_> = self.records.extract_if(.., |(record, _)| connection_of(record) == client.id).collect();
            for (record, payload) in own {
                moved = true;
                client.take(record, payload, now);
            }
            if !moved {
                return;
            }
        }
    }

    fn deliver(&mut self, client: &mut Client, record: Record, payload: Bytes) {
        match record {
            Record::ConnectRequest(request) => {
                let client_address = Endpoint::new([127, 0, 0, 1].into(), 9);
                let (address, dialled) = (client.address, client.address);
                let asked = AppcommServerConnectRequest { address, client: CLIENTS, client_address, dialled, request };
                self.request(&asked);
                client.requests.push(asked);
            }
            Record::Data(data) => {
                let operation = AppcommData { data };
                let mut message = Message::to(self.setup.armor, operation.clone()).with_payload(payload);
                message.source = CLIENTS;
                self.call_with(Some(&mut message), |element, context| element.data(&operation, context));
            }
            Record::Ack(ack) => self.call(|element, context| element.ack(&AppcommAck { ack }, context)),
            Record::Reset(reset) => self.call(|element, context| element.reset(&AppcommReset { reset }, context)),
            Record::ConnectReply(_) | Record::Replay(_) => panic!("a client's end does not say this"),
        }
    }

    /// What is on its way to clients never arrives.
    pub(super) fn lose_records(&mut self) {
        self.records.clear();
    }

    /// An application says as much as the ARMOR takes while its client's ARMOR acknowledges nothing; how much that was.
    pub(super) fn fill_window(&mut self, client: &Client, socket: &OwnedFd) -> usize {
        let mut said = 0;
        loop {
            match rustix::io::write(socket, &[b'x'; 4096]) {
                Ok(length) => said += length,
                Err(_) if self.readable(client) == Some(Read::Paused) => return said,
                Err(error) => assert_eq!(error, rustix::io::Errno::AGAIN),
            }
        }
    }

    /// State of a server's end as `armor status` shows it; `None` when there is none.
    pub(super) fn state(&self, client: &Client) -> Option<String> {
        let state = self.element.servers.get(&client.id)?.state;
        serde_json::to_value(state).unwrap().as_str().map(str::to_owned)
    }

    pub(super) fn told(&self, what: &str) -> Vec<&Event> {
        self.events.iter().filter(|event| event.what == what).collect()
    }
}

/// What a shim hears.
pub(super) fn answer(asker: &OwnedFd) -> Reply {
    let mut bytes = [0; 4096];
    let length = rustix::io::read(asker, &mut bytes).unwrap();
    Reply::decode(&bytes[..length]).unwrap()
}

fn connection_of(record: &Record) -> ConnectionId {
    match record {
        Record::ConnectRequest(request) => request.connection,
        Record::ConnectReply(reply) => reply.connection,
        Record::Data(data) => data.connection,
        Record::Ack(ack) => ack.connection,
        Record::Reset(reset) => reset.connection,
        Record::Replay(replay) => replay.connection,
    }
}

impl Served {
    /// The socket that the application's `accept` returns, if somebody has connected.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()
    }
}

/// The name of the ARMOR's end, as the application's `getpeername` reads it.
pub(super) fn peer_name(socket: &OwnedFd) -> Name {
    let address: SocketAddrUnix = rustix::net::getpeername(socket).unwrap().unwrap().try_into().unwrap();
    Name::from_bytes(address.abstract_name().unwrap()).unwrap()
}

pub(super) fn write(socket: &OwnedFd, bytes: &[u8]) {
    assert_eq!(rustix::io::write(socket, bytes), Ok(bytes.len()));
}

/// What the application reads now.
pub(super) fn read(socket: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let length = rustix::io::read(socket, &mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

impl Client {
    pub(super) fn id(&self) -> ConnectionId {
        self.id
    }

    pub(super) fn says(&mut self, bytes: &'static [u8]) {
        self.end.app_read(Bytes::from_static(bytes), Instant::now());
    }

    /// Its ARMOR is asked to connect again because a process of this incarnation serves.
    pub(super) fn replay(&mut self, incarnation: u32) {
        self.end.replay(Incarnation(incarnation), Instant::now());
    }

    fn applications(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while let Some(action) = self.end.poll_app(now) {
            moved = true;
            if action != AppAction::Write {
                self.actions.push(action);
                continue;
            }
            let mut slices = [IoSlice::new(&[])];
            self.end.app_slices(&mut slices);
            self.heard.extend_from_slice(&slices[0]);
            let length = slices[0].len();
            self.end.app_wrote(length, now);
        }
        self.events.extend(std::iter::from_fn(|| self.end.poll_event()));
        moved
    }

    fn take(&mut self, record: Record, payload: Bytes, now: Instant) {
        let taken = match record {
            Record::ConnectReply(reply) => self.end.handle_connect_reply(&reply, now),
            Record::Data(data) => self.end.handle_data(&data, payload, now),
            Record::Ack(ack) => self.end.handle_ack(&ack, now),
            Record::Reset(reset) => self.end.handle_reset(&reset, now),
            Record::Replay(replay) => self.end.handle_replay(&replay, now),
            Record::ConnectRequest(_) => panic!("a server's end does not say this"),
        };
        taken.unwrap();
    }
}
