//! `event_log`: the FTM's log of events from all ARMORs.
//!
//! Purpose: keeps the last 10,000 events for `armor events`, and appends all of them to `<run_dir>/events.jsonl`, one JSON
//! object a line with its number `n`; at 16 MiB that file becomes `events.jsonl.1`.
//! Subscribes: `MSG_EVENT_REPORT`, `MSG_EVENTS_QUERY`. Emits: `MSG_EVENTS`. Configuration: none.
//!
//! Invariant: numbers grow by one from 1 and are never used twice in one life; an event that cannot be written is still kept.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::EventReport;
use serde::{Deserialize, Serialize};

use crate::operations::{Events, EventsQuery};

const KEPT: usize = 10_000;
const PER_ANSWER: usize = 500;
const ROTATE_AT: u64 = 16 << 20;

/// The element.
pub struct EventLog {
    file: LogFile,
    events: VecDeque<Event>,
    next: u64,
    unwritten: u64,
}

/// No keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Element for EventLog {
    const NAME: &'static str = "event_log";
    const PURPOSE: &'static str = "keeps the events of all ARMORs and answers armor events";
    const EXAMPLE: &'static str = "";
    type Config = Config;

    fn new(_: Config, setup: &Setup) -> Result<Self, String> {
        let path = setup.run_dir.join("events.jsonl");
        let file = LogFile::open(&path).map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        Ok(EventLog { file, events: VecDeque::new(), next: 1, unwritten: 0 })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::report).on(Self::query).emits::<Events>();
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "next": self.next, "kept": self.events.len(), "file": self.file.path, "unwritten": self.unwritten })
    }
}

impl EventLog {
    fn report(&mut self, report: &EventReport, _: &mut Context<'_>) {
        if let Err(error) = self.file.append(self.next, &report.event) {
            if self.unwritten == 0 {
                tracing::error!("{} cannot be written: {error}", self.file.path.display());
            }
            self.unwritten += 1;
        }
        if self.events.len() >= KEPT {
            self.events.pop_front();
        }
        self.events.push_back(report.event.clone());
        self.next += 1;
    }

    fn query(&mut self, query: &EventsQuery, context: &mut Context<'_>) {
        let (first, events) = self.from(query.from);
        let answer = Events { next: first + events.len() as u64, events };
        context.send_to(context.source(), answer);
    }

    /// Kept events from a number on, and the number of the first of them.
    fn from(&self, from: u64) -> (u64, Vec<Event>) {
        let oldest = self.next - self.events.len() as u64;
        let first = from.clamp(oldest, self.next);
        let skip = usize::try_from(first - oldest).unwrap_or(usize::MAX);
        (first, self.events.iter().skip(skip).take(PER_ANSWER).cloned().collect())
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    n: u64,
    #[serde(flatten)]
    event: &'a Event,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<LogFile> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, size })
    }

    fn append(&mut self, n: u64, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Line { n, event })?;
        line.push(b'\n');
        if self.size + line.len() as u64 > ROTATE_AT {
            std::fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            *self = LogFile::open(&self.path)?;
        }
        self.file.write_all(&line)?;
        self.size += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;
    use armor_core::context::Effect;
    use armor_proto::ids::ArmorId;
    use armor_proto::message::{Message, downcast};

    fn log(name: &str) -> (Setup, EventLog) {
        let run_dir = std::env::temp_dir().join(format!("armor-event-log-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&run_dir);
        std::fs::create_dir_all(&run_dir).expect("works");
        let setup = Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir };
        let log = EventLog::new(Config {}, &setup).expect("works");
        (setup, log)
    }

    #[test]
    fn events_are_numbered_kept_written_and_answered_in_parts() {
        let (setup, mut log) = log("parts");
        let mut effects = Vec::new();
        for n in 0..KEPT + 5 {
            let report = EventReport { event: Event::new("test").with("n", n + 1) };
            log.report(&report, &mut Context::detached(&setup, None, &mut effects));
        }
        let mut query = Message::to(ArmorId::FTM, EventsQuery { from: 0 });
        query.source = ArmorId(9);
        log.query(&EventsQuery { from: 0 }, &mut Context::detached(&setup, Some(&mut query), &mut effects));
        let [Effect::Send(answer)] = &effects[..] else { panic!("one answer") };
        assert_eq!(answer.destination(), Some(ArmorId(9)));
        let Some(Events { next, events }) = answer.top().and_then(|bundle| downcast::<Events>(&bundle.operations[0])) else {
            panic!("events")
        };
        assert_eq!((*next, events.len(), events[0].values["n"].as_str()), (506, PER_ANSWER, "6"));
        assert_eq!(log.from(10_005).1.len(), 1);
        assert_eq!(log.from(u64::MAX), (10_006, vec![]));
        let written = std::fs::read_to_string(setup.run_dir.join("events.jsonl")).unwrap_or_default();
        assert_eq!(written.lines().count(), KEPT + 5);
        assert!(written.starts_with("{\"n\":1,"));
        let _ = std::fs::remove_dir_all(&setup.run_dir);
    }

    #[test]
    fn a_full_file_becomes_the_old_one() {
        let (setup, mut log) = log("rotate");
        log.file.size = ROTATE_AT;
        log.report(&EventReport { event: Event::new("test") }, &mut Context::detached(&setup, None, &mut Vec::new()));
        assert!(setup.run_dir.join("events.jsonl.1").exists());
        let written = std::fs::read_to_string(setup.run_dir.join("events.jsonl")).unwrap_or_default();
        assert_eq!(written.lines().count(), 1);
        let _ = std::fs::remove_dir_all(&setup.run_dir);
    }
}
