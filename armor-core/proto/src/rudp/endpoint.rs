//! All links of a node over one socket: who a datagram is for, who has something to send, what there is to tell.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use super::config::{Config, MAX_MESSAGE};
use super::handshake::Handshaking;
use super::link::{Counts, Fault, Link};
use super::protection::{Acceptor, Handshake, HandshakeError};
use super::secret::Secret;
use super::wire::{self, Reader};

/// How long a link that was closed still answers that it is.
const LINGER: Duration = Duration::from_secs(1);
/// How long a cookie is good for, at least.
const COOKIE_LIFE: Duration = Duration::from_secs(10);
/// A timer that is served so late shows that the process was suspended.
const SUSPENDED: Duration = Duration::from_millis(500);
/// Events that wait; beyond it those that only inform are dropped.
const MAX_EVENTS: usize = 65_536;

/// A link of an [`Endpoint`]; also the connection id by which the peer addresses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// How a message is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Delivered once, in order within its channel.
    Reliable,
    /// Delivered at once or never: dropped when it has not left by then, not sent again when it is lost.
    Unreliable {
        /// When it is of no use any more.
        deadline: Instant,
    },
}

/// A message from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The channel that the sender has chosen; reliable and unreliable ones are apart.
    pub channel: u16,
    /// For an unreliable message: how many of its channel are missing before it.
    pub missing: Option<u64>,
    /// What was sent.
    pub payload: Bytes,
}

/// Whether the owner wants to know that a peer lives while nothing is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// An idle link is quiet.
    Unwatched,
    /// An idle link exchanges signs of life.
    Watched,
}

/// What has happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake is done; with links that the peer has begun, this is the first that is heard of them.
    Connected {
        /// The link.
        link: LinkId,
        /// Who the peer is, as the handshake knows it.
        peer: Vec<u8>,
        /// True when this end has begun it.
        initiator: bool,
    },
    /// [`Endpoint::receive`] has something to give.
    Readable(LinkId),
    /// [`Endpoint::send`] was refused and would not be now.
    Writable(LinkId),
    /// The peer does not answer: a handful of probes was sent. They go on; other addresses of it may help ([`Endpoint::add_candidate`]).
    Silent(LinkId),
    /// A peer that was silent has answered.
    Answered(LinkId),
    /// The peer is at another address now, and has shown that it receives there.
    Moved {
        /// The link.
        link: LinkId,
        /// Where the peer is.
        remote: SocketAddr,
    },
    /// The link is no more.
    Closed {
        /// The link.
        link: LinkId,
        /// Why.
        reason: CloseReason,
    },
}

/// Why a link is no more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseReason {
    /// The peer has closed it.
    #[error("the peer has closed the link, code {0}")]
    ByPeer(u64),
    /// The peer has broken the protocol.
    #[error("the peer breaks the protocol ({0}); do both nodes run the same version?")]
    Fault(&'static str),
    /// The handshake was not answered in time.
    #[error("no answer within {0:?}; does the peer run, and is this its address?")]
    NoAnswer(Duration),
    /// The handshake was answered, but not by whom it should.
    #[error(transparent)]
    Refused(#[from] HandshakeError),
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// No room: [`Event::Writable`] tells when there is.
    #[error("the link holds as much as it may; send again when it is writable ({room} bytes are left)")]
    Full {
        /// Bytes that a message may have now.
        room: usize,
    },
    /// Longer than any message may be.
    #[error("a message has {length} bytes, of at most {most}; send it in parts")]
    TooLong {
        /// Its bytes.
        length: usize,
        /// Bytes that such a message may have.
        most: usize,
    },
    /// One channel too many.
    #[error("the link has {0} channels, and more are not allowed; use one of those")]
    TooManyChannels(usize),
    /// There is no such link, or its handshake is not done.
    #[error("link {0:?} is not connected; wait for its event, or connect anew")]
    NotConnected(LinkId),
}

/// Why a link cannot be begun.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// One link too many.
    #[error("there are {0} links already; close one, or allow more (max_links)")]
    TooManyLinks(usize),
    /// The handshake cannot begin.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

/// Where to send what [`Endpoint::poll_transmit`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// The address.
    pub to: SocketAddr,
    /// Bytes in the buffer.
    pub size: usize,
    /// When it is more than one datagram: the length of each (the last may be shorter), as UDP_SEGMENT wants it.
    pub segment_size: Option<usize>,
}

