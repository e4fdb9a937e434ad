//! Single facts about recovery: marks, replay, fencing, divergence, on two ends with a perfect network (thesis §4.5.1).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connection_pair;

use std::io;

use armor_proto::connection::{
    AckState, AppAction, Config, ConnectReply, ConnectRequest, Conversation, Direction, Divergence, Event, Mark, MarkPolicy, OnDivergence,
    PolicyStateError, ProtocolError, ReconnectPolicy, Record, RequestPolicy, Reset, ResetReason, ServerEnd, Spill, StreamPolicy,
};
use armor_proto::ids::{ConnectionId, Incarnation};
use bytes::Bytes;
use connection_pair::{Pair, ms};

#[test]
fn a_turn_cuts_the_log_and_a_new_process_is_fed_from_there() {
    let mut pair = Pair::request();
    pair.client_says("one");
    pair.server_says("1");
    pair.client_says("two");
    assert_eq!(pair.client.mark(), Mark { c2s: 3, s2c: 1 });
    pair.server_says("2");
    pair.restart();
    assert_eq!(pair.heard(), ("two", "12"));
    let recovery = [Event::Reconnected { service: Incarnation(2), replayed: 3 }, Event::Replayed];
    assert!(pair.server_events.ends_with(&recovery), "{:?}", pair.server_events);
    pair.server_says("2 and more");
    assert_eq!(pair.heard(), ("two", "12 and more"));
    assert!(pair.server_events.contains(&Event::Recovered { regenerated: 1 }));
}

#[test]
fn another_node_takes_over_from_what_the_client_s_end_knows() {
    let mut pair = Pair::new(StreamPolicy, Config::default());
    pair.client_says("GET");
    pair.server_says("abc");
    pair.move_to_another_node();
    assert_eq!(pair.heard(), ("GET", "abc"));
    pair.server_says("abcdef");
    assert_eq!(pair.heard().1, "abcdef");
}

#[test]
fn frames_of_an_older_incarnation_change_nothing() {
    let mut pair = Pair::new(StreamPolicy, Config::default());
    pair.client_says("GET");
    pair.server.app_read(Bytes::from_static(b"late"), pair.now);
    let (late, payload) = pair.server.poll_transmit(pair.now).unwrap();
    let Record::Data(late) = late else { panic!() };
    pair.client.replay(Incarnation(2), pair.now);
    pair.client.handle_data(&late, payload.clone(), pair.now).unwrap();
    assert_eq!(pair.client.app_waiting(), 0, "frozen while connecting");
    pair.restart();
    pair.client.handle_data(&late, payload, pair.now).unwrap();
    assert_eq!(pair.client.app_waiting(), 0, "fenced when connected");
    pair.server_says("late");
    assert_eq!(pair.heard().1, "late");
}

#[test]
fn a_frame_of_an_incarnation_that_nobody_agreed_to_is_an_error() {
    let mut pair = Pair::request();
    pair.client.app_read(Bytes::from_static(b"x"), pair.now);
    let Some((Record::Data(mut data), payload)) = pair.client.poll_transmit(pair.now) else { panic!() };
    data.incarnation = Incarnation(9);
    assert_eq!(
        pair.server.handle_data(&data, payload, pair.now),
        Err(ProtocolError::Incarnation { expected: Incarnation(1), got: Incarnation(9) })
    );
}

#[test]
fn two_requests_for_one_failure_keep_the_process_that_the_first_one_brought() {
    let mut pair = Pair::new(StreamPolicy, Config::default());
    pair.client_says("GET");
    pair.server_says("abc");
    pair.server.server_lost(pair.now);
    pair.server_heard.clear();
    pair.service = Some(2);
    pair.server.ask_replay(pair.now);
    // The server's end asks, its answer is lost, and then APP_SERVER_DB's message comes.
    let Some((Record::Replay(replay), _)) = pair.server.poll_transmit(pair.now) else { panic!() };
    pair.client.handle_replay(&replay, pair.now).unwrap();
    let (request, _) = pair.client.poll_transmit(pair.now).unwrap();
    pair.at_server(request, Bytes::new());
    let Some((Record::ConnectReply(_), _)) = pair.server.poll_transmit(pair.now) else { panic!() };
    pair.client.replay(Incarnation(2), pair.now);
    pair.exchange();
    pair.server_says("abcd");
    assert_eq!(pair.heard(), ("GET", "abcd"));
    let attached = pair.server_events.iter().filter(|event| matches!(event, Event::Reconnected { .. })).count();
    assert_eq!(attached, 1);
}

