//! The audio streaming client of thesis §4.6 as a program.
//!
//! Exit status: 0 only for a complete stream, 1 for any other end of it, 2 for wrong arguments,
//! 3 when there was no connection, 4 when audio or report cannot be written.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use audio_streaming::client::{ClientConfig, Played, play};
use audio_streaming::playback::Player;
use audio_streaming::progress::ProgressStyle;
use audio_streaming::report::Outcome;
use audio_streaming::schedule::PACKET_MS;
use clap::{Parser, ValueEnum};

/// Plays the programme of an audio server as it arrives, and reports how it arrived.
#[derive(Parser)]
#[command(name = "audio-client", version)]
struct Arguments {
    /// Address and port of the server
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700")]
    connect: String,
    /// WAV file for the audio [default: audio-out.wav when no sound device is used]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Sound device: by aplay, paplay or pw-play if one is there
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Writes the report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Writes due time and lateness of each packet as CSV
    #[arg(long, value_name = "FILE")]
    packet_log: Option<PathBuf>,
    /// Playout buffer that underruns are counted with; 0: each packet is played as it arrives
    #[arg(long, value_name = "MS", default_value_t = 0)]
    buffer_ms: u64,
    /// Speed of the server, times real time, that lateness is judged by
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    speed: f64,
    /// Gives up when nothing came for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = positive)]
    stall_seconds: f64,
    /// Prints `progress <ms> <bytes>` on stdout each 100 ms
    #[arg(long)]
    progress: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    Auto,
    None,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let played = match play(&config(&arguments)) {
        Ok(played) => played,
        Err(error) => return failed(&error.to_string()),
    };
    eprintln!("audio-client: {}", played.report);
    if arguments.progress {
        let report = &played.report;
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "outcome {} {} {}", report.outcome, report.bytes_received, report.sha256);
    }
    if let Some(path) = &arguments.report
        && let Err(error) = played.report.write(path)
    {
        return failed(&format!("cannot write {}: {error}", path.display()));
    }
    if let Some(path) = &arguments.packet_log
        && let Err(error) = write_packet_log(path, &played)
    {
        return failed(&format!("cannot write {}: {error}", path.display()));
    }
    match played.report.outcome {
        Outcome::Complete => ExitCode::SUCCESS,
        Outcome::ConnectFailed => ExitCode::from(3),
        _ => ExitCode::from(1),
    }
}

fn config(arguments: &Arguments) -> ClientConfig {
    let player = match arguments.device {
        Device::Auto => Player::find(),
        Device::None => None,
    };
    let out = match (&arguments.out, &player) {
        (None, None) => Some(PathBuf::from("audio-out.wav")),
        (out, _) => out.clone(),
    };
    let progress = if arguments.progress {
        ProgressStyle::Lines
    } else if io::stderr().is_terminal() {
        ProgressStyle::Live
    } else {
        ProgressStyle::None
    };
    ClientConfig {
        server: arguments.connect.clone(),
        out,
        player,
        playout_buffer: Duration::from_millis(arguments.buffer_ms),
        speed: arguments.speed,
        stall: Duration::from_secs_f64(arguments.stall_seconds),
        progress,
    }
}

fn write_packet_log(path: &Path, played: &Played) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let interval_ms = f64::from(PACKET_MS) / played.report.speed;
    writeln!(out, "packet,due_ms,late_ms")?;
    for (k, late_us) in played.lateness_us.iter().enumerate() {
        writeln!(out, "{k},{:.3},{:.3}", k as f64 * interval_ms, *late_us as f64 / 1e3)?;
    }
    out.flush()
}

fn failed(error: &str) -> ExitCode {
    eprintln!("audio-client: {error}");
    ExitCode::from(4)
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err("must be a number above 0".into()),
    }
}
