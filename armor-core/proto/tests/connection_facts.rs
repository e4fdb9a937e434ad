//! Single facts about the protected connection, on two ends with a perfect network between them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connection_pair;

use armor_proto::connection::{AppAction, Config, Event, ProtocolError, Record, RequestPolicy, ResetReason, StreamPolicy};
use armor_proto::ids::Incarnation;
use bytes::Bytes;
use connection_pair::{Pair, ms};

#[test]
fn nothing_is_read_from_the_client_before_the_connection_is_established() {
    let mut pair = Pair::unconnected(RequestPolicy::default(), Config::default());
    assert_eq!(pair.client.read_capacity(), 0);
    pair.exchange();
    assert_eq!(pair.client.read_capacity(), 1 << 20);
    assert_eq!(pair.client_events, [Event::Established { service: Incarnation(1) }]);
}

#[test]
fn a_connect_request_is_sent_again_with_doubling_waits_until_the_deadline_refuses_it() {
    let mut pair = Pair::unconnected(RequestPolicy::default(), Config::default());
    let start = pair.now;
    let mut at = Vec::new();
    while !pair.client.is_drained() {
        while let Some((record, _)) = pair.client.poll_transmit(pair.now) {
            if matches!(record, Record::ConnectRequest(_)) {
                at.push((pair.now - start).as_millis());
            }
        }
        pair.client_events.extend(std::iter::from_fn(|| pair.client.poll_event()));
        if let Some(next) = pair.client.poll_timeout() {
            pair.now = next;
            pair.client.handle_timeout(pair.now);
        }
    }
    assert_eq!(at[..6], [0, 200, 600, 1400, 3000, 5000]);
    assert_eq!(pair.client_events[0], Event::Refused { errno: 110 });
    assert_eq!(pair.client.poll_app(pair.now), None);
}

#[test]
fn a_refused_connect_says_why_and_both_ends_are_done() {
    let mut pair = Pair::unconnected(RequestPolicy::default(), Config::default());
    pair.service = None;
    pair.exchange();
    pair.server.refused(111, pair.now);
    pair.exchange();
    assert_eq!(pair.client_events[0], Event::Refused { errno: 111 });
    assert!(pair.server.is_drained());
}

#[test]
fn acknowledgements_ride_on_data_in_a_conversation() {
    let mut pair = Pair::request();
    for _ in 0..10 {
        pair.client_says("question");
        pair.server_says("answer");
    }
    assert_eq!(pair.count(|record| matches!(record, Record::Ack(_))), 0);
    assert_eq!(pair.count(|record| matches!(record, Record::Data(_))), 20);
}

#[test]
fn a_bulk_stream_is_acknowledged_by_volume() {
    let mut pair = Pair::new(StreamPolicy, Config::default());
    for _ in 0..256 {
        pair.server.app_read(Bytes::from(vec![0; 65536]), pair.now);
        pair.exchange();
    }
    assert_eq!(pair.client_heard.len(), 16 << 20);
    // A quarter of 1 MiB each.
    assert_eq!(pair.count(|record| matches!(record, Record::Ack(_))), 64);
}

#[test]
fn an_acknowledgement_without_data_to_ride_on_comes_after_25_ms() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.pass(ms(24));
    assert_eq!(pair.count(|record| matches!(record, Record::Ack(_))), 0);
    pair.pass(ms(1));
    assert_eq!(pair.count(|record| matches!(record, Record::Ack(_))), 1);
    pair.pass(ms(5000));
    assert_eq!(pair.sent.len(), 4, "and then there is silence: {:?}", pair.sent);
}

#[test]
fn unacknowledged_data_are_sent_again_after_200_ms_and_then_ever_slower_up_to_2_s() {
    let mut pair = Pair::request();
    let start = pair.now;
    pair.client.app_read(Bytes::from_static(b"lost"), pair.now);
    let mut at = Vec::new();
    while pair.now < start + ms(8000) {
        while let Some((record, payload)) = pair.client.poll_transmit(pair.now) {
            assert!(matches!(record, Record::Data(_)));
            assert_eq!(&payload[..], b"lost");
            at.push((pair.now - start).as_millis());
        }
        pair.now = pair.client.poll_timeout().unwrap();
        pair.client.handle_timeout(pair.now);
    }
    assert_eq!(at, [0, 200, 600, 1400, 3000, 5000, 7000]);
}

#[test]
fn the_wait_before_sending_again_is_short_again_after_progress() {
    let mut pair = Pair::new(StreamPolicy, Config::default());
    pair.client.app_read(Bytes::from_static(b"lost"), pair.now);
    while pair.client.poll_transmit(pair.now).is_some() {}
    for _ in 0..3 {
        pair.now = pair.client.poll_timeout().unwrap();
        pair.client.handle_timeout(pair.now);
        assert!(pair.client.poll_transmit(pair.now).is_some());
    }
    pair.now = pair.client.poll_timeout().unwrap();
    pair.client.handle_timeout(pair.now);
    pair.exchange();
    pair.pass(ms(30));
    assert_eq!(pair.heard().0, "lost");
    let start = pair.now;
    pair.client.app_read(Bytes::from_static(b"lost"), pair.now);
    while pair.client.poll_transmit(pair.now).is_some() {}
    assert_eq!(pair.client.poll_timeout().unwrap() - start, ms(200));
}

#[test]
fn a_gap_is_asked_for_again_at_once_and_once() {
    let mut pair = Pair::request();
    let mut frames = Vec::new();
    for piece in ["a", "b", "c", "d"] {
        pair.client.app_read(Bytes::from(piece), pair.now);
        frames.extend(pair.client.poll_transmit(pair.now));
    }
    frames.remove(1);
    for (record, payload) in frames {
        pair.at_server(record, payload);
    }
    pair.sent.clear();
    pair.exchange();
    assert_eq!(pair.heard().0, "abcd");
    assert_eq!(pair.count(|record| matches!(record, Record::Ack(ack) if ack.state.resend)), 1);
    assert_eq!(pair.count(|record| matches!(record, Record::Data(_))), 3);
}

