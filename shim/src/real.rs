//! The functions that the hooks stand before: the next definition in link order, usually the C library's.
//!
//! Thread cancellation unwinds the stack of the cancelled thread, so it has to pass through a hook that stands before a
//! blocking function. What lets it pass differs: with `panic = "unwind"` the call must be of the ABI "C-unwind", for the
//! personality routine aborts at a call it has no entry for; with `panic = "abort"` it must be of the ABI "C", for the
//! compiler puts an abort behind every "C-unwind" call.

use std::ffi::CStr;
use std::mem::transmute;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_char, c_int, c_uint, c_void, epoll_event, iovec, mmsghdr, msghdr, pid_t, size_t, sockaddr, socklen_t, ssize_t, timespec};

struct Symbol {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Symbol {
    const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(null_mut()) }
    }

    #[inline]
    fn address(&self) -> *mut c_void {
        let known = self.address.load(Ordering::Relaxed);
        if known.is_null() { self.resolve() } else { known }
    }

    #[cold]
    fn resolve(&self) -> *mut c_void {
        // SAFETY: a valid name; RTLD_NEXT looks behind the library that calls, which is ours.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        let found = if found.is_null() { missing as *mut c_void } else { found };
        self.address.store(found, Ordering::Relaxed);
        found
    }
}

/// Stands for a function that this C library does not have.
extern "C-unwind" fn missing() -> ssize_t {
    crate::sys::set_errno(libc::ENOSYS);
    -1
}

macro_rules! real {
    ($($symbol:ident $name:ident($($argument:ty),*) -> $result:ty;)*) => {
        $(
            static $symbol: Symbol = {
                match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => Symbol::new(name),
                    Err(_) => unreachable!(),
                }
            };

            #[cfg(panic = "unwind")]
            #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
            type $symbol = unsafe extern "C-unwind" fn($($argument),*) -> $result;
            #[cfg(not(panic = "unwind"))]
            #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
            type $symbol = unsafe extern "C" fn($($argument),*) -> $result;

            #[inline]
            pub(crate) fn $name() -> $symbol {
                // SAFETY: the C library's function of this name has this type.
                unsafe { transmute::<*mut c_void, $symbol>($symbol.address()) }
            }
        )*

        /// Finds them all, so that no later call, say between vfork and exec, meets the loader's lock.
        pub(crate) fn resolve_all() {
            $( $symbol.address(); )*
        }
    };
}

real! {
    BIND bind(c_int, *const sockaddr, socklen_t) -> c_int;
    LISTEN listen(c_int, c_int) -> c_int;
    CONNECT connect(c_int, *const sockaddr, socklen_t) -> c_int;
    ACCEPT accept(c_int, *mut sockaddr, *mut socklen_t) -> c_int;
    ACCEPT4 accept4(c_int, *mut sockaddr, *mut socklen_t, c_int) -> c_int;
    GETSOCKNAME getsockname(c_int, *mut sockaddr, *mut socklen_t) -> c_int;
    GETPEERNAME getpeername(c_int, *mut sockaddr, *mut socklen_t) -> c_int;
    GETSOCKOPT getsockopt(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int;
    SETSOCKOPT setsockopt(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int;
    SHUTDOWN shutdown(c_int, c_int) -> c_int;

    READ read(c_int, *mut c_void, size_t) -> ssize_t;
    READV readv(c_int, *const iovec, c_int) -> ssize_t;
    RECV recv(c_int, *mut c_void, size_t, c_int) -> ssize_t;
    RECVFROM recvfrom(c_int, *mut c_void, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t;
    RECVMSG recvmsg(c_int, *mut msghdr, c_int) -> ssize_t;
    RECVMMSG recvmmsg(c_int, *mut mmsghdr, c_uint, c_int, *mut timespec) -> c_int;
    READ_CHK __read_chk(c_int, *mut c_void, size_t, size_t) -> ssize_t;
    RECV_CHK __recv_chk(c_int, *mut c_void, size_t, size_t, c_int) -> ssize_t;
    RECVFROM_CHK __recvfrom_chk(c_int, *mut c_void, size_t, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t;
    SENDTO sendto(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t;
    SENDMSG sendmsg(c_int, *const msghdr, c_int) -> ssize_t;

    CLOSE close(c_int) -> c_int;
    FCLOSE fclose(*mut libc::FILE) -> c_int;
    CLOSE_RANGE close_range(c_uint, c_uint, c_int) -> c_int;
    CLOSEFROM closefrom(c_int) -> ();
    DUP dup(c_int) -> c_int;
    DUP2 dup2(c_int, c_int) -> c_int;
    DUP3 dup3(c_int, c_int, c_int) -> c_int;
    FCNTL fcntl(c_int, c_int, usize) -> c_int;
    FCNTL64 fcntl64(c_int, c_int, usize) -> c_int;
    EPOLL_CTL epoll_ctl(c_int, c_int, c_int, *mut epoll_event) -> c_int;

    EXECVE execve(*const c_char, *const *const c_char, *const *const c_char) -> c_int;
    EXECVPE execvpe(*const c_char, *const *const c_char, *const *const c_char) -> c_int;
    FEXECVE fexecve(c_int, *const *const c_char, *const *const c_char) -> c_int;
    EXECVEAT execveat(c_int, *const c_char, *const *const c_char, *const *const c_char, c_int) -> c_int;
    POSIX_SPAWN posix_spawn(*mut pid_t, *const c_char, *const c_void, *const c_void, *const *const c_char, *const *const c_char) -> c_int;
    POSIX_SPAWNP posix_spawnp(*mut pid_t, *const c_char, *const c_void, *const c_void, *const *const c_char, *const *const c_char) -> c_int;

    UNDERSCORE_EXIT _exit(c_int) -> ();
    QUICK_EXIT quick_exit(c_int) -> ();
}