/// How a link is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Status {
    /// Where the peer is.
    pub remote: SocketAddr,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// The bottleneck's bandwidth as the model has it, in bytes per second; 0 before there is a sample.
    pub bandwidth: f64,
    /// Bytes that may be in flight.
    pub congestion_window: u64,
    /// Bytes that are.
    pub in_flight: u64,
    /// Longest datagram that is sent, in bytes of UDP payload.
    pub datagram: usize,
    /// Bytes of reliable messages that are not acknowledged.
    pub unacknowledged: usize,
    /// When its newest packet came, or when the link was made.
    pub heard_at: Instant,
    /// True when the peer does not answer.
    pub silent: bool,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets received that were the peer's.
    pub packets_received: u64,
    /// Packets taken for lost.
    pub packets_lost: u64,
    /// Of these, those that were only late.
    pub packets_late: u64,
    /// Probe timeouts.
    pub probes: u64,
    /// Datagrams for this link that were damaged, forged or repeated.
    pub refused: u64,
    /// Unreliable messages that were dropped before they had left.
    pub dropped: u64,
}

/// What an endpoint has refused, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refusals {
    /// Datagrams that are none of this protocol, or for no link.
    pub strange: u64,
    /// Handshakes that were begun by strangers, or not completed.
    pub handshakes: u64,
    /// Beginnings of handshakes that were answered with the demand for a cookie.
    pub cookies_demanded: u64,
}

enum State {
    Handshaking(Handshaking),
    /// The session is there. Until the peer has shown that it has it too, the last message of the handshake may have to be said again.
    Linked {
        link: Box<Link>,
        handshake: Option<Handshaking>,
        peer: Vec<u8>,
        confirmed: bool,
    },
    Closed {
        link: Box<Link>,
        code: u64,
        until: Instant,
        answer: bool,
    },
}

/// See the [module](super).
pub struct Endpoint {
    config: Config,
    secret: Secret,
    acceptor: Box<dyn Acceptor>,
    links: HashMap<u32, State>,
    timers: BTreeSet<(Instant, u32)>,
    armed: HashMap<u32, Instant>,
    ready: VecDeque<u32>,
    is_ready: BTreeSet<u32>,
    /// Links that peers have begun, by the address and the connection id they had: late copies of first messages are theirs.
    begun: BTreeMap<(SocketAddr, u32), u32>,
    half_open: VecDeque<u32>,
    retries: VecDeque<(SocketAddr, u32, [u8; wire::COOKIE])>,
    events: VecDeque<Event>,
    refusals: Refusals,
    epoch: Option<Instant>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("links", &self.links.len()).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint without links. `secret` is drawn by the owner, anew for each endpoint; connection ids, challenges and cookies come of it.
    #[must_use]
    pub fn new(config: Config, secret: [u8; 32], acceptor: Box<dyn Acceptor>) -> Self {
        Self {
            config: config.bounded(),
            secret: Secret::new(secret),
            acceptor,
            links: HashMap::new(),
            timers: BTreeSet::new(),
            armed: HashMap::new(),
            ready: VecDeque::new(),
            is_ready: BTreeSet::new(),
            begun: BTreeMap::new(),
            half_open: VecDeque::new(),
            retries: VecDeque::new(),
            events: VecDeque::new(),
            refusals: Refusals::default(),
            epoch: None,
        }
    }

