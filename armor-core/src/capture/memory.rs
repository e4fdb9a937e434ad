//! Captured states in memory that outlives the process: a memfd, which somebody else (the vault) keeps open too.
//!
//! The memory is written by `pwrite`, never mapped: nobody who shortens it can hurt, and nothing here is unsafe. It is sparse, so that each slot
//! has a place of its own for good, and takes as much as the largest state that it held. A save is two writes: the state into the slot that holds the older
//! one, then the head before it, which lies in one page and so is whole or not there. Nothing is allocated, nothing is synced.
//!
//! ```text
//! page with the number of the memory | element 0: slot 0, slot 1 | element 1: slot 0, slot 1 | …
//! ```
//!
//! Invariant: the newest whole state is never written to, so a death at any instruction leaves it.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags};
use xxhash_rust::xxh3::xxh3_64;

use super::record::{Found, HEAD, Head};
use super::{CaptureError, Kept, MAX_STATE, Refused, check};

/// Elements whose states are kept at once.
pub const MAX_ELEMENTS: u32 = 64;

const MAGIC: &[u8; 8] = b"ARMORsm1";
const PAGE: u64 = 4096;
/// From one slot to the next; a multiple of a page, so that a head never lies across two.
const STRIDE: u64 = MAX_STATE as u64 + PAGE;

/// The memory of one ARMOR.
#[derive(Debug)]
pub struct StateMemory {
    memory: File,
    number: u64,
    places: HashMap<String, Place>,
    used: u32,
}

/// Where the states of an element lie.
#[derive(Debug, Clone, Copy)]
struct Place {
    index: u32,
    /// The slot with the newest whole state.
    newest: u32,
}

impl StateMemory {
    /// New memory, with a number that no other one has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create() -> io::Result<StateMemory> {
        let memory = rustix::fs::memfd_create("armor-states", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK)?;
        let mut memory = StateMemory { memory: memory.into(), number: 0, places: HashMap::new(), used: 0 };
        memory.renumber()?;
        Ok(memory)
    }

    /// The memory of an earlier life, with what is in it.
    ///
    /// # Errors
    /// It is no such memory.
    pub fn open(descriptor: OwnedFd) -> io::Result<(StateMemory, Vec<Kept>, Vec<Refused>)> {
        let memory = File::from(descriptor);
        let mut page = [0; 24];
        memory.read_exact_at(&mut page, 0)?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| page[at + index]));
        if &page[..8] != MAGIC || number(16) != xxh3_64(&page[..16]) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it was not written by this version of ARMOR, or is damaged"));
        }
        let mut memory = StateMemory { memory, number: number(8), places: HashMap::new(), used: 0 };
        let (mut kept, mut refused) = (Vec::new(), Vec::new());
        let length = memory.memory.metadata()?.len();
        for index in 0..MAX_ELEMENTS {
            if at(index, 0) >= length {
                break;
            }
            memory.used = index + 1;
            memory.read(index, &mut kept, &mut refused);
        }
        Ok((memory, kept, refused))
    }

    /// A number that is drawn when the memory is new, and when it turns out not to hold all that it should.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Draws another number.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn renumber(&mut self) -> io::Result<()> {
        // Seeded by the system's randomness, once per process and anew for each.
        self.number = RandomState::new().hash_one(std::process::id()).max(1);
        let mut page = [0; 24];
        page[..8].copy_from_slice(MAGIC);
        page[8..16].copy_from_slice(&self.number.to_le_bytes());
        let sum = xxh3_64(&page[..16]);
        page[16..].copy_from_slice(&sum.to_le_bytes());
        self.memory.write_all_at(&page, 0)
    }

    /// What somebody else has to keep so that the memory outlives this process.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Writes a state over the older one of this element.
    ///
    /// # Errors
    /// The state that was saved before stays.
    pub fn save(&mut self, element: &str, sequence: u64, state: &[u8]) -> Result<(), CaptureError> {
        check(element, state)?;
        let place = match self.places.get(element) {
            Some(place) => Place { newest: 1 - place.newest, ..*place },
            None if self.used < MAX_ELEMENTS => Place { index: self.used, newest: 0 },
            None => return Err(CaptureError::Full),
        };
        let at = at(place.index, place.newest);
        let head = Head::of(element, sequence, state).encode();
        self.memory.write_all_at(state, at + HEAD as u64).map_err(CaptureError::Memory)?;
        self.memory.write_all_at(&head, at).map_err(CaptureError::Memory)?;
        self.used = self.used.max(place.index + 1);
        self.places.insert(element.to_owned(), place);
        Ok(())
    }

    /// Reads the two slots of a place.
    fn read(&mut self, index: u32, kept: &mut Vec<Kept>, refused: &mut Vec<Refused>) {
        let mut heads = Vec::new();
        let mut damaged = None;
        for slot in 0..2 {
            let mut head = [0; HEAD];
            // Behind the end of the memory lies nothing.
            let decoded = match self.memory.read_exact_at(&mut head, at(index, slot)) {
                Ok(()) => Head::decode(&head),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Found::Nothing,
                Err(_) => Found::Damaged("it cannot be read"),
            };
            match decoded {
                Found::Head(head) => heads.push((slot, head)),
                Found::Damaged(reason) => damaged = Some(reason),
                Found::Nothing => {}
            }
        }
        heads.sort_by_key(|(_, head)| std::cmp::Reverse(head.sequence));
        let element = heads.first().map(|(_, head)| head.element.clone());
        let name = || element.clone().unwrap_or_else(|| format!("number {index} in memory"));
        if let Some(reason) = damaged {
            refused.push(Refused { element: name(), reason: format!("a slot in memory: {reason}") });
        }
        let mut found = None;
        for (slot, head) in heads {
            match self.state(index, slot, &head) {
                Some(state) => {
                    found = Some((slot, head, state));
                    break;
                }
                // The older one is torn when a save was cut off; the newer one never is.
                None => {
                    refused.push(Refused { element: name(), reason: format!("state {} in memory: its checksum is wrong", head.sequence) })
                }
            }
        }
        match found {
            Some((slot, head, state)) => {
                self.places.insert(head.element.clone(), Place { index, newest: slot });
                kept.push(Kept { element: head.element, sequence: head.sequence, state });
            }
            None => {
                // The element writes here again.
                if let Some(element) = element {
                    self.places.insert(element, Place { index, newest: 1 });
                }
            }
        }
    }

    fn state(&self, index: u32, slot: u32, head: &Head) -> Option<Vec<u8>> {
        // The length is believed only as far as the memory goes.
        let from = at(index, slot) + HEAD as u64;
        let held = self.memory.metadata().ok()?.len().saturating_sub(from);
        if head.length as u64 > held {
            return None;
        }
        let mut state = vec![0; head.length];
        self.memory.read_exact_at(&mut state, from).ok()?;
        head.is_of(&state).then_some(state)
    }
}

fn at(index: u32, slot: u32) -> u64 {
    PAGE + (u64::from(index) * 2 + u64::from(slot)) * STRIDE
}
