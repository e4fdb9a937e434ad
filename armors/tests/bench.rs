//! `armor bench` in its short form: everything is measured, told and ended again. Figures are not judged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAMS: [&str; 3] = ["bench-client", "bench-server", "bench-proxy"];

/// Where the programs are that are measured with; they are built once.
fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_BIN_EXE_armor")).parent().unwrap();
        let there = |directory: &Path| PROGRAMS.iter().all(|name| directory.join(name).exists());
        if !there(directory) {
            let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "armor-benches", "--bins"]).status().unwrap();
            assert!(built.success(), "cargo build -p armor-benches");
        }
        // A release build of the tests takes them from the directory of the debug build.
        if there(directory) { directory.to_path_buf() } else { directory.with_file_name("debug") }
    })
}

/// A place of its own: programs, temporary files, results.
fn bench(place: &Path, programs: &[&Path], arguments: &[&str]) -> Command {
    for from in programs.iter().copied().chain([Path::new(env!("CARGO_BIN_EXE_armor"))]) {
        let to = place.join(from.file_name().unwrap());
        // Not copied by this process: what it has open for writing, a program that another test is just starting would hold open too.
        let linked = std::fs::hard_link(from, &to).is_ok() || Command::new("cp").arg(from).arg(&to).status().unwrap().success();
        assert!(linked, "{}", to.display());
    }
    let temporary = place.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(place.join("armor"));
    command.args(["bench", "--short", "--out"]).arg(place.join("out")).args(arguments);
    command.env("TMPDIR", temporary).env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").stdin(Stdio::null());
    command
}

fn all_programs() -> Vec<PathBuf> {
    PROGRAMS.iter().map(|name| programs().join(name)).collect()
}

/// Processes that have the place in their command line: none may be left.
fn left_behind(place: &Path) -> Vec<String> {
    let place = place.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = processes.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&place)).collect()
}

fn assert_clean(place: &Path) {
    assert_eq!(left_behind(place), Vec::<String>::new());
    let files: Vec<_> = std::fs::read_dir(place.join("tmp")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn every_row_is_measured_and_the_page_is_written() {
    let place = tempfile::tempdir().unwrap();
    let page = place.path().join("performance.md");
    let programs = all_programs();
    let programs: Vec<&Path> = programs.iter().map(PathBuf::as_path).collect();
    let output = bench(place.path(), &programs, &["--failures=1", "--write", page.to_str().unwrap()]).output().unwrap();
    let said = format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");

    let report: Value = serde_json::from_slice(&std::fs::read(place.path().join("out/report.json")).unwrap()).unwrap();
    let rows: Vec<&str> = report["rows"].as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    let left_out = report["left_out"].as_object().unwrap();
    assert_eq!(rows.len() + left_out.len(), 7, "{report}");
    for row in ["direct", "own", "daemon", "execution"] {
        assert!(rows.contains(&row), "{row} needs no other software: {rows:?}");
    }
    let figures = report["figures"].as_array().unwrap();
    for figure in figures {
        for told in figure["rows"].as_array().unwrap() {
            assert_eq!(told["values"].as_object().unwrap().len(), 1, "{figure}");
            assert!(told["median"].as_f64().unwrap() > 0.0 || figure["metric"] == "memory", "{figure}");
        }
    }
    let measured = |metric: &str, pinning: &str, row: &str| {
        let of_metric = |figure: &&Value| figure["metric"] == metric && figure["pinning"] == pinning;
        let has = |figure: &Value| figure["rows"].as_array().unwrap().iter().any(|told| told["row"] == row);
        figures.iter().filter(of_metric).filter(|figure| has(figure)).count()
    };
    for row in &rows {
        // On one core nobody runs beside what spins.
        let pinnings: &[&str] = if *row == "haproxy-busy" { &["free"] } else { &["free", "one-core"] };
        for pinning in pinnings {
            assert_eq!(measured("round-trip", pinning, row), 2, "two packet sizes, {row}, {pinning}");
            for metric in ["connect", "close", "short-connection", "download", "upload", "logged-upload", "connection-rate", "requests"] {
                assert_eq!(measured(metric, pinning, row), 1, "{metric}, {row}, {pinning}");
            }
        }
        assert_eq!(measured("round-trip-beside", "free", row), 2, "{row}");
    }
    for metric in ["init", "bind"] {
        assert!(["direct", "daemon", "execution"].iter().all(|row| measured(metric, "one-core", row) == 1), "{metric}");
    }
    assert!(
        measured("download-cpu", "free", "daemon") == 1
            && measured("exchange-cpu", "one-core", "daemon") == 2
            && measured("memory", "free", "daemon") == 2
    );
    let recovered: Vec<&str> = report["recovery"].as_array().unwrap().iter().map(|cell| cell["target"].as_str().unwrap()).collect();
    assert_eq!(recovered, ["server", "daemon", "execution", "node"]);
    assert!(report["goals"].as_array().unwrap().iter().any(|goal| goal["found"].as_f64().unwrap() > 0.0));
    if rustix::process::geteuid().is_root() && report["congestion_may_differ"].is_null() {
        let congestion = report["congestion"].as_object().unwrap();
        assert!(congestion.values().all(|name| name == "cubic"), "all the same: {congestion:?}");
    }

    let text = std::fs::read_to_string(&page).unwrap();
    for expected in
        ["Round trip by packet size (thesis table 6.1), not pinned: µs", "| ARMOR, Execution ARMORs |", "## Recovery (thesis tables"]
    {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(std::fs::read_to_string(place.path().join("performance/round-trip.svg")).unwrap().contains("Thesis, table 6.1"));
    let told = std::fs::read_to_string(place.path().join("out/report.txt")).unwrap();
    assert!(told.contains("Goals: "));
    let mut again = Command::new(place.path().join("armor"));
    again.args(["bench", "--from"]).arg(place.path().join("out/report.json")).stdin(Stdio::null());
    assert_eq!(String::from_utf8(again.output().unwrap().stdout).unwrap(), told);
    assert_clean(place.path());
}

#[test]
fn ctrl_c_ends_everything() {
    let place = tempfile::tempdir().unwrap();
    let programs = all_programs();
    let programs: Vec<&Path> = programs.iter().map(PathBuf::as_path).collect();
    let mut bench = bench(place.path(), &programs, &["--failures=0"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(bench.stderr.take().unwrap()).lines().map_while(Result::ok);
    lines.find(|line| line.contains("measuring, 1 rounds")).expect("progress");
    assert!(left_behind(place.path()).len() > 10);
    kill_process(Pid::from_raw(bench.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let rest: Vec<String> = lines.collect();
    assert_eq!(bench.wait().unwrap().code(), Some(130), "{rest:?}");
    assert_clean(place.path());
}

#[test]
fn missing_programs_are_told_before_anything_starts() {
    let place = tempfile::tempdir().unwrap();
    let output = bench(place.path(), &[], &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("bench-client is missing; build it with `cargo build --release -p armor-benches`"), "{said}");
    assert!(!place.path().join("out").exists());
    assert_clean(place.path());
}
