//! Where the log of a connection goes beyond its bound in memory: a file without a name, made when the first byte goes there. It is
//! gone with its last descriptor, and outlives the ARMOR when the vault has one.
//!
//! Of each 64 KiB a checksum stays in memory. What is read back is compared with it: a connection whose file was damaged is reset. What a
//! dead process has written is read as it is: its checksums died with it.
//!
//! Invariant: the file takes no more of the disk than `bound` bytes, and a few blocks.
//! Invariant: what it says of itself, in its first block, is true at any instant: a death leaves nothing to be repaired.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use armor_proto::connection::Spill;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, openat, unlinkat};

/// What is discarded is given back to the disk in pieces of at least this size.
const HOLE: u64 = 1 << 20;
/// Ends of holes lie at multiples of this: what is less than a block would be overwritten with zeros.
/// There is a checksum for each.
const BLOCK: u64 = 64 << 10;
/// Where the bytes begin. Before them: a mark, the offset in the stream of the first byte, and a checksum of the two.
const HEADER: u64 = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"ARMORsp1");

/// A spill's file, while there is one, for who keeps it.
#[derive(Debug, Clone, Default)]
pub struct SharedFile(Arc<Mutex<Option<OwnedFd>>>);

impl SharedFile {
    fn set(&self, file: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    /// Does something with the file, if there is one.
    pub fn with<T>(&self, work: impl FnOnce(&OwnedFd) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(work)
    }
}

/// The file of one connection.
pub struct SpillFile {
    directory: PathBuf,
    bound: u64,
    file: Option<File>,
    /// The same file for who keeps it, and how he is told.
    shared: SharedFile,
    made: Box<dyn Fn(&OwnedFd) + Send>,
    /// Offset in the stream of the file's first byte.
    base: u64,
    /// Offset in the stream behind the file's last byte.
    end: u64,
    /// Nothing before this offset in the stream is needed.
    needed: u64,
    /// Up to this offset in the stream the file is a hole, which takes no room.
    hole: u64,
    holes: Holes,
    sums: Sums,
}

/// Checksums of the blocks of a file.
#[derive(Debug, Default)]
struct Sums {
    /// CRC32C of each block that is not forgotten, the last one as far as it goes; none of what a dead process has written.
    sums: VecDeque<Option<u32>>,
    /// Blocks before them.
    forgotten: u64,
    /// The block that was read last, which is good.
    read: Option<(u64, Vec<u8>)>,
}

impl Sums {
    /// Bytes have been written behind the `at` first ones of the file.
    fn append(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min((BLOCK - at % BLOCK) as usize));
            match self.sums.back_mut() {
                Some(sum) if !at.is_multiple_of(BLOCK) => *sum = sum.map(|sum| crc32c::crc32c_append(sum, part)),
                _ => self.sums.push_back(Some(crc32c::crc32c(part))),
            }
            self.read = self.read.take().filter(|(block, _)| *block != at / BLOCK);
            (at, bytes) = (at + part.len() as u64, rest);
        }
    }

    /// So many bytes were written by a dead process.
    fn found(length: u64) -> Sums {
        Sums { sums: std::iter::repeat_n(None, length.div_ceil(BLOCK) as usize).collect(), ..Sums::default() }
    }

    /// The blocks before these bytes are not read any more.
    fn forget_before(&mut self, at: u64) {
        while self.forgotten < at / BLOCK && self.sums.pop_front().is_some() {
            self.forgotten += 1;
        }
    }

    /// A whole block of a file of this length.
    fn block(&mut self, file: &File, block: u64, length: u64) -> io::Result<&[u8]> {
        if self.read.as_ref().is_none_or(|(read, _)| *read != block) {
            let sum = block.checked_sub(self.forgotten).and_then(|index| self.sums.get(usize::try_from(index).ok()?));
            let sum = *sum.ok_or(io::ErrorKind::UnexpectedEof)?;
            let mut bytes = vec![0; (length - block * BLOCK).min(BLOCK) as usize];
            file.read_exact_at(&mut bytes, HEADER + block * BLOCK)?;
            if sum.is_some_and(|sum| crc32c::crc32c(&bytes) != sum) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes of a spilled log are damaged"));
            }
            self.read = Some((block, bytes));
        }
        Ok(self.read.as_ref().map_or(&[], |(_, bytes)| bytes))
    }
}

