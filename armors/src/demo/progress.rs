//! What a demo shows while it runs, on stderr: bars at a terminal, else a line each second.
//!
//! Invariant: a demo never fails because nobody reads this.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::audience::Listener;

/// A line on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The display.
pub(crate) struct Progress {
    begun: Instant,
    bars: Option<(MultiProgress, Vec<ProgressBar>)>,
    next_line: Duration,
    seconds: f64,
}

impl Progress {
    /// A display for so many clients of a stream of so many bytes.
    pub(crate) fn new(clients: usize, bytes: u64, seconds: f64) -> Progress {
        let bars = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::new();
            let style =
                ProgressStyle::with_template("{prefix:<10} [{bar:32.cyan/blue}] {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            let bars = (1..=clients).map(|number| {
                let bar = all.add(ProgressBar::new(bytes).with_style(style.clone().progress_chars("=> ")));
                bar.set_prefix(format!("client {number}"));
                bar
            });
            let bars = bars.collect();
            (all, bars)
        });
        Progress { begun: Instant::now(), bars, next_line: Duration::from_secs(1), seconds }
    }

    /// Shows where each client is.
    pub(crate) fn show(&mut self, listeners: &[Listener]) {
        if let Some((_, bars)) = &self.bars {
            for (bar, listener) in bars.iter().zip(listeners) {
                bar.set_position(listener.bytes);
                bar.set_message(state(listener, self.seconds));
            }
            return;
        }
        let now = self.begun.elapsed();
        if now < self.next_line {
            return;
        }
        while self.next_line <= now {
            self.next_line += Duration::from_secs(1);
        }
        let mut line = format!("{:5.1} s", now.as_secs_f64());
        for listener in listeners {
            // Writing to a String does not fail.
            let _ = write!(line, " | {}: {}", listener.name, state(listener, self.seconds));
        }
        say(&line);
    }

    /// Something has happened.
    pub(crate) fn tell(&self, what: &str) {
        match &self.bars {
            Some((all, _)) => {
                let _ = all.println(what);
            }
            None => say(&format!("{:5.1} s | {what}", self.begun.elapsed().as_secs_f64())),
        }
    }

    /// Leaves the bars as they are.
    pub(crate) fn finish(&self) {
        for bar in self.bars.iter().flat_map(|(_, bars)| bars) {
            bar.abandon();
        }
    }
}

fn state(listener: &Listener, seconds: f64) -> String {
    let kilobytes = listener.bytes as f64 / 1e3;
    match listener.ended {
        _ if !listener.has_begun() => "waits".to_owned(),
        None => {
            let (at, pace) = (listener.at_ms as f64 / 1e3, listener.pace.bytes_per_second() / 1e3);
            format!("{at:4.1} of {seconds:.0} s {kilobytes:6.1} KB {pace:5.1} KB/s")
        }
        Some(status) if status.success() => format!("complete, {kilobytes:.1} KB"),
        Some(status) => format!("failed ({status}), {kilobytes:.1} KB"),
    }
}
