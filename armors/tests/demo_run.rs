//! `armor demo` as a user starts it: it passes, it leaves its report, and nothing of it stays behind however it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};

/// A copy of the program beside the audio programs, or without them.
fn program(place: &Path, with_audio: bool) -> PathBuf {
    let armor = Path::new(env!("CARGO_BIN_EXE_armor"));
    let link = |from: &Path| {
        let to = place.join(from.file_name().unwrap());
        // On another file system a copy, made by another process: what this one has open for writing, a program that another test is
        // just starting would hold open too, and then it cannot be executed.
        let linked = std::fs::hard_link(from, &to).is_ok() || Command::new("cp").arg(from).arg(&to).status().unwrap().success();
        assert!(linked, "{}", to.display());
        to
    };
    if with_audio {
        for name in ["audio-server", "audio-client"] {
            link(&audio_programs().join(name));
        }
    }
    link(armor)
}

/// Where the example's programs are; they are built once.
fn audio_programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_BIN_EXE_armor")).parent().unwrap().to_path_buf();
        if !directory.join("audio-server").exists() || !directory.join("audio-client").exists() {
            let built = Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "audio-streaming", "--bins"]).status().unwrap();
            assert!(built.success(), "cargo build -p audio-streaming");
            // A release build of the tests takes the same programs from the directory of the debug build.
            let debug = directory.with_file_name("debug");
            return if directory.join("audio-server").exists() { directory } else { debug };
        }
        directory
    })
}

/// A place of its own: program, temporary files, results.
fn demo(place: &Path, with_audio: bool, arguments: &[&str]) -> Command {
    let temporary = place.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(program(place, with_audio));
    command.args(["demo", "--out"]).arg(place.join("out")).args(arguments).env("TMPDIR", temporary).env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null());
    command
}

/// Processes that have the place in their command line or working directory: none may be left.
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
fn the_demo_passes_and_leaves_its_report_only() {
    let place = tempfile::tempdir().unwrap();
    let output = demo(place.path(), true, &["--seconds", "6", "--kills", "2"]).output().unwrap();
    let said = format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Passed: 3 of 3 clients received the identical stream over 2 crashes"), "{said}");

    let out = place.path().join("out");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["passed"], true);
    let crashes = report["crashes"].as_array().unwrap();
    assert_eq!(crashes.len(), 2);
    for crash in crashes {
        assert!(crash["recovery"]["flowing_ms"].is_u64(), "{crash}");
        assert_ne!(crash["pid"], crash["next_pid"]);
    }
    // Not by the word of anybody: the files themselves.
    let programme = std::fs::read(out.join("programme.wav")).unwrap();
    for client in 1..=3 {
        assert!(std::fs::read(out.join(format!("client-{client}.wav"))).unwrap() == programme, "client {client}");
    }
    let picture = std::fs::read_to_string(out.join("timeline.svg")).unwrap();
    assert!(picture.contains("crash 2 at ") && picture.contains("client 3"));
    assert!(std::fs::read_to_string(out.join("report.txt")).unwrap().contains("Passed: "));
    assert_clean(place.path());
}

#[test]
fn ctrl_c_ends_everything() {
    let place = tempfile::tempdir().unwrap();
    let mut demo = demo(place.path(), true, &["--seconds", "30"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    lines.find(|line| line.contains("client 1:")).expect("progress");
    assert!(left_behind(place.path()).len() > 4);
    kill_process(Pid::from_raw(demo.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let rest: Vec<String> = lines.collect();
    assert_eq!(demo.wait().unwrap().code(), Some(130), "{rest:?}");
    assert_clean(place.path());
}

#[test]
fn missing_audio_programs_are_told_before_anything_starts() {
    let place = tempfile::tempdir().unwrap();
    let output = demo(place.path(), false, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("audio-server is neither beside ") && said.contains("`cargo build --release -p audio-streaming`"), "{said}");
    assert!(!place.path().join("out").exists());
    assert_clean(place.path());
}
