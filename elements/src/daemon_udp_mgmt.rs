//! `daemon_udp_mgmt`: links to other daemons over datagrams (thesis §5.1, §5.4, `daemon_udp_mgmt_t`). It stands in the place of `daemon_tcp_mgmt`.
//!
//! Purpose: what `daemon_tcp_mgmt` does, with links that outlive outages and changes of address at either end (R-UDP, `armor_proto::rudp`).
//! Subscribes: `MSG_ROUTE`, `MSG_ARMOR_LOCATION`, `MSG_DAEMON_REGISTERED`, `MSG_ARMOR_ATTACH`, `MSG_NODE_FAILED`, `MSG_LINK_QUERY`, `MSG_CARRIER_TOLD`.
//! Emits: `MSG_DAEMON_REGISTER` (acknowledged), `MSG_LOCATE_ARMOR`, `MSG_LINK_LOST` (to the FTM), `MSG_LINK_STATE`, `MSG_LINK_CHANGED`, `MSG_CARRIER_TOLD` (to this ARMOR).
//! Configuration: `listen`, `ftm` (absent in the FTM's own composition), `advertise`, `keys` or `insecure`, `max_datagram`, `keep_alive_ms`; see [`Config`].
//!
//! The socket outlives the process in the vault, with what has arrived meanwhile. Links do not: to the peers the next life is silent until they have shaken
//! hands with it, which they begin as soon as they notice.
//!
//! The other daemons and the ways of messages are `links::daemons`, the socket is `links::datagrams`; here is dialling.

#[cfg(test)]
#[path = "daemon_udp_mgmt/tests.rs"]
mod tests;

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::operations::{Route, SendReliable};
use armor_proto::frame::{Encoded, Frame};
use armor_proto::ids::ArmorId;
use armor_proto::rudp::CloseReason;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::endpoints::Keeping;
use crate::links::daemons::{Daemons, LOOKING, Opening, PeerLink, REKEY_AFTER};
use crate::links::datagrams::protected::{Keyring, plain, shown};
use crate::links::datagrams::{self, DatagramLink, DatagramOwner, Datagrams, Opened};
use crate::links::security::{Security, check_protected, kind_of};
use crate::links::{Acknowledged, Closed, LinkId, LinkOwner, Sent, write_address};
use crate::operations::{
    ArmorAttach, ArmorLocation, Carrier, CarrierTold, DaemonRegister, DaemonRegistered, LinkChanged, LinkLost, LinkQuery, LinkState,
    LocateArmor, NodeFailed,
};

/// Key of the socket in the vault.
const SOCKET: &str = "socket";
/// How long a name may take to be looked up.
const LOOKUP_WITHIN: Duration = Duration::from_secs(5);
/// Bounds of `keep_alive_ms`.
const KEEP_ALIVE_MS: std::ops::RangeInclusive<u64> = 50..=60_000;
/// Bounds of `max_datagram`.
const DATAGRAM: std::ops::RangeInclusive<usize> = armor_proto::rudp::MIN_DATAGRAM..=16_000;

/// The element.
pub struct DaemonUdpMgmt {
    config: Config,
    keeping: Keeping,
    /// The socket of an earlier life, until this one starts; then the present one. The vault has it too.
    socket: Option<OwnedFd>,
    daemons: Daemons<DatagramLink>,
    datagrams: Option<Datagrams>,
    keyring: Option<Keyring>,
    /// Seconds since all links have renewed their keys.
    keys_age: u64,
    /// Links whose handshake is under way: to whom, and where.
    dialling: HashMap<LinkId, (ArmorId, String)>,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// UDP address of this daemon; port 0 lets the kernel choose, `<run_dir>/udp.addr` tells it.
    listen: SocketAddr,
    /// UDP address of the FTM, `host:port`; absent in the FTM's own composition.
    ftm: Option<String>,
    /// Address told to other daemons when it is not the one listened on (port forwarding).
    advertise: Option<String>,
    /// Directory with this ARMOR's private key and the list of trusted nodes (`armor keygen`, `armor trust`): links are protected with it.
    keys: Option<PathBuf>,
    /// Links beyond this machine without protection: whoever is on the network may do everything.
    #[serde(default)]
    insecure: bool,
    /// Longest datagram that is tried, in bytes of UDP payload: 1472 is Ethernet's with IPv4. What a path passes is found out.
    #[serde(default = "max_datagram")]
    max_datagram: usize,
    /// Pause between signs of life of a link on which nothing is said: how soon a peer hears of a new address of this node, and this node of a dead peer.
    #[serde(default = "keep_alive_ms")]
    keep_alive_ms: u64,
}

