//! The operations of the elements in this crate, with the thesis's names (see NAMES.md).

mod application;
mod carrier;
mod elsewhere;
mod health;
mod lease;
mod placement;
mod ready;
mod reattach;
mod standby;

use std::collections::BTreeMap;

use armor_proto::hookup::Endpoint;
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use serde::{Deserialize, Serialize};

pub use application::{ApplicationSpec, ApplicationState, OnDivergence, Policy, check_name};
pub use carrier::Carrier;
pub use elsewhere::{HoldState, HoldTold, StandbyElsewhere};
pub use health::Health;
pub use lease::since_boot;
pub use placement::{Labels, LaunchId, PlacedAddress, Placement, check_labels};
pub use ready::{ReadyQuestion, SpokenBytes};
pub use reattach::{ReattachPolicy, ReattachSpec};
pub use standby::StandbyCount;

/// One row of the server table, as daemons see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerRow {
    /// Address that the server listens on.
    pub address: Endpoint,
    /// The ARMOR that oversees it.
    pub armor: ArmorId,
    /// Which life of the server.
    pub incarnation: Incarnation,
    /// Name, for people.
    pub service: String,
    /// How connections recover.
    pub policy: Policy,
    /// Recovery deadline.
    pub deadline_ms: u64,
    /// Silence after which an answer counts as complete; see [`ApplicationSpec::settled_ms`].
    #[serde(default)]
    pub settled_ms: Option<u32>,
}

/// A client of a server, remembered by APP_SERVER_DB for recovery (thesis §4.5.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRow {
    /// The connection.
    pub connection: ConnectionId,
    /// The ARMOR at the client's end.
    pub armor: ArmorId,
}

