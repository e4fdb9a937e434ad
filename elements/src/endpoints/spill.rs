//! Where the log of a connection goes beyond its bound in memory: a file without a name, made when the first byte goes there. It is
//! gone with its descriptor, however the ARMOR ends.
//!
//! Invariant: the file takes no more of the disk than `bound` bytes, and a block or so of what was discarded.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use armor_proto::connection::Spill;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, openat, unlinkat};

/// What is discarded is given back to the disk in pieces of at least this size.
const HOLE: u64 = 1 << 20;
/// Ends of holes lie at multiples of this: what is less than a block would be overwritten with zeros.
const BLOCK: u64 = 64 << 10;

/// The file of one connection.
#[derive(Debug)]
pub struct SpillFile {
    directory: PathBuf,
    bound: u64,
    file: Option<File>,
    /// Offset in the stream of the file's first byte.
    base: u64,
    /// Offset in the stream behind the file's last byte.
    end: u64,
    /// Nothing before this offset in the stream is needed.
    needed: u64,
    /// Up to this offset in the stream the file is a hole, which takes no room.
    hole: u64,
    holes: Holes,
}

/// Whether the file system can give a part of a file back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holes {
    Possible,
    /// Then the file grows to its bound, discarded bytes included, unless all are.
    Impossible,
}

impl SpillFile {
    /// A file in `directory` that takes at most `bound` bytes; there is none yet.
    #[must_use]
    pub fn new(directory: &Path, bound: u64) -> SpillFile {
        SpillFile { directory: directory.to_path_buf(), bound, file: None, base: 0, end: 0, needed: 0, hole: 0, holes: Holes::Possible }
    }

    /// Empties the file; the next byte is that at `offset`.
    fn begin_at(&mut self, offset: u64) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.set_len(0)?;
        }
        (self.base, self.end, self.needed, self.hole) = (offset, offset, offset, offset);
        Ok(())
    }
}

impl Spill for SpillFile {
    fn append(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset != self.end {
            // What lies between was dropped, and what is older with it.
            self.begin_at(offset)?;
        }
        let end = offset + bytes.len() as u64;
        if end - self.hole > self.bound {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless(&self.directory)?),
        };
        file.write_all_at(bytes, offset - self.base)?;
        self.end = end;
        Ok(())
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if offset < self.needed || offset + into.len() as u64 > self.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.read_exact_at(into, offset - self.base)
    }

    fn discard_before(&mut self, offset: u64) {
        let Some(file) = &self.file else { return };
        if offset >= self.end {
            if self.end > self.base {
                // A file that cannot be emptied is too long, and otherwise as good.
                let _ = self.begin_at(offset);
            }
            return;
        }
        self.needed = self.needed.max(offset);
        let until = self.base + (self.needed - self.base) / BLOCK * BLOCK;
        if until >= self.hole + HOLE && self.holes == Holes::Possible {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(file, flags, self.hole - self.base, until - self.hole) {
                Ok(()) => self.hole = until,
                Err(_) => self.holes = Holes::Impossible,
            }
        }
    }
}

/// A file in `directory` that no name leads to.
fn nameless(directory: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
    if let Ok(file) = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(file.into());
    }
    // Not every file system can.
    unlinked(directory)
}

