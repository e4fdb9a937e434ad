//! Captured element state on disk: two slots per element, checksummed (thesis §3.2.1).
//!
//! A save overwrites the slot with the older state, in place. A slot keeps the room of the largest state that it held, so a full disk
//! does not keep a state from being saved that is no larger. Nothing is read at a save but the first one of an element, and no byte is copied.
//!
//! Slot: magic, sequence number, length, checksum over these and the state (32 bytes), then the state; what lies behind is old.
//!
//! Invariants: the newest whole state is never written to, so it survives a full disk and a SIGKILL at any instruction; a state whose
//! checksum is wrong is never given back, the one before is. Nothing is synced: a state outlives its ARMOR, not its node.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"ARMORst2";
const HEADER: usize = 32;

/// Largest state of one element; a larger one is refused.
pub const MAX_STATE: usize = 256 << 20;

/// Captured states of one ARMOR, a pair of files per element.
#[derive(Debug)]
pub struct CaptureStore {
    directory: PathBuf,
    newest: HashMap<String, Newest>,
}

/// Why a state was not saved. The one that was saved before stays.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The system refused.
    #[error("{}: {source}", file.display())]
    File {
        /// Slot that was being written.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More than [`MAX_STATE`].
    #[error("{}: the state has {bytes} bytes, at most {MAX_STATE} are kept", file.display())]
    TooLarge {
        /// Slot that it was meant for.
        file: PathBuf,
        /// Its size.
        bytes: usize,
    },
    /// Not a name that elements have.
    #[error("{element:?} is no name of an element")]
    Name {
        /// What was given.
        element: String,
    },
}

/// Which slot holds the newest whole state.
#[derive(Debug, Clone, Copy)]
struct Newest {
    sequence: u64,
    slot: usize,
}

/// What stands before a state.
struct Header {
    sequence: u64,
    length: usize,
    checksum: u64,
}

impl CaptureStore {
    /// Opens (and makes) the directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path) -> io::Result<CaptureStore> {
        std::fs::create_dir_all(directory)?;
        Ok(CaptureStore { directory: directory.to_owned(), newest: HashMap::new() })
    }

    fn file(&self, element: &str, slot: usize) -> PathBuf {
        self.directory.join(format!("{element}.{slot}"))
    }

    /// Writes a state over the older one.
    ///
    /// # Errors
    /// The state that was saved before stays.
    pub fn save(&mut self, element: &str, state: &[u8]) -> Result<(), CaptureError> {
        if !is_name(element) {
            return Err(CaptureError::Name { element: element.to_owned() });
        }
        let newest = match self.newest.get(element) {
            Some(newest) => *newest,
            None => self.look(element).map_or(Newest { sequence: 0, slot: 1 }, |(newest, _)| newest),
        };
        let next = Newest { sequence: newest.sequence + 1, slot: 1 - newest.slot };
        let file = self.file(element, next.slot);
        if state.len() > MAX_STATE {
            return Err(CaptureError::TooLarge { file, bytes: state.len() });
        }
        write(&file, next.sequence, state).map_err(|source| CaptureError::File { file, source })?;
        self.newest.insert(element.to_owned(), next);
        Ok(())
    }

    /// The newest whole state of an element.
    #[must_use]
    pub fn load(&self, element: &str) -> Option<Vec<u8>> {
        self.look(element).map(|(_, state)| state)
    }

    /// Reads the slot that says to be newer, and the other one when it is not whole.
    fn look(&self, element: &str) -> Option<(Newest, Vec<u8>)> {
        let mut slots: Vec<(Header, File, usize)> =
            (0..2).filter_map(|slot| open(&self.file(element, slot)).map(|(header, file)| (header, file, slot))).collect();
        slots.sort_by_key(|(header, ..)| std::cmp::Reverse(header.sequence));
        slots.into_iter().find_map(|(header, file, slot)| {
            let state = header.state(file)?;
            Some((Newest { sequence: header.sequence, slot }, state))
        })
    }
}

fn write(path: &Path, sequence: u64, state: &[u8]) -> io::Result<()> {
    // Not truncated: that would give room away which a full disk does not give back.
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..24].copy_from_slice(&(state.len() as u64).to_le_bytes());
    header[24..].copy_from_slice(&checksum(sequence, state).to_le_bytes());
    file.write_all_at(state, HEADER as u64)?;
    file.write_all_at(&header, 0)
}

fn open(path: &Path) -> Option<(Header, File)> {
    let mut file = File::open(path).ok()?;
    let mut header = [0; HEADER];
    file.read_exact(&mut header).ok()?;
    let number = |at: usize| header[at..at + 8].try_into().ok().map(u64::from_le_bytes);
    let (sequence, length, checksum) = (number(8)?, usize::try_from(number(16)?).ok()?, number(24)?);
    (&header[..8] == MAGIC && length <= MAX_STATE).then_some((Header { sequence, length, checksum }, file))
}