armor_proto::operations! { ELEMENT_OPERATIONS;
    /// Attaches a local ARMOR (or the `armor` program) to its daemon's gateway.
    0x0100 MSG_ARMOR_ATTACH => pub struct ArmorAttach { armor: ArmorId, name: String, pid: u32 }
    /// First message on a link between daemons. `life`: drawn anew by each process; `only`: the sender has no other link to this peer.
    0x0101 MSG_DAEMON_HELLO => pub struct DaemonHello { armor: ArmorId, name: String, address: String, life: u64, only: bool }
    /// A daemon registers with the FTM (thesis §5.4): where it accepts links, and the addresses of its node.
    0x0102 MSG_DAEMON_REGISTER => pub struct DaemonRegister { armor: ArmorId, name: String, carrier: Carrier, address: String, node_addresses: Vec<std::net::IpAddr> }
    /// The FTM knows the daemon now.
    0x0103 MSG_DAEMON_REGISTERED => pub struct DaemonRegistered { accepted: bool, reason: String }
    /// Where is this ARMOR? To the FTM, from a daemon that has a message for it.
    0x0104 MSG_LOCATE_ARMOR => pub struct LocateArmor { armor: ArmorId, asker: ArmorId }
    /// Answer: its daemon, or one that passes messages on to it, and where that is reached and by what; `daemon` is -1 when nobody knows.
    0x0105 MSG_ARMOR_LOCATION => pub struct ArmorLocation { armor: ArmorId, daemon: ArmorId, carrier: Carrier, address: String }
    /// A daemon tells the FTM that a local ARMOR has attached or is gone.
    0x0106 MSG_ARMOR_INSTALLED => pub struct ArmorInstalled { armor: ArmorId, name: String, daemon: ArmorId, present: bool }
    /// Are you alive?
    0x0110 MSG_HEARTBEAT => pub struct Heartbeat { sequence: u64, asker: ArmorId }
    /// Yes.
    0x0111 MSG_HEARTBEAT_REPLY => pub struct HeartbeatReply { sequence: u64, armor: ArmorId }
    /// A node stopped answering (thesis §3.3.1).
    0x0112 MSG_NODE_FAILED => pub struct NodeFailed { armor: ArmorId, name: String }
    /// A node that had failed answers again. Its applications may run elsewhere by now.
    0x0113 MSG_NODE_BACK => pub struct NodeBack { armor: ArmorId, name: String }
    /// A link to a daemon has ended that was up. To the FTM, which then asks that daemon at once whether it lives.
    0x0114 MSG_LINK_LOST => pub struct LinkLost { peer: ArmorId, reporter: ArmorId }
    /// How is the link to a daemon? Inside one ARMOR.
    0x0115 MSG_LINK_QUERY => pub struct LinkQuery { peer: ArmorId }
    /// Answer. `acknowledged_ms`: since the peer's kernel has acknowledged something; `unacknowledged`: something waits for that.
    0x0116 MSG_LINK_STATE => pub struct LinkState { peer: ArmorId, linked: bool, acknowledged_ms: Option<u32>, unacknowledged: bool }
    /// With a heartbeat's answer, from a daemon to the FTM: may its applications run on? `asked_us`: on the daemon's clock.
    0x0117 MSG_LEASE_ASK => pub struct LeaseAsk { armor: ArmorId, life: u64, asked_us: u64 }
    /// Answer, with what was asked: the FTM has heard it, and tells no failure of the node before it has been silent for `limit_ms` from now.
    0x0118 MSG_LEASE_GRANTED => pub struct LeaseGranted { life: u64, asked_us: u64, limit_ms: u64 }
    /// Inside a node: until when what may run elsewhere may run here, in microseconds since it was booted; absent: for ever. `opening`: the daemon has just begun.
    0x0119 MSG_LEASE_TOLD => pub struct LeaseTold { until_us: Option<u64>, opening: bool }
    /// Install an ARMOR on this node from a composition. `number`: of the FTM's orders, growing with its clock (milliseconds since 1970, times 2^20); 0: an operator's.
    0x0120 MSG_INSTALL_ARMOR => pub struct InstallArmor { name: String, composition: String, number: u64 }
    /// Outcome of an installation; `run_dir` is where its applications hook up.
    0x0121 MSG_ARMOR_READY => pub struct ArmorReady { name: String, armor: ArmorId, run_dir: String, error: String }
    /// Stop and forget an installed ARMOR; `number` as in `MSG_INSTALL_ARMOR`: one that was ordered after it stays.
    0x0122 MSG_UNINSTALL_ARMOR => pub struct UninstallArmor { name: String, number: u64 }
    /// Launch and watch an application (thesis §3.2.2, Execution ARMOR).
    0x0130 MSG_APP_LAUNCH => pub struct AppLaunch { spec: ApplicationSpec }
    /// It was started, or why not. Goes to the launcher.
    0x0131 MSG_APP_LAUNCHED => pub struct AppLaunched { name: String, pid: u32, error: String }
    /// Stop it for good.
    0x0132 MSG_APP_STOP => pub struct AppStop { name: String }
    /// It is stopped, or why not. Goes to the asker.
    0x0133 MSG_APP_STOPPED => pub struct AppStopped { name: String, error: String }
    /// A supervised application's process has started, or a standby of it serves from now on. Inside the overseer's ARMOR.
    0x0134 MSG_APP_STARTED => pub struct AppStarted { spec: ApplicationSpec, pid: u32, incarnation: Incarnation, started_at_ms: u64, instance: u64 }
    /// A supervised application's process has ended. Inside the overseer's ARMOR. `restarting` says whether it comes back.
    0x0135 MSG_APP_FAILED => pub struct AppFailed { name: String, pid: u32, incarnation: Incarnation, how: String, orderly: bool, restarting: bool, failed_at_ms: u64 }
    /// An application that an earlier life of the overseer's ARMOR has started runs no more and is not started again. Inside that ARMOR: that may not
    /// have been heard. What runs is said again with `MSG_APP_STARTED`.
    0x0136 MSG_APP_IS_OVER => pub struct AppIsOver { name: String }
    /// A supervised application hangs (thesis §3.3.2): it is to be killed, or of a server of several processes the stopped ones. Inside the overseer's ARMOR.
    0x0138 MSG_APP_HUNG => pub struct AppHung { name: String, incarnation: Incarnation, processes: Vec<u32>, why: String, silent_ms: u64 }
    /// Hold a standby of an application that runs on another node. Idempotent; a later order for the same launch has a greater `number`.
    0x0139 MSG_APP_HOLD => pub struct AppHold { spec: ApplicationSpec, launch: LaunchId, number: u64 }
    /// It need not be held any more: what was ordered by this number, or before, is ended.
    0x013a MSG_APP_HOLD_END => pub struct AppHoldEnd { launch: LaunchId, number: u64 }
    /// All that an overseer holds for other nodes, at each change and when its daemon registers; `revision` grows. What it refuses is named once. Goes to the FTM.
    0x013b MSG_APP_HOLDS => pub struct AppHolds { overseer: ArmorId, node: String, revision: u64, holds: Vec<HoldTold> }
    /// A standby of a supervised application has started: its first bind is to be held. Inside the overseer's ARMOR.
    0x013c MSG_APP_STANDBY_STARTED => pub struct AppStandbyStarted { name: String, instance: u64 }
    /// A standby has come to its bind. Inside the overseer's ARMOR.
    0x013d MSG_APP_STANDBY_HELD => pub struct AppStandbyHeld { name: String, instance: u64 }
    /// A standby's process has ended. Inside the overseer's ARMOR.
    0x013e MSG_APP_STANDBY_ENDED => pub struct AppStandbyEnded { name: String, instance: u64 }
    /// An application that is to have standbys serves, and all its connections flow. Inside the overseer's ARMOR.
    0x013f MSG_APP_FLOWS => pub struct AppFlows { name: String, incarnation: Incarnation }
    /// How an application is doing, from its overseer to the FTM.
    0x0140 MSG_APP_REPORT => pub struct AppReport { overseer: ArmorId, node: String, launch: LaunchId, spec: ApplicationSpec, incarnation: Incarnation, restarts: u64, state: ApplicationState }
    /// Run this application, whose node has failed (thesis §4.5.4); its first life here comes after `incarnation`. Idempotent.
    0x0141 MSG_APP_TAKE_OVER => pub struct AppTakeOver { spec: ApplicationSpec, launch: LaunchId, incarnation: Incarnation, restarts: u64, moved_from: String, addresses: Vec<PlacedAddress>, failed_at_ms: u64, chosen_at_ms: u64 }
    /// It runs here, or why not. Goes to the FTM.
    0x0142 MSG_APP_TAKEN_OVER => pub struct AppTakenOver { name: String, launch: LaunchId, incarnation: Incarnation, overseer: ArmorId, error: String }
    /// The application runs elsewhere: end every life of it that comes before an incarnation, at once and without a word to its clients.
    0x0143 MSG_APP_FENCE => pub struct AppFence { name: String, launch: LaunchId, below: Incarnation, moved_to: String }
    /// A supervised application was ended here because it runs elsewhere. Inside the overseer's ARMOR.
    0x0144 MSG_APP_FENCED => pub struct AppFenced { name: String }
    /// Nothing of such lives is left here. Goes to the FTM.
    0x0145 MSG_APP_FENCE_DONE => pub struct AppFenceDone { launch: LaunchId, overseer: ArmorId }
    /// An overseer is there: its node, what that says of itself, and all that it has to run. Goes to the FTM.
    0x0146 MSG_APP_OVERSEER => pub struct AppOverseer { overseer: ArmorId, node: String, labels: Labels, launches: Vec<LaunchId> }
    /// Inside the FTM: the right to a service's addresses goes from one ARMOR to another; to -1 when nobody serves them any more.
    0x0147 MSG_APP_MOVED => pub struct AppMoved { service: String, from: ArmorId, to: ArmorId }
    /// To a client's ARMOR: a server of these connections is gone, and nobody starts it again.
    0x0148 MSG_APP_SERVICE_GONE => pub struct AppServiceGone { address: Endpoint, connections: Vec<ConnectionId> }
    /// What the FTM remembers by: a number that is drawn when it may have lost something that it was told. Whoever has told it something under
    /// another number tells it again. To each daemon that registers, and on to the ARMORs of its node.
    0x0150 MSG_STATE_MEMORY => pub struct StateMemory { memory: u64 }
    /// A link to a daemon has ended or is up: what was on its way there, and to what is behind it, may be lost. Inside a daemon, and on to the ARMORs of its node.
    0x0160 MSG_LINK_CHANGED => pub struct LinkChanged { peer: ArmorId }
    /// Between the elements that link one daemon to others, one over TCP and one over UDP: there is such an element (`armor` and `daemon` are this daemon), it has a link
    /// or has none any more (both are the peer), or an ARMOR is behind a peer of it.
    0x0161 MSG_CARRIER_TOLD => pub struct CarrierTold { carrier: Carrier, armor: ArmorId, daemon: ArmorId, linked: bool }
    /// A server listens on an address (thesis §4.2.2), to APP_SERVER_DB. `any_port`: it had asked for port 0.
    0x0200 MSG_APP_REGISTER_SERVER => pub struct AppRegisterServer { row: ServerRow, request: u64, supervised: bool, any_port: bool }
    /// Answer. `clients` are those that were connected when the server is in its recovery phase (thesis §4.5.1), by the ARMOR at their
    /// end; errno != 0 refuses.
    0x0201 MSG_APP_SERVER_REGISTERED => pub struct AppServerRegistered { address: Endpoint, request: u64, errno: i32, incarnation: Incarnation, clients: BTreeMap<ArmorId, Vec<ConnectionId>> }
    /// The server closed its listener for good (thesis §4.3.3).
    0x0202 MSG_APP_UNREGISTER_SERVER => pub struct AppUnregisterServer { address: Endpoint, armor: ArmorId }
    /// Which ARMOR oversees the server at this address (thesis §4.2.1)?
    0x0203 MSG_APP_LOOKUP_SERVER_INFO => pub struct AppLookupServerInfo { address: Endpoint, asker: ArmorId, request: u64 }
    /// Answer; `row` is absent (thesis: -1) when there is none. `moving`: it is being started on another node.
    0x0204 MSG_APP_SERVER_INFO => pub struct AppServerInfo { address: Endpoint, request: u64, row: Option<ServerRow>, moving: bool }
    /// An APP_COMM_CLIENT wants to be told of every server that comes and goes.
    0x0205 MSG_APP_SERVER_SUBSCRIBE => pub struct AppServerSubscribe { armor: ArmorId }
    /// The whole table of servers and the node addresses that wildcard servers answer for; acknowledged with `MSG_APP_SERVER_TABLE_ACK`.
    0x0206 MSG_APP_SERVER_TABLE => pub struct AppServerTable { version: u64, rows: Vec<ServerRow>, node_addresses: Vec<std::net::IpAddr> }
    /// The table has arrived.
    0x0207 MSG_APP_SERVER_TABLE_ACK => pub struct AppServerTableAck { version: u64, armor: ArmorId }
    /// A client has connected to or left a server: kept by APP_SERVER_DB for recovery.
    0x0208 MSG_APP_CLIENT_CONNECTED => pub struct AppClientConnected { address: Endpoint, client: ClientRow, connected: bool }
    /// Connect, or connect again, to the server (thesis §4.4 step 6).
    0x0210 MSG_APPCOMM_SERVER_CONNECT_REQUEST => pub struct AppcommServerConnectRequest { address: Endpoint, client: ArmorId, client_address: Endpoint, dialled: Endpoint, request: armor_proto::connection::ConnectRequest }
    /// Outcome of a connect request.
    0x0211 MSG_APPCOMM_CONNECT_REPLY => pub struct AppcommConnectReply { reply: armor_proto::connection::ConnectReply }
    /// The server is back: replay your connect requests (thesis §4.5.1).
    0x0212 MSG_APPCOMM_REPLAY_CONNECT => pub struct AppcommReplayConnect { address: Endpoint, server: ArmorId, incarnation: Incarnation, connections: Vec<ConnectionId> }
    /// Bytes of a connection; they are the message's payload.
    0x0213 MSG_APPCOMM_DATA => pub struct AppcommData { data: armor_proto::connection::Data }
    /// Bytes that have reached an application.
    0x0214 MSG_APPCOMM_ACK => pub struct AppcommAck { ack: armor_proto::connection::Ack }
    /// The connection is reset.
    0x0215 MSG_APPCOMM_RESET => pub struct AppcommReset { reset: armor_proto::connection::Reset }
    /// The server's end of a connection has lost its process and asks for a new connect request.
    0x0216 MSG_APPCOMM_REPLAY => pub struct AppcommReplay { replay: armor_proto::connection::Replay }
    /// Give me events from this number on.
    0x0300 MSG_EVENTS_QUERY => pub struct EventsQuery { from: u64 }
    /// Events, and the number of the next one.
    0x0301 MSG_EVENTS => pub struct Events { next: u64, events: Vec<armor_core::events::Event> }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn operation_structs_are_named_after_their_messages_and_numbers_are_unique() {
        let mut numbers = HashSet::new();
        for (number, wire, name) in super::ELEMENT_OPERATIONS.iter().chain(armor_core::operations::CORE_OPERATIONS) {
            assert_eq!(*name, armor_proto::operation::struct_name(wire));
            assert!(numbers.insert(number), "{wire} has the number of another operation");
        }
    }
}
