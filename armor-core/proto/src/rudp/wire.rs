//! The bytes of R-UDP: packets and the frames in them. All numbers are big-endian or variable-length integers of RFC 9000 §16.
//!
//! ```text
//! data       0x51 | connection id (4) | packet number, its low 24 bits (3) | frames, sealed
//! handshake  0x52 | to (4) | from (4) | step (1) | length of cookie (1) | cookie | the handshake's message | CRC32C (4)
//! retry      0x53 | to (4) | cookie (16)
//! ```

use std::ops::Range;

/// First byte of a packet of data; the low bits are the version.
pub(super) const DATA: u8 = 0x51;
/// First byte of a handshake packet.
pub(super) const HANDSHAKE: u8 = 0x52;
/// First byte of a demand to show that the address is one's own.
pub(super) const RETRY: u8 = 0x53;

/// Bytes of a data packet's header.
pub(super) const DATA_HEADER: usize = 8;
/// Bytes of a cookie.
pub(super) const COOKIE: usize = 16;
/// Most ranges that an acknowledgement tells.
pub(super) const MAX_ACK_RANGES: usize = 64;

const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const WINDOW: u8 = 0x03;
const PATH_CHALLENGE: u8 = 0x04;
const PATH_RESPONSE: u8 = 0x05;
const CLOSE: u8 = 0x06;
const RELIABLE: u8 = 0x10;
const UNRELIABLE: u8 = 0x20;
/// The data has a length and is not what is left of the packet.
const WITH_LENGTH: u8 = 0x01;
/// The message is longer than this fragment.
const IN_PARTS: u8 = 0x02;

/// Bytes from a peer are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Length of `value` as a variable-length integer.
pub(super) const fn varint_len(value: u64) -> usize {
    match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, value: u64) {
    match varint_len(value) {
        1 => out.push(value as u8),
        2 => out.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        4 => out.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
        _ => out.extend_from_slice(&(value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// Takes numbers and slices from the front of received bytes.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let first = *self.0.first().ok_or(Malformed)?;
        Ok(match first >> 6 {
            0 => u64::from(self.byte()?),
            1 => u64::from(u16::from_be_bytes(self.array()?) & 0x3fff),
            2 => u64::from(self.u32()? & 0x3fff_ffff),
            _ => u64::from_be_bytes(self.array()?) & 0x3fff_ffff_ffff_ffff,
        })
    }
}

/// What packet number the low 24 bits stand for, when `next` is the one expected (RFC 9000, A.3).
pub(super) fn full_number(next: u64, low: [u8; 3]) -> u64 {
    const WINDOW: u64 = 1 << 24;
    let low = u64::from(u32::from_be_bytes([0, low[0], low[1], low[2]]));
    let near = (next & !(WINDOW - 1)) | low;
    if near + WINDOW / 2 <= next {
        near + WINDOW
    } else if near > next + WINDOW / 2 && near >= WINDOW {
        near - WINDOW
    } else {
        near
    }
}

/// A frame as it was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Ping,
    Ack(Ack<'a>),
    /// How many bytes of reliable messages, prefixes included and over all channels, the peer may send in all.
    Window(u64),
    PathChallenge(u64),
    PathResponse(u64),
    Close(u64),
    Reliable {
        channel: u16,
        offset: u64,
        data: &'a [u8],
    },
    Unreliable {
        channel: u16,
        number: u64,
        offset: u64,
        total: u64,
        data: &'a [u8],
    },
}

/// An acknowledgement: `largest`, how long it was kept (µs), and ranges downward from it (RFC 9000 §19.3).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ack<'a> {
    pub(super) largest: u64,
    pub(super) delay_us: u64,
    first: u64,
    count: u64,
    rest: &'a [u8],
}

impl Ack<'_> {
    /// Ranges from the highest to the lowest; checked when the frame was read.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let mut reader = Reader(self.rest);
        let mut start = self.largest - self.first;
        let mut left = self.count;
        std::iter::once(start..self.largest + 1).chain(std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let end = start.checked_sub(reader.varint().ok()? + 1)?;
            start = end.checked_sub(reader.varint().ok()? + 1)?;
            Some(start..end)
        }))
    }
}

/// Reads the frames of a packet one after the other.
pub(super) struct Frames<'a>(pub(super) Reader<'a>);