/// A file in `directory` whose name is removed at once.
fn unlinked(directory: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for number in 0..u32::MAX {
        let name = CString::new(format!(".spill-{}-{number}", std::process::id()))?;
        match openat(&directory, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                unlinkat(&directory, &name, rustix::fs::AtFlags::empty())?;
                return Ok(file.into());
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Bytes that tell where they belong.
    fn bytes(from: u64, length: usize) -> Vec<u8> {
        (from..from + length as u64).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
    }

    fn filled(directory: &Path, from: u64, length: usize) -> SpillFile {
        let mut spill = SpillFile::new(directory, 1 << 30);
        for at in (from..from + length as u64).step_by(100_000) {
            let length = 100_000.min((from + length as u64 - at) as usize);
            spill.append(at, &bytes(at, length)).unwrap();
        }
        spill
    }

    fn holds(spill: &mut SpillFile, from: u64, length: usize) -> bool {
        let mut into = vec![0; length];
        spill.read_at(from, &mut into).unwrap();
        into == bytes(from, length)
    }

    /// What the file takes of the disk.
    fn room(spill: &SpillFile) -> u64 {
        spill.file.as_ref().map_or(0, |file| file.metadata().unwrap().blocks() * 512)
    }

    #[test]
    fn there_is_no_file_until_a_byte_is_spilled_and_never_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut spill = SpillFile::new(directory.path(), 1000);
        spill.discard_before(7);
        assert!(spill.file.is_none());
        spill.append(7, b"spilled").unwrap();
        assert_eq!(spill.file.as_ref().unwrap().metadata().unwrap().nlink(), 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn where_the_file_system_knows_no_files_without_a_name_the_name_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(format!(".spill-{}-0", std::process::id())), "somebody's").unwrap();
        let file = unlinked(directory.path()).unwrap();
        file.write_all_at(b"kept", 0).unwrap();
        assert_eq!((file.metadata().unwrap().nlink(), file.metadata().unwrap().len()), (0, 4));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_appended_is_read_back_from_anywhere() {
        let directory = tempfile::tempdir().unwrap();
        let mut spill = filled(directory.path(), 5_000, 1_234_567);
        assert!(holds(&mut spill, 5_000, 1_234_567) && holds(&mut spill, 99_999, 123_456) && holds(&mut spill, 1_239_566, 1));
        for (offset, length) in [(4_999, 1), (1_239_567, 1), (1_239_000, 568)] {
            assert!(spill.read_at(offset, &mut vec![0; length]).is_err(), "{length} bytes at {offset}");
        }
    }

    #[test]
    fn what_is_discarded_takes_no_room_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let mut spill = filled(directory.path(), 777, 8 << 20);
        let before = room(&spill);
        assert!(before >= 8 << 20, "{before}");
        for kept in [1_000, 3 << 20, (7 << 20) + 1] {
            spill.discard_before(kept);
            assert!(holds(&mut spill, kept, (8 << 20) - kept as usize));
            assert!(spill.read_at(kept - 1, &mut [0]).is_err());
        }
        assert!(room(&spill) <= 3 << 20, "{} of {before}", room(&spill));
        let end = 777 + (8 << 20);
        spill.discard_before(end);
        assert_eq!(room(&spill), 0);
        spill.append(end, &bytes(end, 10)).unwrap();
        assert!(holds(&mut spill, end, 10));
    }

    #[test]
    fn bytes_that_come_behind_a_gap_begin_anew() {
        let directory = tempfile::tempdir().unwrap();
        let mut spill = filled(directory.path(), 0, 1_000_000);
        spill.append(2_000_000, &bytes(2_000_000, 1_000)).unwrap();
        assert!(holds(&mut spill, 2_000_000, 1_000));
        assert!(spill.read_at(0, &mut [0]).is_err());
        assert!(room(&spill) < 100_000);
    }

    #[test]
    fn the_bound_is_kept_and_what_is_discarded_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let mut spill = SpillFile::new(directory.path(), 4 << 20);
        let chunk = 1 << 20;
        let append = |spill: &mut SpillFile, number: u64| spill.append(number << 20, &bytes(number << 20, chunk));
        for number in 0..4 {
            append(&mut spill, number).unwrap();
        }
        assert_eq!(append(&mut spill, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        spill.discard_before(2 << 20);
        append(&mut spill, 4).unwrap();
        assert!(holds(&mut spill, 2 << 20, 3 << 20));
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut spill = SpillFile::new(&directory.path().join("nowhere"), 1000);
        assert_eq!(spill.append(0, b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
