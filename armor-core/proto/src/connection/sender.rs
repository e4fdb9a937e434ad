//! The sending half of one direction: what may be sent now, what must be sent again, how much more may be read.
//!
//! Invariant: nothing is sent beyond the peer's window; what is not acknowledged is never dropped.
//! Invariant: while something is unacknowledged a timer runs, so a lost frame, acknowledgement or window update is
//! repaired without help from outside.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::config::Config;
use super::error::ProtocolError;
use super::record::AckState;
use super::saved::{RestoreError, SavedSender};
use super::send_log::{SendLog, Spill};

/// What goes into one [`Data`](super::Data).
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
    pub(crate) fin: bool,
}

pub(crate) struct Sender {
    pub(crate) log: SendLog,
    /// Written into the peer's application, in this incarnation.
    acked: u64,
    /// The same over all incarnations: what bounds the reading.
    acked_ever: u64,
    /// Received in order by the peer's end; `acked <= confirmed <= log.next()`.
    confirmed: u64,
    /// End of what was sent in this incarnation; `log.next()` may have gone back from it.
    sent: u64,
    /// First offset that the peer does not allow.
    limit: u64,
    /// After a time-out: one frame is sent, up to here, until the peer is heard.
    cautious: Option<u64>,
    /// Oldest offset that must be kept although it is acknowledged: the mark.
    keep_from: Option<u64>,
    ended: bool,
    fin_sent: bool,
    fin_acked: bool,
    /// An empty frame is to be sent, to be answered.
    probe: bool,
    /// A probe was sent and nothing was heard since.
    probing: bool,
    timer: Option<Instant>,
    wait: Duration,
    /// An offset and when it was first sent, to measure the round trip.
    sample: Option<(u64, Instant)>,
    round_trip: Option<Duration>,
    /// Where and when was last gone back to at the peer's wish.
    resent: Option<(u64, Instant)>,
    window: u64,
    log_bound: u64,
    ack_delay: Duration,
    retransmit_first: Duration,
    retransmit_most: Duration,
}

impl Sender {
    pub(crate) fn new(config: &Config) -> Self {
        Sender {
            log: SendLog::new(0),
            acked: 0,
            acked_ever: 0,
            confirmed: 0,
            sent: 0,
            limit: 0,
            cautious: None,
            keep_from: None,
            ended: false,
            fin_sent: false,
            fin_acked: false,
            probe: false,
            probing: false,
            timer: None,
            wait: config.retransmit_first,
            sample: None,
            round_trip: None,
            resent: None,
            window: u64::from(config.window),
            log_bound: (config.log_bound as u64).max(u64::from(config.window)),
            ack_delay: config.ack_delay,
            retransmit_first: config.retransmit_first,
            retransmit_most: config.retransmit_most,
        }
    }

    pub(crate) fn save(&self) -> SavedSender {
        let Sender { acked, acked_ever, ended, fin_acked, .. } = *self;
        SavedSender { log_from: self.log.first(), log_end: self.log.end(), acked, acked_ever, ended, fin_acked }
    }

    /// Sends nothing before [`Sender::resume`].
    pub(crate) fn restore(
        saved: &SavedSender,
        log: Vec<Bytes>,
        spill: Option<Box<dyn Spill + Send>>,
        config: &Config,
    ) -> Result<Sender, RestoreError> {
        let mut sender = Sender::new(config);
        sender.log = SendLog::restore(log, spill, saved.log_from, saved.log_end);
        // What the peer's end held unwritten when the log began is not in it.
        let needed = saved.acked.max(saved.log_from);
        let got = sender.log.first();
        if got > needed || needed > saved.log_end {
            return Err(RestoreError::Log { expected: needed, got });
        }
        // A stream whose end the peer has is sent.
        sender.log.seek(if saved.fin_acked { saved.log_end } else { saved.acked });
        let next = sender.log.next();
        (sender.acked, sender.confirmed, sender.sent, sender.limit) = (saved.acked, next, next, next);
        sender.acked_ever = saved.acked_ever;
        (sender.ended, sender.fin_sent, sender.fin_acked) = (saved.ended, saved.fin_acked, saved.fin_acked);
        sender.keep_from = Some(sender.log.first());
        Ok(sender)
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    pub(crate) fn acked_ever(&self) -> u64 {
        self.acked_ever
    }

    pub(crate) fn end(&self) -> u64 {
        self.log.end()
    }

    /// The application has ended this stream.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn fin_acked(&self) -> bool {
        self.fin_acked
    }

    pub(crate) fn finish(&mut self) {
        self.ended = true;
    }

    /// Keeps everything from `mark` on (and drops what lies before), or with `None` only what is unacknowledged.
    pub(crate) fn keep_from(&mut self, mark: Option<u64>) {
        self.keep_from = mark;
        self.cut();
    }

