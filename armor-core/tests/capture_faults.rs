//! Captured state on a full disk, beyond a size limit of the process, and in processes that are killed while they save.
//!
//! Each test runs itself again in processes of their own, which play the part that [`ROLE`] names in the directory that [`PLACE`] names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use armor_core::capture::CaptureStore;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

const ROLE: &str = "ARMOR_TEST_ROLE";
const PLACE: &str = "ARMOR_TEST_PLACE";

fn place() -> PathBuf {
    std::env::var_os(PLACE).expect("a process that plays a part knows where").into()
}

fn is(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|played| played == role)
}

/// The calling test in a process of its own, started by `sh`, in which `"$@"` is the process.
fn played(test: &str, role: &str, place: &Path, script: &str, unshare: &[&str]) -> Command {
    let mut command = match unshare {
        [] => Command::new("sh"),
        arguments => {
            let mut command = Command::new("unshare");
            command.args(arguments).arg("sh");
            command
        }
    };
    command.args(["-c", script, "sh"]).arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    command.env(ROLE, role).env(PLACE, place).stdin(Stdio::null());
    command
}

fn succeeded(output: &Output) {
    let [out, err] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(output.status.success(), "{}\n{out}{err}", output.status);
}

/// Stands in for `mount` when there is no file system of the test's own: the process may not write files beyond so many blocks.
const LIMITED: &str = "trap '' XFSZ; ulimit -f 200 && exec \"$@\"";

#[test]
fn a_process_that_may_not_write_more_keeps_the_state_before() {
    if is("limited") {
        return too_large_for_the_limit(&place());
    }
    let directory = tempfile::tempdir().unwrap();
    succeeded(
        &played("a_process_that_may_not_write_more_keeps_the_state_before", "limited", directory.path(), LIMITED, &[]).output().unwrap(),
    );
    // What was there when the process ended is there for the next one.
    assert_eq!(CaptureStore::open(directory.path()).unwrap().load("e").unwrap(), vec![2; 1000]);
}

fn too_large_for_the_limit(place: &Path) {
    let mut store = CaptureStore::open(place).unwrap();
    store.save("e", &[1; 1000]).unwrap();
    // More than 200 blocks, whether the shell's have 512 or 1024 bytes.
    let refused = store.save("e", &vec![9; 400 << 10]).unwrap_err().to_string();
    assert!(refused.starts_with(&format!("{}: File too large", place.join("e.1").display())), "{refused}");
    assert_eq!(store.load("e").unwrap(), vec![1; 1000]);
    store.save("e", &[2; 1000]).unwrap();
    assert_eq!(store.load("e").unwrap(), vec![2; 1000]);
    assert!(store.save("e", &vec![9; 400 << 10]).is_err());
    assert_eq!(store.load("e").unwrap(), vec![2; 1000]);
}

/// With a file system of its own, of 256 KiB, in a mount namespace; without the right to mount one, with a limit on files instead.
#[test]
fn on_a_full_disk_states_that_are_no_larger_are_saved_and_the_last_one_survives_larger_ones() {
    const TEST: &str = "on_a_full_disk_states_that_are_no_larger_are_saved_and_the_last_one_survives_larger_ones";
    if is("full") {
        return fill_the_disk(&place());
    }
    if is("limited") {
        return too_large_for_the_limit(&place());
    }
    let directory = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=256k none {} && exec \"$@\"", directory.path().display());
    let mount_only = format!("mount -t tmpfs -o size=256k none {}", directory.path().display());
    let ways: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    let may = |way: &&&[&str]| {
        Command::new("unshare").args(**way).args(["sh", "-c", &mount_only]).output().is_ok_and(|output| output.status.success())
    };
    match ways.iter().find(may) {
        Some(way) => succeeded(&played(TEST, "full", directory.path(), &script, way).output().unwrap()),
        None => {
            eprintln!("no right to mount a file system: a limit on the size of files stands in for the full disk");
            succeeded(&played(TEST, "limited", directory.path(), LIMITED, &[]).output().unwrap());
        }
    }
}

