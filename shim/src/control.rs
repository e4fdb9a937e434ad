//! Talks to the ARMOR: one connection per request, so that nothing is shared over fork or between threads.
//!
//! An ARMOR that is being restarted is away for milliseconds; each request says how long that is waited for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use armor_proto::hookup::{CLIENT_SOCKET, DATAGRAM_LIMIT, Name, Reply, Request, Role, SERVER_SOCKET};
use libc::c_int;

use crate::complain::complain;
use crate::detour::Errno;
use crate::settings::{self, Settings};
use crate::signals;
use crate::sys::{self, Address, OwnFd};

/// Pause between two tries to reach the ARMOR.
const RETRY: Duration = Duration::from_millis(10);

/// How often an ARMOR may close the connection in place of answering before it counts as unreachable.
const LOSSES: u32 = 50;

/// After an announcement that nobody took, how long the next ones are tried only once.
const SULK: Duration = Duration::from_secs(5);

/// When the last announcement was lost, in milliseconds of [`sys::now`]; 0 never.
static LOST_AT: AtomicU64 = AtomicU64::new(0);

/// Which of the ARMOR's two sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    /// The one that answers for `name`.
    pub(crate) fn of(name: &Name) -> Self {
        match name.role {
            Role::Client => Self::Client,
            Role::Listener | Role::Server => Self::Server,
        }
    }

    pub(crate) const fn socket(self) -> &'static str {
        match self {
            Self::Client => CLIENT_SOCKET,
            Self::Server => SERVER_SOCKET,
        }
    }
}

/// How long a request may take.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// For an ARMOR to be there; anew each time it goes away in place of answering.
    pub(crate) reach: Duration,
    /// For the answer, from the beginning. `None`: as long as it takes.
    pub(crate) answer: Option<Duration>,
    /// A signal handler ends the wait.
    pub(crate) interruptible: bool,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No ARMOR within [`Patience::reach`].
    Unreachable,
    /// No answer within [`Patience::answer`].
    Silent,
    /// A signal handler ran.
    Interrupted,
    /// The ARMOR said no, or nothing that can be understood. Already complained about.
    Refused,
    /// This process cannot even ask, for want of descriptors or memory.
    Local(Errno),
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) fd: Option<OwnFd>,
}

/// Sends a request that has no reply. A lost one is the ARMOR's to find out about.
pub(crate) fn tell(side: Side, request: &Request, reach: Duration) {
    let Some(settings) = settings::active() else { return };
    let now = sys::now();
    let lost_at = Duration::from_millis(LOST_AT.load(Ordering::Relaxed));
    let sulking = !lost_at.is_zero() && now.saturating_sub(lost_at) < SULK;
    let until = if sulking { now } else { now + reach };
    let mut buffer = [0; 256];
    let Ok(length) = request.encode_into(&mut buffer) else { return };
    let sent = dial(settings, side, until).and_then(|fd| Ok(sys::send(fd.raw(), &buffer[..length], None)?));
    let lost_at = if sent.is_ok() { 0 } else { sys::now().as_millis() as u64 };
    LOST_AT.store(lost_at, Ordering::Relaxed);
}

/// Sends a request, with `passed` beside it, and waits for the answer.
pub(crate) fn ask(side: Side, request: &Request, passed: Option<c_int>, patience: Patience) -> Result<Answer, Failure> {
    let Some(settings) = settings::active() else { return Err(Failure::Unreachable) };
    let mut buffer = [0; DATAGRAM_LIMIT];
    let length = request.encode_into(&mut buffer).map_err(|_| Failure::Local(Errno(libc::EINVAL)))?;
    let mut answer_until = patience.answer.map(|answer| sys::now() + answer);
    let mut losses = 0;
    while losses < LOSSES {
        let reach_until = sys::now() + patience.reach;
        let fd = dial(settings, side, answer_until.map_or(reach_until, |until| until.min(reach_until)))?;
        let mut reply = [0; DATAGRAM_LIMIT];
        let mut exchanged = exchange(&fd, &buffer[..length], passed, answer_until, patience.interruptible, &mut reply)?;
        losses += 1;
        while let Some((length, came)) = exchanged {
            let answer = understand(&reply[..length], came)?;
            if !matches!(answer.reply, Reply::Hold) {
                return Ok(answer);
            }
            // Held for as long as it takes, and over as many deaths of the ARMOR as come.
            (answer_until, losses) = (None, 0);
            wait(&fd, None, patience.interruptible)?;
            exchanged = received(&fd, &mut reply);
        }
        if patience.reach.is_zero() {
            break;
        }
        sys::sleep(RETRY);
    }
    Err(Failure::Unreachable)
}

/// Sends a request and receives the answer. `None`: the ARMOR has closed without one.
fn exchange(
    fd: &OwnFd,
    request: &[u8],
    passed: Option<c_int>,
    until: Option<Duration>,
    interruptible: bool,
    reply: &mut [u8],
) -> Result<Option<(usize, Option<OwnFd>)>, Failure> {
    match sys::send(fd.raw(), request, passed) {
        Ok(()) => wait(fd, until, interruptible)?,
        // Who may not ask is told so before he has.
        Err(Errno(libc::EPIPE | libc::ECONNRESET)) => {}
        Err(_) => return Ok(None),
    }
    Ok(received(fd, reply))
}