    /// Begins a link to the endpoint at `to`.
    ///
    /// # Errors
    /// When there are too many, or the handshake cannot begin.
    pub fn connect(&mut self, now: Instant, to: SocketAddr, handshake: Box<dyn Handshake>) -> Result<LinkId, ConnectError> {
        if self.links.len() >= self.config.max_links {
            return Err(ConnectError::TooManyLinks(self.links.len()));
        }
        let handshaking = Handshaking::initiate(now, &self.config, to, handshake)?;
        let id = self.new_id();
        self.links.insert(id, State::Handshaking(handshaking));
        self.touched(id);
        Ok(LinkId(id))
    }

    fn new_id(&mut self) -> u32 {
        loop {
            let id = self.secret.number() as u32;
            if id != 0 && !self.links.contains_key(&id) {
                return id;
            }
        }
    }

    /// Queues a message of one or more parts for the peer; they are kept without being copied.
    ///
    /// # Errors
    /// When it was not taken; nothing has happened then.
    pub fn send(&mut self, link: LinkId, channel: u16, mode: Mode, parts: &[Bytes]) -> Result<(), SendError> {
        let Some(State::Linked { link: state, confirmed: true, .. }) = self.links.get_mut(&link.0) else {
            return Err(SendError::NotConnected(link));
        };
        let length: usize = parts.iter().map(Bytes::len).sum();
        match mode {
            Mode::Reliable => {
                if length > MAX_MESSAGE {
                    return Err(SendError::TooLong { length, most: MAX_MESSAGE });
                }
                if !state.outbound.may_open(channel) {
                    return Err(SendError::TooManyChannels(self.config.max_channels));
                }
                let room = state.outbound.room();
                if length.saturating_add(8) > room {
                    state.wants_room = true;
                    return Err(SendError::Full { room: room.saturating_sub(8) });
                }
                state.outbound.push(channel, parts);
            }
            Mode::Unreliable { deadline } => {
                if length > self.config.unreliable_buffer {
                    return Err(SendError::TooLong { length, most: self.config.unreliable_buffer });
                }
                if !state.sending.may_open(channel) {
                    return Err(SendError::TooManyChannels(self.config.max_channels));
                }
                state.sending.push(channel, deadline, parts);
            }
        }
        self.touched(link.0);
        Ok(())
    }

    /// The next whole message from the peer. What is not taken fills the window, and the peer then waits.
    pub fn receive(&mut self, link: LinkId) -> Option<Received> {
        let State::Linked { link: state, .. } = self.links.get_mut(&link.0)? else { return None };
        if let Some((channel, missing, payload)) = state.receiving.take() {
            return Some(Received { channel, missing: Some(missing), payload });
        }
        let (channel, payload) = state.inbound.take()?;
        if state.inbound.should_grant() {
            self.touched(link.0);
        }
        Some(Received { channel, missing: None, payload })
    }

    /// Ends a link, telling the peer `code`. What was not acknowledged may be lost. No event follows.
    pub fn close(&mut self, now: Instant, link: LinkId, code: u64) {
        match self.links.remove(&link.0) {
            Some(State::Linked { link: state, .. }) => self.linger(now, link.0, state, code),
            Some(closed @ State::Closed { .. }) => {
                self.links.insert(link.0, closed);
            }
            Some(State::Handshaking(_)) | None => self.forget(link.0),
        }
    }

    fn linger(&mut self, now: Instant, id: u32, link: Box<Link>, code: u64) {
        self.half_open.retain(|half_open| *half_open != id);
        self.links.insert(id, State::Closed { link, code, until: now + LINGER, answer: true });
        self.touched(id);
    }

    fn forget(&mut self, id: u32) {
        self.links.remove(&id);
        self.half_open.retain(|half_open| *half_open != id);
        self.begun.retain(|_, begun| *begun != id);
        if let Some(at) = self.armed.remove(&id) {
            self.timers.remove(&(at, id));
        }
    }

