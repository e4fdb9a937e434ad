//! Comparing what a new server process says with what the client has been given, without keeping the bytes.
//!
//! The hash is CRC32C and CRC32 side by side, 64 bits that two polynomials without a common factor give. Its whole state is the hash so
//! far, so it goes on where it was when the ARMOR's process has died.
//!
//! Invariant: both ends hash the same range, from the mark to what the client was given, whatever the pieces.

use super::saved::SavedRegeneration;

/// Hash of a growing range of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct RangeHash {
    castagnoli: u32,
    ieee: u32,
}

impl RangeHash {
    /// Goes on from what [`RangeHash::digest`] said.
    pub(crate) fn resume(digest: u64) -> Self {
        RangeHash { castagnoli: (digest >> 32) as u32, ieee: digest as u32 }
    }

    /// Forgets the range and begins another one.
    pub(crate) fn restart(&mut self) {
        *self = RangeHash::default();
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.castagnoli = crc32c::crc32c_append(self.castagnoli, bytes);
        let mut ieee = crc32fast::Hasher::new_with_initial(self.ieee);
        ieee.update(bytes);
        self.ieee = ieee.finalize();
    }

    pub(crate) fn digest(&self) -> u64 {
        u64::from(self.castagnoli) << 32 | u64::from(self.ieee)
    }
}

/// What a new process still has to say again.
pub(crate) struct Regeneration {
    from: u64,
    at: u64,
    until: u64,
    expected: u64,
    hash: RangeHash,
}

/// What became of a piece of a regenerated stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Regenerated {
    /// All of it was known; more is to come.
    Partly,
    /// The known part is complete after so many bytes of the piece, and equal.
    Same(usize),
    /// The known part is complete after so many bytes of the piece, and not equal.
    Different(usize),
}

impl Regeneration {
    pub(crate) fn new(from: u64, until: u64, expected: u64) -> Self {
        Regeneration { from, at: from, until, expected, hash: RangeHash::default() }
    }

    pub(crate) fn save(&self) -> SavedRegeneration {
        let Regeneration { from, at, until, expected, .. } = *self;
        SavedRegeneration { from, at, until, expected, hash: self.hash.digest() }
    }

    pub(crate) fn restore(saved: &SavedRegeneration) -> Option<Self> {
        let SavedRegeneration { from, at, until, expected, hash } = *saved;
        (from <= at && at <= until).then(|| Regeneration { from, at, until, expected, hash: RangeHash::resume(hash) })
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) -> Regenerated {
        let missing = self.missing();
        if (bytes.len() as u64) < missing {
            self.hash.update(bytes);
            self.at += bytes.len() as u64;
            return Regenerated::Partly;
        }
        // `missing` is at most the length of a slice here.
        let known = missing as usize;
        self.hash.update(&bytes[..known]);
        self.at = self.until;
        if self.hash.digest() == self.expected { Regenerated::Same(known) } else { Regenerated::Different(known) }
    }

    /// Bytes to come that are already known.
    pub(crate) fn missing(&self) -> u64 {
        self.until - self.at
    }

    /// Bytes that were said again.
    pub(crate) fn said(&self) -> u64 {
        self.at - self.from
    }

    /// Bytes that have to be said again in all.
    pub(crate) fn length(&self) -> u64 {
        self.until - self.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_matter_and_a_changed_byte_does() {
        let mut client = RangeHash::default();
        client.update(b"hello ");
        client.update(b"world");
        let mut same = Regeneration::new(7, 18, client.digest());
        assert_eq!(same.take(b"hel"), Regenerated::Partly);
        assert_eq!(same.take(b"lo world and more"), Regenerated::Same(8));
        let mut other = Regeneration::new(7, 18, client.digest());
        assert_eq!(other.take(b"hello_world"), Regenerated::Different(11));
        let mut resumed = RangeHash::resume(client.digest());
        resumed.update(b"!");
        client.update(b"!");
        assert_eq!(resumed, client);
        client.restart();
        assert_eq!(Regeneration::new(18, 18, client.digest()).take(b""), Regenerated::Same(0));
    }
}
