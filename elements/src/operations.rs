//! The operations of the elements in this crate, with the thesis's names (see NAMES.md).

use std::collections::BTreeMap;

use armor_proto::hookup::Endpoint;
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use serde::{Deserialize, Serialize};

/// How a service recovers its connections: where a new process takes them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The connection is re-established and the stream goes on (thesis §4.5.1).
    Reconnect,
    /// Replay from the first request that was not answered in full: HTTP/1 and RESP, recognised by what the client says first. Other
    /// protocols as with `turn`.
    #[default]
    Request,
    /// The same for a service that is known to speak HTTP/1.
    Http,
    /// The same for a service that is known to speak RESP, as Redis does.
    Resp,
    /// Replay from the last time that the client spoke after an answer: other protocols of questions and answers.
    Turn,
    /// Replay from the beginning: deterministic streams.
    Stream,
}

/// What to do when regenerated output differs from what the client was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum OnDivergence {
    /// Reset the connection: honest.
    #[default]
    Reset,
    /// Go on (thesis); an event tells it.
    Continue,
}

/// What a supervised application is and how it is kept running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationSpec {
    /// Name of the service, unique on its node.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory; the launcher's when absent.
    #[serde(default)]
    pub directory: Option<String>,
    /// Environment beside the daemon's own.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// How connections recover.
    #[serde(default)]
    pub policy: Policy,
    /// On divergence.
    #[serde(default)]
    pub on_divergence: OnDivergence,
    /// Restarts allowed within `restart_window_s`; one more failure ends the service and resets its clients.
    #[serde(default = "default_restart_limit")]
    pub restart_limit: u32,
    /// Seconds over which restarts are counted.
    #[serde(default = "default_restart_window_s")]
    pub restart_window_s: u64,
    /// First pause before a restart when the program died young, in ms; doubles up to 5 s.
    #[serde(default = "default_backoff_ms")]
    pub backoff_ms: u64,
    /// Clients get ECONNRESET when recovery takes longer, in ms.
    #[serde(default = "default_deadline_ms")]
    pub deadline_ms: u64,
    /// Where turns are all that is known of the protocol: an answer followed by so much silence counts as complete when the server is
    /// then lost, in ms. Never when absent.
    #[serde(default)]
    pub settled_ms: Option<u32>,
    /// How it is asked whether it is ready; absent when it is ready as soon as it listens.
    #[serde(default)]
    pub ready: Option<ReadyQuestion>,
}

/// A question that a server answers as expected when it is ready. Until then it counts as not listening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadyQuestion {
    /// What is said to it; nothing to a server that speaks first.
    #[serde(default)]
    pub send: SpokenBytes,
    /// What its answer begins with.
    pub expect: SpokenBytes,
    /// Where it is asked when it listens at several ports; the first one where it listens when absent.
    #[serde(default)]
    pub port: Option<u16>,
    /// Pause between two tries, in ms.
    #[serde(default = "default_ready_interval_ms")]
    pub interval_ms: u64,
    /// How long one try may take, in ms.
    #[serde(default = "default_ready_timeout_ms")]
    pub timeout_ms: u64,
}

impl ReadyQuestion {
    /// Most bytes of `send` and of `expect`.
    pub const MOST_BYTES: usize = 4096;

    /// What is wrong with it: the key, and what to write instead.
    ///
    /// # Errors
    /// When it cannot be asked, or any answer would do.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let most = Self::MOST_BYTES;
        if self.expect.0.is_empty() {
            return Err((
                "expect",
                "expect is empty; write what the answer of a server that is ready begins with, such as \"+PONG\"".to_owned(),
            ));
        }
        for (key, bytes) in [("send", &self.send), ("expect", &self.expect)] {
            if bytes.0.len() > most {
                return Err((key, format!("{key} has {} bytes, at most {most} are taken", bytes.0.len())));
            }
        }
        for (key, value) in [("interval_ms", self.interval_ms), ("timeout_ms", self.timeout_ms)] {
            if value == 0 {
                return Err((key, format!("{key} is 0; leave it out for the default, or give milliseconds")));
            }
        }
        Ok(())
    }
}

