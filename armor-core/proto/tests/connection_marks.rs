//! Marks and what belongs to them, on two ends with a perfect network: which requests a new process is told again, what it is told before
//! them, and when it is told nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connection_pair;

use armor_proto::connection::{AppAction, Config, Divergence, Event, Mark, OnDivergence, RequestPolicy, ResetReason, TurnPolicy};
use armor_proto::ids::Incarnation;
use bytes::Bytes;
use connection_pair::{Pair, ms};

const AUTH: &str = "*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n";
const SELECT: &str = "*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n";
const INCR: &str = "*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n";

/// A client that has logged in and was answered everything.
fn logged_in() -> Pair {
    let mut pair = Pair::request();
    for (command, answer) in [(AUTH, "+OK\r\n"), (SELECT, "+OK\r\n"), (INCR, ":1\r\n")] {
        pair.client_says(command);
        pair.server_says(answer);
    }
    pair.client_heard.clear();
    pair
}

#[test]
fn a_command_that_was_answered_is_not_executed_again_when_the_server_dies_idle() {
    let mut pair = Pair::request();
    pair.client_says(INCR);
    pair.server_says(":1\r\n");
    pair.restart();
    assert_eq!(pair.heard(), ("", ":1\r\n"));
    pair.client_says(INCR);
    pair.server_says(":2\r\n");
    assert_eq!(pair.heard(), (INCR, ":1\r\n:2\r\n"));
    assert!(pair.server_events.contains(&Event::Recovered { regenerated: 0 }));
}

#[test]
fn a_new_process_is_told_login_and_database_before_what_comes_after_the_mark() {
    for another_node in [false, true] {
        let mut pair = logged_in();
        for round in 0..3 {
            if another_node {
                pair.move_to_another_node()
            } else {
                pair.restart()
            }
            assert_eq!(pair.server_heard, [AUTH, SELECT].concat().as_bytes(), "round {round}");
            pair.client_says(INCR);
            assert_eq!(pair.server_heard, [AUTH, SELECT, INCR].concat().as_bytes());
            pair.server_says("+OK\r\n");
            assert_eq!(pair.heard().1, "", "the client was given it long ago");
            pair.server_says("+OK\r\n:2\r\n");
            assert_eq!(pair.heard().1, ":2\r\n");
            pair.client_heard.clear();
            assert_eq!(pair.client.mark(), pair.client.progress());
        }
        let again = pair.server_events.iter().filter(|event| **event == Event::Recovered { regenerated: 10 }).count();
        assert_eq!(again, 3);
    }
}

#[test]
fn a_command_in_progress_comes_after_the_login() {
    let mut pair = logged_in();
    pair.client_says(INCR);
    pair.server_says(":");
    pair.restart();
    assert_eq!(pair.server_heard, [AUTH, SELECT, INCR].concat().as_bytes());
    pair.server_says("+OK\r\n+OK\r\n:2\r\n");
    assert_eq!(pair.heard().1, ":2\r\n");
}

#[test]
fn a_login_that_a_new_process_refuses_is_a_divergence() {
    let mut pair = logged_in();
    pair.restart();
    pair.server_says("-WRONGPASS invalid username-password pair\r\n");
    assert!(pair.server_events.contains(&Event::Diverged(Divergence::Bytes)));
    assert_eq!(pair.client_actions, [AppAction::Reset(ResetReason::Diverged)]);
}

#[test]
fn a_conversation_that_was_given_up_keeps_no_log_and_is_reset_at_once_when_the_server_dies() {
    let mut pair = logged_in();
    pair.client_says("*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n");
    pair.server_says("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    pair.pass(ms(30));
    assert_eq!(pair.client_events.iter().filter(|event| **event == Event::ReplayGivenUp).count(), 1);
    assert_eq!(pair.client.log_memory(), 0);
    pair.restart();
    assert_eq!(pair.client_actions, [AppAction::Reset(ResetReason::NoReplay)]);
    assert_eq!(pair.heard().0, "", "nothing is executed again");
}

#[test]
fn what_is_followed_again_after_the_log_bound_was_passed_is_replayed_again() {
    let mut pair = Pair::new(RequestPolicy::default(), Config { log_bound: 1000, ..Config::default() });
    let get = "GET / HTTP/1.1\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let head = "POST / HTTP/1.1\r\nContent-Length: 2000\r\n\r\n";
    pair.client_says(head);
    for _ in 0..10 {
        pair.client.app_read(Bytes::from(vec![b'x'; 200]), pair.now);
        pair.exchange();
        pair.pass(ms(30));
    }
    // The second request has left the log when the first one is answered.
    pair.client_says(get);
    pair.pass(ms(30));
    assert!(pair.client_events.iter().any(|event| matches!(event, Event::LogOverflow { .. })));
    pair.server_says(ok);
    assert!(!pair.client_events.contains(&Event::ReplayRegained));
    pair.server_says(ok);
    assert!(pair.client_events.contains(&Event::ReplayRegained));
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::MarkRefused(_))));
    pair.client_says(get);
    pair.restart();
    assert_eq!(pair.heard().0, get);
}

