//! What a command does to its connection. The names are those of Redis 7 and Valkey 8.

use serde::{Deserialize, Serialize};

use crate::connection::mark::waiting;

/// What has to be known of a command when its answer comes. One byte when saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub(super) enum Kind {
    /// Changes nothing of the connection.
    Plain,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Asking,
    /// Changes something that can be changed again in a new process by the same command, with the answer `+OK`.
    Setting,
    /// Chooses the protocol; its answer is another one each time.
    Hello,
    /// The connection ends with it.
    Last,
    /// Brings the connection into a state that no new process can be brought into, or in which answers cannot be counted.
    Stateful,
    /// Several commands that share one entry.
    Mixed,
}

const KINDS: [Kind; 12] = [
    Kind::Plain,
    Kind::Multi,
    Kind::Exec,
    Kind::Discard,
    Kind::Watch,
    Kind::Unwatch,
    Kind::Asking,
    Kind::Setting,
    Kind::Hello,
    Kind::Last,
    Kind::Stateful,
    Kind::Mixed,
];

impl From<Kind> for u8 {
    fn from(kind: Kind) -> u8 {
        kind as u8
    }
}

impl TryFrom<u8> for Kind {
    type Error = &'static str;
    fn try_from(byte: u8) -> Result<Self, Self::Error> {
        KINDS.get(usize::from(byte)).copied().ok_or("no kind of command")
    }
}

impl waiting::Kind for Kind {
    fn share(self, next: Self) -> Option<Self> {
        let apart = |kind| matches!(kind, Kind::Setting | Kind::Hello | Kind::Last | Kind::Stateful);
        match (self, next) {
            (Kind::Plain, Kind::Plain) => Some(Kind::Plain),
            (last, next) if apart(last) || apart(next) => None,
            _ => Some(Kind::Mixed),
        }
    }
}

/// What a setting sets: a later one takes the place of an earlier one of the same slot. One byte when saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub(super) enum Slot {
    Login,
    Database,
    Name,
    LibraryName,
    LibraryVersion,
    NoEvict,
    NoTouch,
    Reading,
}

const SLOTS: [Slot; 8] =
    [Slot::Login, Slot::Database, Slot::Name, Slot::LibraryName, Slot::LibraryVersion, Slot::NoEvict, Slot::NoTouch, Slot::Reading];

impl From<Slot> for u8 {
    fn from(slot: Slot) -> u8 {
        slot as u8
    }
}

impl TryFrom<u8> for Slot {
    type Error = &'static str;
    fn try_from(byte: u8) -> Result<Self, Self::Error> {
        SLOTS.get(usize::from(byte)).copied().ok_or("no slot of a setting")
    }
}

/// A complete command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Command {
    pub(super) kind: Kind,
    /// Of a [`Kind::Setting`].
    pub(super) slot: Option<Slot>,
}

/// Names of commands that may be settings: their text is kept while they come.
pub(super) fn may_set(name: &[u8]) -> bool {
    matches!(name, b"AUTH" | b"SELECT" | b"CLIENT" | b"READONLY" | b"READWRITE")
}

/// The command with these first words, in capitals.
pub(super) fn command(words: [&[u8]; 3]) -> Command {
    let plain = |kind| Command { kind, slot: None };
    let setting = |slot| Command { kind: Kind::Setting, slot: Some(slot) };
    match words {
        [b"MULTI", ..] => plain(Kind::Multi),
        [b"EXEC", ..] => plain(Kind::Exec),
        [b"DISCARD", ..] => plain(Kind::Discard),
        [b"WATCH", ..] => plain(Kind::Watch),
        [b"UNWATCH", ..] => plain(Kind::Unwatch),
        [b"ASKING", ..] => plain(Kind::Asking),
        [b"AUTH", ..] => setting(Slot::Login),
        [b"SELECT", ..] => setting(Slot::Database),
        [b"READONLY" | b"READWRITE", ..] => setting(Slot::Reading),
        [b"CLIENT", b"SETNAME", _] => setting(Slot::Name),
        [b"CLIENT", b"SETINFO", b"LIB-NAME"] => setting(Slot::LibraryName),
        [b"CLIENT", b"SETINFO", b"LIB-VER"] => setting(Slot::LibraryVersion),
        [b"CLIENT", b"NO-EVICT", _] => setting(Slot::NoEvict),
        [b"CLIENT", b"NO-TOUCH", _] => setting(Slot::NoTouch),
        [
            b"CLIENT",
            b"" | b"ID" | b"INFO" | b"LIST" | b"GETNAME" | b"GETREDIR" | b"KILL" | b"PAUSE" | b"UNPAUSE" | b"UNBLOCK" | b"TRACKINGINFO"
            | b"HELP",
            _,
        ] => plain(Kind::Plain),
        [b"CLIENT", ..] => plain(Kind::Stateful),
        [b"SCRIPT", b"" | b"LOAD" | b"EXISTS" | b"FLUSH" | b"KILL" | b"SHOW" | b"HELP", _] => plain(Kind::Plain),
        [b"SCRIPT", ..] => plain(Kind::Stateful),
        [b"HELLO", b"", _] => plain(Kind::Plain),
        [b"HELLO", ..] => plain(Kind::Hello),
        [b"QUIT" | b"SHUTDOWN", ..] => plain(Kind::Last),
        [
            b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" | b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE" | b"MONITOR" | b"RESET"
            | b"SYNC" | b"PSYNC" | b"REPLCONF",
            ..,
        ] => plain(Kind::Stateful),
        _ => plain(Kind::Plain),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_slots_come_back_from_their_bytes() {
        for kind in KINDS {
            assert_eq!(Kind::try_from(u8::from(kind)), Ok(kind));
        }
        for slot in SLOTS {
            assert_eq!(Slot::try_from(u8::from(slot)), Ok(slot));
        }
        assert!(Kind::try_from(KINDS.len() as u8).is_err() && Slot::try_from(SLOTS.len() as u8).is_err());
    }
}
