//! Blocks of the journal: who has which, and the bytes in them as [`Bytes`].
//!
//! With each block is kept how many of its bytes were received for certain, and one checksum of these, of the record that it belongs to, and of where in
//! the stream it begins: 8 bytes, stored at once after each receive. A recovery believes no byte beyond them but those of the call under way.
//!
//! Invariant: a block whose bytes are still looked at by anybody is not written again, except behind them.
//! Invariant: a block goes back to the free ones only after a state was saved that needs it no more.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::journal::Shared;
use crate::layout::{self, Class, Layout};
use crate::mapping::Mapping;

/// Free blocks beyond this much give their memory back to the system.
const KEPT_WARM: usize = 16 << 20;

/// Free records and blocks. Those that were used last are used first: their memory is in the cache.
pub(crate) struct Free {
    pub(crate) records: Pool,
    small: Pool,
    large: Pool,
}

/// Numbers that are free: given back ones, then those from `next` on, which were never used.
pub(crate) struct Pool {
    back: Vec<u32>,
    next: u32,
    end: u32,
    first: u32,
    /// Where the journal says how many were ever used, so that a recovery need not look at the rest.
    used_at: usize,
}

impl Pool {
    /// All that were never used.
    fn new(map: &Mapping, first: u32, count: u32, used_at: usize) -> Pool {
        // Damage is found by `twice` before anything is taken from here.
        let used = twice(map, used_at).unwrap_or(count).min(count);
        Pool { back: Vec::new(), next: first + used, end: first + count, first, used_at }
    }

    /// Numbers that were ever used.
    pub(crate) fn used(&self) -> std::ops::Range<u32> {
        self.first..self.next
    }

    pub(crate) fn take(&mut self, map: &Mapping) -> Option<u32> {
        self.back.pop().or_else(|| {
            let fresh = (self.next < self.end).then_some(self.next)?;
            self.next += 1;
            let used = u64::from(self.next - self.first);
            map.u64(self.used_at).store(used << 32 | used, Ordering::SeqCst);
            Some(fresh)
        })
    }

    pub(crate) fn give(&mut self, number: u32) {
        self.back.push(number);
    }
}

/// A number that is stored twice in a word; none when the two differ.
pub(crate) fn twice(map: &Mapping, at: usize) -> Option<u32> {
    let word = map.u64(at).load(Ordering::SeqCst);
    (word >> 32 == word & u64::from(u32::MAX)).then_some(word as u32)
}

impl Free {
    /// What was never used. In new memory that is all; in an earlier process's the recovery finds out about the rest.
    pub(crate) fn new(map: &Mapping, layout: &Layout) -> Free {
        Free {
            records: Pool::new(map, 0, layout.records, layout::USED_RECORDS),
            small: Pool::new(map, 0, layout.small, layout::USED_SMALL),
            large: Pool::new(map, layout.small, layout.large, layout::USED_LARGE),
        }
    }

    pub(crate) fn used_blocks(&self) -> impl DoubleEndedIterator<Item = u32> + use<> {
        self.small.used().chain(self.large.used())
    }

    pub(crate) fn blocks(&mut self, class: Class) -> &mut Pool {
        match class {
            Class::Small => &mut self.small,
            Class::Large => &mut self.large,
        }
    }
}

/// The record that blocks belong to.
pub(crate) struct Owner {
    pub(crate) ticket: u64,
    /// Blocks that nobody looks at any more, to be freed at the next save; `None` once the record has ended.
    retired: Mutex<Option<Vec<u32>>>,
}

impl Owner {
    pub(crate) fn new(ticket: u64) -> Arc<Owner> {
        Arc::new(Owner { ticket, retired: Mutex::new(Some(Vec::new())) })
    }

    fn retire(&self, shared: &Shared, block: u32) {
        match &mut *self.retired.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(retired) => retired.push(block),
            None => release(shared, block),
        }
    }

    /// A state was saved: what was retired before it is needed no more.
    pub(crate) fn saved(&self, shared: &Shared) {
        if let Some(retired) = &mut *self.retired.lock().unwrap_or_else(PoisonError::into_inner) {
            for block in retired.drain(..) {
                release(shared, block);
            }
        }
    }

    /// The record has ended.
    pub(crate) fn ended(&self, shared: &Shared) {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner).take();
        for block in retired.into_iter().flatten() {
            release(shared, block);
        }
    }
}

fn release(shared: &Shared, block: u32) {
    let Shared { map, layout, .. } = shared;
    map.u64(layout.block_owner(block)).store(0, Ordering::SeqCst);
    let class = layout.class(block);
    let mut free = shared.free();
    let pool = free.blocks(class);
    if pool.back.len() * class.size() >= KEPT_WARM {
        map.give_back(layout.block(block), class.size());
    }
    pool.give(block);
}

