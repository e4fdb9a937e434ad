//! From a TCP connection to a channel that is protected: the handshake over a socket, and how many may be under way.
//!
//! A handshake message is preceded by `AN`, the version and its length (2 bytes, little endian). Records follow it at once.
//!
//! Invariants: a connection that was accepted costs at most a first message, and later a first record, until a trusted node has said something that was
//! encrypted by the keys of this very handshake; of those that are not that far there are at most [`Greetings::MOST`].

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use armor_proto::secure::{
    Dialling, Established, HandshakeError, MAX_HANDSHAKE, PublicKey, RecordError, RecordOpener, RecordSealer, Transport,
};
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::security::kind_of;
use super::stream::ReadHalf;

const MAGIC: [u8; 2] = *b"AN";
const VERSION: u8 = 1;
const HEADER: usize = 5;
/// First space for what a peer says.
const SPACE: usize = 64 << 10;

/// What a handshake over a socket ends with when it is not done.
#[derive(Debug, thiserror::Error)]
pub enum NoHandshake {
    /// What was said in it.
    #[error("{0}")]
    Refused(#[from] HandshakeError),
    /// A frame came.
    #[error("it speaks without encryption: give it keys too, or none to this daemon (insecure = true)")]
    Plain,
    /// Something else came.
    #[error("it begins with {0:02x?}, which is no handshake")]
    Stranger([u8; 2]),
    /// Another version.
    #[error("its handshake is of version {0}, expected {VERSION}: use the same release on every node")]
    Version(u8),
    /// Another length.
    #[error("it announces a handshake message of {0} bytes, at most {MAX_HANDSHAKE} are accepted")]
    Length(usize),
    /// It was closed.
    #[error("closed during the handshake; the other node's events say why, if it refused")]
    Ended,
    /// The first record does not verify.
    #[error("its first words do not verify: {0}")]
    Record(RecordError),
    /// It has not come to an end in time.
    #[error("it has said too little for too long")]
    Late,
    /// Newer ones took its place.
    #[error("{} connections were in front of it that had not said who they are", Greetings::MOST)]
    Crowded,
    /// The socket's error.
    #[error("{0}")]
    Socket(#[from] io::Error),
}

impl NoHandshake {
    /// The word under which it is counted; `None` for what is no refusal.
    #[must_use]
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            NoHandshake::Refused(error) => Some(kind_of(error)),
            NoHandshake::Plain => Some("plain"),
            NoHandshake::Stranger(_) | NoHandshake::Version(_) | NoHandshake::Length(_) => Some("malformed"),
            NoHandshake::Record(_) => Some("altered"),
            NoHandshake::Late => Some("late"),
            NoHandshake::Crowded => Some("crowded"),
            NoHandshake::Ended | NoHandshake::Socket(_) => None,
        }
    }
}

/// What has come and is not opened yet, and what was opened and is not taken yet.
#[derive(Debug)]
pub(super) struct Incoming {
    opener: RecordOpener,
    raw: BytesMut,
    pub(super) plain: BytesMut,
}

impl Incoming {
    /// Reads once, into `size` bytes of space or less.
    pub(super) async fn read(&mut self, half: &mut ReadHalf, size: usize) -> io::Result<usize> {
        if self.raw.capacity() - self.raw.len() < size / 4 {
            self.raw.reserve(size);
        }
        half.read(&mut self.raw).await
    }

    /// Opens what is whole.
    pub(super) fn open(&mut self) -> Result<(), RecordError> {
        // Takes the old space again when no frame in it is alive any more.
        self.plain.reserve(self.raw.len());
        let used = self.opener.open(&mut self.raw, &mut self.plain)?;
        self.raw.advance(used);
        Ok(())
    }

    pub(super) fn is_between_frames(&self) -> bool {
        self.raw.is_empty() && self.plain.is_empty()
    }
}

/// A connection whose ends know each other.
#[derive(Debug)]
pub struct Channel {
    /// The peer's name, which its key vouches for.
    pub peer: String,
    /// The peer's key.
    pub key: PublicKey,
    pub(super) sealer: RecordSealer,
    pub(super) incoming: Incoming,
}

impl Channel {
    pub(crate) fn new(established: Established, raw: BytesMut) -> Channel {
        let (peer, key) = (established.peer.clone(), established.key);
        let (sealer, opener) = established.records();
        Channel { peer, key, sealer, incoming: Incoming { opener, raw, plain: BytesMut::with_capacity(SPACE) } }
    }
}

async fn say(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = (message.len() as u16).to_le_bytes();
    let all = [&MAGIC[..], &[VERSION], &length, message].concat();
    stream.write_all(&all).await
}