#[test]
fn a_dead_worker_is_replaced_although_the_service_lives() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.server.server_lost(pair.now);
    assert!(pair.server.needs_replay());
    pair.server_heard.clear();
    pair.server.ask_replay(pair.now);
    pair.exchange();
    assert!(!pair.server.needs_replay());
    pair.server_says("answer");
    assert_eq!(pair.heard(), ("question", "answer"));
}

#[test]
fn a_server_that_closed_in_order_needs_no_replay_and_its_bytes_still_arrive() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.server.app_read(Bytes::from_static(b"answer"), pair.now);
    pair.server.app_closed(pair.now);
    assert!(!pair.server.needs_replay());
    pair.service = None;
    pair.client.replay(Incarnation(2), pair.now);
    pair.exchange();
    assert_eq!(pair.heard().1, "answer");
    assert_eq!(pair.client_actions, [AppAction::ShutdownWrite]);
    pair.client.app_closed(pair.now);
    pair.exchange();
    assert!(pair.client.is_drained() && pair.server.is_drained());
}

#[test]
fn a_new_process_that_closes_early_has_diverged() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.server_says("long answer");
    pair.restart();
    pair.server_says("long");
    pair.server.app_closed(pair.now);
    pair.exchange();
    let divergence = Divergence::Short { said: 4, expected: 11 };
    assert!(pair.server_events.contains(&Event::Diverged(divergence)));
    assert_eq!(pair.client_actions, [AppAction::Reset(ResetReason::Diverged)]);
}

#[test]
fn a_new_process_that_stays_silent_has_diverged() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.server_says("answer");
    pair.restart();
    pair.pass(ms(59_000));
    assert_eq!(pair.client_actions, []);
    pair.pass(ms(2_000));
    let divergence = Divergence::Silent { said: 0, expected: 6 };
    assert!(pair.server_events.contains(&Event::Diverged(divergence)));
    assert_eq!(pair.client_actions, [AppAction::Reset(ResetReason::Diverged)]);
}

#[test]
fn a_divergence_that_is_passed_over_drops_by_count() {
    let mut pair = Pair::new(StreamPolicy, Config { on_divergence: OnDivergence::Continue, ..Config::default() });
    pair.client_says("GET");
    pair.server_says("abc");
    pair.restart();
    pair.server_says("xyzdef");
    assert_eq!(pair.heard().1, "abcdef");
    assert!(pair.server_events.contains(&Event::Diverged(Divergence::Bytes)));
}

#[test]
fn both_applications_are_reset_when_no_process_comes_back_in_time() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.server.server_lost(pair.now);
    pair.service = None;
    pair.pass(ms(29_900));
    assert_eq!(pair.client_actions, []);
    pair.pass(ms(200));
    assert_eq!(pair.client_actions, [AppAction::Reset(ResetReason::Deadline)]);
}

#[test]
fn reconnect_goes_on_where_it_was_and_repeats_nothing() {
    let mut pair = Pair::new(ReconnectPolicy, Config::default());
    pair.client_says("one");
    pair.server_says("1");
    assert_eq!(pair.client.log_memory(), 0, "no log is kept");
    pair.restart();
    assert_eq!(pair.heard(), ("", "1"));
    pair.client_says("two");
    pair.server_says("2");
    assert_eq!(pair.heard(), ("two", "12"));
}

