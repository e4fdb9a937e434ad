//! A network in simulated time for R-UDP: bottlenecks with queues, delay, jitter, loss of several kinds, blackouts, moving nodes.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use armor_proto::rudp::{Config, Endpoint, Event, LinkId, Mode, Plain, Received, SendError};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes of IP and UDP around a datagram.
pub const HEADERS: usize = 28;

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Seeds of a test; `ARMOR_SCHEDULES=N` makes N times as many.
pub fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let times: u64 = std::env::var("ARMOR_SCHEDULES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    (0..count * times).inspect(|seed| println!("seed {seed}"))
}

/// Loss that comes in bursts (Gilbert and Elliott): the state changes per packet.
#[derive(Debug, Clone, Copy)]
pub struct Bursts {
    pub begin: f64,
    pub end: f64,
    pub loss: f64,
}

/// One direction of a path.
#[derive(Debug, Clone)]
pub struct Wire {
    /// Bits per second; 0 is without limit.
    pub rate: u64,
    /// Bytes that wait for the bottleneck at most (drop-tail).
    pub queue: usize,
    pub delay: Duration,
    pub jitter: Duration,
    pub loss: f64,
    pub bursts: Option<Bursts>,
    pub duplicate: f64,
    /// Share of packets that come late by up to `reorder_by`.
    pub reorder: f64,
    pub reorder_by: Duration,
    pub corrupt: f64,
    /// Longest IP packet.
    pub mtu: usize,
    /// Nothing passes in these.
    pub blackouts: Vec<(Duration, Duration)>,
    pub free_at: Duration,
    pub in_burst: bool,
    pub last: Duration,
    pub counts: WireCounts,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct WireCounts {
    pub offered: u64,
    pub overflowed: u64,
    pub lost: u64,
    pub passed: u64,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            rate: 0,
            queue: 250_000,
            delay: ms(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            bursts: None,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            corrupt: 0.0,
            mtu: 1500,
            blackouts: Vec::new(),
            free_at: Duration::ZERO,
            in_burst: false,
            last: Duration::ZERO,
            counts: WireCounts::default(),
        }
    }
}

impl Wire {
    /// 100 Mbit/s, 20 ms round trip, a queue of 20 ms.
    pub fn fast() -> Self {
        Self { rate: 100_000_000, ..Self::default() }
    }

    fn is_dark(&self, now: Duration) -> bool {
        self.blackouts.iter().any(|(from, until)| (*from..*until).contains(&now))
    }

    /// When copies of the packet arrive.
    fn pass(&mut self, now: Duration, size: usize, random: &mut StdRng) -> Vec<Duration> {
        self.counts.offered += 1;
        if size > self.mtu || self.is_dark(now) {
            return Vec::new();
        }
        let mut leaves = now;
        if self.rate > 0 {
            let start = self.free_at.max(now);
            let waiting = (start - now).as_secs_f64() * self.rate as f64 / 8.0;
            if waiting + size as f64 > self.queue as f64 {
                self.counts.overflowed += 1;
                return Vec::new();
            }
            leaves = start + Duration::from_secs_f64(size as f64 * 8.0 / self.rate as f64);
            self.free_at = leaves;
        }
        if let Some(bursts) = self.bursts {
            let change = if self.in_burst { bursts.end } else { bursts.begin };
            self.in_burst ^= random.random_bool(change);
            if self.in_burst && random.random_bool(bursts.loss) {
                self.counts.lost += 1;
                return Vec::new();
            }
        }
        if random.random_bool(self.loss) || self.is_dark(leaves) {
            self.counts.lost += 1;
            return Vec::new();
        }
        self.counts.passed += 1;
        let mut arrivals = Vec::new();
        for _ in 0..1 + u32::from(random.random_bool(self.duplicate)) {
            let mut at = leaves + self.delay + self.jitter.mul_f64(random.random::<f64>());
            if random.random_bool(self.reorder) {
                at += self.reorder_by.mul_f64(random.random::<f64>());
            } else {
                // Jitter alone does not reorder.
                at = at.max(self.last);
                self.last = at;
            }
            arrivals.push(at);
        }
        arrivals
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: Duration,
    order: u64,
    to: SocketAddr,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// Sends messages without end, or `left` of them, as fast as the link takes them.
#[derive(Debug, Clone)]
pub struct Bulk {
    pub link: LinkId,
    pub channels: u16,
    pub size: usize,
    pub left: u64,
    pub next: u64,
}

pub struct Node {
    pub endpoint: Endpoint,
    pub address: SocketAddr,
    /// The wire that it sends into.
    pub out: usize,
    pub events: Vec<(Duration, Event)>,
    pub received: Vec<(Duration, LinkId, Received)>,
    /// What was received is counted and checked, not kept.
    pub sink: bool,
    pub bytes: u64,
    pub first_byte_after: Option<Duration>,
    pub first_byte_at: Option<Duration>,
    pub reads: bool,
    pub bulk: Vec<Bulk>,
    pub suspended: bool,
    pub in_order: HashMap<(LinkId, u16), u64>,
}

pub struct World {
    pub start: Instant,
    pub now: Duration,
    pub nodes: Vec<Node>,
    pub wires: Vec<Wire>,
    pub random: StdRng,
    places: BTreeMap<SocketAddr, usize>,
    arrivals: BinaryHeap<Reverse<Arrival>>,
    order: u64,
    pub segments: usize,
    pub datagrams: u64,
    /// Bytes that arrived where nobody is.
    pub astray: usize,
}

/// Contents of the message `number` of `channel`.
pub fn message(channel: u16, number: u64, size: usize) -> Bytes {
    let mut content = Vec::with_capacity(size.max(16));
    content.extend_from_slice(&number.to_be_bytes());
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(channel);
    while content.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        content.extend_from_slice(&state.to_be_bytes());
    }
    content.truncate(size.max(8));
    Bytes::from(content)
}

pub fn number_of(payload: &[u8]) -> u64 {
    u64::from_be_bytes(*payload.first_chunk().unwrap())
}

impl World {
    pub fn new(seed: u64, wires: Vec<Wire>) -> Self {
        Self {
            start: Instant::now(),
            now: Duration::ZERO,
            nodes: Vec::new(),
            wires,
            random: StdRng::seed_from_u64(seed),
            places: BTreeMap::new(),
            arrivals: BinaryHeap::new(),
            order: 0,
            segments: 10,
            datagrams: 0,
            astray: 0,
        }
    }

