//! `armor demo`: the experiment of thesis §4.6 in under a minute. Clients on one node hear an audio server on another while its
//! process is killed; then it is looked at whether, and when, every byte arrived.
//!
//! [`stage`] is the environment, [`audience`] the clients, [`progress`] what is seen meanwhile, [`report`] and [`picture`]
//! what is left.

mod audience;
mod picture;
mod progress;
mod report;
mod stage;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::free_address::free_address;
use crate::interrupt::{Interrupt, Interrupted};
use crate::output;
use crate::program::{self, Found};
use audience::Audience;
use picture::{Curve, Picture};
use progress::Progress;
use report::{Crash, Programme, Report};
use stage::Stage;

/// How often clients are listened to and the display is renewed.
const TICK: Duration = Duration::from_millis(50);
/// How long a demo may take beyond the length of its stream before it is given up.
const SPARE: Duration = Duration::from_secs(25);

/// See it work: stream audio to clients, kill the server, compare every byte
///
/// Starts an environment of its own with two nodes, and ends it again. The audio plays on the sound device, if there is one.
/// Leaves report.txt, report.json and timeline.svg.
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Directory for report, picture and what the clients received
    #[arg(long, value_name = "DIR", default_value = "armor-demo")]
    out: PathBuf,
    /// Length of the stream
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=3600))]
    seconds: u32,
    /// How many clients listen
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=32))]
    clients: u8,
    /// How often the server is killed
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=50))]
    kills: u8,
    /// Keep the run directory, to look at captured state and logs
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        // Time for each life to be streamed from before the next kill.
        if self.kills > 0 && f64::from(self.seconds) < 1.5 * f64::from(self.kills + 1) {
            let (kills, seconds) = (self.kills, self.seconds);
            progress::say(&format!("armor: --kills {kills} are too many for --seconds {seconds}: allow 1.5 s for each life of the server"));
            return Ok(ExitCode::from(2));
        }
        match self.perform() {
            Ok((text, passed)) => {
                output::print(&text)?;
                Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Err(error) if error.is::<Interrupted>() => {
                progress::say("armor: demo: interrupted; everything that it started is ended");
                Ok(ExitCode::from(130))
            }
            Err(error) => Err(error),
        }
    }

    /// The demo from beginning to end. Nothing runs any more when this comes back.
    fn perform(&self) -> anyhow::Result<(String, bool)> {
        let (server, client) = (example("audio-server")?, example("audio-client")?);
        let out = std::path::absolute(&self.out).context("the working directory is gone")?;
        prepare(&out)?;
        let interrupt = Interrupt::watch()?;
        let audio = out.join("programme.wav");
        let programme = self.programme(&server, &audio)?;

        let stage = Stage::new(self.keep, out.join("logs"))?;
        progress::say(&format!(
            "Starting the FTM and daemons {} and {} in {}",
            stage::SERVER_NODE,
            stage::CLIENT_NODE,
            stage.path().display()
        ));
        interrupt.check()?;
        stage.up()?;
        interrupt.check()?;
        let address = free_address()?.to_string();
        let command = [server.as_os_str(), "--listen".as_ref(), address.as_ref(), "--wav".as_ref(), audio.as_os_str()];
        stage.launch(usize::from(self.kills) + 5, &command)?;
        progress::say(&format!("audio-server runs on {} at {address}; its clients are on {}", stage::SERVER_NODE, stage::CLIENT_NODE));

        let audience = Audience::new(usize::from(self.clients), &out, client, address);
        let progress = Progress::new(usize::from(self.clients), programme.bytes, programme.seconds);
        let mut show = Show { stage: &stage, audience, progress, crashes: Vec::new(), origin_ms: unix_ms(), begun: Instant::now() };
        let played = self.play(&mut show, &interrupt);
        show.progress.finish();
        played?;
        let report = self.report(show, programme, &out)?;
        let kept = if self.keep { format!("Run directory: {}\n", stage.path().display()) } else { String::new() };
        drop(stage);
        Ok((format!("{}{kept}", report.0), report.1))
    }

    /// Makes what is streamed; a file, so that a restarted server need not make it again.
    fn programme(&self, server: &Path, audio: &Path) -> anyhow::Result<Programme> {
        let mut command = Command::new(server);
        command.args(["--seconds", &self.seconds.to_string(), "--write-only", "--write-wav"]).arg(audio);
        let made = command.stdin(Stdio::null()).output().with_context(|| format!("{} cannot be executed", server.display()))?;
        if !made.status.success() {
            bail!("{} made no programme ({}): {}", server.display(), made.status, String::from_utf8_lossy(&made.stderr).trim());
        }
        let bytes = std::fs::read(audio).with_context(|| format!("{} cannot be read", audio.display()))?;
        let seconds = f64::from(self.seconds);
        let sha256 = Sha256::digest(&bytes).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let audio_bytes = bytes.len().saturating_sub(44);
        Ok(Programme { seconds, bytes: bytes.len() as u64, bytes_per_second: audio_bytes as f64 / seconds, sha256 })
    }

    /// From the first client's start to the last one's end.
    fn play(&self, show: &mut Show<'_>, interrupt: &Interrupt) -> anyhow::Result<()> {
        let length = f64::from(self.seconds);
        // One after the other, so that each one's curve is seen in the picture.
        let apart = (length / 8.0 / f64::from(self.clients).max(2.0)).min(1.0);
        let deadline = Duration::from_secs_f64(length) + SPARE;
        loop {
            interrupt.check()?;
            let now = show.begun.elapsed();
            let begun = show.audience.listeners.iter().filter(|listener| listener.has_begun()).count();
            if !show.audience.has_begun() && now.as_secs_f64() >= apart * begun as f64 {
                show.audience.begin(show.stage)?;
            }
            show.audience.hear(Instant::now() + TICK);
            show.watch_recovery();
            let next = length * (show.crashes.len() + 1) as f64 / f64::from(u32::from(self.kills) + 1);
            if show.crashes.len() < usize::from(self.kills) && now.as_secs_f64() >= next {
                show.crash()?;
            }
            show.progress.show(&show.audience.listeners);
            if show.audience.has_ended() {
                return Ok(());
            }
            if now > deadline {
                bail!("the clients did not end within {} s; logs are in {}", deadline.as_secs(), self.out.join("logs").display());
            }
        }
    }

    fn report(&self, mut show: Show<'_>, programme: Programme, out: &Path) -> anyhow::Result<(String, bool)> {
        // The last word of a recovery may have come after the last look.
        show.update(&show.stage.look()?);
        let crashes: Vec<Crash> = std::mem::take(&mut show.crashes).into_iter().map(|crash| crash.what).collect();
        let origin_ms = show.origin_ms;
        let read = |listener: &audience::Listener| {
            report::Client::read(listener.name.clone(), &listener.report(), &listener.packet_log(), &programme, origin_ms, &crashes)
        };
        let clients = show.audience.listeners.iter().map(read).collect();
        let report = Report::new(programme, usize::from(self.kills), crashes, clients);

        let curves = report.clients.iter().map(Curve::of).collect();
        let Programme { seconds, bytes_per_second, .. } = report.programme;
        Picture { curves, crashes: &report.crashes, bytes_per_second, seconds }.write(&out.join("timeline.svg"))?;
        let write = |name: &str, content: &str| {
            let path = out.join(name);
            std::fs::write(&path, content).with_context(|| format!("{} cannot be written", path.display()))
        };
        let json = serde_json::to_string_pretty(&report).context("report.json")?;
        write("report.json", &format!("{json}\n"))?;
        let text = format!("{}{}", Report::head(origin_ms), report.text());
        write("report.txt", &text)?;
        Ok((format!("\n{text}\nPicture: {}\n", out.join("timeline.svg").display()), report.passed))
    }
}

