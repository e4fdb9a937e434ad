//! A handshake under way: its messages, numbered from 0 and sent again until they are answered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::config::Config;
use super::path::Path;
use super::protection::{Handshake, HandshakeError, MAX_HANDSHAKE_MESSAGE, Session};
use super::wire;

pub(super) struct Handshaking {
    state: Option<Box<dyn Handshake>>,
    pub(super) initiator: bool,
    /// 0 as long as it is unknown.
    pub(super) remote_id: u32,
    pub(super) path: Path,
    cookie: Vec<u8>,
    /// The peer's message that is due.
    expected: u8,
    written: Option<(u8, Vec<u8>)>,
    send: bool,
    resend_at: Option<Instant>,
    pause: Duration,
    pub(super) ends_at: Instant,
    pub(super) failure: Option<HandshakeError>,
}

/// Most messages of a handshake.
const MAX_STEPS: u8 = 4;

impl Handshaking {
    pub(super) fn initiate(
        now: Instant,
        config: &Config,
        remote: SocketAddr,
        mut state: Box<dyn Handshake>,
    ) -> Result<Self, HandshakeError> {
        let first = write(state.as_mut())?;
        Ok(Self {
            state: Some(state),
            initiator: true,
            remote_id: 0,
            path: Path::validated(remote),
            cookie: Vec::new(),
            expected: 1,
            written: Some((0, first)),
            send: true,
            resend_at: None,
            pause: config.handshake_resend,
            ends_at: now + config.handshake_timeout,
            failure: None,
        })
    }

    pub(super) fn respond(now: Instant, config: &Config, remote: SocketAddr, remote_id: u32, state: Box<dyn Handshake>) -> Self {
        Self {
            state: Some(state),
            initiator: false,
            remote_id,
            path: Path::unvalidated(remote),
            cookie: Vec::new(),
            expected: 0,
            written: None,
            send: false,
            resend_at: None,
            pause: config.handshake_resend,
            ends_at: now + config.handshake_timeout,
            failure: None,
        }
    }

    /// Takes the peer's message in. When the handshake is finished, gives what came of it.
    pub(super) fn read(&mut self, step: u8, message: &[u8]) -> Result<Option<Session>, HandshakeError> {
        if step != self.expected || self.state.is_none() {
            // The peer has not heard our answer to this one.
            if self.written.as_ref().is_some_and(|(written, _)| *written == step.wrapping_add(1)) {
                self.send = true;
            }
            return Ok(None);
        }
        let Some(state) = self.state.as_mut() else { return Ok(None) };
        state.read(message)?;
        self.expected += 2;
        self.written = None;
        self.resend_at = None;
        if !state.is_finished() {
            if step + 1 >= MAX_STEPS {
                return Err(HandshakeError { reason: "the handshake has no end".to_string() });
            }
            self.written = Some((step + 1, write(state.as_mut())?));
            self.send = true;
        }
        if state.is_finished()
            && let Some(state) = self.state.take()
        {
            return state.finish().map(Some);
        }
        Ok(None)
    }

    /// The peer demands a cookie.
    pub(super) fn retry(&mut self, cookie: &[u8]) {
        if self.initiator && self.expected == 1 && self.cookie.is_empty() {
            self.cookie = cookie.to_vec();
            self.send = true;
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, config: &Config) {
        if self.resend_at.is_some_and(|at| now >= at) {
            self.send = true;
            self.pause = (self.pause * 2).min(config.probe_cap);
        }
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.resend_at.map_or(self.ends_at, |at| at.min(self.ends_at))
    }

    /// Writes the message that is due; the responder only answers, within what it may send.
    pub(super) fn poll_transmit(&mut self, now: Instant, local_id: u32, out: &mut Vec<u8>) -> Option<SocketAddr> {
        if !std::mem::take(&mut self.send) {
            return None;
        }
        let (step, message) = self.written.as_ref()?;
        let size = 15 + self.cookie.len() + message.len();
        if self.path.allowance() < size {
            return None;
        }
        out.push(wire::HANDSHAKE);
        out.extend_from_slice(&self.remote_id.to_be_bytes());
        out.extend_from_slice(&local_id.to_be_bytes());
        out.push(*step);
        out.push(self.cookie.len() as u8);
        out.extend_from_slice(&self.cookie);
        out.extend_from_slice(message);
        // Against damage; what somebody alters costs the handshake in any case.
        let sum = crc32c::crc32c(out);
        out.extend_from_slice(&sum.to_be_bytes());
        self.path.sent(size);
        if self.initiator {
            self.resend_at = Some(now + self.pause);
        }
        Some(self.path.remote)
    }
}

fn write(state: &mut dyn Handshake) -> Result<Vec<u8>, HandshakeError> {
    let mut message = Vec::new();
    state.write(&mut message)?;
    if message.len() > MAX_HANDSHAKE_MESSAGE {
        return Err(HandshakeError {
            reason: format!("a message of the handshake has {} bytes, more than {MAX_HANDSHAKE_MESSAGE}", message.len()),
        });
    }
    Ok(message)
}
