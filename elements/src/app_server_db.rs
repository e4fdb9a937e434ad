//! `APP_SERVER_DB`: the run-time table of all servers in the network, part of the FTM (thesis §4.2.3).
//!
//! Purpose: maps the address that a server listens on to the ARMOR that oversees it, remembers each server's clients, and knows a
//! server in its recovery phase by the address that it listens on again (thesis §4.5.1).
//! Subscribes: `MSG_APP_REGISTER_SERVER`, `MSG_APP_UNREGISTER_SERVER`, `MSG_APP_LOOKUP_SERVER_INFO`, `MSG_APP_SERVER_SUBSCRIBE`,
//! `MSG_APP_SERVER_TABLE_ACK`, `MSG_APP_CLIENT_CONNECTED`, `MSG_DAEMON_REGISTER`, `MSG_ARMOR_INSTALLED`, `MSG_APP_MOVED`, `MSG_NODE_FAILED`, `MSG_NODE_BACK`.
//! Emits: `MSG_APP_SERVER_REGISTERED` (acknowledged), `MSG_APP_SERVER_INFO`, `MSG_APP_SERVER_TABLE`, `MSG_APP_SERVICE_GONE` (acknowledged).
//! Configuration: `max_servers`, `max_clients_per_server`, `table_wait_ms` (how long a listen waits for daemons to learn of it).
//!
//! Invariant: a service that was moved is registered by the ARMOR that it was moved to, and by no other.
//! Invariant: a listen that succeeds is known to every daemon that answers in time, so a client that is started after it finds the server.

#[path = "app_server_db/moved.rs"]
mod moved;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::{Event, now_ms};
use armor_core::operations::SendReliable;
use armor_proto::hookup::Endpoint;
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation, MessageId};
use armor_proto::message::Message;
use moved::Moved;
use serde::{Deserialize, Serialize};

use crate::endpoints::ServerTable;
use crate::operations::{
    AppClientConnected, AppLookupServerInfo, AppRegisterServer, AppServerInfo, AppServerRegistered, AppServerSubscribe, AppServerTable,
    AppServerTableAck, AppServiceGone, AppUnregisterServer, ArmorInstalled, DaemonRegister, ServerRow,
};

/// Timer token: capture the clients. Other tokens are versions, which are never 0.
const CAPTURE_CLIENTS: u64 = 0;
/// How long a client may wait to be captured: there may be thousands in a table, and each comes and goes. What an FTM loses with it the
/// clients' ARMORs tell again when their daemon registers.
const CLIENTS_WITHIN: Duration = Duration::from_millis(50);

/// Configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    max_servers: usize,
    max_clients_per_server: usize,
    table_wait_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { max_servers: 65_536, max_clients_per_server: 65_536, table_wait_ms: 1000 }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct State {
    servers: BTreeMap<Endpoint, Server>,
    node_addresses: BTreeSet<IpAddr>,
    subscribers: BTreeSet<ArmorId>,
    /// Of the table that was published last; grows over all lives, so that daemons tell a newer table from an older one.
    #[serde(default)]
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Server {
    row: ServerRow,
    clients: BTreeMap<ConnectionId, ArmorId>,
    /// The registration that made the row what it is. The same one again was not answered: this FTM's life before had died over it.
    #[serde(default)]
    request: u64,
    supervised: bool,
    moved: Moved,
    /// The last message that registered it.
    #[serde(default)]
    registered: MessageId,
}

impl Server {
    fn clients_by_armor(&self) -> BTreeMap<ArmorId, Vec<ConnectionId>> {
        let mut by_armor: BTreeMap<ArmorId, Vec<ConnectionId>> = BTreeMap::new();
        for (&connection, &armor) in &self.clients {
            by_armor.entry(armor).or_default().push(connection);
        }
        by_armor
    }
}

/// A server that waits until the daemons know of it.
struct WaitingServer {
    version: u64,
    missing: BTreeSet<ArmorId>,
    to: ArmorId,
    answer: AppServerRegistered,
}

/// The element.
pub struct AppServerDb {
    config: Config,
    state: State,
    waiting: Vec<WaitingServer>,
    /// Clients have come or gone since the state was captured.
    clients_changed: bool,
}

impl Element for AppServerDb {
    const NAME: &'static str = "APP_SERVER_DB";
    const PURPOSE: &'static str = "run-time table of the servers in the network and of their clients (thesis §4.2.3)";
    const EXAMPLE: &'static str = "max_servers = 65536\nmax_clients_per_server = 65536\ntable_wait_ms = 1000\n";
    type Config = Config;

    fn new(config: Config, _: &Setup) -> Result<Self, String> {
        // Beyond every version of a life whose state is lost, unless the clock was put back.
        let state = State { version: now_ms() << 16, ..State::default() };
        Ok(AppServerDb { config, state, waiting: Vec::new(), clients_changed: false })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::register)
            .on(Self::unregister)
            .on(Self::look_up)
            .on(Self::subscribe)
            .on(Self::table_known)
            .on(Self::client)
            .on(Self::daemon)
            .on(Self::moved)
            .on(Self::installed)
            .on(Self::node_failed)
            .on(Self::node_back)
            .emits::<AppServiceGone>()
            .emits::<AppServerRegistered>()
            .emits::<AppServerInfo>()
            .emits::<AppServerTable>()
            .emits::<SendReliable>();
    }

    fn timer(&mut self, version: u64, context: &mut Context<'_>) {
        if version == CAPTURE_CLIENTS {
            self.clients_changed = false;
            return context.state_changed();
        }
        // Whoever has not answered by now learns of the server when it answers again; its listen goes on.
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.version <= version) {
            for armor in std::mem::take(&mut waiting.missing) {
                // It may be gone. When it answers after all, or asks again, it is told of what comes.
                self.state.subscribers.remove(&armor);
                context.event(Event::new("server-table-late").with("armor", armor));
            }
        }
        self.answer_servers(context);
    }

    fn capture(&self) -> Option<Vec<u8>> {
        rmp_serde::to_vec(&self.state).ok()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let restored: State = rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        self.state = State { version: restored.version.max(self.state.version), ..restored };
        Ok(())
    }

    fn status(&self) -> serde_json::Value {
        let servers: Vec<_> = self
            .state
            .servers
            .values()
            .map(|server| {
                serde_json::json!({
                    "address": std::net::SocketAddr::from(server.row.address).to_string(), "service": server.row.service,
                    "armor": server.row.armor.to_string(), "incarnation": server.row.incarnation.0, "policy": server.row.policy,
                    "clients": server.clients.len(),
                })
            })
            .collect();
        serde_json::json!({ "servers": servers, "subscribers": self.state.subscribers.len(), "node_addresses": self.state.node_addresses })
    }
}

