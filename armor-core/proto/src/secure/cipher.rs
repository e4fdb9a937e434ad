//! One key of one direction: AES-256-GCM as the Noise framework uses it (noiseprotocol.org, §12.4), and its successor (§4.2, `REKEY`).

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Bytes of a tag.
pub(super) const TAG: usize = 16;
/// The nonce that only `REKEY` uses.
const REKEY_NONCE: u64 = u64::MAX;

/// A key, with all that is computed from it once.
pub(super) struct Key {
    aead: LessSafeKey,
}

/// The tag does not fit: another key, other bytes or another nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Altered;

impl Key {
    /// `None` never happens: the length is right.
    pub(super) fn new(secret: &[u8; 32]) -> Option<Key> {
        Some(Key { aead: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, secret).ok()?) })
    }

    fn nonce(number: u64) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts in place; the tag. `None` when there is more than the algorithm can take (64 GiB).
    pub(super) fn seal(&self, number: u64, associated: &[u8], bytes: &mut [u8]) -> Option<[u8; TAG]> {
        let tag = self.aead.seal_in_place_separate_tag(Self::nonce(number), Aad::from(associated), bytes).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Decrypts in place ciphertext and tag; how many bytes of plaintext there are.
    pub(super) fn open(&self, number: u64, associated: &[u8], sealed: &mut [u8]) -> Result<usize, Altered> {
        match self.aead.open_in_place(Self::nonce(number), Aad::from(associated), sealed) {
            Ok(plain) => Ok(plain.len()),
            Err(_) => Err(Altered),
        }
    }

    /// The key after this one. There is no way back.
    pub(super) fn next(&self) -> Option<Key> {
        let mut secret = [0; 32];
        self.seal(REKEY_NONCE, &[], &mut secret)?;
        Key::new(&secret)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}
