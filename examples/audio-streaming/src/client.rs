//! The client: connects, asks, receives, plays each packet as it arrives (thesis §4.6, §6.1).
//!
//! `Reception` is the client without its socket: it is given what arrived and when. [`play`]
//! is the socket around it.
//!
//! Invariant: a stream is complete only when as many bytes came as its head announced and the
//! server then ended it; whatever else happens has another [`Outcome`].

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::arrivals::{ArrivalRecorder, millis};
use crate::playback::{Player, PlayerSink, WavSink};
use crate::progress::{Meter, ProgressDisplay, ProgressStyle};
use crate::report::{Outcome, Report};
use crate::request::PlayRequest;
use crate::schedule::Schedule;
use crate::wav::{StreamHeader, WavError};

/// How long after the last announced byte the server's end of stream is waited for.
const END_ALLOWED: Duration = Duration::from_secs(5);

/// How many bytes past the announced end are read (to say how many there are) before giving up.
const EXTRA_LIMIT: u64 = 1 << 20;

/// What the client is to do.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Address of the server, `host:port`.
    pub server: String,
    /// WAV file for what is received.
    pub out: Option<PathBuf>,
    /// Program for what is received.
    pub player: Option<Player>,
    /// Time between the first packet and the begin of (simulated) playing.
    pub playout_buffer: Duration,
    /// Speed at which packets are expected.
    pub speed: f64,
    /// How long to wait while nothing comes.
    pub stall: Duration,
    /// How to show progress.
    pub progress: ProgressStyle,
}

/// What a run of the client gives.
#[derive(Debug)]
pub struct Played {
    /// The report.
    pub report: Report,
    /// Lateness of each packet in microseconds.
    pub lateness_us: Vec<i64>,
}

