//! The other daemons as a transport element knows them, whatever its links are: where they are, the links to them, and the ways of messages (thesis §5.4).
//!
//! The element makes links and gives them to `Daemons::hold`; it is told through the `dialler` whom to dial. The first frame of a link, both ways, is
//! `MSG_DAEMON_HELLO`.
//!
//! Invariants: a destination that is not reachable now has its messages kept within the bounds of [`Waiting`], then dropped; a frame is not sent back to
//! where it came from unless the FTM says so.

mod keys;
mod other;
mod peers;
mod routing;
mod silence;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_proto::frame::Encoded;
use armor_proto::ids::ArmorId;
use armor_proto::secure::PublicKey;
use bytes::BytesMut;
use serde_json::{Value, json};

use super::security::Security;
use super::{Acknowledged, Backoff, Link, LinkId, Locations, Sent, Waiting};
use crate::operations::Carrier;

/// Most links at once, those that have not said who they are included.
pub const MAX_LINKS: usize = 1024;
/// Most daemons remembered; those without a link are forgotten first.
const MAX_PEERS: usize = 4096;
/// Most daemons whose address outlives this process; the others' are asked for again.
const KEPT_PEERS: usize = 256;
/// Most ARMORs whose daemon is remembered.
const MAX_LOCATIONS: usize = 65_536;
/// How long a message may wait for its way.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a peer may take to say who it is.
pub const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How often waiting messages and silent links are looked at; only while there are any.
const TICK: Duration = Duration::from_millis(250);
/// How often keys are looked at: whether nodes were taken out of the list, and which links want another key.
pub const LOOK: Duration = Duration::from_secs(1);
/// After so long a link that is used renews its keys, whatever has passed.
pub const REKEY_AFTER: Duration = Duration::from_secs(600);
/// Tokens of the element's timers.
pub const TICKING: u64 = 0;
/// See [`TICKING`].
pub const LOOKING: u64 = 1;
/// Most questions to the FTM at one tick.
const QUESTIONS_PER_TICK: usize = 256;

/// A link to a daemon.
pub trait PeerLink: Clone {
    /// Sends a frame.
    fn send(&self, encoded: Encoded) -> Sent;
    /// Ends the link.
    fn close(&self);
    /// What the peer has acknowledged; `None` when that is not known.
    fn acknowledged(&self) -> Option<Acknowledged>;
    /// Bytes that wait for the peer.
    fn queued_bytes(&self) -> usize;
    /// Whether a peer that is silent on it may answer there again, from wherever.
    fn outlives_silence(&self) -> bool {
        false
    }
    /// Renews the key with which this side encrypts, if there is one.
    fn rekey(&self);
    /// More to show in `armor status`: an object.
    fn status(&self) -> Value;
}

impl PeerLink for Link {
    fn send(&self, encoded: Encoded) -> Sent {
        Link::send(self, encoded)
    }
    fn close(&self) {
        Link::close(self);
    }
    fn acknowledged(&self) -> Option<Acknowledged> {
        Link::acknowledged(self)
    }
    fn queued_bytes(&self) -> usize {
        Link::queued_bytes(self)
    }
    fn rekey(&self) {
        Link::rekey(self);
    }
    fn status(&self) -> Value {
        json!({ "dropped": self.dropped(), "keys": self.keys() })
    }
}

