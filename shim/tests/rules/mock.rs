//! A mock of the ARMOR's two comm elements: speaks the hook-up protocol in this process and joins clients straight to
//! the servers' listeners. It does what it is told: delays, refuses, resets, keeps silent.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use armor_proto::hookup::{CLIENT_SOCKET, ConnectState, DATAGRAM_LIMIT, Endpoint, IpFamily, Name, Reply, Request, Role, SERVER_SOCKET};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};

use crate::options;
use crate::program::STARTING;

/// What happens to the next connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// As without a behaviour: established at once.
    Serve,
    /// The ARMOR answers the request with this error.
    Refuse(i32),
    /// A non-blocking connect is pending, a blocking one is not answered, until [`MockArmor::release`] or
    /// [`MockArmor::fail`].
    Pend,
    /// The request is never answered.
    KeepSilent,
    /// The connection is closed in place of an answer, as when the ARMOR is killed; the next request is served.
    Die,
}

pub(crate) struct MockArmor {
    directory: tempfile::TempDir,
    shared: Arc<Shared>,
    sockets: Vec<OwnedFd>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    keeps_holders: AtomicBool,
    holds_binds: AtomicBool,
    turns_away: AtomicBool,
}

#[derive(Default)]
struct State {
    listeners: HashMap<u64, Listener>,
    connections: HashMap<u64, Connection>,
    /// How connections ended whose both streams have, so that they need no descriptors any more.
    ended: HashMap<u64, i32>,
    requests: Vec<Request>,
    behaviours: VecDeque<Behaviour>,
    verdict: Option<ConnectState>,
    /// How many times those that were held have been hung up on.
    hung_up: u32,
    stopped: bool,
}

struct Listener {
    name: Name,
    holder: OwnedFd,
    listens: bool,
}

struct Connection {
    client: UnixStream,
    server: UnixStream,
    client_holder: OwnedFd,
    server_holder: OwnedFd,
    ended: i32,
    /// Directions that still carry bytes.
    open: u8,
}

impl MockArmor {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    pub(crate) fn start_in(directory: tempfile::TempDir) -> Self {
        raise_descriptor_limit();
        let shared = Arc::<Shared>::default();
        let mut armor = Self { directory, shared, sockets: Vec::new() };
        armor.open_sockets();
        armor
    }

    /// A directory without an ARMOR, see [`open_sockets`](Self::open_sockets).
    pub(crate) fn absent() -> Self {
        let shared = Arc::<Shared>::default();
        Self { directory: tempfile::tempdir().unwrap(), shared, sockets: Vec::new() }
    }

