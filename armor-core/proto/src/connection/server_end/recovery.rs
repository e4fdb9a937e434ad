//! Connect requests at the server's end: the first one, and those that bring a new process to where the old one was
//! (thesis §4.5.1).
//!
//! Invariant: a connect request is followed once; its repetition is answered with the same words, an older one with none.
//! Invariant: what the client has been given, by its own word, is where the server's stream goes on.

use std::time::{Duration, Instant};

use super::{ConnectDecision, ServerEnd};
use crate::connection::digest::Regeneration;
use crate::connection::error::ProtocolError;
use crate::connection::event::Event;
use crate::connection::record::{AckState, ConnectReply, ConnectRequest, ResetReason, Resume};
use crate::ids::Incarnation;

impl ServerEnd {
    /// Takes a connect request, first or replayed, and says what to do about it.
    ///
    /// # Errors
    /// When its numbers make no sense; it is ignored then.
    pub fn handle_connect_request(&mut self, request: &ConnectRequest, now: Instant) -> Result<ConnectDecision, ProtocolError> {
        self.session.check_connection(request.connection)?;
        self.session.peer_named(request.incarnation);
        if self.session.is_over() {
            self.session.repeat_reset();
            return Ok(ConnectDecision::Over);
        }
        if self.requested.is_some_and(|last| request.incarnation <= last) {
            if self.requested == Some(request.incarnation) && self.reply.is_some() {
                self.reply_due = true;
                if let Some(asking) = &mut self.asking {
                    // After a restoration: the client's end is told where it is, and then to come again.
                    asking.due = true;
                }
            }
            return Ok(ConnectDecision::Nothing);
        }
        let known = self.knows(request);
        let done = request.fin_s2c || (self.done && known);
        self.check(request, done)?;
        self.requested = Some(request.incarnation);
        self.reply = None;
        self.asking = None;
        if self.keeps_process(request, done) {
            self.lost = None;
            self.session.receiver.renew_acks();
            self.session.sender.resume(&received_by(request))?;
            self.start(request, self.service, now);
            return Ok(ConnectDecision::Nothing);
        }
        if request.resume == Resume::SameProcess && !done {
            self.session.reset(ResetReason::NoReplay, now);
            return Ok(ConnectDecision::Over);
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

    /// Whether this connect request would put another process in the place of the one that is attached. Before it is handed
    /// over, what the old process had still said must be read (`app_read`) and its loss be told ([`ServerEnd::server_lost`],
    /// or `app_closed` where it had closed in order): with [`Resume::Present`] nobody says it again.
    #[must_use]
    pub fn replaces_process(&self, request: &ConnectRequest) -> bool {
        let done = request.fin_s2c || (self.done && self.knows(request));
        self.session.check_connection(request.connection).is_ok()
            && self.session.has_app()
            && !self.session.is_over()
            && self.requested.is_none_or(|last| request.incarnation > last)
            && !self.keeps_process(request, done)
            && self.check(request, done).is_ok()
    }

    /// Two requests for one failure, and the first has brought a process already; or one of the two ends was restored.
    fn keeps_process(&self, request: &ConnectRequest, done: bool) -> bool {
        self.knows(request) && !done && self.session.has_app() && self.service >= request.service
    }

    /// Whether this end was talking to the client's end in the state in which that is now. If not, it was made by a
    /// request that came late, and what the client says of the streams is all that is known.
    fn knows(&self, request: &ConnectRequest) -> bool {
        let same_end = request.seen_end == self.end || request.seen.0 == 0;
        same_end && self.seen.is_some_and(|seen| request.seen == seen || request.seen == self.session.incarnation)
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
        let request = self.pending.take().ok_or(ProtocolError::Unexpected { event: "attached", state: "no connect request waits" })?;
        self.service = service;
        let settled = self.is_settled(&request);
        let ack = received_by(&request);
        match request.resume {
            // `SameProcess` is never attached.
            Resume::Present | Resume::SameProcess if self.knows(&request) => {
                self.session.receiver.renew();
                self.session.sender.resume(&ack)?;
            }
            Resume::Present | Resume::SameProcess => {
                self.session.receiver.restart(request.acked_c2s);
                self.session.sender.restart(&ack);
            }
            Resume::Mark => {
                self.session.receiver.restart(if settled { request.acked_c2s } else { request.mark.c2s });
                self.session.sender.restart(&ack);
            }
        }
        self.session.set_app(true);
        self.lost = None;
        self.quiet_since = now;
        self.broke_at = None;
        self.silence = Duration::ZERO;
        let first = request.incarnation.0 == 0;
        self.start(&request, service, now);
        if first {
            self.session.report(Event::Established { service });
            return Ok(());
        }
        let replayed = match request.resume {
            Resume::Mark if !settled => request.acked_c2s.saturating_sub(request.mark.c2s),
            Resume::Mark | Resume::Present | Resume::SameProcess => 0,
        };
        self.session.report(Event::Reconnected { service, replayed });
        if replayed > 0 {
            self.replaying = Some(request.acked_c2s);
        } else {
            self.session.report(Event::Replayed);
        }
        let missing = request.received_s2c - request.mark.s2c;
        if request.resume == Resume::Mark && !settled && missing > 0 {
            self.regenerated_at = now;
            self.regeneration = Some(Regeneration::new(request.mark.s2c, request.received_s2c, request.hash_s2c));
        } else {
            self.session.report(Event::Recovered { regenerated: 0 });
        }
        Ok(())
    }

    /// Whether the process that was lost had said its whole answer, as far as silence tells: the client has it all and was given it all
    /// in time for the process to say more.
    fn is_settled(&self, request: &ConnectRequest) -> bool {
        let enough = request.settled_ms.is_some_and(|silence| self.silence >= Duration::from_millis(u64::from(silence)));
        enough && self.knows(request) && request.written_s2c == self.session.sender.end()
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
            end: self.end,
            errno: 0,
            c2s: AckState::default(),
        });
        self.reply_due = true;
    }

    /// No process can be connected, for good: the client is told `errno`, or is reset if it was connected before, and the
    /// connection is over.
    pub fn refused(&mut self, errno: i32, now: Instant) {
        let Some(request) = self.pending.take() else { return };
        if self.session.is_over() {
            return;
        }
        if request.seen.0 != 0 {
            self.session.reset(ResetReason::ServerGone, now);
            return;
        }
        self.reply = Some(ConnectReply {
            connection: self.session.connection,
            requested: request.incarnation,
            incarnation: request.incarnation,
            service: self.service,
            end: self.end,
            errno,
            c2s: AckState::default(),
        });
        self.reply_due = true;
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
