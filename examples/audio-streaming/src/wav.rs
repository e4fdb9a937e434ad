//! The WAV (RIFF, PCM) head of a stream: what tells the client rate, channels, bits and length.
//!
//! A stream is a valid WAV file: 44 bytes of head, the samples, and one zero byte of padding when
//! the samples have an odd number of bytes (RIFF chunks are even).
//!
//! Invariant: no sample is touched here, and a head that was read has only values that are usable.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// Length in bytes of the head that [`StreamHeader::encode`] writes.
pub const HEADER_LEN: usize = 44;

/// Longest head that [`StreamHeader::parse`] reads before it gives up looking for samples.
pub const HEADER_LIMIT: usize = 4096;

/// Largest number of channels that is accepted.
pub const MAX_CHANNELS: u16 = 8;

/// Width of one sample. Eight bits are unsigned and sixteen are signed little-endian, as in WAV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleBits {
    /// Unsigned, 128 is silence.
    Eight,
    /// Signed little-endian, 0 is silence.
    Sixteen,
}

impl SampleBits {
    /// The width that has this many bits, if there is one.
    pub fn from_bits(bits: u16) -> Option<Self> {
        match bits {
            8 => Some(Self::Eight),
            16 => Some(Self::Sixteen),
            _ => None,
        }
    }

    /// Number of bits.
    pub fn bits(self) -> u16 {
        match self {
            Self::Eight => 8,
            Self::Sixteen => 16,
        }
    }

    /// Number of bytes.
    pub fn bytes(self) -> u16 {
        self.bits() / 8
    }
}

impl Serialize for SampleBits {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.bits())
    }
}

/// How samples are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AudioFormat {
    /// Frames per second, 1 000 to 192 000.
    pub sample_rate: u32,
    /// Samples per frame, 1 to [`MAX_CHANNELS`].
    pub channels: u16,
    /// Width of a sample.
    pub bits: SampleBits,
}

impl AudioFormat {
    /// A format whose numbers are in the ranges that the fields state.
    ///
    /// # Errors
    /// [`WavError::Unsupported`] says which number is not.
    pub fn new(sample_rate: u32, channels: u16, bits: u16) -> Result<Self, WavError> {
        if !(1_000..=192_000).contains(&sample_rate) {
            return Err(WavError::Unsupported(format!("{sample_rate} Hz (1000 to 192000 are)")));
        }
        if !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(WavError::Unsupported(format!("{channels} channels (1 to {MAX_CHANNELS} are)")));
        }
        let bits = SampleBits::from_bits(bits).ok_or_else(|| WavError::Unsupported(format!("{bits} bits per sample (8 and 16 are)")))?;
        Ok(Self { sample_rate, channels, bits })
    }

    /// Bytes of one frame, that is of one sample for every channel.
    pub fn frame_bytes(self) -> u32 {
        u32::from(self.channels) * u32::from(self.bits.bytes())
    }

    /// Bytes that a second of audio needs.
    pub fn bytes_per_second(self) -> u32 {
        self.sample_rate * self.frame_bytes()
    }
}

impl fmt::Display for AudioFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Hz, {} channel(s), {} bit", self.sample_rate, self.channels, self.bits.bits())
    }
}

/// The head of a stream: the format and how many bytes of samples follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHeader {
    /// Format of the samples.
    pub format: AudioFormat,
    /// Bytes of samples, a whole number of frames.
    pub data_len: u32,
}

impl StreamHeader {
    /// Longest `data_len` for which the sizes in the head fit 32 bits.
    pub const MAX_DATA_LEN: u64 = u32::MAX as u64 - HEADER_LEN as u64;

    /// Bytes after the head: samples and padding.
    pub fn payload_len(&self) -> u64 {
        u64::from(self.data_len) + u64::from(self.data_len % 2)
    }

    /// Number of frames.
    pub fn frames(&self) -> u64 {
        u64::from(self.data_len / self.format.frame_bytes())
    }

    /// The head as it goes over the wire (and into a file).
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let format = self.format;
        let padded = self.data_len.saturating_add(self.data_len % 2);
        let mut out = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(b"RIFF");
        put(&padded.saturating_add(HEADER_LEN as u32 - 8).to_le_bytes());
        put(b"WAVEfmt ");
        put(&16u32.to_le_bytes());
        put(&1u16.to_le_bytes());
        put(&format.channels.to_le_bytes());
        put(&format.sample_rate.to_le_bytes());
        put(&format.bytes_per_second().to_le_bytes());
        put(&(format.frame_bytes() as u16).to_le_bytes());
        put(&format.bits.bits().to_le_bytes());
        put(b"data");
        put(&self.data_len.to_le_bytes());
        out
    }

    /// Reads the head at the start of `bytes`. Gives the head and its length in bytes, or `None`
    /// while more bytes are needed to tell.
    ///
    /// # Errors
    /// [`WavError`] when these bytes are not the start of a PCM WAV stream that is usable.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, WavError> {
        let seen = bytes.len().min(4);
        if bytes[..seen] != b"RIFF"[..seen] {
            return Err(WavError::NotWav);
        }
        if bytes.len() < 12 {
            return Ok(None);
        }
        if &bytes[8..12] != b"WAVE" {
            return Err(WavError::NotWav);
        }
        let mut format = None;
        let mut at = 12;
        while bytes.len() >= at + 8 {
            let name = &bytes[at..at + 4];
            let len = le_u32(&bytes[at + 4..at + 8]);
            let body = at + 8;
            if name == b"data" {
                let format: AudioFormat = format.ok_or(WavError::NoFormat)?;
                if !len.is_multiple_of(format.frame_bytes()) {
                    return Err(WavError::BrokenFrames { data_len: len, frame_bytes: format.frame_bytes() });
                }
                return Ok(Some((Self { format, data_len: len }, body)));
            }
            let next = body.saturating_add(len as usize).saturating_add(len as usize % 2);
            if next > HEADER_LIMIT {
                return Err(WavError::HeadTooLong);
            }
            if bytes.len() < next {
                return Ok(None);
            }
            if name == b"fmt " {
                format = Some(parse_format(&bytes[body..body + len as usize])?);
            }
            at = next;
        }
        Ok(None)
    }
}

