//! exec and spawn: a program that is started stays hooked up, also with a cleaned environment (rule 6).
//!
//! Invariant: no allocation by the C library, because this runs between vfork and exec; small environments are rebuilt
//! on the stack, large ones in a mapping.

use std::ffi::CStr;
use std::mem::size_of;
use std::ptr::null;

use libc::c_char;

use crate::settings::{self, Settings};
use crate::sys;

const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// Bytes of environment that are rebuilt on the stack.
const ON_STACK: usize = 8192;

/// Most entries that are put back: preload, run directory, service, instance, path of the shim.
const ADDED: usize = 5;

type Strings = *const *const c_char;

/// The process's own environment.
pub(crate) fn environment() -> Strings {
    unsafe extern "C" {
        static environ: Strings;
    }
    // SAFETY: the C library's own variable.
    unsafe { environ }
}

/// Calls `exec` with `envp`, made such that the new program is hooked up too.
///
/// # Safety
/// `envp` is an environment or null.
pub(crate) unsafe fn hooked_up<R>(envp: Strings, exec: impl FnOnce(Strings) -> R) -> R {
    let Some(settings) = settings::active() else { return exec(envp) };
    let none: [*const c_char; 1] = [null()];
    let given = if envp.is_null() { none.as_ptr() } else { envp };
    // SAFETY: the caller's promise.
    let Some(plan) = (unsafe { Plan::new(settings, given) }) else { return exec(envp) };
    let size = plan.size();
    let mut stack = [0_usize; ON_STACK / size_of::<usize>()];
    if size <= ON_STACK {
        // SAFETY: the area is large enough, aligned and ours.
        return exec(unsafe { plan.write(stack.as_mut_ptr().cast()) });
    }
    let Some(area) = sys::map(size) else { return exec(envp) };
    // SAFETY: as above; once exec has returned nobody uses the area.
    unsafe {
        let result = exec(plan.write(area));
        sys::unmap(area, size);
        result
    }
}

/// What has to be put back.
struct Plan {
    given: Strings,
    count: usize,
    /// Place of LD_PRELOAD in `given`.
    preload_at: Option<usize>,
    /// What it says there.
    preload: &'static [u8],
    /// The shim, when it is not there.
    shim: Option<&'static [u8]>,
    missing: [Option<*const c_char>; ADDED - 1],
}

impl Plan {
    /// `None`: nothing to do, or the program has switched the shim off for its child.
    unsafe fn new(settings: &'static Settings, given: Strings) -> Option<Self> {
        let shim = settings.shim_path.value();
        let mut plan = Self {
            given,
            count: 0,
            preload_at: None,
            preload: b"",
            shim: Some(shim).filter(|shim| !shim.is_empty()),
            missing: [settings.run_dir.entry(), settings.service.entry(), settings.instance.entry(), settings.shim_path.entry()],
        };
        let keys = [settings.run_dir.key(), settings.service.key(), settings.instance.key(), settings.shim_path.key()];
        loop {
            // SAFETY: up to the null that ends the environment.
            let entry = unsafe { *given.add(plan.count) };
            if entry.is_null() {
                break;
            }
            // SAFETY: an entry of an environment.
            let entry = unsafe { CStr::from_ptr(entry) }.to_bytes();
            if entry == b"ARMOR_SHIM=off" {
                return None;
            }
            if let Some(value) = entry.strip_prefix(PRELOAD).filter(|_| plan.preload_at.is_none()) {
                plan.preload_at = Some(plan.count);
                plan.preload = value;
            }
            for (key, missing) in keys.iter().zip(&mut plan.missing) {
                if !key.is_empty() && entry.starts_with(key) {
                    *missing = None;
                }
            }
            plan.count += 1;
        }
        let mut listed = plan.preload.split(|byte| *byte == b':' || *byte == b' ');
        if listed.any(|path| Some(path) == plan.shim) {
            plan.shim = None;
        }
        (plan.shim.is_some() || plan.missing.iter().any(Option::is_some)).then_some(plan)
    }

    fn pointers(&self) -> usize {
        self.count + ADDED + 1
    }

    fn size(&self) -> usize {
        let text = PRELOAD.len() + self.preload.len() + 1 + self.shim.map_or(0, <[u8]>::len) + 1;
        self.pointers() * size_of::<*const c_char>() + text
    }

    /// # Safety
    /// `area` has [`size`](Self::size) zeroed bytes, aligned for pointers.
    unsafe fn write(&self, area: *mut u8) -> Strings {
        let pointers = area.cast::<*const c_char>();
        // SAFETY: the caller's promise; the text lies behind the last pointer.
        unsafe {
            pointers.copy_from_nonoverlapping(self.given, self.count);
            let mut end = self.count;
            if let Some(shim) = self.shim {
                let text = area.add(self.pointers() * size_of::<*const c_char>());
                let separator: &[u8] = if self.preload.is_empty() { b"" } else { b":" };
                let mut at = text;
                for part in [PRELOAD, self.preload, separator, shim, b"\0"] {
                    at.copy_from_nonoverlapping(part.as_ptr(), part.len());
                    at = at.add(part.len());
                }
                let place = self.preload_at.unwrap_or(end);
                pointers.add(place).write(text.cast());
                end += usize::from(self.preload_at.is_none());
            }
            for entry in self.missing.into_iter().flatten() {
                pointers.add(end).write(entry);
                end += 1;
            }
            pointers.add(end).write(null());
        }
        pointers.cast_const().cast()
    }
}
