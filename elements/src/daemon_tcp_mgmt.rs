//! `daemon_tcp_mgmt`: TCP links to other daemons (thesis §5.4, `daemon_tcp_mgmt_t`).
//!
//! Purpose: keeps the table daemon-id → address, filled on demand from the FTM; keeps links open once they are established;
//! routes messages to remote daemons; accepts links. The first frame of a link, both ways, is `MSG_DAEMON_HELLO`.
//! Subscribes: `MSG_ROUTE`, `MSG_ARMOR_LOCATION`, `MSG_DAEMON_REGISTERED`, `MSG_ARMOR_ATTACH`, `MSG_NODE_FAILED`, `MSG_LINK_QUERY`.
//! Emits: `MSG_DAEMON_REGISTER` (acknowledged), `MSG_LOCATE_ARMOR`, `MSG_LINK_LOST` (to the FTM), `MSG_LINK_STATE`, `MSG_LINK_CHANGED` (to this ARMOR).
//! Configuration: `listen`, `ftm` (absent in the FTM's own composition), `advertise`, `keys` or `insecure`; see [`Config`].
//!
//! With `keys` each link begins with a handshake, and everything on it is encrypted and authenticated; whom a key does not belong to is not heard.
//!
//! The listener outlives the process in the vault: links to a daemon that is being started again wait there, and one that is dialled is refused only when
//! its vault is dead too.
//!
//! Invariants: a destination that is not reachable now has its messages kept within the bounds of [`Waiting`], then
//! dropped; a frame is not sent back to where it came from unless the FTM says so.
//!
//! The ways of messages are in `routing`, links in `peers`, what protects them in `protection`, the listener in `listening`.

#[path = "daemon_tcp_mgmt/listening.rs"]
mod listening;
#[path = "daemon_tcp_mgmt/peers.rs"]
mod peers;
#[path = "daemon_tcp_mgmt/protection.rs"]
mod protection;
#[path = "daemon_tcp_mgmt/routing.rs"]
mod routing;
#[cfg(test)]
#[path = "daemon_tcp_mgmt/tests.rs"]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::operations::SendReliable;
use armor_proto::ids::ArmorId;
use armor_proto::secure::PublicKey;
use bytes::BytesMut;
use serde::Deserialize;

use crate::endpoints::Keeping;
use crate::links::security::{Security, check_protected};
use crate::links::{Backoff, Greetings, Link, LinkId, Locations, Waiting};
use crate::operations::{DaemonRegister, LinkChanged, LinkLost, LinkState, LocateArmor};

use listening::{listen, still_listens, write_address};

/// Most links at once, those that have not said who they are included.
const MAX_LINKS: usize = 1024;
/// Most daemons remembered; those without a link are forgotten first.
const MAX_PEERS: usize = 4096;
/// Most daemons whose address outlives this process; the others' are asked for again.
const KEPT_PEERS: usize = 256;
/// Most ARMORs whose daemon is remembered.
const MAX_LOCATIONS: usize = 65_536;
/// Key of the listener in the vault.
const LISTENER: &str = "listener";
/// How long a message may wait for its way.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a peer may take to say who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How often waiting messages and silent links are looked at; only while there are any.
const TICK: Duration = Duration::from_millis(250);
/// How often keys are looked at: whether nodes were taken out of the list, and which links want another key.
const LOOK: Duration = Duration::from_secs(1);
/// After so long a link that is used renews its keys, whatever has passed.
const REKEY_AFTER: Duration = Duration::from_secs(600);
/// Tokens of timers.
const TICKING: u64 = 0;
const LOOKING: u64 = 1;
/// Most questions to the FTM at one tick.
const QUESTIONS_PER_TICK: usize = 256;