fn max_datagram() -> usize {
    datagrams::config().max_datagram
}

fn keep_alive_ms() -> u64 {
    500
}

/// What is written, when it is allowed.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub struct Config {
    listen: SocketAddr,
    ftm: Option<String>,
    advertise: Option<String>,
    keys: Option<PathBuf>,
    max_datagram: usize,
    keep_alive_ms: u64,
}

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Config, String> {
        let Written { listen, ftm, advertise, keys, insecure, max_datagram, keep_alive_ms } = written;
        let addresses = [("listen", Some(listen.to_string())), ("ftm", ftm.clone()), ("advertise", advertise.clone())];
        let addresses = addresses.each_ref().map(|(key, address)| (*key, address.as_deref()));
        check_protected(DaemonUdpMgmt::NAME, &addresses, keys.as_deref(), insecure)?;
        if !DATAGRAM.contains(&max_datagram) {
            return Err(format!("max_datagram = {max_datagram}: from {} to {} bytes are possible", DATAGRAM.start(), DATAGRAM.end()));
        }
        if !KEEP_ALIVE_MS.contains(&keep_alive_ms) {
            return Err(format!("keep_alive_ms = {keep_alive_ms}: from {} to {} are possible", KEEP_ALIVE_MS.start(), KEEP_ALIVE_MS.end()));
        }
        Ok(Config { listen, ftm, advertise, keys, max_datagram, keep_alive_ms })
    }
}

impl Element for DaemonUdpMgmt {
    const NAME: &'static str = "daemon_udp_mgmt";
    const PURPOSE: &'static str =
        "links to other daemons over UDP that outlive outages and changes of address: accepts, connects on demand, routes";
    const EXAMPLE: &'static str = "listen = \"127.0.0.1:0\"\nftm = \"127.0.0.1:7000\"\n# advertise = \"192.0.2.1:7001\"\n# keys = \"/etc/armor/keys\"\n# insecure = true\n# max_datagram = 1472\n# keep_alive_ms = 500\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        if config.ftm.is_some() && setup.armor == ArmorId::FTM {
            return Err("this ARMOR is the FTM itself: remove the key ftm".to_owned());
        }
        let security = config.keys.as_ref().map(|directory| Security::read(directory, &setup.name)).transpose()?;
        let (keeping, mut handed) = Keeping::open(setup, Self::NAME)?;
        let keyring = security.as_ref().map(Security::keyring);
        let daemons = Daemons::new(Carrier::Udp, &setup.name, config.ftm.as_deref(), config.advertise.clone(), security, dial);
        Ok(DaemonUdpMgmt {
            config,
            socket: handed.take(SOCKET),
            keeping,
            daemons,
            datagrams: None,
            keyring,
            keys_age: 0,
            dialling: HashMap::new(),
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::route)
            .on(Self::location)
            .on(Self::registered)
            .on(Self::attached)
            .on(Self::node_failed)
            .on(Self::link_query)
            .on(Self::told_by_other)
            .emits::<DaemonRegister>()
            .emits::<LocateArmor>()
            .emits::<LinkLost>()
            .emits::<LinkState>()
            .emits::<LinkChanged>()
            .emits::<CarrierTold>()
            .emits::<SendReliable>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        // Peers know the address of the earlier life.
        let wanted = self.daemons.listening.unwrap_or(self.config.listen);
        let socket = match self.socket.take().and_then(|kept| still_bound(kept, wanted)) {
            Some(socket) => socket,
            None => datagrams::bind(wanted, "daemon_udp_mgmt.listen")?,
        };
        let kept = socket.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        self.keeping.keep(SOCKET, kept.as_fd());
        self.keeping.watch(context, |_, _, _| {}, Self::keep_again);
        self.socket = Some(kept);
        let address = socket.local_addr().map_err(|error| error.to_string())?;
        write_address(&context.setup().run_dir, "udp.addr", address)?;
        let acceptor = match &self.keyring {
            Some(keyring) => keyring.acceptor(),
            None => plain(&self.daemons.name).0,
        };
        let mut times = datagrams::config();
        times.max_datagram = self.config.max_datagram;
        times.keep_alive = Duration::from_millis(self.config.keep_alive_ms);
        self.datagrams = Some(Datagrams::open::<Self>(socket, times, acceptor, context)?);
        self.daemons.started(address, context);
        Ok(())
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        self.daemons.timer(token, context);
        if token == LOOKING {
            self.look_at_keys(context);
        }
    }

    fn capture(&self) -> Option<Vec<u8>> {
        self.daemons.capture()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.daemons.restore(state, self.config.listen)
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        if let Some(datagrams) = &self.datagrams {
            datagrams.close_all();
        }
        self.keeping.ended();
    }

    fn status(&self) -> Value {
        let mut status = self.daemons.status(self.config.ftm.as_deref());
        if let Some(datagrams) = &self.datagrams {
            let refused = datagrams.refusals();
            status["refusals"] =
                json!({ "strange": refused.strange, "handshakes": refused.handshakes, "cookies_demanded": refused.cookies_demanded });
        }
        status["dialling"] = self.dialling.len().into();
        status
    }
}

