//! `APP_COMM_CLIENT`: where client applications hook up, and the proxy of the server towards them (thesis §4.2.1).
//!
//! Purpose: takes connect requests from the shim, finds the ARMOR that oversees the server, and carries the bytes of each
//! connection; it keeps what the client said since the mark, so that the server and its whole node may vanish.
//! Subscribes: `MSG_APP_STARTED`, `MSG_APP_IS_OVER`, `MSG_APP_FAILED`, `MSG_APP_SERVER_TABLE`, `MSG_APP_SERVER_INFO`, `MSG_APPCOMM_CONNECT_REPLY`,
//! `MSG_APPCOMM_REPLAY_CONNECT`, `MSG_APPCOMM_REPLAY`, `MSG_APPCOMM_DATA`, `MSG_APPCOMM_ACK`, `MSG_APPCOMM_RESET`, `MSG_STATE_MEMORY`,
//! `MSG_APP_SERVICE_GONE`, `MSG_LINK_CHANGED`.
//! Emits: `MSG_APP_SERVER_SUBSCRIBE`, `MSG_APP_LOOKUP_SERVER_INFO`, `MSG_APP_SERVER_TABLE_ACK`, `MSG_APP_CLIENT_CONNECTED`,
//! `MSG_APPCOMM_SERVER_CONNECT_REQUEST`, `MSG_APPCOMM_DATA`, `MSG_APPCOMM_ACK`, `MSG_APPCOMM_RESET`.
//! Configuration: `closed` (refuse what is no registered service, thesis §4.2.1), `allowed_uids`, `window_bytes`, `log_bytes`,
//! `spill_bytes` and `spill_dir` (where a log goes beyond `log_bytes`), `max_connections`.

#[path = "app_comm_client/accepted.rs"]
mod accepted;
#[path = "app_comm_client/ftm.rs"]
mod ftm;
#[path = "app_comm_client/look_up.rs"]
mod look_up;
#[path = "app_comm_client/moved.rs"]
mod moved;
#[path = "app_comm_client/reattach.rs"]
mod reattach;
#[path = "app_comm_client/restored.rs"]
mod restored;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_journal::{Bounds, Journal, Recovery};
use armor_proto::connection::{ClientEnd, ConnectRequest, Event as EndEvent, Replay, ResetReason};
use armor_proto::hookup::{CLIENT_SOCKET, Endpoint, Name, Reply, Request, Role};
use armor_proto::ids::{ArmorId, ConnectionId};
use look_up::LookUp;
use reattach::{Application, Reattachable};
use restored::{About, Keys, Wait};
use serde::Deserialize;

use crate::endpoints::{
    AT_ONCE, ApplicationSocket, Asked, Crowd, Handed, HookupListener, Keeping, LISTED, Note, Pending, Port, Proxy, Read, Remembered,
    ReplyTo, ServerTable, SharedFile, SpillFile, Whereabouts, client_pair, connection_config, descriptors, get_option_for, how_ended,
    let_bind_choose_a_port, policy, set_option_for, source_address_for,
};
use crate::operations::{
    AppClientConnected, AppLookupServerInfo, AppServerInfo, AppServerSubscribe, AppServerTable, AppServerTableAck, AppcommAck,
    AppcommConnectReply, AppcommData, AppcommReplay, AppcommReplayConnect, AppcommReset, AppcommServerConnectRequest, ClientRow, ServerRow,
};

/// Connects that may wait for the first table of servers; one more is refused.
const MAX_EARLY: usize = 1024;
/// Timer token: ask the FTM again. Other tokens are connection ids, which are never 0.
const SUBSCRIBE: u64 = 0;
/// How often the FTM is asked until it answers, and then to see that nothing was missed.
const SUBSCRIBE_AGAIN: Duration = Duration::from_millis(200);
const SUBSCRIBED_AGAIN: Duration = Duration::from_secs(5);

/// Configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    closed: bool,
    allowed_uids: Vec<u32>,
    window_bytes: u32,
    log_bytes: usize,
    spill_bytes: u64,
    spill_dir: Option<PathBuf>,
    max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            closed: false,
            allowed_uids: Vec::new(),
            window_bytes: 1 << 20,
            log_bytes: 4 << 20,
            spill_bytes: 1 << 30,
            spill_dir: None,
            max_connections: 65_536,
        }
    }
}

struct Client {
    port: Port<ClientEnd>,
    name: Name,
    server: ServerRow,
    dialled: Endpoint,
    /// The application's original socket: keeps the local port and answers for its TCP options.
    /// Not kept in the vault, so that its port is free as soon as the client has closed it.
    holder: Option<OwnedFd>,
    waiting: Option<Waiting>,
    looked_up: LookUp,
    state: State,
    pid: u32,
    /// The number that the socket had in that process when it connected.
    descriptor: i32,
    /// What its log goes on in.
    spilled: Option<SharedFile>,
    /// What lets it outlive that process.
    reattach: Option<Reattachable>,
    /// Life of this end's socket, so that a late task of an earlier socket is told apart.
    life: u32,
}

impl Client {
    /// A process has the connection, or has closed it just now.
    fn is_attached(&self) -> bool {
        self.port.socket.is_some() && !self.port.end.is_lost()
    }
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Connecting,
    Established,
    Recovering,
    /// Its client's process is gone, and the next one is awaited.
    Lost,
    Finished,
    /// Finished, and kept for the client's next process.
    Kept,
    Reset,
}

/// How the application waits for its connect.
enum Waiting {
    Blocked {
        asker: ReplyTo,
        application: OwnedFd,
    },
    Polling(Pending),
    /// It does not: a client without a shim.
    Accepted,
}

/// The element.
pub struct AppCommClient {
    config: Config,
    socket: PathBuf,
    spill_dir: PathBuf,
    table: Option<ServerTable>,
    version: u64,
    early: VecDeque<Asked>,
    /// Connections that the FTM may not know of.
    untold: HashSet<ConnectionId>,
    clients: HashMap<ConnectionId, Client>,
    /// Supervised ones whose connections outlive their processes.
    applications: BTreeMap<String, Application>,
    resets: Remembered<ResetReason>,
    crowd: Crowd,
    next: u64,
    keeping: Keeping,
    journal: Journal,
    /// What an earlier life has left, until this one starts.
    left: Option<(Result<Recovery, String>, Handed)>,
}

