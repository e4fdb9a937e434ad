//! The receiving half of one direction: bytes in order for the application's socket, and the acknowledgements for them.
//!
//! Invariant: every byte is queued once and in order; a gap is dropped and asked for again, an old byte is dropped.
//! Invariant: what is queued but not yet written never exceeds the window.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use super::config::Config;
use super::error::ProtocolError;
use super::record::AckState;
use super::saved::SavedReceiver;

pub(crate) struct Receiver {
    queue: VecDeque<Bytes>,
    /// Next offset expected from the peer; `received - written` bytes are in the queue.
    received: u64,
    written: u64,
    fin: Option<u64>,
    fin_passed: bool,
    /// The application has closed: bytes count as written at once.
    swallow: bool,
    swallowed: u64,
    window: u32,
    /// Most pieces in the queue, so that a flood of tiny ones is bounded too.
    pieces: usize,
    ack_delay: Duration,
    /// An acknowledgement is due then.
    ack_at: Option<Instant>,
    /// An acknowledgement is due now.
    ack_now: bool,
    /// `written` as the peer was told last.
    told: u64,
    /// The next acknowledgement asks for a resend.
    resend: bool,
    /// From where a resend was asked for, and when.
    asked: Option<(u64, Instant)>,
}

impl Receiver {
    pub(crate) fn new(config: &Config) -> Self {
        Receiver {
            queue: VecDeque::new(),
            received: 0,
            written: 0,
            fin: None,
            fin_passed: false,
            swallow: false,
            swallowed: 0,
            window: config.window,
            pieces: config.window as usize / 16 + 1024,
            ack_delay: config.ack_delay,
            ack_at: None,
            ack_now: false,
            told: 0,
            resend: false,
            asked: None,
        }
    }

    pub(crate) fn save(&self) -> SavedReceiver {
        let Receiver { written, fin_passed, swallow, swallowed, .. } = *self;
        SavedReceiver { written, fin_passed, swallow, swallowed }
    }

    /// What was received but not written is lost, and comes again.
    pub(crate) fn restore(saved: &SavedReceiver, config: &Config) -> Receiver {
        let SavedReceiver { written, fin_passed, swallow, swallowed } = *saved;
        let fin = fin_passed.then_some(written);
        Receiver { received: written, written, told: written, fin, fin_passed, swallow, swallowed, ..Receiver::new(config) }
    }