/// Reads a handshake message; what has come behind it stays in `raw`.
async fn hear(stream: &mut TcpStream, raw: &mut BytesMut) -> Result<Vec<u8>, NoHandshake> {
    loop {
        if let Some(begin) = raw.first_chunk::<2>()
            && *begin != MAGIC
        {
            return Err(if *begin == armor_proto::frame::MAGIC { NoHandshake::Plain } else { NoHandshake::Stranger(*begin) });
        }
        if let Some(&[_, _, version, low, high]) = raw.first_chunk::<HEADER>() {
            if version != VERSION {
                return Err(NoHandshake::Version(version));
            }
            let length = usize::from(u16::from_le_bytes([low, high]));
            if length > MAX_HANDSHAKE {
                return Err(NoHandshake::Length(length));
            }
            if let Some(message) = raw.get(HEADER..HEADER + length) {
                let message = message.to_vec();
                raw.advance(HEADER + length);
                return Ok(message);
            }
        }
        if stream.read_buf(raw).await? == 0 {
            return Err(NoHandshake::Ended);
        }
    }
}

/// The handshake of the side that has dialled.
///
/// # Errors
/// Why there is no channel.
pub async fn dialled(stream: &mut TcpStream, mut dialling: Dialling, first: &[u8]) -> Result<Channel, NoHandshake> {
    let _ = stream.set_nodelay(true);
    say(stream, first).await?;
    let mut raw = BytesMut::with_capacity(SPACE);
    let answer = hear(stream, &mut raw).await?;
    Ok(Channel::new(dialling.finish(&answer)?, raw))
}

/// The handshake of the side that was dialled. It is done when the peer has said something under its keys: a first message may be an old one, said
/// again by somebody else.
///
/// # Errors
/// Why there is no channel.
pub async fn answered(
    stream: &mut TcpStream,
    answer: impl FnOnce(Transport, &[u8]) -> Result<(Established, Vec<u8>), HandshakeError>,
) -> Result<Channel, NoHandshake> {
    let _ = stream.set_nodelay(true);
    let mut raw = BytesMut::with_capacity(SPACE);
    let first = hear(stream, &mut raw).await?;
    let (established, second) = answer(Transport::Tcp, &first)?;
    say(stream, &second).await?;
    let mut channel = Channel::new(established, raw);
    loop {
        channel.incoming.open().map_err(NoHandshake::Record)?;
        if !channel.incoming.plain.is_empty() {
            return Ok(channel);
        }
        if stream.read_buf(&mut channel.incoming.raw).await? == 0 {
            return Err(NoHandshake::Ended);
        }
    }
}

/// Connections that were accepted and have not said who they are.
///
/// When there are too many, the oldest one from where most of them come makes room: a node that is trusted needs one round trip, and is through before
/// its turn to go comes.
#[derive(Debug, Default)]
pub struct Greetings {
    by_age: BTreeMap<u64, (u64, oneshot::Sender<()>)>,
    by_origin: HashMap<u64, usize>,
    last: u64,
}

/// One of them, as the task that serves it holds it.
#[derive(Debug)]
pub struct Greeting {
    /// Its number, for [`Greetings::done`].
    pub id: u64,
    /// Ends when it has to make room.
    pub evicted: oneshot::Receiver<()>,
}

impl Greetings {
    /// Most at once.
    pub const MOST: usize = 256;

    /// Takes in another one, and sends one away if there are too many.
    pub fn admit(&mut self, from: IpAddr) -> Greeting {
        if self.by_age.len() >= Self::MOST {
            let crowded = self.by_origin.iter().max_by_key(|(_, count)| **count).map(|(origin, _)| *origin);
            let oldest = self.by_age.iter().find(|(_, (origin, _))| Some(*origin) == crowded).map(|(id, _)| *id);
            if let Some(id) = oldest {
                self.done(id);
            }
        }
        let (stay, evicted) = oneshot::channel();
        let origin = origin(from);
        self.last += 1;
        self.by_age.insert(self.last, (origin, stay));
        *self.by_origin.entry(origin).or_default() += 1;
        Greeting { id: self.last, evicted }
    }

    /// It has said who it is, or is over.
    pub fn done(&mut self, id: u64) {
        let Some((origin, _)) = self.by_age.remove(&id) else { return };
        if let Some(count) = self.by_origin.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.by_origin.remove(&origin);
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }
}

/// Where a connection comes from: an IPv4 address, or an IPv6 network of 64 bits, which is what one host may have for itself.
fn origin(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (Ipv6Addr::to_bits(v6) >> 64) as u64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_crowd_makes_room_for_whoever_comes_from_elsewhere_and_for_its_own_newest() {
        let mut greetings = Greetings::default();
        let address = |last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
        let mut elsewhere = greetings.admit(address(1));
        let mut crowd: Vec<Greeting> = (0..Greetings::MOST * 4).map(|_| greetings.admit(address(2))).collect();
        assert_eq!(greetings.len(), Greetings::MOST);
        assert!(elsewhere.evicted.try_recv() == Err(oneshot::error::TryRecvError::Empty), "it stays");
        let gone: Vec<bool> = crowd.iter_mut().map(|one| one.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed)).collect();
        let gone = gone.into_iter().take_while(|gone| *gone).count();
        assert_eq!(gone, Greetings::MOST * 3 + 1, "the oldest ones");
        crowd.iter().for_each(|one| greetings.done(one.id));
        greetings.done(elsewhere.id);
        assert!(greetings.is_empty() && greetings.by_origin.is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_origin() {
        let of = |text: &str| origin(text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
