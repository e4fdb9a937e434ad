//! `daemon_tcp_mgmt`: TCP links to other daemons (thesis §5.4, `daemon_tcp_mgmt_t`).
//!
//! Purpose: keeps the table daemon-id → address, filled on demand from the FTM; keeps links open once they are established;
//! routes messages to remote daemons; accepts links. The first frame of a link, both ways, is `MSG_DAEMON_HELLO`.
//! Subscribes: `MSG_ROUTE`, `MSG_ARMOR_LOCATION`, `MSG_DAEMON_REGISTERED`, `MSG_ARMOR_ATTACH`, `MSG_NODE_FAILED`, `MSG_LINK_QUERY`.
//! Emits: `MSG_DAEMON_REGISTER` (acknowledged), `MSG_LOCATE_ARMOR`, `MSG_LINK_LOST` (to the FTM), `MSG_LINK_STATE`, `MSG_LINK_CHANGED` (to this ARMOR).
//! Configuration: `listen`, `ftm` (absent in the FTM's own composition), `advertise`; see [`Config`].
//!
//! The listener outlives the process in the vault: links to a daemon that is being started again wait there, and one that is dialled is refused only when
//! its vault is dead too.
//!
//! Invariants: a destination that is not reachable now has its messages kept within the bounds of [`Waiting`], then
//! dropped; a frame is not sent back to where it came from unless the FTM says so.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use armor_core::context::{Context, Routed};
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::{Route, SendReliable};
use armor_proto::frame::{Encoded, Frame};
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;
use bytes::BytesMut;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};

use crate::endpoints::Keeping;
use crate::links::{
    Backoff, Closed, Link, LinkId, LinkOwner, Locations, Sent, Stream, Waiting, as_frame, encode, introduction, node_addresses,
};
use crate::operations::{
    ArmorAttach, ArmorLocation, DaemonHello, DaemonRegister, DaemonRegistered, LinkChanged, LinkLost, LinkQuery, LinkState, LocateArmor,
    NodeFailed,
};

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
    scratch: BytesMut,
    ticking: bool,
    /// Whether the FTM has accepted this daemon; the reason when it has not.
    registered: Option<Result<(), String>>,
    dropped: u64,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address to accept links on; port 0 lets the kernel choose, `<run_dir>/tcp.addr` tells it.
    listen: SocketAddr,
    /// Address of the FTM, `host:port`; absent in the FTM's own composition.
    ftm: Option<String>,
    /// Address told to other daemons when it is not the one listened on (port forwarding).
    advertise: Option<String>,
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
}

impl Element for DaemonTcpMgmt {
    const NAME: &'static str = "daemon_tcp_mgmt";
    const PURPOSE: &'static str = "TCP links to other daemons: accepts, connects on demand, routes";
    const EXAMPLE: &'static str = "listen = \"127.0.0.1:0\"\nftm = \"127.0.0.1:7000\"\n# advertise = \"192.0.2.1:7001\"\n";
    const EXCLUDES: &'static [&'static str] = &["daemon_udp_mgmt"];
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        if config.ftm.is_some() && setup.armor == ArmorId::FTM {
            return Err("this ARMOR is the FTM itself: remove the key ftm".to_owned());
        }
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
        if context.armor() == ArmorId::FTM {
            context.send_to(ArmorId::FTM, self.registration(context.armor(), None));
        } else {
            self.dial(ArmorId::FTM, context);
        }
        Ok(())
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
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
                })
            })
            .collect();
        serde_json::json!({
            "listen": self.listening.map(|address| address.to_string()), "ftm": self.config.ftm,
            "registered": self.registered.as_ref().is_some_and(Result::is_ok),
            "refused": self.registered.as_ref().and_then(|registered| registered.as_ref().err()),
            "peers": peers, "links": self.links.len(), "locations": self.locations.len(),
            "waiting": self.waiting.len(), "dropped": self.dropped,
        })
    }
}

