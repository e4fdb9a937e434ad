//! Progress while a stream plays: lines for a program, or one line that is rewritten for a person.
//!
//! A thread of its own writes them, so that they go on while nothing arrives.
//!
//! Invariant: measuring never waits for this; it only leaves two numbers here.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(100);

/// What the receiving thread leaves for the one that shows it.
#[derive(Debug, Default)]
pub struct Meter {
    received: AtomicU64,
    expected: AtomicU64,
}

impl Meter {
    /// Sets the bytes received so far.
    pub fn set_received(&self, bytes: u64) {
        self.received.store(bytes, Ordering::Relaxed);
    }

    /// Sets the bytes that are expected in all.
    pub fn set_expected(&self, bytes: u64) {
        self.expected.store(bytes, Ordering::Relaxed);
    }
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressStyle {
    /// Not at all.
    None,
    /// `progress <ms> <bytes>` on stdout.
    Lines,
    /// One line on stderr.
    Live,
}

/// Shows progress until it is dropped.
pub struct ProgressDisplay {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ProgressDisplay {
    /// Begins to show `meter`, with times since `start`. Without a thread there is no progress.
    pub fn start(style: ProgressStyle, meter: Arc<Meter>, start: Instant) -> Self {
        if style == ProgressStyle::None {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = channel();
        let show = move || run(style, &meter, start, &stopped);
        let thread = thread::Builder::new().name("progress".into()).spawn(show).ok();
        Self { stop: Some(stop), thread }
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(style: ProgressStyle, meter: &Meter, start: Instant, stopped: &Receiver<()>) {
    let mut next = EVERY;
    let (mut last, mut silent_since) = (0, Duration::ZERO);
    loop {
        let ended = stopped.recv_timeout(next.saturating_sub(start.elapsed())) != Err(RecvTimeoutError::Timeout);
        let now = start.elapsed();
        let received = meter.received.load(Ordering::Relaxed);
        let expected = meter.expected.load(Ordering::Relaxed);
        if received != last {
            (last, silent_since) = (received, now);
        }
        let shown = match style {
            ProgressStyle::None => Ok(()),
            ProgressStyle::Lines => line(now, received),
            ProgressStyle::Live => live(now, received, expected, now - silent_since),
        };
        if ended || shown.is_err() {
            if style == ProgressStyle::Live {
                let _ = writeln!(io::stderr());
            }
            return;
        }
        while next <= now {
            next += EVERY;
        }
    }
}

fn line(now: Duration, received: u64) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "progress {} {received}", now.as_millis())?;
    out.flush()
}

fn live(now: Duration, received: u64, expected: u64, silent: Duration) -> io::Result<()> {
    const WIDTH: u64 = 30;
    let full = (received * WIDTH).checked_div(expected).unwrap_or(0).min(WIDTH) as usize;
    let bar: String = (0..WIDTH as usize).map(|i| if i < full { '#' } else { '.' }).collect();
    let note = if silent >= 2 * EVERY { format!("no data for {:.1} s", silent.as_secs_f64()) } else { String::new() };
    let mut err = io::stderr().lock();
    write!(err, "\r[{bar}] {:6.1} s {:8.1} KiB  {note:<22}", now.as_secs_f64(), received as f64 / 1024.0)?;
    err.flush()
}
