//! The one line that a client sends: `PLAY <unix-start-time-ms>\n`, thesis §4.6.
//!
//! The number is the client's wall clock when its playing started. Whoever repeats the line later
//! asks for the same bytes on the same play-out clock.
//!
//! Invariant: a line is never longer than [`LINE_LIMIT`] bytes, whatever a client sends.

use std::fmt;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use thiserror::Error;

/// Longest request line, in bytes, with its end.
pub const LINE_LIMIT: usize = 128;

/// A request to play the programme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlayRequest {
    /// When playing started, in milliseconds since 1970 by the client's clock.
    pub start_unix_ms: u64,
}

impl PlayRequest {
    /// Reads the request from a line without its end.
    ///
    /// # Errors
    /// [`RequestError`] says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, RequestError> {
        let line = std::str::from_utf8(line).map_err(|_| RequestError::NotText)?;
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("PLAY") => {}
            Some(verb) => return Err(RequestError::UnknownVerb(verb.escape_default().to_string())),
            None => return Err(RequestError::Empty),
        }
        let start = words.next().ok_or(RequestError::NoStart)?;
        if words.next().is_some() {
            return Err(RequestError::Trailing);
        }
        if !start.bytes().all(|b| b.is_ascii_digit()) {
            return Err(RequestError::BadStart(start.escape_default().to_string()));
        }
        let start_unix_ms = start.parse().map_err(|_| RequestError::BadStart(start.escape_default().to_string()))?;
        Ok(Self { start_unix_ms })
    }
}

impl fmt::Display for PlayRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PLAY {}", self.start_unix_ms)
    }
}

/// What is wrong with a request; its text follows `ERR ` in the answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// More than [`LINE_LIMIT`] bytes without an end of line.
    #[error("request line longer than {LINE_LIMIT} bytes")]
    TooLong,
    /// Bytes that are no UTF-8.
    #[error("request is not text")]
    NotText,
    /// Nothing on the line.
    #[error("empty request")]
    Empty,
    /// Something else than `PLAY`.
    #[error("unknown request {0:?}, expected PLAY <unix-start-time-ms>")]
    UnknownVerb(String),
    /// `PLAY` alone.
    #[error("PLAY needs the start time in unix milliseconds")]
    NoStart,
    /// A start that is no number.
    #[error("start time {0:?} is not a number of milliseconds")]
    BadStart(String),
    /// More after the start.
    #[error("more than PLAY <unix-start-time-ms> on the line")]
    Trailing,
    /// The connection ended before the line did.
    #[error("connection ended before the end of the request line")]
    Cut,
    /// The line did not come in time.
    #[error("no request within the time allowed")]
    Late,
    /// A start that is ahead of the server's clock by more than it waits.
    #[error("start time lies {ahead_ms} ms ahead of the server's clock, at most {limit_ms} are allowed")]
    Future {
        /// How far ahead.
        ahead_ms: u64,
        /// How far it may be.
        limit_ms: u64,
    },
}

/// Reads bytes up to the end of the line and then the request in it. `source` should time out
/// now and then (its read timeout), or a silent client is waited for without end.
///
/// # Errors
/// The outer error is the connection's; the inner one is the client's mistake.
pub fn read_request(source: &mut impl Read, allowed: Duration) -> io::Result<Result<PlayRequest, RequestError>> {
    let begun = Instant::now();
    let mut line = Vec::with_capacity(LINE_LIMIT);
    let mut byte = [0];
    while line.len() < LINE_LIMIT {
        if begun.elapsed() >= allowed {
            return Ok(Err(RequestError::Late));
        }
        match source.read(&mut byte) {
            Ok(0) if line.is_empty() => return Ok(Err(RequestError::Empty)),
            Ok(0) => return Ok(Err(RequestError::Cut)),
            Ok(_) if byte[0] == b'\n' => return Ok(PlayRequest::parse(&line)),
            Ok(_) => line.push(byte[0]),
            Err(error) if is_pause(error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Err(RequestError::TooLong))
}

/// Whether an error only says that nothing has come yet.
fn is_pause(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_request_is_read_back() {
        let request = PlayRequest { start_unix_ms: 1_763_890_123_456 };
        assert_eq!(PlayRequest::parse(request.to_string().as_bytes()), Ok(request));
        assert_eq!(PlayRequest::parse(b"PLAY 5\r"), Ok(PlayRequest { start_unix_ms: 5 }));
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        let cases: [(&[u8], RequestError); 8] = [
            (b"", RequestError::Empty),
            (b"  \r", RequestError::Empty),
            (b"GET / HTTP/1.1", RequestError::UnknownVerb("GET".into())),
            (b"PLAY", RequestError::NoStart),
            (b"PLAY now", RequestError::BadStart("now".into())),
            (b"PLAY +5", RequestError::BadStart("+5".into())),
            (b"PLAY 1 2", RequestError::Trailing),
            (b"PLAY \xff", RequestError::NotText),
        ];
        for (line, error) in cases {
            assert_eq!(PlayRequest::parse(line), Err(error), "{line:?}");
        }
        assert!(matches!(PlayRequest::parse(b"PLAY 99999999999999999999"), Err(RequestError::BadStart(_))));
    }

    #[test]
    fn a_line_is_read_from_a_connection_within_its_bounds() {
        let allowed = Duration::from_secs(60);
        let read = |bytes: &[u8]| read_request(&mut &bytes[..], allowed).unwrap();
        assert_eq!(read(b"PLAY 7\nrest"), Ok(PlayRequest { start_unix_ms: 7 }));
        assert_eq!(read(b"PLAY 7"), Err(RequestError::Cut));
        assert_eq!(read(b""), Err(RequestError::Empty));
        assert_eq!(read(&[b'x'; 100_000]), Err(RequestError::TooLong));
        assert_eq!(read_request(&mut io::empty(), Duration::ZERO).unwrap(), Err(RequestError::Late));
    }
}
