//! What a demo found out: for people (`report.txt`) and for programs (`report.json`).
//!
//! Invariant: a demo passes only when every client has received the very bytes of the programme and every wanted kill was
//! done; what is missing is said.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::output::{self, Table};
use crate::recovery::Recovery;
use crate::survey::text;

/// Bytes that had arrived by a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    /// Since the client began.
    pub(crate) at_ms: f64,
    pub(crate) bytes: u64,
}

/// The report as a whole.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) passed: bool,
    /// Why not, if so.
    pub(crate) complaints: Vec<String>,
    pub(crate) programme: Programme,
    pub(crate) kills_wanted: usize,
    pub(crate) crashes: Vec<Crash>,
    pub(crate) clients: Vec<Client>,
}

/// What is streamed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Programme {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) bytes_per_second: f64,
    pub(crate) sha256: String,
}

/// One SIGKILL and what became of it.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Crash {
    /// From 1.
    pub(crate) number: usize,
    /// Seconds since the streams began.
    pub(crate) at_s: f64,
    pub(crate) at_unix_ms: u64,
    /// Process that was killed.
    pub(crate) pid: u32,
    /// Process that came after it.
    pub(crate) next_pid: Option<u32>,
    /// The timeline that APP_COMM_SERVER kept.
    pub(crate) recovery: Option<Recovery>,
}

/// What one client has to say.
#[derive(Debug, Serialize)]
pub(crate) struct Client {
    pub(crate) name: String,
    /// Whether it received the programme, byte for byte.
    pub(crate) identical: bool,
    /// Longest time without bytes that overlaps each recovery, in milliseconds.
    pub(crate) gaps_ms: Vec<Option<f64>>,
    /// Its own report (`examples/audio-streaming/README.md`); null when there is none.
    pub(crate) report: Value,
    #[serde(skip)]
    pub(crate) start_s: f64,
    #[serde(skip)]
    pub(crate) arrivals: Vec<Arrival>,
}

impl Client {
    /// Reads what a client has left: its report and its packet log.
    pub(crate) fn read(name: String, report: &Path, packet_log: &Path, programme: &Programme, origin_ms: u64, crashes: &[Crash]) -> Client {
        let report: Value = std::fs::read(report).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null);
        let arrivals = arrivals(&std::fs::read_to_string(packet_log).unwrap_or_default(), &report);
        let start_s = report["start_unix_ms"].as_u64().map_or(0.0, |start| (start as f64 - origin_ms as f64) / 1e3);
        let gap = |(number, crash): (usize, &Crash)| {
            let from = (crash.at_s - start_s) * 1e3;
            let next = crashes.get(number + 1).map_or(f64::INFINITY, |next| (next.at_s - start_s) * 1e3);
            let flowing = crash.recovery.as_ref().and_then(|recovery| recovery.flowing_ms);
            longest_gap(&arrivals, from, flowing.map_or(next, |ms| from + ms as f64))
        };
        let gaps_ms = crashes.iter().enumerate().map(gap).collect();
        let identical = report["outcome"] == "complete" && report["sha256"] == *programme.sha256;
        Client { name, identical, gaps_ms, report, start_s, arrivals }
    }
}

/// Arrivals of whole packets (`packet,due_ms,late_ms`); without a log, those of the report's coarse series.
fn arrivals(packet_log: &str, report: &Value) -> Vec<Arrival> {
    let format = |key: &str| report["format"][key].as_u64().unwrap_or(0);
    let expected = report["bytes_expected"].as_u64().or(report["bytes_received"].as_u64()).unwrap_or(0);
    let packets = report["packets_expected"].as_u64().unwrap_or(0).max(1);
    let head = expected.min(if format("sample_rate") > 0 { 44 } else { 0 });
    let row = |(index, line): (usize, &str)| {
        let mut cells = line.split(',').skip(1).map(|cell| cell.trim().parse::<f64>());
        let (due, late) = (cells.next()?.ok()?, cells.next()?.ok()?);
        let bytes = head + (u128::from(expected - head) * (index as u128 + 1) / u128::from(packets)) as u64;
        Some(Arrival { at_ms: due + late, bytes: bytes.min(expected) })
    };
    let logged: Vec<Arrival> = packet_log.lines().skip(1).enumerate().map_while(row).collect();
    if !logged.is_empty() {
        return logged;
    }
    let width = report["arrivals"]["bucket_ms"].as_f64().unwrap_or(0.0);
    let series = report["arrivals"]["series"].as_array().map_or(&[][..], Vec::as_slice);
    let entry = |sum: &mut u64, entry: &Value| {
        *sum += entry[1].as_u64()?;
        Some(Arrival { at_ms: entry[0].as_f64()? + width, bytes: *sum })
    };
    series.iter().scan(0, entry).collect()
}