    fn cut(&mut self) {
        self.log.cut(self.keep_from.map_or(self.acked, |mark| mark.min(self.acked)));
    }

    /// Bytes that may be read from the application now.
    pub(crate) fn capacity(&self) -> usize {
        if self.ended || self.log.memory() as u64 >= self.log_bound + 2 * self.window {
            return 0;
        }
        let end = self.log.end();
        let by_window = self.window.saturating_sub(end.saturating_sub(self.acked_ever));
        let by_log = self.log_bound.saturating_sub(end.saturating_sub(self.acked));
        by_window.min(by_log) as usize
    }

    pub(crate) fn can_send(&self) -> bool {
        self.probe || self.log.next() < self.bound() || self.fin_due()
    }

    fn bound(&self) -> u64 {
        self.cautious.map_or(self.limit, |to| to.min(self.limit)).min(self.log.end())
    }

    fn fin_due(&self) -> bool {
        self.ended && !self.fin_sent && self.log.next() == self.log.end()
    }

    /// The next piece to send.
    ///
    /// # Errors
    /// When the spill cannot be read.
    pub(crate) fn poll(&mut self, max_data: usize, now: Instant) -> io::Result<Option<Segment>> {
        let offset = self.log.next();
        let most = self.bound().saturating_sub(offset).min(max_data as u64) as usize;
        let bytes = self.log.take(most)?;
        let next = self.log.next();
        let fin = self.fin_due();
        if bytes.is_empty() && !fin && !self.probe {
            return Ok(None);
        }
        if bytes.is_empty() && !fin {
            self.probing = true;
        }
        self.probe = false;
        self.fin_sent |= fin;
        if next > self.sent {
            self.sent = next;
            if self.sample.is_none() {
                self.sample = Some((next, now));
            }
        }
        if self.timer.is_none() {
            self.timer = Some(now + self.wait);
        }
        Ok(Some(Segment { offset, bytes, fin }))
    }

    /// There is nothing to send now: sees to it that a timer runs if something is still to come.
    pub(crate) fn rest(&mut self, now: Instant) {
        if self.timer.is_none() && self.outstanding() {
            self.timer = Some(now + self.wait);
        }
    }

    /// Takes an acknowledgement. Old ones change nothing.
    pub(crate) fn handle_ack(&mut self, ack: &AckState, now: Instant) -> Result<(), ProtocolError> {
        let overflow = ProtocolError::Overflow { offset: ack.offset, length: u64::from(ack.held) + u64::from(ack.window) };
        let received = ack.received().ok_or(overflow)?;
        let limit = ack.offset.checked_add(u64::from(ack.window)).ok_or(overflow)?;
        if received > self.sent {
            return Err(ProtocolError::AckBeyondSent { expected: self.sent, got: received });
        }
        // A peer that has seen the end stays told of it, even if it is to be sent again.
        if ack.fin && !(self.ended && ack.offset == self.log.end() && self.sent == ack.offset) {
            return Err(ProtocolError::AckOfUnsentFin);
        }
        self.cautious = None;
        self.probing = false;
        let mut progress = limit > self.limit;
        self.limit = self.limit.max(limit);
        if ack.offset > self.acked {
            self.acked = ack.offset;
            self.acked_ever = self.acked_ever.max(self.acked);
            progress = true;
        }
        if received > self.confirmed {
            self.confirmed = received;
            if self.log.next() < received {
                self.log.seek(received);
            }
            progress = true;
            self.measure(now);
        }
        if ack.fin && !self.fin_acked {
            self.fin_acked = true;
            self.fin_sent = true;
            progress = true;
        }
        if self.keep_from.is_none_or(|mark| mark > self.log.first()) {
            self.cut();
        }
        if ack.resend && received == self.confirmed && received < self.log.next() {
            self.resend(now);
        }
        if progress {
            self.wait = self.first_wait();
        }
        if !self.outstanding() {
            self.timer = None;
        } else if progress || self.timer.is_none() {
            self.timer = Some(now + self.wait);
        }
        Ok(())
    }

    fn resend(&mut self, now: Instant) {
        let patience = self.round_trip.unwrap_or(self.ack_delay).max(self.ack_delay);
        if self.resent.is_some_and(|(at, when)| at == self.confirmed && now < when + patience) {
            return;
        }
        self.resent = Some((self.confirmed, now));
        self.go_back();
    }

    /// Sends again from what the peer is known to have.
    fn go_back(&mut self) {
        self.log.seek(self.confirmed);
        self.fin_sent = self.fin_acked;
        // A sample of bytes that were sent twice would measure the wrong one.
        self.sample = None;
    }

