//! Stateless cookies: who is to do work or keep something for an address sends it one first, and goes on only with whoever brings it back.
//!
//! They prove that the peer receives at its address (RFC 9000, §8.1; in TCP the handshake of the kernels does it). Nothing is kept for them.

use std::time::{Duration, Instant};

use ring::hmac;

use super::handshake::equal;

/// Bytes of a cookie.
pub const COOKIE: usize = 16;
/// A cookie is good for this long at least, and for twice as long at most.
const PERIOD: Duration = Duration::from_secs(60);

/// Makes cookies and knows them again.
pub struct Cookies {
    key: hmac::Key,
    start: Instant,
}

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookies")
    }
}

impl Cookies {
    /// With a secret of 32 random bytes, which need not outlive the process.
    #[must_use]
    pub fn new(secret: &[u8; 32], now: Instant) -> Cookies {
        Cookies { key: hmac::Key::new(hmac::HMAC_SHA256, secret), start: now }
    }

    /// The cookie for `peer`, its address in any form that is always the same.
    #[must_use]
    pub fn make(&self, peer: &[u8], now: Instant) -> [u8; COOKIE] {
        self.of(self.period(now), peer)
    }

    /// Whether it is one that was made for `peer` not long ago.
    #[must_use]
    pub fn is_good(&self, cookie: &[u8], peer: &[u8], now: Instant) -> bool {
        let period = self.period(now);
        let before = period.checked_sub(1);
        std::iter::once(period).chain(before).any(|period| equal(cookie, &self.of(period, peer)))
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / PERIOD.as_secs()
    }

    fn of(&self, period: u64, peer: &[u8]) -> [u8; COOKIE] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&period.to_be_bytes());
        context.update(peer);
        let mut cookie = [0; COOKIE];
        cookie.copy_from_slice(&context.sign().as_ref()[..COOKIE]);
        cookie
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_good_for_its_peer_for_a_while_and_nobody_elses() {
        let start = Instant::now();
        let cookies = Cookies::new(&[7; 32], start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let cookie = cookies.make(b"192.0.2.1:5", at(59));
        assert!(cookies.is_good(&cookie, b"192.0.2.1:5", at(59)));
        assert!(cookies.is_good(&cookie, b"192.0.2.1:5", at(119)));
        assert!(!cookies.is_good(&cookie, b"192.0.2.1:5", at(120)), "it is too old");
        assert!(!cookies.is_good(&cookie, b"192.0.2.1:6", at(59)), "of another address");
        assert!(!cookies.is_good(&cookie[..15], b"192.0.2.1:5", at(59)));
        assert!(!cookies.is_good(b"", b"192.0.2.1:5", at(59)));
        assert!(!Cookies::new(&[8; 32], start).is_good(&cookie, b"192.0.2.1:5", at(59)), "of another life");
    }
}