/// Dials a daemon.
fn dial(armor: ArmorId, address: String, pause: Duration, context: &mut Context<'_>) {
    let handle = context.handle::<DaemonUdpMgmt>();
    context.spawn(async move {
        // Even a sleep of no time waits for the next whole millisecond.
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let found = match address.parse::<SocketAddr>() {
            Ok(address) => Ok(vec![address]),
            Err(_) => match tokio::time::timeout(LOOKUP_WITHIN, tokio::net::lookup_host(&address)).await {
                Ok(found) => found.map(Iterator::collect).map_err(|error| error.to_string()),
                Err(_) => Err("its name is not found in time".to_owned()),
            },
        };
        handle.call(|element, context| match found {
            Ok(found) => element.connect(armor, address, &found, context),
            Err(reason) => element.daemons.not_connected(armor, &address, &reason, context),
        });
    });
}

/// The socket of an earlier life, if it is the one that is wanted.
fn still_bound(kept: OwnedFd, wanted: SocketAddr) -> Option<UdpSocket> {
    let socket = UdpSocket::from(kept);
    let address = socket.local_addr().ok()?;
    (address.ip() == wanted.ip() && [0, address.port()].contains(&wanted.port())).then_some(socket)
}

/// The address of this node from which the kernel sends to `remote`.
fn source_towards(remote: SocketAddr) -> Option<SocketAddr> {
    let any: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    // Sends nothing: the kernel looks the way up.
    socket.connect(remote).ok()?;
    socket.local_addr().ok()
}

impl DaemonUdpMgmt {
    /// Another vault keeps nothing yet.
    fn keep_again(&mut self) {
        self.keeping.keep_some(SOCKET, self.socket.as_ref());
    }

    fn connect(&mut self, armor: ArmorId, address: String, found: &[SocketAddr], context: &mut Context<'_>) {
        let begun = self.begin(armor, found, context);
        match begun {
            Ok(id) => {
                self.dialling.insert(id, (armor, address));
            }
            Err(reason) => self.daemons.not_connected(armor, &address, &reason, context),
        }
    }

    fn begin(&mut self, armor: ArmorId, found: &[SocketAddr], context: &mut Context<'_>) -> Result<LinkId, String> {
        let Some(datagrams) = &self.datagrams else { return Err("this daemon ends".to_owned()) };
        let Some(to) = found.iter().find(|address| datagrams.reaches(**address)) else {
            return Err("it has no address that this node's socket reaches; see to daemon_udp_mgmt.listen".to_owned());
        };
        let handshake = match (&self.keyring, &mut self.daemons.security) {
            (Some(keyring), Some(security)) => {
                if security.refresh(context) {
                    keyring.trust(security.trusted().clone());
                }
                keyring.dial(&security.name_of(armor)).map_err(|error| error.to_string())?
            }
            _ => plain(&self.daemons.name).1,
        };
        datagrams.connect(*to, handshake).map_err(|error| error.to_string())
    }

    /// Once a second: the list of trusted nodes may be another one, handshakes were refused, keys grow old.
    fn look_at_keys(&mut self, context: &mut Context<'_>) {
        let (Some(keyring), Some(security)) = (&self.keyring, &mut self.daemons.security) else { return };
        keyring.trust(security.trusted().clone());
        for (error, times) in keyring.refused() {
            security.refuse(kind_of(&error), "a node over UDP", &error.to_string(), context);
            security.count(kind_of(&error), times.saturating_sub(1));
        }
        self.keys_age += 1;
        if self.keys_age >= REKEY_AFTER.as_secs() {
            self.keys_age = 0;
            keyring.rekey();
        }
    }

