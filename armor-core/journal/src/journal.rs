//! The whole journal of one ARMOR.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::blocks::Free;
use crate::layout::{self, ABOUT_SIZE, Layout};
use crate::mapping::Mapping;
use crate::record::Record;
use crate::recovery::{self, Recovery};
use crate::{ABOUT_LIMIT, STATE_LIMIT};

/// How much a journal can hold. What is not used costs no memory, only address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Records; one per end of a connection.
    pub records: u32,
    /// Blocks of 4 KiB, for bytes that come in small pieces.
    pub small_blocks: u32,
    /// Blocks of 128 KiB, for bytes that come in bulk.
    pub large_blocks: u32,
}

impl Default for Bounds {
    /// 65,536 connections; 512 MiB in small and 1 GiB in large blocks.
    fn default() -> Self {
        Bounds { records: 65_536, small_blocks: 131_072, large_blocks: 8_192 }
    }
}

impl Bounds {
    /// Most of anything, so that no offset overflows.
    const MOST: u32 = 1 << 24;

    pub(crate) fn check(&self) -> Result<(), JournalError> {
        let parts = [self.records, self.small_blocks, self.large_blocks];
        if parts.iter().any(|part| *part == 0 || *part > Self::MOST) {
            return Err(JournalError::Bounds { most: Self::MOST });
        }
        Ok(())
    }
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The kernel's.
    #[error("shared memory for the journal: {0}")]
    Memory(#[from] io::Error),
    /// The bounds.
    #[error("a journal has at least one record and one block of each size, and at most {most} of each")]
    Bounds {
        /// Most.
        most: u32,
    },
    /// Written by another version of this program.
    #[error("the journal is of version {got}, this program writes version {expected}: its connections cannot be taken over")]
    Version {
        /// This one's.
        expected: u32,
        /// The journal's.
        got: u32,
    },
    /// It makes no sense.
    #[error("the journal is damaged: {0}")]
    Damaged(&'static str),
    /// All records are taken.
    #[error("the journal is full: {0} connections")]
    Full(u32),
    /// What a record is about, or its state, is too long.
    #[error("{what} takes {got} bytes, at most {most} fit")]
    TooLong {
        /// Which.
        what: &'static str,
        /// How long.
        got: usize,
        /// Bound.
        most: usize,
    },
}

pub(crate) struct Shared {
    pub(crate) map: Mapping,
    pub(crate) layout: Layout,
    free: Mutex<Free>,
}

impl Shared {
    pub(crate) fn free(&self) -> MutexGuard<'_, Free> {
        // A panic ends the process, so nobody sees a lock that was left by one.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shared memory with the records of one ARMOR. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("layout", &self.shared.layout).finish_non_exhaustive()
    }
}

impl Journal {
    /// A new, empty journal.
    ///
    /// # Errors
    /// The bounds make no sense, or the kernel has no memory.
    pub fn create(bounds: &Bounds) -> Result<Journal, JournalError> {
        bounds.check()?;
        let layout = Layout::of(bounds);
        let map = Mapping::create(layout.length())?;
        layout::write_header(&map, &layout);
        let free = Mutex::new(Free::new(&map, &layout));
        Ok(Journal { shared: Arc::new(Shared { map, layout, free }) })
    }

    /// The journal of an earlier process, with everything in it.
    ///
    /// # Errors
    /// It is no journal, of another version, or damaged; single records that are damaged are told in [`Recovery::damaged`].
    pub fn open(descriptor: OwnedFd) -> Result<(Journal, Recovery), JournalError> {
        let map = Mapping::open(descriptor)?;
        let layout = layout::read_header(&map)?;
        let free = Mutex::new(Free::new(&map, &layout));
        let shared = Arc::new(Shared { map, layout, free });
        let recovery = recovery::recover(&shared)?;
        Ok((Journal { shared }, recovery))
    }

    /// What another process has to keep so that the journal outlives this one.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.map.descriptor().as_fd()
    }

    /// A new record. `about` is what it stays about for good (at most [`ABOUT_LIMIT`] bytes), `state` its first state.
    ///
    /// # Errors
    /// The journal is full, or one of them is too long.
    pub fn begin(&self, about: &[u8], state: &[u8]) -> Result<Record, JournalError> {
        let Shared { map, layout, .. } = &*self.shared;
        if about.len() > ABOUT_LIMIT {
            return Err(JournalError::TooLong { what: "what a record is about", got: about.len(), most: ABOUT_SIZE });
        }
        if state.len() > STATE_LIMIT {
            return Err(JournalError::TooLong { what: "a state", got: state.len(), most: STATE_LIMIT });
        }
        let index = self.shared.free().records.take(map).ok_or(JournalError::Full(layout.records))?;
        let ticket = map.u64(layout::NEXT_TICKET).fetch_add(1, Ordering::SeqCst);
        map.write(layout.about(index), about);
        map.u32(layout.about_length(index)).store(about.len() as u32, Ordering::SeqCst);
        map.u32(layout.about_sum(index)).store(crc32c::crc32c(about), Ordering::SeqCst);
        let mut record = Record::new(Arc::clone(&self.shared), index, ticket);
        record.save(state)?;
        map.u64(layout.ticket(index)).store(ticket, Ordering::SeqCst);
        Ok(record)
    }
}
