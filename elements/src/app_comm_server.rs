//! `APP_COMM_SERVER`: where server applications hook up, and the proxy of the clients towards them (thesis §4.2.2).
//!
//! Purpose: reserves what applications bind, registers the servers that listen, connects clients to their listeners, and puts
//! connections back when a server's process fails: its address is recognised, the clients replay their connect requests, the
//! stream goes on (thesis §4.5.1).
//! Subscribes: `MSG_APP_STARTED`, `MSG_APP_FAILED`, `MSG_APP_IS_OVER`, `MSG_APP_STANDBY_STARTED`, `MSG_APP_STANDBY_ENDED`, `MSG_APP_TAKE_OVER`, `MSG_APP_FENCED`,
//! `MSG_APP_SERVER_REGISTERED`, `MSG_APPCOMM_SERVER_CONNECT_REQUEST`,
//! `MSG_APPCOMM_DATA`, `MSG_APPCOMM_ACK`, `MSG_APPCOMM_RESET`, `MSG_STATE_MEMORY`, `MSG_LINK_CHANGED`.
//! Emits: `MSG_APP_HUNG`, `MSG_APP_REGISTER_SERVER`, `MSG_APP_UNREGISTER_SERVER`, `MSG_APPCOMM_REPLAY_CONNECT`, `MSG_APPCOMM_CONNECT_REPLY`,
//! `MSG_APPCOMM_REPLAY`, `MSG_APPCOMM_DATA`, `MSG_APPCOMM_ACK`, `MSG_APPCOMM_RESET`, `MSG_APP_STANDBY_HELD`, `MSG_APP_FLOWS`.
//! Configuration: `allowed_uids`, `window_bytes`, `fate_ms` (how long an unannounced end of a stream waits for the process's fate),
//! `max_connections`.
//!
//! What applications bind is in `services`, the ends of connections in `connections`, how they come to a process in `dialling`, the
//! failures of processes in `failures`, moves between nodes in `moved`, what waits for them in `standbys`, what an absent or forgetful FTM means for servers in `ftm`,
//! how recoveries went in `timelines`, `readiness` tells when a server that listens may be
//! connected to, and `health` with its judge `progress` when one hangs.

#[cfg(test)]
#[path = "app_comm_server/bench.rs"]
mod bench;
#[path = "app_comm_server/connections.rs"]
mod connections;
#[path = "app_comm_server/dialling.rs"]
mod dialling;
#[path = "app_comm_server/failures.rs"]
mod failures;
#[path = "app_comm_server/ftm.rs"]
mod ftm;
#[path = "app_comm_server/health.rs"]
mod health;
#[path = "app_comm_server/moved.rs"]
mod moved;
#[path = "app_comm_server/progress.rs"]
mod progress;
#[path = "app_comm_server/readiness.rs"]
mod readiness;
#[path = "app_comm_server/restored.rs"]
mod restored;
#[path = "app_comm_server/services.rs"]
mod services;
#[path = "app_comm_server/standbys.rs"]
mod standbys;
#[path = "app_comm_server/timelines.rs"]
mod timelines;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::now_ms;
use armor_core::operations::SendReliable;
use armor_journal::{Bounds, Journal, Recovery};
use armor_proto::connection::ResetReason;
use armor_proto::hookup::{Endpoint, Name, Reply, Request, Role, SERVER_SOCKET};
use armor_proto::ids::{ConnectionId, Incarnation};
use serde::Deserialize;

use crate::endpoints::{
    Asked, Crowd, Handed, HookupListener, Keeping, LISTED, Proxy, Remembered, descriptors, get_option_for, how_ended, set_option_for,
};
use crate::operations::{
    AppFlows, AppHung, AppRegisterServer, AppStandbyHeld, AppUnregisterServer, AppcommAck, AppcommConnectReply, AppcommData, AppcommReplay,
    AppcommReplayConnect, AppcommReset, ApplicationSpec,
};
use connections::{Announced, Server};
use health::Condition;
use readiness::Readiness;
use services::{Registration, Service};
use standbys::Standby;
use timelines::Timelines;

/// Configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    allowed_uids: Vec<u32>,
    window_bytes: u32,
    fate_ms: u64,
    max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { allowed_uids: Vec::new(), window_bytes: 1 << 20, fate_ms: 100, max_connections: 65_536 }
    }
}

/// A supervised application of this ARMOR.
struct Application {
    spec: Rc<ApplicationSpec>,
    incarnation: Incarnation,
    pid: u32,
    alive: bool,
    readiness: Readiness,
    /// Which instance it is; 0 when nobody has said.
    instance: u64,
    /// Somebody looks when it flows.
    looked_at: bool,
    health: Condition,
}

/// The element.
pub struct AppCommServer {
    config: Config,
    socket: std::path::PathBuf,
    applications: BTreeMap<String, Application>,
    services: BTreeMap<Endpoint, Service>,
    /// By instance. A new life of this ARMOR is told of them again.
    standbys: BTreeMap<u64, Standby>,
    registrations: HashMap<u64, Registration>,
    /// Processes without supervision that have bound something.
    watched: HashSet<u32>,
    /// Processes of an earlier life that are to be watched.
    unsupervised: Vec<u32>,
    servers: HashMap<ConnectionId, Server>,
    rights: moved::Rights,
    resets: Remembered<ResetReason>,
    /// The last incarnation that was asked for of connections that are over here.
    over: Remembered<Incarnation>,
    timelines: Timelines,
    crowd: Crowd,
    next: u64,
    /// What the FTM remembers by.
    ftm_memory: Option<u64>,
    keeping: Keeping,
    journal: Journal,
    /// What an earlier life has left, until this one starts.
    left: Option<(Result<Recovery, String>, Handed)>,
}

