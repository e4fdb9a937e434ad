//! Captured states whose memory or file is damaged, on a full disk, beyond a size limit of the process, and in processes that are killed while they
//! save.
//!
//! Some tests run themselves again in processes of their own, which play the part that [`ROLE`] names in the directory that [`PLACE`] names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use armor_core::capture::{
    CaptureError, CapturedStates, FileError, FileFound, MAX_ELEMENTS, MAX_STATE, StateFile, StateMemory, StateStore as _,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

const ROLE: &str = "ARMOR_TEST_ROLE";
const PLACE: &str = "ARMOR_TEST_PLACE";
const PATIENCE: Duration = Duration::from_secs(60);

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

/// The state with a number: of a random size, up to 300 KB, and so that no part of one looks like that of another.
fn state(number: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(number);
    let mut state = number.to_le_bytes().to_vec();
    state.resize(random.random_range(8..300_000), 0);
    random.fill(&mut state[8..]);
    state
}

fn number_of(state: &[u8]) -> u64 {
    u64::from_le_bytes(state[..8].try_into().unwrap())
}

fn seeded() -> StdRng {
    let seed = std::env::var("ARMOR_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("ARMOR_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

// In memory.

/// Bytes before each state.
const HEAD_IN_MEMORY: u64 = 112;

/// Another descriptor of the memory, as the vault has one.
fn vault_of(states: &CapturedStates) -> OwnedFd {
    states.memory().descriptor().try_clone_to_owned().unwrap()
}

/// A copy of a memory: only what was ever written, at its place.
fn copy_of(memory: &OwnedFd) -> StateMemoryCopy {
    let file = File::from(memory.try_clone().unwrap());
    let length = file.metadata().unwrap().len();
    let mut parts = Vec::new();
    let mut at = 0;
    // Holes are left out.
    while at < length
        && let Ok(from) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at))
    {
        let until = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(from)).unwrap();
        let mut bytes = vec![0; (until - from) as usize];
        file.read_exact_at(&mut bytes, from).unwrap();
        parts.push((from, bytes));
        at = until;
    }
    StateMemoryCopy { parts, length }
}

struct StateMemoryCopy {
    parts: Vec<(u64, Vec<u8>)>,
    length: u64,
}

impl StateMemoryCopy {
    fn memory(&self) -> OwnedFd {
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memory);
        for (at, bytes) in &self.parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file.set_len(self.length).unwrap();
        file.into()
    }
}

#[test]
fn states_in_memory_outlive_their_process_and_the_newest_one_is_given_back() {
    let mut states = CapturedStates::open(None, None).unwrap();
    states.start_afresh().unwrap();
    let number = states.number();
    for round in 0..5_u8 {
        states.save("APP_SERVER_DB", &[round; 100]).unwrap();
        states.save("daemon_registry", &[round; 3]).unwrap();
        let mut next = CapturedStates::open(Some(vault_of(&states)), None).unwrap();
        assert_eq!(next.load("APP_SERVER_DB").state.unwrap(), [round; 100]);
        assert_eq!(next.load("daemon_registry").state.unwrap(), [round; 3]);
        assert_eq!(next.load("event_log"), Default::default());
        assert_eq!(next.number(), number, "nothing is lost");
        states = next;
    }
}

#[test]
fn wherever_a_save_to_memory_is_cut_off_the_state_before_is_there() {
    for (old, new) in [(&b"some old state"[..], &b"new"[..]), (b"old", b"a longer new state"), (b"", b"x"), (b"equal", b"alike")] {
        let mut states = CapturedStates::open(None, None).unwrap();
        states.save("e", old).unwrap();
        states.save("e", b"the state before").unwrap();
        let before = copy_of(&vault_of(&states));
        states.save("e", new).unwrap();
        let after = copy_of(&vault_of(&states));
        // What the save has changed, in the order in which it writes: the state, then the head before it.
        let changed: Vec<(u64, u8)> =
            bytes(&after).into_iter().zip(bytes(&before)).filter(|(new, old)| new != old).map(|(new, _)| new).collect();
        let first = changed[0].0;
        let (head, body): (Vec<_>, Vec<_>) = changed.into_iter().partition(|(at, _)| *at < first / 4096 * 4096 + 112);
        for written in 0..=body.len() {
            let torn = before.memory();
            let file = File::from(torn.try_clone().unwrap());
            for (at, byte) in &body[..written] {
                file.write_all_at(&[*byte], *at).unwrap();
            }
            let mut next = CapturedStates::open(Some(torn), None).unwrap();
            let loaded = next.load("e");
            assert_eq!(loaded.state.unwrap(), b"the state before", "{written} bytes of {new:?} over {old:?}");
            assert_eq!(loaded.refused, Vec::<String>::new(), "a save that was cut off is no damage");
        }
        assert!(!head.is_empty());
        assert_eq!(CapturedStates::open(Some(after.memory()), None).unwrap().load("e").state.unwrap(), new);
    }
}

