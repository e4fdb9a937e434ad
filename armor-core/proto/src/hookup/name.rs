//! [`Name`]: the abstract unix address of a protected socket, from which all its state is read.
//!
//! Layout after the leading NUL of an abstract address: magic and version `armor\x01`, role (1 byte), id (u64 LE),
//! local endpoint, peer endpoint (23 bytes each; zeros for a listener).
//!
//! Invariant: a name is made by the ARMOR alone; the shim only reads it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use super::endpoint::{ENDPOINT_LENGTH, Endpoint, IpFamily};

const MAGIC: &[u8; 6] = b"armor\x01";

/// Length in bytes of an encoded [`Name`], without the NUL that makes a unix address abstract.
pub const NAME_LENGTH: usize = MAGIC.len() + 1 + 8 + 2 * ENDPOINT_LENGTH;

/// Which kind of socket carries the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The own name of a listening (or just bound) socket in a server.
    Listener,
    /// The peer's name of a connection in a client.
    Client,
    /// The peer's name of a connection that a server accepted.
    Server,
}

impl Role {
    const fn letter(self) -> u8 {
        match self {
            Self::Listener => b'L',
            Self::Client => b'C',
            Self::Server => b'S',
        }
    }
}

/// Why bytes are not a [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// No name of an ARMOR: somebody else's abstract address.
    #[error("not the name of a protected socket")]
    Stranger,
    /// An ARMOR's name of another protocol version.
    #[error("name of protocol version {got}, expected {}", MAGIC[5])]
    Version {
        /// The version byte found.
        got: u8,
    },
    /// The magic is right but the rest is not.
    #[error("malformed name of a protected socket")]
    Malformed,
}

/// What the kernel remembers about a protected socket.
///
/// `local` and `peer` are as the application's own `getsockname` and `getpeername` shall report them, both in the
/// family of the application's socket (an IPv4 peer of an IPv6 listener is `::ffff:a.b.c.d`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Listener, client's or server's connection.
    pub role: Role,
    /// `ListenerId` for [`Role::Listener`], `ConnectionId` for the others.
    pub id: u64,
    /// The application's own address.
    pub local: Endpoint,
    /// The other side's address; unspecified with port 0 for a listener.
    pub peer: Endpoint,
}

impl Name {
    /// The name of a listener.
    #[must_use]
    pub fn listener(id: u64, local: Endpoint) -> Self {
        Self { role: Role::Listener, id, local, peer: Endpoint::unspecified(local.family(), 0) }
    }

    /// Family of the application's socket.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        match self.role {
            Role::Listener => self.local.family(),
            Role::Client | Role::Server => self.local.family().max(self.peer.family()),
        }
    }

    /// The bytes after the leading NUL of the abstract address.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; NAME_LENGTH] {
        let mut bytes = [0; NAME_LENGTH];
        bytes[..6].copy_from_slice(MAGIC);
        bytes[6] = self.role.letter();
        bytes[7..15].copy_from_slice(&self.id.to_le_bytes());
        bytes[15..38].copy_from_slice(&self.local.to_bytes());
        if self.role != Role::Listener {
            bytes[38..].copy_from_slice(&self.peer.to_bytes());
        }
        bytes
    }

    /// Reads the bytes after the leading NUL of an abstract address.
    ///
    /// # Errors
    /// [`NameError`]; never panics, whatever the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        let (magic, rest) = bytes.split_first_chunk::<6>().ok_or(NameError::Stranger)?;
        if magic[..5] != MAGIC[..5] {
            return Err(NameError::Stranger);
        }
        if magic[5] != MAGIC[5] {
            return Err(NameError::Version { got: magic[5] });
        }
        Self::from_fields(rest).ok_or(NameError::Malformed)
    }

    fn from_fields(rest: &[u8]) -> Option<Self> {
        let (&letter, rest) = rest.split_first()?;
        let (id, rest) = rest.split_first_chunk::<8>()?;
        let (local, rest) = rest.split_first_chunk::<ENDPOINT_LENGTH>()?;
        let peer: &[u8; ENDPOINT_LENGTH] = rest.try_into().ok()?;
        let id = u64::from_le_bytes(*id);
        let local = Endpoint::from_bytes(local)?;
        let role = match letter {
            b'L' if peer == &[0; ENDPOINT_LENGTH] => return Some(Self::listener(id, local)),
            b'C' => Role::Client,
            b'S' => Role::Server,
            _ => return None,
        };
        Some(Self { role, id, local, peer: Endpoint::from_bytes(peer)? })
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{:x}({}", self.role, self.id, self.local)?;
        if self.role != Role::Listener {
            write!(f, " <-> {}", self.peer)?;
        }
        f.write_str(")")
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_bytes())
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteArray::<NAME_LENGTH>::deserialize(deserializer)?;
        Self::from_bytes(bytes.as_slice()).map_err(de::Error::custom)
    }
}