impl Element for AppCommServer {
    const NAME: &'static str = "APP_COMM_SERVER";
    const PURPOSE: &'static str = "hook-up of server applications; proxy of the clients towards them; recovery (thesis §4.2.2, §4.5.1)";
    const EXAMPLE: &'static str = "allowed_uids = []\nwindow_bytes = 1048576\nfate_ms = 100\nmax_connections = 65536\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        descriptors::take_all();
        let (keeping, mut handed) = Keeping::open(setup, Self::NAME)?;
        let (journal, recovery) = keeping.journal(&mut handed, &Bounds::default())?;
        Ok(AppCommServer {
            config,
            socket: setup.run_dir.join(SERVER_SOCKET),
            applications: BTreeMap::new(),
            services: BTreeMap::new(),
            standbys: BTreeMap::new(),
            registrations: HashMap::new(),
            watched: HashSet::new(),
            unsupervised: Vec::new(),
            servers: HashMap::new(),
            rights: moved::Rights::new(),
            resets: Remembered::default(),
            over: Remembered::default(),
            timelines: Timelines::default(),
            crowd: Crowd::default(),
            next: now_ms() << 20 ^ setup.armor.0,
            ftm_memory: None,
            keeping,
            journal,
            left: Some((recovery, handed)),
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::application_started)
            .on(Self::application_failed)
            .on(Self::application_is_over)
            .on(Self::standby_started)
            .on(Self::standby_ended)
            .on(Self::take_over)
            .on(Self::fenced)
            .on(Self::registered)
            .on(Self::memory)
            .on(Self::connect_request)
            .on(Self::data)
            .on(Self::ack)
            .on(Self::reset)
            .on(Self::link_changed)
            .emits::<AppHung>()
            .emits::<AppRegisterServer>()
            .emits::<AppUnregisterServer>()
            .emits::<AppStandbyHeld>()
            .emits::<AppFlows>()
            .emits::<AppcommReplayConnect>()
            .emits::<AppcommConnectReply>()
            .emits::<AppcommReplay>()
            .emits::<AppcommData>()
            .emits::<AppcommAck>()
            .emits::<AppcommReset>()
            .emits::<SendReliable>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        let listener = HookupListener::bind(&self.socket).map_err(|error| format!("{}: {error}", self.socket.display()))?;
        listener.serve(self.config.allowed_uids.clone(), context, Self::asked);
        self.keeping.watch(context, |_, _, _| {}, Self::keep_again);
        self.look_after_health(context);
        if let Some((recovery, mut handed)) = self.left.take() {
            self.take_up(recovery, &mut handed, context);
        }
        Ok(())
    }

    fn capture(&self) -> Option<Vec<u8>> {
        self.captured()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.take_back(state)
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        self.time_is_up(ConnectionId(token), context);
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.keeping.ended();
    }

    fn status(&self) -> serde_json::Value {
        let connections = self.servers.iter().take(LISTED).map(|(&id, server)| {
            server.status(id, self.services.get(&server.address).map_or(Incarnation(0), |service| service.incarnation))
        });
        serde_json::json!({
            "connections": connections.collect::<Vec<_>>(), "not_listed": self.servers.len().saturating_sub(LISTED), "recoveries": self.timelines, "readiness": self.readiness_status(),
        })
    }
}

impl AppCommServer {
    /// A request of a server application's shim.
    fn asked(&mut self, asked: Asked, context: &mut Context<'_>) {
        match &asked.request {
            Request::Bind { .. } => self.bind(asked, context),
            Request::Listen { listener, .. } => self.listen(*listener, asked.reply, context),
            Request::Withdraw { listener } => {
                let socket = self.withdraw(*listener);
                asked.reply.send(&Reply::Withdrawn, socket.as_ref().map(AsFd::as_fd));
            }
            Request::Closed { name, .. } if name.role == Role::Listener => self.close_listener(name.id, context),
            Request::Closed { name, .. } | Request::Finished { name, .. } => {
                self.announced(ConnectionId(name.id), Announced::Closed, context);
            }
            Request::Aborted { name, .. } => self.announced(ConnectionId(name.id), Announced::Aborted, context),
            Request::HowEnded { name } => asked.reply.send(&how_ended(&self.resets, ConnectionId(name.id)), None),
            Request::SetOption { name, level, option, value } => {
                let connection = self.servers.get_mut(&ConnectionId(name.id)).filter(|_| name.role != Role::Listener);
                let answer = match connection {
                    Some(server) => server.options.set(name.family(), *level, *option, value),
                    None => set_option_for(self.holder(name), *level, *option, value),
                };
                asked.reply.send(&answer, None);
            }
            Request::GetOption { name, level, option, length } => {
                let connection = self.servers.get(&ConnectionId(name.id)).filter(|_| name.role != Role::Listener);
                let answer = match connection {
                    Some(server) => {
                        let listener = self.services.get(&server.address).map(|service| &service.holder);
                        server.options.get(name.family(), listener, *level, *option, *length)
                    }
                    None => get_option_for(self.holder(name), *level, *option, *length),
                };
                asked.reply.send(&answer, None);
            }
            Request::Connect { .. } | Request::Accepted { .. } => {
                asked
                    .reply
                    .send(&Reply::Refused { reason: "this socket serves servers; clients ask at app_comm_client.sock".to_owned() }, None);
            }
        }
    }

    /// The TCP socket that answers for the options of a listener, or of a connection that asks a server something.
    fn holder(&self, name: &Name) -> Option<&OwnedFd> {
        if name.role == Role::Listener {
            return self.services.get(&name.local.unmapped()).map(|service| &service.holder);
        }
        let id = ConnectionId(name.id);
        self.applications.values().find_map(|application| application.readiness.holder(id).or_else(|| application.health.holder(id)))
    }
}