fn bytes(copy: &StateMemoryCopy) -> Vec<(u64, u8)> {
    copy.parts.iter().flat_map(|(from, bytes)| bytes.iter().enumerate().map(move |(at, byte)| (from + at as u64, *byte))).collect()
}

#[test]
fn a_flipped_bit_in_memory_costs_one_state_and_is_told() {
    let mut states = CapturedStates::open(None, None).unwrap();
    states.save("e", b"first").unwrap();
    states.save("e", b"second").unwrap();
    let number = states.number();
    let good = copy_of(&vault_of(&states));
    let mut random = seeded();
    let (mut lost, mut kept) = (0, 0);
    for _ in 0..2000 {
        let memory = good.memory();
        let part = random.random_range(0..good.parts.len());
        // Where something lies: behind it a page is blank, and blank bytes that change belong to nothing.
        let at = random.random_range(0..good.parts[part].1.len().min(130));
        let byte = good.parts[part].1[at];
        let file = File::from(memory.try_clone().unwrap());
        file.write_all_at(&[byte ^ 1 << random.random_range(0..8)], good.parts[part].0 + at as u64).unwrap();
        let mut next = CapturedStates::open(Some(memory), None).unwrap();
        let loaded = next.load("e");
        let told = !loaded.refused.is_empty() || !next.take_nobodys().is_empty();
        match loaded.state.as_deref() {
            Some(b"second") => kept += 1,
            Some(b"first") | None if told => {
                lost += 1;
                assert_ne!(next.number(), number, "who told this ARMOR something is to tell it again");
            }
            other => panic!("{other:?}, part {part}, byte {at}"),
        }
        next.save("e", b"third").unwrap();
        assert_eq!(CapturedStates::open(Some(vault_of(&next)), None).unwrap().load("e").state.unwrap(), b"third");
    }
    assert!(lost > 100 && kept > 100, "{lost} lost, {kept} kept");
}

#[test]
fn what_is_no_element_too_large_or_too_many_is_refused() {
    let mut states = CapturedStates::open(None, None).unwrap();
    for name in ["", "../e", "a/b", "a.0", "é", &"e".repeat(65)] {
        assert!(matches!(states.save(name, b"x"), Err(CaptureError::Name { .. })), "{name}");
    }
    states.save("e", b"small").unwrap();
    assert!(matches!(states.save("e", &vec![0; MAX_STATE + 1]), Err(CaptureError::TooLarge { .. })));
    for number in 1..MAX_ELEMENTS {
        states.save(&format!("e{number}"), b"x").unwrap();
    }
    assert!(matches!(states.save("another", b"x"), Err(CaptureError::Full)));
    assert_eq!(CapturedStates::open(Some(vault_of(&states)), None).unwrap().load("e").state.unwrap(), b"small");
}

#[test]
fn memory_that_is_something_else_is_told_and_left() {
    for content in [&b""[..], b"ARMOR", &[0xff; 5000]] {
        let memory = StateMemoryCopy { parts: vec![(0, content.to_vec())], length: content.len() as u64 }.memory();
        let mut states = CapturedStates::open(Some(memory), None).unwrap();
        assert_eq!(states.load("e"), Default::default());
        assert_eq!(states.take_nobodys().len(), 1);
        states.save("e", b"new").unwrap();
    }
    assert!(StateMemory::create().is_ok());
}

// On disk.

fn open(path: &Path) -> (StateFile, FileFound) {
    StateFile::open(path).unwrap()
}

fn found(path: &Path, element: &str) -> Option<Vec<u8>> {
    let (_file, found) = open(path);
    assert!(found.file_refused.is_none(), "{:?}", found.file_refused);
    found.kept.into_iter().find(|kept| kept.element == element).map(|kept| kept.state)
}

fn written(file: &StateFile) {
    assert!(file.flush(PATIENCE), "{:?}", file.state());
}

