//! `getsockopt` and `setsockopt` behave as on a TCP socket (rule 2).
//!
//! What a unix socket does as well stays native. TCP's and IP's own options, and those of SOL_SOCKET that a unix socket
//! lacks or the shim uses itself, go to the TCP socket that the ARMOR holds for this one.

use std::time::Duration;

use armor_proto::hookup::{ConnectState, Name, Reply, Request, Role};
use libc::{c_int, c_void, socklen_t};

use crate::control::{self, Failure, Patience, Side};
use crate::detour::{Bypass, Detour, Errno};
use crate::{address, connect, names, sys};

const PATIENCE: Patience = Patience { reach: Duration::from_secs(1), answer: Some(Duration::from_secs(1)), interruptible: false };

/// No option of a TCP socket is longer; what is asked for beyond it is cut.
const LONGEST: usize = 2048;

/// States of `tcpi_state`.
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_SENT: u8 = 2;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// Who answers for an option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The unix socket.
    Native,
    /// The TCP socket that the ARMOR holds.
    Holder,
    /// The same, and the unix socket follows.
    Both,
    Domain,
    Protocol,
    Credentials,
    Error,
    Info,
}

const fn place(level: c_int, option: c_int) -> Place {
    match (level, option) {
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => Place::Domain,
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => Place::Protocol,
        (libc::SOL_SOCKET, libc::SO_PEERCRED) => Place::Credentials,
        (libc::SOL_SOCKET, libc::SO_ERROR) => Place::Error,
        (libc::SOL_SOCKET, libc::SO_SNDBUF | libc::SO_RCVBUF) => Place::Both,
        (libc::SOL_SOCKET, libc::SO_REUSEPORT | libc::SO_PRIORITY | libc::SO_MARK | libc::SO_BINDTODEVICE) => Place::Holder,
        (libc::IPPROTO_TCP, libc::TCP_INFO) => Place::Info,
        (libc::IPPROTO_TCP | libc::IPPROTO_IP | libc::IPPROTO_IPV6, _) => Place::Holder,
        _ => Place::Native,
    }
}

/// `getsockopt`.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn get(fd: c_int, level: c_int, option: c_int, value: *mut c_void, length: *mut socklen_t) -> Detour<c_int> {
    let place = place(level, option);
    if place == Place::Native {
        return Err(Bypass::Native.into());
    }
    let name = names::protected(fd)?;
    if value.is_null() || length.is_null() {
        return Err(Errno(libc::EFAULT).into());
    }
    // SAFETY: not null, so it points to a length.
    let room = unsafe { length.read_unaligned() } as c_int;
    let room = usize::try_from(room).map_err(|_| Errno(libc::EINVAL))?;
    let mut buffer = [0; LONGEST];
    let answer: &[u8] = match place {
        Place::Native => return Err(Bypass::Native.into()),
        Place::Domain => integer(&mut buffer, address::domain(names::family(fd, &name))),
        Place::Protocol => integer(&mut buffer, libc::IPPROTO_TCP),
        Place::Error => integer(&mut buffer, pending_error(fd, &name)?),
        Place::Credentials => {
            // struct ucred of a socket whose peer is not local: no process, no user, no group
            buffer[4..12].fill(0xff);
            &buffer[..12]
        }
        Place::Holder | Place::Both | Place::Info => {
            let got = from_holder(name, level, option, &mut buffer[..room.min(LONGEST)])?;
            if place == Place::Info && got > 0 {
                buffer[0] = tcp_state(fd, &name);
            }
            &buffer[..got]
        }
    };
    let told = answer.len().min(room);
    // SAFETY: `value` has room for as many bytes as `length` said.
    unsafe {
        value.cast::<u8>().copy_from_nonoverlapping(answer.as_ptr(), told);
        length.write_unaligned(told as socklen_t);
    }
    Ok(0)
}

fn integer(buffer: &mut [u8; LONGEST], value: c_int) -> &[u8] {
    buffer[..4].copy_from_slice(&value.to_ne_bytes());
    &buffer[..4]
}

/// `SO_ERROR`: the kernel's word, except that a failed connect has a reason that the kernel does not know.
fn pending_error(fd: c_int, name: &Name) -> Result<c_int, Errno> {
    let error = sys::int_option(fd, libc::SOL_SOCKET, libc::SO_ERROR)?;
    let failed = (error == libc::ECONNRESET && name.role == Role::Client).then(|| connect::failure(fd)).flatten();
    Ok(failed.map_or(error, |errno| errno.0))
}

fn tcp_state(fd: c_int, name: &Name) -> u8 {
    match name.role {
        Role::Listener if sys::int_option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Ok(1) => TCP_LISTEN,
        Role::Listener => TCP_CLOSE,
        Role::Server => TCP_ESTABLISHED,
        Role::Client => match connect::state(fd) {
            ConnectState::Established => TCP_ESTABLISHED,
            ConnectState::Pending => TCP_SYN_SENT,
            _ => TCP_CLOSE,
        },
    }
}

fn from_holder(name: Name, level: c_int, option: c_int, buffer: &mut [u8]) -> Result<usize, Errno> {
    let request = Request::GetOption { name, level, option, length: buffer.len() as u32 };
    match control::ask(Side::of(&name), &request, None, PATIENCE).map(|answer| answer.reply) {
        Ok(Reply::Option { errno: 0, value }) => {
            let length = value.len().min(buffer.len());
            buffer[..length].copy_from_slice(&value[..length]);
            Ok(length)
        }
        Ok(Reply::Option { errno, .. }) => Err(Errno(errno)),
        // With the ARMOR away, what a fresh TCP socket says is nearest to the truth.
        Ok(_) | Err(_) => {
            let fresh = sys::socket(address::domain(name.family()), libc::SOCK_STREAM)?;
            sys::get_option(fresh.raw(), level, option, buffer)
        }
    }
}

/// `setsockopt`.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn set(fd: c_int, level: c_int, option: c_int, value: *const c_void, length: socklen_t) -> Detour<c_int> {
    let place = place(level, option);
    if !matches!(place, Place::Holder | Place::Both | Place::Info) {
        return Err(Bypass::Native.into());
    }
    let name = names::protected(fd)?;
    if value.is_null() && length > 0 {
        return Err(Errno(libc::EFAULT).into());
    }
    // As the kernel does, look at the sign; what is longer than any option is cut by nobody but refused here.
    if length as usize > LONGEST {
        return Err(Errno(libc::EINVAL).into());
    }
    let bytes = if length == 0 {
        &[]
    } else {
        // SAFETY: not null, and the caller states its length.
        unsafe { std::slice::from_raw_parts(value.cast::<u8>(), length as usize) }
    };
    let request = Request::SetOption { name, level, option, value: bytes.to_vec() };
    match control::ask(Side::of(&name), &request, None, PATIENCE).map(|answer| answer.reply) {
        Ok(Reply::Option { errno: 0, .. }) => {}
        Ok(Reply::Option { errno, .. }) => return Err(Errno(errno).into()),
        Err(Failure::Local(errno)) => return Err(errno.into()),
        // Such options tune; a program that runs without its ARMOR for a moment is better off going on.
        Ok(_) | Err(_) => {}
    }
    // The send buffer of a pending connect is small on purpose.
    let pending = name.role == Role::Client && connect::state(fd) != ConnectState::Established;
    if place == Place::Both && !(pending && option == libc::SO_SNDBUF) {
        let _ = sys::set_option(fd, level, option, bytes);
    }
    Ok(0)
}