/// What the ARMOR has said. `None`: it has closed instead.
fn received(fd: &OwnFd, reply: &mut [u8]) -> Option<(usize, Option<OwnFd>)> {
    let received = match sys::receive(fd.raw(), reply) {
        // It has closed with the request unread, which comes before what it had said.
        Err(Errno(libc::ECONNRESET)) => sys::receive(fd.raw(), reply),
        received => received,
    };
    received.ok().filter(|(length, _)| *length > 0)
}

fn understand(datagram: &[u8], fd: Option<OwnFd>) -> Result<Answer, Failure> {
    match Reply::decode(datagram) {
        Ok(Reply::Refused { reason }) => {
            complain(format_args!("the ARMOR refuses: {reason}"));
            Err(Failure::Refused)
        }
        Ok(reply) => Ok(Answer { reply, fd }),
        Err(error) => {
            complain(format_args!("the ARMOR's answer cannot be read: {error}"));
            Err(Failure::Refused)
        }
    }
}

/// Waits until `fd` can be read or has been closed.
fn wait(fd: &OwnFd, until: Option<Duration>, interruptible: bool) -> Result<(), Failure> {
    loop {
        let left = until.map(|until| until.saturating_sub(sys::now()));
        match sys::poll(fd.raw(), libc::POLLIN, left) {
            Ok(0) => return Err(Failure::Silent),
            Ok(_) => return Ok(()),
            Err(Errno(libc::EINTR)) if !interruptible || signals::all_restart() => {}
            Err(Errno(libc::EINTR)) => return Err(Failure::Interrupted),
            Err(errno) => return Err(Failure::Local(errno)),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        match errno.0 {
            libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS => Self::Local(errno),
            _ => Self::Unreachable,
        }
    }
}

/// Connects to the ARMOR, trying until `until`.
fn dial(settings: &Settings, side: Side, until: Duration) -> Result<OwnFd, Failure> {
    let fd = sys::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
    // With a full backlog connect would wait without bound.
    let room = until.saturating_sub(sys::now()).max(RETRY);
    let room = libc::timeval { tv_sec: room.as_secs() as _, tv_usec: room.subsec_micros() as _ };
    let mut value = [0; size_of::<libc::timeval>()];
    value[..size_of_val(&room.tv_sec)].copy_from_slice(&room.tv_sec.to_ne_bytes());
    value[size_of_val(&room.tv_sec)..].copy_from_slice(&room.tv_usec.to_ne_bytes());
    sys::set_option(fd.raw(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, &value)?;
    loop {
        match reach(settings, side, &fd) {
            Ok(()) => return Ok(fd),
            Err(Errno(libc::EINTR)) => {}
            Err(Errno(libc::ENOENT | libc::ECONNREFUSED | libc::EAGAIN)) if sys::now() < until => sys::sleep(RETRY),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Length of `sun_path`.
const PATH_LIMIT: usize = 108;

fn reach(settings: &Settings, side: Side, fd: &OwnFd) -> sys::Result<()> {
    let directory = settings.run_dir.value();
    if directory.len() + 1 + side.socket().len() < PATH_LIMIT {
        return sys::connect(fd.raw(), &unix_address(directory, side.socket()));
    }
    let directory = sys::open_directory(settings.run_dir.value_with_nul(), libc::O_PATH)?;
    let mut digits = [0; 20];
    let digits = decimal(directory.raw(), &mut digits);
    let mut path = [0; 40];
    let (prefix, rest) = path.split_at_mut(PROC.len());
    prefix.copy_from_slice(PROC);
    rest[..digits.len()].copy_from_slice(digits);
    sys::connect(fd.raw(), &unix_address(&path[..PROC.len() + digits.len()], side.socket()))
}

const PROC: &[u8] = b"/proc/self/fd/";

fn decimal(number: c_int, buffer: &mut [u8; 20]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &buffer[at..];
        }
    }
}

fn unix_address(directory: &[u8], socket: &str) -> Address {
    let mut bytes = [0; 2 + PATH_LIMIT];
    bytes[..2].copy_from_slice(&(libc::AF_UNIX as libc::sa_family_t).to_ne_bytes());
    let slash = 2 + directory.len();
    bytes[2..slash].copy_from_slice(directory);
    bytes[slash] = b'/';
    bytes[slash + 1..=slash + socket.len()].copy_from_slice(socket.as_bytes());
    Address::from_bytes(&bytes[..slash + socket.len() + 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for (number, text) in [(0, "0"), (7, "7"), (512, "512"), (i32::MAX, "2147483647")] {
            assert_eq!(decimal(number, &mut [0; 20]), text.as_bytes());
        }
    }

    #[test]
    fn a_path_is_written_with_its_nul() {
        let address = unix_address(b"/run/armor", CLIENT_SOCKET);
        assert_eq!(&address.bytes()[2..], b"/run/armor/app_comm_client.sock\0");
    }
}
