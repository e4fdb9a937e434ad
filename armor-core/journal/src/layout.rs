//! Where everything lies in the journal. All offsets are computed here from the bounds, never read from the memory.
//!
//! ```text
//! header (magic, version, bounds, next ticket) | call | stage | records | block table | small blocks | large blocks
//! ```

use crate::journal::{Bounds, JournalError};
use crate::mapping::Mapping;

const MAGIC: u64 = u64::from_le_bytes(*b"ARMORjn1");
/// Raised when the layout changes: a journal of another version is refused.
const VERSION: u32 = 2;

const PAGE: usize = 4096;

/// Most bytes that [`crate::Record::send`] keeps of one call.
pub(crate) const STAGE_SIZE: usize = 64 * 1024;
const RECORD_SIZE: usize = PAGE;
const SLOT_SIZE: usize = 1664;
/// A record: ticket, length and checksum of what it is about, which slot holds.
pub(crate) const ABOUT_SIZE: usize = RECORD_SIZE - 2 * SLOT_SIZE - RECORD_HEADER;
const RECORD_HEADER: usize = 32;
/// A slot: sequence, bytes received, length, checksum.
const SLOT_HEADER: usize = 24;
pub(crate) const STATE_SIZE: usize = SLOT_SIZE - SLOT_HEADER;
const ENTRY_SIZE: usize = 24;
/// Tickets grow from here: never 0 by a flipped bit, which would make a record a free one.
const FIRST_TICKET: u64 = 1 << 63 | 1;

/// The two sizes of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Small,
    Large,
}

