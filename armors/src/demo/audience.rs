//! The audio clients of a demo, as processes: started through `armor run`, their progress read line by line.
//!
//! Invariant: no client outlives the audience.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::stage::Stage;

/// One client.
pub(crate) struct Listener {
    pub(crate) name: String,
    files: PathBuf,
    child: Option<Child>,
    pub(crate) ended: Option<ExitStatus>,
    /// Time and bytes of its last word.
    pub(crate) at_ms: u64,
    pub(crate) bytes: u64,
    /// Bytes within about the last second.
    pub(crate) pace: Pace,
}

impl Listener {
    pub(crate) fn report(&self) -> PathBuf {
        self.files.with_extension("json")
    }

    pub(crate) fn packet_log(&self) -> PathBuf {
        self.files.with_extension("csv")
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.child.is_some()
    }
}

/// Bytes per second over about the last second.
#[derive(Default)]
pub(crate) struct Pace {
    words: Vec<(u64, u64)>,
}

impl Pace {
    fn heard(&mut self, at_ms: u64, bytes: u64) {
        self.words.push((at_ms, bytes));
        self.words.retain(|word| word.0 + 1000 >= at_ms);
    }

    pub(crate) fn bytes_per_second(&self) -> f64 {
        match (self.words.first(), self.words.last()) {
            (Some(first), Some(last)) if last.0 > first.0 => (last.1.saturating_sub(first.1)) as f64 * 1e3 / (last.0 - first.0) as f64,
            _ => 0.0,
        }
    }
}

/// `progress MS BYTES` of a client, or the end of its output.
struct Word {
    listener: usize,
    progress: Option<(u64, u64)>,
}

pub(crate) struct Audience {
    pub(crate) listeners: Vec<Listener>,
    program: PathBuf,
    server: String,
    words: Receiver<Word>,
    speaker: Sender<Word>,
}

impl Audience {
    /// So many clients, none of them started.
    pub(crate) fn new(count: usize, directory: &Path, program: PathBuf, server: String) -> Audience {
        let (speaker, words) = channel();
        let listener = |number: usize| Listener {
            name: format!("client {number}"),
            files: directory.join(format!("client-{number}")),
            child: None,
            ended: None,
            at_ms: 0,
            bytes: 0,
            pace: Pace::default(),
        };
        Audience { listeners: (1..=count).map(listener).collect(), program, server, words, speaker }
    }

    /// Starts the next client; the first one plays on the sound device, if there is one.
    pub(crate) fn begin(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let Some(index) = self.listeners.iter().position(|listener| !listener.has_begun()) else { return Ok(()) };
        let listener = &mut self.listeners[index];
        let (report, packet_log, audio, log) =
            (listener.report(), listener.packet_log(), listener.files.with_extension("wav"), listener.files.with_extension("log"));
        let device = if index == 0 { "auto" } else { "none" };
        let arguments: [&OsStr; 14] = [
            self.program.as_os_str(),
            "--connect".as_ref(),
            self.server.as_ref(),
            "--progress".as_ref(),
            "--report".as_ref(),
            report.as_os_str(),
            "--packet-log".as_ref(),
            packet_log.as_os_str(),
            "--out".as_ref(),
            audio.as_os_str(),
            "--device".as_ref(),
            device.as_ref(),
            "--stall-seconds".as_ref(),
            "20".as_ref(),
        ];
        let stderr = File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
        let mut child = stage.client(&arguments).stdout(Stdio::piped()).stderr(stderr).spawn().context("`armor run` cannot be executed")?;
        let output = child.stdout.take();
        listener.child = Some(child);
        let speaker = self.speaker.clone();
        if let Some(output) = output {
            let read = move || read(output, index, &speaker);
            std::thread::Builder::new().name(format!("client-{}", index + 1)).spawn(read).context("no thread for a client")?;
        }
        Ok(())
    }

    /// Takes in what clients say until a time.
    pub(crate) fn hear(&mut self, until: Instant) {
        loop {
            match self.words.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Word { listener, progress: Some((at_ms, bytes)) }) => {
                    let listener = &mut self.listeners[listener];
                    (listener.at_ms, listener.bytes) = (at_ms, bytes);
                    listener.pace.heard(at_ms, bytes);
                }
                Ok(Word { listener, progress: None }) => self.listeners[listener].await_end(),
                Err(_) => return,
            }
        }
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.listeners.iter().all(Listener::has_begun)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.listeners.iter().all(|listener| listener.ended.is_some())
    }
}

impl Listener {
    /// It has closed its output: it ends now.
    fn await_end(&mut self) {
        let Some(child) = &mut self.child else { return };
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.ended.is_none() {
            match child.try_wait() {
                Ok(Some(status)) => self.ended = Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => {
                    let _ = child.kill();
                    self.ended = child.wait().ok();
                    return;
                }
            }
        }
    }
}

impl Drop for Audience {
    fn drop(&mut self) {
        for child in self.listeners.iter_mut().filter(|listener| listener.ended.is_none()).filter_map(|listener| listener.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read(output: ChildStdout, listener: usize, speaker: &Sender<Word>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some(progress) = progress(&line)
            && speaker.send(Word { listener, progress: Some(progress) }).is_err()
        {
            return;
        }
    }
    let _ = speaker.send(Word { listener, progress: None });
}

fn progress(line: &str) -> Option<(u64, u64)> {
    let mut words = line.strip_prefix("progress ")?.split_whitespace().map(str::parse);
    Some((words.next()?.ok()?, words.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_read_and_others_passed_over() {
        assert_eq!(progress("progress 1200 38400"), Some((1200, 38_400)));
        assert_eq!(progress("outcome complete 5 ab"), None);
        assert_eq!(progress("progress 1200"), None);
    }

    #[test]
    fn pace_is_that_of_the_last_second() {
        let mut pace = Pace::default();
        assert!(pace.bytes_per_second().abs() < f64::EPSILON);
        for (at_ms, bytes) in [(0, 1_000_000), (1000, 1_000_000), (2000, 1_032_000)] {
            pace.heard(at_ms, bytes);
        }
        assert!((pace.bytes_per_second() - 32_000.0).abs() < 1.0);
    }
}
