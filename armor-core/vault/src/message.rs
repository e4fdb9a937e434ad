//! What an ARMOR and its vault say to each other: one datagram each, a version byte and one msgpack value.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// First byte of each datagram.
pub const PROTOCOL_VERSION: u8 = 1;
/// Largest datagram in bytes.
pub const DATAGRAM_LIMIT: usize = 8192;
/// Longest key in bytes.
pub const KEY_LIMIT: usize = 64;
/// Longest name of an owner in bytes.
pub const OWNER_LIMIT: usize = 128;
/// Most descriptors in one datagram; with the longest keys they still fit.
pub const BATCH: usize = 64;

/// From an ARMOR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// First on each connection. Answered with [`Answer::Kept`], [`Answer::Exited`], then [`Answer::Handed`].
    Hello {
        /// Name of the ARMOR. An earlier connection of the same name is closed.
        owner: String,
    },
    /// Keep the descriptor that comes along, instead of one of the same key.
    Keep {
        /// Unique for its owner.
        key: String,
    },
    /// Close the descriptor.
    Forget {
        /// As it was kept.
        key: String,
    },
    /// [`Answer::Exited`] up to this sequence has been dealt with.
    Heard {
        /// Of the last one.
        sequence: u64,
    },
    /// A heartbeat.
    Alive,
    /// The owner ends by its own will: it is not started again, and nothing is kept for it.
    Ended,
}

/// From the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Descriptors of this owner, as many as keys.
    Kept {
        /// In the order of the descriptors.
        keys: Vec<String>,
    },
    /// A process has ended whose parent had died.
    Exited {
        /// Grows by one with each; for [`Request::Heard`].
        sequence: u64,
        /// Which and how.
        process: Exited,
    },
    /// All has been handed over.
    Handed {
        /// How many descriptors it was.
        count: u64,
    },
    /// A descriptor is not kept.
    Refused {
        /// Its key.
        key: String,
        /// For a human.
        reason: String,
    },
}

/// A process that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Its number.
    pub pid: u32,
    /// As `waitpid` gives it; see [`std::os::unix::process::ExitStatusExt::from_raw`].
    pub status: i32,
}

/// The datagram. Cannot fail for names within their limits.
///
/// # Errors
/// When it does not fit.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, String> {
    let mut datagram = vec![PROTOCOL_VERSION];
    rmp_serde::encode::write(&mut datagram, message).map_err(|error| error.to_string())?;
    if datagram.len() > DATAGRAM_LIMIT {
        return Err(format!("{} bytes, at most {DATAGRAM_LIMIT} fit a datagram", datagram.len()));
    }
    Ok(datagram)
}

/// Reads a datagram; never panics, whatever the bytes.
///
/// # Errors
/// What is wrong with it.
pub fn decode<T: DeserializeOwned + Named>(datagram: &[u8]) -> Result<T, String> {
    let (&version, mut body) = datagram.split_first().ok_or("it is empty")?;
    if version != PROTOCOL_VERSION {
        return Err(format!("it is of version {version}, not {PROTOCOL_VERSION}"));
    }
    let mut deserializer = rmp_serde::Deserializer::new(&mut body);
    // Nothing here nests deeper than a list in a variant.
    deserializer.set_max_depth(8);
    let message = T::deserialize(&mut deserializer).map_err(|error| error.to_string())?;
    if !body.is_empty() {
        return Err(format!("{} bytes after its end", body.len()));
    }
    message.check_names()?;
    Ok(message)
}

/// Messages that name owners and keys.
pub trait Named {
    /// Whether the names are within their limits.
    ///
    /// # Errors
    /// Which one is not.
    fn check_names(&self) -> Result<(), String>;
}

impl Named for Request {
    fn check_names(&self) -> Result<(), String> {
        match self {
            Request::Hello { owner } => check_name(owner, OWNER_LIMIT),
            Request::Keep { key } | Request::Forget { key } => check_name(key, KEY_LIMIT),
            Request::Heard { .. } | Request::Alive | Request::Ended => Ok(()),
        }
    }
}

impl Named for Answer {
    fn check_names(&self) -> Result<(), String> {
        match self {
            Answer::Kept { keys } => keys.iter().try_for_each(|key| check_name(key, KEY_LIMIT)),
            Answer::Refused { key, .. } => check_name(key, KEY_LIMIT),
            Answer::Exited { .. } | Answer::Handed { .. } => Ok(()),
        }
    }
}

/// # Errors
/// When the name is empty or too long.
pub(crate) fn check_name(name: &str, limit: usize) -> Result<(), String> {
    if name.is_empty() || name.len() > limit {
        return Err(format!("a name has 1 to {limit} bytes, this one {}", name.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