/// Where a sync costs nothing, if there is such a place.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// States of two elements, some generations of each.
fn good_file(directory: &Path) -> Vec<u8> {
    let path = directory.join("good");
    let (file, _) = open(&path);
    for sequence in 1..6_u64 {
        file.save("APP_SERVER_DB", sequence, &vec![sequence as u8; 5000 + sequence as usize]).unwrap();
        file.save("daemon_registry", sequence, &vec![sequence as u8; 300]).unwrap();
        written(&file);
    }
    // As SIGKILL leaves it: never closed.
    let bytes = std::fs::read(&path).unwrap();
    drop(file);
    bytes
}

#[test]
fn a_damaged_file_gives_whole_states_or_is_kept_aside_and_never_lies() {
    let mut random = seeded();
    let directory = in_memory();
    let unclean = good_file(directory.path());
    let clean = std::fs::read(directory.path().join("good")).unwrap();
    let path = directory.path().join("state.redb");
    let (mut aside, mut kept) = (0, 0);
    for round in 0..3600 {
        let mut bytes = if round % 2 == 0 { unclean.clone() } else { clean.clone() };
        match round / 2 % 6 {
            // The head of the file, all of it, a piece of it, and its end.
            0 => flip(&mut bytes[..4096], 1, &mut random),
            1 => flip(&mut bytes, 1, &mut random),
            2 => flip(&mut bytes, 64, &mut random),
            3 => {
                let from = random.random_range(0..bytes.len());
                let length = random.random_range(1..5000).min(bytes.len() - from);
                random.fill(&mut bytes[from..from + length]);
            }
            4 => bytes.truncate(random.random_range(0..clean.len())),
            _ => {
                let (from, to) = (random.random_range(0..bytes.len() / 4096), random.random_range(0..bytes.len() / 4096));
                bytes.copy_within(from * 4096..(from + 1) * 4096, to * 4096);
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let (file, found) = open(&path);
        for known in &found.kept {
            let length = if known.element == "APP_SERVER_DB" { 5000 + known.sequence as usize } else { 300 };
            assert!(known.state == vec![known.sequence as u8; length] && (1..6).contains(&known.sequence), "round {round}: {known:?}");
        }
        if let Some(refused) = &found.file_refused {
            aside += 1;
            assert_eq!(&std::fs::read(refused.aside.as_ref().unwrap()).unwrap(), &bytes, "round {round}: it is kept as it was");
            assert!(refused.reason.starts_with(&path.display().to_string()) && found.kept.is_empty(), "round {round}: {refused:?}");
        } else {
            kept += usize::from(!found.kept.is_empty());
        }
        drop(file);
        std::fs::remove_file(&path).unwrap();
    }
    assert!(aside > 300 && kept > 300, "{aside} kept aside, {kept} read");
}

fn flip(bytes: &mut [u8], times: usize, random: &mut StdRng) {
    for _ in 0..times {
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
    }
}

#[test]
fn a_file_that_was_damaged_takes_states_again_and_only_some_are_kept_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    for round in 0..7 {
        std::fs::write(&path, format!("round {round}")).unwrap();
        let (file, found) = open(&path);
        assert!(found.file_refused.is_some());
        file.save("e", 1, b"new").unwrap();
        written(&file);
        drop(file);
        assert_eq!(found_state(&path), b"new");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 5, "four aside, and the file");
}

fn found_state(path: &Path) -> Vec<u8> {
    found(path, "e").expect("a state")
}

#[test]
fn what_lies_in_the_place_of_the_file_is_moved_and_the_reason_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let reason = |path: &Path| {
        let (_file, found) = open(path);
        let refused = found.file_refused.expect("refused");
        assert!(std::fs::symlink_metadata(refused.aside.unwrap()).is_ok());
        refused.reason.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
    };
    std::fs::write(&path, "").unwrap();
    assert_eq!(reason(&path), "it is empty");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(reason(&path), "it is no file");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    assert_eq!(reason(&path), "it is no file");
    // Written by a release that lays its tables out in another way.
    std::fs::remove_file(&path).unwrap();
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<&str, u32>::new("about")).unwrap().insert("version", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert_eq!(reason(&path), "its version is 99, this release of ARMOR writes version 1");
}

