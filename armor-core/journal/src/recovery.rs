//! Reading a journal whose process has died.
//!
//! Invariant: nothing that is read is trusted: a wrong number gives a damaged record, never a panic.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::blocks::{self, Block};
use crate::call;
use crate::journal::Shared;
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

pub(crate) fn recover(shared: &Arc<Shared>) -> Recovery {
    let Shared { map, layout, .. } = &**shared;
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
        match read(shared, index) {
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
    let call = Call::read(shared);
    for (ticket, found) in found {
        recovery.records.push(found.recovered(shared, ticket, &call));
    }
    recovery
}

/// Reads a record; what it is about when the rest is damaged.
fn read(shared: &Shared, index: u32) -> Result<Found, Vec<u8>> {
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
    if current > 1 || length > STATE_SIZE || sequence == 0 || sequence as u32 & 1 != current {
        return Err(about);
    }
    let state = map.read(slot.state(), length);
    // The state before is whole too, but the world has moved on since: going on from it would lose or repeat bytes.
    if record::sum(&state, sequence, received) != map.u32(slot.sum()).load(Ordering::SeqCst) {
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
    fn read(shared: &Shared) -> Call {
        let map = &shared.map;
        Call {
            kind: map.u32(layout::CALL_KIND).load(Ordering::SeqCst),
            ticket: map.u64(layout::CALL_TICKET).load(Ordering::SeqCst),
            sequence: map.u64(layout::CALL_SEQUENCE).load(Ordering::SeqCst),
            moved: call::moved(shared),
        }
    }
}

impl Found {
    fn recovered(mut self, shared: &Arc<Shared>, ticket: u64, call: &Call) -> Recovered {
        let own_call = call.ticket == ticket && call.sequence == self.sequence && call.moved > 0;
        let kind = if own_call { call.kind } else { call::NONE };
        let taken = if kind == call::RECEIVE { call.moved as u64 } else { 0 };
        self.blocks.sort_unstable();
        let end = self.received.saturating_add(taken);
        let record = Record::known(Arc::clone(shared), self.index, ticket, self.sequence, end);
        let mut pieces = pieces(shared, &record, &self.blocks, end);
        let new = split_off(&mut pieces, taken);
        let last = match kind {
            call::RECEIVE => Some(LastCall::Received(new)),
            call::SEND_STAGED => Some(LastCall::Sent(shared.map.read(layout::STAGE, call.moved.min(layout::STAGE_SIZE)).into())),
            call::SEND_COUNTED => Some(LastCall::Counted(call.moved)),
            _ => None,
        };
        Recovered { record, about: self.about, state: self.state, log: pieces, last }
    }
}

/// The bytes up to `end` that are there without a gap. Blocks that hold none of them are freed when a state is saved.
fn pieces(shared: &Arc<Shared>, record: &Record, found: &[(u64, u32)], end: u64) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut until = end;
    for &(offset, index) in found.iter().rev() {
        let block = Arc::new(Block::known(shared, record.owner(), index));
        let size = block.class().size() as u64;
        if offset >= until || until - offset > size {
            continue;
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