impl Element for AppCommClient {
    const NAME: &'static str = "APP_COMM_CLIENT";
    const PURPOSE: &'static str = "hook-up of client applications; proxy of the server towards them (thesis §4.2.1)";
    const EXAMPLE: &'static str = "closed = false\nallowed_uids = []\nwindow_bytes = 1048576\nlog_bytes = 4194304\nspill_bytes = 1073741824\nspill_dir = \"/var/tmp\"\nmax_connections = 65536\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        // Ids are drawn per life of the ARMOR, so that those of an earlier life never come again.
        let next = armor_core::events::now_ms() << 20 ^ setup.armor.0;
        let spill_dir = config.spill_dir.clone().unwrap_or_else(|| setup.run_dir.clone());
        if !spill_dir.is_absolute() {
            return Err(format!("spill_dir {} is a relative path; set it to an absolute one", spill_dir.display()));
        }
        descriptors::take_all();
        let (keeping, mut handed) = Keeping::open(setup, Self::NAME)?;
        let bounds = Bounds { records: u32::try_from(config.max_connections).unwrap_or(u32::MAX), ..Bounds::default() };
        let (journal, recovery) = keeping.journal(&mut handed, &bounds)?;
        Ok(AppCommClient {
            config,
            socket: setup.run_dir.join(CLIENT_SOCKET),
            spill_dir,
            table: None,
            version: 0,
            early: VecDeque::new(),
            untold: HashSet::new(),
            clients: HashMap::new(),
            applications: BTreeMap::new(),
            resets: Remembered::default(),
            crowd: Crowd::default(),
            next,
            keeping,
            journal,
            left: Some((recovery, handed)),
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::application_started)
            .on(Self::application_is_over)
            .on(Self::application_failed)
            .on(Self::table)
            .on(Self::server_info)
            .on(Self::memory)
            .on(Self::connect_reply)
            .on(Self::replay_connects)
            .on(Self::replay)
            .on(Self::service_gone)
            .on(Self::data)
            .on(Self::ack)
            .on(Self::reset)
            .on(Self::link_changed)
            .emits::<AppServerSubscribe>()
            .emits::<AppLookupServerInfo>()
            .emits::<AppServerTableAck>()
            .emits::<AppClientConnected>()
            .emits::<AppcommServerConnectRequest>()
            .emits::<AppcommData>()
            .emits::<AppcommAck>()
            .emits::<AppcommReset>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        if self.config.spill_bytes > 0 && !self.spill_dir.is_dir() {
            return Err(format!("spill_dir {} is no directory; make it, or set spill_bytes to 0", self.spill_dir.display()));
        }
        let listener = HookupListener::bind(&self.socket).map_err(|error| format!("{}: {error}", self.socket.display()))?;
        listener.serve(self.config.allowed_uids.clone(), context, Self::asked);
        self.keeping.watch(context, |_, _, _| {}, Self::keep_again);
        if let Some((recovery, mut handed)) = self.left.take() {
            self.take_up(recovery, &mut handed, context);
        }
        self.timer(SUBSCRIBE, context);
        Ok(())
    }

    fn capture(&self) -> Option<Vec<u8>> {
        rmp_serde::to_vec(&self.applications).ok()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.applications = rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        if token == SUBSCRIBE {
            context.send_to(ArmorId::FTM, AppServerSubscribe { armor: context.armor() });
            context.timer(if self.table.is_some() { SUBSCRIBED_AGAIN } else { SUBSCRIBE_AGAIN }, SUBSCRIBE);
            return;
        }
        self.time_is_up(ConnectionId(token), context);
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.keeping.ended();
    }

    fn status(&self) -> serde_json::Value {
        let connections: Vec<_> = self
            .clients
            .iter()
            .take(LISTED)
            .map(|(id, client)| {
                serde_json::json!({
                    "id": id.to_string(), "service": client.server.service, "address": SocketAddr::from(client.dialled).to_string(),
                    "peer": SocketAddr::from(client.name.local).to_string(), "state": client.state, "pid": client.pid,
                    "sent": client.port.read_bytes, "received": client.port.written_bytes, "incarnation": client.server.incarnation.0,
                })
            })
            .collect();
        let not_listed = self.clients.len().saturating_sub(LISTED);
        serde_json::json!({ "connections": connections, "not_listed": not_listed, "table_version": self.version, "reattach": self.reattach_status() })
    }
}

impl AppCommClient {
    fn asked(&mut self, asked: Asked, context: &mut Context<'_>) {
        match &asked.request {
            Request::Connect { .. } => {
                if self.table.is_some() {
                    self.connect(asked, context);
                } else if self.early.len() < MAX_EARLY {
                    self.early.push_back(asked);
                } else {
                    asked.reply.send(&Reply::Connected { errno: libc::EAGAIN, pending: false, name: None }, None);
                }
            }
            Request::Closed { name, .. } | Request::Finished { name, .. } | Request::Aborted { name, .. } => {
                // The end of file itself says the same on this side; a connect under way has no other way to be told.
                let id = ConnectionId(name.id);
                let under_way = matches!(asked.request, Request::Closed { .. } | Request::Aborted { .. });
                if under_way && self.clients.get(&id).is_some_and(|client| client.waiting.is_some()) {
                    self.forget(id, context);
                } else if under_way {
                    self.announced(id, matches!(asked.request, Request::Aborted { .. }), context);
                }
            }
            Request::HowEnded { name } => asked.reply.send(&how_ended(&self.resets, ConnectionId(name.id)), None),
            Request::SetOption { name, level, option, value } => {
                asked.reply.send(&set_option_for(self.holder(name), *level, *option, value), None);
            }
            Request::GetOption { name, level, option, length } => {
                asked.reply.send(&get_option_for(self.holder(name), *level, *option, *length), None);
            }
            Request::Accepted { .. } => self.accepted(asked, context),
            Request::Bind { .. } | Request::Listen { .. } | Request::Withdraw { .. } => {
                asked
                    .reply
                    .send(&Reply::Refused { reason: "this socket serves clients; servers ask at app_comm_server.sock".to_owned() }, None);
            }
        }
    }

