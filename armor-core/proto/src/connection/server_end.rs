//! The server's end of a protected connection, in APP_COMM_SERVER (thesis §4.3, §4.5.1).
//!
//! Outlives the server's processes: it is attached to one after the other. It compares what a new process says again
//! with what the client has been given, drops it, and lets the stream flow on from there.
//!
//! Invariant: a process is attached only in answer to a connect request, whose incarnation fences the process before.
//! Invariant: a byte that the client has been given is never sent again in another form; what differs is a divergence.

mod recovery;

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use super::config::{Config, OnDivergence};
use super::digest::{Regenerated, Regeneration};
use super::error::ProtocolError;
use super::event::{AppAction, Divergence, Event};
use super::record::{Ack, AckState, ConnectReply, ConnectRequest, Data, Direction, Mark, Record, Replay, Reset, ResetReason};
use super::saved::{RestoreError, SavedServer};
use super::session::{Ends, Session};
use crate::ids::{ConnectionId, Incarnation};

/// What the driver has to do about a connect request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectDecision {
    /// Drop the old process's socket if there is one (see [`ServerEnd::replaces_process`]), connect to the process that serves
    /// now, as soon as there is one, and call [`ServerEnd::attached`] or [`ServerEnd::refused`].
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
    /// Among all the server's ends that the connection comes to have.
    end: u64,
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
    /// Client's bytes up to which the new process is being fed again.
    replaying: Option<u64>,
    regeneration: Option<Regeneration>,
    /// Since when the process has been silent although it could speak: all that it had said was written to the client.
    quiet_since: Instant,
    /// When the process's stream ended without announcement.
    broke_at: Option<Instant>,
    /// How long the process that was lost had been silent.
    silence: Duration,
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
            end: 0,
            requested: None,
            pending: None,
            reply: None,
            reply_due: false,
            seen: None,
            lost: Some(now),
            done: false,
            replaying: None,
            regeneration: None,
            quiet_since: now,
            broke_at: None,
            silence: Duration::ZERO,
            regenerated_at: now,
            asking: None,
            service: Incarnation(0),
        }
    }

    /// Tells this end from all others of the connection: those before it on this node and on others. Draw a number that never comes again.
    #[must_use]
    pub fn identified_by(mut self, end: u64) -> Self {
        self.end = end;
        self
    }

    /// The process's stream has ended and nobody has announced it: it may be dead, and its silence ends here.
    pub fn app_broke(&mut self, now: Instant) {
        self.broke_at.get_or_insert(now);
    }

    /// Appends what must outlive the ARMOR's process. Keep it, and the bytes that were read, before anything that
    /// [`ServerEnd::poll_transmit`] gives is sent.
    pub fn save(&self, state: &mut Vec<u8>) {
        // A request that waits for a process is forgotten: the client's end says it again.
        let requested = match &self.pending {
            Some(pending) => pending.incarnation.0.checked_sub(1).map(Incarnation),
            None => self.requested,
        };
        let saved = SavedServer {
            session: self.session.save(),
            end: self.end,
            requested,
            answered: self.reply.is_some_and(|reply| reply.errno == 0),
            seen: self.seen,
            service: self.service,
            done: self.done,
            replaying: self.replaying,
            regeneration: self.regeneration.as_ref().map(Regeneration::save),
        };
        // Into memory, numbers alone: there is nothing to fail.
        let _ = rmp_serde::encode::write(state, &saved);
    }

    /// The end of a dead process, from its last saved state and the bytes that were read by then (any number of them, but the last
    /// ones). Tell it what the last call had done (`app_read`,
    /// [`ServerEnd::app_given`]), then [`ServerEnd::resume`].
    ///
    /// # Errors
    /// When the state or the log is not such an end's.
    pub fn restore(state: &[u8], log: Vec<Bytes>, config: Config, now: Instant) -> Result<ServerEnd, RestoreError> {
        let saved: SavedServer = rmp_serde::from_slice(state)?;
        let connection = saved.session.connection;
        let mut session = Session::restore(&saved.session, log, None, Ends { outgoing: Direction::S2c, tolerance: 0 }, config, now)?;
        session.sender.keep_from(None);
        let reply = saved.requested.filter(|_| saved.answered).map(|requested| ConnectReply {
            connection,
            requested,
            incarnation: saved.session.incarnation,
            service: saved.service,
            end: saved.end,
            errno: 0,
            c2s: AckState::default(),
        });
        Ok(ServerEnd {
            end: saved.end,
            requested: saved.requested,
            reply,
            seen: saved.seen,
            done: saved.done,
            replaying: saved.replaying,
            service: saved.service,
            regeneration: saved.regeneration.as_ref().and_then(Regeneration::restore),
            session,
            ..ServerEnd::new(connection, Config::default(), now)
        })
    }

    /// The call during which the process died had given so many bytes to the server.
    pub fn app_given(&mut self, count: usize) {
        self.session.receiver.given(count as u64);
    }

    /// After [`ServerEnd::restore`]: asks the client's end to say where it is.
    pub fn resume(&mut self, now: Instant) {
        if self.seen.is_some() && !self.session.is_over() && !self.session.is_finished() {
            self.asking = Some(Asking { due: true, at: now, wait: self.session.config.retransmit_first });
        } else if self.session.is_finished() {
            self.lost = None;
        }
    }

    /// The process has died. Call it after everything it had said was read from its socket (`app_read`).
    pub fn server_lost(&mut self, now: Instant) {
        if !self.session.has_app() {
            return;
        }
        // What the client had not taken yet may have kept the process from saying more, and one that still has to say again
        // what the client was given has more to say.
        let heard = self.session.sender.acked() == self.session.sender.end() && self.regeneration.is_none();
        let silence = self.broke_at.unwrap_or(now).saturating_duration_since(self.quiet_since);
        self.silence = if heard { silence } else { Duration::ZERO };
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
        self.replaying = None;
        self.regeneration = None;
    }

    /// The process was lost, has not ended its stream, and no connect request has come yet: the client's end has to be
    /// asked for one (thesis §4.5.1), by `MSG_APPCOMM_REPLAY_CONNECT` or with [`ServerEnd::ask_replay`].
    #[must_use]
    pub fn needs_replay(&self) -> bool {
        !self.session.is_over() && !self.done && self.seen.is_some() && !self.session.has_app() && self.pending.is_none()
    }

    /// A connect request waits for a process: connect one and call [`ServerEnd::attached`].
    #[must_use]
    pub fn awaits_process(&self) -> bool {
        self.pending.is_some() && !self.session.is_over()
    }

    /// A new process is still being told what a dead one was, or has not said again all that the client was given.
    #[must_use]
    pub fn catches_up(&self) -> bool {
        self.session.has_app() && (self.replaying.is_some() || self.regeneration.is_some())
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
        self.quiet_since = now;
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
            if self.replaying.is_some_and(|end| self.session.receiver.written() >= end) {
                self.replaying = None;
                self.session.report(Event::Replayed);
            }
        }
    }

    /// Takes a piece of the client's stream.
    ///
    /// # Errors
    /// When it makes no sense; what made none is ignored.
    pub fn handle_data(&mut self, data: &Data, payload: Bytes, now: Instant) -> Result<(), ProtocolError> {
        let acked = self.session.sender.acked();
        let new = self.session.handle_data(data, payload, now);
        self.heed_progress(acked, now);
        if let Some(bytes) = new? {
            self.session.enqueue(bytes, now);
        }
        Ok(())
    }

    /// Takes an acknowledgement.
    ///
    /// # Errors
    /// When it makes no sense; it is ignored then.
    pub fn handle_ack(&mut self, ack: &Ack, now: Instant) -> Result<(), ProtocolError> {
        let acked = self.session.sender.acked();
        let taken = self.session.handle_ack(ack, now);
        self.heed_progress(acked, now);
        taken
    }

    /// A process that was held up by the client's reading may speak again from now on.
    fn heed_progress(&mut self, acked: u64, now: Instant) {
        if self.session.sender.acked() != acked {
            self.quiet_since = now;
        }
    }

    /// Takes the client's reset. One of an older incarnation is dropped.
    ///
    /// # Errors
    /// When it is of another connection, or a server's.
    pub fn handle_reset(&mut self, reset: &Reset, _now: Instant) -> Result<(), ProtocolError> {
        self.session.check_reset(reset)?;
        // A client that gives up while it first connects does not know the incarnation yet.
        let first = reset.incarnation.0 == 0 && self.requested.is_none_or(|last| last.0 == 0);
        if first || reset.incarnation >= self.session.incarnation {
            self.pending = None;
            self.session.peer_named(reset.incarnation);
            self.session.take_reset(reset.reason);
        }
        Ok(())
    }

    /// See `ClientEnd::path_changed`.
    pub fn path_changed(&mut self) {
        match &mut self.asking {
            Some(asking) => (asking.due, asking.wait) = (true, self.session.config.retransmit_first),
            None => self.session.path_changed(),
        }
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
            let replay = Replay {
                connection: self.session.connection,
                incarnation: self.session.incarnation,
                process_lives: self.session.has_app() || self.done,
            };
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

    /// Incarnation that the last connect request named. A driver that drops a drained end remembers it for a while: a
    /// connect request that names no higher one came late and must make no new end.
    #[must_use]
    pub fn requested(&self) -> Option<Incarnation> {
        self.requested
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
