//! The client's process is lost, and another one takes the connection up: the server sees a stall, not a close (thesis §4.5: clients are
//! recovered as servers are).
//!
//! Invariant: while nobody is at the client's side nothing is written to it, so a full window stops the server.

use std::time::Instant;

use bytes::{Buf as _, Bytes};

use super::ClientEnd;
use crate::connection::config::OnDivergence;
use crate::connection::digest::{Regenerated, Regeneration};
use crate::connection::error::ProtocolError;
use crate::connection::event::{AppAction, Divergence, Event, TranscriptLost};
use crate::connection::reattach::{Again, Process, Reattach, ReattachPolicy, Reattachment, Transcript};
use crate::connection::record::ResetReason;

impl ClientEnd {
    /// Lets the connection outlive its client's process. `transcript` is for [`ReattachPolicy::Replay`]. Call it once, before the first
    /// byte: when the end is new, or restored, and then with the same transcript, or none if it is gone.
    pub fn set_reattach(&mut self, settings: Reattach, transcript: Option<Box<dyn Transcript + Send>>, now: Instant) {
        let reattachment = match self.saved_reattach.take() {
            Some(saved) => {
                let reattachment = Reattachment::restore(&saved, settings, transcript);
                if saved.kept && !reattachment.kept {
                    self.session.report(Event::TranscriptLost(TranscriptLost::Missing));
                }
                reattachment
            }
            None => Reattachment::new(settings, transcript),
        };
        self.lost_since = matches!(reattachment.process, Process::Lost).then_some(now);
        self.session.hold(reattachment.replays() && reattachment.kept);
        self.reattachment = Some(reattachment);
    }

    /// Another process could take the connection up.
    #[must_use]
    pub fn can_reattach(&self) -> bool {
        let kept = self.reattachment.as_ref().is_some_and(|reattachment| reattachment.kept);
        kept && (!self.session.is_over() || self.session.is_archived())
    }

