//! Packets: datagrams that are encrypted and authenticated each, whatever becomes of the others.
//!
//! The number of a packet, which its header carries, is its nonce; the header is authenticated with it. Behind ciphertext and tag stands the *phase*,
//! one byte: which key of the chain it is. The sender goes on to the next one by itself (RFC 9001, §6, without its wait for the other side: the two
//! directions renew their keys alone), and the receiver follows once a packet of it has opened.

use super::cipher::{Key, TAG};

/// Bytes that a packet has behind its plaintext.
pub const PACKET_OVERHEAD: usize = TAG + 1;
/// The key is renewed after so many packets (RFC 9001, §6.6 has 2^23 as the most).
pub const PHASE_PACKETS: u64 = 1 << 20;
/// Numbers below the highest one that may still come, each once.
pub const WINDOW: u64 = 4096;
/// Phases that a sender may have gone through unheard.
const AHEAD: u8 = 16;

/// Why a packet is dropped. The others are as good as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Too short to be one.
    #[error("a packet of {got} bytes")]
    Length {
        /// So many.
        got: usize,
    },
    /// It has been opened before.
    #[error("packet {number} has come before")]
    Repeated {
        /// Its number.
        number: u64,
    },
    /// It is below the window, so nobody knows whether it has been opened.
    #[error("packet {number} is older than the last {WINDOW}")]
    Old {
        /// Its number.
        number: u64,
    },
    /// Of a key that is gone, or too far ahead.
    #[error("packet {number} is of a key that is not in use")]
    Phase {
        /// Its number.
        number: u64,
    },
    /// The tag does not fit.
    #[error("packet {number} does not verify: it was altered, or is a stranger's")]
    Altered {
        /// Its number.
        number: u64,
    },
    /// The sender used a number again, or has used them all.
    #[error("packet number {number} has been used")]
    Used {
        /// The number.
        number: u64,
    },
    /// The library refuses.
    #[error("the packet cannot be encrypted")]
    Refused,
}

/// Encrypts packets.
#[derive(Debug)]
pub struct PacketSealer {
    key: Key,
    phase: u64,
    /// Packets under this key.
    packets: u64,
    /// The lowest number that has not been used.
    next: u64,
}

impl PacketSealer {
    pub(super) fn new(key: Key) -> PacketSealer {
        PacketSealer { key, phase: 0, packets: 0, next: 0 }
    }

    /// Encrypts a packet in place: `packet` is the plaintext and room for [`PACKET_OVERHEAD`] behind it, `number` higher than all before, and
    /// `header` what the receiver will have, as it is sent.
    ///
    /// # Errors
    /// [`PacketError::Used`], [`PacketError::Length`] without that room. Nothing may be sent then.
    pub fn seal(&mut self, number: u64, header: &[u8], packet: &mut [u8]) -> Result<(), PacketError> {
        let length = packet.len();
        // The highest number is for making the next key.
        if number < self.next || number == u64::MAX {
            return Err(PacketError::Used { number });
        }
        let Some(plain) = length.checked_sub(PACKET_OVERHEAD) else { return Err(PacketError::Length { got: length }) };
        if self.packets >= PHASE_PACKETS {
            self.key = self.key.next().ok_or(PacketError::Refused)?;
            self.phase += 1;
            self.packets = 0;
        }
        let (bytes, behind) = packet.split_at_mut(plain);
        let tag = self.key.seal(number, header, bytes).ok_or(PacketError::Refused)?;
        behind[..TAG].copy_from_slice(&tag);
        // Low byte: which of the keys around the receiver's present one.
        behind[TAG] = self.phase as u8;
        self.packets += 1;
        self.next = number + 1;
        Ok(())
    }

    /// The next packet is the first of another key: for a bound in time, which the owner's clock keeps. Not more than once per packet heard from the
    /// peer, which follows over at most 16 keys that it has not seen anything of.
    pub fn rekey(&mut self) {
        if self.packets > 0 {
            self.packets = PHASE_PACKETS;
        }
    }

    /// Keys used so far.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.phase + 1
    }
}

/// Decrypts packets, each number once.
#[derive(Debug)]
pub struct PacketOpener {
    previous: Option<Key>,
    current: Key,
    /// Made ahead, so that the first packet under it takes no longer than others.
    next: Option<Key>,
    phase: u64,
    /// The lowest number of the present phase so far: none of an earlier phase is above it.
    lowest: u64,
    window: Window,
}