    /// So many bytes were written that never waited here: by the call during which the process died.
    pub(crate) fn given(&mut self, count: u64) {
        self.received += count;
        self.written += count;
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn window(&self) -> u32 {
        self.window
    }

    /// The end of the stream has been received, with everything before it.
    pub(crate) fn fin_received(&self) -> bool {
        self.fin == Some(self.received)
    }

    pub(crate) fn fin_passed(&self) -> bool {
        self.fin_passed
    }

    /// Bytes that the application did not take before it closed, or that came later.
    pub(crate) fn swallowed(&self) -> u64 {
        self.swallowed
    }

    /// Looks at a piece, cuts off what is already here, and says whether something new is left in it, which then has
    /// to be given to [`Receiver::enqueue`].
    pub(crate) fn admit(&mut self, offset: u64, payload: &mut Bytes, fin: bool, now: Instant) -> Result<bool, ProtocolError> {
        let length = payload.len() as u64;
        let end = offset.checked_add(length).ok_or(ProtocolError::Overflow { offset, length })?;
        let allowed = self.written.saturating_add(u64::from(self.window));
        if end > allowed {
            return Err(ProtocolError::Window { expected: allowed, got: end });
        }
        match self.fin {
            Some(at) if end > at || (fin && end != at) => {
                return Err(ProtocolError::Fin { expected: at, got: end });
            }
            None if fin && end < self.received => {
                return Err(ProtocolError::Fin { expected: self.received, got: end });
            }
            _ => {}
        }
        if offset > self.received {
            self.ask_again(now);
            return Ok(false);
        }
        if self.queue.len() >= self.pieces {
            // Too many tiny pieces: the peer's timer brings it again.
            return Ok(false);
        }
        if fin && self.fin.is_none() {
            self.fin = Some(end);
            self.owe_ack(now);
        } else if end <= self.received {
            // A probe, or old: the peer has missed what it was told.
            self.ack_now = true;
        }
        if end <= self.received {
            return Ok(false);
        }
        payload.advance((self.received - offset) as usize);
        Ok(true)
    }

    fn ask_again(&mut self, now: Instant) {
        if self.asked.is_some_and(|(at, when)| at == self.received && now < when + self.ack_delay * 2) {
            return;
        }
        self.asked = Some((self.received, now));
        self.resend = true;
        self.ack_now = true;
    }

    /// What was asked for on a way that is lost may be asked for again at once.
    pub(crate) fn path_changed(&mut self) {
        self.asked = None;
    }

    /// Takes what [`Receiver::admit`] has left of a piece.
    pub(crate) fn enqueue(&mut self, payload: Bytes, now: Instant) {
        let length = payload.len() as u64;
        self.received += length;
        self.owe_ack(now);
        if self.swallow {
            self.swallowed += length;
            self.advance_written(length);
        } else {
            self.queue.push_back(payload);
        }
    }

    fn owe_ack(&mut self, now: Instant) {
        if self.ack_at.is_none() {
            self.ack_at = Some(now + self.ack_delay);
        }
    }

    fn advance_written(&mut self, length: u64) {
        self.written += length;
        if self.written - self.told >= u64::from(self.window / 4).max(1) {
            self.ack_now = true;
        }
    }

    /// Bytes that wait for the application's socket.
    pub(crate) fn waiting(&self) -> usize {
        (self.received - self.written) as usize
    }

    /// Fills `slices` with what waits and returns how many were filled.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    /// The first bytes that wait, at most `most` of them and without a copy; empty when none do.
    pub(crate) fn front(&self, most: usize) -> Bytes {
        self.queue.front().map_or_else(Bytes::new, |piece| piece.slice(..piece.len().min(most)))
    }

    /// Forgets what waits: it comes again, or something else does.
    pub(crate) fn roll_back(&mut self) {
        self.queue.clear();
        self.received = self.written;
        if !self.fin_passed {
            self.fin = None;
        }
    }

    /// `count` bytes of what waits were written; more than what waits counts as all of it.
    pub(crate) fn wrote(&mut self, count: usize, now: Instant) {
        let mut left = count.min(self.waiting());
        if left == 0 {
            return;
        }
        self.owe_ack(now);
        self.advance_written(left as u64);
        while left > 0 {
            let Some(piece) = self.queue.front_mut() else { break };
            if piece.len() > left {
                piece.advance(left);
                break;
            }
            left -= piece.len();
            self.queue.pop_front();
        }
    }

    /// Says once, when everything has been written, that the stream has ended.
    pub(crate) fn pass_fin(&mut self) -> bool {
        if self.fin_passed || self.fin != Some(self.written) {
            return false;
        }
        self.fin_passed = true;
        self.ack_now = true;
        true
    }

    /// The application has closed: what waits and what comes is dropped and counts as written.
    pub(crate) fn swallow(&mut self, now: Instant) {
        if self.swallow {
            return;
        }
        self.swallow = true;
        self.queue.clear();
        self.swallowed += self.received - self.written;
        self.owe_ack(now);
        self.advance_written(self.received - self.written);
    }

    pub(crate) fn swallows(&self) -> bool {
        self.swallow
    }

    pub(crate) fn ack_due(&self) -> bool {
        self.ack_now
    }

    pub(crate) fn timeout(&self) -> Option<Instant> {
        self.ack_at
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_now = true;
        }
    }

    /// An acknowledgement shall be sent at once.
    pub(crate) fn ack_soon(&mut self) {
        self.ack_now = true;
    }

    /// What to tell the peer. It counts as told.
    pub(crate) fn tell(&mut self, complete: bool) -> AckState {
        self.ack_now = false;
        self.ack_at = None;
        self.told = self.written;
        let resend = std::mem::take(&mut self.resend);
        AckState {
            offset: self.written,
            held: (self.received - self.written) as u32,
            window: self.window,
            fin: self.fin_passed,
            resend,
            complete,
        }
    }

    /// A new process takes the stream from the present: what waits is for it, and so is the end.
    pub(crate) fn renew(&mut self) {
        self.fin_passed = false;
        self.renew_acks();
    }

    /// A new process takes the stream from `offset`.
    pub(crate) fn restart(&mut self, offset: u64) {
        self.queue.clear();
        self.received = offset;
        self.written = offset;
        self.fin = None;
        self.swallow = false;
        self.swallowed = 0;
        self.renew();
    }

    /// The same process goes on in a new incarnation.
    pub(crate) fn renew_acks(&mut self) {
        self.ack_at = None;
        self.ack_now = false;
        self.told = self.written;
        self.resend = false;
        self.asked = None;
    }

    /// Frees the queue; nothing is received any more.
    pub(crate) fn abandon(&mut self) {
        self.queue = VecDeque::new();
        self.written = self.received;
        self.renew_acks();
    }
}