    fn holder(&self, name: &Name) -> Option<&OwnedFd> {
        self.clients.get(&ConnectionId(name.id))?.holder.as_ref()
    }

    fn connect(&mut self, asked: Asked, context: &mut Context<'_>) {
        let Some(asked) = self.reattach_if_one_waits(asked, context) else { return };
        let Request::Connect { addr, nonblocking, descriptor, .. } = asked.request else { return };
        let refuse = |errno: i32| asked.reply.send(&Reply::Connected { errno, pending: false, name: None }, None);
        let Some(server) = self.table.as_ref().and_then(|table| table.find(addr)).cloned() else {
            if self.config.closed {
                refuse(libc::ECONNREFUSED);
            } else {
                asked.reply.send(&Reply::Bypass, None);
            }
            return;
        };
        if self.clients.len() >= self.config.max_connections {
            self.tell(Event::new("connect-refused").with("service", &server.service).with("reason", "max_connections"), context);
            return refuse(libc::EAGAIN);
        }
        let local = local_address(asked.socket.as_ref(), addr);
        self.next = self.next.wrapping_add(1).max(1);
        let id = ConnectionId(self.next);
        let name = Name { role: Role::Client, id: id.0, local, peer: addr };
        let made = client_pair(&name).and_then(|pair| {
            let pending = nonblocking.then(|| pair.pend()).transpose()?;
            Ok((ApplicationSocket::new(pair.own)?, pair.application, pending))
        });
        let (own, application, pending) = match made {
            Ok(made) => made,
            Err(error) => {
                self.tell(Event::new("connect-refused").with("service", &server.service).with("reason", &error), context);
                return refuse(error.raw_os_error().unwrap_or(libc::ECONNREFUSED));
            }
        };
        let now = Instant::now();
        let (mut end, spilled) = self.new_end(id, &server, now);
        let mut reattach = None;
        if let Some(about) = self.reattach_for(asked.pid, context) {
            match self.let_reattach(id, about, &mut end, &application, now) {
                Ok(made) => reattach = Some(made),
                Err(error) => {
                    let told = Event::new("reattach-lost").with("service", &server.service).with("connection", id);
                    self.tell(told.with("reason", error), context);
                }
            }
        }
        let outlives = reattach.as_ref().map(|reattach| reattach.about.clone());
        let about = About { id, local, dialled: addr, server: server.clone(), pid: asked.pid, descriptor, reattach: outlives };
        let wait = pending.as_ref().map_or(Wait::Blocked, |pending| Wait::Polling(pending.filled()));
        let mut port = match Port::begin(&self.journal, &about, Note { other_end: server.armor, word: wait.word() }, end) {
            Ok(port) => port,
            Err(error) => {
                self.tell(Event::new("connect-refused").with("service", &server.service).with("reason", error), context);
                return refuse(libc::EAGAIN);
            }
        };
        let keys = Keys::of(id);
        self.keeping.keep(&keys.socket, own.descriptor().as_fd());
        self.keeping.keep_some(&keys.application, pending.as_ref().map(|_| &application));
        port.attach(own);
        self.takes_place(asked.pid, addr, id, context);
        let waiting = match pending {
            Some(pending) => {
                let reply = asked.reply;
                context
                    .then(move || reply.send(&Reply::Connected { errno: 0, pending: true, name: Some(name) }, Some(application.as_fd())));
                Waiting::Polling(pending)
            }
            None => Waiting::Blocked { asker: asked.reply, application },
        };
        let client = Client {
            port,
            name,
            server,
            dialled: addr,
            holder: asked.socket,
            waiting: Some(waiting),
            looked_up: LookUp::default(),
            state: State::Connecting,
            pid: asked.pid,
            descriptor,
            spilled,
            reattach,
            life: 0,
        };
        self.clients.insert(id, client);
        self.turn(id, now, context);
    }