    pub(crate) fn open_sockets(&mut self) {
        for name in [SERVER_SOCKET, CLIENT_SOCKET] {
            let socket = unix_socket(SocketType::SEQPACKET);
            // The path may be longer than an address holds.
            let directory = std::fs::File::open(self.directory.path()).unwrap();
            let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
            rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
            rustix::net::listen(&socket, 128).unwrap();
            let shared = Arc::clone(&self.shared);
            let listener = socket.try_clone().unwrap();
            thread::spawn(move || {
                while let Ok(peer) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
                    if shared.turns_away.load(Ordering::Relaxed) {
                        // As an ARMOR does with a stranger: what it asks is not read.
                        send(&peer, &Reply::Refused { reason: "not you".to_owned() }, None);
                        continue;
                    }
                    // One request comes by each connection. What is announced takes effect before what is asked after it.
                    let Some((request, fd)) = receive(&peer) else { continue };
                    let shared = Arc::clone(&shared);
                    if matches!(request, Request::Closed { .. } | Request::Finished { .. } | Request::Aborted { .. }) {
                        shared.serve(&peer, request, fd);
                    } else {
                        thread::spawn(move || shared.serve(&peer, request, fd));
                    }
                }
            });
            self.sockets.push(socket);
        }
    }

    /// From now on a bound socket that is to connect is closed, not given back, as by an ARMOR that has died meanwhile.
    pub(crate) fn keep_holders(&self) {
        self.shared.keeps_holders.store(true, Ordering::Relaxed);
    }

    /// From now on whoever binds is held, as a standby is.
    pub(crate) fn hold_binds(&self) {
        self.shared.holds_binds.store(true, Ordering::Relaxed);
    }

    /// Hangs up on whoever is held, as when the ARMOR is killed.
    pub(crate) fn lose_held(&self) {
        self.shared.state().hung_up += 1;
        self.shared.changed.notify_all();
    }

    /// Answers whoever is held.
    pub(crate) fn release_held(&self) {
        self.shared.holds_binds.store(false, Ordering::Relaxed);
        self.shared.changed.notify_all();
    }

    /// From now on whoever asks is turned away.
    pub(crate) fn turn_away(&self) {
        self.shared.turns_away.store(true, Ordering::Relaxed);
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Queues a behaviour for the next connect that asks for a service.
    pub(crate) fn next_connect(&self, behaviour: Behaviour) {
        self.shared.state().behaviours.push_back(behaviour);
    }

    /// Lets the pending connects succeed.
    pub(crate) fn release(&self) {
        self.decide(ConnectState::Established);
    }

    /// Lets the pending connects fail.
    pub(crate) fn fail(&self, state: ConnectState) {
        self.decide(state);
    }

    fn decide(&self, verdict: ConnectState) {
        self.shared.state().verdict = Some(verdict);
        self.shared.changed.notify_all();
    }

    /// Breaks every connection off as a reset would.
    pub(crate) fn reset_connections(&self) {
        let mut state = self.shared.state();
        for connection in state.connections.values_mut() {
            connection.ended = libc::ECONNRESET;
            let _ = connection.client.shutdown(Shutdown::Both);
            let _ = connection.server.shutdown(Shutdown::Both);
        }
    }

    /// Waits until `wanted` is true of the requests so far.
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&[Request]) -> bool) {
        let state = self.shared.state();
        let limit = Duration::from_secs(60);
        let (state, late) = self.shared.changed.wait_timeout_while(state, limit, |state| !wanted(&state.requests)).unwrap();
        assert!(!late.timed_out(), "no {what} among {:#?}", state.requests);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// Addresses of the services: what is only bound is none.
    pub(crate) fn services(&self) -> Vec<SocketAddr> {
        self.shared.state().listeners.values().filter(|listener| listener.listens).map(|listener| listener.name.local.into()).collect()
    }

    /// Connects to a listener's abstract name as somebody who is no ARMOR would.
    pub(crate) fn intrude(&self) -> UnixStream {
        let socket = unix_socket(SocketType::STREAM);
        rustix::net::connect(&socket, &address(&self.any_listener())).unwrap();
        UnixStream::from(socket)
    }

    /// The same by another user, who knows how an ARMOR names its end. Needs root.
    pub(crate) fn intrude_as_another_user(&self) -> UnixStream {
        let listener = self.any_listener();
        let intruder = move || {
            let socket = unix_socket(SocketType::STREAM);
            let name = Name { role: Role::Server, id: State::new_id(), local: listener.local, peer: listener.local };
            rustix::net::bind(&socket, &address(&name)).unwrap();
            // Of this thread alone, which is what the kernel reports as the peer's credentials.
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            rustix::net::connect(&socket, &address(&listener)).unwrap();
            UnixStream::from(socket)
        };
        thread::spawn(intruder).join().unwrap()
    }

    fn any_listener(&self) -> Name {
        self.shared.state().listeners.values().next().unwrap().name
    }
}

impl Drop for MockArmor {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        self.shared.state().stopped = true;
        self.shared.changed.notify_all();
        self.reset_connections();
    }
}

