//! An ARMOR whose vault has died starts another one.

use rustix::process::Signal;

use crate::stage::{Stage, lives, signal, wait_for};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_new_vault_takes_over_the_living_armor_and_all_owners", a_new_vault),
    ("a_new_vault_ends_with_an_armor_that_ends", an_orderly_end),
    ("a_new_vault_passes_sigterm_on", sigterm),
];

fn replacement(stage: &Stage) -> u32 {
    u32::try_from(stage.number("replacement")).unwrap()
}

fn a_new_vault() {
    let mut stage = Stage::start(&[], &["adopting"]);
    let armor = stage.life(0);
    let (other, _) = stage.connect("node1/web");
    let memory = crate::stage::memory("text");
    stage.kill_vault();
    // Others wait until it is there and keep everything again.
    wait_for("the new vault", || other.reconnect().ok());
    other.keep("key", std::os::fd::AsFd::as_fd(&memory)).unwrap();
    stage.number("kept-again");
    let new = replacement(&stage);
    assert!(lives(armor) && stage.lives().len() == 1);
    signal(armor, Signal::KILL);
    stage.life(1);
    assert_eq!(stage.lives()[1].1, "--restore");
    assert_eq!(stage.number("handed"), 1);
    assert_eq!(other.reconnect().unwrap().kept.len(), 1);
    // The new vault's child from now on.
    signal(stage.life(1), Signal::KILL);
    let last = stage.life(2);
    signal(new, Signal::TERM);
    wait_for("the end of both", || (!lives(last) && !lives(new)).then_some(()));
}

fn an_orderly_end() {
    let mut stage = Stage::start(&[], &["adopting"]);
    let armor = stage.life(0);
    std::fs::write(stage.path().join("orderly"), "").unwrap();
    stage.kill_vault();
    wait_for("the end of the ARMOR", || (!lives(armor)).then_some(()));
    let new = replacement(&stage);
    wait_for("the end of its vault", || (!lives(new)).then_some(()));
    assert_eq!(stage.lives().len(), 1);
}

fn sigterm() {
    let mut stage = Stage::start(&[], &["adopting"]);
    let armor = stage.life(0);
    stage.kill_vault();
    stage.number("kept-again");
    let new = replacement(&stage);
    signal(new, Signal::TERM);
    wait_for("the end of both", || (!lives(armor) && !lives(new)).then_some(()));
    assert_eq!(stage.lives().len(), 1);
}
