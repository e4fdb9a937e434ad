//! The C functions that stand before those of the C library: one line of logic each.
//!
//! They call the real function themselves, with nothing to drop on their stack, so that a thread may be cancelled inside
//! it (see [`real`](crate::real)). Safety of each: as for the C function of its name.
#![allow(clippy::missing_safety_doc, missing_docs, unreachable_pub)]

use libc::{
    FILE, c_char, c_int, c_uint, c_void, epoll_event, iovec, mmsghdr, msghdr, pid_t, size_t, sockaddr, socklen_t, ssize_t, timespec,
};

use crate::detour::Aside;
use crate::sys::Address;
use crate::{accept, address, close, connect, ends, epoll, exec, exit, listen, messages, names, options, real, settings, swap};

/// Served, failed, or the real function: `divert!(detour, real call)`.
macro_rules! divert {
    ($detour:expr, $real:expr) => {
        match $detour {
            Ok(served) => served,
            Err(Aside::Error(errno)) => errno.report() as _,
            // SAFETY: the caller's arguments, unchanged.
            Err(Aside::Bypass(_)) => unsafe { $real },
        }
    };
}

/// The real read, and what it means when there is nothing: `judged!(fd, wanted, real call)`.
macro_rules! judged {
    ($fd:expr, $wanted:expr, $real:expr) => {{
        // SAFETY: the caller's arguments, unchanged.
        let got = unsafe { $real };
        if got > 0 || !$wanted { got } else { ends::judge($fd, got) }
    }};
}

/// The real close of `fd`, announced: `closing!(fd, real call)`.
macro_rules! closing {
    ($fd:expr, $real:expr) => {{
        let fd = $fd;
        epoll::forget(fd);
        let closing = close::before(fd);
        // SAFETY: the caller's arguments, unchanged.
        let result = unsafe { $real };
        close::after(closing, result);
        result
    }};
}