    fn route(&mut self, _: &Route, context: &mut Context<'_>) {
        self.daemons.route(context);
    }

    fn location(&mut self, location: &ArmorLocation, context: &mut Context<'_>) {
        self.daemons.location(location, context);
        // A peer that does not answer may be there.
        let silent = self.daemons.peers.get(&location.daemon).filter(|peer| peer.silent.is_some() && location.carrier == Carrier::Udp);
        if let (Some((_, link)), Ok(address)) = (silent.and_then(|peer| peer.link.as_ref()), location.address.parse()) {
            link.may_be_at(address);
        }
    }

    fn registered(&mut self, registered: &DaemonRegistered, context: &mut Context<'_>) {
        self.daemons.registered(registered, context);
    }

    fn attached(&mut self, attach: &ArmorAttach, context: &mut Context<'_>) {
        self.daemons.attached(attach, context);
    }

    fn node_failed(&mut self, failed: &NodeFailed, context: &mut Context<'_>) {
        self.daemons.node_failed(failed, context);
    }

    fn told_by_other(&mut self, told: &CarrierTold, context: &mut Context<'_>) {
        self.daemons.told_by_other(told, context);
    }

    fn link_query(&mut self, query: &LinkQuery, context: &mut Context<'_>) {
        self.daemons.link_query(query, None, context);
    }
}

impl LinkOwner for DaemonUdpMgmt {
    fn link_frame(&mut self, id: LinkId, frame: Frame, context: &mut Context<'_>) {
        self.daemons.link_frame(id, frame, context);
    }

    fn link_closed(&mut self, id: LinkId, why: &Closed, context: &mut Context<'_>) {
        if let Some((armor, address)) = self.dialling.remove(&id) {
            if let (Closed::Datagrams(CloseReason::Refused(error)), Some(security)) = (why, &mut self.daemons.security)
                && !self.daemons.peers.get(&armor).is_some_and(|peer| peer.told)
            {
                security.refuse("failed", &address, &error.to_string(), context);
            }
            self.daemons.not_connected(armor, &address, &why.to_string(), context);
            return;
        }
        self.daemons.link_closed(id, why, context);
    }
}

impl DatagramOwner for DaemonUdpMgmt {
    fn link_opened(&mut self, id: LinkId, opened: Opened, context: &mut Context<'_>) {
        let Some(datagrams) = &self.datagrams else { return };
        let link = datagrams.link(id);
        let dialled = self.dialling.remove(&id).map(|(armor, _)| armor);
        let remote = opened.remote.to_string();
        let shown = shown(&opened.identity).filter(|_| self.keyring.is_some());
        if (self.keyring.is_some() && shown.is_none()) || !self.daemons.has_room(dialled, &remote, context) {
            link.close();
            return;
        }
        link.watch();
        let opening = Opening { dialled, return_address: Some(remote.clone()), remote, local: source_towards(opened.remote), shown };
        self.daemons.hold(id, link, opening, context);
    }

    fn link_moved(&mut self, id: LinkId, remote: SocketAddr, context: &mut Context<'_>) {
        self.daemons.moved(id, remote.to_string(), context);
    }

    fn link_silent(&mut self, id: LinkId, silent: bool, context: &mut Context<'_>) {
        self.daemons.silent(id, silent, context);
    }
}

impl PeerLink for DatagramLink {
    fn send(&self, encoded: Encoded) -> Sent {
        DatagramLink::send(self, encoded)
    }
    fn close(&self) {
        DatagramLink::close(self);
    }
    fn acknowledged(&self) -> Option<Acknowledged> {
        DatagramLink::acknowledged(self)
    }
    fn queued_bytes(&self) -> usize {
        DatagramLink::queued_bytes(self)
    }
    fn outlives_silence(&self) -> bool {
        true
    }
    fn rekey(&self) {
        // All at once, by the keyring.
    }
    fn status(&self) -> Value {
        let Some(status) = DatagramLink::status(self) else { return json!({}) };
        json!({
            "dropped": self.dropped(), "remote": status.remote.to_string(), "round_trip_us": status.rtt.as_micros() as u64,
            "rate_bytes_per_s": status.bandwidth as u64, "datagram_bytes": status.datagram, "silent": status.silent,
            "packets_sent": status.packets_sent, "packets_lost": status.packets_lost - status.packets_late.min(status.packets_lost),
            "packets_received": status.packets_received, "packets_refused": status.refused, "probes": status.probes,
        })
    }
}
