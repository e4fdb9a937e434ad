//! The list of a network's nodes: name → public key, a line each.
//!
//! ```text
//! # comment
//! ftm   armor1…
//! node1 armor1…
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::keys::{KeyError, PublicKey};

/// Most nodes in a list.
pub const MAX_TRUSTED: usize = 4096;
/// Longest name.
const MAX_NAME: usize = 48;

/// What is wrong with a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A name that no node can have.
    #[error("{name:?} is no name of a node: take 1 to {MAX_NAME} letters, digits, '-', '_' or '.', the first one a letter or digit")]
    Name {
        /// The name.
        name: String,
    },
    /// The name has another key.
    #[error("{name} has another key in the list, {known}; take that one out first")]
    OtherKey {
        /// The name.
        name: String,
        /// Its key.
        known: PublicKey,
    },
    /// The key belongs to another name.
    #[error("this key is {known}'s in the list; each node has a key of its own")]
    OtherName {
        /// Whose it is.
        known: String,
    },
    /// The bound.
    #[error("the list holds {MAX_TRUSTED} nodes, which is all that it may")]
    Full,
    /// No key.
    #[error("the key of {name}: {error}")]
    Key {
        /// Whose.
        name: String,
        /// Why.
        error: KeyError,
    },
    /// A line that is no entry.
    #[error("expected a name and a key, found {found:?}")]
    Line {
        /// Its beginning.
        found: String,
    },
    /// Any of these, in a file.
    #[error("line {line}: {error}")]
    At {
        /// From 1.
        line: usize,
        /// What is wrong there.
        error: Box<TrustError>,
    },
}

/// The nodes that are trusted.
///
/// Invariant: a name has one key and a key one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted {
    keys: BTreeMap<String, PublicKey>,
    names: HashMap<PublicKey, String>,
}

impl Trusted {
    /// From a file's text.
    ///
    /// # Errors
    /// The first line that is wrong; an empty list is none.
    pub fn parse(text: &str) -> Result<Trusted, TrustError> {
        let mut trusted = Trusted::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                trusted.add_line(line).map_err(|error| TrustError::At { line: index + 1, error: Box::new(error) })?;
            }
        }
        Ok(trusted)
    }

    fn add_line(&mut self, line: &str) -> Result<(), TrustError> {
        let mut words = line.split_whitespace();
        let (Some(name), Some(key), None) = (words.next(), words.next(), words.next()) else {
            return Err(TrustError::Line { found: line.chars().take(40).collect() });
        };
        let key = key.parse().map_err(|error| TrustError::Key { name: name.chars().take(MAX_NAME).collect(), error })?;
        self.add(name, key).map(|_| ())
    }

    /// Adds a node; false when it is in the list already, with this key.
    ///
    /// # Errors
    /// When name or key stand for another one, or the list is full.
    pub fn add(&mut self, name: &str, key: PublicKey) -> Result<bool, TrustError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) || name.starts_with(['.', '-']) {
            return Err(TrustError::Name { name: name.chars().take(MAX_NAME).collect() });
        }
        match self.keys.get(name) {
            Some(known) if *known == key => return Ok(false),
            Some(known) => return Err(TrustError::OtherKey { name: name.to_owned(), known: *known }),
            None => {}
        }
        if let Some(known) = self.names.get(&key) {
            return Err(TrustError::OtherName { known: known.clone() });
        }
        if self.keys.len() >= MAX_TRUSTED {
            return Err(TrustError::Full);
        }
        self.keys.insert(name.to_owned(), key);
        self.names.insert(key, name.to_owned());
        Ok(true)
    }

    /// Takes a node out; its key, if it was there.
    pub fn remove(&mut self, name: &str) -> Option<PublicKey> {
        let key = self.keys.remove(name)?;
        self.names.remove(&key);
        Some(key)
    }

    /// The key of a node.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<PublicKey> {
        self.keys.get(name).copied()
    }

    /// Whose key it is.
    #[must_use]
    pub fn name(&self, key: &PublicKey) -> Option<&str> {
        self.names.get(key).map(String::as_str)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, PublicKey)> {
        self.keys.iter().map(|(name, key)| (&**name, *key))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// The text that [`Trusted::parse`] reads.
impl fmt::Display for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(name, key)| writeln!(f, "{name} {key}"))
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use crate::secure::KeyPair;
    use proptest::prelude::*;

    fn key() -> PublicKey {
        KeyPair::generate().expect("made").public()
    }

    #[test]
    fn a_list_comes_back_from_its_text_with_comments_and_blank_lines_between() {
        let (a, b) = (key(), key());
        let trusted = Trusted::parse(&format!("# nodes\n\nftm {a}  # the first\n\tnode-1.x   {b}\n")).expect("read");
        assert_eq!((trusted.key("ftm"), trusted.name(&b), trusted.len()), (Some(a), Some("node-1.x"), 2));
        assert_eq!(Trusted::parse(&trusted.to_string()), Ok(trusted));
    }

    #[test]
    fn a_name_has_one_key_and_a_key_one_name() {
        let (a, b) = (key(), key());
        let mut trusted = Trusted::default();
        assert_eq!(trusted.add("x", a), Ok(true));
        assert_eq!(trusted.add("x", a), Ok(false));
        assert_eq!(trusted.add("x", b), Err(TrustError::OtherKey { name: "x".into(), known: a }));
        assert_eq!(trusted.add("y", a), Err(TrustError::OtherName { known: "x".into() }));
        assert_eq!(trusted.remove("x"), Some(a));
        assert_eq!(trusted.remove("x"), None);
        assert_eq!(trusted.add("y", a), Ok(true));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let good = key();
        for (text, expected) in [
            (format!("a {good}\nb"), "line 2: expected a name and a key"),
            (format!("a/b {good}"), "line 1: \"a/b\" is no name of a node"),
            ("a armor1xyz".to_owned(), "line 1: the key of a: it is no key"),
            (format!("a {good} {good}"), "line 1: expected a name and a key"),
            (format!("a {good}\nb {good}"), "line 2: this key is a's in the list"),
        ] {
            let error = Trusted::parse(&text).expect_err("is wrong").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_read_and_never_panics(text in "\\PC*") {
            let _ = Trusted::parse(&text);
        }
    }
}