fn fill_the_disk(place: &Path) {
    let mut store = CaptureStore::open(&place.join("state")).unwrap();
    store.save("e", &vec![1; 40_000]).unwrap();
    store.save("e", &vec![2; 50_000]).unwrap();
    let mut filler = std::fs::File::create(place.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    assert!(filler.write_all(&[0; 4096]).unwrap_err().kind() == std::io::ErrorKind::StorageFull);

    // A larger state does not fit, again and again; the last one stays, for this life and for the next.
    for _ in 0..5 {
        let refused = store.save("e", &vec![9; 80_000]).unwrap_err().to_string();
        let expected = format!("{}: No space left on device (os error 28)", place.join("state/e.0").display());
        assert_eq!(refused, expected);
        assert_eq!(store.load("e").unwrap(), vec![2; 50_000]);
        assert_eq!(CaptureStore::open(&place.join("state")).unwrap().load("e").unwrap(), vec![2; 50_000]);
    }
    // One that is no larger than what its slot has held is saved all the same, and so is the next.
    for number in 3..9 {
        store.save("e", &vec![number; 40_000]).unwrap();
        assert_eq!(CaptureStore::open(&place.join("state")).unwrap().load("e").unwrap(), vec![number; 40_000]);
    }
    // An element that was never saved has no room yet.
    assert!(store.save("other", &vec![1; 40_000]).is_err());
    assert_eq!(store.load("other"), None);
    drop(filler);
    std::fs::remove_file(place.join("filler")).unwrap();
    store.save("e", &vec![9; 80_000]).unwrap();
    store.save("other", &vec![1; 10_000]).unwrap();
    assert_eq!(store.load("e").unwrap(), vec![9; 80_000]);
}

/// The state with a number: of a random size, up to 300 KB, and so that no part of one looks like that of another.
fn state(number: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(number);
    let mut state = number.to_le_bytes().to_vec();
    state.resize(random.random_range(8..300_000), 0);
    random.fill(&mut state[8..]);
    state
}

#[test]
fn a_process_that_is_killed_while_it_saves_loses_nothing_that_was_saved() {
    if is("saves") {
        return save_without_end(&place());
    }
    let directory = tempfile::tempdir().unwrap();
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut last = 0;
    for round in 0..40 {
        let mut process =
            played("a_process_that_is_killed_while_it_saves_loses_nothing_that_was_saved", "saves", directory.path(), "exec \"$@\"", &[])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
        let saved = random.random_range(1..40);
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut told = last;
        let mut hear = |told: &mut u64| {
            let line = lines.next()?.ok()?;
            // Among what the test's own process says.
            if let Some(number) = line.split("saved ").nth(1) {
                *told = number.trim().parse().unwrap();
            }
            Some(())
        };
        while told < last + saved {
            hear(&mut told).expect("the process saves until it is killed");
        }
        // In the midst of the next save, most likely.
        std::thread::sleep(std::time::Duration::from_micros(random.random_range(0..400)));
        process.kill().unwrap();
        process.wait().unwrap();
        // What it had said before it died.
        while hear(&mut told).is_some() {}
        let kept = CaptureStore::open(directory.path()).unwrap().load("e").expect("a state");
        let number = u64::from_le_bytes(kept[..8].try_into().unwrap());
        assert!(kept == state(number), "round {round}: state {number} is not whole");
        assert!(number == told || number == told + 1, "round {round}: told {told}, kept {number}");
        last = number;
    }
}

fn save_without_end(place: &Path) {
    let mut store = CaptureStore::open(place).unwrap();
    let kept = store.load("e").map_or(0, |kept| u64::from_le_bytes(kept[..8].try_into().unwrap()));
    for number in kept + 1.. {
        store.save("e", &state(number)).unwrap();
        // One write, so that a kill leaves the line whole or out.
        std::io::stdout().write_all(format!("saved {number}\n").as_bytes()).unwrap();
    }
}
