//! System calls without the C library's wrappers, which are what is hooked.
//!
//! Invariant: nothing here changes `errno`, allocates, or is a cancellation point.

use std::mem::{size_of, zeroed};
use std::ptr::{null, null_mut};
use std::time::Duration;

use libc::{c_int, c_long, c_void, socklen_t};

use crate::detour::Errno;

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// Where the shim's own descriptors live, out of the way of programs that count on low numbers.
const HIGH_FD: c_int = 512;

pub(crate) fn errno() -> c_int {
    // SAFETY: the C library gives a valid thread-local pointer.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let saved = errno();
        // SAFETY: each caller passes pointers to live memory of the stated length.
        let result = unsafe { libc::syscall($number as c_long $(, $argument)*) };
        if result == -1 {
            let error = Errno(errno());
            set_errno(saved);
            Err(error)
        } else {
            Ok(result)
        }
    }};
}

/// A kernel socket address of any family.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    storage: libc::sockaddr_storage,
    length: socklen_t,
}

impl Address {
    const CAPACITY: socklen_t = size_of::<libc::sockaddr_storage>() as socklen_t;

    /// Room for the kernel to write any address into.
    pub(crate) fn empty() -> Self {
        // SAFETY: all zeros is a valid sockaddr_storage.
        Self { storage: unsafe { zeroed() }, length: Self::CAPACITY }
    }

    /// Copies `bytes` (beginning with the family), which must fit.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut address = Self::empty();
        let length = bytes.len().min(Self::CAPACITY as usize);
        address.bytes_mut()[..length].copy_from_slice(&bytes[..length]);
        address.length = length as socklen_t;
        address
    }

    fn bytes_mut(&mut self) -> &mut [u8; Self::CAPACITY as usize] {
        // SAFETY: sockaddr_storage is plain bytes of exactly this size.
        unsafe { &mut *(&raw mut self.storage).cast() }
    }

    /// The bytes that the kernel wrote, family first.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: sockaddr_storage is plain initialised bytes.
        let all: &[u8; Self::CAPACITY as usize] = unsafe { &*(&raw const self.storage).cast() };
        &all[..(self.length.min(Self::CAPACITY) as usize)]
    }

    pub(crate) fn family(&self) -> c_int {
        if self.length < 2 { libc::AF_UNSPEC } else { c_int::from(self.storage.ss_family) }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    /// Length as the kernel reads and writes it.
    pub(crate) fn length_mut(&mut self) -> *mut socklen_t {
        &raw mut self.length
    }
}

pub(crate) fn getsockname(fd: c_int) -> Result<Address> {
    let mut address = Address::empty();
    call!(libc::SYS_getsockname, fd, address.as_mut_ptr(), address.length_mut())?;
    Ok(address)
}

pub(crate) fn getpeername(fd: c_int) -> Result<Address> {
    let mut address = Address::empty();
    call!(libc::SYS_getpeername, fd, address.as_mut_ptr(), address.length_mut())?;
    Ok(address)
}

/// Reads an option into `value`, returns its length.
pub(crate) fn get_option(fd: c_int, level: c_int, option: c_int, value: &mut [u8]) -> Result<usize> {
    let mut length = value.len() as socklen_t;
    call!(libc::SYS_getsockopt, fd, level, option, value.as_mut_ptr(), &raw mut length)?;
    Ok(length as usize)
}

pub(crate) fn int_option(fd: c_int, level: c_int, option: c_int) -> Result<c_int> {
    let mut value = [0; 4];
    get_option(fd, level, option, &mut value)?;
    Ok(c_int::from_ne_bytes(value))
}

pub(crate) fn set_option(fd: c_int, level: c_int, option: c_int, value: &[u8]) -> Result<()> {
    call!(libc::SYS_setsockopt, fd, level, option, value.as_ptr(), value.len())?;
    Ok(())
}

pub(crate) fn socket(domain: c_int, kind: c_int) -> Result<OwnFd> {
    let fd = call!(libc::SYS_socket, domain, kind | libc::SOCK_CLOEXEC, 0)? as c_int;
    Ok(OwnFd(fd).raised())
}

pub(crate) fn bind(fd: c_int, address: &Address) -> Result<()> {
    call!(libc::SYS_bind, fd, &raw const address.storage, address.length)?;
    Ok(())
}

pub(crate) fn connect(fd: c_int, address: &Address) -> Result<()> {
    call!(libc::SYS_connect, fd, &raw const address.storage, address.length)?;
    Ok(())
}

pub(crate) fn close(fd: c_int) {
    let _ = call!(libc::SYS_close, fd);
}

pub(crate) fn dup3(old: c_int, new: c_int, close_on_exec: bool) -> Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    call!(libc::SYS_dup3, old, new, flags)?;
    Ok(())
}

pub(crate) fn fcntl(fd: c_int, command: c_int, argument: usize) -> Result<c_int> {
    Ok(call!(libc::SYS_fcntl, fd, command, argument)? as c_int)
}

pub(crate) fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: Option<libc::epoll_event>) -> Result<()> {
    let event = event.as_ref().map_or(null(), |event| &raw const *event);
    call!(libc::SYS_epoll_ctl, epoll, operation, fd, event)?;
    Ok(())
}

