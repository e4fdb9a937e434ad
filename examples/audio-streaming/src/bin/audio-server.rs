//! The audio streaming server of thesis §4.6 as a program.
//!
//! Exit status: 2 for wrong arguments, 3 when the address cannot be listened on, 4 when there is
//! no programme (or it cannot be written), 5 when accepting does not work any more.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use audio_streaming::programme::{Programme, ProgrammeError};
use audio_streaming::server::{Server, ServerConfig, listen};
use audio_streaming::synth::Recipe;
use audio_streaming::wav::SampleBits;
use clap::Parser;

/// Streams audio to every client that connects, one thread for each, in real time.
#[derive(Parser)]
#[command(name = "audio-server", version)]
struct Arguments {
    /// Address and port to listen on (port 0: a free one)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700")]
    listen: String,
    /// Programme: a PCM WAV file of 8 or 16 bits (default: made by the synthesizer)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "bits", "seed"])]
    wav: Option<PathBuf>,
    /// Length of the programme; what is shorter is repeated [default: the file's, or 60]
    #[arg(long, value_name = "N", value_parser = positive)]
    seconds: Option<f64>,
    /// Frames per second of the made programme
    #[arg(long, value_name = "HZ", default_value_t = 16_000, value_parser = clap::value_parser!(u32).range(8_000..=48_000))]
    rate: u32,
    /// Bits per sample of the made programme: 8 or 16
    #[arg(long, default_value = "16", value_parser = sample_bits)]
    bits: SampleBits,
    /// Chooses the made programme
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Times real time
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    speed: f64,
    /// Saves the programme, byte for byte what clients receive
    #[arg(long, value_name = "FILE")]
    write_wav: Option<PathBuf>,
    /// Ends after saving
    #[arg(long, requires = "write_wav")]
    write_only: bool,
    /// Prints `sha256 <hex>` of the stream before listening
    #[arg(long)]
    sha256: bool,
    /// Clients at a time
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_clients: usize,
    /// A client that takes nothing for so long is dropped
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = positive)]
    stall_seconds: f64,
    /// Writes no line for each client
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, error)) => {
            eprintln!("audio-server: {error}");
            ExitCode::from(status)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), (u8, String)> {
    // First of all the port: when it is taken, that is known at once.
    let listener = match arguments.write_only {
        true => None,
        false => Some(listen(&arguments.listen).map_err(|error| (3, error.to_string()))?),
    };
    let programme = programme(arguments).map_err(|error| (4, error.to_string()))?;
    if let Some(path) = &arguments.write_wav {
        File::create(path)
            .and_then(|file| programme.write_stream(&mut BufWriter::new(file)))
            .map_err(|error| (4, format!("cannot write {}: {error}", path.display())))?;
    }
    if arguments.sha256 {
        say(&format!("sha256 {}", programme.sha256()));
    }
    let Some(listener) = listener else { return Ok(()) };
    let address = listener.local_addr().map_err(|error| (3, error.to_string()))?;
    say(&format!("listening {address}"));
    let (format, seconds) = (programme.header().format, programme.seconds());
    eprintln!("audio-server: {address}: {seconds:.2} s, {format}, speed {}", arguments.speed);
    let config = ServerConfig {
        speed: arguments.speed,
        max_clients: arguments.max_clients,
        stall: Duration::from_secs_f64(arguments.stall_seconds),
        log_clients: !arguments.quiet,
    };
    Server::new(listener, programme, config).run().map_err(|error| (5, error.to_string()))
}

fn programme(arguments: &Arguments) -> Result<Programme, ProgrammeError> {
    match &arguments.wav {
        Some(path) => Programme::from_wav(path, arguments.seconds),
        None => {
            let recipe = Recipe { sample_rate: arguments.rate, seed: arguments.seed };
            Programme::made(recipe, arguments.bits, arguments.seconds.unwrap_or(60.0))
        }
    }
}

/// A line for whoever started the server; nobody may be there to read it.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err("must be a number above 0".into()),
    }
}

fn sample_bits(text: &str) -> Result<SampleBits, String> {
    text.parse().ok().and_then(SampleBits::from_bits).ok_or_else(|| "must be 8 or 16".into())
}
