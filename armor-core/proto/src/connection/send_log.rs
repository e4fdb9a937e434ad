//! The bytes of one direction at the end that sends them: kept until they are acknowledged, and at the client's end
//! further back, to the mark (ARCHITECTURE.md, The way of a recovery).
//!
//! Invariant: chunks are contiguous; `first() <= next <= end`, and what lies before `memory_from()` is in the spill.
//! Invariant: taking the next bytes, adding and cutting cost O(1) per chunk; only `seek` searches, in O(log n).

use std::collections::VecDeque;
use std::io;

use bytes::{Buf as _, Bytes};

/// Memory that a chunk takes besides its bytes, so that a flood of tiny chunks is bounded too.
pub(crate) const CHUNK_COST: usize = 64;

/// Where the part of a log goes that is over the memory bound, a file for example. Bytes are appended without gaps.
pub trait Spill {
    /// Appends `bytes`, whose first one has this offset in the stream.
    ///
    /// # Errors
    /// When they cannot be kept; the connection then loses replay and says so.
    fn append(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Fills `into` with the bytes from `offset` on, which were all appended.
    ///
    /// # Errors
    /// When they cannot be read; the connection is then reset.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Everything before `offset` is not needed any more.
    fn discard_before(&mut self, _offset: u64) {}

    /// After the death of the process that had appended: whether all bytes from `from` to `to` are there. What is behind them is
    /// dropped then, and `to` is appended next.
    fn take_up(&mut self, _from: u64, _to: u64) -> bool {
        false
    }
}

struct Chunk {
    start: u64,
    bytes: Bytes,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

pub(crate) struct SendLog {
    chunks: VecDeque<Chunk>,
    /// Oldest offset that can be read, in memory or in the spill.
    first: u64,
    /// Bytes that are read before those from `first` on, under the offsets before it.
    prologue: Bytes,
    /// Next offset that `take` yields.
    next: u64,
    /// Index of the chunk that holds `next`, or the number of chunks.
    cursor: usize,
    end: u64,
    /// Memory that the chunks take, with [`CHUNK_COST`].
    memory: usize,
    spill: Option<Box<dyn Spill + Send>>,
}

impl SendLog {
    pub(crate) fn new(start: u64) -> Self {
        SendLog {
            chunks: VecDeque::new(),
            first: start,
            prologue: Bytes::new(),
            next: start,
            cursor: 0,
            end: start,
            memory: 0,
            spill: None,
        }
    }

    /// The log of a dead process, `from` to `end`: the last bytes of `pieces`, and before them what is in the spill, as far as they reach.
    pub(crate) fn restore(pieces: Vec<Bytes>, spill: Option<Box<dyn Spill + Send>>, from: u64, end: u64) -> Self {
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let mut skipped = length.saturating_sub(end.saturating_sub(from));
        let mut log = SendLog::new(end.saturating_sub(length - skipped));
        for mut piece in pieces {
            let before = skipped.min(piece.len() as u64);
            skipped -= before;
            piece.advance(before as usize);
            log.push(piece);
        }
        log.spill = spill;
        let memory_from = log.first;
        if log.spill.as_mut().is_some_and(|spill| spill.take_up(from.min(memory_from), memory_from)) {
            log.first = from.min(memory_from);
        }
        log
    }

    pub(crate) fn set_spill(&mut self, spill: Box<dyn Spill + Send>) {
        self.spill = Some(spill);
    }