/// Which key opens a packet.
enum With {
    Previous,
    Current,
    Ahead(u8),
}

impl PacketOpener {
    pub(super) fn new(key: Key) -> PacketOpener {
        let next = key.next();
        PacketOpener { previous: None, current: key, next, phase: 0, lowest: u64::MAX, window: Window::default() }
    }

    /// Decrypts a packet in place; how many bytes of plaintext `sealed` begins with.
    ///
    /// # Errors
    /// Why it is to be dropped; `sealed` may be scrambled then, and nothing else has changed.
    pub fn open(&mut self, number: u64, header: &[u8], sealed: &mut [u8]) -> Result<usize, PacketError> {
        let got = sealed.len();
        if got < PACKET_OVERHEAD || number == u64::MAX {
            return Err(PacketError::Length { got });
        }
        self.window.check(number)?;
        let Some((phase, sealed)) = sealed.split_last_mut() else { return Err(PacketError::Length { got }) };
        let with = match phase.wrapping_sub(self.phase as u8) {
            0 => With::Current,
            ahead @ 1..=AHEAD if number > self.window.highest || self.window.is_empty() => With::Ahead(ahead),
            u8::MAX if number < self.lowest => With::Previous,
            _ => return Err(PacketError::Phase { number }),
        };
        let altered = |_| PacketError::Altered { number };
        let opened = match with {
            With::Current => self.current.open(number, header, sealed).map_err(altered)?,
            With::Previous => self.previous.as_ref().ok_or(PacketError::Phase { number })?.open(number, header, sealed).map_err(altered)?,
            With::Ahead(ahead) => {
                let refused = || PacketError::Refused;
                let mut passed: Option<Key> = None;
                for _ in 1..ahead {
                    let from = passed.as_ref().or(self.next.as_ref()).ok_or_else(refused)?;
                    passed = Some(from.next().ok_or_else(refused)?);
                }
                let key = passed.as_ref().or(self.next.as_ref()).ok_or_else(refused)?;
                let opened = key.open(number, header, sealed).map_err(altered)?;
                // It is the peer's: nobody else has that key.
                let after = key.next().ok_or_else(refused)?;
                let Some(key) = passed.or_else(|| self.next.take()) else { return Err(PacketError::Refused) };
                let before = std::mem::replace(&mut self.current, key);
                self.previous = (ahead == 1).then_some(before);
                self.next = Some(after);
                self.phase += u64::from(ahead);
                self.lowest = number;
                opened
            }
        };
        if matches!(with, With::Current) {
            self.lowest = self.lowest.min(number);
        }
        self.window.take(number);
        Ok(opened)
    }

    /// Keys of the peer known so far.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.phase + 1
    }
}

/// Which of the last [`WINDOW`] numbers have come (RFC 6479).
#[derive(Debug)]
struct Window {
    /// One beyond the highest number, so that 0 is none.
    end: u64,
    highest: u64,
    seen: [u64; WORDS],
}

/// One word more than the window needs, so that a word is cleared whole when the window moves over it.
const WORDS: usize = WINDOW as usize / 64 + 1;

impl Default for Window {
    fn default() -> Window {
        Window { end: 0, highest: 0, seen: [0; WORDS] }
    }
}

impl Window {
    fn is_empty(&self) -> bool {
        self.end == 0
    }

    fn word(number: u64) -> usize {
        (number / 64 % WORDS as u64) as usize
    }

    fn check(&self, number: u64) -> Result<(), PacketError> {
        if self.is_empty() || number > self.highest {
            return Ok(());
        }
        if self.highest - number >= WINDOW {
            return Err(PacketError::Old { number });
        }
        if self.seen[Self::word(number)] & 1 << (number % 64) != 0 {
            return Err(PacketError::Repeated { number });
        }
        Ok(())
    }

    /// After [`Window::check`].
    fn take(&mut self, number: u64) {
        if self.is_empty() || number > self.highest {
            let (from, to) = (self.highest / 64, number / 64);
            for step in 1..=(to - from).min(WORDS as u64) {
                self.seen[((from + step) % WORDS as u64) as usize] = 0;
            }
            self.highest = number;
            self.end = number.saturating_add(1);
        }
        self.seen[Self::word(number)] |= 1 << (number % 64);
    }
}
