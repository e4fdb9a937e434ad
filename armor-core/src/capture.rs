//! Captured element state on disk: double-buffered and checksummed (thesis §3.2.1, design §4).
//!
//! Two slots per element; the older one is overwritten, so one whole state is there whatever moment the ARMOR dies at.
//! Invariant: a state whose checksum is wrong is never given back; the other slot is.

use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"ARMORst1";
const HEADER: usize = 24;

/// Captured states of one ARMOR, a pair of files per element.
#[derive(Debug)]
pub struct CaptureStore {
    directory: PathBuf,
    sequence: u64,
}

impl CaptureStore {
    /// Opens (and makes) the directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path) -> io::Result<CaptureStore> {
        std::fs::create_dir_all(directory)?;
        Ok(CaptureStore { directory: directory.to_owned(), sequence: 0 })
    }

    fn slot(&self, element: &str, slot: u64) -> PathBuf {
        self.directory.join(format!("{element}.{slot}"))
    }

    /// Writes a state into the older slot.
    ///
    /// # Errors
    /// The state that was captured before stays in place.
    pub fn save(&mut self, element: &str, state: &[u8]) -> io::Result<()> {
        let newest = (0..2).filter_map(|slot| self.read(element, slot).map(|(sequence, _)| (sequence, slot))).max();
        let (sequence, slot) = newest.map_or((0, 1), |newest| newest);
        self.sequence = self.sequence.max(sequence) + 1;
        let mut bytes = Vec::with_capacity(HEADER + state.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&checksum(self.sequence, state).to_le_bytes());
        bytes.extend_from_slice(state);
        std::fs::write(self.slot(element, 1 - slot), bytes)
    }

    /// The newest whole state of an element.
    #[must_use]
    pub fn load(&self, element: &str) -> Option<Vec<u8>> {
        (0..2).filter_map(|slot| self.read(element, slot)).max_by_key(|(sequence, _)| *sequence).map(|(_, state)| state)
    }

    fn read(&self, element: &str, slot: u64) -> Option<(u64, Vec<u8>)> {
        let bytes = std::fs::read(self.slot(element, slot)).ok()?;
        let (header, state) = bytes.split_at_checked(HEADER)?;
        let number = |range: std::ops::Range<usize>| header[range].try_into().ok().map(u64::from_le_bytes);
        let (sequence, sum) = (number(8..16)?, number(16..24)?);
        (&header[..8] == MAGIC && sum == checksum(sequence, state)).then(|| (sequence, state.to_vec()))
    }
}

fn checksum(sequence: u64, state: &[u8]) -> u64 {
    xxh3_64(state) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_state_is_refused_and_the_one_before_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = CaptureStore::open(directory.path()).unwrap();
        store.save("e", b"first").unwrap();
        store.save("e", b"second").unwrap();
        assert_eq!(store.load("e").unwrap(), b"second");
        let newest = (0..2).max_by_key(|slot| store.read("e", *slot).unwrap().0).unwrap();
        let mut bytes = std::fs::read(store.slot("e", newest)).unwrap();
        bytes.truncate(bytes.len() - 1);
        std::fs::write(store.slot("e", newest), bytes).unwrap();
        assert_eq!(store.load("e").unwrap(), b"first");
        store.save("e", b"third").unwrap();
        assert_eq!(store.load("e").unwrap(), b"third");
    }

    #[test]
    fn an_element_that_was_never_captured_has_no_state() {
        let directory = tempfile::tempdir().unwrap();
        assert!(CaptureStore::open(directory.path()).unwrap().load("e").is_none());
    }
}
