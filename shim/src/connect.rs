//! `connect`: a client's socket becomes a unix connection to its ARMOR (thesis §4.2.1).
//!
//! A connect that does not end at once, by O_NONBLOCK, a signal or SO_SNDTIMEO, goes on in the ARMOR: the socket given
//! to the program is pending, which is to say full, and [`ConnectState`] tells how it went.

use std::mem::size_of;
use std::time::Duration;

use armor_proto::hookup::{ConnectState, Endpoint, Name, Reply, Request, Role};
use libc::{c_int, sockaddr, socklen_t};

use crate::control::{self, Answer, Failure, Patience, Side};
use crate::detour::{Aside, Bypass, Detour, Errno};
use crate::{address, listen, names, settings, signals, swap, sys, tcp};

/// Longest wait of a blocking connect: the ARMOR has its own, shorter limit, so this is for one that is stuck.
const ANSWER: Duration = Duration::from_secs(35);

/// Longest wait of a non-blocking connect for the ARMOR to say that it has begun.
const BEGUN: Duration = Duration::from_secs(1);

/// How long a connect to this machine waits for an ARMOR that may be restarting.
const REACH: Duration = Duration::from_secs(1);

/// `connect` of a TCP socket.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn connect(fd: c_int, to: *const sockaddr, length: socklen_t) -> Detour<c_int> {
    if !settings::is_active() {
        return Err(Bypass::Inactive.into());
    }
    // SAFETY: the caller's promise.
    let to = unsafe { address::read(to, length) }.ok_or(Bypass::NotIp)?;
    let Some(name) = names::of(fd) else {
        let family = tcp::idle(fd)?;
        if family != to.family() || to.port == 0 || to.ip.is_multicast() {
            return Err(Bypass::NotIp.into());
        }
        return begin(Attempt { fd, to, holder: fd });
    };
    match name.role {
        Role::Listener => from_bound(fd, &name, to),
        Role::Client => again(fd, to),
        Role::Server => Err(Errno(libc::EISCONN).into()),
    }
}

/// One try to connect.
struct Attempt {
    fd: c_int,
    to: Endpoint,
    /// TCP socket for the ARMOR to hold.
    holder: c_int,
}

fn begin(attempt: Attempt) -> Detour<c_int> {
    if tcp::is_nonblocking(attempt.fd) {
        let answer = attempt.ask(true, Some(BEGUN), false).map_err(unserved)?;
        return attempt.take(answer, true);
    }
    let limit = send_timeout(attempt.fd);
    let failure = match attempt.ask(false, Some(limit.unwrap_or(ANSWER)), true) {
        Ok(answer) => return attempt.take(answer, false),
        Err(failure) => failure,
    };
    let errno = match failure {
        Failure::Interrupted => libc::EINTR,
        Failure::Silent if limit.is_some() => libc::EINPROGRESS,
        Failure::Silent => return Err(Errno(libc::ETIMEDOUT).into()),
        other => return Err(unserved(other)),
    };
    // The program may now wait for the outcome as if it had been a non-blocking connect.
    match attempt.ask(true, Some(BEGUN), false).map(|answer| attempt.take(answer, true)) {
        Ok(Err(Aside::Error(Errno(libc::EINPROGRESS)))) | Err(_) => Err(Errno(errno).into()),
        Ok(decided) => decided,
    }
}

impl Attempt {
    fn ask(&self, nonblocking: bool, answer: Option<Duration>, interruptible: bool) -> Result<Answer, Failure> {
        let request = Request::Connect { addr: self.to, nonblocking, descriptor: self.fd, pid: sys::getpid() };
        let here = self.to.ip.to_canonical();
        let reach = if here.is_loopback() || here.is_unspecified() { REACH } else { Duration::ZERO };
        control::ask(Side::Client, &request, Some(self.holder), Patience { reach, answer, interruptible })
    }

    fn take(&self, answer: Answer, nonblocking: bool) -> Detour<c_int> {
        match (answer.reply, answer.fd) {
            (Reply::Bypass, _) => Err(Bypass::NotAService.into()),
            (Reply::Connected { errno: 0, pending, .. }, Some(socket)) => {
                swap::swap(self.fd, socket)?;
                match (pending, nonblocking) {
                    (false, _) => Ok(0),
                    (true, true) => Err(Errno(libc::EINPROGRESS).into()),
                    (true, false) => outcome(self.fd, send_timeout(self.fd)),
                }
            }
            (Reply::Connected { errno: errno @ 1.., .. }, _) => Err(Errno(errno).into()),
            _ => Err(Errno(libc::ECONNABORTED).into()),
        }
    }
}

