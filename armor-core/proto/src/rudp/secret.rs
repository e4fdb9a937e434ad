//! Numbers that others cannot guess, and cookies, from a secret that the owner has drawn: there is no source of randomness in this crate.

use sha2::{Digest, Sha256};

#[derive(Clone)]
pub(super) struct Secret {
    key: [u8; 32],
    counter: u64,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self { key, counter: 0 }
    }

    /// The next of a sequence of numbers.
    pub(super) fn number(&mut self) -> u64 {
        self.counter += 1;
        let digest = self.digest(b"number", &self.counter.to_be_bytes());
        u64::from_be_bytes(std::array::from_fn(|at| digest[at]))
    }

    /// A tag of `content` that nobody without the secret can make.
    pub(super) fn cookie(&self, content: &[u8]) -> [u8; super::wire::COOKIE] {
        let digest = self.digest(b"cookie", content);
        std::array::from_fn(|at| digest[at])
    }

    /// SHA-256 of key, purpose and content, of which at most half is ever shown, so that lengthening it (the weakness of such a MAC) is not possible.
    fn digest(&self, purpose: &[u8; 6], content: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(self.key).chain_update(purpose).chain_update(content).finalize().into()
    }
}
