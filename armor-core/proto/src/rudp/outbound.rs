//! Reliable messages on their way out. Each channel is a stream of bytes, in which a message is its length (a variable-length integer) and
//! its bytes; fragments are cut from that stream when a packet has room.
//!
//! A message is *admitted*, in the order of sending over all channels, when the peer's window has room for all of it. So what has begun
//! can be completed, whichever other messages are under way.
//!
//! Invariant: no more than the bound of bytes is held; no byte is sent beyond the peer's window.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::ranges::RangeSet;
use super::wire;

/// A piece of a channel's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) channel: u16,
    pub(super) offset: u64,
    pub(super) length: u16,
}

impl Fragment {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.length)
    }
}

#[derive(Debug, Default)]
struct Channel {
    /// What is not acknowledged up to here, by offset.
    parts: VecDeque<(u64, Bytes)>,
    end: u64,
    admitted: u64,
    next: u64,
    acknowledged: RangeSet,
    lost: RangeSet,
    in_fresh: bool,
    in_lost: bool,
}

impl Channel {
    fn unacknowledged(&self) -> u64 {
        self.acknowledged.first().filter(|range| range.start == 0).map_or(0, |range| range.end)
    }
}

/// All that is to be sent reliably over one link.
#[derive(Debug)]
pub(super) struct Outbound {
    channels: BTreeMap<u16, Channel>,
    waiting: VecDeque<(u16, u64)>,
    admitted: u64,
    /// What the peer's window allows in all.
    limit: u64,
    fresh: VecDeque<u16>,
    lost: VecDeque<u16>,
    held: usize,
    bound: usize,
    max_channels: usize,
}

impl Outbound {
    pub(super) fn new(bound: usize, max_channels: usize, limit: u64) -> Self {
        Self {
            channels: BTreeMap::new(),
            waiting: VecDeque::new(),
            admitted: 0,
            limit,
            fresh: VecDeque::new(),
            lost: VecDeque::new(),
            held: 0,
            bound,
            max_channels,
        }
    }

    /// Bytes that one more message may have now. One alone may be of any length.
    pub(super) fn room(&self) -> usize {
        if self.held == 0 { usize::MAX } else { self.bound.saturating_sub(self.held) }
    }

    /// Bytes not yet acknowledged, sent or not.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// False when the channel would be one too many.
    pub(super) fn may_open(&self, channel: u16) -> bool {
        self.channels.contains_key(&channel) || self.channels.len() < self.max_channels
    }

    /// Queues a message. Its room and its channel were asked for before.
    pub(super) fn push(&mut self, channel: u16, parts: &[Bytes]) {
        let length: usize = parts.iter().map(Bytes::len).sum();
        let mut prefix = Vec::with_capacity(8);
        wire::put_varint(&mut prefix, length as u64);
        let size = prefix.len() + length;
        let state = self.channels.entry(channel).or_default();
        for part in std::iter::once(Bytes::from(prefix)).chain(parts.iter().cloned()) {
            if !part.is_empty() {
                let offset = state.end;
                state.end += part.len() as u64;
                state.parts.push_back((offset, part));
            }
        }
        self.held += size;
        self.waiting.push_back((channel, size as u64));
        self.admit();
    }

    /// The peer's window has grown to `limit` bytes in all.
    pub(super) fn window(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
        self.admit();
    }

    fn admit(&mut self) {
        while let Some((channel, size)) = self.waiting.front().copied() {
            if self.admitted + size > self.limit {
                return;
            }
            self.waiting.pop_front();
            self.admitted += size;
            if let Some(state) = self.channels.get_mut(&channel) {
                state.admitted += size;
                if !state.in_fresh {
                    state.in_fresh = true;
                    self.fresh.push_back(channel);
                }
            }
        }
    }

    /// True when there is something that may be sent.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.lost.is_empty() || !self.fresh.is_empty()
    }

    /// Cuts the next fragment, what was lost before what is new, to go with its head into `room` bytes. Channels take turns.
    pub(super) fn next(&mut self, room: usize) -> Option<Fragment> {
        while let Some(channel) = self.lost.front().copied() {
            let state = self.channels.get_mut(&channel)?;
            if let Some(range) = state.lost.first() {
                let length = cut(&range, channel, room)?;
                let fragment = Fragment { channel, offset: range.start, length };
                state.lost.remove(fragment.range());
                return Some(fragment);
            }
            state.in_lost = false;
            self.lost.pop_front();
        }
        while let Some(channel) = self.fresh.front().copied() {
            let state = self.channels.get_mut(&channel)?;
            let range = state.next..state.admitted;
            if !range.is_empty() {
                let length = cut(&range, channel, room)?;
                let fragment = Fragment { channel, offset: range.start, length };
                state.next += u64::from(length);
                self.fresh.rotate_left(1);
                return Some(fragment);
            }
            state.in_fresh = false;
            self.fresh.pop_front();
        }
        None
    }

    /// Copies a fragment's bytes into a packet.
    pub(super) fn write(&self, fragment: &Fragment, out: &mut Vec<u8>) {
        let Some(state) = self.channels.get(&fragment.channel) else { return };
        let Range { start, end } = fragment.range();
        let mut at = start;
        let first = state.parts.partition_point(|(offset, part)| offset + part.len() as u64 <= start);
        for (offset, part) in state.parts.range(first..) {
            if at >= end {
                break;
            }
            let from = (at - offset) as usize;
            let length = ((end - at) as usize).min(part.len() - from);
            out.extend_from_slice(&part[from..from + length]);
            at += length as u64;
        }
    }

    pub(super) fn acknowledged(&mut self, fragment: &Fragment) {
        let Some(state) = self.channels.get_mut(&fragment.channel) else { return };
        state.acknowledged.insert(fragment.range());
        if !state.lost.is_empty() {
            state.lost.remove(fragment.range());
        }
        let until = state.unacknowledged();
        while let Some((offset, part)) = state.parts.front() {
            if offset + part.len() as u64 > until {
                break;
            }
            self.held -= part.len();
            state.parts.pop_front();
        }
    }

    /// The packet with this fragment is taken for lost: what of it is not acknowledged is sent again.
    pub(super) fn was_lost(&mut self, fragment: &Fragment) {
        let Some(state) = self.channels.get_mut(&fragment.channel) else { return };
        state.lost.insert(fragment.range());
        // The acknowledged ranges that overlap are few: fragments are mostly sent again as they were cut.
        let acknowledged: Vec<_> = state.acknowledged.iter().rev().take_while(|range| range.end > fragment.offset).cloned().collect();
        for range in acknowledged {
            state.lost.remove(range);
        }
        if !state.in_lost && !state.lost.is_empty() {
            state.in_lost = true;
            self.lost.push_back(fragment.channel);
        }
    }
}

/// How much of `range` goes into `room` bytes; `None` when it is not worth a head.
fn cut(range: &Range<u64>, channel: u16, room: usize) -> Option<u16> {
    const WORTH: usize = 48;
    let room = room.checked_sub(wire::reliable_head(channel, range.start))?;
    let wanted = range.end - range.start;
    if room == 0 || (room < WORTH && wanted > room as u64) {
        return None;
    }
    // The length's field has 14 bits.
    Some(wanted.min(room as u64).min(0x3fff) as u16)
}