// Routing.
impl DaemonTcpMgmt {
    /// Another vault keeps nothing yet.
    fn keep_again(&mut self) {
        self.keeping.keep_some(LISTENER, self.listener.as_ref());
    }

    fn route(&mut self, _: &Route, context: &mut Context<'_>) {
        let Some(destination) = context.routed_to() else { return };
        let own = context.armor();
        // Without an FTM there is nobody to ask.
        let knows_ftm = own == ArmorId::FTM || self.config.ftm.is_some();
        if destination == ArmorId::NONE || !(knows_ftm || self.next_hop(destination).is_some()) {
            return;
        }
        let Some(routed) = context.take_routed() else { return };
        if let Routed::Frame(frame) = &routed {
            self.avoid_echo(frame);
        }
        let encoded = match routed.encode(&mut self.scratch) {
            Ok(encoded) => encoded,
            Err(error) => {
                context.event(Event::new("message-refused").with("destination", destination).with("reason", error));
                return;
            }
        };
        match self.next_hop(destination).filter(|hop| self.is_linked(*hop)) {
            Some(hop) => self.send(hop, encoded, context),
            None => self.keep(destination, encoded, context),
        }
    }

    /// The daemon to which messages for `destination` go.
    fn next_hop(&self, destination: ArmorId) -> Option<ArmorId> {
        if self.peers.contains_key(&destination) {
            return Some(destination);
        }
        self.locations.daemon_of(destination)
    }

