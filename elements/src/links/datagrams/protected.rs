//! Links over datagrams between nodes that know each other by keys: the handshake and the packets of `armor_proto::secure`, as R-UDP wants them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use armor_proto::rudp::{self, Acceptor, Handshake, OpenError, Plain, Protection, Session};
use armor_proto::secure::{
    Dialling, Established, HandshakeError, Identity, PACKET_OVERHEAD, PacketOpener, PacketSealer, PublicKey, Transport, Trusted, answer,
    dial,
};

/// Refusals that wait to be told.
const MAX_REFUSED: usize = 256;
const KEY: usize = 32;

/// Keys of this node and of those that it trusts, shared with the handshakes that are under way.
#[derive(Clone)]
pub struct Keyring {
    ring: Arc<Mutex<Ring>>,
    /// Grows when all links are to renew their keys.
    epoch: Arc<AtomicU64>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyring")
    }
}

struct Ring {
    own: Identity,
    trusted: Trusted,
    /// Reads the list again when its file is another one.
    reread: Reread,
    /// Why handshakes were refused, and how often for the same reason.
    refused: VecDeque<(HandshakeError, u64)>,
}

/// See [`Keyring::new`].
pub type Reread = Box<dyn FnMut() -> Option<Trusted> + Send>;

impl Keyring {
    /// A ring with these keys. `reread` gives another list when there is one; it is asked before anybody is refused for being unknown.
    #[must_use]
    pub fn new(own: Identity, trusted: Trusted, reread: Reread) -> Keyring {
        Keyring { ring: Arc::new(Mutex::new(Ring { own, trusted, reread, refused: VecDeque::new() })), epoch: Arc::default() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Whatever a panic has left is whole: it is replaced, never changed in part.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another list of trusted nodes.
    pub fn trust(&self, trusted: Trusted) {
        self.ring().trusted = trusted;
    }

    /// Each link renews its key with the next packet, if it has heard from its peer since it did so last.
    pub fn rekey(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Why handshakes that peers have begun were refused, since this was asked last, and how often for each reason.
    #[must_use]
    pub fn refused(&self) -> Vec<(HandshakeError, u64)> {
        self.ring().refused.drain(..).collect()
    }

    /// Begins a handshake with a daemon of that name.
    ///
    /// # Errors
    /// When its key is not in the list.
    pub fn dial(&self, name: &str) -> Result<Box<dyn Handshake>, HandshakeError> {
        let ring = self.ring();
        let (dialling, first) = dial(&ring.own, name, &ring.trusted, Transport::Udp)?;
        Ok(Box::new(Dials { dialling, first: Some(first), established: None, epoch: Arc::clone(&self.epoch) }))
    }

    /// What answers handshakes.
    #[must_use]
    pub fn acceptor(&self) -> Box<dyn Acceptor> {
        Box::new(self.clone())
    }
}

impl Acceptor for Keyring {
    fn accept(&mut self) -> Box<dyn Handshake> {
        Box::new(Answers { ring: self.clone(), answer: None, established: None })
    }
}

/// Who a peer has shown to be: its name and key, out of what [`Session::peer`] says.
#[must_use]
pub fn shown(identity: &[u8]) -> Option<(String, PublicKey)> {
    let (key, name) = identity.split_first_chunk::<KEY>()?;
    Some((String::from_utf8(name.to_vec()).ok()?, PublicKey::from_bytes(*key)?))
}

/// Handshakes of networks without keys.
#[must_use]
pub fn plain(name: &str) -> (Box<dyn Acceptor>, Box<dyn Handshake>) {
    (Box::new(Plain::responder(name.as_bytes())), Box::new(Plain::initiator(name.as_bytes())))
}

fn failed(error: &HandshakeError) -> rudp::HandshakeError {
    rudp::HandshakeError { reason: error.to_string() }
}

fn too_early() -> rudp::HandshakeError {
    rudp::HandshakeError { reason: "a message of the handshake is out of turn".to_owned() }
}

fn session(established: Established, epoch: Arc<AtomicU64>) -> Session {
    let mut peer = established.key.as_bytes().to_vec();
    peer.extend_from_slice(established.peer.as_bytes());
    let (sealer, opener) = established.packets();
    let renewed = epoch.load(Ordering::Relaxed);
    Session { protection: Box::new(Packets { sealer, opener, epoch, renewed, heard: false }), peer }
}

struct Dials {
    dialling: Dialling,
    first: Option<Vec<u8>>,
    established: Option<Established>,
    epoch: Arc<AtomicU64>,
}

impl Handshake for Dials {
    fn write(&mut self, out: &mut Vec<u8>) -> Result<(), rudp::HandshakeError> {
        out.extend_from_slice(&self.first.take().ok_or_else(too_early)?);
        Ok(())
    }

    fn read(&mut self, message: &[u8]) -> Result<(), rudp::HandshakeError> {
        self.established = Some(self.dialling.finish(message).map_err(|error| failed(&error))?);
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.established.is_some()
    }

    fn finish(self: Box<Self>) -> Result<Session, rudp::HandshakeError> {
        Ok(session(self.established.ok_or_else(too_early)?, self.epoch))
    }
}

struct Answers {
    ring: Keyring,
    answer: Option<Vec<u8>>,
    established: Option<Established>,
}

impl Handshake for Answers {
    fn write(&mut self, out: &mut Vec<u8>) -> Result<(), rudp::HandshakeError> {
        out.extend_from_slice(&self.answer.take().ok_or_else(too_early)?);
        Ok(())
    }

    fn read(&mut self, message: &[u8]) -> Result<(), rudp::HandshakeError> {
        let ring = &mut *self.ring.ring();
        let mut answered = answer(&ring.own, &ring.trusted, Transport::Udp, message);
        if let Err(HandshakeError::UnknownKey { .. }) = answered
            && let Some(trusted) = (ring.reread)()
        {
            ring.trusted = trusted;
            answered = answer(&ring.own, &ring.trusted, Transport::Udp, message);
        }
        match answered {
            Ok((established, answer)) => {
                (self.established, self.answer) = (Some(established), Some(answer));
                Ok(())
            }
            Err(error) => {
                let told = failed(&error);
                // Who is refused asks again and again.
                if let Some((_, times)) = ring.refused.iter_mut().find(|(known, _)| *known == error) {
                    *times += 1;
                } else if ring.refused.len() < MAX_REFUSED {
                    ring.refused.push_back((error, 1));
                }
                Err(told)
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.established.is_some() && self.answer.is_none()
    }

    fn finish(self: Box<Self>) -> Result<Session, rudp::HandshakeError> {
        Ok(session(self.established.ok_or_else(too_early)?, Arc::clone(&self.ring.epoch)))
    }
}

struct Packets {
    sealer: PacketSealer,
    opener: PacketOpener,
    epoch: Arc<AtomicU64>,
    renewed: u64,
    /// Something has come from the peer since the key was renewed: it follows.
    heard: bool,
}

impl Protection for Packets {
    fn overhead(&self) -> usize {
        PACKET_OVERHEAD
    }

    fn seal(&mut self, number: u64, header: &[u8], packet: &mut [u8]) {
        let epoch = self.epoch.load(Ordering::Relaxed);
        if epoch != self.renewed && std::mem::take(&mut self.heard) {
            self.renewed = epoch;
            self.sealer.rekey();
        }
        if self.sealer.seal(number, header, packet).is_err() {
            // Nothing of it may be read; the peer drops it.
            packet.fill(0);
        }
    }

    fn open(&mut self, number: u64, header: &[u8], packet: &mut [u8]) -> Result<usize, OpenError> {
        let length = self.opener.open(number, header, packet).map_err(|_| OpenError)?;
        self.heard = true;
        Ok(length)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use armor_proto::secure::KeyPair;

    fn rings() -> (Keyring, Keyring) {
        let node = |name: &str| Identity { name: name.to_owned(), keys: KeyPair::generate().expect("random") };
        let (a, b) = (node("a"), node("b"));
        let mut trusted = Trusted::default();
        for node in [&a, &b] {
            trusted.add(&node.name, node.keys.public()).expect("added");
        }
        (Keyring::new(a, trusted.clone(), Box::new(|| None)), Keyring::new(b, trusted, Box::new(|| None)))
    }

    fn written(handshake: &mut dyn Handshake) -> Vec<u8> {
        let mut out = vec![7];
        handshake.write(&mut out).expect("written");
        out.split_off(1)
    }

    fn sessions(a: &Keyring, b: &mut Keyring) -> (Session, Session) {
        let (mut dials, mut answers) = (a.dial("b").expect("known"), b.accept());
        let first = written(&mut *dials);
        assert!(answers.read(&first[1..]).is_err() && !answers.is_finished());
        answers.read(&first).expect("a first message");
        let second = written(&mut *answers);
        assert!(dials.read(&second[1..]).is_err() && !dials.is_finished(), "anybody may send that");
        dials.read(&second).expect("an answer");
        assert!(dials.is_finished() && answers.is_finished());
        (dials.finish().expect("done"), answers.finish().expect("done"))
    }

    #[test]
    fn both_ends_know_each_other_and_understand_each_other_over_renewed_keys() {
        let (a, mut b) = rings();
        let (mut near, mut far) = sessions(&a, &mut b);
        assert_eq!(shown(&near.peer).expect("a key").0, "b");
        assert_eq!(shown(&far.peer).expect("a key").0, "a");
        for number in 0..100 {
            if number % 10 == 0 {
                a.rekey();
                b.rekey();
            }
            for forth in [true, false] {
                let (from, to) = if forth { (&mut near, &mut far) } else { (&mut far, &mut near) };
                let mut packet = b"some words".to_vec();
                packet.resize(10 + from.protection.overhead(), 0);
                from.protection.seal(number, b"head", &mut packet);
                assert!(!packet.starts_with(b"some words"));
                let mut altered = packet.clone();
                altered[3] ^= 1;
                assert!(to.protection.open(number, b"head", &mut altered).is_err());
                let length = to.protection.open(number, b"head", &mut packet).expect("opens");
                assert_eq!(&packet[..length], b"some words");
            }
        }
    }

    #[test]
    fn a_stranger_is_refused_and_counted_and_the_list_may_change() {
        let (a, mut b) = rings();
        let mut dials = a.dial("b").expect("known");
        let first = written(&mut *dials);
        b.trust(Trusted::default());
        assert!(b.accept().read(&first).is_err());
        assert!(matches!(b.refused()[..], [(HandshakeError::UnknownKey { .. }, 1)]));
        assert!(b.refused().is_empty());
        assert!(matches!(b.dial("a").err(), Some(HandshakeError::NotListed { .. })));
    }
}