/// As another user where this one is root, who may read everything.
#[test]
fn a_file_that_may_not_be_read_is_kept_aside() {
    const TEST: &str = "a_file_that_may_not_be_read_is_kept_aside";
    if is("reads") {
        let path = place().join("state.redb");
        let (file, found) = open(&path);
        let refused = found.file_refused.expect("refused");
        assert_eq!(refused.reason, format!("{}: Permission denied (os error 13)", path.display()));
        assert!(refused.aside.unwrap().exists());
        file.save("e", 1, b"new").unwrap();
        return written(&file);
    }
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    std::fs::write(&path, "secret").unwrap();
    let allow = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    allow(&path, 0);
    allow(directory.path(), 0o777);
    let script = if rustix::process::geteuid().is_root() { "exec setpriv --reuid 65534 --clear-groups \"$@\"" } else { "exec \"$@\"" };
    succeeded(&played(TEST, "reads", directory.path(), script, &[]).output().unwrap());
    assert_eq!(found_state(&path), b"new");
}

#[test]
fn a_file_that_is_in_use_is_an_error_and_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let (file, _) = open(&path);
    file.save("e", 1, b"mine").unwrap();
    written(&file);
    let refused = StateFile::open(&path).unwrap_err();
    assert!(matches!(&refused, FileError::InUse(named) if *named == path), "{refused}");
    assert!(refused.to_string().contains("end the other one, or choose another directory with --run-dir"), "{refused}");
    drop(file);
    assert_eq!(found_state(&path), b"mine");
}

#[test]
fn an_armor_that_starts_afresh_forgets_what_is_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let mut states = CapturedStates::open(None, Some(&path)).unwrap();
    states.save("e", b"old").unwrap();
    drop(states);
    let mut states = CapturedStates::open(None, Some(&path)).unwrap();
    states.start_afresh().unwrap();
    states.save("other", b"new").unwrap();
    drop(states);
    let mut states = CapturedStates::open(None, Some(&path)).unwrap();
    assert_eq!((states.load("e").state, states.load("other").state.as_deref()), (None, Some(&b"new"[..])));
}

#[test]
fn the_newer_of_memory_and_disk_is_taken_and_each_is_enough_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let mut states = CapturedStates::open(None, Some(&path)).unwrap();
    states.save("e", b"one").unwrap();
    assert!(states.file().unwrap().flush(PATIENCE));
    let at_one = copy_of(&vault_of(&states));
    states.save("e", b"two").unwrap();
    let number = states.number();
    let at_two = copy_of(&vault_of(&states));
    drop(states);
    // The vault has died: the disk alone, which may be behind, so that the number is another one.
    let mut from_disk = CapturedStates::open(None, Some(&path)).unwrap();
    assert_eq!(from_disk.load("e").state.as_deref(), Some(&b"two"[..]));
    assert_ne!(from_disk.number(), number);
    // What came from the disk is in memory too.
    let in_memory = copy_of(&vault_of(&from_disk));
    drop(from_disk);
    assert_eq!(CapturedStates::open(Some(in_memory.memory()), None).unwrap().load("e").state.as_deref(), Some(&b"two"[..]));
    // A memory of which something is damaged may be behind the disk.
    let damaged = at_one.memory();
    File::from(damaged.try_clone().unwrap()).write_all_at(&[0xff], first_state(&at_one)).unwrap();
    let mut disk_is_newer = CapturedStates::open(Some(damaged), Some(&path)).unwrap();
    assert_eq!(disk_is_newer.load("e").state.as_deref(), Some(&b"two"[..]));
    drop(disk_is_newer);
    std::fs::remove_file(&path).unwrap();
    let mut from_memory = CapturedStates::open(Some(at_two.memory()), Some(&path)).unwrap();
    assert_eq!(from_memory.load("e").state.as_deref(), Some(&b"two"[..]));
    assert_eq!(from_memory.number(), number, "nothing is lost");
    drop(from_memory);
    assert_eq!(found(&path, "e").as_deref(), Some(&b"two"[..]), "the new file has what the old one had");
}

/// Stands in for `mount` when there is no file system of the test's own: the process may not write files beyond so many blocks.
const LIMITED: &str = "trap '' XFSZ; ulimit -f 6000 && exec \"$@\"";

