//! The server's end of a protected connection, in APP_COMM_SERVER (thesis §4.3, §4.5.1; design §7).
//!
//! Outlives the server's processes: it is attached to one after the other. It compares what a new process says again
//! with what the client has been given, drops it, and lets the stream flow on from there.
//!
//! Invariant: a process is attached only in answer to a connect request, whose incarnation fences the process before.
//! Invariant: a byte that the client has been given is never sent again in another form; what differs is a divergence.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use super::config::{Config, OnDivergence};
use super::digest::{Regenerated, Regeneration};
use super::error::ProtocolError;
use super::event::{AppAction, Divergence, Event};
use super::record::{
    Ack, AckState, ConnectReply, ConnectRequest, Data, Direction, Mark, Record, Replay, Reset,
    ResetReason, Resume,
};
use super::session::Session;
use crate::ids::{ConnectionId, Incarnation};

/// What the driver has to do about a connect request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectDecision {
    /// Drop the old process's socket if there is one, connect to the process that serves now, as soon as there is one, and call
    /// [`ServerEnd::attached`] or [`ServerEnd::refused`].
    Attach,
    /// Nothing: it was answered, or it is being answered, or it is old.
    Nothing,
    /// Nothing: the connection is over here, and the client is being told.
    Over,
}

struct Asking {
    due: bool,
    at: Instant,
    wait: Duration,
}

/// The server's end. Does nothing before its first connect request; see [the module](super) for how it is driven.
pub struct ServerEnd {
    session: Session,
    /// Incarnation that the last connect request named.
    requested: Option<Incarnation>,
    /// A connect request that waits for a process.
    pending: Option<ConnectRequest>,
    /// The last outcome, and whether it is to be sent.
    reply: Option<ConnectReply>,
    reply_due: bool,
    /// [`ConnectRequest::seen`] of the request that began the present incarnation, once one has.
    seen: Option<Incarnation>,
    /// Since when there is no process although one is needed.
    lost: Option<Instant>,
    /// The server has ended its stream in order and is gone: no process is needed any more.
    done: bool,
    regeneration: Option<Regeneration>,
    /// When the new process last said something again.
    regenerated_at: Instant,
    asking: Option<Asking>,
    service: Incarnation,
}

impl ServerEnd {
    /// An end that waits for its first connect request.
    #[must_use]
    pub fn new(connection: ConnectionId, config: Config, now: Instant) -> Self {
        ServerEnd {
            session: Session::new(connection, Direction::S2c, 0, config, now),
            requested: None,
            pending: None,
            reply: None,
            reply_due: false,
            seen: None,
            lost: Some(now),
            done: false,
            regeneration: None,
            regenerated_at: now,
            asking: None,
            service: Incarnation(0),
        }
    }

    /// Takes a connect request, first or replayed, and says what to do about it.
    ///
    /// # Errors
    /// When its numbers make no sense; it is ignored then.
    pub fn handle_connect_request(
        &mut self,
        request: &ConnectRequest,
        now: Instant,
    ) -> Result<ConnectDecision, ProtocolError> {
        self.session.check_connection(request.connection)?;
        self.session.peer_named(request.incarnation);
        if self.session.is_over() {
            self.session.repeat_reset();
            return Ok(ConnectDecision::Over);
        }
        if self.requested.is_some_and(|last| request.incarnation <= last) {
            self.reply_due |= self.requested == Some(request.incarnation) && self.reply.is_some();
            return Ok(ConnectDecision::Nothing);
        }
        let known = self.knows(request);
        let done = request.fin_s2c || (self.done && known);
        self.check(request, done)?;
        self.requested = Some(request.incarnation);
        self.reply = None;
        self.asking = None;
        if known && !done && self.session.has_app() && self.service >= request.service {
            // Two requests for one failure, and the first has brought a process already.
            self.session.receiver.renew_acks();
            self.session.sender.resume(&received_by(request))?;
            self.start(request, self.service, now);
            return Ok(ConnectDecision::Nothing);
        }
        self.lose_process();
        self.done = done;
        if done {
            self.answer_without_process(request, now)?;
            return Ok(ConnectDecision::Nothing);
        }
        self.pending = Some(*request);
        self.lost.get_or_insert(now);
        Ok(ConnectDecision::Attach)
    }

    /// Whether this end was talking to the client's end in the state in which that is now. If not, it was made by a
    /// request that came late, and what the client says of the streams is all that is known.
    fn knows(&self, request: &ConnectRequest) -> bool {
        self.seen.is_some_and(|seen| request.seen == seen || request.seen == self.session.incarnation)
    }

