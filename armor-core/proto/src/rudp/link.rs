//! One link: all that two endpoints know of each other once their handshake is done.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::config::{Config, INITIAL_WINDOW, MIN_DATAGRAM};
use super::congestion::{Batch, Bbr, Pacer};
use super::inbound::Inbound;
use super::mtu::Mtu;
use super::outbound::Outbound;
use super::path::{Candidate, MAX_CANDIDATES, MAX_RESPONSES, Path};
use super::protection::Protection;
use super::ranges::RangeSet;
use super::recovery::{Cargo, SentLog};
use super::rtt::Rtt;
use super::secret::Secret;
use super::unreliable::{Receiving, Sending};
use super::wire::{self, Frame, Frames, Reader};

/// Ranges of received packet numbers that are remembered; what is below them is too old.
const MAX_RECEIVED_RANGES: usize = 256;
/// Bytes that must be allowed to an address that has not answered, so that a packet is worth sending.
const LEAST_ALLOWANCE: usize = 64;
/// Fragments in one packet.
const MAX_FRAGMENTS: u64 = 64;
/// Probe timeouts without any answer after which the peer counts as silent.
const SILENT_AFTER: u32 = 2;

/// What a datagram has changed.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) readable: bool,
    pub(super) moved: bool,
    pub(super) answered: bool,
    pub(super) closed: Option<u64>,
}

/// The peer's fault, for which the link is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault(pub(super) &'static str);

/// Counters of a link.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) lost: u64,
    pub(super) spurious: u64,
    pub(super) probes: u64,
    pub(super) refused: u64,
}

pub(super) struct Link {
    protection: Box<dyn Protection>,
    renewed_at: Instant,
    remote_id: u32,
    pub(super) path: Path,
    candidates: Vec<Candidate>,
    responses: VecDeque<(SocketAddr, u64)>,

    received: RangeSet,
    too_old: u64,
    largest_at: Instant,
    unacknowledged: u32,
    acknowledge_at: Option<Instant>,

    pub(super) sent: SentLog,
    last_eliciting: Option<Instant>,
    loss_at: Option<Instant>,
    probe_from: Instant,
    unanswered: u32,
    /// Packets sent before tell nothing of the round-trip time: an outage, or this process's own suspension, lies between them and their answers.
    sample_from: Instant,
    probes: u32,
    ping: bool,
    pub(super) liveness: bool,

    pub(super) rtt: Rtt,
    pub(super) congestion: Bbr,
    pacer: Pacer,
    paced_until: Option<Instant>,
    /// So many packets are remembered that no more can be.
    full_until: Option<Instant>,
    pub(super) mtu: Mtu,

    pub(super) outbound: Outbound,
    pub(super) inbound: Inbound,
    tell_window: bool,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,

    /// The owner was refused and waits for room.
    pub(super) wants_room: bool,
    pub(super) counts: Counts,
}

impl Link {
    pub(super) fn new(now: Instant, config: &Config, protection: Box<dyn Protection>, remote_id: u32, path: Path) -> Self {
        Self {
            protection,
            renewed_at: now,
            remote_id,
            path,
            candidates: Vec::new(),
            responses: VecDeque::new(),
            received: RangeSet::default(),
            too_old: 0,
            largest_at: now,
            unacknowledged: 0,
            acknowledge_at: None,
            sent: SentLog::new(),
            last_eliciting: None,
            loss_at: None,
            probe_from: now,
            unanswered: 0,
            sample_from: now,
            probes: 0,
            ping: false,
            liveness: false,
            rtt: Rtt::new(),
            congestion: Bbr::new(now),
            pacer: Pacer::new(now),
            paced_until: None,
            full_until: None,
            mtu: Mtu::new(config.max_datagram),
            outbound: Outbound::new(config.send_buffer, config.max_channels, INITIAL_WINDOW),
            inbound: Inbound::new(config.receive_window, INITIAL_WINDOW, config.max_channels, super::config::MAX_MESSAGE),
            tell_window: true,
            sending: Sending::new(config.unreliable_buffer, config.max_channels),
            receiving: Receiving::new(config.unreliable_buffer, config.max_channels, config.unreliable_buffer),
            wants_room: false,
            counts: Counts::default(),
        }
    }

