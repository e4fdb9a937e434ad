//! The ARMOR is started again when it dies, and not when it has ended.

use armor_vault::{Exited, Notice};
use rustix::process::Signal;

use crate::stage::{Stage, lives, role_vault, signal, wait_for};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("an_armor_that_is_killed_comes_back_with_its_state", an_armor_that_is_killed),
    ("an_armor_that_was_never_ready_is_not_started_again", never_ready),
    ("a_program_that_cannot_be_started_is_told", no_program),
    ("an_armor_that_ends_by_its_own_will_ends_its_vault", own_will),
    ("sigterm_is_passed_on_and_awaited", sigterm),
    ("an_armor_that_ignores_sigterm_is_killed_after_the_grace", stubborn),
    ("an_armor_that_is_silent_after_it_was_alive_is_killed_and_no_other", silent),
    ("an_armor_that_hangs_at_its_next_start_is_killed_too", hangs_at_its_start),
    ("an_armor_that_dies_again_and_again_is_started_again_and_again", again_and_again),
    ("how_orphans_ended_is_told_until_it_was_dealt_with", orphans),
    ("the_armor_gets_the_limit_of_open_files_that_the_vault_was_given", limit),
];

fn an_armor_that_is_killed() {
    let mut stage = Stage::start(&[], &["obedient"]);
    for life in 0..5 {
        signal(stage.life(life), Signal::KILL);
        assert_eq!(stage.lives()[life].1, if life == 0 { "" } else { "--restore" });
    }
    let last = stage.life(5);
    stage.signal_vault(Signal::INT);
    assert_eq!(stage.outcome().code(), Some(0));
    assert!(!lives(last) && !stage.socket().exists());
    assert_eq!(stage.lives().len(), 6);
}

fn never_ready() {
    for status in [0, 7] {
        let mut stage = Stage::start_by(|directory| role_vault(directory, &[], &["never-ready", &status.to_string()]));
        assert_eq!(stage.outcome().code(), Some(status));
        assert_eq!(stage.lives().len(), 1);
    }
}

fn no_program() {
    let directory = tempfile::tempdir().unwrap();
    let mut vault = crate::stage::role("vault");
    let output = vault.arg(directory.path()).args(["--", "/no/such/program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(99));
    assert!(String::from_utf8_lossy(&output.stderr).contains("No such file"), "{output:?}");
}

fn own_will() {
    let mut stage = Stage::start(&[], &["ends", "0"]);
    assert_eq!(stage.outcome().code(), Some(0));
    assert_eq!(stage.lives().len(), 1);
    let mut stage = Stage::start(&[], &["ends-the-second-time"]);
    assert_eq!(stage.outcome().code(), Some(0));
    assert_eq!(stage.lives().len(), 2);
    // What it had said counts, even though it is dead when the vault looks.
    for _ in 0..20 {
        let mut stage = Stage::start(&[], &["says-ended"]);
        assert_eq!(stage.outcome().code(), Some(0));
        assert_eq!(stage.lives().len(), 1);
    }
}

fn sigterm() {
    let mut stage = Stage::start(&[], &["obedient"]);
    let armor = stage.life(0);
    stage.signal_vault(Signal::TERM);
    assert_eq!(stage.outcome().code(), Some(0));
    assert!(!lives(armor));
    // One that is not ready for it dies of it, and is not started again.
    let mut stage = Stage::start(&[], &["parent"]);
    stage.life(0);
    stage.signal_vault(Signal::TERM);
    assert_eq!(stage.outcome().code(), Some(128 + 15));
    assert_eq!(stage.lives().len(), 1);
    signal(u32::try_from(stage.number("orphan")).unwrap(), Signal::KILL);
}

fn stubborn() {
    let mut stage = Stage::start(&["grace=50"], &["stubborn"]);
    let armor = stage.life(0);
    stage.signal_vault(Signal::TERM);
    assert_eq!(stage.outcome().code(), Some(128 + 9));
    assert!(!lives(armor));
}

fn silent() {
    let talking = Stage::start(&["hang=300"], &["alive"]);
    let quiet = Stage::start(&["hang=300"], &["obedient"]);
    let (stopped, never) = (talking.life(0), quiet.life(0));
    signal(never, Signal::STOP);
    for life in 0..2 {
        signal(talking.life(life), Signal::STOP);
        talking.life(life + 1);
    }
    assert!(!lives(stopped));
    // The other vault had as much time, and an ARMOR that is as silent, but has never said Alive.
    assert!(lives(never) && quiet.lives().len() == 1);
    signal(never, Signal::CONT);
}

fn hangs_at_its_start() {
    let stage = Stage::start(&["hang=50"], &["alive-once"]);
    signal(stage.life(0), Signal::KILL);
    let silent = stage.life(1);
    stage.life(2);
    assert!(!lives(silent));
}

fn again_and_again() {
    let mut stage = Stage::start(&[], &["ends", "3"]);
    stage.life(5);
    assert!(stage.lives()[1..].iter().all(|(_, arguments)| arguments == "3 --restore"));
    // Told to end in a pause there is nobody to wait for.
    stage.signal_vault(Signal::TERM);
    let status = stage.outcome().code();
    assert!([Some(0), Some(3), Some(128 + 15)].contains(&status), "{status:?}");
}

fn orphans() {
    let stage = Stage::start(&[], &["parent"]);
    let armor = stage.life(0);
    let orphan = u32::try_from(stage.number("orphan")).unwrap();
    let (keeper, handed) = stage.connect("node1");
    assert_eq!(handed.exited, []);
    signal(armor, Signal::KILL);
    stage.life(1);
    assert!(lives(orphan));
    signal(orphan, Signal::TERM);
    let exited = Exited { pid: orphan, status: 15 };
    assert_eq!(wait_for("word of the orphan", || keeper.receive().unwrap()), Notice::Exited(exited));
    // The one that was told it is dead before it could do anything about it: its next life is told again, and so is the next one.
    drop(keeper);
    for _ in 0..2 {
        let (keeper, handed) = stage.connect("node1");
        assert_eq!(handed.exited, [exited]);
        drop(keeper);
    }
    let (keeper, handed) = stage.connect("node1");
    assert_eq!(handed.exited, [exited]);
    assert_eq!(keeper.receive().unwrap(), None);
    drop(keeper);
    assert_eq!(stage.connect("node1").1.exited, []);
    // Others have their own count.
    assert_eq!(stage.connect("node2").1.exited, [exited]);
}

fn limit() {
    let stage = Stage::start_by(|directory| {
        let vault = role_vault(directory, &[], &["obedient"]);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -Sn 200 && exec \"$0\" \"$@\""]).arg(vault.get_program()).args(vault.get_args());
        command
    });
    assert_eq!(stage.number("open-files"), 200);
    let (keeper, _) = stage.connect("node1");
    let memory = crate::stage::memory("text");
    for number in 0..400 {
        keeper.keep(&number.to_string(), std::os::fd::AsFd::as_fd(&memory)).unwrap();
    }
    assert_eq!(keeper.reconnect().unwrap().kept.len(), 400);
    // A vault with more open files than its ARMOR may have still starts it.
    std::fs::remove_file(stage.path().join("open-files")).unwrap();
    signal(stage.life(0), Signal::KILL);
    assert_eq!(stage.number("open-files"), 200);
}
