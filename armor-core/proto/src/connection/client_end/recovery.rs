//! How the client's end comes to a server's process, first and again (thesis §4.4 step 6, §4.5.1): connect requests and their replies.
//!
//! Invariant: from a loss until the reply no frame is taken: what the client has received stands still.

use std::time::{Duration, Instant};

use super::{ClientEnd, ECONNREFUSED};
use crate::connection::config::OnDivergence;
use crate::connection::digest::RangeHash;
use crate::connection::error::ProtocolError;
use crate::connection::event::Event;
use crate::connection::record::{ConnectReply, ConnectRequest, Mark, Replay, ResetReason, Resume};
use crate::ids::Incarnation;

/// What a reconnect makes up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The server's process, perhaps with its end: another one takes its place.
    Server,
    /// The process of one of the two ARMORs: the server may be as it was.
    Armor,
}

pub(super) struct Connecting {
    pub(super) since: Instant,
    /// The request is to be sent now.
    pub(super) due: bool,
    /// It is sent again then.
    pub(super) at: Instant,
    pub(super) wait: Duration,
    pub(super) resume: Resume,
    /// With a silence of so long before the loss the present is a mark as good as the one that holds.
    pub(super) settled: Option<(Duration, Mark)>,
}

impl ClientEnd {
    /// After [`ClientEnd::restore`]: finds the server's end again, and its process if that lives.
    pub fn resume(&mut self, now: Instant) {
        if self.established {
            self.reconnect(Incarnation(self.session.incarnation.0.saturating_add(1)), Lost::Armor, now);
        }
    }

    /// The service's ARMOR asks for the connect request again because a new process of this incarnation serves it
    /// (thesis §4.5.1). One that is already known is ignored.
    pub fn replay(&mut self, service: Incarnation, now: Instant) {
        if service <= self.service {
            return;
        }
        self.service = service;
        let next = Incarnation(self.session.incarnation.0.saturating_add(1)).max(service);
        self.reconnect(next, Lost::Server, now);
    }

    /// The server's end asks for the connect request again because this connection's process was lost, or its ARMOR's.
    ///
    /// # Errors
    /// When it is of another connection.
    pub fn handle_replay(&mut self, replay: &Replay, now: Instant) -> Result<(), ProtocolError> {
        self.session.check_connection(replay.connection)?;
        if replay.incarnation == self.session.incarnation && self.connecting.is_none() {
            let lost = if replay.process_lives { Lost::Armor } else { Lost::Server };
            self.reconnect(Incarnation(replay.incarnation.0.saturating_add(1)), lost, now);
        }
        Ok(())
    }

    pub(super) fn reconnect(&mut self, incarnation: Incarnation, lost: Lost, now: Instant) {
        if self.session.is_over() || self.session.is_finished() {
            return;
        }
        let settled = match &self.connecting {
            Some(connecting) => connecting.settled,
            None if lost == Lost::Server => self.settled(now),
            None => None,
        };
        let mut resume = self.policy.resume();
        if self.session.receiver.fin_received() {
            // The server has said all; nobody has to say it again.
            resume = Resume::Present;
        } else if resume == Resume::Mark && !self.replayable {
            if lost == Lost::Armor {
                resume = Resume::SameProcess;
            } else if self.session.config.on_divergence == OnDivergence::Reset {
                self.fail(ResetReason::NoReplay, ECONNREFUSED, now);
                return;
            } else {
                self.policy.went_on_without_replay();
                resume = Resume::Present;
            }
        }
        if resume == Resume::Mark {
            // What the client was not given yet is the new process's to say, as it likes.
            self.session.receiver.roll_back();
            self.session.sender.rewind(self.mark.c2s, self.prologue.said.clone());
        }
        self.session.suspend(incarnation);
        let since = self.connecting.as_ref().map_or(now, |connecting| connecting.since);
        let wait = self.session.config.retransmit_first;
        self.connecting = Some(Connecting { since, due: true, at: now, wait, resume, settled });
        if self.established {
            self.session.report(Event::Reconnecting { incarnation });
        }
    }