    /// A world of two nodes with a link from the first to the second.
    pub fn pair(seed: u64, forth: Wire, back: Wire) -> (Self, LinkId, LinkId) {
        Self::pair_with(seed, forth, back, Config::default())
    }

    pub fn pair_with(seed: u64, forth: Wire, back: Wire, config: Config) -> (Self, LinkId, LinkId) {
        let mut world = Self::new(seed, vec![forth, back]);
        world.add("10.0.0.1:700", 0, config.clone());
        world.add("10.0.0.2:700", 1, config);
        let (a, b) = world.link(0, 1);
        (world, a, b)
    }

    pub fn add(&mut self, address: &str, out: usize, config: Config) -> usize {
        let address: SocketAddr = address.parse().unwrap();
        let secret = self.random.random();
        let endpoint = Endpoint::new(config, secret, Box::new(Plain::responder(address.to_string().as_bytes())));
        self.nodes.push(Node {
            endpoint,
            address,
            out,
            events: Vec::new(),
            received: Vec::new(),
            sink: false,
            bytes: 0,
            first_byte_after: None,
            first_byte_at: None,
            reads: true,
            bulk: Vec::new(),
            suspended: false,
            in_order: HashMap::new(),
        });
        self.places.insert(address, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    pub fn connect(&mut self, from: usize, to: usize) -> LinkId {
        let address = self.nodes[to].address;
        let now = self.instant();
        let name = self.nodes[from].address.to_string();
        let link = self.nodes[from].endpoint.connect(now, address, Box::new(Plain::initiator(name.as_bytes()))).unwrap();
        self.drive(from);
        link
    }

    /// Connects and waits until both ends know.
    pub fn link(&mut self, from: usize, to: usize) -> (LinkId, LinkId) {
        let a = self.connect(from, to);
        let name = self.nodes[from].address.to_string().into_bytes();
        let found = |world: &Self| {
            world.nodes[to].events.iter().rev().find_map(|(_, event)| match event {
                Event::Connected { link, peer, .. } if *peer == name => Some(*link),
                _ => None,
            })
        };
        let limit = self.now + Duration::from_secs(60);
        assert!(self.run_until(limit, |world| found(world).is_some()), "no link after a minute");
        let b = found(self).unwrap();
        (a, b)
    }

    pub fn instant(&self) -> Instant {
        self.start + self.now
    }

    pub fn move_node(&mut self, node: usize, address: &str) {
        let address = address.parse().unwrap();
        self.places.remove(&self.nodes[node].address);
        self.nodes[node].address = address;
        self.places.insert(address, node);
    }

    pub fn send(&mut self, node: usize, link: LinkId, channel: u16, mode: Mode, payload: Bytes) -> Result<(), SendError> {
        let result = self.nodes[node].endpoint.send(link, channel, mode, &[payload]);
        self.drive(node);
        result
    }

    /// Does what a driver does after every call.
    pub fn drive(&mut self, index: usize) {
        let now = self.instant();
        let mut buffer = Vec::new();
        loop {
            let node = &mut self.nodes[index];
            if node.suspended {
                return;
            }
            while let Some(event) = node.endpoint.poll_event() {
                if let Event::Readable(link) = event
                    && node.reads
                {
                    while let Some(received) = node.endpoint.receive(link) {
                        node.bytes += received.payload.len() as u64;
                        if node.first_byte_after.is_some_and(|after| self.now >= after) && node.first_byte_at.is_none() {
                            node.first_byte_at = Some(self.now);
                        }
                        if node.sink {
                            let next = node.in_order.entry((link, received.channel)).or_default();
                            assert_eq!(
                                received.payload,
                                message(received.channel, *next, received.payload.len()),
                                "message {next} of channel {}",
                                received.channel
                            );
                            *next += 1;
                        } else {
                            node.received.push((self.now, link, received));
                        }
                    }
                }
                node.events.push((self.now, event));
            }
            let mut bulk = std::mem::take(&mut node.bulk);
            for source in &mut bulk {
                while source.left > 0 {
                    let channel = (source.next % u64::from(source.channels)) as u16;
                    let number = source.next / u64::from(source.channels);
                    // Enough waits when it is a few windows.
                    if node.endpoint.status(source.link).is_none_or(|status| status.unacknowledged > 4 << 20) {
                        break;
                    }
                    if node.endpoint.send(source.link, channel, Mode::Reliable, &[message(channel, number, source.size)]).is_err() {
                        break;
                    }
                    source.next += 1;
                    source.left -= 1;
                }
            }
            node.bulk = bulk;
            let Some(transmit) = node.endpoint.poll_transmit(now, &mut buffer, self.segments) else {
                // There may be something to read, or to report, that came of it.
                return;
            };
            assert_eq!(transmit.size, buffer.len());
            let (from, out) = (node.address, node.out);
            for datagram in buffer.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                self.put(from, transmit.to, out, datagram);
            }
        }
    }

    pub fn put(&mut self, from: SocketAddr, to: SocketAddr, out: usize, datagram: &[u8]) {
        self.datagrams += 1;
        let wire = &mut self.wires[out];
        for at in wire.pass(self.now, datagram.len() + HEADERS, &mut self.random) {
            let mut bytes = datagram.to_vec();
            if self.random.random_bool(wire.corrupt) {
                let index = self.random.random_range(0..bytes.len());
                bytes[index] ^= self.random.random_range(1..=255u8);
            }
            self.order += 1;
            self.arrivals.push(Reverse(Arrival { at, order: self.order, to, from, bytes }));
        }
    }

    fn next(&self) -> Option<Duration> {
        let timers = self
            .nodes
            .iter()
            .filter(|node| !node.suspended)
            .filter_map(|node| node.endpoint.poll_timeout())
            .map(|at| at.saturating_duration_since(self.start));
        self.arrivals.peek().map(|Reverse(arrival)| arrival.at).into_iter().chain(timers).min().map(|at| at.max(self.now))
    }

    /// Runs until the condition holds, or `limit`; false then.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let mut idle = 0;
        loop {
            if done(self) {
                return true;
            }
            let Some(at) = self.next().filter(|at| *at <= limit) else {
                self.now = self.now.max(limit);
                return done(self);
            };
            idle = if at == self.now { idle + 1 } else { 0 };
            assert!(idle < 100_000, "time stands still at {:?}", self.now);
            self.now = at;
            let now = self.instant();
            if self.arrivals.peek().is_some_and(|Reverse(arrival)| arrival.at <= at) {
                let Some(Reverse(mut arrival)) = self.arrivals.pop() else { continue };
                if let Some(index) = self.places.get(&arrival.to).copied() {
                    // A suspended process finds in its socket what fits there, which is little.
                    if self.nodes[index].suspended {
                        continue;
                    }
                    self.nodes[index].endpoint.handle_datagram(now, arrival.from, &mut arrival.bytes);
                    self.drive(index);
                } else {
                    self.astray += arrival.bytes.len();
                }
                continue;
            }
            for index in 0..self.nodes.len() {
                if !self.nodes[index].suspended && self.nodes[index].endpoint.poll_timeout().is_some_and(|at| at <= now) {
                    self.nodes[index].endpoint.handle_timeout(now);
                    self.drive(index);
                }
            }
        }
    }

    /// Copies of what is under way.
    pub fn under_way(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.arrivals.iter().map(|Reverse(arrival)| (arrival.to, arrival.bytes.clone())).collect()
    }

    pub fn run_for(&mut self, time: Duration) {
        let limit = self.now + time;
        self.run_until(limit, |_| false);
    }
}
