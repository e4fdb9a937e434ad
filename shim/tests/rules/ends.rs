//! Rule 10: how streams end.

use std::io::Write;

use armor_proto::hookup::{Request, Role};

use crate::FAMILIES;
use crate::mock::MockArmor;
use crate::program::{Running, run, start};

#[test]
fn fin_and_half_close_travel() {
    for family in FAMILIES {
        run(&MockArmor::start(), "ends", &["half", family]);
    }
}

#[test]
fn an_orderly_end_stays_an_end_however_often_it_is_read() {
    for family in FAMILIES {
        run(&MockArmor::start(), "ends", &["orderly", family]);
    }
}

#[test]
fn a_reset_is_an_error_in_every_way_to_read() {
    for (family, way) in FAMILIES
        .into_iter()
        .flat_map(|family| ["read", "readv", "recv", "peek", "recvfrom", "recvmsg", "recvmmsg"].map(|way| (family, way)))
    {
        let armor = MockArmor::start();
        let mut program = start(&armor, "ends", &["reset", family, way]);
        program.line("connected");
        armor.reset_connections();
        program.succeed();
    }
}

/// What is said about the client's connection by a program that leaves in the way `how`.
enum Word {
    Closed,
    Finished,
    Aborted,
    None,
}

fn leave(how: &str, family: &str) -> (MockArmor, Running, Running) {
    let armor = MockArmor::start();
    let mut server = start(&armor, "server", &[family]);
    let port = server.line("port");
    let mut client = start(&armor, "ends", &["leave", family, how, &port]);
    client.line("connected");
    client.stdin().write_all(b"go\n").unwrap();
    (armor, server, client)
}

fn word(how: &str, expected: &Word) {
    for family in FAMILIES {
        let (armor, mut server, mut client) = leave(how, family);
        let about_client = |request: &Request| match request {
            Request::Closed { name, pid } | Request::Finished { name, pid } | Request::Aborted { name, pid } => {
                assert_eq!(*pid, client.id());
                name.role == Role::Client
            }
            _ => false,
        };
        let is_word = |request: &Request| match expected {
            Word::Closed => matches!(request, Request::Closed { .. }),
            Word::Finished => matches!(request, Request::Finished { .. }),
            Word::Aborted => matches!(request, Request::Aborted { .. }),
            Word::None => false,
        };
        let of_client =
            |requests: &[Request]| -> Vec<Request> { requests.iter().filter(|request| client_word(request)).cloned().collect() };
        if matches!(expected, Word::None) {
            // The connection ends only when the process does, and then everything that was sent has been heard.
            if matches!(how, "same" | "shutdown_read") {
                client.line("done");
                client.kill();
            } else {
                assert!(!client.status().success(), "{how}");
            }
            server.line("end");
            assert_eq!(of_client(&armor.requests()), [], "{how}");
        } else {
            armor.wait_for(how, |requests| requests.iter().any(|request| client_word(request) && is_word(request)));
            server.line("end orderly");
            let said = of_client(&armor.requests());
            assert!(said.len() == 1 && about_client(&said[0]), "{how}: {said:?}");
        }
    }
}

fn client_word(request: &Request) -> bool {
    match request {
        Request::Closed { name, .. } | Request::Finished { name, .. } | Request::Aborted { name, .. } => name.role == Role::Client,
        _ => false,
    }
}

#[test]
fn every_way_to_close_is_announced() {
    for how in ["close", "dup2", "dup3", "fclose", "close_range", "closefrom"] {
        word(how, &Word::Closed);
    }
}

#[test]
fn every_orderly_exit_is_announced() {
    for how in ["exit", "_exit", "_Exit", "quick_exit", "main"] {
        word(how, &Word::Closed);
    }
}

#[test]
fn failures_are_not_announced() {
    for how in ["failing", "_failing", "abort", "kill", "segv"] {
        word(how, &Word::None);
    }
}

#[test]
fn what_closes_nothing_is_not_announced() {
    for how in ["same", "shutdown_read"] {
        word(how, &Word::None);
    }
}

#[test]
fn shutdown_of_the_sending_side_is_announced() {
    word("shutdown", &Word::Finished);
}

#[test]
fn a_close_that_would_send_a_reset_is_announced_as_one() {
    word("aborted", &Word::Aborted);
}

#[test]
fn a_servers_close_is_announced_for_connection_and_listener() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        run(&armor, "ends", &["half", family]);
        for role in [Role::Listener, Role::Server, Role::Client] {
            armor.wait_for("close", |requests| {
                requests.iter().any(|request| matches!(request, Request::Closed { name, .. } if name.role == role))
            });
        }
    }
}

#[test]
fn buffered_output_goes_out_before_the_exit_closes_the_socket() {
    for family in FAMILIES {
        let (_armor, mut server, mut client) = leave("buffered", family);
        assert!(client.status().success());
        server.line("from the buffer");
        server.line("end orderly");
    }
}