    fn check(&self, request: &ConnectRequest, done: bool) -> Result<(), ProtocolError> {
        let within = |what, expected_from, got, expected_to| {
            if (expected_from..=expected_to).contains(&got) {
                Ok(())
            } else {
                Err(ProtocolError::Offset { what, expected_from, expected_to, got })
            }
        };
        let received = request.received_s2c;
        within("mark", 0, request.mark.s2c, received)?;
        within("written offset", received.saturating_sub(u64::from(u32::MAX)), request.written_s2c, received)?;
        within("received offset", 0, received, u64::MAX - u64::from(u32::MAX))?;
        let keeps = done || request.resume == Resume::Present || self.session.has_app();
        if keeps && self.knows(request) {
            let log = &self.session.sender.log;
            within("received offset", log.first(), received, log.end())?;
        }
        Ok(())
    }

    /// The server has said all: the streams go on where they are, under the new incarnation.
    fn answer_without_process(&mut self, request: &ConnectRequest, now: Instant) -> Result<(), ProtocolError> {
        self.done = true;
        self.lost = None;
        let ack = received_by(request);
        if self.knows(request) {
            self.session.receiver.renew();
            self.session.sender.resume(&ack)?;
        } else {
            self.session.receiver.restart(request.acked_c2s);
            self.session.sender.restart(&ack);
        }
        if request.fin_s2c {
            self.session.sender.mark_done();
        }
        self.session.receiver.swallow(now);
        let service = self.service;
        self.start(request, service, now);
        self.session.settle(now);
        Ok(())
    }

    /// A process of the service, of this incarnation, is connected. It is fed from where the connect request says.
    ///
    /// # Errors
    /// When no connect request waits, or the connection is over: drop the socket.
    pub fn attached(&mut self, service: Incarnation, now: Instant) -> Result<(), ProtocolError> {
        if self.session.is_over() {
            return Err(ProtocolError::Unexpected { event: "attached", state: "over" });
        }
        let request = self.pending.take().ok_or(ProtocolError::Unexpected {
            event: "attached",
            state: "no connect request waits",
        })?;
        self.service = service;
        let ack = received_by(&request);
        match request.resume {
            Resume::Present if self.knows(&request) => {
                self.session.receiver.renew();
                self.session.sender.resume(&ack)?;
            }
            Resume::Present => {
                self.session.receiver.restart(request.acked_c2s);
                self.session.sender.restart(&ack);
            }
            Resume::Mark => {
                self.session.receiver.restart(request.mark.c2s);
                self.session.sender.restart(&ack);
            }
        }
        self.session.set_app(true);
        self.lost = None;
        let first = request.incarnation.0 == 0;
        self.start(&request, service, now);
        if first {
            self.session.report(Event::Established { service });
            return Ok(());
        }
        let replayed = match request.resume {
            Resume::Mark => request.acked_c2s.saturating_sub(request.mark.c2s),
            Resume::Present => 0,
        };
        self.session.report(Event::Reconnected { service, replayed });
        let missing = request.received_s2c - request.mark.s2c;
        if request.resume == Resume::Mark && missing > 0 {
            self.regenerated_at = now;
            self.regeneration =
                Some(Regeneration::new(request.mark.s2c, request.received_s2c, request.hash_s2c));
        } else {
            self.session.report(Event::Recovered { regenerated: 0 });
        }
        Ok(())
    }

    fn start(&mut self, request: &ConnectRequest, service: Incarnation, now: Instant) {
        self.seen = Some(request.seen);
        let after = self.session.incarnation.0.saturating_add(1);
        let mut incarnation = request.incarnation.max(Incarnation(after));
        if request.incarnation.0 == 0 {
            incarnation = incarnation.max(service);
        }
        self.session.start(incarnation, now);
        self.reply = Some(ConnectReply {
            connection: self.session.connection,
            requested: request.incarnation,
            incarnation,
            service,
            errno: 0,
            c2s: AckState::default(),
        });
        self.reply_due = true;
    }

    /// No process could be connected: the client is told `errno`, and the connection is over.
    pub fn refused(&mut self, errno: i32, _now: Instant) {
        let Some(request) = self.pending.take() else { return };
        if self.session.is_over() {
            return;
        }
        self.reply = Some(ConnectReply {
            connection: self.session.connection,
            requested: request.incarnation,
            incarnation: request.incarnation,
            service: self.service,
            errno,
            c2s: AckState::default(),
        });
        self.reply_due = true;
    }

