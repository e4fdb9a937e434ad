//! Reading a journal whose process has died.
//!
//! Invariant: nothing that is read is trusted: a wrong number gives a damaged record, never a panic.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::blocks::{self, Block};
use crate::call::{self, Caller, Known};
use crate::journal::{JournalError, Shared};
use crate::layout::{self, ABOUT_SIZE, STATE_SIZE};
use crate::record::{self, Record};

/// Everything that was in the journal.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Whole records.
    pub records: Vec<Recovered>,
    /// What damaged records are about, as far as that can be read: the ends that they stood for are lost.
    pub damaged: Vec<Vec<u8>>,
}

/// One record as it was.
#[derive(Debug)]
pub struct Recovered {
    /// To go on with. Save a state before the next call.
    pub record: Record,
    /// What it is about.
    pub about: Vec<u8>,
    /// Its last saved state.
    pub state: Vec<u8>,
    /// The last bytes that were received by then, as far back as they are still there, without a gap.
    pub log: Vec<Bytes>,
    /// What the call after that state has done, if it has done anything.
    pub last: Option<LastCall>,
}

/// The call after the last saved state.
#[derive(Debug)]
pub enum LastCall {
    /// It has received these bytes, which follow the log.
    Received(Vec<Bytes>),
    /// It has sent these bytes.
    Sent(Bytes),
    /// It has sent so many bytes.
    Counted(usize),
}

struct Found {
    index: u32,
    sequence: u64,
    about: Vec<u8>,
    state: Vec<u8>,
    received: u64,
    blocks: Vec<(u64, u32)>,
}

pub(crate) fn recover(shared: &Arc<Shared>) -> Result<Recovery, JournalError> {
    let Shared { map, layout, .. } = &**shared;
    if [layout::USED_RECORDS, layout::USED_SMALL, layout::USED_LARGE].iter().any(|&at| blocks::twice(map, at).is_none()) {
        return Err(JournalError::Damaged("how much of it is used is not known"));
    }
    // Nobody knows whose call it was, so the state of none is known to the byte.
    let call = Call::read(shared).ok_or(JournalError::Damaged("what the call under way was is not known"))?;
    let mut recovery = Recovery::default();
    let mut free = shared.free();
    let mut found: HashMap<u64, Found> = HashMap::new();
    let mut highest = map.u64(layout::NEXT_TICKET).load(Ordering::SeqCst);
    for index in free.records.used().rev() {
        let ticket = map.u64(layout.ticket(index)).load(Ordering::SeqCst);
        if ticket == 0 {
            free.records.give(index);
            continue;
        }
        highest = highest.max(ticket.saturating_add(1));
        match read(shared, index, ticket) {
            Ok(record) if !found.contains_key(&ticket) => {
                found.insert(ticket, record);
            }
            Ok(Found { about, .. }) | Err(about) => {
                recovery.damaged.push(about);
                map.u64(layout.ticket(index)).store(0, Ordering::SeqCst);
                free.records.give(index);
            }
        }
    }
    map.u64(layout::NEXT_TICKET).store(highest, Ordering::SeqCst);
    for block in free.used_blocks().rev() {
        let owner = map.u64(layout.block_owner(block));
        match found.get_mut(&owner.load(Ordering::SeqCst)) {
            Some(record) => record.blocks.push((map.u64(layout.block_offset(block)).load(Ordering::SeqCst), block)),
            None => {
                owner.store(0, Ordering::SeqCst);
                free.blocks(layout.class(block)).give(block);
            }
        }
    }
    drop(free);
    for (ticket, found) in found {
        match found.recovered(shared, ticket, &call) {
            Ok(recovered) => recovery.records.push(recovered),
            Err(about) => recovery.damaged.push(about),
        }
    }
    Ok(recovery)
}

/// Reads a record; what it is about when the rest is damaged.
fn read(shared: &Shared, index: u32, ticket: u64) -> Result<Found, Vec<u8>> {
    let Shared { map, layout, .. } = shared;
    let length = map.u32(layout.about_length(index)).load(Ordering::SeqCst) as usize;
    let about = map.read(layout.about(index), length.min(ABOUT_SIZE));
    if length > ABOUT_SIZE || crc32c::crc32c(&about) != map.u32(layout.about_sum(index)).load(Ordering::SeqCst) {
        return Err(about);
    }
    let current = map.u32(layout.current(index)).load(Ordering::SeqCst);
    let slot = layout.slot(index, current & 1);
    let sequence = map.u64(slot.sequence()).load(Ordering::SeqCst);
    let received = map.u64(slot.received()).load(Ordering::SeqCst);
    let length = map.u32(slot.length()).load(Ordering::SeqCst) as usize;
    if current != record::current(sequence) || length > STATE_SIZE || sequence == 0 {
        return Err(about);
    }
    let state = map.read(slot.state(), length);
    // The state before is whole too, but the world has moved on since: going on from it would lose or repeat bytes.
    if record::sum(&state, ticket, sequence, received) != map.u32(slot.sum()).load(Ordering::SeqCst) {
        return Err(about);
    }
    Ok(Found { index, sequence, about, state, received, blocks: Vec::new() })
}