impl AppServerDb {
    fn register(&mut self, asked: &AppRegisterServer, context: &mut Context<'_>) {
        let mut row = asked.row.clone();
        row.address = row.address.unmapped();
        let mut answer = AppServerRegistered {
            address: asked.row.address,
            request: asked.request,
            errno: 0,
            incarnation: row.incarnation,
            clients: BTreeMap::new(),
        };
        let registered = context.message().map(|message| message.id).unwrap_or_default();
        let full = self.state.servers.len() >= self.config.max_servers;
        let mut recognised = false;
        match self.state.servers.get_mut(&row.address) {
            Some(known) if !known.moved.may_register(row.armor) => {
                let told = Event::new("server-refused").with("service", &row.service).with("armor", row.armor);
                context.event(told.with("reason", "the service was moved to another node"));
                answer.errno = libc::EADDRINUSE;
            }
            Some(known) if known.moved == Moved::Gone => {
                *known = Server {
                    row,
                    clients: BTreeMap::new(),
                    request: asked.request,
                    supervised: asked.supervised,
                    moved: Moved::Not,
                    registered,
                };
            }
            Some(known) if known.row.service != row.service => answer.errno = libc::EADDRINUSE,
            // One process that listens twice on the address (SO_REUSEPORT): the same life of the same server.
            Some(known) if known.row.armor == row.armor && known.row.incarnation == row.incarnation => {
                if known.request == asked.request {
                    answer.clients = known.clients_by_armor();
                }
                if !registered.is_before(known.registered) {
                    known.registered = registered;
                }
            }
            Some(known) => {
                row.incarnation = Incarnation(row.incarnation.0.max(known.row.incarnation.0 + 1));
                answer.incarnation = row.incarnation;
                answer.clients = known.clients_by_armor();
                known.request = asked.request;
                let recovered = Event::new("server-recognised")
                    .with("service", &row.service)
                    .with("incarnation", row.incarnation.0)
                    .with("clients", known.clients.len());
                context.event(recovered);
                known.row = row;
                known.supervised = asked.supervised;
                known.registered = registered;
                known.moved.registered();
                recognised = true;
            }
            None if full => {
                context.event(Event::new("server-refused").with("service", &row.service).with("reason", "the table is full (max_servers)"));
                answer.errno = libc::ENOBUFS;
            }
            None => {
                self.state.servers.insert(
                    row.address,
                    Server {
                        row,
                        clients: BTreeMap::new(),
                        request: asked.request,
                        supervised: asked.supervised,
                        moved: Moved::Not,
                        registered,
                    },
                );
            }
        }
        if answer.errno != 0 {
            context.send_reliable(Message::to(asked.row.armor, answer));
            return;
        }
        context.state_changed();
        self.publish(context);
        // Who knew it before finds it by its old row too, and is told the way from there.
        let missing = if recognised { BTreeSet::new() } else { self.state.subscribers.clone() };
        self.waiting.push(WaitingServer { version: self.state.version, missing, to: asked.row.armor, answer });
        context.timer(Duration::from_millis(self.config.table_wait_ms), self.state.version);
        self.answer_servers(context);
    }

    fn answer_servers(&mut self, context: &mut Context<'_>) {
        for ready in self.waiting.extract_if(.., |waiting| waiting.missing.is_empty()) {
            context.send_reliable(Message::to(ready.to, ready.answer));
        }
    }

    fn unregister(&mut self, gone: &AppUnregisterServer, context: &mut Context<'_>) {
        let address = gone.address.unmapped();
        let number = context.message().map(|message| message.id).unwrap_or_default();
        // Messages that are sent again overtake each other: it may have listened again since.
        let is_over = |server: &Server| {
            server.row.armor == gone.armor && server.moved.may_register(gone.armor) && !number.is_before(server.registered)
        };
        if self.state.servers.get(&address).is_some_and(is_over) {
            self.state.servers.remove(&address);
            context.state_changed();
            self.publish(context);
        }
    }

    fn look_up(&mut self, asked: &AppLookupServerInfo, context: &mut Context<'_>) {
        let row = self.table().find(asked.address).cloned();
        let moving = row.as_ref().and_then(|row| self.state.servers.get(&row.address)).is_some_and(|server| server.moved.is_under_way());
        context.send_to(asked.asker, AppServerInfo { address: asked.address, request: asked.request, row, moving });
    }

    fn table(&self) -> ServerTable {
        ServerTable::new(self.rows(), self.state.node_addresses.iter().copied().collect())
    }

    fn rows(&self) -> Vec<ServerRow> {
        self.state.servers.values().filter(|server| server.moved != Moved::Gone).map(|server| server.row.clone()).collect()
    }

    fn publish(&mut self, context: &mut Context<'_>) {
        self.state.version += 1;
        for &subscriber in &self.state.subscribers {
            self.tell(subscriber, context);
        }
    }

    fn tell(&self, subscriber: ArmorId, context: &mut Context<'_>) {
        let rows = self.rows();
        let node_addresses = self.state.node_addresses.iter().copied().collect();
        context.send_to(subscriber, AppServerTable { version: self.state.version, rows, node_addresses });
    }

    fn subscribe(&mut self, asked: &AppServerSubscribe, context: &mut Context<'_>) {
        if self.state.subscribers.insert(asked.armor) {
            context.state_changed();
        }
        self.tell(asked.armor, context);
    }