    /// The process has died. Call it after everything it had said was read from its socket (`app_read`).
    pub fn server_lost(&mut self, now: Instant) {
        if !self.session.has_app() {
            return;
        }
        self.lose_process();
        if self.session.sender.ended() {
            self.done = true;
            self.session.receiver.swallow(now);
            self.session.settle(now);
        } else {
            self.lost = Some(now);
        }
    }

    fn lose_process(&mut self) {
        self.session.set_app(false);
        self.regeneration = None;
    }

    /// The process was lost, has not ended its stream, and no connect request has come yet: the client's end has to be
    /// asked for one (thesis §4.5.1), by `MSG_APPCOMM_REPLAY_CONNECT` or with [`ServerEnd::ask_replay`].
    #[must_use]
    pub fn needs_replay(&self) -> bool {
        !self.session.is_over()
            && !self.done
            && self.seen.is_some()
            && !self.session.has_app()
            && self.pending.is_none()
    }

    /// Asks the client's end itself for a connect request, until it comes: for a connection whose process died while the
    /// service lives on.
    pub fn ask_replay(&mut self, now: Instant) {
        if self.needs_replay() && self.asking.is_none() {
            self.asking = Some(Asking { due: true, at: now, wait: self.session.config.retransmit_first });
        }
    }

    /// Bytes that may be read from the server now; 0 says stop reading.
    #[must_use]
    pub fn read_capacity(&self) -> usize {
        if !self.session.has_app() || self.session.is_over() {
            return 0;
        }
        let known = self.regeneration.as_ref().map_or(0, Regeneration::missing);
        self.session.sender.capacity().saturating_add(usize::try_from(known).unwrap_or(usize::MAX))
    }

    /// The server has said `bytes`. They are taken even beyond [`ServerEnd::read_capacity`], so that the socket of a dead
    /// process can be drained; without a process they are dropped.
    pub fn app_read(&mut self, mut bytes: Bytes, now: Instant) {
        if !self.session.has_app() || self.session.is_over() || self.session.sender.ended() || bytes.is_empty() {
            return;
        }
        if let Some(regeneration) = &mut self.regeneration {
            self.regenerated_at = now;
            let outcome = regeneration.take(&bytes);
            let regenerated = regeneration.length();
            let known = match outcome {
                Regenerated::Partly => return,
                Regenerated::Same(known) => {
                    self.session.report(Event::Recovered { regenerated });
                    known
                }
                Regenerated::Different(known) => {
                    self.diverge(Divergence::Bytes, now);
                    known
                }
            };
            self.regeneration = None;
            if self.session.is_over() {
                return;
            }
            bytes.advance(known);
        }
        self.session.sender.log.push(bytes);
    }

    fn diverge(&mut self, divergence: Divergence, now: Instant) {
        self.regeneration = None;
        self.session.report(Event::Diverged(divergence));
        if self.session.config.on_divergence == OnDivergence::Reset {
            self.session.reset(ResetReason::Diverged, now);
        }
    }

    fn diverge_if_short(&mut self, now: Instant) {
        if let Some(regeneration) = &self.regeneration {
            let (said, expected) = (regeneration.said(), regeneration.length());
            self.diverge(Divergence::Short { said, expected }, now);
        }
    }

    /// The server has ended its stream in order and still listens (half-close).
    pub fn app_eof(&mut self, now: Instant) {
        if self.session.has_app() && !self.session.is_over() {
            self.diverge_if_short(now);
            self.session.sender.finish();
        }
    }

    /// The server has closed in order: no process is needed any more. What was said is still delivered.
    pub fn app_closed(&mut self, now: Instant) {
        if !self.session.has_app() {
            return;
        }
        self.diverge_if_short(now);
        self.session.set_app(false);
        if self.session.is_over() {
            return;
        }
        self.done = true;
        self.session.sender.finish();
        self.session.receiver.swallow(now);
        self.session.settle(now);
    }

    /// The server has reset the connection, as its own decision and not by dying.
    pub fn app_reset(&mut self, now: Instant) {
        if self.session.has_app() {
            self.diverge_if_short(now);
            self.session.reset_by_app(now);
        }
    }

    /// Resets both applications, for example because the server's restart limit is reached.
    pub fn abort(&mut self, reason: ResetReason, now: Instant) {
        self.session.reset(reason, now);
    }

    /// Bytes for the server's socket; see [`AppAction::Write`].
    #[must_use]
    pub fn app_waiting(&self) -> usize {
        if self.session.has_app() { self.session.receiver.waiting() } else { 0 }
    }

