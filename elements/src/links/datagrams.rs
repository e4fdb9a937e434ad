//! Links over datagrams: R-UDP (`armor_proto::rudp`) over one UDP socket, in the thread of the element that owns it.
//!
//! One task reads in batches (recvmmsg, GRO), writes in batches (GSO), and keeps one timer; the state machine says what leaves and when. What an element
//! sends in its turn leaves when the turn is over, so that it goes in as few calls as possible.
//!
//! A frame is a message of R-UDP, reliable, in the channel of its source and destination: what one ARMOR says to another arrives in order, and what is lost
//! between two of them does not hold up the others.
//!
//! Invariants: the endpoint is never borrowed while the element is called; `link_closed` is called exactly once for each link that was told; no more bytes
//! wait for a peer than [`OUT_LIMIT`], or one frame.

mod driver;
pub mod protected;
mod socket;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_proto::frame::{Encoded, HEADER};
use armor_proto::ids::ArmorId;
use armor_proto::rudp::{self, Acceptor, ConnectError, Endpoint, Handshake, Mode, Refusals, SendError, Status};
use tokio::sync::Notify;

use super::link::{Closed, LinkId, LinkOwner, OUT_LIMIT, Sent};
use super::stream::Acknowledged;

pub use socket::bind;

/// Channels of a link: pairs of ARMORs that share one also share its losses.
const CHANNELS: u64 = 1024;
/// Said to a peer whose link is closed here.
const CLOSED_HERE: u64 = 0;

/// A link that is there.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Where the peer is.
    pub remote: SocketAddr,
    /// Who the peer is, as the handshake knows it.
    pub identity: Vec<u8>,
    /// True when it was dialled.
    pub dialled: bool,
}

/// An element that owns links over datagrams.
pub trait DatagramOwner: LinkOwner {
    /// A link is there, dialled or accepted.
    fn link_opened(&mut self, link: LinkId, opened: Opened, context: &mut Context<'_>);
    /// The peer is at another address now.
    fn link_moved(&mut self, link: LinkId, remote: SocketAddr, context: &mut Context<'_>);
    /// The peer does not answer, or does again.
    fn link_silent(&mut self, link: LinkId, silent: bool, context: &mut Context<'_>);
}

/// One UDP socket and its links; a handle, cheap to clone.
#[derive(Debug, Clone)]
pub struct Datagrams {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoint: RefCell<Endpoint>,
    links: RefCell<HashMap<LinkId, Rc<Counts>>>,
    /// Closed by the element; it has not been told yet.
    closed: RefCell<Vec<LinkId>>,
    wake: Notify,
    socket: socket::Socket,
    outgoing: RefCell<driver::Outgoing>,
    /// Whether the socket carries IPv6, IPv4 mapped into it.
    six: bool,
}

#[derive(Debug, Default)]
struct Counts {
    dropped: Cell<u64>,
    dropping: Cell<bool>,
}

/// Bounds of links between daemons: those of a link over a stream, and the times of the state machine.
#[must_use]
pub fn config() -> rudp::Config {
    rudp::Config {
        send_buffer: OUT_LIMIT,
        keep_alive: Duration::from_millis(500),
        handshake_timeout: Duration::from_secs(5),
        ..rudp::Config::default()
    }
}

impl Datagrams {
    /// Starts the links of a bound socket.
    ///
    /// # Errors
    /// The socket or the timer cannot be used.
    pub fn open<E: DatagramOwner>(
        socket: std::net::UdpSocket,
        config: rudp::Config,
        acceptor: Box<dyn Acceptor>,
        context: &mut Context<'_>,
    ) -> Result<Datagrams, String> {
        let six = socket.local_addr().is_ok_and(|address| address.is_ipv6());
        let segments = socket::segments(config.max_datagram);
        let socket = socket::Socket::new(socket, segments).map_err(|error| format!("the UDP socket cannot be used: {error}"))?;
        let timer = socket::Timer::new().map_err(|error| format!("no timer for links over UDP: {error}"))?;
        let shared = Rc::new(Shared {
            endpoint: RefCell::new(Endpoint::new(config, socket::secret()?, acceptor)),
            links: RefCell::default(),
            closed: RefCell::default(),
            wake: Notify::new(),
            socket,
            outgoing: RefCell::default(),
            six,
        });
        context.spawn(driver::drive::<E>(Rc::clone(&shared), timer, context.handle()));
        Ok(Datagrams { shared })
    }

    /// Begins a link; `link_opened` or `link_closed` follows.
    ///
    /// # Errors
    /// When there are too many links, or the handshake cannot begin.
    pub fn connect(&self, to: SocketAddr, handshake: Box<dyn Handshake>) -> Result<LinkId, ConnectError> {
        let id = self.shared.endpoint.borrow_mut().connect(Instant::now(), self.shared.mapped(to), handshake)?;
        self.shared.links.borrow_mut().insert(LinkId::from(id.0), Rc::default());
        self.shared.wake.notify_one();
        Ok(LinkId::from(id.0))
    }

    /// The element's side of a link.
    #[must_use]
    pub fn link(&self, id: LinkId) -> DatagramLink {
        let counts = self.shared.links.borrow().get(&id).cloned().unwrap_or_default();
        DatagramLink { shared: Rc::clone(&self.shared), id, counts }
    }

    /// Whether this socket reaches addresses of that kind.
    #[must_use]
    pub fn reaches(&self, address: SocketAddr) -> bool {
        self.shared.six || address.is_ipv4()
    }

    /// This node's addresses have changed: every peer hears from this end at once.
    pub fn address_changed(&self) {
        self.shared.endpoint.borrow_mut().local_address_changed(Instant::now());
        self.shared.wake.notify_one();
    }

    /// Ends all links, and tells their peers at once: this process may have no other turn.
    pub fn close_all(&self) {
        let links: Vec<LinkId> = self.shared.links.borrow().keys().copied().collect();
        for id in links {
            self.link(id).close();
        }
        driver::transmit(&self.shared);
    }

    /// What was refused since the socket was opened.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        self.shared.endpoint.borrow().refusals()
    }
}

impl Shared {
    fn mapped(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.six => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            other => other,
        }
    }
}

/// The address as people write it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The element's side of a link over datagrams.
#[derive(Debug, Clone)]
pub struct DatagramLink {
    shared: Rc<Shared>,
    id: LinkId,
    counts: Rc<Counts>,
}

impl DatagramLink {
    fn number(&self) -> rudp::LinkId {
        // Made from such a number.
        rudp::LinkId(u32::try_from(self.id).unwrap_or_default())
    }