/// With a file system of its own, of 16 MiB, in a mount namespace; without the right to mount one, with a limit on files instead.
#[test]
fn on_a_full_disk_the_last_states_stay_and_new_ones_are_written_when_there_is_room() {
    const TEST: &str = "on_a_full_disk_the_last_states_stay_and_new_ones_are_written_when_there_is_room";
    if is("full") {
        return fill_the_disk(&place());
    }
    if is("limited") {
        return too_large_for_the_limit(&place());
    }
    let directory = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=16m none {}", directory.path().display());
    let script = format!("{mount} && exec \"$@\"");
    let ways: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    let may = |way: &&&[&str]| {
        Command::new("unshare").args(**way).args(["sh", "-c", &mount]).output().is_ok_and(|output| output.status.success())
    };
    match ways.iter().find(may) {
        Some(way) => succeeded(&played(TEST, "full", directory.path(), &script, way).output().unwrap()),
        None => {
            eprintln!("no right to mount a file system: a limit on the size of files stands in for the full disk");
            succeeded(&played(TEST, "limited", directory.path(), LIMITED, &[]).output().unwrap());
        }
    }
}

#[test]
fn a_process_that_may_not_write_more_keeps_the_states_before() {
    const TEST: &str = "a_process_that_may_not_write_more_keeps_the_states_before";
    if is("limited") {
        return too_large_for_the_limit(&place());
    }
    let directory = tempfile::tempdir().unwrap();
    succeeded(&played(TEST, "limited", directory.path(), LIMITED, &[]).output().unwrap());
    // What was there when the process ended is there for the next one.
    assert_eq!(found_state(&directory.path().join("state.redb")), vec![2; 1000]);
}

fn in_trouble(file: &StateFile) -> String {
    loop {
        if let Some(trouble) = file.state().trouble {
            return trouble;
        }
        std::thread::yield_now();
    }
}

fn too_large_for_the_limit(place: &Path) {
    let path = place.join("state.redb");
    let (file, _) = open(&path);
    file.save("e", 1, &[2; 1000]).unwrap();
    written(&file);
    // More than 6000 blocks, whether the shell's have 512 or 1024 bytes.
    file.save("e", 2, &vec![9; 8 << 20]).unwrap();
    let trouble = in_trouble(&file);
    assert!(trouble.starts_with(&path.display().to_string()) && trouble.contains("File too large"), "{trouble}");
}