    /// The connection waits for another process.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.reattachment.as_ref().is_some_and(|reattachment| matches!(reattachment.process, Process::Lost))
    }

    /// A process has closed the connection in order, or it has ended: a new process that takes it up is told what was said, and no more.
    #[must_use]
    pub fn is_past(&self) -> bool {
        self.session.is_over() || self.reattachment.as_ref().is_some_and(|reattachment| reattachment.closed)
    }

    /// A process has the connection, be it one that is being told what has ended.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.session.has_app() || self.again().is_some()
    }

    /// The present process has said something, so it has got its socket.
    #[must_use]
    pub fn has_heard_process(&self) -> bool {
        let said = self.session.sender.end() > 0;
        match self.again().map(|again| &again.regeneration) {
            Some(Some(regeneration)) => regeneration.said() > 0,
            Some(None) | None => said && !self.is_lost(),
        }
    }

    /// The client's process was lost, by its death and not by a close. What it had still said is read first. Nothing when no other one
    /// [could take the connection up](ClientEnd::can_reattach).
    pub fn app_lost(&mut self, now: Instant) {
        if !self.can_reattach() {
            return;
        }
        let past = self.is_past();
        self.session.set_app(false);
        let Some(reattachment) = &mut self.reattachment else { return };
        if past {
            // There is nothing that the server would have to wait for.
            reattachment.process = Process::Present;
            return;
        }
        reattachment.process = Process::Lost;
        self.lost_since = Some(now);
        self.session.report(Event::ClientLost);
    }

    /// The client has ended its stream, and takes no byte any more: it has closed, or died. Where the latter matters it is told otherwise.
    pub fn app_gone(&mut self, now: Instant) {
        if !self.can_reattach() {
            self.app_closed(now);
        }
    }

    /// A new process of the client has a socket for this connection, at which nothing was said yet; with [`ReattachPolicy::Resume`] the
    /// socket of the one before, with all that is in it.
    ///
    /// # Errors
    /// When none can take it up, or the present one was not [lost](ClientEnd::app_lost).
    pub fn app_reattached(&mut self, _now: Instant) -> Result<(), ProtocolError> {
        let refused = |state| ProtocolError::Unexpected { event: "reattached", state };
        if !self.can_reattach() {
            return Err(refused("no process can take the connection up"));
        }
        if self.session.has_app() {
            return Err(refused("it has its process"));
        }
        let past = self.is_past();
        let (end, ended, fin) = (self.session.sender.end(), self.session.sender.ended(), self.session.receiver.fin_passed());
        let Some(reattachment) = &mut self.reattachment else { return Ok(()) };
        let (told, expected) = match reattachment.settings.policy {
            ReattachPolicy::Resume => {
                reattachment.process = Process::Present;
                (0, 0)
            }
            ReattachPolicy::Replay => {
                let regeneration = (end > 0).then(|| Regeneration::new(0, end, reattachment.said.digest()));
                reattachment.process = Process::Again(Again { at: 0, piece: Bytes::new(), fin: fin || past, ended, regeneration });
                (reattachment.told, end)
            }
        };
        self.lost_since = None;
        self.session.set_app(!past);
        self.session.report(Event::Reattached { told, expected });
        Ok(())
    }

    /// After [`Event::NotReattached`] with [`ReattachPolicy::Resume`]: what the lost process had said is read from its socket, to the end.
    pub fn app_read_on(&mut self) {
        let past = self.is_past();
        if let Some(reattachment) = self.reattachment.as_mut().filter(|_| !past) {
            reattachment.process = Process::Present;
            self.session.set_app(true);
        }
    }

    /// No process will take the connection up any more, lost or not.
    pub fn let_go(&mut self) {
        if let Some(reattachment) = &mut self.reattachment {
            reattachment.give_up();
        }
        self.session.hold(false);
    }

    /// What is read next is not part of the client's stream: it was said before by an earlier process.
    #[must_use]
    pub fn drops_next_read(&self) -> bool {
        self.again().is_some_and(|again| again.regeneration.is_some() || again.ended || self.is_past())
    }

    fn again(&self) -> Option<&Again> {
        match &self.reattachment.as_ref()?.process {
            Process::Again(again) => Some(again),
            Process::Present | Process::Lost => None,
        }
    }

    fn again_mut(&mut self) -> Option<&mut Again> {
        match &mut self.reattachment.as_mut()?.process {
            Process::Again(again) => Some(again),
            Process::Present | Process::Lost => None,
        }
    }

    /// What may be read when it does not depend on the room in the log. Never across the end of what is known.
    pub(super) fn known_capacity(&self) -> Option<usize> {
        if self.is_lost() {
            return Some(0);
        }
        let again = self.again()?;
        if self.session.is_over() && !self.session.is_archived() {
            return Some(0);
        }
        match &again.regeneration {
            Some(regeneration) => Some(usize::try_from(regeneration.missing()).unwrap_or(usize::MAX)),
            // Only its end is to come.
            None => (again.ended || self.is_past()).then_some(1),
        }
    }

    /// Takes off `bytes` what an earlier process had said.
    pub(super) fn said_again(&mut self, mut bytes: Bytes, now: Instant) -> Bytes {
        let over = self.session.is_over() && !self.session.is_archived();
        let past = self.is_past();
        let Some(again) = self.again_mut().filter(|_| !over) else { return bytes };
        let ended = again.ended || past;
        if let Some(regeneration) = &mut again.regeneration {
            let outcome = regeneration.take(&bytes);
            let regenerated = regeneration.length();
            let known = match outcome {
                Regenerated::Partly => return Bytes::new(),
                Regenerated::Same(known) => {
                    again.regeneration = None;
                    self.session.report(Event::SaidAgain { regenerated });
                    known
                }
                Regenerated::Different(known) => {
                    self.diverge(Divergence::Bytes, now);
                    known
                }
            };
            bytes.advance(known);
        }
        if ended && !bytes.is_empty() {
            self.diverge(Divergence::Bytes, now);
            return Bytes::new();
        }
        bytes
    }

    fn diverge(&mut self, divergence: Divergence, now: Instant) {
        let past = self.is_past();
        if let Some(again) = self.again_mut() {
            again.regeneration = None;
        }
        self.session.report(Event::Diverged(divergence));
        if self.reattachment.as_ref().is_some_and(|reattachment| reattachment.settings.on_divergence == OnDivergence::Reset) {
            self.forsake(ResetReason::Diverged, past, now);
        }
    }

    /// The new process cannot be brought to where the connection is: it sees a reset, and so does the server if it still hears.
    fn forsake(&mut self, reason: ResetReason, past: bool, now: Instant) {
        self.let_go();
        if past {
            self.own_reset = Some(reason);
            self.heed_close();
        } else {
            self.session.reset(reason, now);
        }
    }

    /// The process ends its stream, or closes.
    pub(super) fn diverge_if_short(&mut self, now: Instant) {
        let short = self.again().and_then(|again| again.regeneration.as_ref());
        if let Some(how) = short.map(|known| Divergence::Short { said: known.said(), expected: known.length() }) {
            self.diverge(how, now);
        }
    }

    /// The process has closed: none is to be brought anywhere.
    pub(super) fn heed_close(&mut self) {
        self.lost_since = None;
        if let Some(reattachment) = &mut self.reattachment {
            reattachment.closed = true;
            reattachment.process = Process::Present;
            // A process that goes on at the present has no use for a connection that is closed.
            reattachment.kept &= reattachment.replays();
        }
    }

    /// The client was given `bytes` that it had not been given before.
    pub(super) fn told(&mut self, bytes: &[u8]) {
        let kept = self.reattachment.as_mut().map_or(Ok(()), |reattachment| reattachment.client_told(bytes));
        if let Err(lost) = kept {
            self.session.report(Event::TranscriptLost(lost));
            self.session.hold(false);
        }
    }

    /// Whether what was written was told again.
    pub(super) fn retold(&mut self, count: usize) -> bool {
        match &mut self.reattachment {
            Some(reattachment) if reattachment.retells() => {
                reattachment.retold(count);
                true
            }
            _ => false,
        }
    }

    pub(super) fn retold_piece(&self) -> Option<&Bytes> {
        self.again().map(|again| &again.piece).filter(|piece| !piece.is_empty())
    }

    /// What to do to the socket of a process that is being brought to where the connection is.
    pub(super) fn poll_process(&mut self, now: Instant) -> Option<AppAction> {
        if let Some(reason) = self.own_reset.take() {
            return Some(AppAction::Reset(reason));
        }
        if self.session.is_over() && !self.session.is_archived() {
            return None;
        }
        let past = self.is_past();
        let reattachment = self.reattachment.as_mut()?;
        match reattachment.piece() {
            Ok(true) => return Some(AppAction::Write),
            Ok(false) => {}
            Err(error) => {
                self.session.report(Event::TranscriptLost(TranscriptLost::Failed(error.kind())));
                self.forsake(ResetReason::NoReplay, past, now);
                return self.own_reset.take().map(AppAction::Reset);
            }
        }
        let Process::Again(again) = &mut reattachment.process else { return None };
        if std::mem::take(&mut again.fin) {
            return Some(AppAction::ShutdownWrite);
        }
        if again.regeneration.is_none() && !again.ended && !past {
            reattachment.process = Process::Present;
        }
        None
    }

    pub(super) fn not_reattached_at(&self) -> Option<Instant> {
        Some(self.lost_since? + self.reattachment.as_ref()?.settings.within)
    }

    pub(super) fn heed_patience(&mut self, now: Instant) {
        if self.not_reattached_at().is_none_or(|at| now < at) {
            return;
        }
        self.lost_since = None;
        self.let_go();
        if !self.session.is_over() {
            self.session.report(Event::NotReattached);
        }
    }
}
