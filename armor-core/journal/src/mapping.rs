//! A memfd, mapped. The one place that makes pointers into shared memory.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Shared memory of a fixed length.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    descriptor: OwnedFd,
}

// SAFETY: the memory is reached by atomics, or by copies through raw pointers whose users see to it that nobody else writes there.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// New memory, all zero. Pages cost nothing before they are written.
    pub(crate) fn create(length: usize) -> io::Result<Mapping> {
        let descriptor = rustix::fs::memfd_create("armor-journal", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&descriptor, length as u64)?;
        // Nobody can shorten it under us, which would be SIGBUS.
        rustix::fs::fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW)?;
        Mapping::map(descriptor, length)
    }

    /// The memory of an earlier process.
    pub(crate) fn open(descriptor: OwnedFd) -> io::Result<Mapping> {
        let length = rustix::fs::fstat(&descriptor)?.st_size;
        let seals = rustix::fs::fcntl_get_seals(&descriptor)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("it may be shortened by others"));
        }
        Mapping::map(descriptor, usize::try_from(length).map_err(io::Error::other)?)
    }

    fn map(descriptor: OwnedFd, length: usize) -> io::Result<Mapping> {
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, descriptor.as_fd(), 0)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, length, descriptor })
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// Address of `length` bytes at `offset`.
    ///
    /// # Panics
    /// When they do not lie inside: offsets come from the layout alone, never from what the memory says.
    pub(crate) fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length), "outside the journal");
        // SAFETY: inside the mapping, as was just looked at.
        unsafe { self.base.as_ptr().add(offset) }
    }

    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        let at = self.at(offset, 4);
        assert!(at.addr().is_multiple_of(4), "an aligned place");
        // SAFETY: inside the mapping, aligned, and lives as long as `self`; every access to it is atomic.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        let at = self.at(offset, 8);
        assert!(at.addr().is_multiple_of(8), "an aligned place");
        // SAFETY: inside the mapping, aligned, and lives as long as `self`; every access to it is atomic.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// Copies `bytes` to `offset`.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: inside the mapping; `bytes` is memory of this process outside of it or a block that is not written any more.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// A copy of `length` bytes at `offset`.
    pub(crate) fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let from = self.at(offset, length);
        let mut bytes = vec![0; length];
        // SAFETY: inside the mapping, into a buffer of that length.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length) }
        bytes
    }

    /// `length` bytes at `offset`, in place.
    ///
    /// # Safety
    /// Nobody writes them while the slice lives.
    pub(crate) unsafe fn slice(&self, offset: usize, length: usize) -> &[u8] {
        // SAFETY: inside the mapping; the caller's promise.
        unsafe { std::slice::from_raw_parts(self.at(offset, length), length) }
    }

    /// Gives the memory of whole pages back to the system; they read as zero afterwards.
    pub(crate) fn give_back(&self, offset: usize, length: usize) {
        let how = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        // It is an economy: nothing depends on it.
        let _ = rustix::fs::fallocate(&self.descriptor, how, offset as u64, length as u64);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `map` and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
