//! What is streamed: samples of a WAV file or of the synthesizer, as the bytes that go out.
//!
//! Invariant: the bytes at an offset depend on the input alone, never on when or by whom they are
//! asked for; a body that is shorter than the programme repeats, and is held once.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::synth::{self, Recipe};
use crate::wav::{AudioFormat, SampleBits, StreamHeader, WavError};

/// A programme that can be streamed.
#[derive(Debug, Clone)]
pub struct Programme {
    header: StreamHeader,
    /// Whole frames, never empty; repeats up to `header.data_len`.
    body: Vec<u8>,
}

impl Programme {
    /// Makes the programme of `recipe`, `seconds` long.
    ///
    /// # Errors
    /// [`ProgrammeError`] for a length that does not fit or is nothing.
    pub fn made(recipe: Recipe, bits: SampleBits, seconds: f64) -> Result<Self, ProgrammeError> {
        let format = AudioFormat { sample_rate: recipe.sample_rate, channels: 1, bits };
        let body = match bits {
            SampleBits::Sixteen => synth::make(recipe).into_iter().flat_map(sixteen).collect(),
            SampleBits::Eight => synth::make(recipe).into_iter().map(eight).collect(),
        };
        Self::new(format, body, Some(seconds))
    }

    /// Reads the samples of a PCM WAV file of 8 or 16 bits. With `seconds` the programme has that
    /// length (the file is cut or repeated), otherwise the file's.
    ///
    /// # Errors
    /// [`ProgrammeError`] when the file cannot be read or is of another kind.
    pub fn from_wav(path: &Path, seconds: Option<f64>) -> Result<Self, ProgrammeError> {
        let failed = |source| ProgrammeError::Unreadable { path: path.to_owned(), source };
        let reader = hound::WavReader::open(path).map_err(failed)?;
        Self::read_wav(reader, path, seconds)
    }

    fn read_wav<R: Read>(reader: hound::WavReader<R>, path: &Path, seconds: Option<f64>) -> Result<Self, ProgrammeError> {
        let failed = |source| ProgrammeError::Unreadable { path: path.to_owned(), source };
        let spec = reader.spec();
        if spec.sample_format != hound::SampleFormat::Int {
            return Err(ProgrammeError::Format(WavError::Unsupported("floating point samples".into())));
        }
        let format = AudioFormat::new(spec.sample_rate, spec.channels, spec.bits_per_sample).map_err(ProgrammeError::Format)?;
        let mut body = Vec::new();
        for sample in reader.into_samples::<i16>() {
            let sample = sample.map_err(failed)?;
            match format.bits {
                // hound gives 8 bits as signed, the file has them unsigned.
                SampleBits::Eight => body.push((sample + 128) as u8),
                SampleBits::Sixteen => body.extend_from_slice(&sample.to_le_bytes()),
            }
        }
        Self::new(format, body, seconds)
    }

    /// A programme of these samples (as bytes), repeated or cut to `seconds` if given.
    ///
    /// # Errors
    /// [`ProgrammeError`] when there is nothing to play or too much for a WAV stream.
    pub fn new(format: AudioFormat, mut body: Vec<u8>, seconds: Option<f64>) -> Result<Self, ProgrammeError> {
        let frame = format.frame_bytes() as usize;
        body.truncate(body.len() / frame * frame);
        let len = match seconds {
            Some(seconds) if seconds.is_finite() && seconds > 0.0 => (seconds * f64::from(format.sample_rate)).round() * frame as f64,
            Some(seconds) => return Err(ProgrammeError::BadLength(seconds)),
            None => body.len() as f64,
        };
        if len > StreamHeader::MAX_DATA_LEN as f64 {
            return Err(ProgrammeError::TooLong { seconds: len / f64::from(format.bytes_per_second()) });
        }
        if body.is_empty() || len < 1.0 {
            return Err(ProgrammeError::Empty);
        }
        Ok(Self { header: StreamHeader { format, data_len: len as u32 }, body })
    }

    /// The head of the stream.
    pub fn header(&self) -> StreamHeader {
        self.header
    }

    /// Length of the programme in seconds.
    pub fn seconds(&self) -> f64 {
        self.header.frames() as f64 / f64::from(self.header.format.sample_rate)
    }