    /// Fills `slices` with what waits for the server's socket and returns how many were filled.
    pub fn app_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.session.receiver.slices(slices)
    }

    /// `count` bytes of what waited were written into the server's socket.
    pub fn app_wrote(&mut self, count: usize, now: Instant) {
        if self.session.has_app() {
            self.session.receiver.wrote(count, now);
        }
    }

    /// Takes a piece of the client's stream.
    ///
    /// # Errors
    /// When it makes no sense; what made none is ignored.
    pub fn handle_data(&mut self, data: &Data, payload: Bytes, now: Instant) -> Result<(), ProtocolError> {
        if let Some(bytes) = self.session.handle_data(data, payload, now)? {
            self.session.enqueue(bytes, now);
        }
        Ok(())
    }

    /// Takes an acknowledgement.
    ///
    /// # Errors
    /// When it makes no sense; it is ignored then.
    pub fn handle_ack(&mut self, ack: &Ack, now: Instant) -> Result<(), ProtocolError> {
        self.session.handle_ack(ack, now)
    }

    /// Takes the client's reset. One of an older incarnation is dropped.
    ///
    /// # Errors
    /// When it is of another connection.
    pub fn handle_reset(&mut self, reset: &Reset, _now: Instant) -> Result<(), ProtocolError> {
        self.session.check_connection(reset.connection)?;
        // A client that gives up while it first connects does not know the incarnation yet.
        let first = reset.incarnation.0 == 0 && self.requested.is_none_or(|last| last.0 == 0);
        if first || reset.incarnation >= self.session.incarnation {
            self.pending = None;
            self.session.peer_named(reset.incarnation);
            self.session.take_reset(reset.reason);
        }
        Ok(())
    }

    /// The next record for the client's end, with its payload.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(Record, Bytes)> {
        if self.reply_due {
            self.reply_due = false;
            if let Some(mut reply) = self.reply {
                if reply.errno == 0 {
                    reply.c2s = self.session.receiver.tell(false);
                } else {
                    self.session.vanish();
                }
                return Some((Record::ConnectReply(reply), Bytes::new()));
            }
        }
        if let Some(asking) = &mut self.asking
            && asking.due
        {
            asking.due = false;
            asking.at = now + asking.wait;
            asking.wait = (asking.wait * 2).min(self.session.config.retransmit_most);
            let replay =
                Replay { connection: self.session.connection, incarnation: self.session.incarnation };
            return Some((Record::Replay(replay), Bytes::new()));
        }
        self.session.poll_transmit(now)
    }

    /// What to do to the server's socket now.
    pub fn poll_app(&mut self, now: Instant) -> Option<AppAction> {
        self.session.poll_app(now)
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.session.poll_event()
    }

    /// When [`ServerEnd::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let session = self.session.poll_timeout();
        if self.session.is_over() || (self.lost.is_none() && self.regeneration.is_none()) {
            return session;
        }
        let config = &self.session.config;
        [
            session,
            self.lost.map(|since| since + config.deadline),
            self.regeneration.as_ref().map(|_| self.regenerated_at + config.regeneration_deadline),
            self.asking.as_ref().map(|asking| asking.at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.lost.is_some_and(|since| since + self.session.config.deadline <= now) {
            self.lost = None;
            self.asking = None;
            self.session.reset(ResetReason::Deadline, now);
        }
        if let Some(regeneration) = &self.regeneration
            && self.regenerated_at + self.session.config.regeneration_deadline <= now
        {
            let (said, expected) = (regeneration.said(), regeneration.length());
            self.diverge(Divergence::Silent { said, expected }, now);
        }
        if let Some(asking) = &mut self.asking
            && asking.at <= now
        {
            asking.due = true;
        }
        self.session.handle_timeout(now);
    }

    /// Drop this end without telling anybody.
    pub fn vanish(&mut self) {
        self.session.vanish();
    }

    /// The connection's identity.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.session.connection
    }

    /// A process is attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.session.has_app()
    }

    /// Nothing more will come; drop this end.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.session.is_drained()
    }

    /// Client's bytes that were written to the server, and server's bytes that were read.
    #[must_use]
    pub fn progress(&self) -> Mark {
        Mark { c2s: self.session.receiver.written(), s2c: self.session.sender.end() }
    }
}

fn received_by(request: &ConnectRequest) -> AckState {
    AckState {
        offset: request.written_s2c,
        held: (request.received_s2c - request.written_s2c) as u32,
        window: request.window,
        ..AckState::default()
    }
}