    /// The present as a mark, and how long the server must have been silent before it was lost for it to be one.
    pub(super) fn settled(&self, now: Instant) -> Option<(Duration, Mark)> {
        let conversation = self.conversation(now);
        let silence = self.hash.as_ref().and_then(|_| self.policy.settles_after(&conversation))?;
        // A present that lies where the mark does could not be told from it in the reply.
        (conversation.c2s_end > self.mark.c2s).then(|| (silence, conversation.present()))
    }

    /// Takes the outcome of a connect request. An old one is dropped.
    ///
    /// # Errors
    /// When its numbers contradict what this end knows; the connection is then reset.
    pub fn handle_connect_reply(&mut self, reply: &ConnectReply, now: Instant) -> Result<(), ProtocolError> {
        self.session.check_connection(reply.connection)?;
        if reply.requested != self.session.incarnation || self.session.is_over() {
            return Ok(());
        }
        let Some(connecting) = &self.connecting else { return Ok(()) };
        if reply.errno != 0 {
            // While recovering it means "not yet", until the deadline; for good it is said by a reset.
            if !self.established {
                self.fail(ResetReason::ServerGone, reply.errno, now);
            }
            return Ok(());
        }
        let Connecting { resume, settled, .. } = *connecting;
        let resumed = if reply.incarnation < reply.requested || reply.incarnation.0 == 0 {
            Err(ProtocolError::Incarnation { expected: reply.requested, got: reply.incarnation })
        } else {
            self.session.sender.resume(&reply.c2s)
        };
        if let Err(error) = resumed {
            self.fail(ResetReason::Protocol, ECONNREFUSED, now);
            return Err(error);
        }
        self.connecting = None;
        if let Some((_, present)) = settled
            && resume == Resume::Mark
            && reply.c2s.offset == present.c2s
        {
            // The server's end knows that the last answer was complete, and its new process was told nothing again.
            self.move_mark(present);
        }
        self.session.start(reply.incarnation, now);
        (self.seen, self.seen_end) = (reply.incarnation, reply.end);
        self.service = self.service.max(reply.service);
        if self.established {
            let ever = self.session.sender.acked_ever();
            let replayed = match resume {
                Resume::Mark => ever.saturating_sub(reply.c2s.offset),
                Resume::Present | Resume::SameProcess => 0,
            };
            self.recovered_at = (resume == Resume::Mark).then(|| self.session.receiver.received());
            self.session.report(Event::Reconnected { service: reply.service, replayed });
        } else {
            self.established = true;
            self.session.report(Event::Established { service: reply.service });
        }
        Ok(())
    }

    /// Ends the connection; the client hears a reset, or, while it still connects, `errno`.
    pub(super) fn fail(&mut self, reason: ResetReason, errno: i32, now: Instant) {
        self.connecting = None;
        if !self.established && !self.session.is_over() {
            self.session.report(Event::Refused { errno });
            self.session.set_app(false);
        }
        self.session.reset(reason, now);
    }

    pub(super) fn connect_request(&mut self, now: Instant) -> Option<ConnectRequest> {
        let connecting = self.connecting.as_mut()?;
        connecting.due = false;
        connecting.at = now + connecting.wait;
        connecting.wait = (connecting.wait * 2).min(self.session.config.retransmit_most);
        let receiver = &self.session.receiver;
        Some(ConnectRequest {
            connection: self.session.connection,
            incarnation: self.session.incarnation,
            seen: self.seen,
            seen_end: self.seen_end,
            service: self.service,
            resume: connecting.resume,
            mark: Mark {
                c2s: self.mark.c2s.saturating_sub(self.prologue.said.len() as u64),
                s2c: self.mark.s2c.saturating_sub(self.prologue.answered.len() as u64),
            },
            acked_c2s: self.session.sender.acked_ever(),
            written_s2c: receiver.written(),
            received_s2c: receiver.received(),
            fin_s2c: receiver.fin_received(),
            hash_s2c: self.hash.as_ref().map_or(0, RangeHash::digest),
            window: receiver.window(),
            settled_ms: connecting.settled.map(|(silence, _)| u32::try_from(silence.as_millis()).unwrap_or(u32::MAX)),
        })
    }
}
