//! `wired_servers`: the server's end of connections to servers on the wired network that run without ARMOR (thesis §5.3: the proxy at the gateway host).
//!
//! Purpose: registers the addresses of such servers as services of its own ARMOR, and connects to them over plain TCP for the clients that ask: between the
//! client's ARMOR and this one the connection outlives links, addresses and the processes of both.
//! Subscribes: `MSG_APP_SERVER_REGISTERED`, `MSG_STATE_MEMORY`, `MSG_APPCOMM_SERVER_CONNECT_REQUEST`, `MSG_APPCOMM_DATA`, `MSG_APPCOMM_ACK`,
//! `MSG_APPCOMM_RESET`, `MSG_LINK_CHANGED`.
//! Emits: `MSG_APP_REGISTER_SERVER`, `MSG_APPCOMM_CONNECT_REPLY`, `MSG_APPCOMM_REPLAY`, `MSG_APPCOMM_DATA`, `MSG_APPCOMM_ACK`, `MSG_APPCOMM_RESET`.
//! Configuration: `servers` (`address`, `service`, `deadline_ms`), `window_bytes`, `max_connections`, `connect_ms`, `keepalive_s`; see [`Config`].
//!
//! Invariant: a server is connected to once for each connection. What it does to that one it has done to its client: nobody starts such a server again, so a reset
//! is a reset, and nothing is ever replayed to it.

#[path = "wired_servers/connections.rs"]
mod connections;
#[path = "wired_servers/restored.rs"]
mod restored;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::{Event, now_ms};
use armor_core::operations::SendReliable;
use armor_journal::{Bounds, Journal, Recovery};
use armor_proto::hookup::Endpoint;
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use armor_proto::message::Message;
use connections::Server;
use serde::Deserialize;

use crate::endpoints::{Crowd, Handed, Keeping, LISTED, Proxy, Remembered, descriptors};
use crate::operations::{
    AppRegisterServer, AppServerRegistered, AppcommAck, AppcommConnectReply, AppcommData, AppcommReplay, AppcommReset,
    AppcommServerConnectRequest, Policy, ServerRow, StateMemory, check_name,
};

/// Most servers of one ARMOR.
const MAX_SERVERS: usize = 1024;
/// All connections are of this life of their server: there is no other that this ARMOR would know of.
const LIFE: Incarnation = Incarnation(1);
/// Timer token: register again what the FTM has not answered. Other tokens are connection ids, which are never 0.
const REGISTER: u64 = 0;
/// How often that is looked at: as long as acknowledged messages are sent again.
const REGISTER_AGAIN: Duration = armor_proto::reliable::GIVE_UP;

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The servers.
    servers: Vec<ServerConfig>,
    /// Bytes under way per direction and connection.
    #[serde(default = "default_window_bytes")]
    window_bytes: u32,
    /// Connections at once.
    #[serde(default = "default_max_connections")]
    max_connections: usize,
    /// How long a server may take to take a connection, in milliseconds.
    #[serde(default = "default_connect_ms")]
    connect_ms: u64,
    /// Seconds of silence after which a server is asked by TCP whether it is there.
    #[serde(default = "default_keepalive_s")]
    keepalive_s: u32,
}

fn default_window_bytes() -> u32 {
    1 << 20
}
fn default_max_connections() -> usize {
    65_536
}
fn default_connect_ms() -> u64 {
    10_000
}
fn default_keepalive_s() -> u32 {
    60
}
fn default_deadline_ms() -> u64 {
    600_000
}

/// One server.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerConfig {
    /// Where it listens, and where its clients connect to.
    address: SocketAddr,
    /// The name that it has in the network.
    service: String,
    /// How long a link may be away before its connections are reset, in milliseconds.
    #[serde(default = "default_deadline_ms")]
    deadline_ms: u64,
}

/// The element.
pub struct WiredServers {
    config: Config,
    /// What the FTM has not answered yet, by request.
    unregistered: BTreeMap<u64, Endpoint>,
    /// Connections for which a server is being connected to, with the last request for each.
    dialling: HashMap<ConnectionId, AppcommServerConnectRequest>,
    servers: HashMap<ConnectionId, Server>,
    /// The last incarnation that was asked for of connections that are over here.
    over: Remembered<Incarnation>,
    crowd: Crowd,
    next: u64,
    /// What the FTM remembers by.
    ftm_memory: Option<u64>,
    keeping: Keeping,
    journal: Journal,
    /// What an earlier life has left, until this one starts.
    left: Option<(Result<Recovery, String>, Handed)>,
}