#[test]
fn requests_that_were_passed_over_are_not_waited_for() {
    let config = Config { log_bound: 1000, on_divergence: OnDivergence::Continue, ..Config::default() };
    let mut pair = Pair::new(RequestPolicy::default(), config);
    let get = "GET / HTTP/1.1\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for _ in 0..80 {
        pair.client_says(get);
        pair.pass(ms(30));
    }
    assert!(pair.client_events.iter().any(|event| matches!(event, Event::LogOverflow { .. })));
    pair.restart();
    assert_eq!(pair.heard().0, "", "the old process had them all");
    let mark = pair.client.mark();
    for _ in 0..3 {
        pair.client_says(get);
        pair.server_says(ok);
    }
    assert_eq!(pair.client.mark(), mark, "these answers are not those of the first requests");
}

/// A client that was answered, and a policy for which a second of silence says that the answer was complete.
fn settling() -> Pair {
    let mut pair = Pair::new(TurnPolicy::settled_after(ms(1000)), Config::default());
    pair.client_says("question");
    pair.server_says("answer");
    pair
}

#[test]
fn a_settled_answer_is_not_asked_for_again() {
    let mut pair = settling();
    pair.pass(ms(1100));
    pair.restart();
    assert_eq!(pair.heard(), ("", "answer"));
    assert_eq!(pair.client.mark(), Mark { c2s: 8, s2c: 6 });
    assert!(pair.server_events.contains(&Event::Recovered { regenerated: 0 }));
    pair.restart();
    pair.client_says("next");
    pair.server_says(" fine");
    assert_eq!(pair.heard(), ("next", "answer fine"));
    pair.restart();
    assert_eq!(pair.heard().0, "next", "it was not silent for long enough");
    pair.server_says(" fine");
    assert_eq!(pair.heard().1, "answer fine");
}

#[test]
fn what_the_client_says_after_the_loss_comes_after_a_settled_answer() {
    let mut pair = settling();
    pair.pass(ms(1100));
    pair.server.server_lost(pair.now);
    pair.server_heard.clear();
    pair.client.app_read(Bytes::from_static(b"next"), pair.now);
    pair.service = Some(2);
    pair.client.replay(Incarnation(2), pair.now);
    pair.exchange();
    // The client had spoken before its end knew of the loss: that alone is a turn.
    assert_eq!(pair.heard().0, "next");
    let mut pair = settling();
    pair.pass(ms(1100));
    pair.server.server_lost(pair.now);
    pair.server_heard.clear();
    pair.service = None;
    pair.client.replay(Incarnation(2), pair.now);
    pair.client.app_read(Bytes::from_static(b"next"), pair.now);
    pair.exchange();
    pair.service = Some(2);
    pair.attach();
    pair.exchange();
    assert_eq!(pair.heard().0, "next");
    pair.server_says(" fine");
    assert_eq!(pair.heard().1, "answer fine");
}

#[test]
fn silence_of_a_dead_server_and_of_an_unknown_one_settles_nothing() {
    let mut pair = settling();
    pair.pass(ms(900));
    pair.server.app_broke(pair.now);
    pair.pass(ms(900));
    pair.server.server_lost(pair.now);
    pair.pass(ms(900));
    pair.restart();
    assert_eq!(pair.heard().0, "question", "it was silent for 900 ms while it lived");
    let mut pair = settling();
    pair.pass(ms(1100));
    pair.move_to_another_node();
    assert_eq!(pair.heard().0, "question", "nobody there knows");
    let mut pair = Pair::new(TurnPolicy::default(), Config::default());
    pair.client_says("question");
    pair.server_says("answer");
    pair.pass(ms(60_000));
    pair.restart();
    assert_eq!(pair.heard().0, "question", "it is off unless it is asked for");
}

#[test]
fn silence_behind_a_client_that_does_not_read_settles_nothing() {
    let mut pair = Pair::new(TurnPolicy::settled_after(ms(1000)), Config { window: 100, ..Config::default() });
    pair.client_says("question");
    pair.server.app_read(Bytes::from(vec![b'a'; 60]), pair.now);
    pair.pass_without_reading(ms(5000));
    pair.restart();
    assert_eq!(pair.heard().0, "question");
    assert_eq!(pair.client_heard.len(), 0, "what it had not read is the new process's to say");
    pair.server.app_read(Bytes::from(vec![b'a'; 60]), pair.now);
    pair.exchange();
    assert_eq!(pair.client_heard.len(), 60);
    pair.restart();
    assert_eq!(pair.heard().0, "question", "it has read, and no second has passed since");
    pair.server.app_read(Bytes::from(vec![b'a'; 60]), pair.now);
    pair.pass(ms(1100));
    pair.restart();
    assert_eq!(pair.heard().0, "question", "nothing was said that the client did not have");
    pair.server.app_read(Bytes::from(vec![b'a'; 80]), pair.now);
    pair.exchange();
    pair.pass(ms(1100));
    pair.restart();
    assert_eq!(pair.heard().0, "");
    assert_eq!(pair.client_heard.len(), 80);
}

#[test]
fn silence_counts_from_when_the_client_has_read_everything() {
    let mut pair = Pair::new(TurnPolicy::settled_after(ms(1000)), Config { window: 100, ..Config::default() });
    pair.client_says("question");
    pair.server.app_read(Bytes::from(vec![b'a'; 100]), pair.now);
    pair.pass_without_reading(ms(5000));
    assert_eq!(pair.server.read_capacity(), 0, "the server cannot say more");
    pair.pass(ms(900));
    assert_eq!(pair.server.read_capacity(), 100);
    pair.restart();
    assert_eq!(pair.heard().0, "question");
}
