//! The server: one thread for each client, thesis §4.6.
//!
//! `socket`, `bind`, `listen`, `accept` in one thread; a thread per connection reads the request
//! line, and writes head and packets by the play-out clock of [`Schedule`].
//!
//! Invariant: what a client does (silence, nonsense, slowness, leaving) costs its own connection
//! alone; the number of connections and the time each may stand still are bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use crate::programme::Programme;
use crate::request::{PlayRequest, RequestError, read_request};
use crate::schedule::Schedule;

/// How long a client may take for its request line.
pub const REQUEST_ALLOWED: Duration = Duration::from_secs(10);

/// How far a client's start may lie ahead of the server's clock, in milliseconds.
pub const START_AHEAD_LIMIT_MS: u64 = 10_000;

/// Longest single write while a stream catches up, in bytes.
const BURST: u64 = 64 * 1024;

/// How long the end of a connection may take: the client is to read what is under way.
const FAREWELL: Duration = Duration::from_secs(2);

/// `accept` may fail this often in a row (out of descriptors, say) before the server gives up.
const ACCEPT_FAILURES_LIMIT: u32 = 100;

/// Settings of a server that are not its address nor its programme.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// How many times faster than real time.
    pub speed: f64,
    /// Connections at a time; more are told `ERR` and closed.
    pub max_clients: usize,
    /// How long a client may take nothing before it is dropped.
    pub stall: Duration,
    /// Whether to write a line to stderr for what happens to each client.
    pub log_clients: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { speed: 1.0, max_clients: 256, stall: Duration::from_secs(60), log_clients: true }
    }
}

/// Why a server does not serve (any more).
#[derive(Debug, Error)]
pub enum ServerError {
    /// The address is of no use: taken, not this machine's, not allowed, not an address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// `accept` fails again and again.
    #[error("cannot accept connections: {0}")]
    Accept(#[source] io::Error),
}

/// Binds `address` (`host:port`, port 0 for a free one) and listens.
///
/// # Errors
/// [`ServerError::Listen`].
pub fn listen(address: &str) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).map_err(|source| ServerError::Listen { address: address.to_owned(), source })
}

/// A programme and those who listen to it.
pub struct Server {
    listener: TcpListener,
    programme: Arc<Programme>,
    config: ServerConfig,
    clients: Arc<AtomicUsize>,
}

impl Server {
    /// A server for connections that come to `listener`.
    pub fn new(listener: TcpListener, programme: Programme, config: ServerConfig) -> Self {
        Self { listener, programme: Arc::new(programme), config, clients: Arc::default() }
    }