    /// Sends a sign of life at the next chance.
    pub(super) fn ping(&mut self) {
        self.ping = true;
    }

    pub(super) fn heard_at(&self) -> Instant {
        self.largest_at
    }

    pub(super) fn is_silent(&self) -> bool {
        self.unanswered >= SILENT_AFTER
    }

    pub(super) fn add_candidate(&mut self, now: Instant, remote: SocketAddr, secret: &mut Secret) {
        if remote == self.path.remote {
            return;
        }
        let candidate = Candidate { remote, token: secret.number(), next: now };
        if let Some(known) = self.candidates.iter_mut().find(|known| known.remote == remote) {
            known.next = now;
            return;
        }
        if self.candidates.len() >= MAX_CANDIDATES {
            self.candidates.remove(0);
        }
        self.candidates.push(candidate);
    }

    /// This process was suspended: the clock has gone on without it.
    pub(super) fn resumed(&mut self, now: Instant) {
        self.sample_from = now;
        self.probe_from = now;
        self.probes = self.probes.max(1);
    }

    /// The way to the peer is another one now: what was learned of the old one is void.
    pub(super) fn new_way(&mut self, now: Instant, config: &Config) {
        self.give_up_all(now);
        self.rtt = Rtt::new();
        self.congestion = Bbr::new(now);
        self.pacer = Pacer::new(now);
        self.mtu = Mtu::new(config.max_datagram);
        self.unanswered = 0;
        self.sample_from = now;
        self.probe_from = now;
        self.probes = 1;
        self.ping = true;
    }

    fn give_up_all(&mut self, now: Instant) {
        let Self { sent, outbound, mtu, tell_window, counts, rtt, .. } = self;
        sent.give_up_all(
            now,
            rtt.smoothed(),
            |told| {
                counts.lost += 1;
                *tell_window |= told.cargo.window;
                if told.cargo.mtu_probe {
                    mtu.probe_lost(now, usize::from(told.size));
                } else {
                    mtu.lost(usize::from(told.size));
                }
            },
            |fragment| outbound.was_lost(fragment),
        );
        self.loss_at = None;
    }