fn parse_format(chunk: &[u8]) -> Result<AudioFormat, WavError> {
    if chunk.len() < 16 {
        return Err(WavError::NoFormat);
    }
    let tag = le_u16(&chunk[0..2]);
    if tag != 1 {
        return Err(WavError::Unsupported(format!("WAV coding {tag} (1, PCM, is)")));
    }
    let format = AudioFormat::new(le_u32(&chunk[4..8]), le_u16(&chunk[2..4]), le_u16(&chunk[14..16]))?;
    let frame = u32::from(le_u16(&chunk[12..14]));
    if frame != format.frame_bytes() {
        return Err(WavError::Unsupported(format!("{frame} bytes per frame for {format}")));
    }
    Ok(format)
}

fn le_u16(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Why bytes are not the head of a usable stream.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WavError {
    /// They do not begin as a WAV file does.
    #[error("not a WAV stream")]
    NotWav,
    /// Samples come before any (complete) description of their format.
    #[error("a WAV stream without a format")]
    NoFormat,
    /// No samples within [`HEADER_LIMIT`] bytes.
    #[error("no samples within the first {HEADER_LIMIT} bytes")]
    HeadTooLong,
    /// A format that this application does not play.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The samples are no whole number of frames.
    #[error("{data_len} bytes of samples are no multiple of {frame_bytes}")]
    BrokenFrames {
        /// Bytes that the head announces.
        data_len: u32,
        /// Bytes of one frame.
        frame_bytes: u32,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header(data_len: u32) -> StreamHeader {
        StreamHeader { format: AudioFormat::new(16_000, 1, 16).unwrap(), data_len }
    }

    #[test]
    fn head_is_read_back_and_known_to_hound() {
        for (rate, channels, bits) in [(8_000, 1, 8), (16_000, 1, 16), (44_100, 2, 16)] {
            let format = AudioFormat::new(rate, channels, bits).unwrap();
            let header = StreamHeader { format, data_len: 100 * format.frame_bytes() };
            let mut stream = header.encode().to_vec();
            assert_eq!(StreamHeader::parse(&stream).unwrap(), Some((header, HEADER_LEN)));
            stream.resize(HEADER_LEN + header.data_len as usize, 0);
            let spec = hound::WavReader::new(&stream[..]).unwrap();
            assert_eq!(spec.duration(), 100);
            assert_eq!(spec.spec().sample_rate, rate);
            assert_eq!(spec.spec().bits_per_sample, bits);
        }
    }

    #[test]
    fn every_prefix_of_a_head_asks_for_more() {
        let whole = header(640).encode();
        for len in 0..HEADER_LEN {
            assert_eq!(StreamHeader::parse(&whole[..len]), Ok(None), "{len} bytes");
        }
    }

    #[test]
    fn unknown_chunks_are_skipped() {
        let plain = header(640).encode();
        let mut bytes = plain[..12].to_vec();
        bytes.extend_from_slice(b"LIST\x03\0\0\0abc\0");
        bytes.extend_from_slice(&plain[12..]);
        assert_eq!(StreamHeader::parse(&bytes), Ok(Some((header(640), HEADER_LEN + 12))));
    }

    #[test]
    fn what_cannot_be_played_is_refused() {
        assert_eq!(StreamHeader::parse(b"ERR no"), Err(WavError::NotWav));
        let mut float = header(640).encode();
        float[20] = 3;
        assert!(matches!(StreamHeader::parse(&float), Err(WavError::Unsupported(_))));
        let mut bits = header(640).encode();
        bits[34] = 24;
        assert!(matches!(StreamHeader::parse(&bits), Err(WavError::Unsupported(_))));
        let mut odd = header(640).encode();
        odd[40] = 0x81;
        assert!(matches!(StreamHeader::parse(&odd), Err(WavError::BrokenFrames { .. })));
        let mut endless = header(640).encode();
        endless[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(StreamHeader::parse(&endless), Err(WavError::HeadTooLong));
    }

    #[test]
    fn odd_samples_are_padded() {
        let format = AudioFormat::new(8_000, 1, 8).unwrap();
        assert_eq!(StreamHeader { format, data_len: 161 }.payload_len(), 162);
        assert_eq!(StreamHeader { format, data_len: 160 }.payload_len(), 160);
    }
}