    /// No listen waits for an ARMOR that is gone. One that comes back asks for the table.
    fn installed(&mut self, installed: &ArmorInstalled, context: &mut Context<'_>) {
        if !installed.present {
            self.forget_subscriber(installed.armor, context);
        }
    }

    fn forget_subscriber(&mut self, armor: ArmorId, context: &mut Context<'_>) {
        if self.state.subscribers.remove(&armor) {
            context.state_changed();
        }
        for waiting in &mut self.waiting {
            waiting.missing.remove(&armor);
        }
        self.answer_servers(context);
    }

    fn table_known(&mut self, known: &AppServerTableAck, context: &mut Context<'_>) {
        if self.state.subscribers.insert(known.armor) {
            context.state_changed();
        }
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.version <= known.version) {
            waiting.missing.remove(&known.armor);
        }
        self.answer_servers(context);
    }

    fn client(&mut self, change: &AppClientConnected, context: &mut Context<'_>) {
        let Some(server) = self.state.servers.get_mut(&change.address.unmapped()) else { return };
        if !std::mem::replace(&mut self.clients_changed, true) {
            context.timer(CLIENTS_WITHIN, CAPTURE_CLIENTS);
        }
        if !change.connected {
            server.clients.remove(&change.client.connection);
        } else if server.clients.len() < self.config.max_clients_per_server {
            server.clients.insert(change.client.connection, change.client.armor);
        } else {
            let refused = Event::new("client-not-remembered").with("service", &server.row.service).with("reason", "max_clients_per_server");
            context.event(refused);
        }
    }

    fn daemon(&mut self, daemon: &DaemonRegister, context: &mut Context<'_>) {
        let before = self.state.node_addresses.len();
        self.state.node_addresses.extend(&daemon.node_addresses);
        if self.state.node_addresses.len() != before {
            context.state_changed();
            self.publish(context);
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;
    use crate::operations::{ClientRow, NodeBack, NodeFailed, Policy};
    use armor_core::context::{Effect, Effects};

    fn setup() -> Setup {
        Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir: "/".into() }
    }

    fn row(service: &str, incarnation: u32) -> ServerRow {
        ServerRow {
            address: Endpoint::new([127, 0, 0, 1].into(), 80),
            armor: ArmorId(7),
            incarnation: Incarnation(incarnation),
            service: service.into(),
            policy: Policy::Request,
            deadline_ms: 1,
            settled_ms: None,
        }
    }

    fn registered(effects: &Effects) -> Option<AppServerRegistered> {
        effects.iter().find_map(|effect| match effect {
            Effect::SendReliable(message) => armor_proto::message::downcast(message.top()?.operations.front()?).cloned(),
            _ => None,
        })
    }

    fn register(db: &mut AppServerDb, row: ServerRow) -> Option<AppServerRegistered> {
        // A registration of its own each time.
        request(db, row.clone(), u64::from(row.incarnation.0))
    }

    fn request(db: &mut AppServerDb, row: ServerRow, request: u64) -> Option<AppServerRegistered> {
        let (setup, mut effects) = (setup(), Effects::new());
        db.register(
            &AppRegisterServer { row, request, supervised: true, any_port: false },
            &mut Context::detached(&setup, None, &mut effects),
        );
        registered(&effects)
    }

    fn db() -> AppServerDb {
        let Ok(db) = AppServerDb::new(Config::default(), &setup()) else { panic!("new") };
        db
    }

    #[test]
    fn a_server_that_binds_again_gets_the_clients_that_it_had() {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut db = db();
        assert_eq!(register(&mut db, row("web", 1)).map(|answer| (answer.errno, answer.clients.len())), Some((0, 0)));
        let client = ClientRow { connection: ConnectionId(3), armor: ArmorId(9) };
        let connected = AppClientConnected { address: row("web", 1).address, client, connected: true };
        db.client(&connected, &mut Context::detached(&setup, None, &mut effects));
        let Some(again) = register(&mut db, row("web", 1 + 1)) else { panic!("answered") };
        assert_eq!(
            (again.errno, again.incarnation, again.clients),
            (0, Incarnation(2), BTreeMap::from([(ArmorId(9), vec![ConnectionId(3)])]))
        );
    }

    #[test]
    fn as_many_clients_as_are_remembered_fit_into_the_answer() {
        let mut db = db();
        register(&mut db, row("web", 1));
        let Some(server) = db.state.servers.values_mut().next() else { panic!("registered") };
        server.clients = (0..65_536).map(|client| (ConnectionId(u64::MAX - client), ArmorId(u64::MAX - client % 100))).collect();
        let Some(answer) = register(&mut db, row("web", 2)) else { panic!("answered") };
        assert_eq!(answer.clients.values().map(Vec::len).sum::<usize>(), 65_536);
        let mut message = Message::to(ArmorId(7), answer);
        message.source = ArmorId::FTM;
        if let Err(error) = armor_proto::frame::encode(&message, &mut bytes::BytesMut::new()) {
            panic!("{error}");
        }
    }

    #[test]
    fn a_listener_that_was_closed_takes_no_row_from_one_that_was_opened_after_it() {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut db = db();
        let numbered = |number: u64| {
            let mut message = Message::to(ArmorId::FTM, AppServerSubscribe { armor: ArmorId(7) });
            (message.source, message.id) = (ArmorId(7), MessageId(9 << 32 | number));
            message
        };
        let mut register = |db: &mut AppServerDb, request, number| {
            let asked = AppRegisterServer { row: row("web", 1), request, supervised: true, any_port: false };
            db.register(&asked, &mut Context::detached(&setup, Some(&mut numbered(number)), &mut effects));
        };
        let mut unregister_effects = Effects::new();
        let mut unregister = |db: &mut AppServerDb, number| {
            let gone = AppUnregisterServer { address: row("web", 1).address, armor: ArmorId(7) };
            db.unregister(&gone, &mut Context::detached(&setup, Some(&mut numbered(number)), &mut unregister_effects));
            db.state.servers.len()
        };
        register(&mut db, 1, 1);
        // Number 2 closed the listener, and was lost on its way first.
        register(&mut db, 2, 3);
        assert_eq!(unregister(&mut db, 2), 1);
        let mut next = self::db();
        assert_eq!(next.restore(&db.capture().unwrap_or_default()), Ok(()));
        assert_eq!(unregister(&mut next, 2), 1, "nor in the FTM's next life");
        register(&mut next, 1, 1);
        assert_eq!(unregister(&mut next, 2), 1, "a registration that comes twice makes nothing older");
        assert_eq!(unregister(&mut next, 4), 0);
    }

    #[test]
    fn an_address_that_another_service_holds_is_in_use() {
        let mut db = db();
        register(&mut db, row("web", 1));
        assert_eq!(register(&mut db, row("other", 1)).map(|answer| answer.errno), Some(libc::EADDRINUSE));
    }

    #[test]
    fn a_server_is_answered_when_every_subscriber_knows_of_it() {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut db = db();
        db.subscribe(&AppServerSubscribe { armor: ArmorId(9) }, &mut Context::detached(&setup, None, &mut effects));
        assert!(register(&mut db, row("web", 1)).is_none());
        db.table_known(
            &AppServerTableAck { version: db.state.version, armor: ArmorId(9) },
            &mut Context::detached(&setup, None, &mut effects),
        );
        assert!(registered(&effects).is_some());
    }

    #[test]
    fn no_server_waits_for_the_daemon_of_a_failed_node() {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut db = db();
        let at = |port| ServerRow { address: Endpoint::new([127, 0, 0, 1].into(), port), ..row("web", 1) };
        for armor in [8, 9] {
            db.subscribe(&AppServerSubscribe { armor: ArmorId(armor) }, &mut Context::detached(&setup, None, &mut effects));
        }
        assert!(register(&mut db, at(1)).is_none());
        db.table_known(
            &AppServerTableAck { version: db.state.version, armor: ArmorId(9) },
            &mut Context::detached(&setup, None, &mut effects),
        );
        assert!(registered(&effects).is_none());
        let name = String::new();
        db.node_failed(&NodeFailed { armor: ArmorId(8), name: name.clone() }, &mut Context::detached(&setup, None, &mut effects));
        assert!(registered(&effects).is_some(), "what was asked before its failure");
        effects.clear();
        assert!(register(&mut db, at(2)).is_none());
        db.table_known(
            &AppServerTableAck { version: db.state.version, armor: ArmorId(9) },
            &mut Context::detached(&setup, None, &mut effects),
        );
        assert!(registered(&effects).is_some(), "what was asked after it");
        effects.clear();
        db.node_back(&NodeBack { armor: ArmorId(8), name }, &mut Context::detached(&setup, None, &mut effects));
        assert!(
            effects.iter().any(
                |effect| matches!(effect, Effect::Send(message) if message.top().is_some_and(|bundle| bundle.destination == ArmorId(8)))
            )
        );
        db.table_known(
            &AppServerTableAck { version: db.state.version, armor: ArmorId(8) },
            &mut Context::detached(&setup, None, &mut effects),
        );
        assert!(register(&mut db, at(3)).is_none());
        db.table_known(
            &AppServerTableAck { version: db.state.version, armor: ArmorId(9) },
            &mut Context::detached(&setup, None, &mut effects),
        );
        assert!(registered(&effects).is_none(), "it counts again");
        let gone = ArmorInstalled { armor: ArmorId(8), name: String::new(), daemon: ArmorId(7), present: false };
        db.installed(&gone, &mut Context::detached(&setup, None, &mut effects));
        assert!(registered(&effects).is_some(), "nor for an ARMOR that is gone");
    }

    #[test]
    fn a_registration_whose_answer_died_with_the_ftm_is_answered_with_the_clients_by_its_next_life() {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut first = db();
        register(&mut first, row("web", 1));
        let client = ClientRow { connection: ConnectionId(3), armor: ArmorId(9) };
        let connected = AppClientConnected { address: row("web", 1).address, client, connected: true };
        first.client(&connected, &mut Context::detached(&setup, None, &mut effects));
        let asked = request(&mut first, row("web", 2), 77);
        let mut next = db();
        assert_eq!(next.restore(&first.capture().unwrap_or_default()), Ok(()));
        assert_eq!(request(&mut next, row("web", 2), 77), asked);
        // What is told again by a server that was answered disturbs nobody.
        assert_eq!(request(&mut next, row("web", 2), 78).map(|answer| (answer.errno, answer.clients.len())), Some((0, 0)));
    }

    #[test]
    fn clients_are_captured_together_and_versions_grow_over_lives() {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut first = db();
        register(&mut first, row("web", 1));
        for connection in 1..100 {
            let client = ClientRow { connection: ConnectionId(connection), armor: ArmorId(9) };
            let connected = AppClientConnected { address: row("web", 1).address, client, connected: true };
            first.client(&connected, &mut Context::detached(&setup, None, &mut effects));
        }
        assert!(matches!(effects[..], [Effect::Timer(CLIENTS_WITHIN, CAPTURE_CLIENTS)]));
        first.timer(CAPTURE_CLIENTS, &mut Context::detached(&setup, None, &mut effects));
        assert!(matches!(effects[..], [_, Effect::StateChanged]));
        let mut next = db();
        assert_eq!(next.restore(&first.capture().unwrap_or_default()), Ok(()));
        assert_eq!(next.state.servers.values().map(|server| server.clients.len()).sum::<usize>(), 99);
        let before = first.state.version;
        register(&mut next, row("web", 2));
        assert!(next.state.version > before);
    }

    #[test]
    fn captured_state_comes_back() {
        let mut db = db();
        register(&mut db, row("web", 1));
        let Some(state) = db.capture() else { panic!("captured") };
        let mut again = self::db();
        assert_eq!(again.restore(&state), Ok(()));
        assert_eq!(again.state.servers.len(), 1);
        assert!(again.restore(b"garbage").is_err());
    }
}