impl Shared {
    /// Also after a panic in another thread: the test that fails says more than a poisoned lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: &Arc<Self>, peer: &OwnedFd, request: Request, fd: Option<OwnedFd>) {
        if matches!(request, Request::Bind { .. }) && self.holds_binds.load(Ordering::Relaxed) && !self.held(peer, &request) {
            return;
        }
        let answer = self.answer(&request, fd);
        self.state().requests.push(request);
        self.changed.notify_all();
        match answer {
            Answer::Nothing | Answer::HangUp => {}
            Answer::Reply(reply, fd) => send(peer, &reply, fd.as_ref()),
            Answer::Pending(name, holder, to) => {
                let pending = Pending::new(&name);
                let reply = Reply::Connected { errno: 0, pending: true, name: Some(name) };
                send(peer, &reply, Some(&pending.application));
                self.finish_later(name, holder, to, pending);
            }
            Answer::Later(name, holder, to) => {
                let verdict = self.verdict();
                let (reply, fd) = match verdict {
                    ConnectState::Established => self.connect_now(name, holder, &to),
                    _ => (Reply::Connected { errno: libc::ETIMEDOUT, pending: false, name: None }, None),
                };
                send(peer, &reply, fd.as_ref());
            }
            Answer::Silence => {
                let state = self.state();
                drop(self.changed.wait_while(state, |state| !state.stopped).unwrap());
            }
        }
    }

    /// Holds who binds; `false` when he is hung up on instead of being answered.
    fn held(&self, peer: &OwnedFd, request: &Request) -> bool {
        send(peer, &Reply::Hold, None);
        let mut state = self.state();
        state.requests.push(request.clone());
        self.changed.notify_all();
        let before = state.hung_up;
        let holds = |state: &mut State| self.holds_binds.load(Ordering::Relaxed) && state.hung_up == before && !state.stopped;
        let state = self.changed.wait_while(state, holds).unwrap();
        state.hung_up == before && !state.stopped
    }

    fn verdict(&self) -> ConnectState {
        let state = self.state();
        let state = self.changed.wait_while(state, |state| state.verdict.is_none() && !state.stopped).unwrap();
        state.verdict.unwrap_or(ConnectState::Refused)
    }

    fn answer(self: &Arc<Self>, request: &Request, fd: Option<OwnedFd>) -> Answer {
        match request {
            Request::Bind { addr, v6_only, .. } => self.bind(*addr, *v6_only, fd.expect("no holder")),
            Request::Listen { listener, .. } => {
                self.state().listeners.get_mut(listener).expect("never bound").listens = true;
                Answer::Reply(Reply::Registered { errno: 0 }, None)
            }
            Request::Withdraw { listener } => {
                let listener = self.state().listeners.remove(listener).unwrap();
                assert!(!listener.listens);
                if self.keeps_holders.load(Ordering::Relaxed) {
                    let_go(listener.holder);
                    return Answer::Reply(Reply::Withdrawn, None);
                }
                Answer::Reply(Reply::Withdrawn, Some(listener.holder))
            }
            Request::Connect { addr, nonblocking, .. } => self.connect(*addr, *nonblocking, fd),
            Request::Accepted { .. } => panic!("a gateway asks for that, no shim"),
            Request::HowEnded { name } => {
                let state = self.state();
                let living = state.connections.get(&name.id).map(|connection| connection.ended);
                let errno = living.or_else(|| state.ended.get(&name.id).copied()).unwrap_or(libc::ECONNRESET);
                Answer::Reply(Reply::Ended { errno }, None)
            }
            Request::SetOption { name, level, option, value } => {
                let state = self.state();
                let errno = state.holder(name).map_or(libc::ENOPROTOOPT, |holder| options::set(holder, *level, *option, value));
                Answer::Reply(Reply::Option { errno, value: Vec::new() }, None)
            }
            Request::GetOption { name, level, option, length } => {
                let state = self.state();
                let got = state.holder(name).map(|holder| options::get(holder, *level, *option, *length as usize));
                let (errno, value) = got.unwrap_or((libc::ENOPROTOOPT, Vec::new()));
                Answer::Reply(Reply::Option { errno, value }, None)
            }
            Request::Closed { name, .. } if name.role == Role::Listener => {
                // The port is free again when every copy is closed: then the name is.
                if rustix::net::bind(unix_socket(SocketType::STREAM), &address(name)).is_ok() {
                    let closed = self.state().listeners.remove(&name.id);
                    if let Some(closed) = closed {
                        let_go(closed.holder);
                    }
                }
                Answer::Nothing
            }
            Request::Closed { .. } | Request::Finished { .. } | Request::Aborted { .. } => Answer::Nothing,
        }
    }

    fn bind(&self, addr: Endpoint, v6_only: bool, holder: OwnedFd) -> Answer {
        assert_eq!(options::v6_only(&holder), v6_only);
        let mut state = self.state();
        let reply = match rustix::net::bind(&holder, &SocketAddr::from(addr)) {
            Ok(()) => {
                let id = State::new_id();
                let name = Name::listener(id, local(&holder));
                state.listeners.insert(id, Listener { name, holder, listens: false });
                Reply::Bound { errno: 0, listener: id, name: Some(name) }
            }
            Err(errno) => Reply::Bound { errno: errno.raw_os_error(), listener: 0, name: None },
        };
        Answer::Reply(reply, None)
    }

    fn connect(self: &Arc<Self>, addr: Endpoint, nonblocking: bool, fd: Option<OwnedFd>) -> Answer {
        let mut state = self.state();
        let Some(service) = state.service(addr) else {
            return Answer::Reply(Reply::Bypass, None);
        };
        let behaviour = state.behaviours.pop_front();
        match behaviour {
            Some(Behaviour::Refuse(errno)) => {
                return Answer::Reply(Reply::Connected { errno, pending: false, name: None }, None);
            }
            Some(Behaviour::KeepSilent) => return Answer::Silence,
            Some(Behaviour::Die) => return Answer::HangUp,
            Some(Behaviour::Pend | Behaviour::Serve) | None => {}
        }
        let holder = fd.expect("no holder");
        let mut own = local(&holder);
        if own.port == 0 {
            assert_eq!(options::set(&holder, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &0_i32.to_ne_bytes()), 0);
            rustix::net::bind(&holder, &SocketAddr::from(own)).unwrap();
            own = local(&holder);
        }
        if own.ip.is_unspecified() {
            own.ip = if addr.ip.is_unspecified() { service.local.ip } else { addr.ip };
        }
        let name = Name { role: Role::Client, id: State::new_id(), local: own, peer: addr };
        drop(state);
        match behaviour {
            Some(Behaviour::Pend) if nonblocking => Answer::Pending(name, holder, service),
            Some(Behaviour::Pend) => Answer::Later(name, holder, service),
            _ => {
                let (reply, fd) = self.connect_now(name, holder, &service);
                Answer::Reply(reply, fd)
            }
        }
    }

    fn connect_now(self: &Arc<Self>, name: Name, holder: OwnedFd, service: &Name) -> (Reply, Option<OwnedFd>) {
        let (application, own) = named_pair(&name);
        match self.join(name, holder, service, UnixStream::from(own), || ()) {
            Ok(()) => (Reply::Connected { errno: 0, pending: false, name: Some(name) }, Some(application)),
            Err(errno) => (Reply::Connected { errno, pending: false, name: None }, None),
        }
    }

    fn finish_later(self: &Arc<Self>, name: Name, holder: OwnedFd, service: Name, pending: Pending) {
        let shared = Arc::clone(self);
        thread::spawn(move || match shared.verdict() {
            ConnectState::Established => {
                let client = pending.own.try_clone().unwrap();
                shared.join(name, holder, &service, client, || pending.establish()).unwrap();
            }
            failed => options::set_priority(&pending.application, failed.priority()),
        });
    }

    /// Connects `client` to the service's listener. Both ends are known before either application can speak of its own;
    /// `established` is called before the first byte is carried.
    fn join(
        self: &Arc<Self>,
        name: Name,
        holder: OwnedFd,
        service: &Name,
        client: UnixStream,
        established: impl FnOnce(),
    ) -> Result<(), i32> {
        let server = unix_socket(SocketType::STREAM);
        let family = service.local.family();
        let seen = |endpoint: Endpoint| endpoint.in_family(family).unwrap();
        let server_name = Name { role: Role::Server, id: name.id, local: seen(name.peer), peer: seen(name.local) };
        rustix::net::bind(&server, &address(&server_name)).unwrap();
        let server = UnixStream::from(server);
        let family = if family == IpFamily::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let connection = Connection {
            client: client.try_clone().unwrap(),
            server: server.try_clone().unwrap(),
            client_holder: holder,
            server_holder: rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap(),
            ended: 0,
            open: 2,
        };
        self.state().connections.insert(name.id, connection);
        if let Err(errno) = rustix::net::connect(&server, &address(service)) {
            self.state().connections.remove(&name.id);
            return Err(errno.raw_os_error());
        }
        established();
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let shared = Arc::clone(self);
            thread::spawn(move || {
                pump(from, to);
                shared.direction_ended(name.id);
            });
        }
        Ok(())
    }

    fn direction_ended(&self, id: u64) {
        let mut state = self.state();
        let Some(connection) = state.connections.get_mut(&id) else { return };
        connection.open -= 1;
        if connection.open == 0 {
            let how = connection.ended;
            state.connections.remove(&id);
            state.ended.insert(id, how);
        }
    }
}

