//! The handshake: `Noise_IK_25519_AESGCM_SHA256` (noiseprotocol.org, §7.5), two messages.
//!
//! IK and not XX, because a daemon knows whom it dials and has that node's key: one round trip, nothing is said to a stranger, and the answering side
//! keeps nothing of an attempt that it refuses. The names of both are in the encrypted payloads and have to be those that the keys have in the list.
//!
//! Before the first message stands its HMAC under the answering side's public key. Who does not know that key costs one HMAC, not two
//! multiplications of points; it proves nothing else.

use ring::hmac;
use snow::{Builder, HandshakeState};

use super::cipher::Key;
use super::keys::{KeyPair, PublicKey};
use super::packet::{PacketOpener, PacketSealer};
use super::record::{RecordOpener, RecordSealer};
use super::trusted::Trusted;

const PATTERN: &str = "Noise_IK_25519_AESGCM_SHA256";
/// Longest handshake message, either one.
pub const MAX_HANDSHAKE: usize = 256;
/// HMAC before the first message.
const MAC: usize = 16;
/// First message without a name: HMAC, ephemeral key, static key and its tag, tag of the name.
const SHORTEST: usize = MAC + 32 + 32 + 16 + 16;
const MAX_NAME: usize = 64;

/// Who this node is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Name of its daemon (or FTM), under which others have its key.
    pub name: String,
    /// Its keys.
    pub keys: KeyPair,
}

/// What the handshake is for; one for the other fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A stream of records.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    fn prologue(self) -> &'static [u8] {
        match self {
            Transport::Tcp => b"armor 1 tcp",
            Transport::Udp => b"armor 1 udp",
        }
    }
}

/// Why a handshake ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A node without a key cannot be dialled.
    #[error("no key of {name} is in the list of trusted nodes; add it with `armor trust {name} KEY`")]
    NotListed {
        /// Whom.
        name: String,
    },
    /// Too short or too long.
    #[error("a handshake message of {got} bytes")]
    Length {
        /// So many.
        got: usize,
    },
    /// The HMAC of a first message does not fit.
    #[error("it is meant for another key: a stranger, or a node that has an old key of this one in its list")]
    NotForUs,
    /// It does not decrypt: altered, replayed, or made with another key.
    #[error("the handshake does not verify: it was altered on the way, or the peer does not have the key that the list has for it")]
    Altered,
    /// A key that is not in the list.
    #[error("its key {key} is not in the list of trusted nodes; if it belongs to the network, `armor trust NAME {key}`")]
    UnknownKey {
        /// The key.
        key: PublicKey,
    },
    /// The key has another name in the list.
    #[error("it says to be {said:?}, and its key is {listed:?}'s")]
    WrongName {
        /// What it says.
        said: String,
        /// What the list says.
        listed: String,
    },
    /// The own key.
    #[error("it has this node's own key; each node has a key of its own: make one with `armor keygen`")]
    OwnKey,
    /// The library refuses.
    #[error("the handshake cannot be done: {0}")]
    Library(String),
}

fn library(error: &snow::Error) -> HandshakeError {
    HandshakeError::Library(error.to_string())
}

/// What both sides have when the handshake is done.
pub struct Established {
    /// Name of the peer, which its key vouches for.
    pub peer: String,
    /// The peer's key.
    pub key: PublicKey,
    send: Key,
    receive: Key,
}

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Established({} {})", self.peer, self.key)
    }
}

impl Established {
    fn new(state: &mut HandshakeState, peer: &str, key: PublicKey) -> Result<Established, HandshakeError> {
        let (to_answering, to_dialling) = state.dangerously_get_raw_split();
        let (send, receive) = if state.is_initiator() { (to_answering, to_dialling) } else { (to_dialling, to_answering) };
        let key_of = |secret: &[u8; 32]| Key::new(secret).ok_or_else(|| HandshakeError::Library("no AES-256-GCM".to_owned()));
        Ok(Established { peer: peer.to_owned(), key, send: key_of(&send)?, receive: key_of(&receive)? })
    }

    /// For a stream.
    #[must_use]
    pub fn records(self) -> (RecordSealer, RecordOpener) {
        (RecordSealer::new(self.send), RecordOpener::new(self.receive))
    }

    /// For datagrams.
    #[must_use]
    pub fn packets(self) -> (PacketSealer, PacketOpener) {
        (PacketSealer::new(self.send), PacketOpener::new(self.receive))
    }
}

