//! Rule 7: the shim is not noticed: no deadlock, no thread, no signal, no allocation out of place, errno kept.

use crate::FAMILIES;
use crate::mock::MockArmor;
use crate::program::{Running, compiled, run, start};
use std::process::Command;

#[test]
fn no_thread_no_signal_and_no_allocation_before_main_nor_around_accept_close_and_exec() {
    let mut bare = Command::new(compiled("quiet"));
    bare.args(["report", "4"]);
    let bare = Running::start(bare).succeed();
    for family in FAMILIES {
        let output = start(&MockArmor::start(), "quiet", &["allocations", family]).succeed();
        assert_eq!(output, bare);
    }
}

#[test]
fn errno_is_kept_by_calls_that_succeed() {
    for family in FAMILIES {
        run(&MockArmor::start(), "quiet", &["errno", family]);
    }
}

#[test]
fn fork_while_threads_connect_does_not_deadlock() {
    for family in FAMILIES {
        run(&MockArmor::start(), "quiet", &["fork", family]);
    }
}

#[test]
fn threads_can_be_cancelled_in_read_accept_and_recvfrom() {
    for family in FAMILIES {
        run(&MockArmor::start(), "quiet", &["cancel", family]);
    }
}