enum Answer {
    Nothing,
    Reply(Reply, Option<OwnedFd>),
    Pending(Name, OwnedFd, Name),
    Later(Name, OwnedFd, Name),
    HangUp,
    Silence,
}

impl State {
    fn new_id() -> u64 {
        // The names are visible to every process of this machine, so ids differ between mocks.
        u64::from(std::process::id()) << 32 | (NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn service(&self, to: Endpoint) -> Option<Name> {
        let to = to.unmapped();
        let matches = |local: Endpoint| {
            let local = local.unmapped();
            local.port == to.port
                && (local.ip == to.ip
                    || to.ip.is_unspecified()
                    || (local.ip.is_unspecified() && (to.ip.is_ipv6() == local.ip.is_ipv6() || to.ip.is_ipv4())))
        };
        self.listeners.values().filter(|listener| listener.listens).map(|listener| listener.name).find(|name| matches(name.local))
    }

    fn holder(&self, name: &Name) -> Option<&OwnedFd> {
        match name.role {
            Role::Listener => self.listeners.get(&name.id).map(|listener| &listener.holder),
            Role::Client => self.connections.get(&name.id).map(|connection| &connection.client_holder),
            Role::Server => self.connections.get(&name.id).map(|connection| &connection.server_holder),
        }
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A connection whose application's end is full, so that it does not show as writable.
struct Pending {
    application: OwnedFd,
    own: UnixStream,
    filler: usize,
}

impl Pending {
    fn new(name: &Name) -> Self {
        let (application, own) = named_pair(name);
        rustix::net::sockopt::set_socket_send_buffer_size(&application, 1).unwrap();
        options::set_priority(&application, ConnectState::Pending.priority());
        let mut filler = 0;
        while let Ok(sent) = rustix::net::send(&application, &[0; 1024], SendFlags::DONTWAIT) {
            filler += sent;
        }
        Self { application, own: UnixStream::from(own), filler }
    }

    fn establish(mut self) {
        options::set_priority(&self.application, ConnectState::Established.priority());
        rustix::net::sockopt::set_socket_send_buffer_size(&self.application, 212_992).unwrap();
        self.own.read_exact(&mut vec![0; self.filler]).unwrap();
    }
}

fn pump(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = [0; 65536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Closes a bound socket such that its port is free: no program that is just being started holds a copy.
fn let_go(holder: OwnedFd) {
    let _none = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    drop(holder);
}

/// A mock takes eight descriptors for a connection, and all tests run in one process.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
}

fn unix_socket(kind: SocketType) -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn address(name: &Name) -> SocketAddrUnix {
    SocketAddrUnix::new_abstract_name(&name.to_bytes()).unwrap()
}

fn local(holder: &OwnedFd) -> Endpoint {
    SocketAddr::try_from(rustix::net::getsockname(holder).unwrap()).unwrap().into()
}

/// The application's end, whose peer has `name`, and the ARMOR's.
fn named_pair(name: &Name) -> (OwnedFd, OwnedFd) {
    let listener = unix_socket(SocketType::STREAM);
    rustix::net::bind(&listener, &address(name)).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let application = unix_socket(SocketType::STREAM);
    rustix::net::connect(&application, &address(name)).unwrap();
    let own = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
    (application, own)
}

fn receive(peer: &OwnedFd) -> Option<(Request, Option<OwnedFd>)> {
    let mut buffer = [0; DATAGRAM_LIMIT];
    let mut space = [MaybeUninit::uninit(); 64];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    let got = rustix::net::recvmsg(peer.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let mut passed = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            passed = passed.or(fds.last());
        }
    }
    (got.bytes > 0).then(|| (Request::decode(&buffer[..got.bytes]).unwrap(), passed))
}

fn send(peer: &OwnedFd, reply: &Reply, fd: Option<&OwnedFd>) {
    let datagram = reply.encode().unwrap();
    let mut space = [MaybeUninit::uninit(); 64];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    // The shim may have given up waiting.
    let _ = rustix::net::sendmsg(peer, &[std::io::IoSlice::new(&datagram)], &mut control, SendFlags::NOSIGNAL);
}

/// A port that nobody listens on. It lies below those that the kernel gives away by itself, so that it stays free until it is bound.
/// Found by connecting: a probe that binds would be held for a moment by a program that another test is just starting.
pub(crate) fn free_port() -> u16 {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        let tried = std::process::id().wrapping_mul(97).wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (tried % 20_000) as u16;
        if TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
}
