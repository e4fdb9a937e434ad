//! Remembers epoll registrations of sockets, because the kernel drops them when another socket takes the number.
//!
//! A sparse table indexed by descriptor: two registrations each, more are forgotten oldest first. A registration that
//! has gone stale does no harm: withdrawing it fails in the kernel, and then it is not restored.
//!
//! Invariant: no lock and no allocation; memory is taken by page as descriptors are used.

use std::mem::size_of;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use libc::{c_int, epoll_event};

use crate::settings;
use crate::sys;

/// Registrations of descriptors from here on are not remembered.
const DESCRIPTORS: usize = 1 << 20;
const SLOTS: usize = 2;

/// One registration. `epoll` is the epoll descriptor plus one, so that zeroed memory is an empty table.
struct Slot {
    epoll: AtomicI32,
    events: AtomicU32,
    data: AtomicU64,
}

type Row = [Slot; SLOTS];

static TABLE: AtomicPtr<Row> = AtomicPtr::new(null_mut());

/// What was withdrawn, to be restored.
pub(crate) type Registrations = [Option<(c_int, epoll_event)>; SLOTS];

impl Slot {
    fn set(&self, epoll: c_int, event: epoll_event) {
        self.events.store(event.events, Ordering::Relaxed);
        self.data.store(event.u64, Ordering::Relaxed);
        self.epoll.store(epoll + 1, Ordering::Release);
    }

    fn clear(&self) {
        self.epoll.store(0, Ordering::Relaxed);
    }

    fn get(&self) -> Option<(c_int, epoll_event)> {
        let epoll = self.epoll.load(Ordering::Acquire) - 1;
        let event = epoll_event { events: self.events.load(Ordering::Relaxed), u64: self.data.load(Ordering::Relaxed) };
        (epoll >= 0).then_some((epoll, event))
    }
}

fn table() -> Option<*mut Row> {
    let table = TABLE.load(Ordering::Acquire);
    (!table.is_null()).then_some(table)
}

fn table_or_new() -> Option<*mut Row> {
    if let Some(table) = table() {
        return Some(table);
    }
    let length = DESCRIPTORS * size_of::<Row>();
    let fresh = sys::map(length)?;
    match TABLE.compare_exchange(null_mut(), fresh.cast(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(fresh.cast()),
        Err(other) => {
            // SAFETY: nobody has seen this mapping.
            unsafe { sys::unmap(fresh, length) };
            Some(other)
        }
    }
}

fn row(table: *mut Row, fd: c_int) -> Option<&'static Row> {
    let index = usize::try_from(fd).ok().filter(|index| *index < DESCRIPTORS)?;
    // SAFETY: the table has DESCRIPTORS rows, is never unmapped, and zeroed atomics are valid.
    Some(unsafe { &*table.add(index) })
}

/// `epoll_ctl` has succeeded.
///
/// # Safety
/// `event` is what was given to `epoll_ctl`.
pub(crate) unsafe fn note(epoll: c_int, operation: c_int, fd: c_int, event: *const epoll_event) {
    if !settings::is_active() {
        return;
    }
    if operation == libc::EPOLL_CTL_DEL || event.is_null() {
        if let Some(row) = table().and_then(|table| row(table, fd)) {
            row.iter().filter(|slot| slot.epoll.load(Ordering::Relaxed) == epoll + 1).for_each(Slot::clear);
        }
        return;
    }
    let Some(row) = table_or_new().and_then(|table| row(table, fd)) else { return };
    // SAFETY: not null, and the kernel has just read it.
    let event = unsafe { event.read_unaligned() };
    let owner = |wanted: c_int| row.iter().find(|slot| slot.epoll.load(Ordering::Relaxed) == wanted);
    if let Some(slot) = owner(epoll + 1).or_else(|| owner(0)) {
        slot.set(epoll, event);
        return;
    }
    let [oldest, newest] = row;
    if let Some((epoll, event)) = newest.get() {
        oldest.set(epoll, event);
    }
    newest.set(epoll, event);
}

/// `fd` is about to be closed.
pub(crate) fn forget(fd: c_int) {
    if let Some(row) = table().and_then(|table| row(table, fd)) {
        for slot in row {
            // Reading first keeps the page untouched where nothing was ever registered.
            if slot.epoll.load(Ordering::Relaxed) != 0 {
                slot.clear();
            }
        }
    }
}

/// Removes the registrations of `fd` from the kernel and returns those that were there.
pub(crate) fn withdraw(fd: c_int) -> Registrations {
    let mut withdrawn = [None; SLOTS];
    if let Some(row) = table().and_then(|table| row(table, fd)) {
        for (slot, place) in row.iter().zip(&mut withdrawn) {
            *place = slot.get().filter(|(epoll, _)| sys::epoll_ctl(*epoll, libc::EPOLL_CTL_DEL, fd, None).is_ok());
            if place.is_none() {
                slot.clear();
            }
        }
    }
    withdrawn
}

/// Registers `fd` again as it was.
pub(crate) fn restore(fd: c_int, registrations: Registrations) {
    for (epoll, event) in registrations.into_iter().flatten() {
        let _ = sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, Some(event));
    }
}