#[test]
fn reading_stops_at_the_window_and_goes_on_when_the_other_application_reads() {
    let mut pair = Pair::new(StreamPolicy, Config { window: 1000, ..Config::default() });
    pair.client.app_read(Bytes::from(vec![0; 1000]), pair.now);
    assert_eq!(pair.client.read_capacity(), 0);
    while let Some((record, payload)) = pair.client.poll_transmit(pair.now) {
        pair.at_server(record, payload);
    }
    pair.pass_without_reading(ms(10_000));
    assert_eq!((pair.client.read_capacity(), pair.server.app_waiting()), (0, 1000));
    pair.server.app_wrote(300, pair.now);
    pair.pass_without_reading(ms(0));
    assert_eq!(pair.client.read_capacity(), 300);
}

#[test]
fn a_half_close_leaves_the_other_direction_open() {
    let mut pair = Pair::request();
    pair.client_says("upload");
    pair.client.app_eof(pair.now);
    pair.exchange();
    assert_eq!(pair.server_actions, [AppAction::ShutdownWrite]);
    pair.server_says("received");
    assert_eq!(pair.heard(), ("upload", "received"));
    pair.server.app_closed(pair.now);
    pair.exchange();
    assert_eq!(pair.client_actions, [AppAction::ShutdownWrite]);
    assert!(pair.client_events.ends_with(&[Event::Finished, Event::Drained]));
    assert!(pair.server_events.ends_with(&[Event::Finished, Event::Drained]));
}

#[test]
fn a_reset_reaches_the_other_application_and_drains_both_ends() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.client.app_reset(pair.now);
    pair.exchange();
    assert_eq!(pair.server_actions, [AppAction::Reset(ResetReason::Peer)]);
    assert_eq!(pair.client_actions, []);
    assert!(pair.client.is_drained() && pair.server.is_drained());
}

#[test]
fn a_server_that_goes_on_talking_to_a_client_that_closed_is_reset_as_by_tcp() {
    let mut pair = Pair::new(StreamPolicy, Config { window: 1000, ..Config::default() });
    pair.client_says("GET");
    pair.client.app_closed(pair.now);
    pair.exchange();
    for _ in 0..10 {
        assert_eq!(pair.server_actions, [AppAction::ShutdownWrite], "a short answer is let pass");
        pair.server.app_read(Bytes::from(vec![0; 100]), pair.now);
        pair.exchange();
    }
    pair.server.app_read(Bytes::from(vec![0; 100]), pair.now);
    pair.exchange();
    assert_eq!(pair.server_actions.last(), Some(&AppAction::Reset(ResetReason::Closed)));
}

#[test]
fn an_idle_connection_is_probed_and_a_vanished_peer_is_noticed() {
    let mut pair = Pair::request();
    pair.pass(ms(35_000));
    assert!(pair.count(|record| matches!(record, Record::Data(_))) >= 3);
    assert_eq!(pair.client_actions, []);
    pair.server.vanish();
    pair.pass(ms(41_000));
    assert_eq!(pair.client_actions, [AppAction::Reset(ResetReason::Deadline)]);
}

#[test]
fn a_lost_window_update_is_asked_for() {
    let mut pair = Pair::new(StreamPolicy, Config { window: 1000, keep_alive: None, ..Config::default() });
    pair.client.app_read(Bytes::from(vec![0; 1000]), pair.now);
    while let Some((record, payload)) = pair.client.poll_transmit(pair.now) {
        pair.at_server(record, payload);
    }
    pair.pass_without_reading(ms(5_000));
    pair.server.app_wrote(1000, pair.now);
    let lost = pair.server.poll_transmit(pair.now);
    assert!(matches!(lost, Some((Record::Ack(_), _))));
    assert_eq!(pair.client.read_capacity(), 0);
    pair.pass_without_reading(ms(2_100));
    assert_eq!(pair.client.read_capacity(), 1000);
}

#[test]
fn data_beyond_the_window_are_an_error_and_are_not_kept() {
    let mut pair = Pair::new(StreamPolicy, Config { window: 100, ..Config::default() });
    pair.client.app_read(Bytes::from(vec![0; 100]), pair.now);
    let Some((Record::Data(data), _)) = pair.client.poll_transmit(pair.now) else { panic!() };
    let outcome = pair.server.handle_data(&data, Bytes::from(vec![0; 101]), pair.now);
    assert_eq!(outcome, Err(ProtocolError::Window { expected: 100, got: 101 }));
    assert_eq!(pair.server.app_waiting(), 0);
}

#[test]
fn one_frame_is_sent_after_a_time_out_and_the_rest_when_the_peer_is_heard() {
    let mut pair = Pair::new(StreamPolicy, Config { max_data: 100, ..Config::default() });
    pair.client.app_read(Bytes::from(vec![b'x'; 1000]), pair.now);
    assert_eq!(std::iter::from_fn(|| pair.client.poll_transmit(pair.now)).count(), 10);
    pair.now = pair.client.poll_timeout().unwrap();
    pair.client.handle_timeout(pair.now);
    let again: Vec<_> = std::iter::from_fn(|| pair.client.poll_transmit(pair.now)).collect();
    assert_eq!(again.len(), 1);
    let (record, payload) = again.into_iter().next().unwrap();
    pair.at_server(record, payload);
    pair.pass(ms(30));
    assert_eq!(pair.server_heard.len(), 1000);
}