    /// Takes a packet of data in; `datagram` begins with its header. `Ok(None)`: it is not one of the peer's, or a second copy.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        config: &Config,
        from: SocketAddr,
        datagram: &mut [u8],
        secret: &mut Secret,
    ) -> Result<Option<Heard>, Fault> {
        let length = datagram.len();
        let Some((header, packet)) = datagram.split_first_chunk_mut::<{ wire::DATA_HEADER }>() else { return Ok(None) };
        let next = self.received.end();
        let number = wire::full_number(next, [header[5], header[6], header[7]]);
        if number < self.too_old || self.received.contains(number) {
            self.counts.refused += 1;
            return Ok(None);
        }
        let Ok(opened) = self.protection.open(number, header, packet) else {
            self.counts.refused += 1;
            return Ok(None);
        };
        let packet = &packet[..opened];
        self.counts.received += 1;
        self.received.insert(number..number + 1);
        if self.received.len() > MAX_RECEIVED_RANGES
            && let Some(first) = self.received.drop_first()
        {
            self.too_old = first.end;
        }
        if number >= next {
            self.largest_at = now;
        }
        let mut heard = Heard::default();
        if from != self.path.remote && number >= next {
            self.path.move_to(now, from, secret, config.probe_cap * 4);
            self.new_way(now, config);
            heard.moved = self.path.is_validated();
        }
        self.path.heard(from, length);
        if self.is_silent() {
            // It is back: what it is owed goes at once.
            self.probes = self.probes.max(1);
        }
        let mut eliciting = false;
        let mut frames = Frames(Reader(packet));
        while let Some(frame) = frames.next().map_err(|_| Fault("a frame that is none"))? {
            eliciting |= !matches!(frame, Frame::Ack(_) | Frame::Close(_));
            self.frame(now, config, from, frame, &mut heard)?;
        }
        if eliciting {
            self.unacknowledged += 1;
            let at = if number != next || self.unacknowledged >= config.ack_packets { now } else { now + config.ack_delay };
            self.acknowledge_at = Some(self.acknowledge_at.map_or(at, |earlier| earlier.min(at)));
        }
        Ok(Some(heard))
    }

    fn frame(&mut self, now: Instant, config: &Config, from: SocketAddr, frame: Frame<'_>, heard: &mut Heard) -> Result<(), Fault> {
        match frame {
            // Who asks wants to know now.
            Frame::Ping => self.acknowledge_at = Some(now),
            Frame::Ack(ack) => {
                if ack.largest >= self.sent.next_number() {
                    return Err(Fault("it acknowledges what was never sent"));
                }
                heard.answered |= self.acknowledged(now, config, &ack);
            }
            Frame::Window(limit) => self.outbound.window(limit),
            Frame::PathChallenge(token) => {
                if self.responses.len() < MAX_RESPONSES {
                    self.responses.push_back((from, token));
                }
            }
            Frame::PathResponse(token) => {
                if self.path.response(token) {
                    heard.moved = true;
                } else if let Some(at) = self.candidates.iter().position(|candidate| candidate.token == token) {
                    let candidate = self.candidates.remove(at);
                    if candidate.remote != self.path.remote {
                        self.path = Path::validated(candidate.remote);
                        self.new_way(now, config);
                        heard.moved = true;
                    } else if !self.path.is_validated() {
                        self.path.confirm();
                        heard.moved = true;
                    }
                }
            }
            Frame::Close(code) => heard.closed = Some(code),
            Frame::Reliable { channel, offset, data } => {
                heard.readable |= self.inbound.fragment(channel, offset, data).map_err(|violation| match violation {
                    super::inbound::Violation::BeyondWindow => Fault("it sends beyond the window"),
                    super::inbound::Violation::TooManyChannels => Fault("it uses more channels than this node has"),
                    super::inbound::Violation::TooManyGaps => Fault("its fragments have too many gaps"),
                    super::inbound::Violation::MessageTooLong => Fault("its message is longer than any may be"),
                })?;
            }
            Frame::Unreliable { channel, number, offset, total, data } => {
                heard.readable |= self.receiving.fragment(channel, number, offset, total, data);
            }
        }
        Ok(())
    }

    fn acknowledged(&mut self, now: Instant, config: &Config, ack: &wire::Ack<'_>) -> bool {
        let mut batch = Batch::default();
        let mut newest: Option<(u64, Instant)> = None;
        let mut short = false;
        let sample_from = self.sample_from;
        let Self { sent, outbound, mtu, tell_window, counts, .. } = self;
        for range in ack.ranges() {
            sent.acknowledge(
                range,
                now,
                |told| {
                    batch.acknowledged += u64::from(told.size);
                    counts.spurious += u64::from(told.spurious);
                    if newest.is_none_or(|(number, _)| told.number > number) {
                        newest = Some((told.number, told.at));
                        // An older one is of a model that is gone.
                        batch.newest = (told.at >= sample_from).then_some(told.stamp);
                    }
                    if told.cargo.mtu_probe {
                        mtu.probe_acknowledged(now, usize::from(told.size));
                    } else {
                        mtu.acknowledged(usize::from(told.size));
                        short |= usize::from(told.size) <= MIN_DATAGRAM;
                    }
                },
                |fragment| outbound.acknowledged(fragment),
            );
        }
        let Some((number, at)) = newest else { return false };
        if number == ack.largest && at >= self.sample_from {
            let rtt = now.saturating_duration_since(at);
            let delay = Duration::from_micros(ack.delay_us).min(config.ack_delay * 2);
            self.rtt.sample(rtt, delay);
            batch.rtt = Some(if rtt > delay { rtt - delay } else { rtt });
        }
        self.loss_at = sent.detect(
            now,
            self.rtt.longer(),
            |told| {
                counts.lost += 1;
                *tell_window |= told.cargo.window;
                if told.cargo.mtu_probe {
                    mtu.probe_lost(now, usize::from(told.size));
                } else {
                    mtu.lost(usize::from(told.size));
                    batch.lost += u64::from(told.size);
                }
            },
            |fragment| outbound.was_lost(fragment),
        );
        if short {
            self.mtu.short_acknowledged();
        }
        self.congestion.acknowledged(now, &batch, self.sent.in_flight());
        let answered = self.is_silent();
        self.unanswered = 0;
        self.probe_from = now;
        if !self.path.is_validated() && self.path.challenge_at.is_none() {
            // The responder of a handshake: who acknowledges has received.
            self.path.confirm();
        }
        answered
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, config: &Config) -> bool {
        let mut silent = false;
        if self.loss_at.is_some_and(|at| now >= at) {
            let mut batch = Batch::default();
            let Self { sent, outbound, mtu, tell_window, counts, .. } = self;
            self.loss_at = sent.detect(
                now,
                self.rtt.longer(),
                |told| {
                    counts.lost += 1;
                    *tell_window |= told.cargo.window;
                    if told.cargo.mtu_probe {
                        mtu.probe_lost(now, usize::from(told.size));
                    } else {
                        mtu.lost(usize::from(told.size));
                        batch.lost += u64::from(told.size);
                    }
                },
                |fragment| outbound.was_lost(fragment),
            );
            self.congestion.acknowledged(now, &batch, self.sent.in_flight());
        }
        if self.probe_at(config).is_some_and(|at| now >= at) {
            self.counts.probes += 1;
            self.unanswered = self.unanswered.saturating_add(1);
            self.probe_from = now;
            silent = self.unanswered == SILENT_AFTER + 1;
            if self.unanswered >= SILENT_AFTER {
                self.sample_from = now;
                self.give_up_all(now);
                self.probes = 1;
            } else {
                self.probes = 2;
                let Self { sent, outbound, .. } = self;
                sent.oldest_in_flight(|fragment| outbound.was_lost(fragment));
            }
        }
        if self.liveness && self.last_eliciting.is_none_or(|at| now >= at + config.keep_alive) {
            self.ping = true;
        }
        if self.path.give_up(now) {
            self.new_way(now, config);
        }
        silent
    }

    /// When the peer is to be asked, as it has not answered (RFC 9002 §6.2).
    fn probe_at(&self, config: &Config) -> Option<Instant> {
        if self.sent.in_flight() == 0 && self.unanswered == 0 {
            return None;
        }
        let from = self.last_eliciting.map_or(self.probe_from, |at| at.max(self.probe_from));
        Some(from + self.rtt.probe_timeout(config, self.unanswered))
    }

    pub(super) fn poll_timeout(&self, config: &Config) -> Option<Instant> {
        let keep_alive = match (self.liveness, self.last_eliciting) {
            (true, Some(at)) if !self.ping && !self.is_silent() => Some(at + config.keep_alive),
            _ => None,
        };
        let candidates = self.candidates.iter().map(|candidate| candidate.next).min();
        if self.path.allowance() < LEAST_ALLOWANCE {
            // Nothing can be sent before the peer is heard again, but to other addresses.
            return [candidates, self.path.timeout()].into_iter().flatten().min();
        }
        if self.full_until.is_some() {
            return self.full_until;
        }
        [self.acknowledge_at, self.loss_at, self.probe_at(config), self.paced_until, keep_alive, self.path.timeout(), candidates]
            .into_iter()
            .flatten()
            .min()
    }

    /// Writes a packet that stands alone, to an address that may not be the link's.
    fn alone(&mut self, now: Instant, out: &mut Vec<u8>, pad_to: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.begin(out);
        write(out);
        let size = pad_to.saturating_sub(self.protection.overhead());
        if out.len() - start < size {
            out.resize(start + size, 0);
        }
        let size = self.seal(out, start);
        let stamp = self.congestion.stamp(now, self.sent.in_flight());
        self.sent.sent(now, size as u16, false, Cargo::default(), 0, stamp);
        self.counts.sent += 1;
    }

    fn begin(&mut self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let number = self.sent.next_number().to_be_bytes();
        out.push(wire::DATA);
        out.extend_from_slice(&self.remote_id.to_be_bytes());
        out.extend_from_slice(&number[5..]);
        start
    }

    /// Seals the packet that begins at `start`; its size.
    fn seal(&mut self, out: &mut Vec<u8>, start: usize) -> usize {
        out.resize(out.len() + self.protection.overhead(), 0);
        let number = self.sent.next_number();
        if let Some((header, packet)) = out[start..].split_first_chunk_mut::<{ wire::DATA_HEADER }>() {
            self.protection.seal(number, header, packet);
        }
        out.len() - start
    }

    /// Writes what is to leave now: `out` gets datagrams of one size (the last may be shorter) for one address. Returns it and that size.
    pub(super) fn poll_transmit(&mut self, now: Instant, config: &Config, out: &mut Vec<u8>, most: usize) -> Option<(SocketAddr, usize)> {
        self.paced_until = None;
        self.sent.forget(now, self.rtt.longer());
        self.full_until = self.sent.is_full().then(|| now + self.rtt.longer());
        if self.full_until.is_some() {
            return None;
        }
        if let Some((to, token)) = self.responses.pop_front() {
            if to == self.path.remote {
                self.path.sent(64);
            }
            self.alone(now, out, 0, |out| wire::put_path_response(out, token));
            return Some((to, out.len()));
        }
        if let Some(candidate) = self.candidates.iter_mut().find(|candidate| now >= candidate.next) {
            candidate.next = now + config.probe_cap;
            let (to, token) = (candidate.remote, candidate.token);
            // As long as any path must pass: it is also what the peer may multiply by three.
            self.alone(now, out, MIN_DATAGRAM, |out| {
                wire::put_ping(out);
                wire::put_path_challenge(out, token);
            });
            return Some((to, out.len()));
        }
        if now.saturating_duration_since(self.renewed_at) >= config.renew_keys && self.largest_at > self.renewed_at {
            self.renewed_at = now;
            self.protection.renew();
        }
        let to = self.path.remote;
        if !self.is_silent()
            && self.path.is_validated()
            && self.sent.in_flight() < self.congestion.window()
            && let Some(size) = self.mtu.probe(now)
        {
            self.mtu.probe_sent();
            let start = self.begin(out);
            wire::put_ping(out);
            out.resize(start + size - self.protection.overhead(), 0);
            let size = self.seal(out, start);
            self.left(now, size, Cargo { mtu_probe: true, ..Cargo::default() }, 0);
            return Some((to, size));
        }
        let first = self.packet(now, config, out, self.mtu.current())?;
        for _ in 1..most {
            let start = out.len();
            match self.packet(now, config, out, first) {
                Some(size) if size == first => {}
                _ => {
                    debug_assert!(out.len() - start <= first);
                    break;
                }
            }
        }
        Some((to, first))
    }

    fn left(&mut self, now: Instant, size: usize, cargo: Cargo, fragments: u64) {
        let stamp = self.congestion.stamp(now, self.sent.in_flight());
        self.sent.sent(now, size as u16, true, cargo, fragments, stamp);
        self.last_eliciting = Some(now);
        self.counts.sent += 1;
        self.pacer.spend(size);
        self.path.sent(size);
    }

    /// Writes one packet of at most `limit` bytes, if there is anything to say; its size.
    fn packet(&mut self, now: Instant, config: &Config, out: &mut Vec<u8>, limit: usize) -> Option<usize> {
        let acknowledge = self.acknowledge_at.is_some_and(|at| now >= at);
        let challenge_pause = self.rtt.probe_timeout(config, 0).min(config.probe_cap);
        let allowance = self.path.allowance();
        if allowance < LEAST_ALLOWANCE {
            return None;
        }
        let limit = limit.min(allowance);
        // What is asked of a silent peer is short: perhaps long packets do not come through any more.
        let limit = if self.is_silent() { limit.min(MIN_DATAGRAM) } else { limit };
        let challenge = self.path.challenge(now, challenge_pause);
        let has_data = self.sending.wants_to_send(now) || self.outbound.wants_to_send();
        let has_window = self.tell_window || self.inbound.should_grant();
        let may_send = if self.probes > 0 {
            true
        } else if self.is_silent() {
            false
        } else if has_data {
            let room = self.sent.in_flight() < self.congestion.window();
            let paced = room && self.pacer.allows(now, self.congestion.pace(), self.mtu.current());
            if room && !paced {
                self.paced_until = Some(self.pacer.next(self.congestion.pace(), self.mtu.current()));
            }
            paced
        } else {
            if self.sent.in_flight() < self.congestion.window() {
                self.congestion.app_limited(self.sent.in_flight());
            }
            false
        };
        let data = may_send && has_data;
        let ping = (self.ping && !self.is_silent()) || (self.probes > 0 && !has_data);
        if !(acknowledge || challenge.is_some() || data || ping || (has_window && !self.is_silent())) {
            return None;
        }
        let start = self.begin(out);
        let end = start + limit - self.protection.overhead();
        let mut eliciting = false;
        if self.unacknowledged > 0 || acknowledge {
            let delay = now.saturating_duration_since(self.largest_at).as_micros() as u64;
            if wire::put_ack(out, &self.received, delay, end - out.len()) {
                self.unacknowledged = 0;
                self.acknowledge_at = None;
            }
        }
        if let Some(token) = challenge
            && end - out.len() >= 9
        {
            wire::put_path_challenge(out, token);
            eliciting = true;
        }
        let mut cargo = Cargo::default();
        if has_window && end - out.len() >= 9 {
            wire::put_window(out, self.inbound.grant());
            self.tell_window = false;
            cargo.window = true;
            eliciting = true;
        }
        let mut fragments = 0;
        if data {
            while let Some(piece) = self.sending.next(end - out.len()) {
                wire::put_unreliable(out, piece.channel, piece.number, piece.parts, piece.length);
                self.sending.write(&piece, out);
                eliciting = true;
            }
            while fragments < MAX_FRAGMENTS
                && let Some(fragment) = self.outbound.next(end - out.len())
            {
                wire::put_reliable(out, fragment.channel, fragment.offset, Some(fragment.length));
                self.outbound.write(&fragment, out);
                self.sent.carry(fragment);
                fragments += 1;
                eliciting = true;
            }
        }
        if (ping || (may_send && self.probes > 0)) && !eliciting && end > out.len() {
            wire::put_ping(out);
            eliciting = true;
        }
        if out.len() == start + wire::DATA_HEADER {
            out.truncate(start);
            return None;
        }
        let size = self.seal(out, start);
        if eliciting {
            self.ping = false;
            self.probes = self.probes.saturating_sub(1);
            self.left(now, size, cargo, fragments);
        } else {
            let stamp = self.congestion.stamp(now, self.sent.in_flight());
            self.sent.sent(now, size as u16, false, cargo, 0, stamp);
            self.counts.sent += 1;
            self.path.sent(size);
        }
        Some(size)
    }

    /// Writes a packet that says that the link ends.
    pub(super) fn write_close(&mut self, now: Instant, code: u64, out: &mut Vec<u8>) -> SocketAddr {
        self.alone(now, out, 0, |out| wire::put_close(out, code));
        self.path.remote
    }
}
