//! The client's end of a protected connection, in APP_COMM_CLIENT (thesis §4.3, §4.4 steps 3-7, §4.5.1).
//!
//! Keeps the client's bytes back to the mark and a hash of the server's bytes since the mark, so that a new server
//! process, wherever it runs, can be brought to where the old one was.
//!
//! Invariant: a byte of the client leaves the log only when it is acknowledged and lies before the mark, or when the
//! log bound is passed, which is reported.
//!
//! How it comes to a process is in `recovery`, where its mark is in `marks`, what becomes of it when the client's process dies in `process`.

#[path = "client_end/marks.rs"]
mod marks;
#[path = "client_end/process.rs"]
mod process;
#[path = "client_end/recovery.rs"]
mod recovery;

use std::io::IoSlice;
use std::time::Instant;

use bytes::Bytes;

use super::config::Config;
use super::digest::RangeHash;
use super::error::ProtocolError;
use super::event::{AppAction, Event};
use super::mark::{MarkPolicy, Prologue};
use super::reattach::Reattachment;
use super::record::{Ack, Data, Direction, Mark, Record, Reset, ResetReason, Resume};
use super::saved::{RestoreError, SavedClient, SavedReattach};
use super::send_log::Spill;
use super::session::{Ends, Session};
use crate::ids::{ConnectionId, Incarnation};
use recovery::Connecting;

/// `ETIMEDOUT`, what connect(2) says when nobody answers.
const ETIMEDOUT: i32 = 110;
/// `ECONNREFUSED`, when a first connect was reset.
const ECONNREFUSED: i32 = 111;

/// The client's end. Starts by connecting; see [the module](super) for how it is driven.
pub struct ClientEnd {
    session: Session,
    policy: Box<dyn MarkPolicy + Send>,
    mark: Mark,
    /// What a new process is told before the bytes from the mark on.
    prologue: Prologue,
    /// Of the prologue's answer and the server's bytes that the client was given since `mark.s2c`; absent when the policy never
    /// replays, not kept up while replay is lost.
    hash: Option<RangeHash>,
    /// The log reaches back to the mark.
    replayable: bool,
    mark_refused: bool,
    connecting: Option<Connecting>,
    established: bool,
    /// Highest incarnation of the service that was heard of.
    service: Incarnation,
    /// Last incarnation that was established, and by which server's end.
    seen: Incarnation,
    seen_end: u64,
    /// Client's bytes that were acknowledged when the server last said something new.
    answered_c2s: u64,
    /// What had been received at the last recovery, while nothing new has come.
    recovered_at: Option<u64>,
    /// How the connection outlives the client's process, if it does.
    reattachment: Option<Reattachment>,
    /// What was saved of it, until [`ClientEnd::set_reattach`] is called.
    saved_reattach: Option<SavedReattach>,
    /// Since when the connection waits for another process.
    lost_since: Option<Instant>,
    /// A process is to be shown a reset that does not concern the server.
    own_reset: Option<ResetReason>,
}

impl ClientEnd {
    /// A new connection, which wants to send its first connect request.
    #[must_use]
    pub fn new(connection: ConnectionId, config: Config, policy: Box<dyn MarkPolicy + Send>, now: Instant) -> Self {
        let tolerance = u64::from(config.window);
        let wait = config.retransmit_first;
        let mut session = Session::new(connection, Direction::C2s, tolerance, config, now);
        session.set_app(true);
        let replays = policy.resume() == Resume::Mark;
        session.sender.keep_from(replays.then_some(0));
        ClientEnd {
            session,
            mark: Mark::default(),
            prologue: Prologue::default(),
            hash: replays.then(RangeHash::default),
            replayable: replays,
            mark_refused: false,
            connecting: Some(Connecting { since: now, due: true, at: now, wait, resume: policy.resume(), settled: None }),
            policy,
            established: false,
            service: Incarnation(0),
            seen: Incarnation(0),
            seen_end: 0,
            answered_c2s: 0,
            recovered_at: None,
            reattachment: None,
            saved_reattach: None,
            lost_since: None,
            own_reset: None,
        }
    }