/// Waits for `events`; `None` waits for ever. Returns what is there, 0 when the time is over.
pub(crate) fn poll(fd: c_int, events: i16, timeout: Option<Duration>) -> Result<i16> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let timeout = timeout.map(timespec);
    let timeout = timeout.as_ref().map_or(null(), |time| &raw const *time);
    call!(libc::SYS_ppoll, &raw mut entry, 1, timeout, null::<c_void>(), 0)?;
    Ok(entry.revents)
}

pub(crate) fn sleep(time: Duration) {
    let time = timespec(time);
    let _ = call!(libc::SYS_nanosleep, &raw const time, null_mut::<c_void>());
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: c_long::from(time.subsec_nanos()) }
}

/// Time since some fixed moment.
pub(crate) fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec; CLOCK_MONOTONIC cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

pub(crate) fn getpid() -> u32 {
    call!(libc::SYS_getpid).unwrap_or(0) as u32
}

pub(crate) fn geteuid() -> u32 {
    call!(libc::SYS_geteuid).unwrap_or(0) as u32
}

/// `path` must end with a NUL.
pub(crate) fn open_directory(path: &[u8], flags: c_int) -> Result<OwnFd> {
    let flags = flags | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let fd = call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags)? as c_int;
    Ok(OwnFd(fd).raised())
}

pub(crate) fn getdents(fd: c_int, buffer: &mut [u8]) -> Result<usize> {
    Ok(call!(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len())? as usize)
}

/// User id of the owner of `path`, which must end with a NUL.
pub(crate) fn owner(path: &[u8]) -> Result<u32> {
    // SAFETY: all zeros is a valid statx.
    let mut status: libc::statx = unsafe { zeroed() };
    call!(libc::SYS_statx, libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_UID, &raw mut status)?;
    Ok(status.stx_uid)
}

pub(crate) fn unshare_files() -> Result<()> {
    call!(libc::SYS_unshare, libc::CLONE_FILES)?;
    Ok(())
}

/// Flags of the handler of `signal`, `None` when there is no handler.
pub(crate) fn handler_flags(signal: c_int) -> Option<c_int> {
    /// The kernel's `struct sigaction`, on all but a few old machines.
    #[repr(C)]
    struct Action {
        handler: usize,
        flags: libc::c_ulong,
        restorer: usize,
        mask: u64,
    }
    let mut action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    call!(libc::SYS_rt_sigaction, signal, null::<c_void>(), &raw mut action, size_of::<u64>()).ok()?;
    let handled = action.handler != libc::SIG_DFL && action.handler != libc::SIG_IGN;
    handled.then_some(action.flags as c_int)
}

/// Fresh private memory that takes no room until it is touched.
pub(crate) fn map(length: usize) -> Option<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let address = call!(libc::SYS_mmap, 0, length, protection, flags, -1, 0).ok()?;
    Some(address as *mut u8)
}

/// # Safety
/// `address` and `length` are a whole mapping that nobody uses any more.
pub(crate) unsafe fn unmap(address: *mut u8, length: usize) {
    let _ = call!(libc::SYS_munmap, address, length);
}

pub(crate) fn write(fd: c_int, bytes: &[u8]) {
    let _ = call!(libc::SYS_write, fd, bytes.as_ptr(), bytes.len());
}

/// Room for the control message that carries one descriptor, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

const FD_MESSAGE: u32 = size_of::<c_int>() as u32;

/// Sends one datagram, with `passed` beside it.
pub(crate) fn send(fd: c_int, bytes: &[u8], passed: Option<c_int>) -> Result<()> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if let Some(passed) = passed {
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute; the first header lies within `control`, which is large enough.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(FD_MESSAGE) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(FD_MESSAGE) as _;
            libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(passed);
        }
    }
    loop {
        match call!(libc::SYS_sendmsg, fd, &raw const message, libc::MSG_NOSIGNAL) {
            Err(Errno(libc::EINTR)) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Receives one datagram and the descriptor beside it. Length 0: the other side has closed.
pub(crate) fn receive(fd: c_int, buffer: &mut [u8]) -> Result<(usize, Option<OwnFd>)> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    let length = call!(libc::SYS_recvmsg, fd, &raw mut message, libc::MSG_CMSG_CLOEXEC)? as usize;
    let mut passed = None;
    // SAFETY: the kernel wrote the control messages into `control`; the macros walk within its length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for index in 0..bytes / size_of::<c_int>() {
                    let received = libc::CMSG_DATA(header).cast::<c_int>().add(index).read_unaligned();
                    passed = Some(OwnFd(received));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((length, passed.map(OwnFd::raised)))
}

/// A descriptor of the shim's own: high, closed on exec, closed when dropped.
pub(crate) struct OwnFd(c_int);

impl OwnFd {
    pub(crate) fn raw(&self) -> c_int {
        self.0
    }

    /// Moves the descriptor up to [`HIGH_FD`] or as high as the limit allows.
    fn raised(self) -> Self {
        for least in [HIGH_FD, HIGH_FD / 4, HIGH_FD / 16, 3] {
            if self.0 >= least {
                break;
            }
            if let Ok(high) = fcntl(self.0, libc::F_DUPFD_CLOEXEC, least as usize) {
                return Self(high);
            }
        }
        self
    }
}

impl Drop for OwnFd {
    fn drop(&mut self) {
        close(self.0);
    }
}
