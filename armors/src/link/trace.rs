//! A recorded link: lines `time rate loss delay`, played from the link's start and from the beginning again when it is over.
//!
//! `0ms 20mbit 1% 30ms`; `-` leaves a value to the link's settings; what follows `#` is a comment. A line holds until the next one's time; the
//! last one holds as long as the one before it. No time goes backwards, and the first is 0.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::settings::{Rate, Share, Span};

/// Lines beyond are refused: a day of ten a second.
const MOST_LINES: usize = 864_000;
const MOST_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Row {
    pub(crate) at: Duration,
    pub(crate) rate: Option<Rate>,
    pub(crate) loss: Option<Share>,
    pub(crate) delay: Option<Span>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trace {
    rows: Vec<Row>,
    length: Duration,
}

impl Trace {
    /// # Errors
    /// Names the file, and the line that cannot be read.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Trace> {
        let about = || format!("trace {}", path.display());
        ensure!(std::fs::metadata(path).with_context(about)?.len() <= MOST_BYTES, "{}: larger than {MOST_BYTES} bytes", about());
        Trace::parse(&std::fs::read_to_string(path).with_context(about)?).with_context(about)
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Trace> {
        let mut rows: Vec<Row> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            let row = row(&words).with_context(|| format!("line {}", index + 1))?;
            match rows.last() {
                None => ensure!(row.at.is_zero(), "line {}: the first time is 0ms", index + 1),
                Some(last) => ensure!(row.at > last.at, "line {}: its time is not after the one before it", index + 1),
            }
            ensure!(rows.len() < MOST_LINES, "more than {MOST_LINES} lines");
            rows.push(row);
        }
        let [.., before, last] = &rows[..] else { bail!("a trace has two lines or more, `time rate loss delay` each") };
        let length = last.at + (last.at - before.at);
        Ok(Trace { rows, length })
    }

    /// What holds at a time since the link's start.
    pub(crate) fn at(&self, now: Duration) -> &Row {
        let (within, _) = self.place(now);
        let after = self.rows.partition_point(|row| row.at <= within);
        &self.rows[after.saturating_sub(1)]
    }

    /// When the next line begins to hold.
    pub(crate) fn next_change(&self, now: Duration) -> Duration {
        let (within, round) = self.place(now);
        let after = self.rows.partition_point(|row| row.at <= within);
        round + self.rows.get(after).map_or(self.length, |row| row.at)
    }

    /// Time since the trace's present beginning, and when that was.
    fn place(&self, now: Duration) -> (Duration, Duration) {
        let length = self.length.as_nanos().max(1);
        let within = Duration::from_nanos((now.as_nanos() % length) as u64);
        (within, now - within)
    }
}

fn row(words: &[&str]) -> anyhow::Result<Row> {
    fn unless_dash<T: std::str::FromStr<Err = super::settings::Unreadable>>(word: &str) -> anyhow::Result<Option<T>> {
        if word == "-" { Ok(None) } else { Ok(Some(word.parse()?)) }
    }
    let [at, rate, loss, delay] = words else { bail!("{} words instead of `time rate loss delay`", words.len()) };
    Ok(Row { at: at.parse::<Span>()?.0, rate: unless_dash(rate)?, loss: unless_dash(loss)?, delay: unless_dash(delay)? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn lines_hold_until_the_next_and_the_trace_begins_again() {
        let trace = Trace::parse("# radio\n0ms 20mbit 1% 30ms\n100ms 5mbit - 40ms # shade\n").unwrap();
        let ms = Duration::from_millis;
        assert_eq!(trace.at(ms(99)).rate, Some(Rate(Some(20_000_000))));
        assert_eq!(trace.at(ms(100)).rate, Some(Rate(Some(5_000_000))));
        assert_eq!(trace.at(ms(199)).loss, None);
        assert_eq!(trace.at(ms(200)).rate, Some(Rate(Some(20_000_000))));
        assert_eq!(trace.next_change(ms(50)), ms(100));
        assert_eq!(trace.next_change(ms(150)), ms(200));
        assert_eq!(trace.next_change(ms(250)), ms(300));
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        for (text, line) in [
            ("0ms 1mbit 0% 1ms\n5 1mbit 0% 1ms", "line 2"),
            ("5ms - - -", "line 1"),
            ("0ms - - -\n0ms - - -", "line 2"),
            ("0ms -", "line 1"),
        ] {
            let error = format!("{:#}", Trace::parse(text).unwrap_err());
            assert!(error.contains(line), "{error}");
        }
        assert!(Trace::parse("").is_err());
    }
}