    fn is_linked(&self, peer: ArmorId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.link.is_some())
    }

    /// A frame that would go back to the daemon it came from: one of us has an old location, so the FTM is asked.
    /// Messages on their way home (source = destination) are no such frames.
    fn avoid_echo(&mut self, frame: &Frame) {
        if frame.source != frame.destination
            && let Some(hop) = self.locations.daemon_of(frame.destination)
            && self.next_hop(frame.source) == Some(hop)
        {
            self.locations.forget(frame.destination);
        }
    }

    fn send(&mut self, peer: ArmorId, encoded: Encoded, context: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        let Some((_, link)) = &peer.link else { return };
        match link.send(encoded) {
            Sent::Written | Sent::Queued => {}
            Sent::FirstDropped => {
                self.dropped += 1;
                context.event(Event::new("link-congested").with("peer", &peer.name).with("queued_bytes", link.queued_bytes()));
            }
            Sent::Dropped | Sent::Closed => self.dropped += 1,
        }
    }

    /// Keeps a message until its way is open, and sees that it is being opened.
    fn keep(&mut self, destination: ArmorId, encoded: Encoded, context: &mut Context<'_>) {
        let first = !self.waiting.is_waiting(destination);
        if !self.waiting.push(destination, encoded, Instant::now()) {
            self.dropped += 1;
            tracing::debug!(%destination, "a message was dropped: too many wait for their way");
        }
        if first {
            self.seek(destination, context);
        }
        self.tick_later(context);
    }

    fn seek(&mut self, destination: ArmorId, context: &mut Context<'_>) {
        if let Some(hop) = self.next_hop(destination) {
            self.dial(hop, context);
        }
        // Asked even when an address is known: a daemon may have come back elsewhere.
        if destination != ArmorId::FTM {
            context.send_to(ArmorId::FTM, LocateArmor { armor: destination, asker: context.armor() });
        }
    }

    fn location(&mut self, location: &ArmorLocation, context: &mut Context<'_>) {
        let ArmorLocation { armor, daemon, address } = location;
        if *daemon == ArmorId::NONE || *daemon == context.armor() {
            // Nobody knows it, or it is a local ARMOR that is not attached now. It may come within the time that messages
            // wait, but what an ephemeral speaker left behind is gone.
            if armor.is_ephemeral() && self.locations.daemon_of(*armor).is_none() {
                self.dropped += self.waiting.take(*armor).count() as u64;
            }
            return;
        }
        self.local.remove(armor);
        if armor != daemon {
            self.locations.learn(*armor, *daemon);
        }
        let peer = self.peers.entry(*daemon).or_default();
        if !address.is_empty() && *daemon != ArmorId::FTM && peer.address.as_ref() != Some(address) {
            peer.address = Some(address.clone());
            peer.backoff.reset();
        }
        if peer.link.is_some() {
            self.flush_towards(*daemon, context);
        } else if self.waiting.is_waiting(*armor) {
            self.dial(*daemon, context);
        }
    }

    /// Sends what waits for a daemon and for ARMORs behind it.
    fn flush_towards(&mut self, daemon: ArmorId, context: &mut Context<'_>) {
        let reachable: Vec<ArmorId> = self.waiting.destinations().filter(|armor| self.next_hop(*armor) == Some(daemon)).collect();
        for armor in reachable {
            for encoded in self.waiting.take(armor) {
                self.send(daemon, encoded, context);
            }
        }
    }

    /// A local ARMOR is there now: what waited for it goes back to the dispatcher, and so to the gateway.
    fn attached(&mut self, attach: &ArmorAttach, context: &mut Context<'_>) {
        if !attach.armor.is_ephemeral() {
            self.local.insert(attach.armor);
            self.locations.forget(attach.armor);
        }
        for encoded in self.waiting.take(attach.armor) {
            if let Some(frame) = as_frame(&encoded) {
                context.received(frame);
            }
        }
    }

    /// A failed node's ARMORs may come back on another one. Its link is left to TCP: it may only be slow.
    fn node_failed(&mut self, failed: &NodeFailed, _: &mut Context<'_>) {
        self.locations.forget_daemon(failed.armor);
    }

    fn link_query(&mut self, query: &LinkQuery, context: &mut Context<'_>) {
        let link = self.peers.get(&query.peer).and_then(|peer| peer.link.as_ref()).map(|(_, link)| link);
        // A listener that its vault keeps has taken this one, and the daemon has yet to come back.
        let dialled = || self.links.values().find(|held| held.peer.is_none() && held.dialled == Some(query.peer)).map(|held| &held.link);
        let link = link.or_else(dialled);
        let acknowledged = link.and_then(Link::acknowledged);
        let state = LinkState {
            peer: query.peer,
            linked: link.is_some(),
            acknowledged_ms: acknowledged.map(|acknowledged| acknowledged.ago_ms),
            // What is not known is no proof of life.
            unacknowledged: acknowledged.is_none_or(|acknowledged| acknowledged.waiting > 0),
        };
        context.send_to(context.armor(), state);
    }

    fn tick_later(&mut self, context: &mut Context<'_>) {
        if !std::mem::replace(&mut self.ticking, true) {
            context.timer(TICK, 0);
        }
    }

    fn tick(&mut self, now: Instant, context: &mut Context<'_>) {
        for (destination, messages) in self.waiting.expire(now) {
            self.dropped += messages as u64;
            // The event would go to the FTM itself, and wait, and expire.
            if destination != ArmorId::FTM {
                context.event(Event::new("messages-dropped").with("destination", destination).with("messages", messages));
            }
        }
        for held in self.links.values() {
            if held.peer.is_none() && now.saturating_duration_since(held.opened) >= HELLO_WITHIN {
                held.link.close();
            }
        }
        let sought: Vec<ArmorId> = self.waiting.destinations().take(QUESTIONS_PER_TICK).collect();
        for destination in sought {
            self.seek(destination, context);
        }
        if !self.waiting.is_empty() || self.links.values().any(|held| held.peer.is_none()) {
            self.tick_later(context);
        }
    }
}

