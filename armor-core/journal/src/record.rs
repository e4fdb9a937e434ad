//! One end of a connection in the journal.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::STATE_LIMIT;
use crate::blocks::{self, Block, Owner};
use crate::call::{self, Caller, Keep};
use crate::journal::{JournalError, Shared};
use crate::layout::Class;

/// With less room than this in the block at hand another one is added to a receive.
const LITTLE_ROOM: usize = 2048;

/// What a receive gave: at most two pieces.
#[derive(Debug, Default)]
pub struct Received {
    /// The first bytes; empty at the end of the stream.
    pub first: Bytes,
    /// Those behind them, when the first block was full.
    pub second: Bytes,
    /// All the room that there was is filled: another receive may give more at once.
    pub filled: bool,
}

struct Tail {
    block: Arc<Block>,
    filled: usize,
    /// Of the bytes so far.
    sum: u32,
}

impl Tail {
    /// The bytes that a receive has put behind those before.
    fn take(&mut self, length: usize) -> Bytes {
        let piece = blocks::piece(&self.block, self.filled, length);
        self.filled += length;
        self.sum = crc32c::crc32c_append(self.sum, &piece);
        self.block.vouch(self.filled, self.sum);
        piece
    }

    /// The last `count` bytes are to be overwritten.
    fn forget(&mut self, count: usize) {
        self.filled -= count;
        self.sum = self.block.vouch_again(self.filled);
    }
}

/// A record. It is gone from the journal when it is dropped: bytes that it gave out stay readable.
pub struct Record {
    shared: Arc<Shared>,
    owner: Arc<Owner>,
    index: u32,
    sequence: u64,
    /// Bytes that were received in all.
    received: u64,
    /// A state was saved since the last call.
    saved: bool,
    tail: Option<Tail>,
    /// What the next new block is.
    appetite: Class,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Record { index, sequence, received, .. } = self;
        f.debug_struct("Record").field("index", index).field("sequence", sequence).field("received", received).finish_non_exhaustive()
    }
}

impl Record {
    pub(crate) fn new(shared: Arc<Shared>, index: u32, ticket: u64) -> Record {
        let owner = Owner::new(ticket);
        Record { shared, owner, index, sequence: 0, received: 0, saved: false, tail: None, appetite: Class::Small }
    }

    /// The record of a dead process, which had saved so many states and received so many bytes.
    pub(crate) fn known(shared: Arc<Shared>, index: u32, ticket: u64, sequence: u64, received: u64) -> Record {
        let mut record = Record::new(shared, index, ticket);
        (record.sequence, record.received) = (sequence, received);
        record
    }

    pub(crate) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// Saves a state, in one step: after a death it is this one or the one before, whole. It counts as true of all bytes that were
    /// received and sent before.
    ///
    /// # Errors
    /// The state is too long; the one before holds.
    pub fn save(&mut self, state: &[u8]) -> Result<(), JournalError> {
        if state.len() > STATE_LIMIT {
            return Err(JournalError::TooLong { what: "a state", got: state.len(), most: STATE_LIMIT });
        }
        let Shared { map, layout, .. } = &*self.shared;
        let sequence = self.sequence + 1;
        let slot = layout.slot(self.index, sequence as u32 & 1);
        map.write(slot.state(), state);
        map.u64(slot.sequence()).store(sequence, Ordering::Relaxed);
        map.u64(slot.received()).store(self.received, Ordering::Relaxed);
        map.u32(slot.length()).store(state.len() as u32, Ordering::Relaxed);
        map.u32(slot.sum()).store(sum(state, self.owner.ticket, sequence, self.received), Ordering::Relaxed);
        map.u32(layout.current(self.index)).store(current(sequence), Ordering::SeqCst);
        self.sequence = sequence;
        self.saved = true;
        self.owner.saved(&self.shared);
        Ok(())
    }