    /// Appends what must outlive the ARMOR's process. Keep it, and the bytes that were read, before anything that
    /// [`ClientEnd::poll_transmit`] gives is sent.
    pub fn save(&self, state: &mut Vec<u8>) {
        let mut policy = Vec::new();
        self.policy.save(&mut policy);
        let saved = SavedClient {
            session: self.session.save(),
            mark: self.mark,
            prologue: self.prologue.clone(),
            hash: self.hash.as_ref().map_or(0, RangeHash::digest),
            replayable: self.replayable,
            established: self.established,
            service: self.service,
            seen: self.seen,
            seen_end: self.seen_end,
            answered_c2s: self.answered_c2s,
            recovering: self.connecting.is_some() || self.recovered_at.is_some(),
            policy: policy.into(),
            reattach: self.reattachment.as_ref().map(Reattachment::save),
        };
        // Into memory, numbers and bytes alone: there is nothing to fail.
        let _ = rmp_serde::encode::write(state, &saved);
    }

    /// The end of a dead process, from its last saved state and the bytes that were read by then (any number of them, but the last
    /// ones), and what its log had gone on in. Tell it what the last call had done (`app_read`,
    /// [`ClientEnd::app_given`]), then [`ClientEnd::resume`].
    ///
    /// # Errors
    /// When the state or the log is not such an end's.
    pub fn restore(
        state: &[u8],
        log: Vec<Bytes>,
        spill: Option<Box<dyn Spill + Send>>,
        config: Config,
        mut policy: Box<dyn MarkPolicy + Send>,
        now: Instant,
    ) -> Result<ClientEnd, RestoreError> {
        let saved: SavedClient<'_> = rmp_serde::from_slice(state)?;
        policy.restore(&saved.policy).map_err(|error| RestoreError::Policy(error.to_string()))?;
        let ends = Ends { outgoing: Direction::C2s, tolerance: u64::from(config.window) };
        let mut session = Session::restore(&saved.session, log, spill, ends, config, now)?;
        let replays = policy.resume() == Resume::Mark;
        let replayable = saved.replayable && session.sender.log.first() <= saved.mark.c2s;
        session.sender.keep_from(replayable.then_some(saved.mark.c2s));
        if saved.replayable && !replayable && !session.is_over() {
            let bytes = session.sender.end().saturating_sub(saved.mark.c2s);
            session.report(Event::LogOverflow { bytes });
        }
        let wait = session.config.retransmit_first;
        let connects = !saved.established && !session.is_over();
        Ok(ClientEnd {
            mark: saved.mark,
            prologue: saved.prologue,
            hash: replays.then(|| RangeHash::resume(saved.hash)),
            replayable,
            mark_refused: false,
            connecting: connects.then(|| Connecting { since: now, due: true, at: now, wait, resume: policy.resume(), settled: None }),
            policy,
            established: saved.established,
            service: saved.service,
            seen: saved.seen,
            seen_end: saved.seen_end,
            answered_c2s: saved.answered_c2s,
            recovered_at: saved.recovering.then(|| session.receiver.written()),
            reattachment: None,
            saved_reattach: saved.reattach,
            lost_since: None,
            own_reset: None,
            session,
        })
    }

    /// The call during which the process died had given these bytes to the client.
    pub fn app_given(&mut self, bytes: &[u8], now: Instant) {
        if self.retold(bytes.len()) {
            return;
        }
        self.look_at_answer(bytes, now);
        self.session.receiver.given(bytes.len() as u64);
        self.told(bytes);
    }

    /// Lets the log go beyond the memory bound into `spill`. Call it before the next byte is read: once, when the end is new.
    pub fn set_spill(&mut self, spill: Box<dyn Spill + Send>) {
        self.session.sender.log.set_spill(spill);
    }

