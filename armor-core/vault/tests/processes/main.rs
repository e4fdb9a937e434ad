//! Vaults, ARMORs and their clients as processes, which are killed.
//!
//! It is a program of its own, without the test harness: it starts itself as the vault, the ARMORs and the strangers (`roles.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adopting;
mod keeping;
mod kills;
mod life;
mod roles;
mod stage;
mod strangers;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(role) = arguments.get(1).and_then(|first| first.strip_prefix("role:")) {
        roles::play(role, &arguments[2..]);
    }
    let tests: &[(&str, fn())] = &[keeping::TESTS, kills::TESTS, life::TESTS, strangers::TESTS, adopting::TESTS].concat();
    let tests = tests.iter().map(|&(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        // Only root can become another user.
        .with_ignored_flag(name.ends_with("another_user") && !rustix::process::geteuid().is_root())
    });
    libtest_mimic::run(&Arguments::from_args(), tests.collect()).exit();
}