/// The dialling side, from its message to the answer.
pub struct Dialling {
    state: HandshakeState,
    peer: String,
    key: PublicKey,
}

impl std::fmt::Debug for Dialling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialling({})", self.peer)
    }
}

fn builder(own: &Identity, transport: Transport) -> Result<Builder<'_>, snow::Error> {
    Builder::new(PATTERN.parse()?).local_private_key(own.keys.private())?.prologue(transport.prologue())
}

/// Begins a handshake with a node of the list: the first message, and what waits for the second.
///
/// # Errors
/// [`HandshakeError::NotListed`], [`HandshakeError::OwnKey`].
pub fn dial(own: &Identity, peer: &str, trusted: &Trusted, transport: Transport) -> Result<(Dialling, Vec<u8>), HandshakeError> {
    let key = trusted.key(peer).ok_or_else(|| HandshakeError::NotListed { name: peer.to_owned() })?;
    if key == own.keys.public() {
        return Err(HandshakeError::OwnKey);
    }
    let begin = || builder(own, transport)?.remote_public_key(key.as_bytes())?.build_initiator();
    let mut state = begin().map_err(|error| library(&error))?;
    let mut message = vec![0; MAX_HANDSHAKE];
    let length = state.write_message(own.name.as_bytes(), &mut message[MAC..]).map_err(|error| library(&error))?;
    message.truncate(MAC + length);
    let (mac, noise) = message.split_at_mut(MAC);
    mac.copy_from_slice(&first_mac(&key, noise).as_ref()[..MAC]);
    Ok((Dialling { state, peer: peer.to_owned(), key }, message))
}

impl Dialling {
    /// Takes the answer.
    ///
    /// A datagram that does not verify may be anybody's; `self` is kept for the true answer.
    ///
    /// # Errors
    /// Why it is none.
    pub fn finish(&mut self, answer: &[u8]) -> Result<Established, HandshakeError> {
        if answer.len() > MAX_HANDSHAKE {
            return Err(HandshakeError::Length { got: answer.len() });
        }
        let mut name = [0; MAX_HANDSHAKE];
        let length = self.state.read_message(answer, &mut name).map_err(|_| HandshakeError::Altered)?;
        if name[..length] != *self.peer.as_bytes() {
            return Err(HandshakeError::WrongName { said: said(&name[..length]), listed: self.peer.clone() });
        }
        Established::new(&mut self.state, &self.peer, self.key)
    }
}

/// Answers a first message: the second one, and what is established if the peer gets it. The peer's identity is certain, and whether it is there
/// now will be when it has said something under these keys: the message may be an old one, said again by somebody else.
///
/// # Errors
/// Why nothing is answered.
pub fn answer(own: &Identity, trusted: &Trusted, transport: Transport, message: &[u8]) -> Result<(Established, Vec<u8>), HandshakeError> {
    if message.len() < SHORTEST || message.len() > MAX_HANDSHAKE {
        return Err(HandshakeError::Length { got: message.len() });
    }
    let (mac, noise) = message.split_at(MAC);
    if !equal(mac, &first_mac(&own.keys.public(), noise).as_ref()[..MAC]) {
        return Err(HandshakeError::NotForUs);
    }
    let begin = || builder(own, transport)?.build_responder();
    let mut state = begin().map_err(|error| library(&error))?;
    let mut name = [0; MAX_HANDSHAKE];
    let length = state.read_message(noise, &mut name).map_err(|_| HandshakeError::Altered)?;
    let key: Option<[u8; 32]> = state.get_remote_static().and_then(|key| key.try_into().ok());
    let key = key.and_then(PublicKey::from_bytes).ok_or(HandshakeError::Altered)?;
    if key == own.keys.public() {
        return Err(HandshakeError::OwnKey);
    }
    let listed = trusted.name(&key).ok_or(HandshakeError::UnknownKey { key })?;
    if name[..length] != *listed.as_bytes() {
        return Err(HandshakeError::WrongName { said: said(&name[..length]), listed: listed.to_owned() });
    }
    let mut answer = vec![0; MAX_HANDSHAKE];
    let length = state.write_message(own.name.as_bytes(), &mut answer).map_err(|error| library(&error))?;
    answer.truncate(length);
    Ok((Established::new(&mut state, listed, key)?, answer))
}

/// A name for an error message.
fn said(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]).into_owned()
}

fn first_mac(key: &PublicKey, noise: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()));
    context.update(b"armor first message");
    context.update(noise);
    context.sign()
}

/// Whether they are equal. It takes as long whatever the answer is.
pub(super) fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