#[test]
fn replay_that_was_lost_at_the_log_bound_is_regained_at_the_next_turn() {
    let mut pair = Pair::new(RequestPolicy::default(), Config { log_bound: 1000, ..Config::default() });
    for _ in 0..10 {
        pair.client.app_read(Bytes::from(vec![b'x'; 200]), pair.now);
        pair.exchange();
        pair.pass(ms(30));
    }
    assert!(pair.client.log_memory() < 1000);
    let lost = pair.client_events.iter().filter(|event| matches!(event, Event::LogOverflow { .. })).count();
    assert_eq!(lost, 1);
    pair.server_says("ok");
    pair.client_says("next");
    assert!(pair.client_events.contains(&Event::ReplayRegained));
    pair.server_says("fi");
    pair.restart();
    pair.server_says("fine");
    assert_eq!(pair.heard(), ("next", "okfine"));
    assert!(pair.server_events.contains(&Event::Recovered { regenerated: 2 }));
}

/// Knows a protocol in which an answer ends with a full stop, as a researcher would teach one.
struct FullStop;

impl MarkPolicy for FullStop {
    fn client_spoke(&mut self, _: &Conversation, _: &[u8]) -> Option<Mark> {
        None
    }
    fn server_answered(&mut self, at: &Conversation, bytes: &[u8]) -> Option<Mark> {
        let stop = bytes.iter().rposition(|byte| *byte == b'.')?;
        Some(Mark { c2s: at.c2s_end, s2c: at.s2c_received + stop as u64 + 1 })
    }
    fn save(&self, _: &mut Vec<u8>) {}
    fn restore(&mut self, _: &[u8]) -> Result<(), PolicyStateError> {
        Ok(())
    }
}

#[test]
fn a_policy_that_knows_the_protocol_sets_marks_inside_what_the_server_says() {
    let mut pair = Pair::new(FullStop, Config::default());
    pair.client_says("one");
    pair.server_says("answer.tail");
    pair.restart();
    assert_eq!(pair.heard(), ("", "answer.tail"), "the answered request is not fed again");
    pair.server_says("tail, more");
    assert_eq!(pair.heard().1, "answer.tail, more");
    assert!(pair.server_events.contains(&Event::Recovered { regenerated: 4 }));
}

/// Sets marks that cannot be.
struct Wrong;

impl MarkPolicy for Wrong {
    fn client_spoke(&mut self, at: &Conversation, _: &[u8]) -> Option<Mark> {
        Some(Mark { c2s: at.c2s_end + 1000, s2c: at.s2c_received })
    }
    fn server_answered(&mut self, at: &Conversation, _: &[u8]) -> Option<Mark> {
        Some(Mark { c2s: at.c2s_end, s2c: u64::MAX })
    }
    fn save(&self, _: &mut Vec<u8>) {}
    fn restore(&mut self, _: &[u8]) -> Result<(), PolicyStateError> {
        Ok(())
    }
}

#[test]
fn a_mark_that_cannot_be_is_ignored_and_reported_once() {
    let mut pair = Pair::new(Wrong, Config::default());
    pair.client_says("one");
    pair.server_says("1");
    assert_eq!(pair.client.mark(), Mark::default());
    let refused = pair.client_events.iter().filter(|event| matches!(event, Event::MarkRefused(_))).count();
    assert_eq!(refused, 1);
    pair.restart();
    pair.server_says("12");
    assert_eq!(pair.heard(), ("one", "12"));
}

#[test]
fn what_a_connect_request_has_promised_stays_in_the_log_whatever_the_client_says_meanwhile() {
    let mut pair = Pair::new(StreamPolicy, Config { log_bound: 1000, window: 10_000, ..Config::default() });
    pair.client_says("beginning ");
    pair.pass(ms(30));
    pair.server.server_lost(pair.now);
    pair.server_heard.clear();
    pair.client.replay(Incarnation(2), pair.now);
    pair.client.app_read(Bytes::from(vec![b'x'; 5000]), pair.now);
    pair.exchange();
    assert!(pair.client_events.iter().any(|event| matches!(event, Event::LogOverflow { .. })));
    assert_eq!(&pair.heard().0[..12], "beginning xx");
    assert_eq!(pair.server_heard.len(), 5010);
}