    /// Receives at most `most` bytes from a non-blocking socket.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, `InvalidInput` when no state was saved since the last call, `StorageFull` when the journal has
    /// no free block, and the socket's own.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<Received> {
        let caller = self.caller()?;
        let most = most.max(1);
        let (tail_room, fresh) = self.room(most)?;
        let mut parts = [(std::ptr::null_mut(), 0); 2];
        let mut count = 0;
        if let Some(tail) = self.tail.as_ref().filter(|_| tail_room > 0) {
            parts[count] = (tail.block.at(tail.filled, tail_room), tail_room);
            count += 1;
        }
        let mut room = tail_room;
        if let Some(block) = &fresh {
            let length = block.class().size().min(most - tail_room);
            parts[count] = (block.at(0, length), length);
            count += 1;
            room += length;
        }
        let got = call::receive(&self.shared, &caller, socket, &parts[..count])?;
        Ok(self.take(got, tail_room, fresh, room))
    }

    /// The last `count` bytes that were received are no part of the stream: those that come next follow the ones before. Nobody may look at
    /// them any more, and a state has to be saved before the next call.
    pub fn forget_last(&mut self, count: usize) {
        self.received = self.received.saturating_sub(count as u64);
        match &mut self.tail {
            Some(tail) if tail.filled > count => tail.forget(count),
            // What is left of the stream in blocks before this one is followed by a block of its own.
            _ => self.tail = None,
        }
    }

    fn take(&mut self, got: usize, tail_room: usize, fresh: Option<Block>, room: usize) -> Received {
        self.appetite = match (got == room, got <= Class::Small.size() / 2) {
            (true, _) => Class::Large,
            (false, true) => Class::Small,
            (false, false) => self.appetite,
        };
        let into_tail = got.min(tail_room);
        let fresh_from = self.received + into_tail as u64;
        self.received += got as u64;
        let mut received = Received { filled: got == room, ..Received::default() };
        if let Some(tail) = self.tail.as_mut().filter(|_| into_tail > 0) {
            received.first = tail.take(into_tail);
        }
        let into_fresh = got - into_tail;
        if let Some(block) = fresh.filter(|_| into_fresh > 0) {
            let sum = block.seed(fresh_from);
            let mut tail = Tail { block: Arc::new(block), filled: 0, sum };
            let piece = tail.take(into_fresh);
            if into_tail > 0 {
                received.second = piece
            } else {
                received.first = piece
            }
            self.tail = Some(tail);
        }
        received
    }

    /// Room for `most` bytes: how much of the block at hand, and another block when that is not enough.
    fn room(&mut self, most: usize) -> io::Result<(usize, Option<Block>)> {
        if let Some(tail) = &mut self.tail
            && Arc::strong_count(&tail.block) == 1
        {
            // Nobody looks at its bytes any more, and the state that was just saved does not need them.
            if tail.block.class() == self.appetite {
                tail.block.begin_at(self.received);
                tail.filled = 0;
                tail.sum = tail.block.seed(self.received);
            } else {
                tail.block.disown();
                self.tail = None;
            }
        }
        let left = self.tail.as_ref().map_or(0, |tail| tail.block.class().size() - tail.filled);
        let tail_room = left.min(most);
        if tail_room == most || tail_room >= LITTLE_ROOM {
            return Ok((tail_room, None));
        }
        let fresh = Block::take(&self.shared, &self.owner, self.appetite, self.received + tail_room as u64);
        if fresh.is_none() && tail_room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok((tail_room, fresh))
    }

    /// Sends from `slices` into a non-blocking socket; the number of bytes that it took.
    ///
    /// # Errors
    /// `WouldBlock` when it takes none, `InvalidInput` when no state was saved since the last call, and the socket's own.
    pub fn send(&mut self, socket: BorrowedFd<'_>, slices: &[IoSlice<'_>], keep: Keep) -> io::Result<usize> {
        let caller = self.caller()?;
        call::send(&self.shared, &caller, socket, slices, keep)
    }

    fn caller(&mut self) -> io::Result<Caller> {
        // Two calls after one state could not be told apart after a death.
        if !std::mem::replace(&mut self.saved, false) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a state is saved before each call"));
        }
        Ok(Caller { ticket: self.owner.ticket, sequence: self.sequence })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Shared { map, layout, .. } = &*self.shared;
        map.u64(layout.ticket(self.index)).store(0, Ordering::SeqCst);
        self.tail = None;
        self.owner.ended(&self.shared);
        self.shared.free().records.give(self.index);
    }
}

/// What stands for a sequence where a state is committed: a flipped bit does not make another state the one that holds.
pub(crate) fn current(sequence: u64) -> u32 {
    let half = sequence as u32 & 0xffff;
    half << 16 | half
}

pub(crate) fn sum(state: &[u8], ticket: u64, sequence: u64, received: u64) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(state), &ticket.to_le_bytes());
    let sum = crc32c::crc32c_append(sum, &sequence.to_le_bytes());
    crc32c::crc32c_append(sum, &received.to_le_bytes())
}
