//! What a client has to say at the end, as JSON for other programs.
//!
//! Invariant: there is a report for every run that got as far as trying to connect, with the same
//! fields; what could not be known is `null`.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::arrivals::ArrivalSummary;
use crate::wav::AudioFormat;

/// How the stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every byte that the head announced came, and no more.
    Complete,
    /// The connection was reset.
    Reset,
    /// The connection ended in order but too soon.
    EarlyEof,
    /// More came than the head announced.
    TooLong,
    /// Nothing came for as long as the client waits.
    Stalled,
    /// The server answered `ERR …`.
    Refused,
    /// What came is no stream of this kind.
    BadStream,
    /// There was no connection.
    ConnectFailed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Reset => "reset",
            Self::EarlyEof => "early_eof",
            Self::TooLong => "too_long",
            Self::Stalled => "stalled",
            Self::Refused => "refused",
            Self::BadStream => "bad_stream",
            Self::ConnectFailed => "connect_failed",
        })
    }
}

/// The report of one run of the client.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How the stream ended.
    pub outcome: Outcome,
    /// The same in words, with the cause.
    pub detail: String,
    /// Address that was connected to.
    pub server: String,
    /// The start in the request: milliseconds since 1970 by this machine's clock.
    pub start_unix_ms: u64,
    /// From the start to the end of the stream, in milliseconds.
    pub duration_ms: f64,
    /// Bytes of the stream, head included.
    pub bytes_received: u64,
    /// Bytes that the head announced, itself included.
    pub bytes_expected: Option<u64>,
    /// Announced and not received.
    pub bytes_missing: Option<u64>,
    /// Received past the end that was announced.
    pub bytes_extra: u64,
    /// SHA-256 of all that was received, in hexadecimal digits.
    pub sha256: String,
    /// Format of the samples.
    pub format: Option<AudioFormat>,
    /// Speed that the times are judged by (1 is real time).
    pub speed: f64,
    /// Where the audio went.
    pub sinks: Vec<String>,
    /// Bytes that a player was too slow to take.
    pub player_dropped_bytes: u64,
    /// Times of arrival and what follows from them.
    #[serde(flatten)]
    pub arrivals: Option<ArrivalSummary>,
}

impl Report {
    /// Writes the report as JSON.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        text.push('\n');
        fs::write(path, text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {} bytes in {:.2} s", self.outcome, self.detail, self.bytes_received, self.duration_ms / 1e3)?;
        if let Some(found) = &self.arrivals {
            write!(
                f,
                "; longest gap {:.1} ms ({} above {} ms), {} underruns ({:.1} ms), lateness p50 {:.2} p99 {:.2} max {:.2} ms",
                found.longest_gap_ms,
                found.gaps.len() as u64 + found.gaps_left_out,
                found.gap_listed_ms,
                found.playback.underruns,
                found.playback.underrun_total_ms,
                found.lateness_ms.p50,
                found.lateness_ms.p99,
                found.lateness_ms.max,
            )?;
        }
        write!(f, "; sha256 {}", self.sha256)
    }
}