// ---- setting up

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn bind(fd: c_int, to: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller's promise.
    divert!(unsafe { listen::bind(fd, to, length) }, real::bind()(fd, to, length))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn listen(fd: c_int, backlog: c_int) -> c_int {
    divert!(listen::listen(fd, backlog), real::listen()(fd, backlog))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn connect(fd: c_int, to: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: the caller's promise.
    divert!(unsafe { connect::connect(fd, to, length) }, real::connect()(fd, to, length))
}

/// `admitted!(fd, address, length, real accept, more arguments)`
macro_rules! admitted {
    ($fd:ident, $address:ident, $length:ident, $real:ident $(, $flags:ident)?) => {{
        if !settings::is_active() {
            // SAFETY: the caller's arguments, unchanged.
            return unsafe { real::$real()($fd, $address, $length $(, $flags)?) };
        }
        // SAFETY: the caller's promise.
        if let Err(errno) = unsafe { address::check_room($address, $length) } {
            return errno.report();
        }
        loop {
            let mut from = Address::empty();
            // SAFETY: the address is ours and large enough for any.
            let accepted = unsafe { real::$real()($fd, from.as_mut_ptr(), from.length_mut() $(, $flags)?) };
            // SAFETY: the caller's promise.
            if let Some(result) = unsafe { accept::admit($fd, accepted, &from, $address, $length) } {
                return result;
            }
        }
    }};
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    admitted!(fd, address, length, accept)
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
    admitted!(fd, address, length, accept4, flags)
}

// ---- asking

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's promise.
    divert!(unsafe { names::getsockname(fd, address, length) }, real::getsockname()(fd, address, length))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's promise.
    divert!(unsafe { names::getpeername(fd, address, length) }, real::getpeername()(fd, address, length))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn getsockopt(fd: c_int, level: c_int, option: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int {
    // SAFETY: the caller's promise.
    divert!(unsafe { options::get(fd, level, option, value, length) }, real::getsockopt()(fd, level, option, value, length))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn setsockopt(fd: c_int, level: c_int, option: c_int, value: *const c_void, length: socklen_t) -> c_int {
    // SAFETY: the caller's promise.
    divert!(unsafe { options::set(fd, level, option, value, length) }, real::setsockopt()(fd, level, option, value, length))
}

// ---- ends of streams

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t {
    judged!(fd, length > 0, real::read()(fd, buffer, length))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __read_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t) -> ssize_t {
    judged!(fd, length > 0, real::__read_chk()(fd, buffer, length, room))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    judged!(fd, unsafe { messages::wants(parts, count as size_t) }, real::readv()(fd, parts, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recv(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int) -> ssize_t {
    judged!(fd, length > 0, real::recv()(fd, buffer, length, flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recv_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t, flags: c_int) -> ssize_t {
    judged!(fd, length > 0, real::__recv_chk()(fd, buffer, length, room, flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_length: *mut socklen_t,
) -> ssize_t {
    if messages::is_plain(address, address_length) {
        return judged!(fd, length > 0, real::recvfrom()(fd, buffer, length, flags, address, address_length));
    }
    let mut from = Address::empty();
    let got = judged!(fd, length > 0, real::recvfrom()(fd, buffer, length, flags, from.as_mut_ptr(), from.length_mut()));
    // SAFETY: the caller's promise.
    unsafe { messages::report_sender(&from, got, address, address_length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn __recvfrom_chk(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    room: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_length: *mut socklen_t,
) -> ssize_t {
    if messages::is_plain(address, address_length) {
        return judged!(fd, length > 0, real::__recvfrom_chk()(fd, buffer, length, room, flags, address, address_length));
    }
    let mut from = Address::empty();
    let got = judged!(fd, length > 0, real::__recvfrom_chk()(fd, buffer, length, room, flags, from.as_mut_ptr(), from.length_mut()));
    // SAFETY: the caller's promise.
    unsafe { messages::report_sender(&from, got, address, address_length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    let Some(mut own) = (unsafe { messages::named(message) }) else {
        // SAFETY: the caller's promise.
        return judged!(fd, unsafe { messages::message_wants(message) }, real::recvmsg()(fd, message, flags));
    };
    // SAFETY: the caller's promise.
    let got = judged!(fd, unsafe { messages::message_wants(message) }, real::recvmsg()(fd, own.header(), flags));
    // SAFETY: the caller's promise.
    unsafe { own.give_back(got, message) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let got = unsafe { real::recvmmsg()(fd, messages, count, flags, timeout) };
    // SAFETY: the caller's promise, and the kernel has filled the first `got`.
    unsafe { messages::after_many(fd, messages, got) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    buffer: *const c_void,
    length: size_t,
    flags: c_int,
    to: *const sockaddr,
    to_length: socklen_t,
) -> ssize_t {
    if to.is_null() || !names::is_protected(fd) {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::sendto()(fd, buffer, length, flags, to, to_length) };
    }
    // SAFETY: a connected TCP socket ignores the address, a unix socket does not.
    unsafe { real::sendto()(fd, buffer, length, flags, std::ptr::null(), 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's promise.
    match unsafe { messages::addressed(fd, message) } {
        // SAFETY: a copy of the caller's message, without the address.
        Some(plain) => unsafe { real::sendmsg()(fd, &raw const plain, flags) },
        // SAFETY: the caller's arguments, unchanged.
        None => unsafe { real::sendmsg()(fd, message, flags) },
    }
}

// ---- closing

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    closing!(fd, real::close()(fd))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fclose(stream: *mut FILE) -> c_int {
    // SAFETY: the caller's promise.
    closing!(unsafe { libc::fileno(stream) }, real::fclose()(stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    close::range(first, last, flags as c_uint);
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::close_range()(first, last, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn closefrom(first: c_int) {
    close::range(first.max(0) as c_uint, c_uint::MAX, 0);
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::closefrom()(first) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn shutdown(fd: c_int, how: c_int) -> c_int {
    // SAFETY: no pointers.
    let result = unsafe { real::shutdown()(fd, how) };
    if result == 0 {
        close::after_shutdown(fd, how);
    }
    result
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _exit(status: c_int) {
    exit::leave(status);
    // SAFETY: no pointers; does not return.
    unsafe { real::_exit()(status) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _Exit(status: c_int) {
    exit::leave(status);
    // SAFETY: no pointers; does not return.
    unsafe { real::_exit()(status) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn quick_exit(status: c_int) {
    exit::leave(status);
    // SAFETY: no pointers; does not return.
    unsafe { real::quick_exit()(status) }
}

// ---- duplicates

/// The real duplication of `old`, noted: `duplicate!(old, real call)`.
macro_rules! duplicate {
    ($old:expr, $real:expr) => {{
        // SAFETY: no pointers.
        let new = unsafe { $real };
        if new >= 0 {
            swap::note_duplicate($old);
        }
        new
    }};
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup(old: c_int) -> c_int {
    duplicate!(old, real::dup()(old))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup2(old: c_int, new: c_int) -> c_int {
    let closing = close::before(if old == new { -1 } else { new });
    let result = duplicate!(old, real::dup2()(old, new));
    close::after_replacing(closing, new, result)
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    let closing = close::before(if old == new { -1 } else { new });
    let result = duplicate!(old, real::dup3()(old, new, flags));
    close::after_replacing(closing, new, result)
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    if !matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::fcntl()(fd, command, argument) };
    }
    duplicate!(fd, real::fcntl()(fd, command, argument))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    if !matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        // SAFETY: the caller's arguments, unchanged.
        return unsafe { real::fcntl64()(fd, command, argument) };
    }
    duplicate!(fd, real::fcntl64()(fd, command, argument))
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let result = unsafe { real::epoll_ctl()(epoll, operation, fd, event) };
    if result == 0 {
        // SAFETY: the kernel has just read the event.
        unsafe { epoll::note(epoll, operation, fd, event) };
    }
    result
}

// ---- other programs

type Strings = *const *const c_char;

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec::hooked_up(envp, |envp| real::execve()(path, argv, envp)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execv(path: *const c_char, argv: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec::hooked_up(exec::environment(), |envp| real::execve()(path, argv, envp)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvp(file: *const c_char, argv: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec::hooked_up(exec::environment(), |envp| real::execvpe()(file, argv, envp)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec::hooked_up(envp, |envp| real::execvpe()(file, argv, envp)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec::hooked_up(envp, |envp| real::fexecve()(fd, argv, envp)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn execveat(directory: c_int, path: *const c_char, argv: Strings, envp: Strings, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec::hooked_up(envp, |envp| real::execveat()(directory, path, argv, envp, flags)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawn(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec::hooked_up(envp, |envp| real::posix_spawn()(pid, path, actions, attributes, argv, envp)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn posix_spawnp(
    pid: *mut pid_t,
    file: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { exec::hooked_up(envp, |envp| real::posix_spawnp()(pid, file, actions, attributes, argv, envp)) }
}