// Links.
impl DaemonTcpMgmt {
    fn accept_links(&self, listener: TcpListener, context: &mut Context<'_>) {
        let handle = context.handle::<Self>();
        context.spawn(async move {
            loop {
                let called = match listener.accept().await {
                    Ok((stream, remote)) => handle.call(|element, context| element.hold(stream, None, remote.to_string(), context)),
                    Err(error) => {
                        let called = handle.call(|_, context| context.event(Event::new("link-refused").with("reason", &error)));
                        // Out of file descriptors, most likely: not again at once.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        called
                    }
                };
                if called.is_none() {
                    return;
                }
            }
        });
    }

    fn dial(&mut self, armor: ArmorId, context: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&armor) else { return };
        if peer.dialling || peer.link.is_some() {
            return;
        }
        let Some(address) = peer.address.clone() else { return };
        peer.dialling = true;
        let pause = peer.backoff.pause();
        let handle = context.handle::<Self>();
        context.spawn(async move {
            // Even a sleep of no time waits for the next whole millisecond.
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let connected = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(&address)).await;
            let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            handle.call(|element, context| match connected {
                Ok(stream) => element.hold(stream, Some(armor), address, context),
                Err(error) => element.not_connected(armor, &address, &error.to_string(), context),
            });
        });
    }

    fn hold(&mut self, stream: TcpStream, dialled: Option<ArmorId>, remote: String, context: &mut Context<'_>) {
        if self.links.len() >= MAX_LINKS {
            context.event(Event::new("link-refused").with("peer", &remote).with("reason", format!("{MAX_LINKS} links are open")));
            if let Some(peer) = dialled.and_then(|armor| self.peers.get_mut(&armor)) {
                peer.dialling = false;
            }
            return;
        }
        self.next_link += 1;
        let id = self.next_link;
        let local = stream.local_addr().ok();
        let link = Link::open::<Self>(id, Stream::Tcp(stream), context);
        let hello = DaemonHello { armor: context.armor(), name: self.name.clone(), address: self.advertised(local) };
        let mut message = Message::to(dialled.unwrap_or(ArmorId::NONE), hello);
        message.source = context.armor();
        match encode(&message) {
            Ok(encoded) => {
                link.send(encoded);
            }
            Err(error) => context.event(Event::new("message-refused").with("reason", error)),
        }
        self.links.insert(id, Held { link, peer: None, dialled, remote, local, opened: Instant::now() });
        self.tick_later(context);
    }

    fn not_connected(&mut self, armor: ArmorId, address: &str, reason: &str, context: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&armor) else { return };
        peer.dialling = false;
        if peer.link.is_none() && !std::mem::replace(&mut peer.told, true) {
            context.event(Event::new("link-down").with("peer", &peer.name).with("address", address).with("reason", reason));
        }
        self.dial_if_wanted(armor, context);
    }

    /// The FTM is always wanted, other daemons while something waits for them.
    fn dial_if_wanted(&mut self, armor: ArmorId, context: &mut Context<'_>) {
        if armor == ArmorId::FTM || self.waiting.destinations().any(|waiting| self.next_hop(waiting) == Some(armor)) {
            self.dial(armor, context);
        }
    }

    fn hello(&mut self, id: LinkId, hello: DaemonHello, context: &mut Context<'_>) {
        let Some(held) = self.links.get_mut(&id) else { return };
        if hello.armor == context.armor() || hello.armor == ArmorId::NONE {
            let why = if hello.armor == ArmorId::NONE {
                "it has no identity"
            } else {
                "it has this daemon's own name; names are unique in a network"
            };
            context.event(Event::new("link-refused").with("peer", &held.remote).with("reason", why));
            held.link.close();
            return;
        }
        if let Some(dialled) = held.dialled
            && let Some(peer) = self.peers.get_mut(&dialled)
        {
            if dialled != hello.armor {
                if !std::mem::replace(&mut peer.told, true) {
                    context
                        .event(Event::new("wrong-peer").with("address", &held.remote).with("expected", dialled).with("found", &hello.name));
                }
                if dialled != ArmorId::FTM {
                    peer.address = None;
                }
                held.link.close();
                return;
            }
            peer.dialling = false;
        }
        held.peer = Some(hello.armor);
        let (local, link) = (held.local, held.link.clone());
        if self.peers.len() >= MAX_PEERS {
            self.peers.retain(|armor, peer| *armor == ArmorId::FTM || peer.link.is_some() || peer.dialling);
        }
        let peer = self.peers.entry(hello.armor).or_default();
        peer.name = hello.name;
        let known = peer.address.clone();
        if !hello.address.is_empty() && (hello.armor != ArmorId::FTM || peer.address.is_none()) {
            peer.address = Some(hello.address);
        }
        if peer.address != known {
            context.state_changed();
        }
        peer.link = Some((id, link));
        peer.backoff.reset();
        peer.told = false;
        let up = Event::new("link-up").with("peer", &peer.name);
        if hello.armor == ArmorId::FTM {
            let registration = self.registration(context.armor(), local);
            context.send_reliable(Message::to(ArmorId::FTM, registration));
        }
        context.event(up);
        self.flush_towards(hello.armor, context);
        if hello.armor != ArmorId::FTM {
            context.send_to(context.armor(), LinkChanged { peer: hello.armor });
        }
    }

    fn registration(&self, armor: ArmorId, local: Option<SocketAddr>) -> DaemonRegister {
        DaemonRegister { armor, name: self.name.clone(), address: self.advertised(local), node_addresses: node_addresses() }
    }

    fn registered(&mut self, registered: &DaemonRegistered, context: &mut Context<'_>) {
        self.registered = Some(if registered.accepted { Ok(()) } else { Err(registered.reason.clone()) });
        if !registered.accepted {
            tracing::error!("the FTM refuses this daemon: {}", registered.reason);
            context.event(Event::new("registration-refused").with("reason", &registered.reason));
        }
    }

    /// Where others reach this daemon; a wildcard is replaced by the address that a link goes out from.
    fn advertised(&self, local: Option<SocketAddr>) -> String {
        if let Some(advertise) = &self.config.advertise {
            return advertise.clone();
        }
        let Some(listening) = self.listening else { return String::new() };
        match local {
            Some(local) if listening.ip().is_unspecified() => SocketAddr::new(local.ip().to_canonical(), listening.port()).to_string(),
            _ => listening.to_string(),
        }
    }
}