    /// The end of a new connection, and what its log may go on in.
    fn new_end(&self, id: ConnectionId, server: &ServerRow, now: Instant) -> (ClientEnd, Option<SharedFile>) {
        let config =
            connection_config(self.config.window_bytes, self.config.log_bytes, server.deadline_ms, crate::operations::OnDivergence::Reset);
        let mut end = ClientEnd::new(id, config, policy(server.policy, server.settled_ms), now);
        let spill = self.spill(id);
        let spilled = spill.as_ref().map(SpillFile::shared);
        if let Some(spill) = spill {
            end.set_spill(Box::new(spill));
        }
        (end, spilled)
    }

    fn table(&mut self, table: &AppServerTable, context: &mut Context<'_>) {
        if table.version >= self.version || self.table.is_none() {
            self.version = table.version;
            self.table = Some(ServerTable::new(table.rows.clone(), table.node_addresses.clone()));
            self.follow_moves(context);
        }
        context.send_to(ArmorId::FTM, AppServerTableAck { version: table.version, armor: context.armor() });
        for early in std::mem::take(&mut self.early) {
            self.asked(early, context);
        }
        self.tell_of_connections(table, context);
    }

    /// The FTM's word on where a server is now (thesis §4.2.1): asked for when the ARMOR that we knew refuses.
    fn server_info(&mut self, info: &AppServerInfo, context: &mut Context<'_>) {
        let id = ConnectionId(info.request);
        // An answer that comes a second time speaks of a server that has yet to refuse.
        let Some(client) = self.clients.get_mut(&id) else { return };
        if !client.looked_up.answered() {
            return;
        }
        match &info.row {
            // Its node has failed, and it is being started elsewhere: asked again until the deadline.
            Some(_) if info.moving => {}
            // It has moved: the connect request that is repeated by timer finds it there.
            Some(row) if (row.armor, row.incarnation) != (client.port.note.other_end, client.server.incarnation) => {
                client.port.note.other_end = row.armor;
                client.server = row.clone();
            }
            _ => self.refused(id, libc::ECONNREFUSED, context),
        }
    }

    fn connect_reply(&mut self, reply: &AppcommConnectReply, context: &mut Context<'_>) {
        let source = context.source();
        let id = reply.reply.connection;
        if reply.reply.errno == libc::ECONNREFUSED
            && let Some(client) = self.clients.get_mut(&id).filter(|client| client.waiting.is_some())
        {
            // Perhaps the table is older than the server: the FTM knows best.
            if client.looked_up.refused(Instant::now()) {
                context.send_to(ArmorId::FTM, AppLookupServerInfo { address: client.dialled, asker: context.armor(), request: id.0 });
            }
            return;
        }
        self.with(id, context, |port, now| {
            let waited = !port.end.is_established();
            let _ = port.end.handle_connect_reply(&reply.reply, now);
            if waited && port.end.is_established() {
                // Not so an old reply, which may come from where the server was.
                port.note.other_end = source;
            }
        });
    }

