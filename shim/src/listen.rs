//! `bind` and `listen`: a server's socket becomes a unix listener under the ARMOR's name for it (thesis §4.2.2).
//!
//! What is bound may yet connect. So `bind` exchanges the socket, for then all copies of it share what becomes of it; but
//! it is `listen` that makes a service of it, and `connect` takes the TCP socket back.

use std::time::Duration;

use armor_proto::hookup::{Endpoint, Name, Reply, Request, Role};
use libc::{c_int, sockaddr, socklen_t};

use crate::complain::complain;
use crate::control::{self, Answer, Failure, Patience, Side};
use crate::detour::{Bypass, Detour, Errno};
use crate::settings::{self, Settings};
use crate::{address, names, real, swap, sys, tcp};

/// An ARMOR may be on its way up, and without one a server must not start.
const REACH: Duration = Duration::from_secs(5);

/// A standby is held here, beyond this patience, until it is needed (`Reply::Hold`).
const BIND: Patience = Patience { reach: REACH, answer: Some(Duration::from_secs(30)), interruptible: false };

/// The answer may take for ever: without an FTM nobody can confirm the address.
const REGISTER: Patience = Patience { reach: REACH, answer: None, interruptible: false };

const WITHDRAW: Patience = Patience { reach: Duration::from_secs(1), answer: Some(Duration::from_secs(5)), interruptible: false };

/// How long an address is waited for that a dead ARMOR had.
const FREED: Duration = Duration::from_secs(1);

/// `bind` of a TCP socket.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn bind(fd: c_int, to: *const sockaddr, length: socklen_t) -> Detour<c_int> {
    let settings = settings::active().ok_or(Bypass::Inactive)?;
    // SAFETY: the caller's promise.
    let to = unsafe { address::read(to, length) }.ok_or(Bypass::NotIp)?;
    if names::of(fd).is_some() {
        return Err(Errno(libc::EINVAL).into());
    }
    let family = tcp::idle(fd)?;
    if family != to.family() {
        return Err(Bypass::NotIp.into());
    }
    if tcp::is_bound(fd) {
        return Err(Bypass::KernelHasIt.into());
    }
    if to.port == 0 && tcp::wants_no_port(fd) {
        return Err(Bypass::NoPort.into());
    }
    reserve(settings, fd, to)?;
    Ok(0)
}

/// `listen` on what [`bind`] made, or on a TCP socket that was never bound.
pub(crate) fn listen(fd: c_int, backlog: c_int) -> Detour<c_int> {
    let settings = settings::active().ok_or(Bypass::Inactive)?;
    let name = match names::of(fd) {
        Some(name) if name.role == Role::Listener => name,
        Some(_) => return Err(Errno(libc::EINVAL).into()),
        None => {
            let family = tcp::idle(fd)?;
            if tcp::is_bound(fd) {
                return Err(Bypass::KernelHasIt.into());
            }
            reserve(settings, fd, Endpoint::unspecified(family, 0))?
        }
    };
    // SAFETY: no pointers.
    let result = unsafe { real::listen()(fd, backlog) };
    if result == 0 {
        register(settings, &name, backlog)?;
    }
    Ok(result)
}

/// Binds `fd` to `addr`, and puts a unix socket under the name that the ARMOR gives in its place.
fn reserve(settings: &Settings, fd: c_int, addr: Endpoint) -> Result<Name, Errno> {
    let service = Some(settings.service.value()).filter(|name| !name.is_empty());
    let request = Request::Bind {
        addr,
        service: service.map(|name| String::from_utf8_lossy(name).into_owned()),
        pid: sys::getpid(),
        v6_only: sys::int_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).is_ok_and(|set| set != 0),
        reuse_port: sys::int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT).is_ok_and(|set| set != 0),
        instance: settings.instance(),
    };
    match ask(settings, "bind", addr, &request, Some(fd), BIND)?.reply {
        Reply::Bound { errno: 0, name: Some(name), .. } => {
            stand_in(fd, &name).inspect_err(|_| control::tell(Side::Server, &Request::Closed { name, pid: sys::getpid() }, REACH))?;
            Ok(name)
        }
        Reply::Bound { errno: errno @ 1.., .. } => Err(Errno(errno)),
        other => Err(misunderstood("bind", addr, &other)),
    }
}

/// Makes a service of a listener, which listens already: a client that is told of it may come at once.
fn register(settings: &Settings, name: &Name, backlog: c_int) -> Result<(), Errno> {
    let request = Request::Listen { listener: name.id, backlog, pid: sys::getpid() };
    match ask(settings, "listen", name.local, &request, None, REGISTER)?.reply {
        Reply::Registered { errno: 0 } => Ok(()),
        Reply::Registered { errno: errno @ 1.. } => Err(Errno(errno)),
        other => Err(misunderstood("listen", name.local, &other)),
    }
}

fn ask(settings: &Settings, what: &str, addr: Endpoint, request: &Request, fd: Option<c_int>, patience: Patience) -> Result<Answer, Errno> {
    control::ask(Side::Server, request, fd, patience).map_err(|failure| match failure {
        Failure::Refused => Errno(libc::EACCES),
        Failure::Local(errno) => errno,
        Failure::Unreachable | Failure::Silent | Failure::Interrupted => {
            let directory = String::from_utf8_lossy(settings.run_dir.value());
            let socket = Side::Server.socket();
            complain(format_args!("cannot {what} {addr}: no ARMOR answers at {directory}/{socket} (is it up?)"));
            Errno(libc::ENETDOWN)
        }
    })
}

fn misunderstood(what: &str, addr: Endpoint, reply: &Reply) -> Errno {
    complain(format_args!("cannot {what} {addr}: the ARMOR answered {reply:?}"));
    Errno(libc::ENETDOWN)
}

/// Puts a unix socket that is bound to `name` in the place of `fd`.
fn stand_in(fd: c_int, name: &Name) -> sys::Result<()> {
    let socket = sys::socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
    sys::bind(socket.raw(), &names::kernel_form(name))?;
    swap::swap(fd, socket)
}

/// Takes a bound socket that is to connect back: `fd` becomes the TCP socket again that was bound, with its options.
pub(crate) fn withdraw(fd: c_int, name: &Name) -> sys::Result<()> {
    let request = Request::Withdraw { listener: name.id };
    if let Some(socket) = control::ask(Side::Server, &request, None, WITHDRAW).ok().and_then(|answer| answer.fd) {
        return swap::swap(fd, socket);
    }
    // The ARMOR that had it is dead.
    let fresh = sys::socket(address::domain(name.family()), libc::SOCK_STREAM)?;
    bind_again(fresh.raw(), &address::kernel_form(name.local))?;
    swap::swap(fd, fresh)
}

/// Binds to an address that a dead ARMOR had, which takes effect when no child that it was starting holds a copy any more.
fn bind_again(fd: c_int, to: &sys::Address) -> sys::Result<()> {
    let until = sys::now() + FREED;
    loop {
        match sys::bind(fd, to) {
            Err(Errno(libc::EADDRINUSE)) if sys::now() < until => sys::sleep(Duration::from_millis(2)),
            result => return result,
        }
    }
}