struct Call {
    kind: u32,
    ticket: u64,
    sequence: u64,
    moved: usize,
}

impl Call {
    /// `None` when what was written of it before it was made is damaged. How many bytes it has moved is the kernel's word, and so are the bytes of a
    /// receive: nobody could add a checksum.
    fn read(shared: &Shared) -> Option<Call> {
        let map = &shared.map;
        let kind = map.u32(layout::CALL_KIND).load(Ordering::SeqCst);
        let caller = Caller {
            ticket: map.u64(layout::CALL_TICKET).load(Ordering::SeqCst),
            sequence: map.u64(layout::CALL_SEQUENCE).load(Ordering::SeqCst),
        };
        let (ticket, sequence) = (caller.ticket, caller.sequence);
        if kind == call::NONE {
            return Some(Call { kind, ticket, sequence, moved: 0 });
        }
        let room = map.u32(layout::CALL_ROOM).load(Ordering::SeqCst) as usize;
        let known = Known { kind, room, staged_sum: map.u32(layout::CALL_STAGED_SUM).load(Ordering::SeqCst) };
        let moved = call::moved(shared);
        if known.sum(&caller) != map.u32(layout::CALL_SUM).load(Ordering::SeqCst) || moved > room {
            return None;
        }
        let staged = kind == call::SEND_STAGED;
        let is_whole = !staged || room <= layout::STAGE_SIZE && crc32c::crc32c(&map.read(layout::STAGE, room)) == known.staged_sum;
        is_whole.then_some(Call { kind, ticket, sequence, moved })
    }
}

impl Found {
    /// The record, or what it is about when bytes that the last call has received cannot be had.
    fn recovered(mut self, shared: &Arc<Shared>, ticket: u64, call: &Call) -> Result<Recovered, Vec<u8>> {
        let own_call = call.ticket == ticket && call.sequence == self.sequence && call.moved > 0;
        let kind = if own_call { call.kind } else { call::NONE };
        let taken = if kind == call::RECEIVE { call.moved as u64 } else { 0 };
        self.blocks.sort_unstable();
        let end = self.received.saturating_add(taken);
        let record = Record::known(Arc::clone(shared), self.index, ticket, self.sequence, end);
        let mut pieces = pieces(shared, &record, &self.blocks, self.received, end);
        let new = split_off(&mut pieces, taken);
        if new.iter().map(|piece| piece.len() as u64).sum::<u64>() != taken {
            return Err(self.about);
        }
        let last = match kind {
            call::RECEIVE => Some(LastCall::Received(new)),
            call::SEND_STAGED => Some(LastCall::Sent(shared.map.read(layout::STAGE, call.moved.min(layout::STAGE_SIZE)).into())),
            call::SEND_COUNTED => Some(LastCall::Counted(call.moved)),
            _ => None,
        };
        Ok(Recovered { record, about: self.about, state: self.state, log: pieces, last })
    }
}

/// The bytes up to `end` that are there without a gap, and are those that were received: for those up to `received` there are checksums, and what
/// follows is of the last call. Blocks that hold none of them are freed when a state is saved.
fn pieces(shared: &Arc<Shared>, record: &Record, found: &[(u64, u32)], received: u64, end: u64) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut until = end;
    for &(offset, index) in found.iter().rev() {
        let block = Arc::new(Block::known(shared, record.owner(), index));
        let size = block.class().size() as u64;
        if offset >= until || until - offset > size {
            continue;
        }
        let needed = until.min(received).saturating_sub(offset);
        let Some(vouched) = block.vouched(offset).filter(|vouched| *vouched as u64 >= needed) else { continue };
        if (vouched as u64) < until - offset {
            // Of the last call: from here on they are bytes like those before.
            block.vouch_for((until - offset) as usize, offset);
        }
        pieces.push(blocks::piece(&block, 0, (until - offset) as usize));
        until = offset;
    }
    pieces.reverse();
    pieces
}

/// Takes the last `length` bytes off.
fn split_off(pieces: &mut Vec<Bytes>, length: u64) -> Vec<Bytes> {
    let mut left = length as usize;
    let mut off = Vec::new();
    while left > 0
        && let Some(mut piece) = pieces.pop()
    {
        if piece.len() > left {
            off.push(piece.split_off(piece.len() - left));
            pieces.push(piece);
            break;
        }
        left -= piece.len();
        off.push(piece);
    }
    off.reverse();
    off
}