/// What went wrong on this machine; everything else is an [`Outcome`].
#[derive(Debug, Error)]
pub enum ClientError {
    /// The output file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// Plays the server's programme to its end.
///
/// # Errors
/// [`ClientError`] when the audio cannot be stored.
pub fn play(config: &ClientConfig) -> Result<Played, ClientError> {
    let mut socket = match TcpStream::connect(&config.server) {
        Ok(socket) => socket,
        Err(error) => {
            let ending = Ending { outcome: Outcome::ConnectFailed, detail: format!("cannot connect: {error}") };
            return Reception::new(config, Arc::default()).finish(ending, start_now().1, Duration::ZERO);
        }
    };
    let (start, start_unix_ms) = start_now();
    let meter = Arc::new(Meter::default());
    let display = ProgressDisplay::start(config.progress, Arc::clone(&meter), start);
    let mut reception = Reception::new(config, meter);
    let ending = match send_request(&mut socket, PlayRequest { start_unix_ms }, config) {
        Ok(()) => receive(&mut socket, &mut reception, start)?,
        Err(error) => lost(&error, "sending the request"),
    };
    let duration = start.elapsed();
    drop(display);
    reception.finish(ending, start_unix_ms, duration)
}

fn send_request(socket: &mut TcpStream, request: PlayRequest, config: &ClientConfig) -> io::Result<()> {
    socket.set_read_timeout(Some(config.stall.max(Duration::from_millis(1))))?;
    socket.write_all(format!("{request}\n").as_bytes())
}

/// Reads until the stream has ended one way or another.
fn receive(socket: &mut TcpStream, reception: &mut Reception<'_>, start: Instant) -> Result<Ending, ClientError> {
    let mut buffer = vec![0; 64 * 1024];
    let mut waits_for_end = false;
    loop {
        let came = socket.read(&mut buffer);
        let at = start.elapsed();
        match came {
            Ok(0) => return Ok(reception.at_end()),
            Ok(len) => {
                if let Some(ending) = reception.arrived(at, &buffer[..len])? {
                    return Ok(ending);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Ok(reception.at_error(&error)),
        }
        if reception.has_all() && !waits_for_end {
            waits_for_end = true;
            // Should this fail, the longer wait remains.
            let _ = socket.set_read_timeout(Some(END_ALLOWED));
        }
    }
}

/// The start on both clocks: the same moment, the last whole millisecond of the wall clock.
fn start_now() -> (Instant, u64) {
    let (now, since) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let past_millisecond = Duration::from_nanos(u64::from(since.subsec_nanos() % 1_000_000));
    let start = now.checked_sub(past_millisecond).unwrap_or(now);
    (start, u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// How a stream ended, and in words.
struct Ending {
    outcome: Outcome,
    detail: String,
}

fn lost(error: &io::Error, doing: &str) -> Ending {
    let outcome = match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::Stalled,
        _ => Outcome::Reset,
    };
    Ending { outcome, detail: format!("{doing}: {error}") }
}

/// The stream as far as it was received.
struct Reception<'a> {
    config: &'a ClientConfig,
    meter: Arc<Meter>,
    hasher: Sha256,
    received: u64,
    /// Bytes of the head, until it is whole.
    head: Vec<u8>,
    stream: Option<Stream>,
}

/// What there is once the head is known.
struct Stream {
    header: StreamHeader,
    /// Bytes of head and payload together.
    total: u64,
    recorder: ArrivalRecorder,
    file: Option<WavSink>,
    player: Option<PlayerSink>,
}

impl<'a> Reception<'a> {
    fn new(config: &'a ClientConfig, meter: Arc<Meter>) -> Self {
        Self { config, meter, hasher: Sha256::new(), received: 0, head: Vec::new(), stream: None }
    }

    /// Takes what came `at` this time since the start. Gives the ending when it ends the stream.
    fn arrived(&mut self, at: Duration, bytes: &[u8]) -> Result<Option<Ending>, ClientError> {
        self.hasher.update(bytes);
        self.received += bytes.len() as u64;
        self.meter.set_received(self.received);
        let failed = output_error(self.config);
        if let Some(stream) = &mut self.stream {
            let before = self.received - bytes.len() as u64;
            stream.payload(at, before, bytes).map_err(failed)?;
            let flood = self.received.saturating_sub(stream.total) > EXTRA_LIMIT;
            return Ok(flood.then(|| self.at_end()));
        }
        self.head.extend_from_slice(bytes);
        match StreamHeader::parse(&self.head) {
            Ok(None) => Ok(None),
            Ok(Some((header, head_len))) => {
                let mut stream = Stream::begin(self.config, header, head_len).map_err(&failed)?;
                self.meter.set_expected(stream.total);
                let rest = std::mem::take(&mut self.head);
                stream.payload(at, head_len as u64, &rest[head_len..]).map_err(failed)?;
                self.stream = Some(stream);
                Ok(None)
            }
            // An answer in words may come in parts: its end tells more.
            Err(WavError::NotWav) if self.is_answer() => Ok(self.refusal()),
            Err(error) => Ok(Some(Ending { outcome: Outcome::BadStream, detail: error.to_string() })),
        }
    }

    fn is_answer(&self) -> bool {
        let seen = self.head.len().min(4);
        self.head[..seen] == b"ERR "[..seen] && self.head.len() < 1024
    }

    fn refusal(&self) -> Option<Ending> {
        let line = self.head.strip_suffix(b"\n")?;
        let answer = String::from_utf8_lossy(line).escape_debug().to_string();
        Some(Ending { outcome: Outcome::Refused, detail: format!("server answered {answer}") })
    }

    /// Whether every announced byte has come.
    fn has_all(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| self.received >= stream.total)
    }

    /// The server ended the stream.
    fn at_end(&self) -> Ending {
        match &self.stream {
            Some(stream) if self.received == stream.total => Ending { outcome: Outcome::Complete, detail: "the whole programme".into() },
            Some(stream) if self.received > stream.total => {
                let extra = self.received - stream.total;
                Ending { outcome: Outcome::TooLong, detail: format!("{extra} bytes more than announced") }
            }
            Some(stream) => Ending {
                outcome: Outcome::EarlyEof,
                detail: format!("{} bytes ({:.2} s) are missing", stream.missing(self.received), stream.missing_s(self.received)),
            },
            None => Ending { outcome: Outcome::EarlyEof, detail: "the stream ended before its head".into() },
        }
    }

    /// The connection broke, or nothing came for too long.
    fn at_error(&self, error: &io::Error) -> Ending {
        // When all is here, how the connection goes away does not matter any more.
        if self.has_all() {
            let mut ending = self.at_end();
            ending.detail.push_str(&format!(" (the connection did not end in order: {error})"));
            return ending;
        }
        let mut ending = lost(error, "receiving");
        if let Some(stream) = &self.stream {
            ending.detail.push_str(&format!(", {} bytes are missing", stream.missing(self.received)));
        }
        ending
    }

    /// Closes files and player, and writes up what there was.
    fn finish(self, ending: Ending, start_unix_ms: u64, duration: Duration) -> Result<Played, ClientError> {
        let mut report = Report {
            outcome: ending.outcome,
            detail: ending.detail,
            server: self.config.server.clone(),
            start_unix_ms,
            duration_ms: millis(duration),
            bytes_received: self.received,
            bytes_expected: None,
            bytes_missing: None,
            bytes_extra: 0,
            sha256: format!("{:x}", self.hasher.finalize()),
            format: None,
            speed: self.config.speed,
            sinks: Vec::new(),
            player_dropped_bytes: 0,
            arrivals: None,
        };
        let mut lateness_us = Vec::new();
        if let Some(stream) = self.stream {
            report.bytes_expected = Some(stream.total);
            report.bytes_missing = Some(stream.missing(self.received));
            report.bytes_extra = self.received.saturating_sub(stream.total);
            report.format = Some(stream.header.format);
            report.arrivals = Some(stream.recorder.summary());
            lateness_us = stream.recorder.lateness_us().to_vec();
            if let Some(file) = stream.file {
                file.finish().map_err(output_error(self.config))?;
                report.sinks.extend(self.config.out.iter().map(|path| path.display().to_string()));
            }
            if let Some(player) = stream.player {
                report.player_dropped_bytes = player.finish();
                report.sinks.extend(self.config.player.iter().map(|player| player.name().to_owned()));
            }
        }
        Ok(Played { report, lateness_us })
    }
}

fn output_error(config: &ClientConfig) -> impl Fn(io::Error) -> ClientError {
    let path = config.out.clone().unwrap_or_default();
    move |source| ClientError::Output { path: path.clone(), source }
}

impl Stream {
    fn begin(config: &ClientConfig, header: StreamHeader, head_len: usize) -> io::Result<Self> {
        let schedule = Schedule::new(header, config.speed);
        let file = config.out.as_ref().map(|path| WavSink::create(path, header)).transpose()?;
        let player = config.player.as_ref().and_then(|player| {
            let started = player.start(header.format);
            if let Err(error) = &started {
                eprintln!("audio-client: {} does not start: {error}", player.name());
            }
            started.ok()
        });
        Ok(Self {
            header,
            total: head_len as u64 + header.payload_len(),
            recorder: ArrivalRecorder::new(schedule, config.playout_buffer),
            file,
            player,
        })
    }

    /// Takes payload that begins at byte `from` of the stream; what is past the end is no audio.
    fn payload(&mut self, at: Duration, from: u64, bytes: &[u8]) -> io::Result<()> {
        let room = self.total.saturating_sub(from).min(bytes.len() as u64) as usize;
        let audio = &bytes[..room];
        if audio.is_empty() {
            return Ok(());
        }
        self.recorder.arrived(at, audio.len() as u64);
        if let Some(player) = &mut self.player {
            player.write(audio);
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write(audio))
    }

    fn missing(&self, received: u64) -> u64 {
        self.total.saturating_sub(received)
    }

    fn missing_s(&self, received: u64) -> f64 {
        self.missing(received) as f64 / f64::from(self.header.format.bytes_per_second())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::programme::Programme;
    use crate::wav::AudioFormat;

    fn config() -> ClientConfig {
        ClientConfig {
            server: "test".into(),
            out: None,
            player: None,
            playout_buffer: Duration::ZERO,
            speed: 1.0,
            stall: Duration::from_secs(1),
            progress: ProgressStyle::None,
        }
    }

    fn stream() -> (Vec<u8>, String) {
        let format = AudioFormat::new(8_000, 1, 8).unwrap();
        let programme = Programme::new(format, (0..=255).collect(), Some(0.1)).unwrap();
        let mut bytes = Vec::new();
        programme.write_stream(&mut bytes).unwrap();
        (bytes, programme.sha256())
    }

    /// Receives `bytes` in parts of `part`, 20 ms apart, and then the end.
    fn receive_in_parts(bytes: &[u8], part: usize) -> Report {
        let config = config();
        let mut reception = Reception::new(&config, Arc::default());
        let mut at = Duration::ZERO;
        for part in bytes.chunks(part) {
            at += Duration::from_millis(20);
            if let Some(ending) = reception.arrived(at, part).unwrap() {
                return reception.finish(ending, 0, at).unwrap().report;
            }
        }
        let ending = reception.at_end();
        reception.finish(ending, 0, at).unwrap().report
    }

    #[test]
    fn a_stream_in_any_parts_is_complete() {
        let (bytes, sha256) = stream();
        for part in [1, 3, 43, 44, 45, 204, 10_000] {
            let report = receive_in_parts(&bytes, part);
            assert_eq!(report.outcome, Outcome::Complete, "parts of {part}");
            assert_eq!(report.sha256, sha256);
            assert_eq!(report.arrivals.unwrap().packets, 5);
        }
    }

    #[test]
    fn what_is_missing_or_too_much_is_said() {
        let (mut bytes, _) = stream();
        let cut = receive_in_parts(&bytes[..bytes.len() - 10], 100);
        assert_eq!((cut.outcome, cut.bytes_missing, cut.bytes_expected), (Outcome::EarlyEof, Some(10), Some(844)));
        bytes.extend_from_slice(&[0; 7]);
        let long = receive_in_parts(&bytes, 100);
        assert_eq!((long.outcome, long.bytes_extra, long.bytes_missing), (Outcome::TooLong, 7, Some(0)));
        let none = receive_in_parts(&bytes[..20], 100);
        assert_eq!((none.outcome, none.bytes_missing), (Outcome::EarlyEof, None));
    }

    #[test]
    fn an_answer_in_words_is_a_refusal_and_garbage_is_not() {
        let report = receive_in_parts(b"ERR too many clients\n", 2);
        assert_eq!(report.outcome, Outcome::Refused);
        assert_eq!(report.detail, "server answered ERR too many clients");
        assert_eq!(receive_in_parts(b"HTTP/1.1 400", 3).outcome, Outcome::BadStream);
        assert_eq!(receive_in_parts(&b"ERR ".repeat(1000), 100).outcome, Outcome::BadStream);
    }

    #[test]
    fn errors_of_the_connection_are_told_apart() {
        let (bytes, _) = stream();
        let config = config();
        let mut reception = Reception::new(&config, Arc::default());
        reception.arrived(Duration::ZERO, &bytes[..100]).unwrap();
        assert_eq!(reception.at_error(&ErrorKind::ConnectionReset.into()).outcome, Outcome::Reset);
        assert_eq!(reception.at_error(&ErrorKind::WouldBlock.into()).outcome, Outcome::Stalled);
        reception.arrived(Duration::ZERO, &bytes[100..]).unwrap();
        assert_eq!(reception.at_error(&ErrorKind::ConnectionReset.into()).outcome, Outcome::Complete);
    }
}