/// Begins to dial a daemon at an address, after a pause. Then `Daemons::hold` is called with the link, or `Daemons::not_connected`.
pub type Dialler = fn(ArmorId, String, Duration, &mut Context<'_>);

/// See the [module](self).
pub struct Daemons<L> {
    /// This daemon's name.
    pub name: String,
    /// Address on which links are accepted, once it is known.
    pub listening: Option<SocketAddr>,
    /// Address told to others instead.
    pub advertise: Option<String>,
    knows_ftm: bool,
    carrier: Carrier,
    /// This daemon has an element for the other kind of links too.
    beside: bool,
    /// Daemons to which that one has links, and those that only it reaches.
    elsewhere: HashSet<ArmorId>,
    others: HashSet<ArmorId>,
    /// Of this process, so that peers know its links from those of one that is dead.
    life: u64,
    dialler: Dialler,
    /// By their armor-ids.
    pub peers: HashMap<ArmorId, Peer<L>>,
    /// Links, from their first byte on.
    pub links: HashMap<LinkId, Held<L>>,
    /// Which daemon an ARMOR is behind.
    pub locations: Locations,
    /// ARMORs that have attached to this node's gateway; what passes by a remote daemon says nothing about where they are.
    local: HashSet<ArmorId>,
    /// Messages whose way is not open.
    pub waiting: Waiting,
    /// Keys and the list of trusted nodes; absent when links are not protected.
    pub security: Option<Security>,
    scratch: BytesMut,
    ticking: bool,
    /// Whether the FTM has accepted this daemon; the reason when it has not.
    registered: Option<Result<(), String>>,
    /// Messages dropped.
    pub dropped: u64,
}

/// A daemon.
#[derive(Debug)]
pub struct Peer<L> {
    /// Its name.
    pub name: String,
    /// Where it accepts links, once somebody has told.
    pub address: Option<String>,
    /// The newest link whose peer has said to be this daemon.
    pub link: Option<(LinkId, L)>,
    /// Whether it is being dialled.
    pub dialling: bool,
    backoff: Backoff,
    /// Whether the present outage has been told.
    pub told: bool,
    /// The process that the link leads to.
    life: u64,
    /// Where it was heard last, if it can be dialled there.
    heard_at: Option<String>,
    /// Since when it does not answer, and how often it has been dialled since.
    pub silent: Option<Instant>,
    attempts: u32,
}

impl<L> Default for Peer<L> {
    fn default() -> Self {
        Peer {
            name: String::new(),
            address: None,
            link: None,
            dialling: false,
            backoff: Backoff::default(),
            told: false,
            life: 0,
            heard_at: None,
            silent: None,
            attempts: 0,
        }
    }
}

/// A link, from its first byte on.
pub struct Held<L> {
    /// The link.
    pub link: L,
    /// Who it is, once it has said so.
    pub peer: Option<ArmorId>,
    /// Who was dialled.
    pub dialled: Option<ArmorId>,
    /// Dialled because the peer was silent on another one.
    instead: bool,
    /// The peer's address.
    pub remote: String,
    return_address: Option<String>,
    local: Option<SocketAddr>,
    opened: Instant,
    /// Whom the handshake has shown the peer to be, and when the link had its last key, on a link that is protected.
    pub shown: Option<(String, PublicKey)>,
    rekeyed: Instant,
}

/// Differs between any two processes of a daemon.
fn life() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (since.as_nanos() as u64) ^ (u64::from(std::process::id()) << 48)
}

/// What is known of a link when it begins.
pub struct Opening {
    /// Who was dialled.
    pub dialled: Option<ArmorId>,
    /// The peer's address.
    pub remote: String,
    /// The same when the peer can be dialled there.
    pub return_address: Option<String>,
    /// This side's.
    pub local: Option<SocketAddr>,
    /// Whom the handshake has shown the peer to be.
    pub shown: Option<(String, PublicKey)>,
}

impl<L: PeerLink> Daemons<L> {
    /// Knows the FTM alone, if `ftm` says where it is.
    #[must_use]
    pub fn new(
        carrier: Carrier,
        name: &str,
        ftm: Option<&str>,
        advertise: Option<String>,
        security: Option<Security>,
        dialler: Dialler,
    ) -> Self {
        let mut peers = HashMap::new();
        if let Some(ftm) = ftm {
            peers.insert(ArmorId::FTM, Peer { name: "ftm".to_owned(), address: Some(ftm.to_owned()), ..Peer::default() });
        }
        Daemons {
            name: name.to_owned(),
            listening: None,
            advertise,
            knows_ftm: ftm.is_some(),
            carrier,
            beside: false,
            elsewhere: HashSet::new(),
            others: HashSet::new(),
            life: life(),
            dialler,
            peers,
            links: HashMap::new(),
            locations: Locations::new(MAX_LOCATIONS),
            local: HashSet::new(),
            waiting: Waiting::new(LONGEST_WAIT),
            security,
            scratch: BytesMut::with_capacity(64 << 10),
            ticking: false,
            registered: None,
            dropped: 0,
        }
    }