impl<'a> Frames<'a> {
    pub(super) fn next(&mut self) -> Result<Option<Frame<'a>>, Malformed> {
        let reader = &mut self.0;
        while let [PADDING, rest @ ..] = reader.0 {
            reader.0 = rest;
        }
        if reader.0.is_empty() {
            return Ok(None);
        }
        let kind = reader.byte()?;
        Ok(Some(match kind {
            PING => Frame::Ping,
            ACK => Frame::Ack(read_ack(reader)?),
            WINDOW => Frame::Window(reader.varint()?),
            PATH_CHALLENGE => Frame::PathChallenge(u64::from_be_bytes(reader.array()?)),
            PATH_RESPONSE => Frame::PathResponse(u64::from_be_bytes(reader.array()?)),
            CLOSE => Frame::Close(reader.varint()?),
            _ if kind & !WITH_LENGTH == RELIABLE => {
                let channel = read_channel(reader)?;
                let offset = reader.varint()?;
                Frame::Reliable { channel, offset, data: read_data(reader, kind)? }
            }
            _ if kind & !(WITH_LENGTH | IN_PARTS) == UNRELIABLE => {
                let channel = read_channel(reader)?;
                let number = reader.varint()?;
                let parts = if kind & IN_PARTS != 0 { Some((reader.varint()?, reader.varint()?)) } else { None };
                let data = read_data(reader, kind)?;
                let (offset, total) = parts.unwrap_or((0, data.len() as u64));
                if offset + data.len() as u64 > total {
                    return Err(Malformed);
                }
                Frame::Unreliable { channel, number, offset, total, data }
            }
            _ => return Err(Malformed),
        }))
    }
}

fn read_channel(reader: &mut Reader<'_>) -> Result<u16, Malformed> {
    u16::try_from(reader.varint()?).map_err(|_| Malformed)
}

fn read_data<'a>(reader: &mut Reader<'a>, kind: u8) -> Result<&'a [u8], Malformed> {
    if kind & WITH_LENGTH == 0 {
        return Ok(std::mem::take(&mut reader.0));
    }
    let length = usize::try_from(reader.varint()?).map_err(|_| Malformed)?;
    reader.slice(length)
}

fn read_ack<'a>(reader: &mut Reader<'a>) -> Result<Ack<'a>, Malformed> {
    let largest = reader.varint()?;
    let delay_us = reader.varint()?;
    let count = reader.varint()?;
    let first = reader.varint()?;
    if count >= MAX_ACK_RANGES as u64 || first > largest {
        return Err(Malformed);
    }
    let rest = reader.0;
    let mut start = largest - first;
    for _ in 0..count {
        // A gap of n stands for n + 1 numbers that are missing, a length of n for n + 1 that are there.
        let end = start.checked_sub(reader.varint()?.checked_add(1).ok_or(Malformed)?).ok_or(Malformed)?;
        start = end.checked_sub(reader.varint()?.checked_add(1).ok_or(Malformed)?).ok_or(Malformed)?;
    }
    Ok(Ack { largest, delay_us, first, count, rest: &rest[..rest.len() - reader.0.len()] })
}

pub(super) fn put_ping(out: &mut Vec<u8>) {
    out.push(PING);
}

/// Tells as many of `received`'s ranges, the highest first, as `room` bytes take; nothing when there is no room for one.
pub(super) fn put_ack(out: &mut Vec<u8>, received: &super::ranges::RangeSet, delay_us: u64, room: usize) -> bool {
    let mut ranges = received.iter().rev();
    let Some(first) = ranges.next() else { return false };
    let start = out.len();
    out.push(ACK);
    put_varint(out, first.end - 1);
    put_varint(out, delay_us);
    let count_at = out.len();
    out.push(0);
    put_varint(out, first.end - 1 - first.start);
    if out.len() - start > room {
        out.truncate(start);
        return false;
    }
    let mut lowest = first.start;
    let mut count = 0;
    for range in ranges.take(MAX_ACK_RANGES - 1) {
        let (gap, length) = (lowest - range.end - 1, range.end - range.start - 1);
        if out.len() - start + varint_len(gap) + varint_len(length) > room {
            break;
        }
        put_varint(out, gap);
        put_varint(out, length);
        lowest = range.start;
        count += 1;
    }
    // Below 64, so its variable-length integer is this one byte.
    out[count_at] = count;
    true
}

