//! What R-UDP asks of cryptography: a handshake whose messages it carries, and the protection of packets that comes of it.
//!
//! [`Plain`] is neither: it finds damage, not malice, and serves networks that say `insecure`.

use thiserror::Error;

/// Longest message of a handshake, in bytes; each goes in one datagram that passes every path.
pub const MAX_HANDSHAKE_MESSAGE: usize = 1100;

/// A handshake failed: the peer is a stranger, or its message is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason}; the link is not made, see to the keys of both nodes")]
pub struct HandshakeError {
    /// What was wrong.
    pub reason: String,
}

/// A packet is not what the peer has sealed: damaged, altered, or somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a packet does not open; it is dropped and sent again by the peer")]
pub struct OpenError;

/// One side of a handshake. The initiator writes the first message, then the two take turns; who has finished may have one more message
/// to write. Both sides hold the same number of messages in their hands, at most four.
pub trait Handshake: Send {
    /// Writes the next message behind what `out` holds, [`MAX_HANDSHAKE_MESSAGE`] bytes at most.
    ///
    /// # Errors
    /// When it cannot be made.
    fn write(&mut self, out: &mut Vec<u8>) -> Result<(), HandshakeError>;

    /// Reads the peer's next message. After an error this handshake must still be usable: anybody can send such a message, so the genuine one may follow.
    ///
    /// # Errors
    /// When the message is none, or its sender is not trusted.
    fn read(&mut self, message: &[u8]) -> Result<(), HandshakeError>;

    /// True when no more message is to be read, nor written.
    fn is_finished(&self) -> bool;

    /// What came of it. Called once, when it [is finished](Handshake::is_finished).
    ///
    /// # Errors
    /// When it is not finished.
    fn finish(self: Box<Self>) -> Result<Session, HandshakeError>;
}

/// How an endpoint answers those who begin a handshake.
pub trait Acceptor: Send {
    /// The responder's side of a new handshake.
    fn accept(&mut self) -> Box<dyn Handshake>;
}

/// What a handshake has made.
pub struct Session {
    /// Seals what is sent and opens what arrives.
    pub protection: Box<dyn Protection>,
    /// Who the peer is, as the handshake knows it: its public key, say. At most 64 bytes are of use.
    pub peer: Vec<u8>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Protection of packets. A packet number is used once by each side for the whole life of a link; packets arrive in any order.
pub trait Protection: Send {
    /// Bytes that sealing adds.
    fn overhead(&self) -> usize;

    /// Seals in place: `packet` is the plaintext and, behind it, [`overhead`](Protection::overhead) bytes of room. `header` is authenticated too.
    /// Should it ever fail, what is left must tell nothing and not open: the packet is then as if lost.
    fn seal(&mut self, number: u64, header: &[u8], packet: &mut [u8]);

    /// Opens in place and says how long the plaintext at the start of `packet` is. Replays are R-UDP's affair, not this one's.
    ///
    /// # Errors
    /// When it is not what the peer has sealed.
    fn open(&mut self, number: u64, header: &[u8], packet: &mut [u8]) -> Result<usize, OpenError>;

    /// Goes on to another key, if it has keys to renew. Called every [`Config::renew_keys`](super::Config::renew_keys) when the peer has been heard since.
    fn renew(&mut self) {}
}

/// No secrecy and no authentication: a CRC32C over packet number, header and content, against damage on the way.
#[derive(Debug, Clone)]
pub struct Plain {
    ours: Vec<u8>,
    theirs: Option<Vec<u8>>,
    initiator: bool,
    written: bool,
}

const PLAIN_MAGIC: &[u8] = b"ARMOR plain 1";

impl Plain {
    /// The side that begins. `name` is what the peer is told (and may believe or not), at most 64 bytes.
    #[must_use]
    pub fn initiator(name: &[u8]) -> Self {
        Self { ours: name.to_vec(), theirs: None, initiator: true, written: false }
    }

    /// The side that answers.
    #[must_use]
    pub fn responder(name: &[u8]) -> Self {
        Self { initiator: false, ..Self::initiator(name) }
    }
}

impl Handshake for Plain {
    fn write(&mut self, out: &mut Vec<u8>) -> Result<(), HandshakeError> {
        let start = out.len();
        out.extend_from_slice(PLAIN_MAGIC);
        out.extend_from_slice(&self.ours[..self.ours.len().min(64)]);
        let sum = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&sum.to_be_bytes());
        self.written = true;
        Ok(())
    }

    fn read(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        let error = |reason: &str| HandshakeError { reason: reason.to_string() };
        let (rest, sum) = message.split_last_chunk::<4>().ok_or_else(|| error("the peer's first message is cut off"))?;
        if crc32c::crc32c(rest).to_be_bytes() != *sum {
            return Err(error("the peer's first message is damaged"));
        }
        let name = rest
            .strip_prefix(PLAIN_MAGIC)
            .ok_or_else(|| error("the peer does not speak the plain protocol: one of the two nodes has keys and the other is insecure"))?;
        if name.len() > 64 {
            return Err(error("the peer's name is longer than 64 bytes"));
        }
        self.theirs = Some(name.to_vec());
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.theirs.is_some() && self.written
    }

    fn finish(self: Box<Self>) -> Result<Session, HandshakeError> {
        let peer = self.theirs.ok_or_else(|| HandshakeError { reason: "the peer has not answered".to_string() })?;
        Ok(Session { protection: Box::new(Checked { initiator: self.initiator }), peer })
    }
}

impl Acceptor for Plain {
    fn accept(&mut self) -> Box<dyn Handshake> {
        Box::new(Plain::responder(&self.ours))
    }
}

struct Checked {
    initiator: bool,
}

fn sum(from_initiator: bool, number: u64, header: &[u8], content: &[u8]) -> [u8; 4] {
    let seed = crc32c::crc32c(&(number << 1 | u64::from(from_initiator)).to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(seed, header), content).to_be_bytes()
}

impl Protection for Checked {
    fn overhead(&self) -> usize {
        4
    }

    fn seal(&mut self, number: u64, header: &[u8], packet: &mut [u8]) {
        if let Some((content, room)) = packet.split_last_chunk_mut::<4>() {
            *room = sum(self.initiator, number, header, content);
        }
    }

    fn open(&mut self, number: u64, header: &[u8], packet: &mut [u8]) -> Result<usize, OpenError> {
        let (content, found) = packet.split_last_chunk::<4>().ok_or(OpenError)?;
        if sum(!self.initiator, number, header, content) == *found { Ok(content.len()) } else { Err(OpenError) }
    }
}
