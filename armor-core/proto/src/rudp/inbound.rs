//! Reliable messages on their way in: fragments are put in their places, whole messages are given out in order within a channel.
//!
//! Invariant: no more than the window is held, counted by the highest offset of each channel; a peer that sends beyond it is at fault.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes, BytesMut};

use super::ranges::RangeSet;
use super::wire;

/// Most gaps within one channel's stream.
const MAX_GAPS: usize = 16_384;

/// The peer has broken the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Violation {
    BeyondWindow,
    TooManyChannels,
    TooManyGaps,
    MessageTooLong,
}

#[derive(Debug, Default)]
struct Channel {
    /// Offset of the first byte of `buffer`: all before it was given out.
    base: u64,
    buffer: BytesMut,
    received: RangeSet,
}

#[derive(Debug)]
pub(super) struct Inbound {
    channels: BTreeMap<u16, Channel>,
    complete: VecDeque<(u16, usize, Bytes)>,
    window: u64,
    /// Sum of the highest offsets.
    total: u64,
    consumed: u64,
    /// The limit that the peer was told last.
    granted: u64,
    max_channels: usize,
    max_message: usize,
}

impl Inbound {
    pub(super) fn new(window: u64, granted: u64, max_channels: usize, max_message: usize) -> Self {
        Self { channels: BTreeMap::new(), complete: VecDeque::new(), window, total: 0, consumed: 0, granted, max_channels, max_message }
    }

    /// Takes a fragment in; true when a message has become complete.
    pub(super) fn fragment(&mut self, channel: u16, offset: u64, data: &[u8]) -> Result<bool, Violation> {
        if !self.channels.contains_key(&channel) && self.channels.len() >= self.max_channels {
            return Err(Violation::TooManyChannels);
        }
        let state = self.channels.entry(channel).or_default();
        let end = offset + data.len() as u64;
        let highest = state.base + state.buffer.len() as u64;
        if end > highest {
            if self.total + (end - highest) > self.granted {
                return Err(Violation::BeyondWindow);
            }
            self.total += end - highest;
        }
        if end <= state.base || data.is_empty() {
            return Ok(false);
        }
        let (offset, data) = if offset < state.base { (state.base, &data[(state.base - offset) as usize..]) } else { (offset, data) };
        let at = (offset - state.base) as usize;
        if at == state.buffer.len() {
            state.buffer.extend_from_slice(data);
        } else {
            if at + data.len() > state.buffer.len() {
                state.buffer.resize(at + data.len(), 0);
            }
            state.buffer[at..at + data.len()].copy_from_slice(data);
        }
        state.received.insert(offset..end);
        if state.received.len() > MAX_GAPS {
            return Err(Violation::TooManyGaps);
        }
        let mut any = false;
        loop {
            let contiguous = match state.received.first() {
                Some(range) if range.start <= state.base => (range.end - state.base) as usize,
                _ => break,
            };
            let mut reader = wire::Reader(&state.buffer[..contiguous]);
            let Ok(length) = reader.varint() else { break };
            if length > self.max_message as u64 {
                return Err(Violation::MessageTooLong);
            }
            let (prefix, length) = (contiguous - reader.0.len(), length as usize);
            if contiguous < prefix + length {
                break;
            }
            state.buffer.advance(prefix);
            let message = state.buffer.split_to(length).freeze();
            state.base += (prefix + length) as u64;
            if contiguous == prefix + length {
                state.received.drop_first();
            }
            self.complete.push_back((channel, prefix + length, message));
            any = true;
        }
        Ok(any)
    }

    /// The next whole message and its channel.
    pub(super) fn take(&mut self) -> Option<(u16, Bytes)> {
        let (channel, size, message) = self.complete.pop_front()?;
        self.consumed += size as u64;
        Some((channel, message))
    }

    /// True when the peer's window should be moved: an eighth of it has been consumed since it was told.
    pub(super) fn should_grant(&self) -> bool {
        self.consumed + self.window >= self.granted + self.window / 8
    }

    /// The limit that the peer is to be told, which from now on counts as told.
    pub(super) fn grant(&mut self) -> u64 {
        self.granted = self.granted.max(self.consumed + self.window);
        self.granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound() -> Inbound {
        Inbound::new(1000, 100, 2, 50)
    }

    #[test]
    fn a_message_is_given_out_when_all_before_it_are() {
        let mut inbound = inbound();
        assert_eq!(inbound.fragment(0, 3, b"\x01z"), Ok(false));
        assert_eq!(inbound.fragment(0, 1, b"xy"), Ok(false));
        assert_eq!(inbound.fragment(0, 0, b"\x02x"), Ok(true));
        assert_eq!(inbound.fragment(0, 0, b"\x02xy\x01z"), Ok(false));
        assert_eq!(inbound.take(), Some((0, Bytes::from_static(b"xy"))));
        assert_eq!(inbound.take(), Some((0, Bytes::from_static(b"z"))));
        assert_eq!(inbound.take(), None);
    }

    #[test]
    fn a_peer_that_sends_beyond_its_window_is_at_fault() {
        let mut inbound = inbound();
        assert_eq!(inbound.fragment(0, 50, b"x"), Ok(false));
        // Channels count together, each by its highest offset.
        assert_eq!(inbound.fragment(1, 48, b"x"), Ok(false));
        assert_eq!(inbound.fragment(1, 49, b"x"), Err(Violation::BeyondWindow));
    }

    #[test]
    fn a_channel_too_many_and_a_message_too_long_are_faults() {
        let mut inbound = inbound();
        assert_eq!(inbound.fragment(7, 0, b"\x33"), Err(Violation::MessageTooLong));
        assert_eq!(inbound.fragment(8, 0, b"\x32"), Ok(false));
        assert_eq!(inbound.fragment(9, 0, b"\x01"), Err(Violation::TooManyChannels));
    }

    #[test]
    fn the_window_moves_with_what_is_taken() {
        let mut inbound = Inbound::new(80, 80, 2, 50);
        for number in 0..4u64 {
            assert_eq!(inbound.fragment(0, number * 20, &[19; 20]), Ok(true));
        }
        assert!(!inbound.should_grant());
        inbound.take();
        assert!(inbound.should_grant());
        assert_eq!(inbound.grant(), 100);
        assert!(!inbound.should_grant());
    }
}
