//! A probe: asks a server one question again and again, and says of each try whether the answer was the expected one. A question that
//! expects nothing is answered by accepting its connection.
//!
//! [`Probe`] has no socket and no clock: it is polled for what it wants and told what happened. [`ask`] is the loop around it
//! that has both. Who probes decides when to stop: a server that is starting is asked until it is ready.
//!
//! Invariant: no answer of a server makes it keep more than [`KEPT`] bytes beyond what is expected, and no try takes longer
//! than its timeout.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::taken::is_accepted;
use crate::operations::ReadyQuestion;

/// How long a server may take to take a question.
const SAYING: Duration = Duration::from_secs(1);
/// Pause before it is looked again whether a server has accepted a connection.
const ACCEPTED_AGAIN: Duration = Duration::from_millis(5);
/// Bytes of an unexpected answer that are kept for people.
const KEPT: usize = 64;

/// What a probe wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// Connect to the server, and call [`Probe::connected`] or [`Probe::failed`].
    Connect,
    /// Say this, and call [`Probe::said`] or [`Probe::failed`].
    Say(&'a [u8]),
    /// Give what the server says to [`Probe::heard`]; when nothing comes until then, poll again.
    Hear(Instant),
    /// Call [`Probe::accepted`] as soon as the server has accepted the connection; when it has not until then, poll again.
    BeAccepted(Instant),
    /// Nothing to do until then.
    Rest(Instant),
    /// This try is over: close the connection, if there is one.
    Report(Outcome),
}

/// How a try went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer begins as expected.
    Fits,
    /// Another answer, none in time, or no connection; [`Probe::heard_last`] says it.
    Misses,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Resting { until: Instant },
    Connecting { began: Instant },
    Saying { began: Instant },
    Hearing { began: Instant },
    Over(Outcome),
}

/// One question to one server.
#[derive(Debug)]
pub struct Probe {
    question: ReadyQuestion,
    phase: Phase,
    heard: Vec<u8>,
    last: String,
    tries: u64,
}

impl Probe {
    /// A probe whose first try is due now.
    #[must_use]
    pub fn new(question: ReadyQuestion, now: Instant) -> Probe {
        Probe { question, phase: Phase::Resting { until: now }, heard: Vec::new(), last: String::from("nothing"), tries: 0 }
    }

    /// What to do now. After each [`Want::Report`] it rests, and then tries again.
    pub fn poll(&mut self, now: Instant) -> Want<'_> {
        let timeout = Duration::from_millis(self.question.timeout_ms);
        if let Phase::Connecting { began } | Phase::Saying { began } | Phase::Hearing { began } = self.phase
            && now >= began + timeout
        {
            let heard = if self.question.expect.0.is_empty() {
                "not accepted".to_owned()
            } else if self.heard.is_empty() {
                "nothing".to_owned()
            } else {
                format!("only {}", quoted(&self.heard))
            };
            self.failed(format!("{heard} within {} ms", self.question.timeout_ms));
        }
        match self.phase {
            Phase::Resting { until } if now < until => Want::Rest(until),
            Phase::Resting { .. } => {
                self.phase = Phase::Connecting { began: now };
                self.heard.clear();
                self.tries += 1;
                Want::Connect
            }
            Phase::Connecting { .. } => Want::Connect,
            Phase::Saying { .. } => Want::Say(&self.question.send.0),
            Phase::Hearing { began } if self.question.expect.0.is_empty() => Want::BeAccepted(began + timeout),
            Phase::Hearing { began } => Want::Hear(began + timeout),
            Phase::Over(outcome) => {
                self.phase = Phase::Resting { until: now + Duration::from_millis(self.question.interval_ms) };
                Want::Report(outcome)
            }
        }
    }

    /// The server is connected.
    pub fn connected(&mut self) {
        if let Phase::Connecting { began } = self.phase {
            self.phase = if self.question.send.0.is_empty() { Phase::Hearing { began } } else { Phase::Saying { began } };
        }
    }

    /// All that was to be said is said.
    pub fn said(&mut self) {
        if let Phase::Saying { began } = self.phase {
            self.phase = Phase::Hearing { began };
        }
    }

    /// The server has accepted the connection.
    pub fn accepted(&mut self) {
        if matches!(self.phase, Phase::Hearing { .. }) && self.question.expect.0.is_empty() {
            "it accepted the connection".clone_into(&mut self.last);
            self.phase = Phase::Over(Outcome::Fits);
        }
    }

    /// The server says `bytes`.
    pub fn heard(&mut self, bytes: &[u8]) {
        if !matches!(self.phase, Phase::Hearing { .. }) || self.question.expect.0.is_empty() {
            return;
        }
        let expect = &self.question.expect.0;
        let room = (expect.len() + KEPT).saturating_sub(self.heard.len());
        self.heard.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let length = self.heard.len().min(expect.len());
        if self.heard[..length] != expect[..length] {
            self.last = quoted(&self.heard);
            self.phase = Phase::Over(Outcome::Misses);
        } else if length == expect.len() {
            self.last = quoted(&self.heard);
            self.phase = Phase::Over(Outcome::Fits);
        }
    }

    /// This try has failed: it could not be connected, the server has closed, the time is over.
    pub fn failed(&mut self, why: impl std::fmt::Display) {
        if !matches!(self.phase, Phase::Over(_) | Phase::Resting { .. }) {
            self.last = why.to_string();
            self.phase = Phase::Over(Outcome::Misses);
        }
    }

    /// What the server answered at the last try, or why it did not, for people.
    #[must_use]
    pub fn heard_last(&self) -> &str {
        &self.last
    }

    /// How many tries have begun.
    #[must_use]
    pub fn tries(&self) -> u64 {
        self.tries
    }
}