    /// Sends a frame; it leaves when the turn is over and the path has room.
    pub fn send(&self, encoded: Encoded) -> Sent {
        let channel = channel_of(&encoded);
        let sent = self.shared.endpoint.borrow_mut().send(self.number(), channel, Mode::Reliable, &[encoded.head, encoded.payload]);
        match sent {
            Ok(()) => {
                self.counts.dropping.set(false);
                self.shared.wake.notify_one();
                Sent::Written
            }
            Err(SendError::Full { .. }) => {
                self.counts.dropped.set(self.counts.dropped.get() + 1);
                if self.counts.dropping.replace(true) { Sent::Dropped } else { Sent::FirstDropped }
            }
            Err(SendError::NotConnected(_) | SendError::TooLong { .. } | SendError::TooManyChannels(_)) => Sent::Closed,
        }
    }

    /// Ends the link; `link_closed` follows.
    pub fn close(&self) {
        if self.shared.links.borrow().contains_key(&self.id) {
            self.shared.endpoint.borrow_mut().close(Instant::now(), self.number(), CLOSED_HERE);
            self.shared.closed.borrow_mut().push(self.id);
            self.shared.wake.notify_one();
        }
    }

    /// Asks the peer for signs of life also while nothing is sent.
    pub fn watch(&self) {
        self.shared.endpoint.borrow_mut().set_liveness(self.number(), rudp::Liveness::Watched);
        self.shared.wake.notify_one();
    }

    /// The peer may be at that address too.
    pub fn may_be_at(&self, address: SocketAddr) {
        self.shared.endpoint.borrow_mut().add_candidate(Instant::now(), self.number(), self.shared.mapped(address));
        self.shared.wake.notify_one();
    }

    /// When the peer was heard last. Unlike with TCP it is the daemon that acknowledges, and nothing is known of its kernel. So nothing waits for that, and
    /// a daemon that is silent counts as busy for as long as one may be.
    #[must_use]
    pub fn acknowledged(&self) -> Option<Acknowledged> {
        let status = self.status()?;
        let ago_ms = u32::try_from(status.heard_at.elapsed().as_millis()).unwrap_or(u32::MAX);
        Some(Acknowledged { ago_ms, waiting: 0 })
    }

    /// How the link is doing; `None` when it is not open.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        let mut status = self.shared.endpoint.borrow().status(self.number())?;
        status.remote = canonical(status.remote);
        Some(status)
    }

    /// Bytes that the peer has not acknowledged.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.status().map_or(0, |status| status.unacknowledged)
    }

    /// Frames dropped at [`OUT_LIMIT`].
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.get()
    }
}

/// By source and destination, which stand in the header.
fn channel_of(encoded: &Encoded) -> u16 {
    let number = |at: usize| encoded.head.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
    debug_assert!(encoded.head.len() >= HEADER);
    let (source, destination) = (number(16).unwrap_or_default(), number(24).unwrap_or_default());
    channel(ArmorId(source), ArmorId(destination))
}

fn channel(source: ArmorId, destination: ArmorId) -> u16 {
    let mixed = source.0.rotate_left(32).wrapping_add(destination.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 32) % CHANNELS) as u16
}

fn frame_of(payload: bytes::Bytes) -> Result<armor_proto::frame::Frame, Closed> {
    let mut bytes = bytes::BytesMut::from(payload);
    match armor_proto::frame::Frame::take(&mut bytes) {
        Ok(Some(frame)) if bytes.is_empty() => Ok(frame),
        Ok(_) => Err(Closed::Torn),
        Err(error) => Err(Closed::Frame(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_of_armors_has_one_channel_and_other_pairs_mostly_another() {
        let mut channels: Vec<u16> = (0..100u64).map(|n| channel(ArmorId::of_name(&format!("a{n}")), ArmorId::of_name("b"))).collect();
        assert!(channels.iter().all(|channel| u64::from(*channel) < CHANNELS));
        channels.sort_unstable();
        channels.dedup();
        assert!(channels.len() > 80, "{}", channels.len());
        assert_eq!(channel(ArmorId(7), ArmorId(9)), channel(ArmorId(7), ArmorId(9)));
    }
}