impl LinkOwner for DaemonTcpMgmt {
    fn link_frame(&mut self, id: LinkId, frame: Frame, context: &mut Context<'_>) {
        let Some(held) = self.links.get(&id) else { return };
        let Some(peer) = held.peer else {
            match introduction::<DaemonHello>(&frame) {
                Some(hello) => self.hello(id, hello, context),
                None => {
                    context.event(
                        Event::new("link-refused").with("peer", &held.remote).with("reason", "its first frame is no MSG_DAEMON_HELLO"),
                    );
                    held.link.close();
                }
            }
            return;
        };
        // A message on its way home says where its source is not.
        if frame.source != frame.destination
            && frame.source != peer
            && frame.source != context.armor()
            && !self.local.contains(&frame.source)
            && self.locations.daemon_of(frame.source) != Some(peer)
            && !self.peers.contains_key(&frame.source)
        {
            self.locations.learn(frame.source, peer);
        }
        context.received(frame);
    }

    fn link_closed(&mut self, id: LinkId, why: &Closed, context: &mut Context<'_>) {
        let Some(held) = self.links.remove(&id) else { return };
        if let Closed::Frame(error) = why {
            context.event(Event::new("link-refused").with("peer", &held.remote).with("reason", error));
        }
        let Some(armor) = held.peer else {
            // Closed before it said who it is: an attempt that failed.
            if let Some(dialled) = held.dialled {
                self.not_connected(dialled, &held.remote, &why.to_string(), context);
            }
            return;
        };
        if armor != ArmorId::FTM {
            // Who waits for an answer asks at once, and so opens the way again.
            context.send_to(context.armor(), LinkChanged { peer: armor });
        }
        // Another link to the same daemon (both had dialled) takes over.
        let other = self.links.iter().find(|(_, held)| held.peer == Some(armor)).map(|(id, held)| (*id, held.link.clone()));
        let Some(peer) = self.peers.get_mut(&armor) else { return };
        if peer.link.as_ref().is_some_and(|(current, _)| *current != id) {
            return;
        }
        peer.link = other;
        if peer.link.is_none() {
            peer.told = true;
            context.event(Event::new("link-down").with("peer", &peer.name).with("address", &held.remote).with("reason", why));
            if armor != ArmorId::FTM {
                context.send_to(ArmorId::FTM, LinkLost { peer: armor, reporter: context.armor() });
            }
            self.dial_if_wanted(armor, context);
            self.locations.forget_daemon(armor);
        }
    }
}