fn quoted(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(KEPT)];
    format!("\"{}\"{}", shown.escape_ascii(), if bytes.len() > KEPT { "…" } else { "" })
}

/// Whether to go on after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Rest, and try again.
    Again,
    /// Enough.
    Stop,
}

/// Probes until somebody says that it is enough. `connect` connects to the server, or says [`None`] when there is no one to ask
/// for any more; `report` is told of each try.
pub async fn ask(
    mut probe: Probe,
    mut connect: impl FnMut() -> Option<io::Result<UnixStream>>,
    mut report: impl FnMut(&Probe, Outcome) -> Next,
) {
    let mut connection: Option<UnixStream> = None;
    let mut buffer = [0; 4096];
    loop {
        match probe.poll(Instant::now()) {
            Want::Rest(until) => tokio::time::sleep_until(until.into()).await,
            Want::Connect => match connect() {
                None => return,
                Some(Ok(socket)) => {
                    connection = Some(socket);
                    probe.connected();
                }
                Some(Err(error)) => probe.failed(error),
            },
            Want::Say(bytes) => {
                let Some(socket) = &mut connection else { return };
                // A question fits any socket's buffer; who takes none of it does not answer either.
                match tokio::time::timeout(SAYING, socket.write_all(bytes)).await {
                    Ok(Ok(())) => probe.said(),
                    Ok(Err(error)) => probe.failed(error),
                    Err(_) => probe.failed("it takes no bytes"),
                }
            }
            Want::Hear(until) => {
                let Some(socket) = &mut connection else { return };
                match tokio::time::timeout_at(until.into(), socket.read(&mut buffer)).await {
                    Ok(Ok(0)) => probe.failed("it closed the connection"),
                    Ok(Ok(length)) => probe.heard(&buffer[..length]),
                    Ok(Err(error)) => probe.failed(error),
                    // The time is over; the probe knows when it is polled.
                    Err(_) => {}
                }
            }
            Want::BeAccepted(until) => {
                let Some(socket) = &connection else { return };
                match is_accepted(socket.as_fd()) {
                    Some(true) => probe.accepted(),
                    Some(false) => tokio::time::sleep_until(until.min(Instant::now() + ACCEPTED_AGAIN).into()).await,
                    None => {
                        tracing::warn!("the kernel does not say whether connections are accepted (unix_diag): a probe passes without that");
                        probe.accepted();
                    }
                }
            }
            Want::Report(outcome) => {
                connection = None;
                if report(&probe, outcome) == Next::Stop {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::operations::SpokenBytes;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn question(send: &str, expect: &str) -> ReadyQuestion {
        ReadyQuestion { send: SpokenBytes(send.into()), expect: SpokenBytes(expect.into()), port: None, interval_ms: 20, timeout_ms: 1000 }
    }

    /// A probe that waits for its answer.
    fn hearing(question: ReadyQuestion, now: Instant) -> Probe {
        let mut probe = Probe::new(question, now);
        assert_eq!(probe.poll(now), Want::Connect);
        probe.connected();
        probe.said();
        assert!(matches!(probe.poll(now), Want::Hear(_)));
        probe
    }

    #[test]
    fn an_answer_that_comes_in_pieces_fits_as_soon_as_its_beginning_is_there() {
        let now = Instant::now();
        let mut probe = Probe::new(question("PING\r\n", "+PONG"), now);
        assert_eq!(probe.poll(now), Want::Connect);
        probe.connected();
        assert_eq!(probe.poll(now), Want::Say(b"PING\r\n"));
        probe.said();
        probe.heard(b"+PO");
        assert!(matches!(probe.poll(now), Want::Hear(_)), "the beginning of the beginning is no answer");
        probe.heard(b"NG\r\n");
        assert_eq!(probe.poll(now), Want::Report(Outcome::Fits));
        assert_eq!(probe.tries(), 1);
    }

    #[test]
    fn another_answer_misses_at_its_first_other_byte_and_is_asked_again_after_the_pause() {
        let now = Instant::now();
        let mut probe = hearing(question("PING\r\n", "+PONG"), now);
        probe.heard(b"-LOADING Redis is loading the dataset in memory\r\n");
        assert_eq!(probe.poll(now), Want::Report(Outcome::Misses));
        assert_eq!(probe.heard_last(), "\"-LOADING Redis is loading the dataset in memory\\r\\n\"");
        let again = now + Duration::from_millis(20);
        assert_eq!(probe.poll(now), Want::Rest(again));
        assert_eq!(probe.poll(again), Want::Connect);
        assert_eq!(probe.tries(), 2);
    }

    #[test]
    fn a_server_that_speaks_first_is_told_nothing() {
        let now = Instant::now();
        let mut probe = Probe::new(question("", "220 "), now);
        assert_eq!(probe.poll(now), Want::Connect);
        probe.connected();
        assert!(matches!(probe.poll(now), Want::Hear(_)));
        probe.heard(b"220 ready");
        assert_eq!(probe.poll(now), Want::Report(Outcome::Fits));
    }

    #[test]
    fn silence_misses_when_the_time_is_over_and_what_was_heard_of_the_answer_is_told() {
        let now = Instant::now();
        let mut probe = hearing(question("x", "ready"), now);
        let end = now + Duration::from_millis(1000);
        assert_eq!(probe.poll(now), Want::Hear(end));
        probe.heard(b"rea");
        assert_eq!(probe.poll(end), Want::Report(Outcome::Misses));
        assert_eq!(probe.heard_last(), "only \"rea\" within 1000 ms");
    }

    #[test]
    fn a_question_that_expects_nothing_is_answered_by_accepting_and_by_nothing_else() {
        let now = Instant::now();
        let mut probe = Probe::new(question("", ""), now);
        assert_eq!(probe.poll(now), Want::Connect);
        probe.accepted();
        probe.connected();
        let end = now + Duration::from_millis(1000);
        probe.heard(b"anything");
        assert_eq!(probe.poll(now), Want::BeAccepted(end));
        assert_eq!(probe.poll(end), Want::Report(Outcome::Misses));
        assert_eq!(probe.heard_last(), "not accepted within 1000 ms");
        let again = end + Duration::from_millis(20);
        assert_eq!(probe.poll(end), Want::Rest(again));
        assert_eq!(probe.poll(again), Want::Connect);
        probe.connected();
        probe.accepted();
        assert_eq!(probe.poll(again), Want::Report(Outcome::Fits));
    }

    #[test]
    fn a_long_answer_is_not_kept() {
        let now = Instant::now();
        let mut probe = hearing(question("x", &"a".repeat(1000)), now);
        for _ in 0..100 {
            probe.heard(&[b'a'; 999]);
        }
        assert!(probe.heard.len() <= 1000 + KEPT);
        assert_eq!(probe.poll(now), Want::Report(Outcome::Fits));
        assert!(probe.heard_last().len() < 100);
    }

    #[test]
    fn what_comes_at_the_wrong_time_changes_nothing() {
        let now = Instant::now();
        let mut probe = Probe::new(question("x", "y"), now);
        probe.heard(b"y");
        probe.said();
        probe.failed("early");
        assert_eq!(probe.poll(now), Want::Connect);
        probe.failed("nobody listens");
        probe.heard(b"y");
        assert_eq!(probe.poll(now), Want::Report(Outcome::Misses));
        assert_eq!(probe.heard_last(), "nobody listens");
    }

    #[tokio::test]
    async fn a_server_is_asked_until_it_answers_as_expected() {
        // What the server does at each try.
        let mut answers = vec![Err("nobody"), Ok(""), Ok("-LOADING"), Ok("+PONG\r\n")].into_iter();
        let mut kept = Vec::new();
        let connect = || match answers.next()? {
            Err(_) => Some(Err(io::Error::from(io::ErrorKind::ConnectionRefused))),
            Ok(answer) => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let (own, server) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
                rustix::io::write(&server, answer.as_bytes()).unwrap();
                if answer.is_empty() {
                    drop(server);
                } else {
                    kept.push(server);
                }
                Some(UnixStream::from_std(own.into()))
            }
        };
        let mut told = Vec::new();
        let report = |probe: &Probe, outcome| {
            told.push((outcome, probe.heard_last().to_owned()));
            if outcome == Outcome::Fits { Next::Stop } else { Next::Again }
        };
        ask(Probe::new(question("PING\r\n", "+PONG"), Instant::now()), connect, report).await;
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told[..3].iter().all(|(outcome, _)| *outcome == Outcome::Misses), "{told:?}");
        assert_eq!((told[2].1.as_str(), told[3].0), ("\"-LOADING\"", Outcome::Fits));
        for server in kept {
            let mut heard = [0; 64];
            assert_eq!(rustix::io::read(&server, &mut heard), Ok(6));
            assert_eq!(&heard[..6], b"PING\r\n");
            assert_eq!(rustix::io::read(&server, &mut heard), Ok(0), "asked once, then closed");
        }
    }
}
