//! What both ends have in common: one sending and one receiving half, fencing, liveness, and how a connection ends.
//!
//! Invariant: a frame of another incarnation changes nothing (ARCHITECTURE.md).
//! Invariant: while an answer is owed by the peer the deadline runs; a connection never hangs silently.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::config::Config;
use super::error::ProtocolError;
use super::event::{AppAction, Event};
use super::receiver::Receiver;
use super::record::{Ack, AckState, Data, Direction, Record, Reset, ResetReason};
use super::saved::{RestoreError, SavedCourse, SavedSession};
use super::send_log::Spill;
use super::sender::Sender;
use crate::ids::{ConnectionId, Incarnation};

/// How often a reset is sent when nobody answers it.
const RESETS: u8 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Course {
    /// Streams may flow.
    Open,
    /// Both streams have ended and were passed on; stays to answer a peer that does not know it yet.
    Finished { until: Instant },
    /// Reset by this end: said again until the peer says it too.
    Resetting { reason: ResetReason, left: u8, due: bool, at: Instant, wait: Duration },
    /// Reset by the peer: to be said once in answer.
    ResetAnswered { reason: ResetReason },
    /// Nothing more will come.
    Drained,
}

/// In what the sessions of the two ends differ.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) outgoing: Direction,
    /// Bytes that an application which has closed may still be sent before the connection is reset.
    pub(crate) tolerance: u64,
}

pub(crate) struct Session {
    pub(crate) connection: ConnectionId,
    pub(crate) incarnation: Incarnation,
    pub(crate) config: Config,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// Direction of what this end sends.
    outgoing: Direction,
    /// Frames are sent and taken in this incarnation.
    open: bool,
    /// There is a socket of an application.
    app: bool,
    course: Course,
    heard: Instant,
    /// Since when the peer owes an answer.
    unanswered: Option<Instant>,
    probed: bool,
    peer_complete: bool,
    told_complete: bool,
    /// Highest incarnation that the peer has named: what a reset must carry to be heard.
    named: Incarnation,
    app_reset: Option<ResetReason>,
    /// Bytes that an application which has closed may still be sent before the connection is reset.
    tolerance: u64,
    /// When it has come to its end in order it is not drained but kept, for a process that has to be told all of it again.
    held: bool,
    archived: bool,
    events: VecDeque<Event>,
}

impl Session {
    pub(crate) fn new(connection: ConnectionId, outgoing: Direction, tolerance: u64, config: Config, now: Instant) -> Self {
        Session {
            connection,
            incarnation: Incarnation(0),
            sender: Sender::new(&config),
            receiver: Receiver::new(&config),
            config,
            outgoing,
            open: false,
            app: false,
            course: Course::Open,
            heard: now,
            unanswered: None,
            probed: false,
            peer_complete: false,
            told_complete: false,
            named: Incarnation(0),
            app_reset: None,
            tolerance,
            held: false,
            archived: false,
            events: VecDeque::new(),
        }
    }

    pub(crate) fn save(&self) -> SavedSession {
        let course = match self.course {
            Course::Open => SavedCourse::Open,
            Course::Finished { .. } => SavedCourse::Finished,
            Course::Resetting { reason, .. } | Course::ResetAnswered { reason } => SavedCourse::Over(reason),
            Course::Drained if self.archived => SavedCourse::Archived,
            Course::Drained => SavedCourse::Over(ResetReason::Closed),
        };
        SavedSession {
            connection: self.connection,
            incarnation: self.incarnation,
            named: self.named,
            app: self.app,
            course,
            sender: self.sender.save(),
            receiver: self.receiver.save(),
        }
    }