    /// The server is back (thesis §4.5.1): connect requests are replayed, to the ARMOR that oversees it now.
    fn replay_connects(&mut self, asked: &AppcommReplayConnect, context: &mut Context<'_>) {
        self.replay_some(asked.clone(), 0, context);
    }

    /// Replays some of them from `first` on, and lets others have a turn before the rest: a server may have thousands of clients.
    fn replay_some(&mut self, asked: AppcommReplayConnect, first: usize, context: &mut Context<'_>) {
        let next = (first + AT_ONCE).min(asked.connections.len());
        for &id in &asked.connections[first..next] {
            let Some(client) = self.clients.get_mut(&id) else {
                let row = ClientRow { connection: id, armor: context.armor() };
                context.send_to(ArmorId::FTM, AppClientConnected { address: asked.address, client: row, connected: false });
                continue;
            };
            if asked.incarnation < client.server.incarnation {
                // It was under way for long, and the server has moved since.
                continue;
            }
            client.port.note.other_end = asked.server;
            (client.server.armor, client.server.incarnation) = (asked.server, asked.incarnation);
            self.with(id, context, |port, now| port.end.replay(asked.incarnation, now));
        }
        if next < asked.connections.len() {
            let handle = context.handle::<Self>();
            context.spawn(async move {
                tokio::task::yield_now().await;
                handle.call(|element, context| element.replay_some(asked, next, context));
            });
        }
    }

    fn replay(&mut self, asked: &AppcommReplay, context: &mut Context<'_>) {
        let Replay { connection, .. } = asked.replay;
        self.with(connection, context, |port, now| {
            let _ = port.end.handle_replay(&asked.replay, now);
        });
    }

    fn readable(&mut self, id: ConnectionId, life: u32, context: &mut Context<'_>) -> Read {
        let now = Instant::now();
        let Some(client) = self.clients.get_mut(&id).filter(|client| client.life == life) else { return Read::Finished };
        let (read, ending) = client.port.read(now);
        if let Some(ending) = ending {
            self.stream_ended(id, ending, now, context);
            self.watch_half_closed(id, context);
        }
        self.turn(id, now, context);
        read
    }

    fn established(&mut self, id: ConnectionId, context: &mut Context<'_>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.state = State::Established;
        let awaited = client.waiting.is_some();
        match client.waiting.take() {
            Some(Waiting::Blocked { asker, application }) => {
                // Saved first: an application that has its socket must not be taken for one that waits.
                client.port.note.word = Wait::Over.word();
                client.port.save();
                asker.send(&Reply::Connected { errno: 0, pending: false, name: Some(client.name) }, Some(application.as_fd()));
            }
            Some(Waiting::Polling(pending)) => {
                client.port.note.word = Wait::Emptying(pending.filled()).word();
                client.port.save();
                let (emptied, now) = (pending.announce().and_then(|()| client.port.discard(pending.filled())), Instant::now());
                if emptied.is_err() {
                    // What fills its buffer would pass for its first bytes: to the next life of this ARMOR too, if it was said to be over before.
                    client.port.end.abort(ResetReason::NoReplay, now);
                }
                client.port.note.word = Wait::Over.word();
                client.port.save();
                self.keeping.forget(&Keys::of(id).application);
                if let Err(error) = emptied {
                    let told = Event::new("connect-refused").with("connection", id).with("service", &client.server.service);
                    context.event(told.with("reason", error));
                    return self.turn(id, now, context);
                }
            }
            Some(Waiting::Accepted) => {
                client.port.note.word = Wait::Over.word();
                client.port.save();
            }
            // Its process is gone, and the next one has not asked yet.
            None if client.port.end.is_lost() => client.state = State::Lost,
            None => {}
        }
        let row = ClientRow { connection: id, armor: context.armor() };
        context.send_to(ArmorId::FTM, AppClientConnected { address: client.server.address, client: row, connected: true });
        if awaited {
            self.watch(id, context);
        }
    }

