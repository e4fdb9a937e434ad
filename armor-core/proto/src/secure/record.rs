//! Records: a stream of bytes cut into pieces that are encrypted and authenticated each.
//!
//! A record is its header, ciphertext and tag. The header (4 bytes, little endian) is the length of ciphertext and tag, and bit 31: the key is renewed
//! after this record. It is authenticated with the record. The record's number is its nonce, counted on both sides and never sent: what is missing,
//! repeated or out of order does not open.

use bytes::BytesMut;

use super::cipher::{Key, TAG};

/// Most plaintext in a record.
pub const MAX_RECORD: usize = 64 << 10;
const HEADER: usize = 4;
/// Bytes that a record has beside its plaintext.
pub const RECORD_OVERHEAD: usize = HEADER + TAG;
const REKEY: u32 = 1 << 31;
/// The key is renewed after so many bytes,
pub const REKEY_BYTES: u64 = 16 << 30;
/// or so many records: far below AES-GCM's bound of confidentiality (RFC 9001, §6.6).
pub const REKEY_RECORDS: u64 = 1 << 20;

/// What ends a stream of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A length that no record has.
    #[error("a record of {got} bytes")]
    Length {
        /// What the header says.
        got: usize,
    },
    /// The tag does not fit.
    #[error("record {number} does not verify: it was altered, left out, repeated or moved on the way")]
    Altered {
        /// Which record since the last key.
        number: u64,
    },
    /// The peer goes on with a key for too long.
    #[error("the peer has not renewed its key after {REKEY_RECORDS} records or {REKEY_BYTES} bytes")]
    Overdue,
    /// The library refuses.
    #[error("a record cannot be encrypted")]
    Refused,
}

/// A key, and how much it has been used.
#[derive(Debug)]
struct Used {
    key: Key,
    records: u64,
    bytes: u64,
}

impl Used {
    fn new(key: Key) -> Used {
        Used { key, records: 0, bytes: 0 }
    }

    fn count(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes as u64;
    }

    fn is_used_up(&self) -> bool {
        self.records >= REKEY_RECORDS || self.bytes >= REKEY_BYTES
    }

    fn renew(&mut self) -> Result<(), RecordError> {
        *self = Used::new(self.key.next().ok_or(RecordError::Refused)?);
        Ok(())
    }
}

/// Makes records.
#[derive(Debug)]
pub struct RecordSealer {
    used: Used,
    renew: bool,
    keys: u64,
}

impl RecordSealer {
    pub(super) fn new(key: Key) -> RecordSealer {
        RecordSealer { used: Used::new(key), renew: false, keys: 1 }
    }

    /// Appends the records of all `pieces` together to `out`. Copies each byte once and encrypts it there.
    ///
    /// # Errors
    /// [`RecordError::Refused`]: never, with records of this size.
    pub fn seal(&mut self, pieces: &[&[u8]], out: &mut Vec<u8>) -> Result<(), RecordError> {
        let mut left: usize = pieces.iter().map(|piece| piece.len()).sum();
        out.reserve(left + left.div_ceil(MAX_RECORD) * RECORD_OVERHEAD);
        let mut pieces = pieces.iter().copied();
        let mut piece: &[u8] = &[];
        while left > 0 {
            let length = left.min(MAX_RECORD);
            left -= length;
            // This record included.
            let renew = self.renew || self.used.records + 1 >= REKEY_RECORDS || self.used.bytes + length as u64 >= REKEY_BYTES;
            let header = ((length + TAG) as u32 | if renew { REKEY } else { 0 }).to_le_bytes();
            out.extend_from_slice(&header);
            let start = out.len();
            while out.len() - start < length {
                if piece.is_empty() {
                    let Some(next) = pieces.next() else { break };
                    piece = next;
                }
                let (now, later) = piece.split_at(piece.len().min(length - (out.len() - start)));
                out.extend_from_slice(now);
                piece = later;
            }
            let tag = self.used.key.seal(self.used.records, &header, &mut out[start..]).ok_or(RecordError::Refused)?;
            out.extend_from_slice(&tag);
            self.used.count(length);
            if renew {
                self.used.renew()?;
                self.renew = false;
                self.keys += 1;
            }
        }
        Ok(())
    }