/// Bytes that are written as text (`"PING\r\n"`) where they are text, and as a list of numbers (`[0, 0, 0, 8, 4, 210]`) where not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpokenBytes(pub Vec<u8>);

impl Serialize for SpokenBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for SpokenBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = SpokenBytes;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a string, or a list of bytes (0 to 255)")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SpokenBytes, E> {
                Ok(SpokenBytes(text.as_bytes().to_vec()))
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<SpokenBytes, E> {
                Ok(SpokenBytes(bytes.to_vec()))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<SpokenBytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element()? {
                    bytes.push(byte);
                }
                Ok(SpokenBytes(bytes))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

fn default_ready_interval_ms() -> u64 {
    20
}
fn default_ready_timeout_ms() -> u64 {
    1000
}

fn default_restart_limit() -> u32 {
    10
}
fn default_restart_window_s() -> u64 {
    60
}
fn default_backoff_ms() -> u64 {
    50
}
fn default_deadline_ms() -> u64 {
    30_000
}

/// How a supervised application is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplicationState {
    /// Its process runs.
    Running,
    /// It failed and is being started again.
    Restarting,
    /// It ended by itself with status 0, or was stopped.
    Ended,
    /// It failed too often, or cannot be started.
    GivenUp,
}

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
    /// First message on a link between daemons.
    0x0101 MSG_DAEMON_HELLO => pub struct DaemonHello { armor: ArmorId, name: String, address: String }
    /// A daemon registers with the FTM (thesis §5.4): where it accepts links, and the addresses of its node.
    0x0102 MSG_DAEMON_REGISTER => pub struct DaemonRegister { armor: ArmorId, name: String, address: String, node_addresses: Vec<std::net::IpAddr> }
    /// The FTM knows the daemon now.
    0x0103 MSG_DAEMON_REGISTERED => pub struct DaemonRegistered { accepted: bool, reason: String }
    /// Where is this ARMOR? To the FTM, from a daemon that has a message for it.
    0x0104 MSG_LOCATE_ARMOR => pub struct LocateArmor { armor: ArmorId, asker: ArmorId }
    /// Answer: its daemon and that daemon's address; `daemon` is -1 when nobody knows.
    0x0105 MSG_ARMOR_LOCATION => pub struct ArmorLocation { armor: ArmorId, daemon: ArmorId, address: String }
    /// A daemon tells the FTM that a local ARMOR has attached or is gone.
    0x0106 MSG_ARMOR_INSTALLED => pub struct ArmorInstalled { armor: ArmorId, name: String, daemon: ArmorId, present: bool }
    /// Are you alive?
    0x0110 MSG_HEARTBEAT => pub struct Heartbeat { sequence: u64, asker: ArmorId }
    /// Yes.
    0x0111 MSG_HEARTBEAT_REPLY => pub struct HeartbeatReply { sequence: u64, armor: ArmorId }
    /// A node stopped answering (thesis §3.3.1).
    0x0112 MSG_NODE_FAILED => pub struct NodeFailed { armor: ArmorId, name: String }
    /// Install an ARMOR on this node from a composition.
    0x0120 MSG_INSTALL_ARMOR => pub struct InstallArmor { name: String, composition: String }
    /// Outcome of an installation; `run_dir` is where its applications hook up.
    0x0121 MSG_ARMOR_READY => pub struct ArmorReady { name: String, armor: ArmorId, run_dir: String, error: String }
    /// Stop and forget an installed ARMOR.
    0x0122 MSG_UNINSTALL_ARMOR => pub struct UninstallArmor { name: String }
    /// Launch and watch an application (thesis §3.2.2, Execution ARMOR).
    0x0130 MSG_APP_LAUNCH => pub struct AppLaunch { spec: ApplicationSpec }
    /// It was started, or why not. Goes to the launcher.
    0x0131 MSG_APP_LAUNCHED => pub struct AppLaunched { name: String, pid: u32, error: String }
    /// Stop it for good.
    0x0132 MSG_APP_STOP => pub struct AppStop { name: String }
    /// It is stopped, or why not. Goes to the asker.
    0x0133 MSG_APP_STOPPED => pub struct AppStopped { name: String, error: String }
    /// A supervised application's process has started. Inside the overseer's ARMOR.
    0x0134 MSG_APP_STARTED => pub struct AppStarted { spec: ApplicationSpec, pid: u32, incarnation: Incarnation, started_at_ms: u64 }
    /// A supervised application's process has ended. Inside the overseer's ARMOR. `restarting` says whether it comes back.
    0x0135 MSG_APP_FAILED => pub struct AppFailed { name: String, pid: u32, incarnation: Incarnation, how: String, orderly: bool, restarting: bool, failed_at_ms: u64 }
    /// A server listens on an address (thesis §4.2.2), to APP_SERVER_DB.
    0x0200 MSG_APP_REGISTER_SERVER => pub struct AppRegisterServer { row: ServerRow, request: u64 }
    /// Answer. `clients` are those that were connected when the server is in its recovery phase (thesis §4.5.1), by the ARMOR at their
    /// end; errno != 0 refuses.
    0x0201 MSG_APP_SERVER_REGISTERED => pub struct AppServerRegistered { address: Endpoint, request: u64, errno: i32, incarnation: Incarnation, clients: BTreeMap<ArmorId, Vec<ConnectionId>> }
    /// The server closed its listener for good (thesis §4.3.3).
    0x0202 MSG_APP_UNREGISTER_SERVER => pub struct AppUnregisterServer { address: Endpoint, armor: ArmorId }
    /// Which ARMOR oversees the server at this address (thesis §4.2.1)?
    0x0203 MSG_APP_LOOKUP_SERVER_INFO => pub struct AppLookupServerInfo { address: Endpoint, asker: ArmorId, request: u64 }
    /// Answer; `row` is absent (thesis: -1) when there is none.
    0x0204 MSG_APP_SERVER_INFO => pub struct AppServerInfo { address: Endpoint, request: u64, row: Option<ServerRow> }
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
#[allow(clippy::panic)]
mod tests {
    use std::collections::HashSet;