/// Longest time between two arrivals, of those times that have a part in `from..=until`.
fn longest_gap(arrivals: &[Arrival], from: f64, until: f64) -> Option<f64> {
    let after = arrivals.windows(2).filter(|pair| pair[1].at_ms >= from && pair[0].at_ms <= until);
    after.map(|pair| pair[1].at_ms - pair[0].at_ms).max_by(f64::total_cmp).map(|gap| (gap * 10.0).round() / 10.0)
}

impl Report {
    /// Judges what was found.
    pub(crate) fn new(programme: Programme, kills_wanted: usize, crashes: Vec<Crash>, clients: Vec<Client>) -> Report {
        let mut complaints = Vec::new();
        for client in clients.iter().filter(|client| !client.identical) {
            let outcome = match client.report["outcome"].as_str() {
                None => "left no report".to_owned(),
                Some("complete") => "received other bytes than the programme's".to_owned(),
                Some(outcome) => format!("ended with {outcome}: {}", text(&client.report["detail"])),
            };
            complaints.push(format!("{} {outcome}", client.name));
        }
        if crashes.len() < kills_wanted {
            complaints.push(format!("only {} of {kills_wanted} kills were done before the streams ended", crashes.len()));
        }
        Report { passed: complaints.is_empty() && !clients.is_empty(), complaints, programme, kills_wanted, crashes, clients }
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let Programme { seconds, bytes, bytes_per_second, sha256 } = &self.programme;
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ =
            writeln!(out, "Programme: {seconds:.1} s of audio, {bytes} bytes at {:.1} KB/s\nSHA-256:   {sha256}\n", bytes_per_second / 1e3);
        let _ = writeln!(out, "Clients (played as the packets arrive, without a playout buffer)\n{}", indent(&self.client_table()));
        if self.crashes.is_empty() {
            let _ = writeln!(out, "Crashes: none");
        } else {
            let _ = writeln!(out, "Crashes (SIGKILL to audio-server) and recoveries, ms after the crash\n{}", indent(&self.crash_table()));
        }
        match self.passed {
            true => {
                let (clients, crashes) = (self.clients.len(), self.crashes.len());
                let _ = writeln!(
                    out,
                    "Passed: {clients} of {clients} clients received the identical stream over {crashes} crashes of the server."
                );
            }
            false => {
                let _ = writeln!(out, "FAILED: {}.", self.complaints.join("; "));
            }
        }
        out
    }

    fn client_table(&self) -> String {
        let mut table =
            Table::new(&["CLIENT", "OUTCOME", "BYTES", "LONGEST GAP", "UNDERRUNS", "LATE P99", "IDENTICAL", "SHA-256 OF WHAT IT RECEIVED"]);
        for client in &self.clients {
            let report = &client.report;
            let ms = |value: &Value| value.as_f64().map_or_else(String::new, |ms| format!("{ms:.1} ms"));
            let gap = match (report["longest_gap_ms"].as_f64(), report["longest_gap_at_ms"].as_f64()) {
                (Some(gap), Some(at)) => format!("{gap:.1} ms at {:.2} s", at / 1e3),
                _ => String::new(),
            };
            let playback = &report["playback"];
            let underruns = match playback["longest_underrun_ms"].as_f64() {
                Some(longest) if longest > 0.0 => format!("{}, up to {longest:.1} ms", text(&playback["underruns"])),
                _ => text(&playback["underruns"]),
            };
            table.row([
                client.name.clone(),
                text(&report["outcome"]),
                text(&report["bytes_received"]),
                gap,
                underruns,
                ms(&report["lateness_ms"]["p99"]),
                if client.identical { "yes" } else { "NO" }.to_owned(),
                text(&report["sha256"]),
            ]);
        }
        table.render()
    }

    fn crash_table(&self) -> String {
        let steps = Recovery::default().steps().map(|(step, _)| step.to_uppercase());
        let columns = ["CRASH", "AT", "PID"].into_iter().chain(steps.iter().map(String::as_str)).chain(["CLIENTS' GAPS"]);
        let mut table = Table::new(&columns.collect::<Vec<_>>());
        for (index, crash) in self.crashes.iter().enumerate() {
            let next = crash.next_pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
            let mut row = vec![crash.number.to_string(), format!("{:.2} s", crash.at_s), format!("{} -> {next}", crash.pid)];
            let steps = crash.recovery.clone().unwrap_or_default().steps();
            row.extend(steps.iter().map(|(_, ms)| ms.map_or_else(String::new, |ms| ms.to_string())));
            let gaps = self
                .clients
                .iter()
                .map(|client| client.gaps_ms.get(index).copied().flatten().map_or("-".to_owned(), |ms| format!("{ms:.0}")));
            row.push(gaps.collect::<Vec<_>>().join(", "));
            table.row(row);
        }
        table.render()
    }

