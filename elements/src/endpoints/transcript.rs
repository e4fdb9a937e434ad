//! What a client was told on a connection, in a file without a name that lies in memory: the vault keeps it, so that it outlives the ARMOR.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use armor_proto::connection::Transcript;
use rustix::fs::MemfdFlags;

/// The file of one connection.
#[derive(Debug)]
pub struct TranscriptFile {
    file: File,
}

impl TranscriptFile {
    /// An empty one.
    ///
    /// # Errors
    /// The kernel's: out of descriptors or memory.
    pub fn create() -> io::Result<TranscriptFile> {
        let file = rustix::fs::memfd_create("armor-transcript", MemfdFlags::CLOEXEC)?;
        Ok(TranscriptFile { file: file.into() })
    }

    /// The same file once more.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn share(&self) -> io::Result<TranscriptFile> {
        Ok(TranscriptFile { file: self.file.try_clone()? })
    }

    /// What has to be kept.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<OwnedFd> for TranscriptFile {
    fn from(kept: OwnedFd) -> Self {
        TranscriptFile { file: kept.into() }
    }
}

impl Transcript for TranscriptFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_by_who_was_handed_the_descriptor() {
        let mut written = TranscriptFile::create().unwrap();
        written.write_at(0, b"hello ").unwrap();
        written.write_at(6, b"word").unwrap();
        written.write_at(6, b"world").unwrap();
        let mut handed = TranscriptFile::from(written.descriptor().try_clone_to_owned().unwrap());
        drop(written);
        let mut into = [0; 8];
        handed.read_at(3, &mut into).unwrap();
        assert_eq!(&into, b"lo world");
        assert!(handed.read_at(4, &mut into).is_err(), "beyond the end");
    }
}