/// A demo while it runs.
struct Show<'a> {
    stage: &'a Stage,
    audience: Audience,
    progress: Progress,
    crashes: Vec<Ongoing>,
    origin_ms: u64,
    begun: Instant,
}

/// A crash and how far its recovery is.
struct Ongoing {
    what: Crash,
    /// Bytes of each client at the crash.
    bytes: Vec<u64>,
    told: bool,
}

impl Show<'_> {
    /// Kills the server, when all clients have begun and have got new bytes since the crash before.
    fn crash(&mut self) -> anyhow::Result<()> {
        if let Some(before) = self.crashes.last()
            && !before.told
        {
            return Ok(());
        }
        let listeners = &self.audience.listeners;
        let before = |index: usize| self.crashes.last().map_or(0, |crash| crash.bytes[index]);
        if listeners.iter().enumerate().any(|(index, listener)| listener.ended.is_none() && listener.bytes <= before(index)) {
            return Ok(());
        }
        let Some(pid) = self.stage.look()?.pid else { return Ok(()) };
        let bytes = listeners.iter().map(|listener| listener.bytes).collect();
        let at_unix_ms = self.stage.kill(pid)?;
        let number = self.crashes.len() + 1;
        let at_s = at_unix_ms.saturating_sub(self.origin_ms) as f64 / 1e3;
        self.progress.tell(&format!("crash {number}: SIGKILL to audio-server, process {pid}"));
        self.crashes.push(Ongoing { what: Crash { number, at_s, at_unix_ms, pid, ..Crash::default() }, bytes, told: false });
        Ok(())
    }

    /// Tells of a recovery once bytes flow again.
    fn watch_recovery(&mut self) {
        if self.crashes.last().is_none_or(|crash| crash.told) {
            return;
        }
        // A daemon that does not answer now is asked again; the report needs its answer.
        let Ok(look) = self.stage.look() else { return };
        self.update(&look);
        let Some(crash) = self.crashes.last_mut() else { return };
        let flows = crash.what.recovery.as_ref().is_some_and(|recovery| recovery.flowing_ms.is_some());
        if flows && let Some(next) = crash.what.next_pid {
            crash.told = true;
            self.progress.tell(&format!("{}; process {next}", Report::line(&crash.what)));
        }
    }

    /// Takes over what is known about recoveries: a crash's is the first one that began no earlier than its kill (by the same clock).
    fn update(&mut self, look: &stage::Look) {
        for crash in &mut self.crashes {
            let since = crash.what.at_unix_ms;
            if let Some(recovery) = look.recoveries.iter().filter(|recovery| recovery.at_ms >= since).min_by_key(|recovery| recovery.at_ms)
            {
                crash.what.recovery = Some(recovery.clone());
            }
        }
        if let Some(crash) = self.crashes.last_mut()
            && crash.what.next_pid.is_none()
        {
            crash.what.next_pid = look.pid.filter(|&pid| pid != crash.what.pid);
        }
    }
}

/// A program of examples/audio-streaming: beside this one, else in PATH.
fn example(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("the path of the armor program is unknown")?;
    for candidate in [own.with_file_name(name), PathBuf::from(name)] {
        if let Found::At(path) = program::find(&candidate) {
            return std::path::absolute(path).context("the working directory is gone");
        }
    }
    bail!("{name} is neither beside {} nor in PATH; build it with `cargo build --release -p audio-streaming`", own.display())
}

/// Makes the directory, without what an earlier demo left for a result.
fn prepare(out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made; choose another place with --out", out.display()))?;
    let old = std::fs::read_dir(out).with_context(|| format!("{} cannot be read; choose another place with --out", out.display()))?;
    for entry in old.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = matches!(&*name, "report.txt" | "report.json" | "timeline.svg" | "programme.wav")
            || name
                .strip_prefix("client-")
                .and_then(|rest| rest.split_once('.'))
                .is_some_and(|(number, end)| number.parse::<u8>().is_ok() && matches!(end, "json" | "csv" | "wav" | "log"));
        if ours {
            std::fs::remove_file(entry.path())
                .with_context(|| format!("{} of an earlier demo cannot be removed", entry.path().display()))?;
        }
    }
    Ok(())
}

fn unix_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