    fn measure(&mut self, now: Instant) {
        let Some((offset, when)) = self.sample else { return };
        if self.confirmed < offset {
            return;
        }
        self.sample = None;
        let measured = now.saturating_duration_since(when);
        self.round_trip = Some(self.round_trip.map_or(measured, |smooth| (smooth * 7 + measured) / 8));
    }

    fn first_wait(&self) -> Duration {
        let by_trip = self.round_trip.map_or(Duration::ZERO, |trip| trip * 2);
        by_trip.max(self.retransmit_first).min(self.retransmit_most)
    }

    /// Something was sent, or waits to be, that the peer has to answer.
    fn outstanding(&self) -> bool {
        self.acked < self.log.end() || self.acked < self.sent || self.probing || (self.fin_sent && !self.fin_acked)
    }

    pub(crate) fn timeout(&self) -> Option<Instant> {
        self.timer
    }

    pub(crate) fn handle_timeout(&mut self, max_data: usize, now: Instant) {
        if self.timer.is_none_or(|at| now < at) {
            return;
        }
        if !self.outstanding() {
            self.timer = None;
            return;
        }
        self.wait = (self.wait * 2).min(self.retransmit_most);
        self.timer = Some(now + self.wait);
        if self.confirmed < self.sent {
            self.go_back();
            self.cautious = Some(self.confirmed.saturating_add(max_data as u64));
        } else if self.fin_sent && !self.fin_acked {
            self.fin_sent = false;
        } else {
            self.probe = true;
        }
    }

    /// Asks for any answer.
    pub(crate) fn send_probe(&mut self) {
        self.probe = true;
    }

    /// What was on its way to the peer may be lost: the peer is asked what it has.
    pub(crate) fn path_changed(&mut self) {
        self.resent = None;
        if self.outstanding() {
            // Said again with the next frame, if the peer has not acknowledged it.
            self.fin_sent = self.fin_acked;
            self.wait = self.first_wait();
            self.probe = true;
        }
    }

    /// The peer was heard.
    pub(crate) fn heard(&mut self) {
        self.probing = false;
    }

    /// Goes back to `offset`, and to `prologue` before it, for a new incarnation; nothing may be sent before [`Sender::resume`].
    pub(crate) fn rewind(&mut self, offset: u64, prologue: Bytes) {
        self.log.rewind(offset, prologue);
        let at = self.log.next();
        self.acked = at;
        self.confirmed = at;
        self.sent = at;
        self.limit = at;
        self.fin_acked = false;
        self.forget_timing();
    }

    /// Starts a new incarnation at what the peer says it has.
    pub(crate) fn resume(&mut self, ack: &AckState) -> Result<(), ProtocolError> {
        let (first, end) = (self.log.start(), self.log.end());
        let wrong = |what, got| ProtocolError::Offset { what, expected_from: first, expected_to: end, got };
        let received = ack.received().ok_or_else(|| wrong("received offset", u64::MAX))?;
        if received < first || received > end {
            return Err(wrong("received offset", received));
        }
        let limit = ack.offset.checked_add(u64::from(ack.window)).ok_or_else(|| wrong("window", u64::MAX))?;
        self.log.seek(received);
        self.acked = ack.offset;
        self.acked_ever = self.acked_ever.max(ack.offset);
        self.confirmed = received;
        self.sent = received;
        self.limit = limit.max(received);
        self.fin_acked = false;
        self.cut();
        self.forget_timing();
        Ok(())
    }

    /// Drops everything and starts a new incarnation at `ack`, with nothing to send yet.
    pub(crate) fn restart(&mut self, ack: &AckState) {
        let received = ack.received().unwrap_or(ack.offset);
        self.log.restart(received);
        self.acked = ack.offset;
        self.acked_ever = ack.offset;
        self.confirmed = received;
        self.sent = received;
        self.limit = ack.offset.saturating_add(u64::from(ack.window)).max(received);
        self.ended = false;
        self.fin_acked = false;
        self.forget_timing();
    }

    /// The stream has ended and the peer has it all.
    pub(crate) fn mark_done(&mut self) {
        self.ended = true;
        self.fin_sent = true;
        self.fin_acked = true;
    }

    fn forget_timing(&mut self) {
        self.fin_sent = self.fin_acked;
        self.cautious = None;
        self.probe = false;
        self.probing = false;
        self.timer = None;
        self.wait = self.first_wait();
        self.sample = None;
        self.resent = None;
    }

    /// Frees the log; nothing is sent any more.
    pub(crate) fn abandon(&mut self) {
        let end = self.log.end();
        self.log.restart(end);
        self.ended = true;
        self.mark_done();
        self.forget_timing();
    }
}
