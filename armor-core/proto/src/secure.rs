//! Confidentiality and authentication between daemons: keys, whom to trust, handshake, and protection of what follows.
//!
//! Each node has a [`Identity`] and a list of [`Trusted`] nodes. [`dial`] and [`answer`] make two messages of the Noise framework (pattern IK: the one
//! that dials knows whom it dials); both sides then have an [`Established`], which becomes [`records`](Established::records) for a stream (TCP) or
//! [`packets`](Established::packets) for datagrams (UDP). Both renew their keys by themselves.
//!
//! Whoever answers may be talking to a replayed first message until the first record or packet has been opened: nothing is to be done for the peer
//! before.
//!
//! Invariant: no socket and no clock here; random numbers come from the kernel. Nothing from a peer panics or makes it allocate without a bound, and
//! no plaintext is given out whose tag has not been checked.

mod cipher;
mod cookie;
mod handshake;
mod keys;
mod packet;
mod record;
mod trusted;

pub use cookie::{COOKIE, Cookies};
pub use handshake::{Dialling, Established, HandshakeError, Identity, MAX_HANDSHAKE, Transport, answer, dial};
pub use keys::{KeyError, KeyPair, PublicKey};
pub use packet::{PACKET_OVERHEAD, PHASE_PACKETS, PacketError, PacketOpener, PacketSealer, WINDOW};
pub use record::{MAX_RECORD, RECORD_OVERHEAD, REKEY_BYTES, REKEY_RECORDS, RecordError, RecordOpener, RecordSealer};
pub use trusted::{MAX_TRUSTED, TrustError, Trusted};