    /// Another address where the peer of `link` may be; it is asked whether it is, every [`Config::probe_cap`] until the link has moved there or eight
    /// others were named since.
    pub fn add_candidate(&mut self, now: Instant, link: LinkId, remote: SocketAddr) {
        if let Some(State::Linked { link: state, .. }) = self.links.get_mut(&link.0) {
            state.add_candidate(now, remote, &mut self.secret);
            self.touched(link.0);
        }
    }

    /// With an interest in whether the peer lives, a link that is idle exchanges signs of life every [`Config::keep_alive`].
    pub fn set_liveness(&mut self, link: LinkId, interest: Liveness) {
        if let Some(State::Linked { link: state, .. }) = self.links.get_mut(&link.0) {
            state.liveness = interest == Liveness::Watched;
            if state.liveness {
                state.ping();
            }
            self.touched(link.0);
        }
    }

    /// This node's own address has changed, or it was suspended: every peer is sent a sign of life at once, so that it learns where this end is.
    pub fn local_address_changed(&mut self, now: Instant) {
        let mut ids: Vec<u32> = self.links.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(State::Linked { link, .. }) = self.links.get_mut(&id) {
                link.new_way(now, &self.config);
                self.touched(id);
            }
        }
    }

    /// How a link is doing; `None` when it is not connected.
    #[must_use]
    pub fn status(&self, link: LinkId) -> Option<Status> {
        let State::Linked { link, .. } = self.links.get(&link.0)? else { return None };
        let Counts { sent, received, lost, spurious, probes, refused } = link.counts;
        Some(Status {
            remote: link.path.remote,
            rtt: link.rtt.smoothed(),
            bandwidth: link.congestion.bandwidth(),
            congestion_window: link.congestion.window(),
            in_flight: link.sent.in_flight(),
            datagram: link.mtu.current(),
            unacknowledged: link.outbound.held(),
            heard_at: link.heard_at(),
            silent: link.is_silent(),
            packets_sent: sent,
            packets_received: received,
            packets_lost: lost,
            packets_late: spurious,
            probes,
            refused,
            dropped: link.sending.dropped,
        })
    }

    /// Links, in whatever state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// True without any link.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// What was refused so far.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// A datagram has arrived from `from`; it is opened in place.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        self.notice_suspension(now);
        match datagram.first() {
            Some(&wire::DATA) if datagram.len() > wire::DATA_HEADER => self.handle_data(now, from, datagram),
            Some(&wire::HANDSHAKE) => {
                if self.handle_handshake(now, from, datagram).is_none() {
                    self.refusals.strange += 1;
                }
            }
            Some(&wire::RETRY) if datagram.len() == 5 + wire::COOKIE => {
                let id = u32::from_be_bytes([datagram[1], datagram[2], datagram[3], datagram[4]]);
                if let Some(State::Handshaking(handshaking)) = self.links.get_mut(&id)
                    && handshaking.path.remote == from
                {
                    handshaking.retry(&datagram[5..]);
                    self.touched(id);
                }
            }
            _ => self.refusals.strange += 1,
        }
    }

    fn handle_data(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        let id = u32::from_be_bytes([datagram[1], datagram[2], datagram[3], datagram[4]]);
        let (link, confirmed) = match self.links.get_mut(&id) {
            Some(State::Linked { link, confirmed, .. }) => (link, *confirmed),
            Some(State::Closed { answer, .. }) => {
                *answer = true;
                self.touched(id);
                return;
            }
            Some(State::Handshaking(_)) => return,
            None => {
                self.refusals.strange += 1;
                return;
            }
        };
        let heard = match link.handle(now, &self.config, from, datagram, &mut self.secret) {
            Ok(Some(heard)) => heard,
            Ok(None) => return,
            Err(Fault(fault)) => {
                if let Some(State::Linked { link, .. }) = self.links.remove(&id) {
                    self.linger(now, id, link, u64::from(u32::MAX));
                }
                if confirmed {
                    self.events.push_back(Event::Closed { link: LinkId(id), reason: CloseReason::Fault(fault) });
                }
                return;
            }
        };
        if let Some(State::Linked { link, handshake, peer, confirmed }) = self.links.get_mut(&id) {
            let remote = link.path.remote;
            if let Some(done) = handshake.take() {
                self.half_open.retain(|half_open| *half_open != id);
                if !done.initiator {
                    // Nobody seals a packet without having received at that address what the handshake has said.
                    link.path.confirm();
                }
            }
            if !std::mem::replace(confirmed, true) {
                self.events.push_back(Event::Connected { link: LinkId(id), peer: peer.clone(), initiator: false });
            }
            if heard.moved {
                self.inform(Event::Moved { link: LinkId(id), remote });
            }
        }
        if let Some(code) = heard.closed {
            self.forget(id);
            self.events.push_back(Event::Closed { link: LinkId(id), reason: CloseReason::ByPeer(code) });
            return;
        }
        if heard.answered {
            self.inform(Event::Answered(LinkId(id)));
        }
        if heard.readable {
            self.inform(Event::Readable(LinkId(id)));
        }
        if let Some(State::Linked { link, .. }) = self.links.get_mut(&id)
            && link.wants_room
            && link.outbound.room() >= (self.config.send_buffer / 4).min(MAX_MESSAGE)
        {
            link.wants_room = false;
            self.inform(Event::Writable(LinkId(id)));
        }
        self.touched(id);
    }

    fn inform(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS && self.events.back() != Some(&event) {
            self.events.push_back(event);
        }
    }

    /// `None`: not a packet of a handshake that is under way here, nor the beginning of one.
    fn handle_handshake(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Option<()> {
        let (datagram, sum) = datagram.split_last_chunk::<4>()?;
        if crc32c::crc32c(datagram).to_be_bytes() != *sum {
            return None;
        }
        let mut reader = Reader(datagram.get(1..)?);
        let (to, remote_id, step) = (reader.u32().ok()?, reader.u32().ok()?, reader.byte().ok()?);
        let cookie_length = reader.byte().ok()?;
        let cookie = reader.slice(usize::from(cookie_length)).ok()?;
        let message = reader.0;
        if remote_id == 0 {
            return None;
        }
        let id = if to != 0 {
            to
        } else if let Some(id) = self.begun.get(&(from, remote_id)) {
            *id
        } else {
            if step != 0 {
                return None;
            }
            self.begin(now, from, remote_id, cookie)?
        };
        let (handshaking, linked) = match self.links.get_mut(&id)? {
            State::Handshaking(handshaking) => (handshaking, false),
            State::Linked { handshake: Some(handshake), .. } => (handshake, true),
            _ => return Some(()),
        };
        if handshaking.remote_id == 0 {
            handshaking.remote_id = remote_id;
        } else if handshaking.remote_id != remote_id {
            return None;
        }
        handshaking.path.heard(from, datagram.len() + sum.len());
        let read = handshaking.read(step, message);
        match read {
            Ok(Some(session)) if !linked => self.linked(now, id, session),
            Ok(_) => {}
            Err(error) => {
                self.refusals.handshakes += 1;
                if handshaking.initiator {
                    // It may be an invention of somebody on the way; the genuine answer may still come.
                    handshaking.remote_id = 0;
                    handshaking.failure = Some(error);
                } else {
                    self.forget(id);
                    return Some(());
                }
            }
        }
        self.touched(id);
        Some(())
    }

    /// A peer begins a handshake: makes room for it, unless it has to show first that it receives at its address. `None` when it has.
    fn begin(&mut self, now: Instant, from: SocketAddr, remote_id: u32, cookie: &[u8]) -> Option<u32> {
        let epoch = *self.epoch.get_or_insert(now);
        let period = now.saturating_duration_since(epoch).as_secs() / COOKIE_LIFE.as_secs();
        if self.half_open.len() >= self.config.max_half_open / 2 || self.links.len() >= self.config.max_links / 8 * 7 {
            let good =
                [Some(period), period.checked_sub(1)].into_iter().flatten().any(|period| cookie == self.cookie(from, remote_id, period));
            if !good {
                self.refusals.cookies_demanded += 1;
                if self.retries.len() < self.config.max_half_open {
                    let cookie = self.cookie(from, remote_id, period);
                    self.retries.push_back((from, remote_id, cookie));
                }
                return None;
            }
        }
        if self.half_open.len() >= self.config.max_half_open
            && let Some(oldest) = self.half_open.pop_front()
        {
            self.refusals.handshakes += 1;
            self.forget(oldest);
        }
        if self.links.len() >= self.config.max_links {
            self.refusals.handshakes += 1;
            return None;
        }
        let id = self.new_id();
        let handshaking = Handshaking::respond(now, &self.config, from, remote_id, self.acceptor.accept());
        self.links.insert(id, State::Handshaking(handshaking));
        self.begun.insert((from, remote_id), id);
        self.half_open.push_back(id);
        Some(id)
    }

    fn cookie(&self, from: SocketAddr, remote_id: u32, period: u64) -> [u8; wire::COOKIE] {
        let mut content = [0; 30];
        let ip = match from.ip() {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            std::net::IpAddr::V6(ip) => ip,
        };
        content[..16].copy_from_slice(&ip.octets());
        content[16..18].copy_from_slice(&from.port().to_be_bytes());
        content[18..22].copy_from_slice(&remote_id.to_be_bytes());
        content[22..].copy_from_slice(&period.to_be_bytes());
        self.secret.cookie(&content)
    }

    fn linked(&mut self, now: Instant, id: u32, session: super::protection::Session) {
        let Some(State::Handshaking(handshaking)) = self.links.remove(&id) else { return };
        let initiator = handshaking.initiator;
        let path = if initiator {
            super::path::Path::validated(handshaking.path.remote)
        } else {
            super::path::Path::unvalidated(handshaking.path.remote)
        };
        let mut link = Box::new(Link::new(now, &self.config, session.protection, handshaking.remote_id, path));
        if initiator {
            // The first packet shows the responder that its peer has the keys.
            link.ping();
            self.events.push_back(Event::Connected { link: LinkId(id), peer: session.peer.clone(), initiator: true });
        }
        let handshake = Some(handshaking);
        self.links.insert(id, State::Linked { link, handshake, peer: session.peer, confirmed: initiator });
    }

    fn notice_suspension(&mut self, now: Instant) {
        let Some(late) = self.timers.first().map(|(at, _)| now.saturating_duration_since(*at)).filter(|late| *late >= SUSPENDED) else {
            return;
        };
        let mut ids: Vec<u32> = self.links.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            match self.links.get_mut(&id) {
                Some(State::Handshaking(handshaking)) => handshaking.ends_at += late,
                Some(State::Linked { link, handshake, .. }) => {
                    link.resumed(now);
                    if let Some(handshake) = handshake {
                        handshake.ends_at += late;
                    }
                }
                _ => continue,
            }
            self.touched(id);
        }
        // They are armed anew when there is nothing more to be sent; until then nothing is overdue.
        for (_, id) in std::mem::take(&mut self.timers) {
            self.timers.insert((now, id));
            self.armed.insert(id, now);
        }
    }

    /// Carries out what is due; see [`Endpoint::poll_timeout`]. Does nothing when it is too early.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.notice_suspension(now);
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.armed.remove(&id);
            match self.links.get_mut(&id) {
                Some(State::Handshaking(handshaking)) => {
                    if now >= handshaking.ends_at {
                        let reason =
                            handshaking.failure.take().map_or(CloseReason::NoAnswer(self.config.handshake_timeout), CloseReason::Refused);
                        if handshaking.initiator {
                            self.events.push_back(Event::Closed { link: LinkId(id), reason });
                        } else {
                            self.refusals.handshakes += 1;
                        }
                        self.forget(id);
                        continue;
                    }
                    handshaking.handle_timeout(now, &self.config);
                }
                Some(State::Linked { link, handshake, confirmed, .. }) => {
                    if let Some(handshake) = handshake.as_mut() {
                        // Nothing that opens has come in all that time: whoever has answered, it was not the peer, or it is gone.
                        if now >= handshake.ends_at {
                            if *confirmed {
                                let reason = CloseReason::NoAnswer(self.config.handshake_timeout);
                                self.events.push_back(Event::Closed { link: LinkId(id), reason });
                            }
                            self.refusals.handshakes += 1;
                            self.forget(id);
                            continue;
                        }
                        handshake.handle_timeout(now, &self.config);
                    }
                    if link.handle_timeout(now, &self.config) {
                        self.inform(Event::Silent(LinkId(id)));
                    }
                }
                Some(State::Closed { until, .. }) => {
                    if now >= *until {
                        self.forget(id);
                        continue;
                    }
                }
                None => continue,
            }
            self.touched(id);
        }
    }

    /// Writes datagrams that are to leave now, up to `most` of one size for one address, into `buffer`, which is cleared first. `None`: nothing for now.
    pub fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>, most: usize) -> Option<Transmit> {
        buffer.clear();
        if let Some((to, remote_id, cookie)) = self.retries.pop_front() {
            buffer.push(wire::RETRY);
            buffer.extend_from_slice(&remote_id.to_be_bytes());
            buffer.extend_from_slice(&cookie);
            return Some(Transmit { to, size: buffer.len(), segment_size: None });
        }
        while let Some(id) = self.ready.front().copied() {
            let sent = match self.links.get_mut(&id) {
                None => None,
                Some(State::Handshaking(handshaking)) => handshaking.poll_transmit(now, id, buffer).map(|to| (to, buffer.len())),
                Some(State::Linked { link, handshake, confirmed, .. }) => {
                    let message = handshake.as_mut().and_then(|handshake| handshake.poll_transmit(now, id, buffer));
                    match message {
                        Some(to) => Some((to, buffer.len())),
                        None if *confirmed => link.poll_transmit(now, &self.config, buffer, most.max(1)),
                        None => None,
                    }
                }
                Some(State::Closed { link, code, answer, .. }) => {
                    let code = *code;
                    std::mem::take(answer).then(|| link.write_close(now, code, buffer)).map(|to| (to, buffer.len()))
                }
            };
            if let Some((to, size)) = sent {
                // The next link's turn.
                self.ready.rotate_left(1);
                let segment_size = (buffer.len() > size).then_some(size);
                return Some(Transmit { to, size: buffer.len(), segment_size });
            }
            buffer.clear();
            self.ready.pop_front();
            self.is_ready.remove(&id);
            self.arm(id);
        }
        None
    }

    /// When [`Endpoint::handle_timeout`] is due, and [`Endpoint::poll_transmit`] after it. To be asked when `poll_transmit` has nothing more.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Something has changed with a link: it may have something to send.
    fn touched(&mut self, id: u32) {
        if self.is_ready.insert(id) {
            self.ready.push_back(id);
        }
    }

    fn arm(&mut self, id: u32) {
        let at = match self.links.get(&id) {
            None => None,
            Some(State::Handshaking(handshaking)) => Some(handshaking.poll_timeout()),
            Some(State::Linked { link, handshake, confirmed, .. }) => {
                let handshake = handshake.as_ref().map(Handshaking::poll_timeout);
                let link = if *confirmed { link.poll_timeout(&self.config) } else { None };
                [handshake, link].into_iter().flatten().min()
            }
            Some(State::Closed { until, .. }) => Some(*until),
        };
        let armed = match at {
            Some(at) => self.armed.insert(id, at),
            None => self.armed.remove(&id),
        };
        if armed != at {
            if let Some(armed) = armed {
                self.timers.remove(&(armed, id));
            }
            if let Some(at) = at {
                self.timers.insert((at, id));
            }
        }
    }
}