/// There is no answer: the kernel may try.
fn unserved(failure: Failure) -> Aside {
    match failure {
        Failure::Local(errno) => errno.into(),
        Failure::Refused => Bypass::Refused.into(),
        Failure::Unreachable | Failure::Silent | Failure::Interrupted => Bypass::Unreachable.into(),
    }
}

/// The socket was bound to an address of its own choice first: it becomes a bound TCP socket again.
fn from_bound(fd: c_int, name: &Name, to: Endpoint) -> Detour<c_int> {
    if sys::int_option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).is_ok_and(|listens| listens != 0) {
        return Err(Errno(libc::EISCONN).into());
    }
    if name.family() != to.family() {
        return Err(Errno(libc::EAFNOSUPPORT).into());
    }
    listen::withdraw(fd, name)?;
    begin(Attempt { fd, to, holder: fd })
}

/// `connect` once more on a client's socket: asks how the first went, or tries again when that is known to have failed.
fn again(fd: c_int, to: Endpoint) -> Detour<c_int> {
    match state(fd) {
        ConnectState::Established => Err(Errno(libc::EISCONN).into()),
        ConnectState::Pending if tcp::is_nonblocking(fd) => Err(Errno(libc::EALREADY).into()),
        ConnectState::Pending => outcome(fd, send_timeout(fd)),
        failed => match sys::int_option(fd, libc::SOL_SOCKET, libc::SO_ERROR) {
            Ok(0) => {
                let holder = sys::socket(address::domain(to.family()), libc::SOCK_STREAM)?;
                begin(Attempt { fd, to, holder: holder.raw() })
            }
            _ => Err(errno(failed).into()),
        },
    }
}

/// Waits for the outcome of a pending connect.
fn outcome(fd: c_int, limit: Option<Duration>) -> Detour<c_int> {
    let until = sys::now() + limit.unwrap_or(ANSWER);
    loop {
        match sys::poll(fd, libc::POLLOUT, Some(until.saturating_sub(sys::now()))) {
            Ok(0) => return Err(Errno(if limit.is_some() { libc::EINPROGRESS } else { libc::ETIMEDOUT }).into()),
            Err(Errno(libc::EINTR)) if signals::all_restart() => continue,
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        match state(fd) {
            ConnectState::Established => return Ok(0),
            failed => {
                let _ = sys::int_option(fd, libc::SOL_SOCKET, libc::SO_ERROR);
                return Err(errno(failed).into());
            }
        }
    }
}

/// State of a client's connect, as the ARMOR keeps it in the kernel.
pub(crate) fn state(fd: c_int) -> ConnectState {
    sys::int_option(fd, libc::SOL_SOCKET, libc::SO_PRIORITY).map_or(ConnectState::Established, ConnectState::from_priority)
}

/// The error that stands for a failed connect.
pub(crate) fn errno(failed: ConnectState) -> Errno {
    Errno(match failed {
        ConnectState::TimedOut => libc::ETIMEDOUT,
        ConnectState::Unreachable => libc::ENETUNREACH,
        ConnectState::Reset => libc::ECONNRESET,
        // Pending with the ARMOR gone is a refusal.
        ConnectState::Refused | ConnectState::Pending | ConnectState::Established => libc::ECONNREFUSED,
    })
}

/// The error that the kernel's ECONNRESET on `fd` stands for, when that is a client whose connect has failed.
pub(crate) fn failure(fd: c_int) -> Option<Errno> {
    names::of(fd).filter(|name| name.role == Role::Client)?;
    match state(fd) {
        ConnectState::Established => None,
        failed => Some(errno(failed)),
    }
}

fn send_timeout(fd: c_int) -> Option<Duration> {
    let mut value = [0; size_of::<libc::timeval>()];
    sys::get_option(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &mut value).ok()?;
    // SAFETY: a timeval is two integers; any bytes are one.
    let time = unsafe { value.as_ptr().cast::<libc::timeval>().read_unaligned() };
    let time = Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    (!time.is_zero()).then_some(time)
}