    /// Accepts clients without end.
    ///
    /// # Errors
    /// [`ServerError::Accept`] when the listening socket does not work any more.
    pub fn run(&self) -> Result<(), ServerError> {
        let mut failures = 0;
        loop {
            match self.listener.accept() {
                Ok((socket, peer)) => {
                    failures = 0;
                    self.admit(socket, peer);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    failures += 1;
                    if failures >= ACCEPT_FAILURES_LIMIT {
                        return Err(ServerError::Accept(error));
                    }
                    eprintln!("audio-server: accept: {error}");
                    // Out of descriptors or memory: streams that end will free some.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Starts the thread of a client. One that finds no place is told so, also in a thread (it may
    /// take a moment to listen), and those beyond twice the places are closed without a word.
    fn admit(&self, socket: TcpStream, peer: SocketAddr) {
        let place = Place::take(&self.clients);
        if place.number > self.config.max_clients.saturating_mul(2) {
            return;
        }
        let (programme, config) = (Arc::clone(&self.programme), self.config.clone());
        let started = thread::Builder::new().name(format!("client {peer}")).stack_size(256 * 1024).spawn(move || {
            let (place, begun) = (place, Instant::now());
            let served = if place.number > config.max_clients { turn_away(&socket, &config) } else { serve(&socket, &programme, &config) };
            if config.log_clients {
                let ending = served.unwrap_or_else(Ending::Socket);
                eprintln!("audio-server: {peer}: {ending} after {:.2} s", begun.elapsed().as_secs_f64());
            }
        });
        if let Err(error) = started {
            eprintln!("audio-server: {peer}: no thread: {error}");
        }
    }
}

/// A client's place among those that are served; free again when dropped.
struct Place {
    clients: Arc<AtomicUsize>,
    number: usize,
}

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Self {
        let number = clients.fetch_add(1, Ordering::Relaxed) + 1;
        Self { clients: Arc::clone(clients), number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a connection ended, for the log.
#[derive(Debug, Error)]
enum Ending {
    #[error("complete, {bytes} bytes ({caught_up} packets were past due at the start)")]
    Complete { bytes: u64, caught_up: u64 },
    #[error("refused: {0}")]
    Refused(RequestError),
    #[error("turned away, there are too many clients")]
    TurnedAway,
    #[error("left at byte {at}: {source}")]
    Left { at: u64, source: io::Error },
    #[error("took nothing for {} s, dropped at byte {at}", stall.as_secs())]
    Stalled { at: u64, stall: Duration },
    #[error("socket: {0}")]
    Socket(#[source] io::Error),
}

/// One connection from its request to its end.
fn serve(mut socket: &TcpStream, programme: &Programme, config: &ServerConfig) -> io::Result<Ending> {
    bound_waiting(socket, config)?;
    // A packet is due now, not when more of them have gathered.
    socket.set_nodelay(true)?;
    let request = read_request(&mut socket, REQUEST_ALLOWED)?.and_then(|request| PlayClock::start(request, SystemTime::now()));
    let ending = match request {
        Ok(clock) => stream(socket, programme, config, &clock),
        Err(error) => {
            let _ = socket.write_all(format!("ERR {error}\n").as_bytes());
            Ending::Refused(error)
        }
    };
    if matches!(ending, Ending::Complete { .. } | Ending::Refused(_)) {
        say_farewell(socket);
    }
    Ok(ending)
}

/// Answers a client for whom there is no place.
fn turn_away(mut socket: &TcpStream, config: &ServerConfig) -> io::Result<Ending> {
    bound_waiting(socket, config)?;
    socket.write_all(b"ERR too many clients\n")?;
    say_farewell(socket);
    Ok(Ending::TurnedAway)
}

/// So that no read and no write waits for a client without end.
fn bound_waiting(socket: &TcpStream, config: &ServerConfig) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.set_write_timeout(Some(config.stall.max(Duration::from_millis(1))))
}

/// Writes head and packets, each when it is due.
fn stream(mut socket: &TcpStream, programme: &Programme, config: &ServerConfig, clock: &PlayClock) -> Ending {
    let schedule = Schedule::new(programme.header(), config.speed);
    let head = programme.header().encode();
    let mut written = 0;
    let failed = |at, source: io::Error| match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Ending::Stalled { at, stall: config.stall },
        _ => Ending::Left { at, source },
    };
    if let Err(error) = socket.write_all(&head) {
        return failed(written, error);
    }
    written += head.len() as u64;
    let caught_up = clock.elapsed().map_or(0, |elapsed| schedule.packets_due(elapsed) - 1);
    let mut buffer = vec![0; BURST as usize];
    let mut sent = 0;
    while sent < schedule.packets() {
        let due = match clock.elapsed() {
            Ok(elapsed) => schedule.packets_due(elapsed),
            Err(ahead) => {
                thread::sleep(ahead);
                continue;
            }
        };
        if due == sent {
            if let Ok(elapsed) = clock.elapsed() {
                thread::sleep(schedule.due(sent).saturating_sub(elapsed));
            }
            continue;
        }
        let range = schedule.payload_range(sent..due);
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(BURST) as usize;
            programme.read_at(at, &mut buffer[..len]);
            if let Err(error) = socket.write_all(&buffer[..len]) {
                return failed(written, error);
            }
            at += len as u64;
            written += len as u64;
        }
        sent = due;
    }
    Ending::Complete { bytes: written, caught_up }
}

/// Ends the stream and waits a moment for the client's end. Closing at once would reset the
/// connection, if the client has sent more than was read, and destroy what is under way.
fn say_farewell(mut socket: &TcpStream) {
    let _ = socket.shutdown(Shutdown::Write);
    let begun = Instant::now();
    let mut rest = [0; 4096];
    while begun.elapsed() < FAREWELL {
        match socket.read(&mut rest) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
}

/// Time since a client's start: from the wall clock once, and then monotonic.
struct PlayClock {
    /// What had passed at `read_at`, or what was missing.
    at_reading: Result<Duration, Duration>,
    read_at: Instant,
}

impl PlayClock {
    fn start(request: PlayRequest, now: SystemTime) -> Result<Self, RequestError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = Duration::from_millis(request.start_unix_ms);
        let at_reading = now.checked_sub(start).ok_or_else(|| start.saturating_sub(now));
        if let Err(ahead) = at_reading {
            let ahead_ms = u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX);
            if ahead_ms > START_AHEAD_LIMIT_MS {
                return Err(RequestError::Future { ahead_ms, limit_ms: START_AHEAD_LIMIT_MS });
            }
        }
        Ok(Self { at_reading, read_at: Instant::now() })
    }

    /// Time since the start, or as an error the time until it.
    fn elapsed(&self) -> Result<Duration, Duration> {
        let since = self.read_at.elapsed();
        match self.at_reading {
            Ok(passed) => Ok(passed.saturating_add(since)),
            Err(ahead) => since.checked_sub(ahead).ok_or_else(|| ahead.saturating_sub(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn clock(start_unix_ms: u64, now_ms: u64) -> Result<PlayClock, RequestError> {
        PlayClock::start(PlayRequest { start_unix_ms }, UNIX_EPOCH + Duration::from_millis(now_ms))
    }

    #[test]
    fn a_start_in_the_past_counts_from_there() {
        let elapsed = clock(1_000, 61_000).unwrap().elapsed().unwrap();
        assert!(elapsed >= Duration::from_secs(60));
    }

    #[test]
    fn a_start_shortly_ahead_is_waited_for_and_one_far_ahead_refused() {
        let ahead = clock(15_000, 6_000).unwrap().elapsed().unwrap_err();
        assert!(ahead <= Duration::from_secs(9));
        assert!(matches!(clock(90_000, 6_000), Err(RequestError::Future { ahead_ms: 84_000, .. })));
        assert!(clock(u64::MAX, 0).is_err());
    }
}