/// A block that belongs to a record.
pub(crate) struct Block {
    shared: Arc<Shared>,
    owner: Arc<Owner>,
    pub(crate) index: u32,
}

impl Block {
    /// Takes a free block whose first byte will be at `offset` of the stream.
    pub(crate) fn take(shared: &Arc<Shared>, owner: &Arc<Owner>, class: Class, offset: u64) -> Option<Block> {
        let mut free = shared.free();
        // When those of one size are used up the others still carry the stream.
        let mut of = |class| free.blocks(class).take(&shared.map);
        let index = of(class).or_else(|| of(Class::Small)).or_else(|| of(Class::Large))?;
        drop(free);
        let block = Block::known(shared, owner, index);
        block.begin_at(offset);
        shared.map.u64(shared.layout.block_owner(index)).store(owner.ticket, Ordering::SeqCst);
        Some(block)
    }

    /// One that was this record's before the process died.
    pub(crate) fn known(shared: &Arc<Shared>, owner: &Arc<Owner>, index: u32) -> Block {
        Block { shared: Arc::clone(shared), owner: Arc::clone(owner), index }
    }

    /// Its first byte is at `offset` of the stream from now on.
    pub(crate) fn begin_at(&self, offset: u64) {
        self.vouch(0, self.seed(offset));
        self.shared.map.u64(self.shared.layout.block_offset(self.index)).store(offset, Ordering::SeqCst);
    }

    /// Checksum of no bytes yet: of the owner and the offset.
    pub(crate) fn seed(&self, offset: u64) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.owner.ticket.to_le_bytes()), &offset.to_le_bytes())
    }

    /// The first `length` bytes are what was received, and this is their checksum, begun with the seed.
    pub(crate) fn vouch(&self, length: usize, sum: u32) {
        let word = (length as u64) << 32 | u64::from(sum);
        self.shared.map.u64(self.shared.layout.block_sum(self.index)).store(word, Ordering::SeqCst);
    }

    /// How many of its bytes are what was received, if what is kept of a block that begins at `offset` is true.
    pub(crate) fn vouched(&self, offset: u64) -> Option<usize> {
        let Shared { map, layout, .. } = &*self.shared;
        let word = map.u64(layout.block_sum(self.index)).load(Ordering::SeqCst);
        let length = (word >> 32) as usize;
        (length <= self.class().size() && self.sum(length, offset) == word as u32).then_some(length)
    }

    /// Vouches for the first `length` bytes as they are, after a death.
    pub(crate) fn vouch_for(&self, length: usize, offset: u64) {
        self.vouch(length, self.sum(length, offset));
    }

    /// Vouches for the first `length` bytes alone, of more; their checksum.
    pub(crate) fn vouch_again(&self, length: usize) -> u32 {
        let offset = self.shared.map.u64(self.shared.layout.block_offset(self.index)).load(Ordering::SeqCst);
        let sum = self.sum(length, offset);
        self.vouch(length, sum);
        sum
    }

    #[allow(unsafe_code)]
    fn sum(&self, length: usize, offset: u64) -> u32 {
        let Shared { map, layout, .. } = &*self.shared;
        assert!(length <= self.class().size(), "inside the block");
        // SAFETY: inside the block. These bytes were received, and nobody writes them while the caller has the block for himself.
        let bytes = unsafe { map.slice(layout.block(self.index), length) };
        crc32c::crc32c_append(self.seed(offset), bytes)
    }

    /// The last saved state needs none of its bytes, and from now on no recovery looks at them.
    pub(crate) fn disown(&self) {
        self.shared.map.u64(self.shared.layout.block_owner(self.index)).store(0, Ordering::SeqCst);
    }

    pub(crate) fn class(&self) -> Class {
        self.shared.layout.class(self.index)
    }

    /// Where its bytes lie.
    pub(crate) fn at(&self, from: usize, length: usize) -> *mut u8 {
        assert!(from + length <= self.class().size(), "inside the block");
        self.shared.map.at(self.shared.layout.block(self.index) + from, length)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.owner.retire(&self.shared, self.index);
    }
}

/// Bytes in a block.
struct Piece {
    block: Arc<Block>,
    from: usize,
    length: usize,
}

impl AsRef<[u8]> for Piece {
    #[allow(unsafe_code)]
    fn as_ref(&self) -> &[u8] {
        let at = self.block.shared.layout.block(self.block.index) + self.from;
        // SAFETY: the bytes before a block's fill are not written while the block is referred to, and this refers to it.
        unsafe { self.block.shared.map.slice(at, self.length) }
    }
}

/// `length` bytes of a block, from `from` on, which are not written any more.
pub(crate) fn piece(block: &Arc<Block>, from: usize, length: usize) -> Bytes {
    Bytes::from_owner(Piece { block: Arc::clone(block), from, length })
}