impl Class {
    pub(crate) const fn size(self) -> usize {
        match self {
            Class::Small => PAGE,
            Class::Large => 128 * 1024,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) records: u32,
    pub(crate) small: u32,
    pub(crate) large: u32,
    table: usize,
    small_from: usize,
    large_from: usize,
    length: usize,
}

const fn whole_pages(length: usize) -> usize {
    length.next_multiple_of(PAGE)
}

impl Layout {
    pub(crate) fn of(bounds: &Bounds) -> Layout {
        let (records, small, large) = (bounds.records, bounds.small_blocks, bounds.large_blocks);
        let table = RECORDS + whole_pages(records as usize * RECORD_SIZE);
        let small_from = table + whole_pages((small + large) as usize * ENTRY_SIZE);
        let large_from = small_from + small as usize * Class::Small.size();
        let length = large_from + large as usize * Class::Large.size();
        Layout { records, small, large, table, small_from, large_from, length }
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn class(&self, block: u32) -> Class {
        if block < self.small { Class::Small } else { Class::Large }
    }

    pub(crate) fn block(&self, block: u32) -> usize {
        match self.class(block) {
            Class::Small => self.small_from + block as usize * Class::Small.size(),
            Class::Large => self.large_from + (block - self.small) as usize * Class::Large.size(),
        }
    }

    /// Ticket of the record that a block belongs to, 0 for none. Storing it commits the entry.
    pub(crate) fn block_owner(&self, block: u32) -> usize {
        self.table + block as usize * ENTRY_SIZE
    }

    /// Offset in the stream of a block's first byte.
    pub(crate) fn block_offset(&self, block: u32) -> usize {
        self.block_owner(block) + 8
    }

    /// How many of a block's bytes were received for certain, and the checksum of these, its owner and its offset: see [`crate::blocks`].
    pub(crate) fn block_sum(&self, block: u32) -> usize {
        self.block_owner(block) + 16
    }

    /// Ticket of a record, 0 when it is free. Storing it commits the record.
    pub(crate) fn ticket(&self, record: u32) -> usize {
        RECORDS + record as usize * RECORD_SIZE
    }

    /// The low half of the sequence of the state that holds, twice; its last bit is the slot. Storing it commits a state.
    pub(crate) fn current(&self, record: u32) -> usize {
        self.ticket(record) + 8
    }

    pub(crate) fn about_length(&self, record: u32) -> usize {
        self.ticket(record) + 12
    }

    pub(crate) fn about_sum(&self, record: u32) -> usize {
        self.ticket(record) + 16
    }

    pub(crate) fn about(&self, record: u32) -> usize {
        self.ticket(record) + RECORD_HEADER
    }

    pub(crate) fn slot(&self, record: u32, slot: u32) -> Slot {
        Slot { at: self.about(record) + ABOUT_SIZE + slot as usize * SLOT_SIZE }
    }
}

/// Where a slot's parts lie.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    at: usize,
}

impl Slot {
    pub(crate) fn sequence(self) -> usize {
        self.at
    }
    pub(crate) fn received(self) -> usize {
        self.at + 8
    }
    pub(crate) fn length(self) -> usize {
        self.at + 16
    }
    pub(crate) fn sum(self) -> usize {
        self.at + 20
    }
    pub(crate) fn state(self) -> usize {
        self.at + SLOT_HEADER
    }
}

// The header's page, and the page of the call under way.
const BOUNDS_AT: usize = 16;
const SUM_AT: usize = 28;
pub(crate) const NEXT_TICKET: usize = 32;
/// How many records, small and large blocks were ever used, each twice in a word.
pub(crate) const USED_RECORDS: usize = 40;
pub(crate) const USED_SMALL: usize = 48;
pub(crate) const USED_LARGE: usize = 56;
/// What the call under way is; 0 for none. Storing it commits the call.
pub(crate) const CALL_KIND: usize = PAGE;
/// Checksum of all that is known of the call before it is made.
pub(crate) const CALL_SUM: usize = PAGE + 4;
pub(crate) const CALL_TICKET: usize = PAGE + 8;
/// Sequence of the state that the call follows.
pub(crate) const CALL_SEQUENCE: usize = PAGE + 16;
/// Most bytes that it can move, and the checksum of those in the stage.
pub(crate) const CALL_ROOM: usize = PAGE + 24;
pub(crate) const CALL_STAGED_SUM: usize = PAGE + 28;
/// The `mmsghdr`.
pub(crate) const CALL_MESSAGE: usize = PAGE + 64;
pub(crate) const STAGE: usize = 2 * PAGE;
const RECORDS: usize = STAGE + STAGE_SIZE;

/// Writes the header of new memory.
pub(crate) fn write_header(map: &Mapping, layout: &Layout) {
    let words = [layout.records, layout.small, layout.large];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    map.write(BOUNDS_AT, &bytes);
    map.write(SUM_AT, &crc32c::crc32c(&bytes).to_le_bytes());
    map.write(8, &VERSION.to_le_bytes());
    map.write(NEXT_TICKET, &FIRST_TICKET.to_le_bytes());
    map.write(0, &MAGIC.to_le_bytes());
}

/// Reads the header of an earlier process's memory.
pub(crate) fn read_header(map: &Mapping) -> Result<Layout, JournalError> {
    if map.length() < RECORDS {
        return Err(JournalError::Damaged("it is too short for a header"));
    }
    let word = |at| u32::from_le_bytes(map.read(at, 4).try_into().unwrap_or_default());
    if map.read(0, 8) != MAGIC.to_le_bytes() {
        return Err(JournalError::Damaged("it is no journal"));
    }
    if word(8) != VERSION {
        return Err(JournalError::Version { expected: VERSION, got: word(8) });
    }
    if crc32c::crc32c(&map.read(BOUNDS_AT, 12)) != word(SUM_AT) {
        return Err(JournalError::Damaged("the checksum of its header is wrong"));
    }
    let bounds = Bounds { records: word(BOUNDS_AT), small_blocks: word(BOUNDS_AT + 4), large_blocks: word(BOUNDS_AT + 8) };
    bounds.check()?;
    let layout = Layout::of(&bounds);
    if layout.length() != map.length() {
        return Err(JournalError::Damaged("its length is not what its header says"));
    }
    Ok(layout)
}
