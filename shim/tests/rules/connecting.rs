//! Rule 3: connect, blocking and not.

use std::thread;
use std::time::Duration;

use armor_proto::hookup::{ConnectState, Request};

use crate::FAMILIES;
use crate::mock::{Behaviour, MockArmor};
use crate::program::{run, start};

fn pending_then_established(waiter: &str) {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.next_connect(Behaviour::Pend);
        let mut program = start(&armor, "connecting", &["established", family, waiter]);
        program.line("pending");
        armor.release();
        program.succeed();
    }
}

#[test]
fn a_pending_connect_shows_in_poll_once_it_is_established() {
    pending_then_established("poll");
}

#[test]
fn a_pending_connect_shows_in_select_once_it_is_established() {
    pending_then_established("select");
}

#[test]
fn a_pending_connect_shows_in_edge_triggered_epoll_once_it_is_established() {
    pending_then_established("epoll");
}

#[test]
fn a_failed_connect_shows_its_reason_in_so_error_connect_and_recv() {
    let reasons = [
        (ConnectState::Refused, libc::ECONNREFUSED),
        (ConnectState::TimedOut, libc::ETIMEDOUT),
        (ConnectState::Unreachable, libc::ENETUNREACH),
        (ConnectState::Reset, libc::ECONNRESET),
    ];
    for (family, (state, errno)) in FAMILIES.into_iter().flat_map(|family| reasons.map(|reason| (family, reason))) {
        let armor = MockArmor::start();
        for _ in 0..3 {
            armor.next_connect(Behaviour::Pend);
        }
        let mut program = start(&armor, "connecting", &["failed", family, &errno.to_string()]);
        program.line("pending");
        armor.fail(state);
        program.succeed();
    }
}

#[test]
fn a_refusal_at_once_leaves_the_socket_usable() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.next_connect(Behaviour::Refuse(libc::ECONNREFUSED));
        armor.next_connect(Behaviour::Serve);
        armor.next_connect(Behaviour::Refuse(libc::ECONNREFUSED));
        run(&armor, "connecting", &["refused", family]);
    }
}

#[test]
fn send_timeout_ends_a_blocking_connect_which_goes_on() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.next_connect(Behaviour::KeepSilent);
        armor.next_connect(Behaviour::Pend);
        let mut program = start(&armor, "connecting", &["timeout", family]);
        program.line("pending");
        armor.release();
        program.succeed();
    }
}

#[test]
fn a_signal_ends_a_blocking_connect_which_goes_on() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.next_connect(Behaviour::KeepSilent);
        armor.next_connect(Behaviour::Pend);
        let mut program = start(&armor, "connecting", &["interrupted", family]);
        program.line("pending");
        armor.release();
        program.succeed();
    }
}

#[test]
fn a_restarting_signal_does_not_end_a_blocking_connect() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.next_connect(Behaviour::Pend);
        let mut program = start(&armor, "connecting", &["restarted", family]);
        program.line("pending");
        // Not to let something happen, but to let several alarms of 100 ms fall into the wait.
        thread::sleep(Duration::from_millis(350));
        armor.release();
        program.succeed();
    }
}

#[test]
fn a_silent_armor_is_passed_by_when_the_connect_must_not_block() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.next_connect(Behaviour::KeepSilent);
        run(&armor, "connecting", &["silent", family]);
    }
}

#[test]
fn an_armor_that_dies_over_the_request_is_asked_again() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.next_connect(Behaviour::Die);
        run(&armor, "connecting", &["plain", family]);
        let connects = armor.requests().iter().filter(|request| matches!(request, Request::Connect { .. })).count();
        assert_eq!(connects, 2);
    }
}