fn fill_the_disk(place: &Path) {
    let path = place.join("state.redb");
    let (file, _) = open(&path);
    file.save("e", 1, &vec![1; 40_000]).unwrap();
    written(&file);
    let mut filler = File::create(place.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    assert!(filler.write_all(&[0; 4096]).unwrap_err().kind() == std::io::ErrorKind::StorageFull);
    // Does not fit. The last one stays, for this life and for the next, which finds the disk as full.
    file.save("e", 2, &vec![9; 3 << 20]).unwrap();
    let trouble = in_trouble(&file);
    assert!(trouble.starts_with(&path.display().to_string()) && trouble.contains("No space left on device"), "{trouble}");
    drop(file);
    let (next, found) = open(&path);
    assert!(found.file_refused.is_none(), "{:?}", found.file_refused);
    assert_eq!(found.kept[0].state, vec![1; 40_000]);
    next.save("e", 2, &vec![2; 1 << 20]).unwrap();
    in_trouble(&next);
    // Room again: it is written without being handed over anew.
    drop(filler);
    std::fs::remove_file(place.join("filler")).unwrap();
    written(&next);
    assert_eq!(next.state().trouble, None);
    drop(next);
    assert_eq!(found_state(&path), vec![2; 1 << 20]);
    cannot_begin_a_file(place);
}

/// Whoever finds no room to begin a file tries again and again, and leaves alone what was put aside.
fn cannot_begin_a_file(place: &Path) {
    let path = place.join("begun.redb");
    let aside = place.join("begun.redb.refused-1");
    std::fs::write(&aside, "of another release").unwrap();
    let mut filler = File::create(place.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    for _ in 0..2 {
        let (file, found) = open(&path);
        assert!(found.file_refused.is_none(), "{:?}", found.file_refused);
        file.save("e", 1, &[1; 1000]).unwrap();
        in_trouble(&file);
    }
    assert!(aside.exists() && std::fs::read_dir(place).unwrap().flatten().all(|entry| entry.path() == aside || !is_aside(&entry.path())));
    drop(filler);
    std::fs::remove_file(place.join("filler")).unwrap();
    let (file, _) = open(&path);
    file.save("e", 1, &[1; 1000]).unwrap();
    written(&file);
    drop(file);
    assert_eq!(found_state(&path), vec![1; 1000]);
}

fn is_aside(path: &Path) -> bool {
    path.to_string_lossy().contains(".refused-")
}

#[test]
fn a_process_that_is_killed_while_it_saves_loses_nothing_that_was_written() {
    const TEST: &str = "a_process_that_is_killed_while_it_saves_loses_nothing_that_was_written";
    if is("saves") {
        return save_without_end(&place());
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let mut random = seeded();
    let mut last = 0;
    for round in 0..20 {
        let mut process = played(TEST, "saves", directory.path(), "exec \"$@\"", &[]).stdout(Stdio::piped()).spawn().unwrap();
        let saved = random.random_range(1..20);
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut told = last;
        let mut hear = |told: &mut u64| {
            let line = lines.next()?.ok()?;
            // Among what the test's own process says.
            if let Some(number) = line.split("written ").nth(1) {
                *told = number.trim().parse().unwrap();
            }
            Some(())
        };
        while told < last + saved {
            hear(&mut told).expect("the process saves until it is killed");
        }
        // In the midst of the next save, most likely.
        std::thread::sleep(Duration::from_micros(random.random_range(0..400)));
        process.kill().unwrap();
        process.wait().unwrap();
        while hear(&mut told).is_some() {}
        let kept = found_state(&path);
        let number = number_of(&kept);
        assert!(kept == state(number), "round {round}: state {number} is not whole");
        assert!(number == told || number == told + 1, "round {round}: told {told}, kept {number}");
        last = number;
    }
}

fn save_without_end(place: &Path) {
    let (file, found) = open(&place.join("state.redb"));
    let kept = found.kept.first().map_or(0, |kept| number_of(&kept.state));
    for number in kept + 1.. {
        file.save("e", number, &state(number)).unwrap();
        written(&file);
        // One write, so that a kill leaves the line whole or out.
        std::io::stdout().write_all(format!("written {number}\n").as_bytes()).unwrap();
    }
}

/// Where the first byte of a state lies in a copy: behind the page of the memory itself, and a head.
fn first_state(copy: &StateMemoryCopy) -> u64 {
    let at = copy.parts.iter().flat_map(|(from, bytes)| *from..from + bytes.len() as u64).find(|at| *at >= 4096).unwrap();
    at + HEAD_IN_MEMORY
}

#[test]
fn nobody_whose_memory_is_whole_waits_for_his_file_and_it_gets_all_that_it_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let mut states = CapturedStates::open(None, Some(&path)).unwrap();
    states.save("e", b"one").unwrap();
    assert!(states.file().unwrap().flush(PATIENCE));
    // The next states are saved while the disk takes nothing more, as when the process dies at once.
    let memory = vault_of(&states);
    drop(states);
    let mut without_file = CapturedStates::open(Some(memory), None).unwrap();
    without_file.save("e", b"two").unwrap();
    without_file.save("f", b"three").unwrap();
    let memory = vault_of(&without_file);
    let (holder, _) = open(&path);
    let mut next = CapturedStates::open(Some(memory.try_clone().unwrap()), Some(&path)).expect("does not look at a file that is held");
    assert_eq!(next.load("e").state.as_deref(), Some(&b"two"[..]));
    drop(holder);
    assert!(next.file().unwrap().flush(PATIENCE));
    drop(next);
    assert_eq!((found(&path, "e").as_deref(), found(&path, "f").as_deref()), (Some(&b"two"[..]), Some(&b"three"[..])));
    // Nothing is written that is there.
    let next = CapturedStates::open(Some(memory.try_clone().unwrap()), Some(&path)).unwrap();
    assert!(next.file().unwrap().flush(PATIENCE));
    assert_eq!(next.file().unwrap().state().transactions, 0);
    drop(next);
    // A file that cannot be used is told then, and another one has all.
    std::fs::write(&path, "no store at all").unwrap();
    let mut next = CapturedStates::open(Some(memory), Some(&path)).unwrap();
    assert!(next.file().unwrap().flush(PATIENCE));
    let refused = next.take_file_refused().expect("told");
    assert!(refused.aside.unwrap().exists());
    assert!(next.take_file_refused().is_none(), "once");
    drop(next);
    assert_eq!((found(&path, "e").as_deref(), found(&path, "f").as_deref()), (Some(&b"two"[..]), Some(&b"three"[..])));
}