    /// One line that says how long a recovery took.
    pub(crate) fn line(crash: &Crash) -> String {
        let Some(recovery) = &crash.recovery else { return format!("crash {}: no recovery yet", crash.number) };
        let steps = recovery.steps().into_iter().filter_map(|(step, ms)| Some(format!("{step} {}", ms?)));
        format!("recovery {} (ms after the crash): {}", crash.number, steps.collect::<Vec<_>>().join(", "))
    }

    /// When the demo was, for the head of the report.
    pub(crate) fn head(origin_ms: u64) -> String {
        format!("ARMOR demo of {}: one audio server under supervision, killed in mid-stream (thesis §4.6)\n\n", output::time(origin_ms))
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    fn programme() -> Programme {
        Programme { seconds: 1.0, bytes: 2044, bytes_per_second: 2000.0, sha256: "ab".repeat(32) }
    }

    fn client(report: Value) -> Client {
        let identical = report["sha256"] == *programme().sha256;
        Client { name: "client 1".to_owned(), identical, gaps_ms: vec![Some(61.2)], report, start_s: 0.0, arrivals: Vec::new() }
    }

    #[test]
    fn a_demo_passes_only_with_identical_bytes_and_all_kills() {
        let same = || client(json!({ "outcome": "complete", "sha256": "ab".repeat(32) }));
        let other = client(json!({ "outcome": "complete", "sha256": "cd".repeat(32) }));
        assert!(Report::new(programme(), 1, vec![Crash::default()], vec![same()]).passed);
        assert!(!Report::new(programme(), 1, Vec::new(), vec![same()]).passed);
        assert!(!Report::new(programme(), 0, Vec::new(), Vec::new()).passed);
        let report = Report::new(programme(), 0, Vec::new(), vec![same(), other, client(Value::Null)]);
        assert_eq!(report.complaints, ["client 1 received other bytes than the programme's", "client 1 left no report"]);
        assert!(report.text().contains("FAILED: client 1 received"), "{}", report.text());
    }

    #[test]
    fn every_step_of_a_recovery_has_its_column() {
        let recovery = Recovery { ready_ms: Some(4), flowing_ms: Some(9), ..Recovery::default() };
        let crash = Crash { number: 1, recovery: Some(recovery), ..Crash::default() };
        let table = Report::new(programme(), 1, vec![crash], vec![client(Value::Null)]).crash_table();
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
        let cell = |column: &str| rows[0].iter().position(|head| *head == column).map(|at| rows[1][at]);
        assert_eq!([cell("BOUND"), cell("READY"), cell("FLOWING"), cell("CLIENTS' GAPS")], [Some("-"), Some("4"), Some("9"), Some("61")]);
    }

    #[test]
    fn packet_logs_become_bytes_over_time() {
        let report = json!({ "bytes_expected": 2044, "packets_expected": 4, "format": { "sample_rate": 1000 } });
        let arrivals = arrivals("packet,due_ms,late_ms\n0,0.000,0.500\n1,20.000,130.000\nbroken", &report);
        assert_eq!(arrivals, [Arrival { at_ms: 0.5, bytes: 544 }, Arrival { at_ms: 150.0, bytes: 1044 }]);
        assert_eq!(longest_gap(&arrivals, 30.0, 200.0), Some(149.5));
        assert_eq!(longest_gap(&arrivals, 160.0, 200.0), None);
        assert_eq!(longest_gap(&arrivals, -20.0, 0.0), None);
    }

    #[test]
    fn without_a_packet_log_the_series_is_used() {
        let report = json!({ "arrivals": { "bucket_ms": 100, "series": [[0, 5], [100, 7]] } });
        assert_eq!(arrivals("", &report), [Arrival { at_ms: 100.0, bytes: 5 }, Arrival { at_ms: 200.0, bytes: 12 }]);
    }

    #[test]
    fn a_recovery_is_read_from_the_status_even_when_fields_are_missing() {
        let recovery: Recovery = serde_json::from_value(json!({ "service": "audio", "at_ms": 5, "flowing_ms": 9, "new": 1 })).unwrap();
        let crash = Crash { number: 2, recovery: Some(recovery), ..Crash::default() };
        assert_eq!(Report::line(&crash), "recovery 2 (ms after the crash): flowing 9");
    }
}