impl Header {
    /// The state behind the header, when it is whole.
    fn state(&self, file: File) -> Option<Vec<u8>> {
        // The length is believed only as far as the file goes.
        let held = usize::try_from(file.metadata().ok()?.len()).ok()?.saturating_sub(HEADER);
        if self.length > held {
            return None;
        }
        let mut state = Vec::with_capacity(self.length);
        file.take(self.length as u64).read_to_end(&mut state).ok()?;
        (state.len() == self.length && checksum(self.sequence, &state) == self.checksum).then_some(state)
    }
}

fn checksum(sequence: u64, state: &[u8]) -> u64 {
    let mut hash = Xxh3::with_seed(sequence);
    hash.update(&(state.len() as u64).to_le_bytes());
    hash.update(state);
    hash.digest()
}

/// Names of elements become names of files.
fn is_name(element: &str) -> bool {
    (1..=64).contains(&element.len()) && element.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn store(directory: &tempfile::TempDir) -> CaptureStore {
        CaptureStore::open(directory.path()).unwrap()
    }

    #[test]
    fn the_newest_state_is_given_back_also_to_the_next_life() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = store(&directory);
        for number in 0..5_u8 {
            first.save("e", &[number; 100]).unwrap();
            assert_eq!(store(&directory).load("e").unwrap(), [number; 100]);
        }
        let mut second = store(&directory);
        second.save("e", b"").unwrap();
        assert_eq!(second.load("e").unwrap(), b"");
        second.save("e", b"short").unwrap();
        assert_eq!(store(&directory).load("e").unwrap(), b"short");
    }

    /// Wherever a save is cut off, the state before it is there; only when its last byte is written the new one is.
    #[test]
    fn a_save_may_end_at_any_byte() {
        for (old, new) in [(&b"some old state"[..], &b"new"[..]), (b"old", b"a longer new state"), (b"", b"x"), (b"equal", b"alike")] {
            let directory = tempfile::tempdir().unwrap();
            let mut whole = store(&directory);
            whole.save("e", old).unwrap();
            whole.save("e", b"the state before").unwrap();
            let [torn_slot, kept_slot] = [whole.file("e", 0), whole.file("e", 1)];
            let [before, kept] = [&torn_slot, &kept_slot].map(|slot| std::fs::read(slot).unwrap());
            whole.save("e", new).unwrap();
            let after = std::fs::read(&torn_slot).unwrap()[..HEADER + new.len()].to_vec();
            assert_ne!(before, after);
            // The order in which a save writes: the state, then what stands before it.
            let order: Vec<usize> = (HEADER..after.len()).chain(0..HEADER).collect();
            for written in 0..=order.len() {
                let mut torn = before.clone();
                for &at in &order[..written] {
                    torn.resize(torn.len().max(at + 1), 0);
                    torn[at] = after[at];
                }
                let whole = torn.get(..after.len()) == Some(&after[..]);
                std::fs::write(&torn_slot, torn).unwrap();
                std::fs::write(&kept_slot, &kept).unwrap();
                let expected = if whole { new } else { b"the state before" };
                assert_eq!(store(&directory).load("e").unwrap(), expected, "{written} bytes of {new:?} over {old:?}");
                // The next life writes over the torn slot, not over what it has.
                let mut next = store(&directory);
                next.save("e", b"next").unwrap();
                assert_eq!(next.load("e").unwrap(), b"next");
                assert_eq!(std::fs::read(&kept_slot).unwrap() == kept, !whole);
            }
        }
    }

    #[test]
    fn damage_is_found_and_lengths_are_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(&directory);
        store.save("e", b"first").unwrap();
        store.save("e", b"second").unwrap();
        let newest = store.file("e", 1);
        let good = std::fs::read(&newest).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&newest, bad).unwrap();
            assert_eq!(store.load("e").unwrap(), b"first", "byte {at}");
        }
        let mut long = good;
        long[16..24].copy_from_slice(&(MAX_STATE as u64).to_le_bytes());
        std::fs::write(&newest, long).unwrap();
        assert_eq!(store.load("e").unwrap(), b"first");
    }

    #[test]
    fn what_is_no_element_or_too_large_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(&directory);
        for name in ["", "../e", "a/b", "a.0", "é", &"e".repeat(65)] {
            assert!(matches!(store.save(name, b"x"), Err(CaptureError::Name { .. })), "{name}");
        }
        store.save("e", b"small").unwrap();
        let refused = store.save("e", &vec![0; MAX_STATE + 1]).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{}: the state has", store.file("e", 1).display())), "{refused}");
        assert_eq!(store.load("e").unwrap(), b"small");
    }

    #[test]
    fn an_element_that_was_never_captured_has_no_state() {
        let directory = tempfile::tempdir().unwrap();
        assert!(store(&directory).load("e").is_none());
    }
}