    use super::{ApplicationSpec, ReadyQuestion, SpokenBytes};

    #[test]
    fn bytes_are_text_or_numbers_in_toml_and_come_over_the_wire() {
        let text = "name = \"db\"\ncommand = [\"db\"]\n[ready]\nsend = [0, 8, 210, 255]\nexpect = \"\\u0000+PONG\\r\\n\"\n";
        let spec: ApplicationSpec = toml::from_str(text).unwrap_or_else(|error| panic!("{error}"));
        let Some(question) = &spec.ready else { panic!("asked") };
        assert_eq!((&question.send.0[..], &question.expect.0[..]), (&[0, 8, 210, 255][..], &b"\0+PONG\r\n"[..]));
        let wire = rmp_serde::to_vec(&spec).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rmp_serde::from_slice::<ApplicationSpec>(&wire).ok(), Some(spec));
        assert!(toml::from_str::<ReadyQuestion>("expect = [256]").is_err());
    }

    #[test]
    fn a_question_to_which_any_answer_would_do_is_refused() {
        let question = |expect: &str, interval_ms| ReadyQuestion {
            send: SpokenBytes::default(),
            expect: SpokenBytes(expect.into()),
            port: None,
            interval_ms,
            timeout_ms: 1,
        };
        assert_eq!(question("220 ", 1).check(), Ok(()));
        assert_eq!(question("", 1).check().map_err(|(key, _)| key), Err("expect"));
        assert_eq!(question("x", 0).check().map_err(|(key, _)| key), Err("interval_ms"));
        assert_eq!(question(&"x".repeat(5000), 1).check().map_err(|(key, _)| key), Err("expect"));
    }

    #[test]
    fn operation_structs_are_named_after_their_messages_and_numbers_are_unique() {
        let mut numbers = HashSet::new();
        for (number, wire, name) in super::ELEMENT_OPERATIONS.iter().chain(armor_core::operations::CORE_OPERATIONS) {
            assert_eq!(*name, armor_proto::operation::struct_name(wire));
            assert!(numbers.insert(number), "{wire} has the number of another operation");
        }
    }
}