impl Element for WiredServers {
    const NAME: &'static str = "wired_servers";
    const PURPOSE: &'static str = "server's end of connections to servers without ARMOR, over plain TCP (thesis §5.3)";
    const EXAMPLE: &'static str = "servers = [{ address = \"10.0.0.9:80\", service = \"shop\", deadline_ms = 600000 }]\nwindow_bytes = 1048576\nmax_connections = 65536\nconnect_ms = 10000\nkeepalive_s = 60\n";
    /// Both hear all that comes for the server's end of a connection.
    const EXCLUDES: &'static [&'static str] = &["APP_COMM_SERVER"];
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        check(&config)?;
        descriptors::take_all();
        let (keeping, mut handed) = Keeping::open(setup, Self::NAME)?;
        let (journal, recovery) = keeping.journal(&mut handed, &Bounds::default())?;
        Ok(WiredServers {
            config,
            unregistered: BTreeMap::new(),
            dialling: HashMap::new(),
            servers: HashMap::new(),
            over: Remembered::default(),
            crowd: Crowd::default(),
            // Ends and requests of an earlier life do not come again.
            next: now_ms() << 20 ^ setup.armor.0,
            ftm_memory: None,
            keeping,
            journal,
            left: Some((recovery, handed)),
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::registered)
            .on(Self::memory)
            .on(Self::connect_request)
            .on(Self::data)
            .on(Self::ack)
            .on(Self::reset)
            .on(Self::link_changed)
            .emits::<AppRegisterServer>()
            .emits::<AppcommConnectReply>()
            .emits::<AppcommReplay>()
            .emits::<AppcommData>()
            .emits::<AppcommAck>()
            .emits::<AppcommReset>()
            .emits::<SendReliable>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        self.keeping.watch(context, |_, _, _| {}, Self::keep_again);
        if let Some((recovery, mut handed)) = self.left.take() {
            self.take_up(recovery, &mut handed, context);
        }
        self.register_all(context);
        context.timer(REGISTER_AGAIN, REGISTER);
        Ok(())
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        if token == REGISTER {
            for (request, address) in self.unregistered.clone() {
                self.register(request, address, context);
            }
            return context.timer(REGISTER_AGAIN, REGISTER);
        }
        self.time_is_up(ConnectionId(token), context);
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.keeping.ended();
    }

    fn status(&self) -> serde_json::Value {
        let connections: Vec<_> = self.servers.iter().take(LISTED).map(|(&id, server)| server.status(id, LIFE)).collect();
        let unregistered: Vec<_> = self.unregistered.values().map(|address| SocketAddr::from(*address).to_string()).collect();
        serde_json::json!({
            "connections": connections, "not_listed": self.servers.len().saturating_sub(LISTED), "dialling": self.dialling.len(),
            "unregistered": unregistered,
        })
    }
}

fn check(config: &Config) -> Result<(), String> {
    if config.servers.is_empty() || config.servers.len() > MAX_SERVERS {
        return Err(format!("servers has {} entries, it has 1 to {MAX_SERVERS}", config.servers.len()));
    }
    if config.connect_ms == 0 || config.max_connections == 0 || config.keepalive_s == 0 || config.keepalive_s > 32_767 {
        return Err("connect_ms and max_connections are at least 1, keepalive_s is 1 to 32767".to_owned());
    }
    for (at, server) in config.servers.iter().enumerate() {
        let address = server.address;
        check_name(&server.service).map_err(|reason| format!("servers: service {:?}: {reason}", server.service))?;
        if address.port() == 0 || address.ip().is_unspecified() {
            return Err(format!("servers: {address} is no server's address; name the one that it is reached at"));
        }
        if config.servers[..at].iter().any(|other| other.address == address) {
            return Err(format!("servers: {address} is there twice; name each server once"));
        }
        if server.deadline_ms == 0 {
            return Err(format!("servers: deadline_ms of {address} is 0; take 600000 for outages of ten minutes"));
        }
    }
    Ok(())
}

// Registering.
impl WiredServers {
    /// The server at an address.
    fn server_at(&self, address: Endpoint) -> Option<&ServerConfig> {
        self.config.servers.iter().find(|server| Endpoint::from(server.address).unmapped() == address.unmapped())
    }

    fn register_all(&mut self, context: &mut Context<'_>) {
        self.unregistered.clear();
        let addresses: Vec<Endpoint> = self.config.servers.iter().map(|server| Endpoint::from(server.address)).collect();
        for address in addresses {
            self.next = self.next.wrapping_add(1);
            self.unregistered.insert(self.next, address);
            self.register(self.next, address, context);
        }
    }

    fn register(&self, request: u64, address: Endpoint, context: &mut Context<'_>) {
        let Some(ServerConfig { service, deadline_ms, .. }) = self.server_at(address) else { return };
        let row = ServerRow {
            address,
            armor: context.armor(),
            incarnation: LIFE,
            service: service.clone(),
            // Nothing can be said again to a server that runs on.
            policy: Policy::Reconnect,
            deadline_ms: *deadline_ms,
            settled_ms: None,
        };
        // It is there whatever becomes of the way to this node, and its clients wait.
        let registration = AppRegisterServer { row, request, supervised: true, any_port: false };
        context.send_reliable(Message::to(ArmorId::FTM, registration));
    }

    fn registered(&mut self, answer: &AppServerRegistered, context: &mut Context<'_>) {
        let Some(address) = self.unregistered.remove(&answer.request) else { return };
        if answer.errno != 0 {
            let service = self.server_at(address).map_or("", |server| &server.service);
            let reason = std::io::Error::from_raw_os_error(answer.errno);
            context.event(Event::new("server-refused").with("service", service).with("reason", reason));
        }
    }

    /// The FTM is known again. If it has lost something it is told of all servers.
    fn memory(&mut self, memory: &StateMemory, context: &mut Context<'_>) {
        if self.ftm_memory.replace(memory.memory) != Some(memory.memory) {
            self.register_all(context);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_write_instead() {
        let checked = |servers: &str| check(&toml::from_str::<Config>(&format!("servers = [{servers}]")).unwrap());
        assert_eq!(checked("{ address = \"10.0.0.9:80\", service = \"shop\" }"), Ok(()));
        for (servers, expected) in [
            ("", "1 to 1024"),
            ("{ address = \"0.0.0.0:80\", service = \"shop\" }", "is no server's address"),
            ("{ address = \"10.0.0.9:0\", service = \"shop\" }", "is no server's address"),
            ("{ address = \"10.0.0.9:80\", service = \"\" }", "service"),
            ("{ address = \"10.0.0.9:80\", service = \"a\" }, { address = \"10.0.0.9:80\", service = \"b\" }", "is there twice"),
            ("{ address = \"10.0.0.9:80\", service = \"a\", deadline_ms = 0 }", "deadline_ms"),
        ] {
            let error = checked(servers).unwrap_err();
            assert!(error.contains(expected), "{servers}: {error}");
        }
    }
}