/// The listener of an earlier life, if it is the one that is wanted.
fn still_listens(kept: OwnedFd, wanted: SocketAddr) -> Option<TcpListener> {
    let listener = std::net::TcpListener::from(kept);
    let address =
        listener.local_addr().ok().filter(|address| address.ip() == wanted.ip() && [0, address.port()].contains(&wanted.port()))?;
    listener.set_nonblocking(true).ok()?;
    tracing::debug!(%address, "the listener for links was kept");
    TcpListener::from_std(listener).ok()
}

fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    bound.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!(
                "{address} is in use by another process; stop that one, or set daemon_tcp_mgmt.listen to another port (0: any free one)"
            )
        }
        std::io::ErrorKind::AddrNotAvailable => {
            format!("{address} is no address of this node; set daemon_tcp_mgmt.listen to one of its own")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("{address} may not be used by this user; set daemon_tcp_mgmt.listen to a port from 1024 on")
        }
        _ => format!("{address}: {error}"),
    })
}

/// `tcp.addr` tells scripts and `armor` where this daemon listens.
fn write_address(run_dir: &std::path::Path, address: SocketAddr) -> Result<(), String> {
    let (path, new) = (run_dir.join("tcp.addr"), run_dir.join("tcp.addr.new"));
    std::fs::write(&new, format!("{address}\n"))
        .and_then(|()| std::fs::rename(&new, &path))
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;
    use armor_core::context::Effect;
    use armor_core::operations::StatusQuery;
    use armor_proto::message::downcast;

    const OWN: ArmorId = ArmorId(5);

    fn setup() -> Setup {
        Setup { armor: OWN, name: "node1".into(), kind: "daemon".into(), run_dir: "/".into() }
    }

    fn element() -> DaemonTcpMgmt {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { listen, ftm: Some("127.0.0.1:1".into()), advertise: None };
        DaemonTcpMgmt::new(config, &setup()).expect("works")
    }

    fn encoded(destination: ArmorId) -> Encoded {
        let mut message = Message::to(destination, StatusQuery {});
        message.source = ArmorId(9);
        encode(&message).expect("works")
    }

    fn questions(effects: &[Effect]) -> Vec<ArmorId> {
        let messages = effects.iter().filter_map(|effect| if let Effect::Send(message) = effect { message.top() } else { None });
        messages.filter_map(|bundle| downcast::<LocateArmor>(&bundle.operations[0])).map(|locate| locate.armor).collect()
    }

    fn dials(effects: &[Effect]) -> usize {
        effects.iter().filter(|effect| matches!(effect, Effect::Spawn(_))).count()
    }

    #[test]
    fn an_unknown_destination_is_asked_for_once_and_its_daemon_dialled_when_the_ftm_knows_it() {
        let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
        let mut context = Context::detached(&setup, None, &mut effects);
        element.keep(ArmorId(70), encoded(ArmorId(70)), &mut context);
        element.keep(ArmorId(70), encoded(ArmorId(70)), &mut context);
        assert_eq!(questions(&effects), [ArmorId(70)]);
        assert_eq!(dials(&effects), 0);
        let location = ArmorLocation { armor: ArmorId(70), daemon: ArmorId(7), address: "127.0.0.1:2".into() };
        element.location(&location, &mut Context::detached(&setup, None, &mut effects));
        element.location(&location, &mut Context::detached(&setup, None, &mut effects));
        assert_eq!(dials(&effects), 1);
        assert_eq!(element.next_hop(ArmorId(70)), Some(ArmorId(7)));
        assert_eq!(element.waiting.len(), 2);
    }

    #[test]
    fn where_daemons_are_outlives_the_process_so_that_its_next_life_dials_them_at_once() {
        let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
        element.listening = Some(SocketAddr::from(([127, 0, 0, 1], 4000)));
        let location = ArmorLocation { armor: ArmorId(7), daemon: ArmorId(7), address: "127.0.0.1:2".into() };
        element.location(&location, &mut Context::detached(&setup, None, &mut effects));
        let mut next = self::element();
        next.restore(&element.capture().expect("a state")).expect("works");
        next.keep(ArmorId(7), encoded(ArmorId(7)), &mut Context::detached(&setup, None, &mut effects));
        assert_eq!(dials(&effects), 1);
        assert_eq!(questions(&effects), [ArmorId(7)], "it may have moved");
        assert_eq!(next.listening, element.listening);
        assert!(self::element().restore(b"").is_err());
    }

    #[test]
    fn messages_without_a_way_are_dropped_in_time_and_the_ftm_is_told_except_of_its_own() {
        let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
        let mut context = Context::detached(&setup, None, &mut effects);
        element.keep(ArmorId(70), encoded(ArmorId(70)), &mut context);
        element.keep(ArmorId::FTM, encoded(ArmorId::FTM), &mut context);
        element.tick(Instant::now() + LONGEST_WAIT, &mut context);
        assert!(element.waiting.is_empty());
        assert_eq!(element.dropped, 2);
        assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Event(_))).count(), 1);
    }

    #[test]
    fn messages_for_an_ephemeral_speaker_that_is_gone_do_not_wait() {
        let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
        let mut context = Context::detached(&setup, None, &mut effects);
        let gone = ArmorId::ephemeral(77);
        element.keep(gone, encoded(gone), &mut context);
        element.location(&ArmorLocation { armor: gone, daemon: ArmorId::NONE, address: String::new() }, &mut context);
        assert!(element.waiting.is_empty());
    }

    #[test]
    fn a_frame_is_not_sent_back_to_where_it_came_from() {
        let mut element = element();
        element.locations.learn(ArmorId(9), ArmorId(7));
        element.locations.learn(ArmorId(70), ArmorId(7));
        let Some(frame) = as_frame(&encoded(ArmorId(70))) else { panic!("a frame") };
        element.avoid_echo(&frame);
        assert_eq!(element.next_hop(ArmorId(70)), None);
    }

    #[test]
    fn what_waited_for_a_local_armor_goes_back_to_the_dispatcher_when_it_attaches() {
        let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
        let mut context = Context::detached(&setup, None, &mut effects);
        element.keep(ArmorId(70), encoded(ArmorId(70)), &mut context);
        element.attached(&ArmorAttach { armor: ArmorId(70), name: "node1/x".into(), pid: 1 }, &mut context);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Received(frame) if frame.destination == ArmorId(70))));
    }

    #[test]
    fn a_port_in_use_is_an_error_that_says_what_to_do() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("works");
        let address = taken.local_addr().expect("works");
        let reason = listen(address).err().unwrap_or_default();
        assert!(reason.contains("in use") && reason.contains("daemon_tcp_mgmt.listen"), "{reason}");
    }
}
