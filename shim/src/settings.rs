//! [`Settings`]: what the environment says to the shim, read once and kept where no `clearenv` reaches it.
//!
//! Read by the library's constructor (four strings copied, nothing else), because a program such as `env -i` or one
//! that writes its title over its environment has no environment left when it makes its first hooked call.

use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering};

use armor_proto::hookup::{ENV_INSTANCE, ENV_RUN_DIR, ENV_SERVICE, ENV_SHIM, ENV_SHIM_PATH};
use libc::{c_char, c_int};

/// One `KEY=VALUE` of the environment, with its NUL.
pub(crate) struct Entry<const N: usize> {
    bytes: [u8; N],
    /// Up to the `=`, inclusive. 0: not set.
    key: usize,
    /// Whole, without the NUL.
    length: usize,
}

impl<const N: usize> Entry<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], key: 0, length: 0 }
    }

    /// `false` when it does not fit.
    fn set(&mut self, key: &str, value: &[u8]) -> bool {
        let length = key.len() + 1 + value.len();
        if length >= N {
            return false;
        }
        self.bytes[..key.len()].copy_from_slice(key.as_bytes());
        self.bytes[key.len()] = b'=';
        self.bytes[key.len() + 1..length].copy_from_slice(value);
        self.key = key.len() + 1;
        self.length = length;
        true
    }

    /// The value with its NUL, empty when not set.
    pub(crate) fn value_with_nul(&self) -> &[u8] {
        &self.bytes[self.key..=self.length]
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.bytes[self.key..self.length]
    }

    /// `KEY=`
    pub(crate) fn key(&self) -> &[u8] {
        &self.bytes[..self.key]
    }

    /// The whole entry for an environment, `None` when not set.
    pub(crate) fn entry(&self) -> Option<*const c_char> {
        (self.key > 0).then_some(self.bytes.as_ptr().cast())
    }
}

/// The environment of an active shim.
pub(crate) struct Settings {
    pub(crate) run_dir: Entry<4096>,
    pub(crate) service: Entry<512>,
    pub(crate) instance: Entry<64>,
    pub(crate) shim_path: Entry<4096>,
}

impl Settings {
    /// The instance of the service that this process belongs to; 0 when nobody has said.
    pub(crate) fn instance(&self) -> u64 {
        std::str::from_utf8(self.instance.value()).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }
}

struct Kept(UnsafeCell<Settings>);

// SAFETY: written once by the thread that moves STATE from UNREAD to READING, read only after ACTIVE is seen.
unsafe impl Sync for Kept {}

static KEPT: Kept =
    Kept(UnsafeCell::new(Settings { run_dir: Entry::new(), service: Entry::new(), instance: Entry::new(), shim_path: Entry::new() }));
static STATE: AtomicU8 = AtomicU8::new(UNREAD);
const UNREAD: u8 = 0;
const READING: u8 = 1;
const INACTIVE: u8 = 2;
const ACTIVE: u8 = 3;

/// The settings, or `None` when there is nothing to do in this process.
#[inline]
pub(crate) fn active() -> Option<&'static Settings> {
    match STATE.load(Ordering::Acquire) {
        // SAFETY: ACTIVE is stored after the last write.
        ACTIVE => Some(unsafe { &*KEPT.0.get() }),
        INACTIVE => None,
        _ => first_use(),
    }
}

#[inline]
pub(crate) fn is_active() -> bool {
    active().is_some()
}

/// Another library's constructor was quicker than ours.
#[cold]
fn first_use() -> Option<&'static Settings> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: the C library's own variable; null before it has started.
    let envp = unsafe { environ };
    if envp.is_null() {
        return None;
    }
    read(envp);
    (STATE.load(Ordering::Acquire) == ACTIVE).then(active).flatten()
}

fn read(envp: *const *const c_char) {
    if STATE.compare_exchange(UNREAD, READING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return;
    }
    // SAFETY: only one thread gets here, and nobody reads before the store below.
    let settings = unsafe { &mut *KEPT.0.get() };
    // SAFETY: envp is an environment: pointers to C strings, then null.
    let active = unsafe { fill(settings, envp) };
    STATE.store(if active { ACTIVE } else { INACTIVE }, Ordering::Release);
    if active {
        crate::real::resolve_all();
        crate::exit::register();
    }
}

/// # Safety
/// `envp` is an environment.
unsafe fn fill(settings: &mut Settings, envp: *const *const c_char) -> bool {
    // SAFETY: the caller's promise.
    let variable = |key| unsafe { lookup(envp, key) };
    if variable(ENV_SHIM) == Some(b"off") {
        return false;
    }
    let Some(run_dir) = variable(ENV_RUN_DIR).filter(|value| !value.is_empty()) else { return false };
    if let Some(service) = variable(ENV_SERVICE) {
        settings.service.set(ENV_SERVICE, service);
    }
    if let Some(instance) = variable(ENV_INSTANCE) {
        settings.instance.set(ENV_INSTANCE, instance);
    }
    match variable(ENV_SHIM_PATH).filter(|value| !value.is_empty()) {
        Some(path) => settings.shim_path.set(ENV_SHIM_PATH, path),
        None => own_path().is_some_and(|path| settings.shim_path.set(ENV_SHIM_PATH, path)),
    };
    settings.run_dir.set(ENV_RUN_DIR, run_dir)
}

/// Value of `key` in `envp`.
///
/// # Safety
/// `envp` is an environment whose strings outlive the result.
unsafe fn lookup(envp: *const *const c_char, key: &str) -> Option<&'static [u8]> {
    let mut at = envp;
    // SAFETY: stops at the null that ends an environment.
    unsafe {
        while !(*at).is_null() {
            let entry = CStr::from_ptr(*at).to_bytes();
            if let Some(value) = entry.strip_prefix(key.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")) {
                return Some(value);
            }
            at = at.add(1);
        }
    }
    None
}

/// The file that this library was loaded from.
fn own_path() -> Option<&'static [u8]> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: an address of ours and a live Dl_info; the name belongs to the loader and stays.
    unsafe {
        let found = libc::dladdr(own_path as *const () as *const _, &raw mut info) != 0;
        (found && !info.dli_fname.is_null()).then(|| CStr::from_ptr(info.dli_fname).to_bytes())
    }
}

extern "C" fn constructor(_count: c_int, _arguments: *const *const c_char, envp: *const *const c_char) {
    if !envp.is_null() {
        read(envp);
    }
}

#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = constructor;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn an_entry_is_ready_for_an_environment() {
        let mut entry = Entry::<16>::new();
        assert_eq!((entry.entry(), entry.value()), (None, &b""[..]));
        assert!(entry.set("KEY", b"value"));
        assert_eq!((entry.key(), entry.value(), entry.value_with_nul()), (&b"KEY="[..], &b"value"[..], &b"value\0"[..]));
        // SAFETY: the entry ends with a NUL.
        assert_eq!(unsafe { CStr::from_ptr(entry.entry().unwrap()) }, c"KEY=value");
        assert!(!entry.set("KEY", b"too long a value"));
    }
}