    /// The next record is the last under this key: for a bound in time, which the owner's clock keeps.
    pub fn rekey(&mut self) {
        self.renew |= self.used.records > 0;
    }

    /// Keys used so far.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keys
    }
}

/// Opens records.
#[derive(Debug)]
pub struct RecordOpener {
    used: Used,
    failed: Option<RecordError>,
}

impl RecordOpener {
    pub(super) fn new(key: Key) -> RecordOpener {
        RecordOpener { used: Used::new(key), failed: None }
    }

    /// Opens the whole records at the front of `raw`, which it uses as scratch, and appends their plaintext to `plain`. How many bytes of `raw` it
    /// has used; what is left is the beginning of a record, at most [`MAX_RECORD`] + [`RECORD_OVERHEAD`] bytes long.
    ///
    /// # Errors
    /// The stream is over then; all later calls say the same. What was appended before is good.
    pub fn open(&mut self, raw: &mut [u8], plain: &mut BytesMut) -> Result<usize, RecordError> {
        let mut used = 0;
        loop {
            if let Some(error) = self.failed {
                return Err(error);
            }
            match self.open_one(&mut raw[used..], plain) {
                Ok(0) => return Ok(used),
                Ok(taken) => used += taken,
                Err(error) => self.failed = Some(error),
            }
        }
    }

    fn open_one(&mut self, raw: &mut [u8], plain: &mut BytesMut) -> Result<usize, RecordError> {
        let Some((header, rest)) = raw.split_first_chunk_mut::<HEADER>() else { return Ok(0) };
        let word = u32::from_le_bytes(*header);
        let length = (word & !REKEY) as usize;
        // An empty record says nothing; it would be work for nothing without an end.
        if length <= TAG || length > MAX_RECORD + TAG {
            return Err(RecordError::Length { got: length });
        }
        let Some(sealed) = rest.get_mut(..length) else { return Ok(0) };
        if self.used.is_used_up() {
            return Err(RecordError::Overdue);
        }
        let number = self.used.records;
        let opened = self.used.key.open(number, header, sealed).map_err(|_| RecordError::Altered { number })?;
        plain.extend_from_slice(&sealed[..opened]);
        self.used.count(opened);
        if word & REKEY != 0 {
            self.used.renew()?;
        }
        Ok(HEADER + length)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    fn pair() -> (RecordSealer, RecordOpener) {
        let key = || Key::new(&[7; 32]).expect("a key");
        (RecordSealer::new(key()), RecordOpener::new(key()))
    }

    #[test]
    fn both_sides_renew_the_key_at_the_bounds_of_bytes_and_records_and_go_on() {
        let near = [(REKEY_RECORDS - 3, 0), (0, REKEY_BYTES - 300)];
        for (records, bytes) in near {
            let (mut sealer, mut opener) = pair();
            (sealer.used.records, sealer.used.bytes) = (records, bytes);
            (opener.used.records, opener.used.bytes) = (records, bytes);
            let (mut raw, mut plain) = (Vec::new(), BytesMut::new());
            for number in 0..10u8 {
                assert_eq!(sealer.keys(), if number < 3 { 1 } else { 2 });
                sealer.seal(&[&[number; 100]], &mut raw).expect("sealed");
            }
            assert_eq!(opener.open(&mut raw, &mut plain), Ok(raw.len()));
            assert_eq!((plain.len(), opener.used.records), (1000, 7));
        }
    }

    #[test]
    fn a_peer_that_never_renews_its_key_is_cut_off_at_the_bound() {
        for (records, bytes) in [(REKEY_RECORDS, 0), (0, REKEY_BYTES)] {
            let (mut sealer, mut opener) = pair();
            sealer.used.records = records;
            (opener.used.records, opener.used.bytes) = (records, bytes);
            let header = 17u32.to_le_bytes();
            let mut raw = [&header[..], &[1]].concat();
            let tag = sealer.used.key.seal(records, &header, &mut raw[4..]).expect("sealed");
            raw.extend_from_slice(&tag);
            assert_eq!(opener.open(&mut raw, &mut BytesMut::new()), Err(RecordError::Overdue));
        }
    }
}