#[test]
fn no_turn_begins_before_a_new_process_has_said_something_new() {
    let mut pair = Pair::request();
    pair.client_says("one");
    pair.server_says("half an answer");
    pair.restart();
    pair.pass(ms(100));
    pair.client_says("two");
    assert_eq!(pair.client.mark(), Mark::default());
    pair.restart();
    assert_eq!(pair.heard().0, "onetwo");
}

#[test]
fn an_armor_that_does_not_know_the_connection_cannot_end_it() {
    let mut pair = Pair::request();
    pair.client_says("question");
    let mut reset =
        Reset { connection: pair.client.connection(), incarnation: Incarnation(1), direction: Direction::S2c, reason: ResetReason::Closed };
    pair.client.handle_reset(&reset, pair.now).unwrap();
    pair.move_to_another_node();
    pair.server_says("answer");
    assert_eq!(pair.heard(), ("question", "answer"));
    reset.incarnation = Incarnation(2);
    reset.reason = ResetReason::Peer;
    pair.client.handle_reset(&reset, pair.now).unwrap();
    pair.exchange();
    assert_eq!(pair.client_actions, [AppAction::Reset(ResetReason::Peer)]);
}

#[test]
fn a_refusal_while_recovering_means_not_yet_until_the_server_s_end_says_for_good() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.server.server_lost(pair.now);
    pair.service = None;
    pair.client.replay(Incarnation(2), pair.now);
    let reply = ConnectReply {
        connection: pair.client.connection(),
        requested: Incarnation(2),
        incarnation: Incarnation(2),
        service: Incarnation(0),
        end: 0,
        errno: 111,
        c2s: AckState::default(),
    };
    pair.client.handle_connect_reply(&reply, pair.now).unwrap();
    pair.exchange();
    assert_eq!(pair.client_actions, []);
    pair.server.refused(111, pair.now);
    pair.exchange();
    assert_eq!(pair.client_actions, [AppAction::Reset(ResetReason::ServerGone)]);
}

#[test]
fn an_end_that_a_late_first_request_made_on_the_new_node_is_not_taken_for_the_old_one() {
    let mut pair = Pair::unconnected(StreamPolicy, Config::default());
    let (first, _) = pair.client.poll_transmit(pair.now).unwrap();
    pair.at_server(first, Bytes::new());
    pair.exchange();
    pair.client_says("GET");
    pair.server_says("abc");
    // The node is lost; the network brings the first request once more, to the new node.
    pair.server = ServerEnd::new(pair.client.connection(), pair.config.clone(), pair.now);
    pair.service = Some(2);
    pair.at_server(first, Bytes::new());
    pair.server.app_read(Bytes::from_static(b"hello, stranger"), pair.now);
    pair.server_heard.clear();
    pair.client.replay(Incarnation(2), pair.now);
    pair.exchange();
    pair.server_says("abcdef");
    assert_eq!(pair.heard(), ("GET", "abcdef"));
    assert!(pair.server_events.contains(&Event::Recovered { regenerated: 3 }));
}

#[test]
fn a_process_whose_death_is_not_noticed_yet_is_not_kept_when_a_newer_one_serves() {
    let mut pair = Pair::new(StreamPolicy, Config::default());
    pair.client_says("GET");
    pair.service = Some(2);
    pair.server_heard.clear();
    pair.client.replay(Incarnation(2), pair.now);
    pair.exchange();
    assert_eq!(pair.heard().0, "GET", "fed to the new process");
}