/// Whether the file system can give a part of a file back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holes {
    Possible,
    /// Then the file grows to its bound, discarded bytes included, unless all are.
    Impossible,
}

impl std::fmt::Debug for SpillFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SpillFile { directory, bound, base, end, .. } = self;
        f.debug_struct("SpillFile")
            .field("directory", directory)
            .field("bound", bound)
            .field("base", base)
            .field("end", end)
            .finish_non_exhaustive()
    }
}

impl SpillFile {
    /// A file in `directory` that takes at most `bound` bytes; there is none yet. `made` is called when there is.
    #[must_use]
    pub fn new(directory: &Path, bound: u64, made: impl Fn(&OwnedFd) + Send + 'static) -> SpillFile {
        SpillFile {
            directory: directory.to_path_buf(),
            bound,
            file: None,
            shared: SharedFile::default(),
            made: Box::new(made),
            base: 0,
            end: 0,
            needed: 0,
            hole: 0,
            holes: Holes::Possible,
            sums: Sums::default(),
        }
    }

    /// The same with the file of a dead process.
    #[must_use]
    pub fn found(self, file: OwnedFd) -> SpillFile {
        self.shared.set(file.try_clone().ok());
        SpillFile { file: Some(file.into()), ..self }
    }

    /// The file, once there is one.
    #[must_use]
    pub fn shared(&self) -> SharedFile {
        self.shared.clone()
    }

    /// Empties the file; the next byte is that at `offset`.
    fn begin_at(&mut self, offset: u64) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.set_len(0)?;
            write_header(file, offset)?;
        }
        (self.base, self.end, self.needed, self.hole) = (offset, offset, offset, offset);
        self.sums = Sums::default();
        Ok(())
    }

    /// Makes the file.
    fn make(&mut self) -> io::Result<&File> {
        let file = nameless(&self.directory)?;
        write_header(&file, self.base)?;
        let copy: OwnedFd = file.try_clone()?.into();
        (self.made)(&copy);
        self.shared.set(Some(copy));
        Ok(self.file.insert(file))
    }
}

fn write_header(file: &File, base: u64) -> io::Result<()> {
    let mut header = [MAGIC.to_le_bytes(), base.to_le_bytes()].concat();
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    file.write_all_at(&header, 0)
}

