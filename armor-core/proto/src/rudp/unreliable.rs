//! Messages for which late is useless: dropped at the sender when their time is over, never sent again, given out in order, with a count of what
//! is missing before each.
//!
//! Invariant: nothing old is given out after something new, nothing twice; queues and parts that wait for others are bounded.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::ranges::RangeSet;

/// Messages that wait to be sent, and messages that wait to be taken, at most; beyond it the oldest is dropped.
pub(super) const MAX_QUEUED: usize = 1024;
/// Incomplete messages of a channel; beyond it the oldest is dropped.
const MAX_INCOMPLETE: usize = 8;

#[derive(Debug)]
struct Outgoing {
    channel: u16,
    number: u64,
    deadline: Instant,
    total: usize,
    sent: usize,
    parts: VecDeque<Bytes>,
}

/// A fragment that goes into a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) channel: u16,
    pub(super) number: u64,
    /// Offset and whole length, when it is not the whole message.
    pub(super) parts: Option<(u64, u64)>,
    pub(super) length: u16,
}

/// The sender's side.
#[derive(Debug)]
pub(super) struct Sending {
    queue: VecDeque<Outgoing>,
    numbers: BTreeMap<u16, u64>,
    held: usize,
    bound: usize,
    max_channels: usize,
    /// Messages that were dropped before they had left, in whole or in part.
    pub(super) dropped: u64,
}

impl Sending {
    pub(super) fn new(bound: usize, max_channels: usize) -> Self {
        Self { queue: VecDeque::new(), numbers: BTreeMap::new(), held: 0, bound, max_channels, dropped: 0 }
    }

    pub(super) fn may_open(&self, channel: u16) -> bool {
        self.numbers.contains_key(&channel) || self.numbers.len() < self.max_channels
    }

    /// Queues a message; what is oldest makes room for it.
    pub(super) fn push(&mut self, channel: u16, deadline: Instant, parts: &[Bytes]) {
        let total = parts.iter().map(Bytes::len).sum();
        let next = self.numbers.entry(channel).or_default();
        let number = *next;
        *next += 1;
        while !self.queue.is_empty() && (self.queue.len() >= MAX_QUEUED || self.held + total > self.bound) {
            self.drop_first();
        }
        self.held += total;
        let parts = parts.iter().filter(|part| !part.is_empty()).cloned().collect();
        self.queue.push_back(Outgoing { channel, number, deadline, total, sent: 0, parts });
    }

    fn drop_first(&mut self) {
        if let Some(message) = self.queue.pop_front() {
            self.held -= message.total;
            self.dropped += 1;
        }
    }

    /// Drops what is too late, and is there anything left?
    pub(super) fn wants_to_send(&mut self, now: Instant) -> bool {
        if self.queue.iter().any(|message| message.deadline < now) {
            let (held, dropped) = (&mut self.held, &mut self.dropped);
            self.queue.retain(|message| {
                let in_time = message.deadline >= now;
                if !in_time {
                    *held -= message.total;
                    *dropped += 1;
                }
                in_time
            });
        }
        !self.queue.is_empty()
    }

    /// Cuts the next fragment to go with its head into `room` bytes.
    pub(super) fn next(&mut self, room: usize) -> Option<Piece> {
        let message = self.queue.front()?;
        let left = message.total - message.sent;
        let whole = super::wire::unreliable_head(message.channel, message.number, None);
        if message.sent == 0 && room >= whole + left && left <= 0x3fff {
            return Some(Piece { channel: message.channel, number: message.number, parts: None, length: left as u16 });
        }
        let parts = (message.sent as u64, message.total as u64);
        let room = room.checked_sub(super::wire::unreliable_head(message.channel, message.number, Some(parts)))?;
        if room < left.min(256) {
            return None;
        }
        Some(Piece { channel: message.channel, number: message.number, parts: Some(parts), length: left.min(room).min(0x3fff) as u16 })
    }

