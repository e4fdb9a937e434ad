//! Where the peer is: the address in use, whether it was shown to receive there, and other addresses where it may be.
//!
//! Invariant: to an address that has not answered a challenge no more than three times is sent what has come from it (RFC 9000 §8.1).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::secret::Secret;

/// Other addresses of a peer that are tried.
pub(super) const MAX_CANDIDATES: usize = 8;
/// Challenges that wait for their answers to be sent.
pub(super) const MAX_RESPONSES: usize = 8;

#[derive(Debug)]
pub(super) struct Path {
    pub(super) remote: SocketAddr,
    validated: bool,
    received: u64,
    sent: u64,
    token: u64,
    pub(super) challenge_at: Option<Instant>,
    /// Where the peer was last known to be.
    previous: Option<SocketAddr>,
    give_up_at: Option<Instant>,
}

impl Path {
    pub(super) fn validated(remote: SocketAddr) -> Self {
        Self { remote, validated: true, received: 0, sent: 0, token: 0, challenge_at: None, previous: None, give_up_at: None }
    }

    pub(super) fn unvalidated(remote: SocketAddr) -> Self {
        Self { validated: false, ..Self::validated(remote) }
    }

    /// The peer has been heard from `remote`.
    pub(super) fn move_to(&mut self, now: Instant, remote: SocketAddr, secret: &mut Secret, patience: Duration) {
        if self.validated {
            self.previous = Some(self.remote);
        }
        if self.previous == Some(remote) {
            *self = Self { received: self.received, ..Self::validated(remote) };
            return;
        }
        self.remote = remote;
        self.validated = false;
        (self.received, self.sent) = (0, 0);
        self.token = secret.number();
        self.challenge_at = Some(now);
        self.give_up_at = Some(now + patience);
    }

    pub(super) fn is_validated(&self) -> bool {
        self.validated
    }

    pub(super) fn heard(&mut self, from: SocketAddr, bytes: usize) {
        if from == self.remote {
            self.received += bytes as u64;
        }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Bytes that may be sent now.
    pub(super) fn allowance(&self) -> usize {
        if self.validated { usize::MAX } else { (3 * self.received).saturating_sub(self.sent) as usize }
    }

    /// The challenge to be sent, if one is due.
    pub(super) fn challenge(&mut self, now: Instant, pause: Duration) -> Option<u64> {
        let due = !self.validated && self.challenge_at.is_some_and(|at| now >= at);
        if due {
            self.challenge_at = Some(now + pause);
        }
        due.then_some(self.token)
    }

    /// True when the response completes the validation.
    pub(super) fn response(&mut self, token: u64) -> bool {
        if self.validated || self.challenge_at.is_none() || token != self.token {
            return false;
        }
        self.confirm();
        true
    }

    pub(super) fn confirm(&mut self) {
        *self = Self::validated(self.remote);
    }

    /// Goes back when nobody has answered at the new address; true then.
    pub(super) fn give_up(&mut self, now: Instant) -> bool {
        if self.validated || self.give_up_at.is_none_or(|at| now < at) {
            return false;
        }
        match self.previous {
            Some(previous) => {
                *self = Self::validated(previous);
                true
            }
            None => {
                self.give_up_at = None;
                false
            }
        }
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        if self.validated {
            return None;
        }
        // Without allowance only the peer's next packet can help.
        let challenge = self.challenge_at.filter(|_| self.allowance() >= 64);
        [challenge, self.give_up_at].into_iter().flatten().min()
    }
}

/// Another address where the peer may be.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) remote: SocketAddr,
    pub(super) token: u64,
    pub(super) next: Instant,
}