/// Offset in the stream of a file's first byte.
fn read_header(file: &File) -> Option<u64> {
    let mut header = [0; 20];
    file.read_exact_at(&mut header, 0).ok()?;
    let (words, sum) = header.split_at(16);
    let whole = words.starts_with(&MAGIC.to_le_bytes()) && crc32c::crc32c(words).to_le_bytes() == sum;
    whole.then(|| u64::from_le_bytes(words[8..].try_into().unwrap_or_default()))
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
        let base = self.base;
        let file = match &self.file {
            Some(file) => file,
            None => self.make()?,
        };
        file.write_all_at(bytes, HEADER + offset - base)?;
        self.sums.append(offset - base, bytes);
        self.end = end;
        Ok(())
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if offset < self.needed || offset + into.len() as u64 > self.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut into) = (offset - self.base, into);
        while !into.is_empty() {
            let block = self.sums.block(file, at / BLOCK, self.end - self.base)?;
            let from = &block[(at % BLOCK) as usize..];
            let (part, rest) = into.split_at_mut(into.len().min(from.len()));
            part.copy_from_slice(&from[..part.len()]);
            (at, into) = (at + part.len() as u64, rest);
        }
        Ok(())
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
            match fallocate(file, flags, HEADER + self.hole - self.base, until - self.hole) {
                Ok(()) => {
                    self.hole = until;
                    self.sums.forget_before(until - self.base);
                }
                Err(_) => self.holes = Holes::Impossible,
            }
        }
    }

    fn take_up(&mut self, from: u64, to: u64) -> bool {
        let Some(file) = &self.file else { return false };
        let length = file.metadata().map_or(0, |file| file.len().saturating_sub(HEADER));
        match read_header(file).filter(|&base| base <= from && from <= to && to - base <= length) {
            Some(base) if file.set_len(HEADER + to - base).is_ok() => {
                (self.base, self.end, self.needed) = (base, to, from);
                // What was given back already takes no room when it is given back again.
                self.hole = base + (from - base) / BLOCK * BLOCK;
                self.sums = Sums::found(to - base);
                self.sums.forget_before(self.hole - base);
                true
            }
            _ => {
                // Another one is made, and takes its place with who keeps it.
                self.file = None;
                self.shared.set(None);
                false
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

    #[test]
    fn bytes_that_were_damaged_on_the_disk_are_not_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut spill = SpillFile::new(directory.path(), 1 << 20, |_| {});
        // In pieces that end anywhere.
        let mut offset = 100;
        for length in [1, 70_000, 65_536, 5, 130_000, 30_000] {
            spill.append(offset, &bytes(offset, length)).unwrap();
            offset += length as u64;
        }
        for damaged in [0, 1, 65_535, 65_536, 131_072, 200_000, offset - 101] {
            let file = spill.file.as_ref().unwrap().try_clone().unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, HEADER + damaged).unwrap();
            file.write_all_at(&[byte[0] ^ 4], HEADER + damaged).unwrap();
            spill.sums.read = None;
            for from in (100..offset).step_by(9_973) {
                let mut into = vec![0; 9_973.min((offset - from) as usize)];
                let read = spill.read_at(from, &mut into).map_err(|error| error.kind());
                let blocks = (from - 100) / BLOCK..=(from - 100 + into.len() as u64 - 1) / BLOCK;
                if blocks.contains(&(damaged / BLOCK)) {
                    assert_eq!(read, Err(io::ErrorKind::InvalidData), "byte {damaged}, read from {from}");
                } else {
                    assert!(read.is_ok() && into == bytes(from, into.len()), "byte {damaged}, read from {from}");
                }
            }
            file.write_all_at(&byte, HEADER + damaged).unwrap();
        }
    }

    /// Bytes that tell where they belong.
    fn bytes(from: u64, length: usize) -> Vec<u8> {
        (from..from + length as u64).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
    }

    fn filled(directory: &Path, from: u64, length: usize) -> SpillFile {
        let mut spill = SpillFile::new(directory, 1 << 30, |_| {});
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
        let mut spill = SpillFile::new(directory.path(), 1000, |_| {});
        spill.discard_before(7);
        assert!(spill.file.is_none());
        spill.append(7, b"spilled").unwrap();
        assert_eq!(spill.file.as_ref().unwrap().metadata().unwrap().nlink(), 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_outlives_its_process_and_what_was_not_saved_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let mut dead = filled(directory.path(), 5_000, 3 << 20);
        dead.discard_before(2 << 20);
        let file = dead.shared().with(|file| file.try_clone().unwrap()).unwrap();
        drop(dead);
        let found = |file: &OwnedFd| SpillFile::new(directory.path(), 1 << 30, |_| {}).found(file.try_clone().unwrap());
        for (from, to) in [(4_999, 6_000), (5_000, (3 << 20) + 5_001), (u64::MAX, 0)] {
            assert!(!found(&file).take_up(from, to), "{from} to {to}");
        }
        let mut spill = found(&file);
        assert!(spill.take_up(2 << 20, 3 << 20));
        assert!(holds(&mut spill, 2 << 20, 1 << 20));
        spill.append(3 << 20, &bytes(3 << 20, 1000)).unwrap();
        assert!(holds(&mut spill, (3 << 20) - 10, 1010));
        File::from(file.try_clone().unwrap()).write_all_at(b"?", 9).unwrap();
        assert!(!found(&file).take_up(2 << 20, 3 << 20), "its header is damaged");
        let mut anew = found(&file);
        assert!(!anew.take_up(0, 7));
        anew.append(7, &bytes(7, 100)).unwrap();
        assert!(holds(&mut anew, 7, 100) && anew.shared().with(|file| found(file).take_up(7, 107)) == Some(true));
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
        assert!(room(&spill) <= HEADER);
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
        let mut spill = SpillFile::new(directory.path(), 4 << 20, |_| {});
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
        let mut spill = SpillFile::new(&directory.path().join("nowhere"), 1000, |_| {});
        assert_eq!(spill.append(0, b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