/// The element.
pub struct DaemonTcpMgmt {
    config: Config,
    name: String,
    listening: Option<SocketAddr>,
    keeping: Keeping,
    /// The listener of an earlier life, until this one starts; then the present one. The vault has it too, so that whoever dials a daemon that is
    /// just being started again is connected at once, and sees that its node is alive.
    listener: Option<OwnedFd>,
    peers: HashMap<ArmorId, Peer>,
    links: HashMap<LinkId, Held>,
    next_link: LinkId,
    locations: Locations,
    /// ARMORs that have attached to this node's gateway; what passes by a remote daemon says nothing about where they are.
    local: HashSet<ArmorId>,
    waiting: Waiting,
    /// Keys and the list of trusted nodes; absent when links are not protected.
    security: Option<Security>,
    /// Accepted, and the handshake is not done.
    greetings: Greetings,
    /// Connected to daemons that have been dialled, which have not answered the handshake yet: how their kernels do is known all the same.
    introducing: HashMap<ArmorId, OwnedFd>,
    scratch: BytesMut,
    ticking: bool,
    /// Whether the FTM has accepted this daemon; the reason when it has not.
    registered: Option<Result<(), String>>,
    dropped: u64,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Address to accept links on; port 0 lets the kernel choose, `<run_dir>/tcp.addr` tells it.
    listen: SocketAddr,
    /// Address of the FTM, `host:port`; absent in the FTM's own composition.
    ftm: Option<String>,
    /// Address told to other daemons when it is not the one listened on (port forwarding).
    advertise: Option<String>,
    /// Directory with this ARMOR's private key and the list of trusted nodes (`armor keygen`, `armor trust`): links are protected with it.
    keys: Option<PathBuf>,
    /// Links beyond this machine without protection: whoever is on the network may do everything.
    #[serde(default)]
    insecure: bool,
}

/// What is written, when it is allowed.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub struct Config {
    listen: SocketAddr,
    ftm: Option<String>,
    advertise: Option<String>,
    keys: Option<PathBuf>,
}

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Config, String> {
        let Written { listen, ftm, advertise, keys, insecure } = written;
        let addresses = [("listen", Some(listen.to_string())), ("ftm", ftm.clone()), ("advertise", advertise.clone())];
        let addresses = addresses.each_ref().map(|(key, address)| (*key, address.as_deref()));
        check_protected(DaemonTcpMgmt::NAME, &addresses, keys.as_deref(), insecure)?;
        Ok(Config { listen, ftm, advertise, keys })
    }
}

/// A daemon.
#[derive(Default)]
struct Peer {
    name: String,
    /// Where it accepts links, once somebody has told.
    address: Option<String>,
    /// The newest link whose peer has said to be this daemon.
    link: Option<(LinkId, Link)>,
    dialling: bool,
    backoff: Backoff,
    /// Whether the present outage has been told.
    told: bool,
}

/// A link, from its first byte on.
struct Held {
    link: Link,
    /// Who it is, once it has said so.
    peer: Option<ArmorId>,
    /// Who was dialled.
    dialled: Option<ArmorId>,
    remote: String,
    local: Option<SocketAddr>,
    opened: Instant,
    /// Whom the handshake has shown the peer to be, and when the link had its last key, on a link that is protected.
    shown: Option<(String, PublicKey)>,
    rekeyed: Instant,
}

