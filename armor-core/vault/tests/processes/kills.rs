//! A process that keeps and forgets is killed at random moments; what is kept then is what it had said. `ARMOR_KILLS=N` does N kills.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use armor_vault::Keeper;

use crate::stage::{Stage, memory, texts};

pub(crate) const TESTS: &[(&str, fn())] = &[("a_kill_in_the_middle_of_keeping_leaves_what_was_said", kills)];

/// Small numbers that look random.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

enum Step {
    Keep(String, String),
    Forget(String),
}

/// What the victim does as its step `number`.
fn step(seed: u64, number: u64) -> Step {
    let mut state = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let key = format!("key {}", next(&mut state) % 20);
    if next(&mut state).is_multiple_of(3) { Step::Forget(key) } else { Step::Keep(key, format!("step {number}")) }
}

fn kills() {
    let kills: u64 = std::env::var("ARMOR_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(200);
    let mut state = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("kills: {kills}, seed {state}");
    let stage = Stage::quiet();
    let mut steps = 0;
    for kill in 0..kills {
        let (owner, seed) = (format!("victim {kill}"), next(&mut state));
        let mut victim = stage.client("victim", &[&owner, &seed.to_string()]);
        assert_eq!(victim.line(), "begun");
        let until = Instant::now() + Duration::from_micros(next(&mut state) % 3000);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        victim.kill();
        let done = std::fs::read(stage.path().join(&owner)).unwrap();
        let done = u64::from_le_bytes(done.try_into().unwrap());
        let (keeper, handed) = stage.connect(&owner);
        let kept: BTreeMap<String, String> = texts(&handed).into_iter().collect();
        // The step after may have been taken: the process was killed before it could write that down.
        let mut expected = BTreeMap::new();
        (0..done).for_each(|number| take(&mut expected, step(seed, number)));
        if kept != expected {
            take(&mut expected, step(seed, done));
            assert_eq!(kept, expected, "after {done} steps with seed {seed}");
        }
        keeper.ended().unwrap();
        steps += done;
    }
    assert!(steps > kills * 5, "the victims did next to nothing: {steps} steps");
}

fn take(kept: &mut BTreeMap<String, String>, step: Step) {
    match step {
        Step::Keep(key, text) => drop(kept.insert(key, text)),
        Step::Forget(key) => drop(kept.remove(&key)),
    }
}

/// Keeps and forgets until it is killed; a file says how many steps were done.
pub(crate) fn victim(directory: &Path, owner: &str, seed: u64) -> ! {
    let done = std::fs::File::create(directory.join(owner)).unwrap();
    rustix::io::pwrite(&done, &0u64.to_le_bytes(), 0).unwrap();
    let (keeper, _) = Keeper::connect(&directory.join("vault.sock"), owner).unwrap();
    println!("begun");
    for number in 0u64.. {
        match step(seed, number) {
            Step::Keep(key, text) => keeper.keep(&key, memory(&text).as_fd()).unwrap(),
            Step::Forget(key) => keeper.forget(&key).unwrap(),
        }
        rustix::io::pwrite(&done, &(number + 1).to_le_bytes(), 0).unwrap();
    }
    unreachable!("there are numbers enough")
}
