//! One captured state as it is kept: a head that says whose state it is, which one, and what it must look like; then the state.
//!
//! Head, 112 bytes: magic with the version, sequence, length, checksum of the state, name of the element (its length, then 64 bytes), checksum of
//! the head. Numbers are little-endian; checksums are XXH3, that of the state seeded with its sequence.
//!
//! Invariant: a state is given back under the name and the number under which it was kept, bit by bit, or not at all.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::MAX_STATE;

/// The last byte is the version: another one is refused.
const MAGIC: &[u8; 8] = b"ARMORst3";
/// Longest name of an element.
pub(super) const MAX_NAME: usize = 64;
const SUM_AT: usize = 104;
/// Bytes before a state.
pub(super) const HEAD: usize = 112;

/// What stands before a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) element: String,
    /// Which of the element's states; grows by one with each.
    pub(super) sequence: u64,
    pub(super) length: usize,
    sum: u64,
}

/// What lies where a head is kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing was ever written there.
    Nothing,
    Head(Head),
    /// No head of this version: why not.
    Damaged(&'static str),
}

impl Head {
    pub(super) fn of(element: &str, sequence: u64, state: &[u8]) -> Head {
        Head { element: element.to_owned(), sequence, length: state.len(), sum: xxh3_64_with_seed(state, sequence) }
    }

    pub(super) fn encode(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let name = &self.element.as_bytes()[..self.element.len().min(MAX_NAME)];
        head[..8].copy_from_slice(MAGIC);
        head[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        head[16..24].copy_from_slice(&(self.length as u64).to_le_bytes());
        head[24..32].copy_from_slice(&self.sum.to_le_bytes());
        head[32] = name.len() as u8;
        head[33..33 + name.len()].copy_from_slice(name);
        let sum = xxh3_64(&head[..SUM_AT]);
        head[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        head
    }

    pub(super) fn decode(head: &[u8; HEAD]) -> Found {
        if head.iter().all(|&byte| byte == 0) {
            return Found::Nothing;
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| head[at + index]));
        if number(SUM_AT) != xxh3_64(&head[..SUM_AT]) {
            return Found::Damaged("the checksum of what stands before the state is wrong");
        }
        if &head[..8] != MAGIC {
            return Found::Damaged("it was written by another version of ARMOR");
        }
        let (length, name) = (usize::try_from(number(16)), head.get(33..33 + usize::from(head[32])));
        let name = name.filter(|name| name.len() <= MAX_NAME).and_then(|name| std::str::from_utf8(name).ok());
        match (length, name) {
            (Ok(length), Some(name)) if length <= MAX_STATE && is_name(name) => {
                Found::Head(Head { element: name.to_owned(), sequence: number(8), length, sum: number(24) })
            }
            _ => Found::Damaged("what stands before the state makes no sense"),
        }
    }

    /// Whether these bytes are the state.
    pub(super) fn is_of(&self, state: &[u8]) -> bool {
        state.len() == self.length && xxh3_64_with_seed(state, self.sequence) == self.sum
    }
}

/// What elements may be called.
pub(super) fn is_name(element: &str) -> bool {
    (1..=MAX_NAME).contains(&element.len()) && element.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_and_no_flipped_bit_of_it_or_of_the_state_is_accepted() {
        let head = Head::of("APP_SERVER_DB", 7, b"state");
        let good = head.encode();
        assert_eq!(Head::decode(&good), Found::Head(head.clone()));
        assert!(head.is_of(b"state"));
        for bit in 0..HEAD * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Head::decode(&bad), Found::Damaged(_)), "bit {bit}");
        }
        for bit in 0..5 * 8 {
            let mut bad = *b"state";
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!head.is_of(&bad));
        }
        assert!(!head.is_of(b"stat") && !Head::of("APP_SERVER_DB", 8, b"stat").is_of(b"state"));
        assert_eq!(Head::decode(&[0; HEAD]), Found::Nothing);
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let mut newer = Head::of("e", 1, b"").encode();
        newer[7] = b'9';
        let sum = xxh3_64(&newer[..SUM_AT]);
        newer[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Head::decode(&newer), Found::Damaged("it was written by another version of ARMOR"));
    }
}