    /// Copies the fragment that [`Sending::next`] has just cut.
    pub(super) fn write(&mut self, piece: &Piece, out: &mut Vec<u8>) {
        let Some(message) = self.queue.front_mut() else { return };
        let mut left = usize::from(piece.length);
        message.sent += left;
        while left > 0 {
            let Some(part) = message.parts.front_mut() else { break };
            let taken = part.split_to(part.len().min(left));
            left -= taken.len();
            out.extend_from_slice(&taken);
            if part.is_empty() {
                message.parts.pop_front();
            }
        }
        if message.sent == message.total {
            self.held -= message.total;
            self.queue.pop_front();
        }
    }
}

#[derive(Debug)]
struct Incomplete {
    number: u64,
    buffer: BytesMut,
    received: RangeSet,
}

#[derive(Debug, Default)]
struct Channel {
    /// Lowest number that is still wanted.
    wanted: u64,
    /// Lowest number that was not given out or passed over.
    told: u64,
    incomplete: VecDeque<Incomplete>,
}

/// The receiver's side.
#[derive(Debug)]
pub(super) struct Receiving {
    channels: BTreeMap<u16, Channel>,
    complete: VecDeque<(u16, u64, Bytes)>,
    /// Bytes in messages, whole or not.
    held: usize,
    bound: usize,
    max_channels: usize,
    max_message: usize,
}

impl Receiving {
    pub(super) fn new(bound: usize, max_channels: usize, max_message: usize) -> Self {
        Self { channels: BTreeMap::new(), complete: VecDeque::new(), held: 0, bound, max_channels, max_message }
    }

    /// Takes a fragment in; true when a message has become complete. What cannot be kept is as if lost on the way.
    pub(super) fn fragment(&mut self, channel: u16, number: u64, offset: u64, total: u64, data: &[u8]) -> bool {
        if (!self.channels.contains_key(&channel) && self.channels.len() >= self.max_channels) || total > self.max_message as u64 {
            return false;
        }
        let state = self.channels.entry(channel).or_default();
        if number < state.wanted {
            return false;
        }
        let total = total as usize;
        let whole = if data.len() == total {
            self.held += total;
            Bytes::copy_from_slice(data)
        } else {
            let index = state.incomplete.partition_point(|message| message.number < number);
            if state.incomplete.get(index).is_none_or(|message| message.number != number) {
                if state.incomplete.len() >= MAX_INCOMPLETE {
                    if index == 0 {
                        return false;
                    }
                    if let Some(oldest) = state.incomplete.pop_front() {
                        self.held -= oldest.buffer.len();
                    }
                }
                if self.held + total > self.bound {
                    return false;
                }
                self.held += total;
                let index = state.incomplete.partition_point(|message| message.number < number);
                state.incomplete.insert(index, Incomplete { number, buffer: BytesMut::zeroed(total), received: RangeSet::default() });
            }
            let index = state.incomplete.partition_point(|message| message.number < number);
            let Some(message) = state.incomplete.get_mut(index) else { return false };
            let at = offset as usize;
            if message.buffer.len() != total || at + data.len() > total {
                return false;
            }
            message.buffer[at..at + data.len()].copy_from_slice(data);
            message.received.insert(offset..offset + data.len() as u64);
            if message.received.len() != 1 || message.received.first() != Some(0..total as u64) {
                return false;
            }
            std::mem::take(&mut message.buffer).freeze()
        };
        // All that is older is useless now.
        state.wanted = number + 1;
        while state.incomplete.front().is_some_and(|message| message.number <= number) {
            if let Some(old) = state.incomplete.pop_front() {
                self.held -= old.buffer.len();
            }
        }
        self.complete.push_back((channel, number, whole));
        while self.complete.len() > MAX_QUEUED || self.held > self.bound {
            let Some((_, _, oldest)) = self.complete.pop_front() else { break };
            self.held -= oldest.len();
        }
        true
    }

    /// The next message: channel, how many are missing before it, payload.
    pub(super) fn take(&mut self) -> Option<(u16, u64, Bytes)> {
        let (channel, number, payload) = self.complete.pop_front()?;
        self.held -= payload.len();
        let state = self.channels.entry(channel).or_default();
        let missing = number - state.told;
        state.told = number + 1;
        Some((channel, missing, payload))
    }
}