    /// Fills `out` with the payload from `offset` on (the head is not in the payload); the byte
    /// after the samples is the padding.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) {
        let samples = u64::from(self.header.data_len).saturating_sub(offset).min(out.len() as u64) as usize;
        let (filled, rest) = out.split_at_mut(samples);
        let mut from = (offset % self.body.len() as u64) as usize;
        let mut to = 0;
        while to < filled.len() {
            let len = (self.body.len() - from).min(filled.len() - to);
            filled[to..to + len].copy_from_slice(&self.body[from..from + len]);
            to += len;
            from = 0;
        }
        rest.fill(0);
    }

    /// Writes the whole stream, head and all: a WAV file with the very bytes a client receives.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_stream(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.header.encode())?;
        let mut chunk = [0; 32 * 1024];
        let mut at = 0;
        while at < self.header.payload_len() {
            let len = (self.header.payload_len() - at).min(chunk.len() as u64) as usize;
            self.read_at(at, &mut chunk[..len]);
            out.write_all(&chunk[..len])?;
            at += len as u64;
        }
        out.flush()
    }

    /// SHA-256 of the whole stream in hexadecimal digits.
    pub fn sha256(&self) -> String {
        let mut hasher = HashWriter(Sha256::new());
        // A hasher takes every byte.
        let _ = self.write_stream(&mut hasher);
        format!("{:x}", hasher.0.finalize())
    }
}

struct HashWriter(Sha256);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sixteen(x: f32) -> [u8; 2] {
    ((x * 32_767.0).round() as i16).to_le_bytes()
}

fn eight(x: f32) -> u8 {
    (128.0 + x * 127.0).round() as u8
}

/// Why there is no programme.
#[derive(Debug, Error)]
pub enum ProgrammeError {
    /// The file is missing, broken or no WAV file.
    #[error("cannot read WAV file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: hound::Error,
    },
    /// A WAV file that this application does not play.
    #[error("WAV format: {0}")]
    Format(#[source] WavError),
    /// No samples.
    #[error("the programme is empty")]
    Empty,
    /// A length that is no length.
    #[error("a programme cannot be {0} seconds long")]
    BadLength(f64),
    /// More than the 32 bits of a WAV head can say.
    #[error("{seconds:.0} seconds are too long for one stream (4 GiB at most)")]
    TooLong {
        /// Length that was asked for.
        seconds: f64,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn small(bytes: &[u8], seconds: Option<f64>) -> Programme {
        Programme::new(AudioFormat::new(1_000, 1, 8).unwrap(), bytes.to_vec(), seconds).unwrap()
    }

    fn stream(programme: &Programme) -> Vec<u8> {
        let mut out = Vec::new();
        programme.write_stream(&mut out).unwrap();
        out
    }

    #[test]
    fn any_part_is_the_same_as_in_the_whole() {
        let programme = small(&[1, 2, 3, 4, 5, 6, 7], Some(0.025));
        let whole = stream(&programme)[44..].to_vec();
        assert_eq!(whole.len(), 26);
        assert_eq!(whole[..9], [1, 2, 3, 4, 5, 6, 7, 1, 2]);
        assert_eq!(whole[25], 0, "padding");
        for from in 0..26 {
            for to in from..=26 {
                let mut part = vec![0xff; to - from];
                programme.read_at(from as u64, &mut part);
                assert_eq!(part, whole[from..to]);
            }
        }
    }

    #[test]
    fn wav_files_come_out_as_they_went_in() {
        for bits in [8u16, 16] {
            let spec = hound::WavSpec { channels: 2, sample_rate: 8_000, bits_per_sample: bits, sample_format: hound::SampleFormat::Int };
            let mut file = io::Cursor::new(Vec::new());
            let mut writer = hound::WavWriter::new(&mut file, spec).unwrap();
            for i in 0..200 {
                writer.write_sample((i - 100) as i16).unwrap();
            }
            writer.finalize().unwrap();
            let file = file.into_inner();
            let reader = hound::WavReader::new(&file[..]).unwrap();
            let programme = Programme::read_wav(reader, Path::new("x"), None).unwrap();
            assert_eq!(stream(&programme), file, "{bits} bits");
        }
    }

    #[test]
    fn made_programme_has_its_length_and_its_hash() {
        let recipe = Recipe { sample_rate: 8_000, seed: 1 };
        let programme = Programme::made(recipe, SampleBits::Eight, 1.5).unwrap();
        assert_eq!(programme.header().data_len, 12_000);
        assert_eq!(programme.seconds(), 1.5);
        assert_eq!(programme.sha256(), format!("{:x}", Sha256::digest(stream(&programme))));
    }

    #[test]
    fn lengths_that_are_none_are_refused() {
        let format = AudioFormat::new(8_000, 1, 16).unwrap();
        assert!(matches!(Programme::new(format, vec![], None), Err(ProgrammeError::Empty)));
        assert!(matches!(Programme::new(format, vec![1], None), Err(ProgrammeError::Empty)));
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(Programme::new(format, vec![0; 8], Some(seconds)), Err(ProgrammeError::BadLength(_))));
        }
        assert!(matches!(Programme::new(format, vec![0; 8], Some(1e9)), Err(ProgrammeError::TooLong { .. })));
    }

    #[test]
    fn samples_use_the_range_without_wrapping() {
        assert_eq!([eight(-1.0), eight(0.0), eight(1.0)], [1, 128, 255]);
        assert_eq!(sixteen(1.0), 32_767i16.to_le_bytes());
        assert_eq!(sixteen(-1.0), (-32_767i16).to_le_bytes());
    }
}