    /// Bytes that may be read from the client now; 0 says stop reading.
    #[must_use]
    pub fn read_capacity(&self) -> usize {
        if let Some(known) = self.known_capacity() {
            return known;
        }
        if self.established && !self.session.is_over() { self.session.sender.capacity() } else { 0 }
    }

    /// The client has said `bytes`. They are taken even beyond [`ClientEnd::read_capacity`].
    pub fn app_read(&mut self, bytes: Bytes, now: Instant) {
        let bytes = self.said_again(bytes, now);
        if bytes.is_empty() || self.session.is_over() || self.session.sender.ended() {
            return;
        }
        if let Some(reattachment) = &mut self.reattachment {
            reattachment.client_said(&bytes);
        }
        if self.hash.is_some() {
            let conversation = self.conversation(now);
            let mark = self.policy.client_spoke(&conversation, &bytes);
            if let Some(mark) = mark {
                self.set_mark(mark, bytes.len() as u64, 0);
            }
            self.heed_giving_up();
        }
        self.session.sender.log.push(bytes);
        self.bound_log();
    }

    /// The client has ended its stream and still listens (half-close).
    pub fn app_eof(&mut self, now: Instant) {
        self.diverge_if_short(now);
        self.session.sender.finish();
    }

    /// The client has closed in order. What it said is still delivered, and replayed if need be; what is said to it is
    /// dropped, and beyond a window full of it the server is reset, as TCP would.
    pub fn app_closed(&mut self, now: Instant) {
        self.diverge_if_short(now);
        self.heed_close();
        if self.session.is_over() {
            return;
        }
        self.session.set_app(false);
        self.session.sender.finish();
        // What waits is dropped, and counts as given.
        self.app_wrote(usize::MAX, now);
        self.session.receiver.swallow(now);
        self.session.settle(now);
    }

    /// The client has reset the connection, or its process has died where that counts as a reset.
    pub fn app_reset(&mut self, now: Instant) {
        let past = self.is_past();
        self.heed_close();
        if !past {
            self.session.reset_by_app(now);
        }
    }

    /// Resets both applications, for example because the server's restart limit is reached.
    pub fn abort(&mut self, reason: ResetReason, now: Instant) {
        self.fail(reason, ECONNREFUSED, now);
    }

    /// Bytes for the client's socket; see [`AppAction::Write`].
    #[must_use]
    pub fn app_waiting(&self) -> usize {
        self.session.receiver.waiting()
    }