    /// The socket listens: daemons dial the FTM, and the FTM registers itself.
    pub fn started(&mut self, listening: SocketAddr, context: &mut Context<'_>) {
        self.listening = Some(listening);
        self.tell_other(context.armor(), context.armor(), true, context);
        context.state_changed();
        if self.security.is_some() {
            context.timer(LOOK, LOOKING);
        }
        if context.armor() == ArmorId::FTM {
            context.send_to(ArmorId::FTM, self.registration(context.armor(), None));
        } else {
            self.dial(ArmorId::FTM, context);
        }
    }

    /// A timer of the element has run out.
    pub fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        if token == LOOKING {
            self.look_at_keys(Instant::now(), context);
            return;
        }
        self.ticking = false;
        self.tick(Instant::now(), context);
    }

    /// The own address and those of other daemons.
    #[must_use]
    pub fn capture(&self) -> Option<Vec<u8>> {
        let peers = self.peers.iter().filter(|(armor, _)| **armor != ArmorId::FTM);
        let known = peers.filter_map(|(armor, peer)| Some((*armor, &peer.name, peer.address.as_ref()?)));
        rmp_serde::to_vec(&(self.listening?, known.take(KEPT_PEERS).collect::<Vec<_>>())).ok()
    }

    /// Takes up what an earlier life has captured. `listen`: the address in the composition.
    ///
    /// # Errors
    /// When it is no such state.
    pub fn restore(&mut self, state: &[u8], listen: SocketAddr) -> Result<(), String> {
        let (address, peers): (SocketAddr, Vec<(ArmorId, String, String)>) =
            rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        // What waits for them need not wait for the FTM too; that is asked all the same.
        for (armor, name, address) in peers.into_iter().filter(|(armor, ..)| *armor != ArmorId::FTM).take(KEPT_PEERS) {
            self.peers.insert(armor, Peer { name, address: Some(address), ..Peer::default() });
        }
        // Another address in the composition wins; a port of the kernel's choice stays the one that it chose.
        if listen.ip() == address.ip() && [0, address.port()].contains(&listen.port()) {
            self.listening = Some(address);
        }
        Ok(())
    }

    /// What `armor status` shows of it.
    #[must_use]
    pub fn status(&self, ftm: Option<&str>) -> Value {
        let peers: Vec<Value> = self
            .peers
            .iter()
            .map(|(armor, peer)| {
                let link = peer.link.as_ref().map(|(_, link)| link);
                let mut shown = json!({
                    "armor": armor.to_string(), "name": peer.name, "address": peer.address, "linked": link.is_some(),
                    "queued_bytes": link.map_or(0, PeerLink::queued_bytes), "dropped": 0, "keys": 0,
                });
                if let (Some(shown), Some(Value::Object(more))) = (shown.as_object_mut(), link.map(PeerLink::status)) {
                    shown.extend(more);
                }
                shown
            })
            .collect();
        json!({
            "listen": self.listening.map(|address| address.to_string()), "ftm": ftm,
            "registered": self.registered.as_ref().is_some_and(Result::is_ok),
            "refused": self.registered.as_ref().and_then(|registered| registered.as_ref().err()),
            "peers": peers, "links": self.links.len(), "locations": self.locations.len(),
            "waiting": self.waiting.len(), "dropped": self.dropped,
            "security": self.security.as_ref().map(Security::status),
        })
    }
}