    pub(crate) fn has_spill(&self) -> bool {
        self.spill.is_some()
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Where the prologue begins, or the log if there is none.
    pub(crate) fn start(&self) -> u64 {
        self.first - self.prologue.len() as u64
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Oldest offset in memory.
    pub(crate) fn memory_from(&self) -> u64 {
        self.chunks.front().map_or(self.end, |chunk| chunk.start.max(self.first))
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let start = self.end;
        self.end += bytes.len() as u64;
        self.memory += bytes.len() + CHUNK_COST;
        self.chunks.push_back(Chunk { start, bytes });
    }

    /// The next bytes, at most `most`, never across a chunk. Empty when there are none.
    ///
    /// # Errors
    /// When the spill cannot be read.
    pub(crate) fn take(&mut self, most: usize) -> io::Result<Bytes> {
        if most == 0 || self.next == self.end {
            return Ok(Bytes::new());
        }
        if self.next < self.first {
            let from = (self.next - self.start()) as usize;
            let bytes = self.prologue.slice(from..self.prologue.len().min(from.saturating_add(most)));
            self.next += bytes.len() as u64;
            return Ok(bytes);
        }
        let memory_from = self.memory_from();
        if self.next < memory_from {
            let length = usize::try_from(memory_from - self.next).unwrap_or(most).min(most);
            let mut bytes = vec![0; length];
            match &mut self.spill {
                Some(spill) => spill.read_at(self.next, &mut bytes)?,
                None => return Err(io::ErrorKind::NotFound.into()),
            }
            self.next += length as u64;
            return Ok(bytes.into());
        }
        let Some(chunk) = self.chunks.get(self.cursor) else {
            return Ok(Bytes::new());
        };
        let from = (self.next - chunk.start) as usize;
        let until = chunk.bytes.len().min(from.saturating_add(most));
        let bytes = chunk.bytes.slice(from..until);
        self.next += bytes.len() as u64;
        if until == chunk.bytes.len() {
            self.cursor += 1;
        }
        Ok(bytes)
    }

    /// Goes back to `offset`, which lies between `first` and `end`, and to `prologue` before it, which is not longer than
    /// `offset`; what lies before `offset` is dropped.
    pub(crate) fn rewind(&mut self, offset: u64, prologue: Bytes) {
        self.cut(offset);
        self.seek(self.first);
        self.prologue = prologue;
        self.next = self.start();
    }

    /// Goes back, or forward, to `offset`, which lies between the beginning of the prologue and `end`.
    pub(crate) fn seek(&mut self, offset: u64) {
        let offset = offset.clamp(self.start(), self.end);
        if offset == self.next {
            return;
        }
        self.next = offset;
        self.cursor = self.chunks.partition_point(|chunk| chunk.end() <= offset);
    }

    /// Drops what lies before `offset`.
    pub(crate) fn cut(&mut self, offset: u64) {
        let offset = offset.min(self.end);
        if offset < self.first || (offset == self.first && self.prologue.is_empty()) {
            return;
        }
        self.prologue = Bytes::new();
        self.next = self.next.max(self.first);
        self.first = offset;
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= offset) {
            self.drop_front();
        }
        if self.next < offset {
            self.next = offset;
            self.cursor = 0;
        }
        if let Some(spill) = &mut self.spill {
            spill.discard_before(offset);
        }
    }

    fn drop_front(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.memory -= chunk.bytes.len() + CHUNK_COST;
        self.cursor = self.cursor.saturating_sub(1);
        Some(chunk)
    }

    /// Moves the oldest bytes that were sent into the spill until the memory fits `bound`.
    ///
    /// # Errors
    /// When the spill cannot take them; the log is unchanged then.
    pub(crate) fn spill_over(&mut self, bound: usize) -> io::Result<()> {
        let Some(spill) = &mut self.spill else {
            return Ok(());
        };
        while self.memory > bound {
            let Some(chunk) = self.chunks.front() else { break };
            if chunk.end() > self.next {
                break;
            }
            let from = self.first.max(chunk.start);
            spill.append(from, &chunk.bytes[(from - chunk.start) as usize..])?;
            // As `drop_front`, which cannot be called while the spill is borrowed.
            self.memory -= chunk.bytes.len() + CHUNK_COST;
            self.cursor = self.cursor.saturating_sub(1);
            self.chunks.pop_front();
        }
        Ok(())
    }

    /// Drops everything and starts anew at `offset`; the memory of the queue and the spill stay.
    pub(crate) fn restart(&mut self, offset: u64) {
        self.chunks.clear();
        self.first = offset;
        self.prologue = Bytes::new();
        self.next = offset;
        self.end = offset;
        self.cursor = 0;
        self.memory = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Memory {
        from: u64,
        bytes: Vec<u8>,
    }

    impl Spill for Memory {
        fn append(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            if self.bytes.is_empty() {
                self.from = offset;
            }
            assert_eq!(offset, self.from + self.bytes.len() as u64);
            self.bytes.extend_from_slice(bytes);
            Ok(())
        }
        fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            let at = (offset - self.from) as usize;
            into.copy_from_slice(&self.bytes[at..at + into.len()]);
            Ok(())
        }
    }

    fn drain(log: &mut SendLog, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let bytes = log.take(most).unwrap();
            if bytes.is_empty() {
                return all;
            }
            all.extend_from_slice(&bytes);
        }
    }

    #[test]
    fn bytes_come_out_as_they_went_in_again_after_a_seek_and_not_before_a_cut() {
        let mut log = SendLog::new(100);
        for piece in ["ab", "cde", "f", "ghij"] {
            log.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!(drain(&mut log, 2), b"abcdefghij");
        log.seek(104);
        assert_eq!(drain(&mut log, 100), b"efghij");
        log.cut(103);
        log.seek(0);
        assert_eq!(log.next(), 103);
        assert_eq!(drain(&mut log, 100), b"defghij");
        log.push(Bytes::from_static(b"k"));
        assert_eq!(drain(&mut log, 100), b"k");
        log.cut(1000);
        assert_eq!((log.first(), log.memory()), (111, 0));
    }

    #[test]
    fn what_is_over_the_bound_is_spilled_and_read_back() {
        let mut log = SendLog::new(0);
        log.set_spill(Box::new(Memory::default()));
        for piece in 0..50u8 {
            log.push(Bytes::from(vec![piece; 10]));
            drain(&mut log, 4);
            log.spill_over(200).unwrap();
            assert!(log.memory() <= 200);
        }
        log.seek(5);
        let expected: Vec<u8> = (0..50u8).flat_map(|piece| [piece; 10]).skip(5).collect();
        assert_eq!(drain(&mut log, 7), expected);
    }

    #[test]
    fn unsent_bytes_are_not_spilled() {
        let mut log = SendLog::new(0);
        log.set_spill(Box::new(Memory::default()));
        log.push(Bytes::from(vec![1; 1000]));
        log.spill_over(10).unwrap();
        assert_eq!(log.memory(), 1000 + CHUNK_COST);
    }
}