    /// As it was, and suspended: no frames flow until [`Session::start`]. A finished one answers its peer as before.
    pub(crate) fn restore(
        saved: &SavedSession,
        log: Vec<Bytes>,
        spill: Option<Box<dyn Spill + Send>>,
        ends: Ends,
        config: Config,
        now: Instant,
    ) -> Result<Session, RestoreError> {
        let mut session = Session::new(saved.connection, ends.outgoing, ends.tolerance, config, now);
        session.sender = Sender::restore(&saved.sender, log, spill, &session.config)?;
        session.receiver = Receiver::restore(&saved.receiver, &session.config);
        (session.incarnation, session.named, session.app) = (saved.incarnation, saved.named, saved.app);
        match saved.course {
            SavedCourse::Open => {}
            SavedCourse::Finished => {
                session.course = Course::Finished { until: now + session.config.linger };
                session.open = true;
            }
            SavedCourse::Archived => (session.course, session.held, session.archived) = (Course::Drained, true, true),
            // Whether the peer and the application were told is not known: they are told again.
            SavedCourse::Over(reason) => session.reset(reason, now),
        }
        Ok(session)
    }

    pub(crate) fn report(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Reset or drained: nothing flows any more.
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self.course, Course::Open | Course::Finished { .. })
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.course == Course::Drained && !self.archived
    }

    /// Both streams have ended in order, nothing more comes from the peer, and what was said is kept.
    pub(crate) fn is_archived(&self) -> bool {
        self.archived
    }

    /// Whether the connection is to be kept when it has ended in order; one that was kept is drained when it need not be any more.
    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
        if !held && std::mem::take(&mut self.archived) {
            self.report(Event::Drained);
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.course, Course::Finished { .. })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    pub(crate) fn has_app(&self) -> bool {
        self.app
    }

    pub(crate) fn set_app(&mut self, app: bool) {
        self.app = app;
    }

    /// Frames flow from now on in this incarnation.
    pub(crate) fn start(&mut self, incarnation: Incarnation, now: Instant) {
        self.incarnation = incarnation;
        self.open = true;
        self.heard = now;
        self.unanswered = None;
        self.probed = false;
        self.peer_complete = false;
        self.told_complete = false;
    }

    /// No frames flow until [`Session::start`]; what comes of the incarnation before is dropped.
    pub(crate) fn suspend(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.open = false;
        self.unanswered = None;
    }

    fn incoming(&self) -> Direction {
        match self.outgoing {
            Direction::C2s => Direction::S2c,
            Direction::S2c => Direction::C2s,
        }
    }

    pub(crate) fn check_connection(&self, got: ConnectionId) -> Result<(), ProtocolError> {
        if got == self.connection {
            return Ok(());
        }
        Err(ProtocolError::Connection { expected: self.connection, got })
    }

    /// Whether a reset is this connection's, and the peer's.
    pub(crate) fn check_reset(&self, reset: &Reset) -> Result<(), ProtocolError> {
        self.check_connection(reset.connection)?;
        if reset.direction != self.incoming() {
            return Err(ProtocolError::Direction { expected: self.incoming(), got: reset.direction });
        }
        Ok(())
    }

    /// Whether a frame is of this incarnation and may be taken.
    fn fence(&mut self, connection: ConnectionId, incarnation: Incarnation, now: Instant) -> Result<bool, ProtocolError> {
        self.check_connection(connection)?;
        if self.is_over() || !self.open || incarnation < self.incarnation {
            return Ok(false);
        }
        if incarnation > self.incarnation {
            return Err(ProtocolError::Incarnation { expected: self.incarnation, got: incarnation });
        }
        self.heard = now;
        self.unanswered = None;
        self.probed = false;
        self.sender.heard();
        Ok(true)
    }

    /// Takes a piece of the incoming stream. What is new in it is returned and has to be given to [`Session::enqueue`].
    pub(crate) fn handle_data(&mut self, data: &Data, mut payload: Bytes, now: Instant) -> Result<Option<Bytes>, ProtocolError> {
        if !self.fence(data.connection, data.incarnation, now)? {
            return Ok(None);
        }
        if data.direction != self.incoming() {
            return Err(ProtocolError::Direction { expected: self.incoming(), got: data.direction });
        }
        self.take_ack(&data.ack, now)?;
        if self.is_over() {
            return Ok(None);
        }
        let new = self.receiver.admit(data.offset, &mut payload, data.fin, now)?;
        if !new {
            self.settle(now);
            return Ok(None);
        }
        Ok(Some(payload))
    }

    pub(crate) fn enqueue(&mut self, payload: Bytes, now: Instant) {
        self.receiver.enqueue(payload, now);
        self.settle(now);
    }

    pub(crate) fn handle_ack(&mut self, ack: &Ack, now: Instant) -> Result<(), ProtocolError> {
        if !self.fence(ack.connection, ack.incarnation, now)? {
            return Ok(());
        }
        if ack.direction != self.outgoing {
            return Err(ProtocolError::Direction { expected: self.outgoing, got: ack.direction });
        }
        self.take_ack(&ack.state, now)
    }

    fn take_ack(&mut self, ack: &AckState, now: Instant) -> Result<(), ProtocolError> {
        self.sender.handle_ack(ack, now)?;
        self.peer_complete |= ack.complete;
        self.settle(now);
        Ok(())
    }

    /// Notices that the connection has come to its end.
    pub(crate) fn settle(&mut self, now: Instant) {
        if self.receiver.swallows() {
            self.receiver.pass_fin();
        }
        if self.course == Course::Open && self.sender.fin_acked() {
            if self.receiver.swallowed() > self.tolerance {
                self.reset(ResetReason::Closed, now);
            } else if self.receiver.fin_passed() && self.open {
                self.course = Course::Finished { until: now + self.config.linger };
                self.receiver.ack_soon();
                self.report(Event::Finished);
            }
        }
        if self.is_finished() && self.peer_complete && self.told_complete {
            self.drain();
        }
    }

    fn drain(&mut self) {
        if self.course == Course::Drained {
            return;
        }
        self.archived = self.held && self.is_finished();
        self.course = Course::Drained;
        if self.archived {
            self.sender.abandon();
            self.report(Event::Archived);
        } else {
            self.report(Event::Drained);
        }
    }

    /// Ends the connection at once from this side, and tells the peer.
    pub(crate) fn reset(&mut self, reason: ResetReason, now: Instant) {
        if self.is_over() {
            return;
        }
        if self.is_finished() {
            self.drain();
            return;
        }
        let wait = self.config.retransmit_first;
        self.course = Course::Resetting { reason, left: RESETS, due: true, at: now, wait };
        self.end_by_reset(reason);
    }

    /// Ends the connection at once without telling anybody.
    pub(crate) fn vanish(&mut self) {
        self.sender.abandon();
        self.receiver.abandon();
        self.drain();
    }

    fn end_by_reset(&mut self, reason: ResetReason) {
        self.sender.abandon();
        self.receiver.abandon();
        self.app_reset = self.app.then_some(reason);
        self.report(Event::Reset(reason));
    }

    /// The application has reset the connection: it need not be told.
    pub(crate) fn reset_by_app(&mut self, now: Instant) {
        self.app = false;
        self.reset(ResetReason::Peer, now);
    }

    /// The peer has named this incarnation.
    pub(crate) fn peer_named(&mut self, incarnation: Incarnation) {
        self.named = self.named.max(incarnation);
    }

    /// Takes the peer's reset; the caller has looked at the incarnation.
    pub(crate) fn take_reset(&mut self, reason: ResetReason) {
        match self.course {
            Course::Open => {
                self.course = Course::ResetAnswered { reason };
                self.end_by_reset(reason);
            }
            Course::Finished { .. } | Course::Resetting { .. } => self.drain(),
            Course::ResetAnswered { .. } | Course::Drained => {}
        }
    }

    /// What waits for an answer that may be lost with the way to the peer does not wait for its timer.
    pub(crate) fn path_changed(&mut self) {
        match &mut self.course {
            Course::Open if self.open => {
                self.sender.path_changed();
                self.receiver.path_changed();
            }
            Course::Finished { .. } => self.receiver.ack_soon(),
            Course::Resetting { due, .. } => *due = true,
            _ => {}
        }
    }

    /// Says a reset again to a peer that has not heard it.
    pub(crate) fn repeat_reset(&mut self) {
        if let Course::Resetting { due, .. } = &mut self.course {
            *due = true;
        }
    }

    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<(Record, Bytes)> {
        match self.course {
            Course::Open | Course::Finished { .. } => {}
            _ => return self.poll_reset(now),
        }
        if !self.open {
            return None;
        }
        if self.sender.can_send() {
            match self.sender.poll(self.config.max_data, now) {
                Ok(Some(segment)) => {
                    self.unanswered.get_or_insert(now);
                    let data = Data {
                        connection: self.connection,
                        incarnation: self.incarnation,
                        direction: self.outgoing,
                        offset: segment.offset,
                        fin: segment.fin,
                        ack: self.tell(),
                    };
                    return Some((Record::Data(data), segment.bytes));
                }
                Ok(None) => {}
                Err(_) => {
                    // The log lies in a spill that cannot be read.
                    self.reset(ResetReason::NoReplay, now);
                    return self.poll_reset(now);
                }
            }
        }
        self.sender.rest(now);
        if self.receiver.ack_due() {
            let ack = Ack { connection: self.connection, incarnation: self.incarnation, direction: self.incoming(), state: self.tell() };
            self.settle(now);
            return Some((Record::Ack(ack), Bytes::new()));
        }
        None
    }

    fn tell(&mut self) -> AckState {
        let complete = self.is_finished();
        self.told_complete |= complete;
        self.receiver.tell(complete)
    }

    fn poll_reset(&mut self, now: Instant) -> Option<(Record, Bytes)> {
        let reason = match &mut self.course {
            Course::Resetting { reason, left, due, at, wait } if *due => {
                *due = false;
                *left = left.saturating_sub(1);
                *at = now + *wait;
                *wait *= 2;
                *reason
            }
            Course::ResetAnswered { reason } => {
                let reason = *reason;
                self.drain();
                reason
            }
            _ => return None,
        };
        let incarnation = self.incarnation.max(self.named);
        let reset = Reset { connection: self.connection, incarnation, direction: self.outgoing, reason };
        Some((Record::Reset(reset), Bytes::new()))
    }

    pub(crate) fn poll_app(&mut self, now: Instant) -> Option<AppAction> {
        if !self.app {
            return None;
        }
        if let Some(reason) = self.app_reset.take() {
            self.app = false;
            return Some(AppAction::Reset(reason));
        }
        if self.receiver.waiting() > 0 {
            return Some(AppAction::Write);
        }
        if self.receiver.pass_fin() {
            self.settle(now);
            return Some(AppAction::ShutdownWrite);
        }
        None
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.course {
            Course::Open if self.open => [
                self.sender.timeout(),
                self.receiver.timeout(),
                self.unanswered.map(|since| since + self.config.deadline),
                self.keep_alive_at(),
            ]
            .into_iter()
            .flatten()
            .min(),
            Course::Finished { until } => Some(until),
            Course::Resetting { at, .. } => Some(at),
            _ => None,
        }
    }

    fn keep_alive_at(&self) -> Option<Instant> {
        let silence = self.config.keep_alive?;
        (!self.probed).then(|| self.heard + silence)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        match &mut self.course {
            Course::Open if self.open => {
                if self.unanswered.is_some_and(|since| since + self.config.deadline <= now) {
                    self.reset(ResetReason::Deadline, now);
                    return;
                }
                if self.keep_alive_at().is_some_and(|at| at <= now) {
                    self.probed = true;
                    self.sender.send_probe();
                }
                self.receiver.handle_timeout(now);
                self.sender.handle_timeout(self.config.max_data, now);
            }
            Course::Finished { until } if *until <= now => self.drain(),
            Course::Resetting { left, due, at, .. } if *at <= now => {
                if *left == 0 {
                    self.drain();
                } else {
                    *due = true;
                }
            }
            _ => {}
        }
    }
}
