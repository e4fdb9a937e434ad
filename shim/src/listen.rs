//! `bind` and `listen`: a server's socket becomes a unix listener under the ARMOR's name for it (thesis §4.2.2).

use std::time::Duration;

use armor_proto::hookup::{Endpoint, Name, Reply, Request, Role};
use libc::{c_int, sockaddr, socklen_t};

use crate::complain::complain;
use crate::control::{self, Failure, Patience, Side};
use crate::detour::{Bypass, Detour, Errno};
use crate::settings::{self, Settings};
use crate::{address, names, real, swap, sys, tcp};

/// A service that cannot be registered must not start, but an ARMOR may be on its way up. The answer may take for
/// ever: a standby is held here until it is needed.
const REGISTER: Patience = Patience { reach: Duration::from_secs(5), answer: None, interruptible: false };

const UNREGISTER: Patience = Patience { reach: Duration::from_secs(1), answer: Some(Duration::from_secs(5)), interruptible: false };

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
    register(settings, fd, to)?;
    Ok(0)
}

/// `listen` on what [`bind`] made, or on a TCP socket that was never bound.
pub(crate) fn listen(fd: c_int, backlog: c_int) -> Detour<c_int> {
    let settings = settings::active().ok_or(Bypass::Inactive)?;
    let listener = match names::of(fd) {
        Some(name) if name.role == Role::Listener => name.id,
        Some(_) => return Err(Errno(libc::EINVAL).into()),
        None => {
            let family = tcp::idle(fd)?;
            if tcp::is_bound(fd) {
                return Err(Bypass::KernelHasIt.into());
            }
            register(settings, fd, Endpoint::unspecified(family, 0))?.id
        }
    };
    // SAFETY: no pointers.
    let result = unsafe { real::listen()(fd, backlog) };
    if result == 0 {
        let request = Request::Listening { listener, backlog, pid: sys::getpid() };
        control::tell(Side::Server, &request, Duration::from_secs(1));
    }
    Ok(result)
}

fn register(settings: &Settings, fd: c_int, addr: Endpoint) -> Result<Name, Errno> {
    let service = Some(settings.service.value()).filter(|name| !name.is_empty());
    let request = Request::Register {
        addr,
        service: service.map(|name| String::from_utf8_lossy(name).into_owned()),
        pid: sys::getpid(),
        v6_only: sys::int_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).is_ok_and(|set| set != 0),
        reuse_port: sys::int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT).is_ok_and(|set| set != 0),
    };
    let answer = control::ask(Side::Server, &request, Some(fd), REGISTER).map_err(|failure| match failure {
        Failure::Refused => Errno(libc::EACCES),
        Failure::Local(errno) => errno,
        Failure::Unreachable | Failure::Silent | Failure::Interrupted => {
            let directory = String::from_utf8_lossy(settings.run_dir.value());
            let socket = Side::Server.socket();
            complain(format_args!("cannot bind {addr}: no ARMOR answers at {directory}/{socket} (is it up?)"));
            Errno(libc::ENETDOWN)
        }
    })?;
    match answer.reply {
        Reply::Registered { errno: 0, name: Some(name), listener } => {
            stand_in(fd, &name).inspect_err(|_| {
                let _ = control::ask(Side::Server, &Request::Unregister { listener }, None, UNREGISTER);
            })?;
            Ok(name)
        }
        Reply::Registered { errno: errno @ 1.., .. } => Err(Errno(errno)),
        other => {
            complain(format_args!("cannot bind {addr}: the ARMOR answered {other:?}"));
            Err(Errno(libc::ENETDOWN))
        }
    }
}

/// Puts a unix socket that is bound to `name` in the place of `fd`.
fn stand_in(fd: c_int, name: &Name) -> sys::Result<()> {
    let socket = sys::socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
    sys::bind(socket.raw(), &names::kernel_form(name))?;
    swap::swap(fd, socket)
}

/// Takes a bound socket that will not be a listener back: `fd` becomes a TCP socket that is bound to the same address.
/// That is the very socket that was registered when the ARMOR sends it back, otherwise a new one.
pub(crate) fn withdraw(fd: c_int, name: &Name) -> sys::Result<()> {
    // The listener's name must be free before the ARMOR is told, for then it looks.
    let fresh = sys::socket(address::domain(name.family()), libc::SOCK_STREAM)?;
    swap::swap(fd, fresh)?;
    let request = Request::Unregister { listener: name.id };
    match control::ask(Side::Server, &request, None, UNREGISTER).ok().and_then(|answer| answer.fd) {
        Some(holder) => swap::swap(fd, holder),
        None => bind_again(fd, &address::kernel_form(name.local)),
    }
}

/// Binds to an address that the ARMOR has just let go of, which takes effect when no child that it is starting holds a
/// copy any more.
fn bind_again(fd: c_int, to: &sys::Address) -> sys::Result<()> {
    let until = sys::now() + Duration::from_millis(200);
    loop {
        match sys::bind(fd, to) {
            Err(Errno(libc::EADDRINUSE)) if sys::now() < until => sys::sleep(Duration::from_millis(2)),
            result => return result,
        }
    }
}
