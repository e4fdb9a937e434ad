//! Key pairs of nodes (X25519), and their text: `armor1…` for a public key, `armor-private1…` for a private one.
//!
//! The text is base32 without padding over the 32 bytes of the key and their CRC32C, in lower case: one word, read aloud without trouble, and a
//! mistyped character is noticed.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};

const PUBLIC: &str = "armor1";
const PRIVATE: &str = "armor-private1";
/// Longest text that is looked at.
const MAX_TEXT: usize = 128;

/// What is wrong with a key's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It does not begin as one.
    #[error("a {what} key begins with {prefix}; `armor keygen` makes one")]
    Prefix {
        /// "public" or "private".
        what: &'static str,
        /// What it begins with.
        prefix: &'static str,
    },
    /// Characters that do not belong there, or too many or few of them.
    #[error("it is no key: after {prefix} stand 58 letters and digits 2 to 7; copy the whole of it")]
    Text {
        /// What it begins with.
        prefix: &'static str,
    },
    /// Its checksum does not fit.
    #[error("a character of the key is wrong: its checksum does not fit; copy it again")]
    Checksum,
    /// Of a point that gives no secret.
    #[error("it is no key that can be used; make another one with `armor keygen`")]
    Weak,
    /// The kernel gave no random numbers, or the library refused.
    #[error("no key pair can be made: {0}")]
    Make(String),
}

fn to_text(prefix: &str, key: &[u8; 32]) -> String {
    let mut bytes = [0; 36];
    bytes[..32].copy_from_slice(key);
    bytes[32..].copy_from_slice(&crc32c::crc32c(key).to_le_bytes());
    prefix.to_owned() + &BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()
}

fn from_text(what: &'static str, prefix: &'static str, text: &str) -> Result<[u8; 32], KeyError> {
    let rest = text.strip_prefix(prefix).ok_or(KeyError::Prefix { what, prefix })?;
    let malformed = || KeyError::Text { prefix };
    if rest.len() > MAX_TEXT {
        return Err(malformed());
    }
    let bytes = BASE32_NOPAD.decode(rest.to_ascii_uppercase().as_bytes()).map_err(|_| malformed())?;
    let (key, sum) = bytes.split_first_chunk::<32>().ok_or_else(malformed)?;
    let sum: [u8; 4] = sum.try_into().map_err(|_| malformed())?;
    if u32::from_le_bytes(sum) == crc32c::crc32c(key) { Ok(*key) } else { Err(KeyError::Checksum) }
}

/// A node's public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// From its 32 bytes; `None` for a point of low order, with which every secret would be the same.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Option<PublicKey> {
        // Whether it is one shows in any secret that is made with it.
        let mut dh = DefaultResolver.resolve_dh(&DHChoice::Curve25519)?;
        let mut private = [0; 32];
        private[0] = 8;
        private[31] = 64;
        dh.set(&private);
        let mut shared = [0; 32];
        dh.dh(&bytes, &mut shared).ok()?;
        (shared != [0; 32]).then_some(PublicKey(bytes))
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        PublicKey::from_bytes(from_text("public", PUBLIC, text)?).ok_or(KeyError::Weak)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_text(PUBLIC, &self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A private key and the public one that belongs to it.
#[derive(Clone)]
pub struct KeyPair {
    private: [u8; 32],
    public: PublicKey,
}

impl KeyPair {
    /// A new one, from the kernel's random numbers.
    ///
    /// # Errors
    /// [`KeyError::Make`] when there are none.
    pub fn generate() -> Result<KeyPair, KeyError> {
        let mut private = [0; 32];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut private)
            .map_err(|_| KeyError::Make("the kernel gives no random numbers".to_owned()))?;
        KeyPair::of(private)
    }

    fn of(private: [u8; 32]) -> Result<KeyPair, KeyError> {
        let mut dh =
            DefaultResolver.resolve_dh(&DHChoice::Curve25519).ok_or_else(|| KeyError::Make("the library knows no X25519".to_owned()))?;
        dh.set(&private);
        let public = dh.pubkey().try_into().map_err(|_| KeyError::Make("a public key of another length".to_owned()))?;
        Ok(KeyPair { private, public: PublicKey(public) })
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The private key's text, for the file that holds it.
    #[must_use]
    pub fn private_text(&self) -> String {
        to_text(PRIVATE, &self.private)
    }

    /// From the private key's text; white space around it does not matter.
    ///
    /// # Errors
    /// What is wrong with the text. It is never quoted.
    pub fn from_private_text(text: &str) -> Result<KeyPair, KeyError> {
        KeyPair::of(from_text("private", PRIVATE, text.trim())?)
    }

    pub(super) fn private(&self) -> &[u8; 32] {
        &self.private
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_from_their_text() {
        let pair = KeyPair::generate().expect("made");
        let text = pair.public().to_string();
        assert_eq!(text.len(), PUBLIC.len() + 58);
        assert_eq!(text.parse(), Ok(pair.public()));
        let again = KeyPair::from_private_text(&format!("{}\n", pair.private_text())).expect("read");
        assert_eq!(again.public(), pair.public());
        assert_ne!(KeyPair::generate().expect("made").public(), pair.public());
        assert!(!format!("{pair:?}").contains(&pair.private_text()));
    }

    #[test]
    fn every_mistyped_character_is_noticed() {
        let text = KeyPair::generate().expect("made").public().to_string();
        for at in 0..text.len() {
            for with in ["a", "7", "1", "é", ""] {
                let mut other = text.clone();
                other.replace_range(at..=at, with);
                if other != text {
                    assert!(other.parse::<PublicKey>().is_err(), "{other}");
                }
            }
        }
    }

    #[test]
    fn a_private_key_is_no_public_one_and_a_point_without_secrets_is_none_at_all() {
        let pair = KeyPair::generate().expect("made");
        assert!(matches!(pair.private_text().parse::<PublicKey>(), Err(KeyError::Prefix { .. })));
        assert!(matches!(KeyPair::from_private_text(&pair.public().to_string()), Err(KeyError::Prefix { .. })));
        assert_eq!(to_text(PUBLIC, &[0; 32]).parse::<PublicKey>(), Err(KeyError::Weak));
        assert!(matches!("armor1".parse::<PublicKey>(), Err(KeyError::Text { .. })));
        assert!(matches!(format!("armor1{}", "a".repeat(10_000)).parse::<PublicKey>(), Err(KeyError::Text { .. })));
    }
}
