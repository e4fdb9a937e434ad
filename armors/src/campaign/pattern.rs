//! The bytes of a campaign's streams: each is a function of seed, connection, direction and offset, so that a byte that was lost, repeated or
//! altered is recognised where it arrives, and the draws of the schedule.
//!
//! Invariant: the same seed gives the same bytes and the same draws on every machine.

use std::fmt;

/// Mixes 64 bits (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer = 1,
    ToClient = 2,
}

/// One stream of bytes. Any eight of them in a row say where they stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern {
    key: u64,
}

/// Received bytes that have to be at hand before it is said what became of a stream.
const TELLING: usize = 16;
/// How far from its place a displaced stream is looked for.
const DISPLACED: u64 = 1 << 20;

impl Pattern {
    pub(crate) fn new(seed: u64, connection: u32, direction: Direction) -> Pattern {
        Pattern { key: mix(mix(seed) ^ u64::from(connection) << 2 ^ direction as u64) }
    }

    /// That of one answer among many.
    pub(crate) fn of_answer(self, number: u64) -> Pattern {
        Pattern { key: mix(self.key ^ mix(number)) }
    }

    pub(crate) fn byte(self, offset: u64) -> u8 {
        self.block(offset / 8)[(offset % 8) as usize]
    }

    fn block(self, number: u64) -> [u8; 8] {
        mix(self.key ^ number.wrapping_mul(0x9fb2_1c65_1e98_df25)).to_le_bytes()
    }

    /// The bytes from an offset on.
    pub(crate) fn fill(self, offset: u64, bytes: &mut [u8]) {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = self.byte(offset + at as u64);
        }
    }

    /// Compares what has arrived from an offset on.
    ///
    /// # Errors
    /// The first byte that is another one, and what became of the stream there.
    pub(crate) fn check(self, offset: u64, received: &[u8]) -> Result<(), Wrong> {
        let Some(at) = (0..received.len()).find(|&at| received[at] != self.byte(offset + at as u64)) else { return Ok(()) };
        let place = offset + at as u64;
        Err(Wrong { offset: place, how: self.what_became(place, &received[at..]) })
    }

    fn what_became(self, place: u64, received: &[u8]) -> How {
        let Some(sample) = received.get(..TELLING) else { return How::Altered };
        let is_at = |offset: u64| sample.iter().enumerate().all(|(at, &byte)| byte == self.byte(offset + at as u64));
        for distance in 1..=DISPLACED {
            if is_at(place + distance) {
                return How::Lost { bytes: distance };
            }
            if distance <= place && is_at(place - distance) {
                return How::Repeated { bytes: distance };
            }
        }
        How::Altered
    }
}

/// Where a stream is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) offset: u64,
    pub(crate) how: How,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Lost { bytes: u64 },
    Repeated { bytes: u64 },
    Altered,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.how {
            How::Lost { bytes } => write!(f, "{bytes} bytes lost at offset {}", self.offset),
            How::Repeated { bytes } => write!(f, "{bytes} bytes repeated at offset {}", self.offset),
            How::Altered => write!(f, "a wrong byte at offset {}", self.offset),
        }
    }
}

/// Draws of a schedule.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    state: u64,
}

impl Draw {
    /// The draws that belong to a thing of this name and number.
    pub(crate) fn of(seed: u64, name: &str, number: u64) -> Draw {
        let name = name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)));
        Draw { state: mix(name ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93)) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// One of `0..below`; 0 when there is none.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        // The bias of some 2^-40 for the small numbers here matters to nobody.
        if below == 0 { 0 } else { self.next() % below }
    }

    /// One of `from..=to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(length: usize) -> (Pattern, Vec<u8>) {
        let pattern = Pattern::new(7, 3, Direction::ToClient);
        let mut bytes = vec![0; length];
        pattern.fill(0, &mut bytes);
        (pattern, bytes)
    }

    #[test]
    fn what_arrives_in_pieces_is_right_wherever_it_is_cut() {
        let (pattern, bytes) = stream(1000);
        for cut in 0..1000 {
            assert_eq!(pattern.check(0, &bytes[..cut]), Ok(()));
            assert_eq!(pattern.check(cut as u64, &bytes[cut..]), Ok(()));
        }
    }

    #[test]
    fn lost_repeated_and_altered_bytes_are_told_apart_and_with_their_offset() {
        let (pattern, bytes) = stream(4000);
        for (at, size) in [(0, 1), (100, 1), (100, 7), (1001, 512), (17, 3000)] {
            let lost = [&bytes[..at], &bytes[at + size..]].concat();
            assert_eq!(pattern.check(0, &lost), Err(Wrong { offset: at as u64, how: How::Lost { bytes: size as u64 } }));
        }
        for (at, size) in [(1, 1), (100, 1), (1001, 512), (3500, 3000)] {
            let repeated = [&bytes[..at], &bytes[at - size..]].concat();
            assert_eq!(pattern.check(0, &repeated), Err(Wrong { offset: at as u64, how: How::Repeated { bytes: size as u64 } }));
        }
        let mut altered = bytes.clone();
        altered[555] ^= 0x10;
        assert_eq!(pattern.check(0, &altered), Err(Wrong { offset: 555, how: How::Altered }));
    }

    #[test]
    fn streams_of_other_connections_directions_seeds_and_answers_are_other_streams() {
        let (pattern, bytes) = stream(64);
        let others = [
            Pattern::new(7, 3, Direction::ToServer),
            Pattern::new(7, 4, Direction::ToClient),
            Pattern::new(8, 3, Direction::ToClient),
            pattern.of_answer(0),
            pattern.of_answer(1),
        ];
        for other in others {
            assert!(other.check(0, &bytes).is_err());
        }
    }

    #[test]
    fn draws_are_the_same_again_and_within_their_bounds() {
        let drawn = |seed, name, number| {
            let mut draw = Draw::of(seed, name, number);
            (0..100).map(|_| draw.between(5, 9)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(1, "a", 1), drawn(1, "a", 1));
        assert_ne!(drawn(1, "a", 1), drawn(1, "a", 2));
        assert_ne!(drawn(1, "a", 1), drawn(1, "b", 1));
        let all = drawn(1, "a", 1);
        assert!((5..=9).all(|value| all.contains(&value)) && all.iter().all(|value| (5..=9).contains(value)), "{all:?}");
        assert_eq!(Draw::of(1, "a", 1).below(0), 0);
    }
}
