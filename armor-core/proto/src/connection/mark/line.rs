//! One line of a protocol, of which only the two ends are kept: a name, a number or a version is there, and what may be long
//! (a path, a cookie) lies between.
//!
//! Invariant: a line takes at most [`HEAD`] + [`TAIL`] bytes of memory, however long it is.

use serde::{Deserialize, Serialize};

/// Bytes kept from the beginning of a line.
pub(super) const HEAD: usize = 64;
/// Bytes kept from the end of a line that is longer.
pub(super) const TAIL: usize = 16;

/// A line that comes in pieces.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Line {
    #[serde(with = "serde_bytes")]
    head: Vec<u8>,
    #[serde(with = "serde_bytes")]
    tail: Vec<u8>,
    /// Something between the two was dropped.
    cut: bool,
}

impl Line {
    /// Takes bytes up to and with the line feed, if it is among them. How many were taken, and whether the line is complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                self.keep(&bytes[..end]);
                (end + 1, true)
            }
            None => {
                self.keep(bytes);
                (bytes.len(), false)
            }
        }
    }

    fn keep(&mut self, mut bytes: &[u8]) {
        let room = (HEAD - self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        bytes = &bytes[room..];
        if let Some(skip) = bytes.len().checked_sub(TAIL) {
            self.cut |= skip > 0 || !self.tail.is_empty();
            bytes = &bytes[skip..];
            self.tail.clear();
        }
        if let Some(skip) = (self.tail.len() + bytes.len()).checked_sub(TAIL) {
            self.cut |= skip > 0;
            self.tail.drain(..skip);
        }
        self.tail.extend_from_slice(bytes);
    }

    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.tail.clear();
        self.cut = false;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// The beginning of the line, as far as it is kept.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Whether [`Line::head`] is the whole line.
    pub(super) fn is_whole(&self) -> bool {
        self.tail.is_empty()
    }

    /// Whether the line ends with `end`, of at most [`TAIL`] bytes.
    pub(super) fn ends_with(&self, end: &[u8]) -> bool {
        if self.tail.len() >= end.len() {
            return self.tail.ends_with(end);
        }
        let (before, rest) = end.split_at(end.len() - self.tail.len());
        !self.cut && self.tail == rest && self.head.ends_with(before)
    }

    /// Drops the carriage return at the end; false when there is none.
    pub(super) fn strip_return(&mut self) -> bool {
        let end = if self.tail.is_empty() { &mut self.head } else { &mut self.tail };
        let found = end.last() == Some(&b'\r');
        if found {
            end.pop();
        }
        found
    }

    /// Whether it can have come to be by [`Line::take`].
    pub(super) fn is_sound(&self) -> bool {
        let full = self.head.len() == HEAD;
        self.head.len() <= HEAD && self.tail.len() <= TAIL && (full || self.is_whole()) && (!self.cut || full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_line_are_the_same_whatever_the_pieces() {
        for length in [0, 1, 63, 64, 65, 79, 80, 81, 82, 300] {
            let text: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).chain(*b"\r\nrest").collect();
            for piece in [1, 2, 7, 64, 1000] {
                let mut line = Line::default();
                let mut taken = 0;
                for bytes in text.chunks(piece) {
                    let (n, complete) = line.take(bytes);
                    taken += n;
                    assert!(line.is_sound());
                    if complete {
                        break;
                    }
                }
                assert_eq!(taken, length + 2);
                assert!(line.strip_return());
                assert_eq!(line.head(), &text[..length.min(HEAD)], "{length} in pieces of {piece}");
                for end in 0..=length.min(10) {
                    assert!(line.ends_with(&text[length - end..length]), "{length} in pieces of {piece}: last {end}");
                }
                assert!(!line.ends_with(b"#"));
                assert_eq!(line.is_whole(), length <= HEAD, "{length}");
            }
        }
    }
}