/// State of a client's connect, kept by the kernel as the `SO_PRIORITY` of the application's socket: the ARMOR sets it
/// on its duplicate, the shim reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectState {
    /// Connected.
    Established,
    /// A non-blocking connect is under way; the socket's send buffer is full on purpose.
    Pending,
    /// Nobody listens there: `ECONNREFUSED`.
    Refused,
    /// No answer: `ETIMEDOUT`.
    TimedOut,
    /// No way there: `ENETUNREACH`.
    Unreachable,
    /// Broken off while connecting: `ECONNRESET`.
    Reset,
}

impl ConnectState {
    /// The value for `SO_PRIORITY` (all of them allowed without privilege).
    #[must_use]
    pub const fn priority(self) -> i32 {
        match self {
            Self::Established => 0,
            Self::Refused => 1,
            Self::TimedOut => 2,
            Self::Unreachable => 3,
            Self::Reset => 4,
            Self::Pending => 6,
        }
    }

    /// Reads a value of `SO_PRIORITY`. An application may set the option itself once connected, so what is no state
    /// of ours counts as established.
    #[must_use]
    pub const fn from_priority(priority: i32) -> Self {
        match priority {
            1 => Self::Refused,
            2 => Self::TimedOut,
            3 => Self::Unreachable,
            4 => Self::Reset,
            6 => Self::Pending,
            _ => Self::Established,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn name_fits_an_abstract_address_and_comes_back() {
        let name = Name { role: Role::Client, id: u64::MAX - 1, local: endpoint("10.0.0.1:40000"), peer: endpoint("10.0.0.2:80") };
        const { assert!(NAME_LENGTH < 108, "sun_path") };
        assert_eq!(Name::from_bytes(&name.to_bytes()), Ok(name));
        let listener = Name::listener(7, endpoint("[::]:8080"));
        assert_eq!(Name::from_bytes(&listener.to_bytes()), Ok(listener));
        assert_eq!(listener.family(), IpFamily::V6);
        assert!(listener.to_bytes()[38..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn strangers_and_other_versions_are_told_apart() {
        let mut bytes = Name::listener(7, endpoint("1.1.1.1:1")).to_bytes();
        assert_eq!(Name::from_bytes(b""), Err(NameError::Stranger));
        assert_eq!(Name::from_bytes(b"/tmp/.X11-unix/X0"), Err(NameError::Stranger));
        assert_eq!(Name::from_bytes(&bytes[..NAME_LENGTH - 1]), Err(NameError::Malformed));
        bytes[5] = 9;
        assert_eq!(Name::from_bytes(&bytes), Err(NameError::Version { got: 9 }));
    }

    #[test]
    fn every_state_has_its_own_priority() {
        use ConnectState::{Established, Pending, Refused, Reset, TimedOut, Unreachable};
        for state in [Established, Pending, Refused, TimedOut, Unreachable, Reset] {
            assert_eq!(ConnectState::from_priority(state.priority()), state);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_name_or_an_error(tail in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(&tail);
            let _ = Name::from_bytes(&tail);
            if let Ok(name) = Name::from_bytes(&bytes) {
                prop_assert_eq!(name.to_bytes().to_vec(), bytes);
            }
        }
    }
}
