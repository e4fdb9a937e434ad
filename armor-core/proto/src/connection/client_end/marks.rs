//! Where the mark of a client's end is: what the policy is shown, what it says, and the log and the hash that follow it.

use std::time::Instant;

use super::ClientEnd;
use crate::connection::event::Event;
use crate::connection::mark::Conversation;
use crate::connection::record::Mark;

impl ClientEnd {
    /// The client is being given `bytes`.
    pub(super) fn look_at_answer(&mut self, bytes: &[u8], now: Instant) {
        if self.hash.is_none() {
            return;
        }
        let offset = self.session.receiver.written();
        let conversation = self.conversation(now);
        let mark = self.policy.server_answered(&conversation, bytes);
        if let Some(mark) = mark {
            self.set_mark(mark, 0, bytes.len() as u64);
        }
        self.heed_giving_up();
        // Bytes before a mark that lies inside are not part of what a new process says.
        let from = self.mark.s2c.saturating_sub(offset).min(bytes.len() as u64) as usize;
        if let Some(hash) = &mut self.hash
            && self.replayable
        {
            hash.update(&bytes[from..]);
        }
    }

    pub(super) fn conversation(&self, now: Instant) -> Conversation {
        Conversation {
            mark: self.mark,
            c2s_end: self.session.sender.end(),
            c2s_acked: self.session.sender.acked(),
            c2s_answered: self.answered_c2s,
            s2c_received: self.session.receiver.written(),
            s2c_waiting: self.session.receiver.waiting() as u64,
            recovering: self.connecting.is_some() || self.recovered_at.is_some(),
            now,
        }
    }

    /// Takes a policy's mark if it can be; `spoken` and `answered` are the lengths of what the policy is looking at.
    pub(super) fn set_mark(&mut self, mark: Mark, spoken: u64, answered: u64) {
        if self.connecting.is_some() && self.established {
            // The request that is under way names the mark that holds.
            return;
        }
        let end = self.session.sender.end() + spoken;
        let given = self.session.receiver.written();
        if !self.replayable && mark.c2s < self.session.sender.log.first() {
            // What it would need has left the log: the next one may do.
            return;
        }
        let prologue = self.policy.prologue();
        let oldest = self.mark.c2s.max(prologue.said.len() as u64);
        let c2s_fits = (oldest..=end).contains(&mark.c2s) && mark.s2c >= prologue.answered.len() as u64;
        let unmoved = self.replayable && mark.s2c == self.mark.s2c && prologue == self.prologue;
        let s2c_fits = (given..=given + answered).contains(&mark.s2c) || unmoved;
        if !c2s_fits || !s2c_fits {
            if !self.mark_refused {
                self.mark_refused = true;
                self.session.report(Event::MarkRefused(mark));
            }
            return;
        }
        self.move_mark(mark);
    }

    pub(super) fn move_mark(&mut self, mark: Mark) {
        let prologue = self.policy.prologue();
        if let Some(hash) = &mut self.hash
            && (self.mark.s2c != mark.s2c || !self.replayable)
        {
            hash.restart();
            hash.update(&prologue.answered);
        }
        self.mark = mark;
        self.prologue = prologue;
        self.session.sender.keep_from(Some(mark.c2s));
        if !self.replayable {
            self.replayable = true;
            self.session.report(Event::ReplayRegained);
        }
    }

    /// Drops the log for good when no process can take up the conversation any more.
    pub(super) fn heed_giving_up(&mut self) {
        if self.replayable && self.policy.gave_up() {
            self.session.sender.keep_from(None);
            self.replayable = false;
            self.session.report(Event::ReplayGivenUp);
        }
    }

    /// Keeps the log within its bound: by the spill, or by giving up replay.
    pub(super) fn bound_log(&mut self) {
        let bound = self.session.config.log_bound;
        let sender = &mut self.session.sender;
        if !self.replayable || sender.log.memory() <= bound {
            return;
        }
        let failed = if sender.log.has_spill() {
            match sender.log.spill_over(bound) {
                Ok(()) => return,
                Err(error) => Some(error.kind()),
            }
        } else {
            None
        };
        let bytes = sender.end() - self.mark.c2s;
        sender.keep_from(None);
        self.replayable = false;
        if let Some(kind) = failed {
            self.session.report(Event::SpillFailed(kind));
        }
        self.session.report(Event::LogOverflow { bytes });
    }
}