    /// Reads what the application says from now on.
    fn watch(&self, id: ConnectionId, context: &mut Context<'_>) {
        let Some(client) = self.clients.get(&id).filter(|client| client.waiting.is_none()) else { return };
        let Some(socket) = &client.port.socket else { return };
        let (watch, life, handle) = (socket.watch(), client.life, context.handle::<Self>());
        context.spawn(watch.readable(move || handle.call(|element, context| element.readable(id, life, context))));
    }

    /// Another vault keeps nothing yet.
    fn keep_again(&mut self) {
        self.keeping.keep_journal(&self.journal);
        for (&id, client) in &self.clients {
            let keys = Keys::of(id);
            self.keeping.keep_some(&keys.socket, client.port.socket.as_ref().map(ApplicationSocket::descriptor));
            if let Some(Waiting::Polling(pending)) = &client.waiting {
                self.keeping.keep(&keys.application, pending.application());
            }
            client.spilled.as_ref().and_then(|spilled| spilled.with(|file| self.keeping.keep(&keys.spill, file.as_fd())));
            self.keep_reattachable(id, client);
        }
    }

    /// Where the log of a connection may go on; it is kept from its first byte on.
    fn spill(&self, id: ConnectionId) -> Option<SpillFile> {
        let (keeping, key) = (self.keeping.clone(), Keys::of(id).spill);
        let made = move |file: &OwnedFd| keeping.keep(&key, file.as_fd());
        (self.config.spill_bytes > 0).then(|| SpillFile::new(&self.spill_dir, self.config.spill_bytes, made))
    }

    /// Nothing of the connection is kept any more.
    fn let_go(&self, id: ConnectionId) {
        let keys = Keys::of(id);
        for key in [&keys.socket, &keys.application, &keys.spill, &keys.transcript, &keys.copy] {
            self.keeping.forget(key);
        }
    }

    fn refused(&mut self, id: ConnectionId, errno: i32, context: &mut Context<'_>) {
        let Some(mut client) = self.clients.remove(&id) else { return };
        match client.waiting.take() {
            Some(Waiting::Blocked { asker, .. }) => asker.send(&Reply::Connected { errno, pending: false, name: None }, None),
            Some(Waiting::Polling(pending)) => pending.fail(errno),
            // Refusing comes too late: a reset is what is left to be said.
            Some(Waiting::Accepted) => client.port.reset(None),
            None => {}
        }
        client.port.detach();
        self.let_go(id);
        self.place_is_free(&client, id, context);
        self.tell(Event::new("connect-refused").with("service", &client.server.service).with("errno", errno), context);
    }

    fn forget(&mut self, id: ConnectionId, context: &mut Context<'_>) {
        if let Some(mut client) = self.clients.remove(&id) {
            client.port.detach();
            self.let_go(id);
            self.place_is_empty(&client, id, context);
            let row = ClientRow { connection: id, armor: context.armor() };
            context.send_to(ArmorId::FTM, AppClientConnected { address: client.server.address, client: row, connected: false });
        }
    }
}

impl Proxy for AppCommClient {
    type End = ClientEnd;

    fn port(&mut self, id: ConnectionId) -> Option<&mut Port<ClientEnd>> {
        self.clients.get_mut(&id).map(|client| &mut client.port)
    }

    fn connections(&self) -> Vec<ConnectionId> {
        self.clients.keys().copied().collect()
    }

    fn other_end(&self, id: ConnectionId) -> ArmorId {
        self.clients.get(&id).map_or(ArmorId::NONE, |client| client.port.note.other_end)
    }

    fn connect_request(&self, request: ConnectRequest, context: &Context<'_>) -> Option<AppcommServerConnectRequest> {
        let client = self.clients.get(&request.connection)?;
        let (address, client_address, dialled) = (client.server.address, client.name.local, client.dialled);
        Some(AppcommServerConnectRequest { address, client: context.armor(), client_address, dialled, request })
    }

    fn crowd(&mut self) -> &mut Crowd {
        &mut self.crowd
    }