pub(super) fn put_window(out: &mut Vec<u8>, limit: u64) {
    out.push(WINDOW);
    put_varint(out, limit);
}

pub(super) fn put_path_challenge(out: &mut Vec<u8>, token: u64) {
    out.push(PATH_CHALLENGE);
    out.extend_from_slice(&token.to_be_bytes());
}

pub(super) fn put_path_response(out: &mut Vec<u8>, token: u64) {
    out.push(PATH_RESPONSE);
    out.extend_from_slice(&token.to_be_bytes());
}

pub(super) fn put_close(out: &mut Vec<u8>, code: u64) {
    out.push(CLOSE);
    put_varint(out, code);
}

/// Most bytes of a reliable fragment's head when it has a length.
pub(super) fn reliable_head(channel: u16, offset: u64) -> usize {
    1 + varint_len(u64::from(channel)) + varint_len(offset) + 2
}

/// Head of a reliable fragment. The two bytes of the length are written in full, whatever it is, so that the room is known before.
pub(super) fn put_reliable(out: &mut Vec<u8>, channel: u16, offset: u64, length: Option<u16>) {
    out.push(RELIABLE | if length.is_some() { WITH_LENGTH } else { 0 });
    put_varint(out, u64::from(channel));
    put_varint(out, offset);
    if let Some(length) = length {
        out.extend_from_slice(&(length & 0x3fff | 0x4000).to_be_bytes());
    }
}

/// Bytes of an unreliable fragment's head, with a length.
pub(super) fn unreliable_head(channel: u16, number: u64, parts: Option<(u64, u64)>) -> usize {
    1 + varint_len(u64::from(channel)) + varint_len(number) + parts.map_or(0, |(offset, total)| varint_len(offset) + varint_len(total)) + 2
}

/// Head of an unreliable fragment; `parts` is its offset and the message's length when that is more than the fragment.
pub(super) fn put_unreliable(out: &mut Vec<u8>, channel: u16, number: u64, parts: Option<(u64, u64)>, length: u16) {
    out.push(UNRELIABLE | WITH_LENGTH | if parts.is_some() { IN_PARTS } else { 0 });
    put_varint(out, u64::from(channel));
    put_varint(out, number);
    if let Some((offset, total)) = parts {
        put_varint(out, offset);
        put_varint(out, total);
    }
    out.extend_from_slice(&(length & 0x3fff | 0x4000).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rudp::ranges::RangeSet;

    proptest! {
        #[test]
        fn a_number_is_read_as_it_was_written(value in 0u64..1 << 62) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(Reader(&out).varint(), Ok(value));
        }

        #[test]
        fn a_packet_number_is_known_by_its_low_bits(next in 0u64..1 << 60, ahead in -(1i64 << 22)..1 << 22) {
            let number = next.saturating_add_signed(ahead);
            let low = number.to_be_bytes();
            prop_assert_eq!(full_number(next, [low[5], low[6], low[7]]), number);
        }

        #[test]
        fn an_acknowledgement_tells_the_highest_ranges_that_have_room(parts in prop::collection::vec((1u64..5000, 1u64..100), 1..100), room in 0usize..400) {
            let (mut received, mut at) = (RangeSet::default(), 0);
            for (gap, length) in parts {
                received.insert(at + gap..at + gap + length);
                at += gap + length;
            }
            let mut out = Vec::new();
            if !put_ack(&mut out, &received, 77, room) {
                prop_assert!(room < 20);
                return Ok(());
            }
            prop_assert!(out.len() <= room);
            let Ok(Some(Frame::Ack(ack))) = Frames(Reader(&out)).next() else { return Err(TestCaseError::fail("no acknowledgement")) };
            let told: Vec<_> = ack.ranges().collect();
            prop_assert_eq!(ack.delay_us, 77);
            prop_assert!(told.len() <= MAX_ACK_RANGES && !told.is_empty());
            prop_assert_eq!(&told, &received.iter().rev().take(told.len()).cloned().collect::<Vec<_>>());
        }

        #[test]
        fn garbage_has_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames(Reader(&bytes));
            let mut count = 0;
            while let Ok(Some(frame)) = frames.next() {
                if let Frame::Ack(ack) = frame {
                    prop_assert!(ack.ranges().all(|range| range.start < range.end && range.end <= ack.largest + 1));
                }
                count += 1;
                prop_assert!(count <= bytes.len());
            }
        }
    }
}