impl Element for DaemonTcpMgmt {
    const NAME: &'static str = "daemon_tcp_mgmt";
    const PURPOSE: &'static str = "TCP links to other daemons: accepts, connects on demand, routes";
    const EXAMPLE: &'static str = "listen = \"127.0.0.1:0\"\nftm = \"127.0.0.1:7000\"\n# advertise = \"192.0.2.1:7001\"\n# keys = \"/etc/armor/keys\"\n# insecure = true\n";
    const EXCLUDES: &'static [&'static str] = &["daemon_udp_mgmt"];
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        if config.ftm.is_some() && setup.armor == ArmorId::FTM {
            return Err("this ARMOR is the FTM itself: remove the key ftm".to_owned());
        }
        let security = config.keys.as_ref().map(|directory| Security::read(directory, &setup.name)).transpose()?;
        let (keeping, mut handed) = Keeping::open(setup, Self::NAME)?;
        let mut peers = HashMap::new();
        if let Some(ftm) = &config.ftm {
            peers.insert(ArmorId::FTM, Peer { name: "ftm".to_owned(), address: Some(ftm.clone()), ..Peer::default() });
        }
        Ok(DaemonTcpMgmt {
            config,
            name: setup.name.clone(),
            listening: None,
            listener: handed.take(LISTENER),
            keeping,
            peers,
            links: HashMap::new(),
            next_link: 0,
            locations: Locations::new(MAX_LOCATIONS),
            local: HashSet::new(),
            waiting: Waiting::new(LONGEST_WAIT),
            security,
            greetings: Greetings::default(),
            introducing: HashMap::new(),
            scratch: BytesMut::with_capacity(64 << 10),
            ticking: false,
            registered: None,
            dropped: 0,
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
            .emits::<DaemonRegister>()
            .emits::<LocateArmor>()
            .emits::<LinkLost>()
            .emits::<LinkState>()
            .emits::<LinkChanged>()
            .emits::<SendReliable>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        // Peers know the address of the earlier life.
        let wanted = self.listening.unwrap_or(self.config.listen);
        let listener = match self.listener.take().and_then(|kept| still_listens(kept, wanted)) {
            Some(listener) => listener,
            None => listen(wanted)?,
        };
        let kept = listener.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        self.keeping.keep(LISTENER, kept.as_fd());
        self.keeping.watch(context, |_, _, _| {}, Self::keep_again);
        self.listener = Some(kept);
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        self.listening = Some(address);
        context.state_changed();
        write_address(&context.setup().run_dir, address)?;
        self.accept_links(listener, context);
        if self.security.is_some() {
            context.timer(LOOK, LOOKING);
        }
        if context.armor() == ArmorId::FTM {
            context.send_to(ArmorId::FTM, self.registration(context.armor(), None));
        } else {
            self.dial(ArmorId::FTM, context);
        }
        Ok(())
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        if token == LOOKING {
            self.look_at_keys(Instant::now(), context);
            return;
        }
        self.ticking = false;
        self.tick(Instant::now(), context);
    }

    fn capture(&self) -> Option<Vec<u8>> {
        let peers = self.peers.iter().filter(|(armor, _)| **armor != ArmorId::FTM);
        let known = peers.filter_map(|(armor, peer)| Some((*armor, &peer.name, peer.address.as_ref()?)));
        rmp_serde::to_vec(&(self.listening?, known.take(KEPT_PEERS).collect::<Vec<_>>())).ok()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let (address, peers): (SocketAddr, Vec<(ArmorId, String, String)>) =
            rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        // What waits for them need not wait for the FTM too; that is asked all the same.
        for (armor, name, address) in peers.into_iter().filter(|(armor, ..)| *armor != ArmorId::FTM).take(KEPT_PEERS) {
            self.peers.insert(armor, Peer { name, address: Some(address), ..Peer::default() });
        }
        // Another address in the composition wins; a port of the kernel's choice stays the one that it chose.
        if self.config.listen.ip() == address.ip() && [0, address.port()].contains(&self.config.listen.port()) {
            self.listening = Some(address);
        }
        Ok(())
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.keeping.ended();
    }

    fn status(&self) -> serde_json::Value {
        let peers: Vec<serde_json::Value> = self
            .peers
            .iter()
            .map(|(armor, peer)| {
                let link = peer.link.as_ref().map(|(_, link)| link);
                serde_json::json!({
                    "armor": armor.to_string(), "name": peer.name, "address": peer.address, "linked": link.is_some(),
                    "queued_bytes": link.map_or(0, Link::queued_bytes), "dropped": link.map_or(0, Link::dropped),
                    "keys": link.map_or(0, Link::keys),
                })
            })
            .collect();
        serde_json::json!({
            "listen": self.listening.map(|address| address.to_string()), "ftm": self.config.ftm,
            "registered": self.registered.as_ref().is_some_and(Result::is_ok),
            "refused": self.registered.as_ref().and_then(|registered| registered.as_ref().err()),
            "peers": peers, "links": self.links.len(), "locations": self.locations.len(),
            "waiting": self.waiting.len(), "dropped": self.dropped,
            "security": self.security.as_ref().map(Security::status), "greetings": self.greetings.len(),
        })
    }
}

impl DaemonTcpMgmt {
    /// Another vault keeps nothing yet.
    fn keep_again(&mut self) {
        self.keeping.keep_some(LISTENER, self.listener.as_ref());
    }
}