    fn whereabouts(&self, id: ConnectionId) -> Option<Whereabouts> {
        let Client { pid, descriptor, name, .. } = *self.clients.get(&id)?;
        Some(Whereabouts { pid, descriptor, name })
    }

    fn was_reset(&mut self, id: ConnectionId, reason: ResetReason, context: &mut Context<'_>) {
        self.resets.remember(id, reason);
        // The application sees the reset when the last copy of this end is closed.
        self.let_go(id);
        self.drop_copy(id);
        let service = self.clients.get(&id).map_or("", |client| &client.server.service);
        let told = Event::new("connection-reset").with("connection", id).with("service", service);
        self.tell(told.with("reason", format!("{reason:?}")), context);
    }

    fn report(&mut self, id: ConnectionId, event: EndEvent, context: &mut Context<'_>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let service = client.server.service.clone();
        let told = |what: &str| Event::new(what).with("connection", id).with("service", &service);
        match event {
            EndEvent::Established { .. } => self.established(id, context),
            EndEvent::Refused { errno } => self.refused(id, errno, context),
            EndEvent::Reconnecting { .. } => client.state = State::Recovering,
            EndEvent::Reconnected { replayed, .. } => {
                client.state = State::Established;
                self.tell(told("connection-recovered").with("replayed_bytes", replayed), context);
            }
            EndEvent::SpillFailed(kind) => {
                let reason = if kind == ErrorKind::FileTooLarge { "spill_bytes is reached".to_owned() } else { kind.to_string() };
                self.tell(told("spill-failed").with("directory", self.spill_dir.display()).with("reason", reason), context);
            }
            EndEvent::LogOverflow { bytes } => self.tell(told("replay-lost").with("log_bytes", bytes), context),
            EndEvent::ReplayGivenUp => {
                self.tell(told("replay-lost").with("reason", "a state of the connection that no new process can be given"), context);
            }
            EndEvent::ReplayRegained => self.tell(told("replay-regained"), context),
            EndEvent::MarkRefused(mark) => self.tell(told("mark-refused").with("mark", format!("{mark:?}")), context),
            EndEvent::Diverged(how) => self.tell(told("connection-diverged").with("how", format!("{how:?}")), context),
            EndEvent::Finished => client.state = State::Finished,
            EndEvent::Reset(reason) => {
                client.state = State::Reset;
                if client.waiting.is_some() {
                    let errno = if reason == ResetReason::Deadline { libc::ETIMEDOUT } else { libc::ECONNREFUSED };
                    self.refused(id, errno, context);
                }
            }
            EndEvent::ClientLost
            | EndEvent::Reattached { .. }
            | EndEvent::SaidAgain { .. }
            | EndEvent::NotReattached
            | EndEvent::TranscriptLost(_)
            | EndEvent::Archived => self.report_process(id, event, context),
            // These are said by a server's end.
            EndEvent::Replayed | EndEvent::Recovered { .. } => {}
            EndEvent::Drained => self.forget(id, context),
        }
    }
}

/// The local address of a client: what its socket is bound to, made true by binding it now when it was not.
fn local_address(socket: Option<&OwnedFd>, towards: Endpoint) -> Endpoint {
    let source = Endpoint::new(source_address_for(towards.unmapped()), 0);
    let source = source.in_family(towards.family()).unwrap_or(source);
    let Some(socket) = socket else { return source };
    let bound_to = || rustix::net::getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok()).map(Endpoint::from);
    let bound = bound_to().map_or(source, |bound| if bound.ip.is_unspecified() { Endpoint { port: bound.port, ..source } } else { bound });
    if bound.port != 0 {
        return bound;
    }
    // An address that was bound without a port leaves the port to connect, which happens here.
    let_bind_choose_a_port(socket.as_fd());
    let _ = rustix::net::bind(socket, &SocketAddr::from(bound));
    bound_to().unwrap_or(source)
}
