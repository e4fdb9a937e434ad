//! A way between the two ends that is lost with what was on it, and is open again: nothing waits for a timer.

#![allow(clippy::unwrap_used)]

mod connection_pair;

use armor_proto::connection::{Config, Record, RequestPolicy};
use bytes::Bytes;
use connection_pair::{Pair, ms};

/// Both ends say what they have to say, and none of it arrives.
fn lost(pair: &mut Pair) -> usize {
    let from_client = std::iter::from_fn(|| pair.client.poll_transmit(pair.now)).count();
    from_client + std::iter::from_fn(|| pair.server.poll_transmit(pair.now)).count()
}

fn says(pair: &mut Pair, client: &'static str, server: &'static str) {
    pair.client.app_read(Bytes::from_static(client.as_bytes()), pair.now);
    pair.server.app_read(Bytes::from_static(server.as_bytes()), pair.now);
}

/// Each end hears of it at another time; both in no time.
fn path_changed(pair: &mut Pair) {
    pair.client.path_changed();
    pair.exchange();
    pair.server.path_changed();
    pair.exchange();
}

#[test]
fn bytes_that_were_lost_with_a_link_are_sent_again_when_it_is_up_and_no_time_passes() {
    let mut pair = Pair::request();
    says(&mut pair, "GET / HTTP/1.1\r\n\r\n", "half of an");
    assert_eq!(lost(&mut pair), 2);
    pair.exchange();
    assert_eq!(pair.heard(), ("", ""), "the timers have not run out");
    path_changed(&mut pair);
    assert_eq!(pair.heard(), ("GET / HTTP/1.1\r\n\r\n", "half of an"));
}

#[test]
fn a_second_loss_behind_the_first_is_asked_for_at_once_too() {
    let mut pair = Pair::request();
    for _ in 0..3 {
        says(&mut pair, "ping", "pong");
        assert!(lost(&mut pair) >= 2);
        // What is asked for now, or comes again, is lost as well.
        pair.client.path_changed();
        pair.server.path_changed();
        assert!(lost(&mut pair) >= 2);
    }
    path_changed(&mut pair);
    assert_eq!(pair.heard(), ("pingpingping", "pongpongpong"));
}

#[test]
fn an_end_of_stream_that_was_lost_is_said_again() {
    let mut pair = Pair::request();
    pair.client_says("last words");
    pair.pass(ms(50));
    pair.client.app_eof(pair.now);
    assert_eq!(lost(&mut pair), 1);
    path_changed(&mut pair);
    assert_eq!(pair.server_actions.len(), 1, "{:?}", pair.server_actions);
}

#[test]
fn a_connect_request_and_the_answer_to_it_are_said_again() {
    let mut pair = Pair::unconnected(RequestPolicy::default(), Config::default());
    assert_eq!(lost(&mut pair), 1);
    pair.exchange();
    assert!(!pair.client.is_established());
    path_changed(&mut pair);
    assert!(pair.client.is_established());
}

#[test]
fn ends_that_miss_nothing_say_nothing() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.server_says("answer");
    pair.pass(ms(100));
    let before = pair.sent.len();
    path_changed(&mut pair);
    assert_eq!(pair.sent.len(), before);
}

#[test]
fn bytes_that_are_on_their_way_are_not_sent_twice() {
    let mut pair = Pair::request();
    says(&mut pair, "question", "");
    let (record, payload) = pair.client.poll_transmit(pair.now).unwrap();
    pair.client.path_changed();
    pair.at_server(record, payload);
    pair.exchange();
    pair.pass(ms(1000));
    assert_eq!(pair.heard().0, "question");
    // The bytes are in the one that was taken out above; what came here was the question what the other end has.
    assert_eq!(pair.count(|record| matches!(record, Record::Data(_))), 1);
}