#[test]
fn a_request_says_beforehand_whether_it_replaces_the_process_and_what_that_one_had_said_is_kept() {
    let mut pair = Pair::new(ReconnectPolicy, Config::default());
    pair.client_says("GET");
    let Record::ConnectRequest(first) = pair.sent[0] else { panic!("a request comes first") };
    assert!(!pair.server.replaces_process(&first), "it is answered already");
    pair.client.replay(Incarnation(2), pair.now);
    let Some((Record::ConnectRequest(request), _)) = pair.client.poll_transmit(pair.now) else { panic!("a request") };
    assert!(!pair.server.replaces_process(&ConnectRequest { connection: ConnectionId(9), ..request }), "of another connection");
    assert!(!pair.server.replaces_process(&ConnectRequest { service: Incarnation(1), ..request }), "this process is as new as it asks for");
    let invented = ConnectRequest { received_s2c: 99, written_s2c: 99, ..request };
    assert!(!pair.server.replaces_process(&invented), "it makes no sense and would change nothing");
    assert!(pair.server.replaces_process(&request));
    // Nobody says it again, so it has to come from the socket of the process that is replaced.
    pair.server.app_read(Bytes::from_static(b"last words"), pair.now);
    pair.server.server_lost(pair.now);
    assert!(!pair.server.replaces_process(&request), "none is attached");
    assert!(!pair.server.awaits_process(), "nobody has asked for one yet");
    pair.service = None;
    pair.at_server(Record::ConnectRequest(request), Bytes::new());
    assert!(pair.server.awaits_process());
    pair.service = Some(2);
    pair.attach();
    assert!(!pair.server.awaits_process());
    pair.exchange();
    assert_eq!(pair.heard().1, "last words");
}

#[test]
fn a_connection_whose_server_has_said_all_needs_no_log() {
    let mut pair = Pair::new(StreamPolicy, Config { log_bound: 1000, window: 1000, ..Config::default() });
    for _ in 0..5 {
        pair.client.app_read(Bytes::from(vec![b'x'; 500]), pair.now);
        pair.exchange();
        pair.pass(ms(30));
    }
    assert!(pair.client_events.iter().any(|event| matches!(event, Event::LogOverflow { .. })));
    pair.server_says("all of it");
    pair.server.app_closed(pair.now);
    pair.exchange();
    pair.move_to_another_node();
    pair.client.app_closed(pair.now);
    pair.exchange();
    assert!(pair.client_events.contains(&Event::Finished), "{:?}", pair.client_events);
    assert_eq!(pair.heard().1, "all of it");
}

#[test]
fn a_server_that_dies_after_it_ended_its_stream_is_done_and_what_it_did_not_take_is_a_reset() {
    let mut pair = Pair::request();
    pair.client_says("question");
    pair.server_says("answer");
    pair.server.app_eof(pair.now);
    pair.exchange();
    pair.server.server_lost(pair.now);
    assert!(!pair.server.needs_replay());
    pair.client_says("more");
    assert_eq!(pair.heard().1, "answer");
    assert_eq!(pair.client_actions, [AppAction::ShutdownWrite, AppAction::Reset(ResetReason::Closed)]);
}

/// A spill on a disk that is full.
struct FullDisk;

impl Spill for FullDisk {
    fn append(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
    fn read_at(&mut self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

#[test]
fn a_spill_that_takes_no_more_is_told_and_costs_replay_but_not_the_connection() {
    let mut pair = Pair::new(StreamPolicy, Config { log_bound: 1000, ..Config::default() });
    pair.client.set_spill(Box::new(FullDisk));
    for _ in 0..10 {
        pair.client.app_read(Bytes::from(vec![b'x'; 200]), pair.now);
        pair.exchange();
        pair.pass(ms(30));
    }
    let told: Vec<_> =
        pair.client_events.iter().filter(|event| matches!(event, Event::SpillFailed(_) | Event::LogOverflow { .. })).collect();
    assert!(matches!(told[..], [Event::SpillFailed(io::ErrorKind::StorageFull), Event::LogOverflow { .. }]), "{told:?}");
    pair.server_says("goes on");
    assert_eq!((pair.heard().0.len(), pair.heard().1), (2000, "goes on"));
}