    /// Fills `slices` with what waits for the client's socket and returns how many were filled.
    pub fn app_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match (self.retold_piece(), slices.first_mut()) {
            (Some(piece), Some(slice)) => {
                *slice = IoSlice::new(piece);
                1
            }
            _ => self.session.receiver.slices(slices),
        }
    }

    /// `count` bytes of what waited were written into the client's socket.
    pub fn app_wrote(&mut self, count: usize, now: Instant) {
        if self.retold(count) {
            return;
        }
        let mut left = count;
        while left > 0 {
            let piece = self.session.receiver.front(left);
            if piece.is_empty() {
                break;
            }
            self.look_at_answer(&piece, now);
            self.session.receiver.wrote(piece.len(), now);
            self.told(&piece);
            left -= piece.len();
        }
    }

    /// Takes a piece of the server's stream.
    ///
    /// # Errors
    /// When it makes no sense; what made none is ignored.
    pub fn handle_data(&mut self, data: &Data, payload: Bytes, now: Instant) -> Result<(), ProtocolError> {
        let Some(bytes) = self.session.handle_data(data, payload, now)? else { return Ok(()) };
        if self.session.receiver.swallows() {
            // It counts as given at once.
            self.look_at_answer(&bytes, now);
        }
        self.answered_c2s = self.session.sender.acked();
        self.recovered_at = None;
        self.session.enqueue(bytes, now);
        Ok(())
    }

    /// Takes an acknowledgement.
    ///
    /// # Errors
    /// When it makes no sense; it is ignored then.
    pub fn handle_ack(&mut self, ack: &Ack, now: Instant) -> Result<(), ProtocolError> {
        self.session.handle_ack(ack, now)
    }

    /// Takes the server's reset. One of an older incarnation is dropped, and so is one that says
    /// [`ResetReason::Closed`] before the server has ended.
    ///
    /// # Errors
    /// When it is of another connection, or a client's.
    pub fn handle_reset(&mut self, reset: &Reset, _now: Instant) -> Result<(), ProtocolError> {
        self.session.check_reset(reset)?;
        // "Closed" answers bytes that come after the server has ended. Before that it can only come from an ARMOR that
        // does not know the connection any more: the server's end is lost, which is what replay is for.
        let unknown = reset.reason == ResetReason::Closed && !self.session.receiver.fin_received();
        if reset.incarnation < self.session.incarnation || unknown {
            return Ok(());
        }
        if !self.established && !self.session.is_over() {
            self.session.report(Event::Refused { errno: ECONNREFUSED });
            self.session.set_app(false);
        }
        self.connecting = None;
        self.session.take_reset(reset.reason);
        Ok(())
    }

    /// Asks the server's end for a sign of life now, for example because its node is suspected. If none comes the
    /// deadline runs.
    pub fn probe(&mut self) {
        if self.session.is_open() && !self.session.is_over() {
            self.session.sender.send_probe();
        }
    }

    /// The way to the server's end was lost or is open again, and what was on it may be lost: what has no answer yet is said again now, not
    /// when its timer runs out.
    pub fn path_changed(&mut self) {
        match &mut self.connecting {
            Some(connecting) => (connecting.due, connecting.wait) = (true, self.session.config.retransmit_first),
            None => self.session.path_changed(),
        }
    }

    /// The next record for the server's end, with its payload.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(Record, Bytes)> {
        if self.connecting.as_ref().is_some_and(|connecting| connecting.due) {
            return self.connect_request(now).map(|request| (Record::ConnectRequest(request), Bytes::new()));
        }
        let sent = self.session.poll_transmit(now);
        // What is sent may go into the spill: after a restoration more of it can be in memory than there is room for.
        self.bound_log();
        sent
    }

    /// What to do to the client's socket now.
    pub fn poll_app(&mut self, now: Instant) -> Option<AppAction> {
        self.poll_process(now).or_else(|| self.session.poll_app(now))
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.session.poll_event()
    }

    /// When [`ClientEnd::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let connecting = self.connecting.as_ref().map(|connecting| connecting.at.min(connecting.since + self.session.config.deadline));
        [self.session.poll_timeout(), connecting, self.not_reattached_at()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(connecting) = &mut self.connecting {
            if connecting.since + self.session.config.deadline <= now {
                self.fail(ResetReason::Deadline, ETIMEDOUT, now);
            } else if connecting.at <= now {
                connecting.due = true;
            }
        }
        self.session.handle_timeout(now);
        self.heed_patience(now);
    }

    /// Drop this end without telling anybody.
    pub fn vanish(&mut self) {
        self.connecting = None;
        self.session.vanish();
    }

    /// The connection's identity.
    #[must_use]
    pub fn connection(&self) -> ConnectionId {
        self.session.connection
    }

    /// Frames flow: not connecting, not over.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.connecting.is_none() && self.established && !self.session.is_over()
    }

    /// Nothing more will come; drop this end.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.session.is_drained()
    }

    /// Where a new process would start.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Client's bytes that were read, and server's bytes that were written to the client.
    #[must_use]
    pub fn progress(&self) -> Mark {
        Mark { c2s: self.session.sender.end(), s2c: self.session.receiver.written() }
    }

    /// Memory that the log takes.
    #[must_use]
    pub fn log_memory(&self) -> usize {
        self.session.sender.log.memory()
    }
}
