//! Identities. None of them says where a thing is: an [`ArmorId`] is reachable without knowing its node (thesis §3.2.1).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Identity of an ARMOR. It stays the same when the ARMOR is restarted or moved (thesis §4.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArmorId(pub u64);

impl ArmorId {
    /// "No such ARMOR": what a look-up of an unknown service returns (thesis §4.2.1: armor-id -1).
    pub const NONE: ArmorId = ArmorId(u64::MAX);
    /// The Fault Tolerance Manager, one per network (thesis §3.2.2).
    pub const FTM: ArmorId = ArmorId(1);

    /// The identity that belongs to a name. Names are unique in a network, so no table has to be asked;
    /// the FTM refuses a registration whose name collides.
    #[must_use]
    pub fn of_name(name: &str) -> ArmorId {
        if name == "ftm" {
            return ArmorId::FTM;
        }
        // The top bit keeps names apart from the small well-known numbers; the next one from ephemeral ids.
        ArmorId((xxhash_rust::xxh3::xxh3_64(name.as_bytes()) >> 2) | 1 << 63)
    }

    /// An identity for a short-lived speaker such as one invocation of the `armor` program.
    #[must_use]
    pub fn ephemeral(random: u64) -> ArmorId {
        ArmorId((random >> 2) | 1 << 62)
    }

    /// Whether this identity was made by [`ArmorId::ephemeral`].
    #[must_use]
    pub fn is_ephemeral(self) -> bool {
        self.0 >> 62 == 1
    }
}

impl fmt::Display for ArmorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ArmorId::FTM => f.write_str("ftm"),
            ArmorId::NONE => f.write_str("-1"),
            ArmorId(id) => write!(f, "{id:016x}"),
        }
    }
}

impl fmt::Debug for ArmorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArmorId({self})")
    }
}

/// One client-server stream pair. It outlives sockets and processes (NAMES.md).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One bound listener of a server process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct ListenerId(pub u64);

/// How many times a service's server process has been started; it fences the ones before. 0 means "not known yet".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default)]
#[serde(transparent)]
pub struct Incarnation(pub u32);

/// Number of a message, unique for its sender: the upper half is drawn anew at each start of the sender.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default)]
#[serde(transparent)]
pub struct MessageId(pub u64);

impl MessageId {
    /// Whether it was sent before another one in the same life of the same sender. Of messages of different lives nobody knows.
    pub fn is_before(self, other: MessageId) -> bool {
        self.0 >> 32 == other.0 >> 32 && self.0 < other.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ephemeral_and_well_known_ids_never_meet() {
        for name in ["a", "node1", "node1/web", ""] {
            let id = ArmorId::of_name(name);
            assert!(!id.is_ephemeral());
            assert!(id.0 > 1 << 62);
            assert_ne!(id, ArmorId::NONE);
        }
        assert!(ArmorId::ephemeral(u64::MAX).is_ephemeral());
        assert_eq!(ArmorId::of_name("ftm"), ArmorId::FTM);
    }

    #[test]
    fn messages_have_an_order_within_a_life_of_their_sender() {
        let (first, second, other_life) = (MessageId(5 << 32 | 1), MessageId(5 << 32 | 2), MessageId(6 << 32));
        assert!(first.is_before(second) && !second.is_before(first) && !first.is_before(first));
        assert!(!first.is_before(other_life) && !other_life.is_before(first));
    }
}
