//! Rule 1: addresses. Rule 2: options. Rule 4: epoll.

use crate::FAMILIES;
use crate::mock::MockArmor;
use crate::program::{run, start};
use std::io::Write;

fn for_both_families(program: &str, what: &str) {
    for family in FAMILIES {
        run(&MockArmor::start(), program, &[what, family]);
    }
}

#[test]
fn both_ends_report_the_same_pair_of_addresses() {
    for_both_families("addresses", "pair");
}

#[test]
fn addresses_are_cut_to_the_room_given_with_the_true_length() {
    for_both_families("addresses", "cut");
}

#[test]
fn null_addresses_and_accept4_flags_are_allowed() {
    for_both_families("addresses", "null");
}

#[test]
fn v4_client_of_a_v6_listener_is_mapped() {
    run(&MockArmor::start(), "addresses", &["mapped", "6"]);
}

#[test]
fn received_messages_have_no_sender_as_on_tcp() {
    for_both_families("addresses", "received");
}

#[test]
fn a_destination_is_ignored_as_on_tcp() {
    for_both_families("addresses", "destination");
}

#[test]
fn datagrams_keep_their_senders() {
    run(&MockArmor::start(), "addresses", &["other", "4"]);
}

#[test]
fn strangers_at_the_listeners_name_are_turned_away() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        let mut program = start(&armor, "addresses", &["strangers", family]);
        program.line("listening");
        let _stranger = armor.intrude();
        // Root alone can be somebody else.
        let _impostor = rustix::process::geteuid().is_root().then(|| armor.intrude_as_another_user());
        program.stdin().write_all(b"go\n").unwrap();
        program.succeed();
    }
}

#[test]
fn options_of_listener_client_and_server_are_those_of_tcp() {
    for_both_families("options", "every");
}

#[test]
fn options_set_before_the_swap_are_read_back_after_it() {
    for_both_families("options", "before");
}

#[test]
fn epoll_registration_made_before_connect_survives_the_swap() {
    for_both_families("epoll", "connect");
}

#[test]
fn epoll_registration_made_before_bind_survives_the_swap() {
    for_both_families("epoll", "listen");
}

#[test]
fn epoll_registration_changed_before_connect_survives_as_changed() {
    for_both_families("epoll", "modified");
}

#[test]
fn epoll_registrations_that_were_removed_stay_removed() {
    for_both_families("epoll", "removed");
}

#[test]
fn epoll_registration_of_a_duplicate_survives_the_swap() {
    for_both_families("epoll", "duplicates");
}
