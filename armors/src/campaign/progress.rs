//! What a campaign shows while it runs, on stderr: a bar at a terminal, else a line for each cell.
//!
//! Invariant: a campaign never fails because nobody reads this.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

/// A line on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(runs: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{bar:24.cyan/blue}] {pos}/{len} {elapsed} (left: {eta}) {msg}");
            ProgressBar::new(runs).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "))
        });
        Progress { bar }
    }

    /// A run of a cell is about to begin.
    pub(crate) fn begin(&self, cell: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(cell.to_owned());
        }
    }

    /// A run is over.
    pub(crate) fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    pub(crate) fn tell(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.println(what),
            None => say(what),
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
