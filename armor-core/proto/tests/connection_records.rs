//! Records of any content, in any order, never panic an end, and never make it break its bounds (ARCHITECTURE.md, Bounds).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use armor_proto::connection::{
    Ack, AckState, AppAction, ClientEnd, Config, ConnectDecision, ConnectReply, ConnectRequest, Data, Direction, Mark, Record, Replay,
    Reset, ResetReason, Resume, ServerEnd, mark_policy,
};
use armor_proto::ids::{ConnectionId, Incarnation};
use bytes::Bytes;
use proptest::prelude::*;

/// Numbers that are near something.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0..40u64,
        2 => 0..5000u64,
        1 => any::<u64>(),
        1 => (0..100u64).prop_map(|n| u64::MAX - n),
        1 => (0..100u64).prop_map(|n| u64::from(u32::MAX) + n),
    ]
}

fn small() -> impl Strategy<Value = u32> {
    number().prop_map(|n| n as u32)
}

fn incarnation() -> impl Strategy<Value = Incarnation> {
    prop_oneof![8 => Just(1u32), 5 => 0..4u32, 1 => any::<u32>()].prop_map(Incarnation)
}

fn connection() -> impl Strategy<Value = ConnectionId> {
    prop_oneof![20 => Just(7u64), 1 => any::<u64>()].prop_map(ConnectionId)
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::C2s), Just(Direction::S2c)]
}

fn ack_state() -> impl Strategy<Value = AckState> {
    (number(), small(), small(), any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(offset, held, window, fin, resend, complete)| AckState { offset, held, window, fin, resend, complete })
}

fn record() -> impl Strategy<Value = Record> {
    let data = (connection(), incarnation(), direction(), number(), any::<bool>(), ack_state()).prop_map(
        |(connection, incarnation, direction, offset, fin, ack)| {
            Record::Data(Data { connection, incarnation, direction, offset, fin, ack })
        },
    );
    let ack = (connection(), incarnation(), direction(), ack_state())
        .prop_map(|(connection, incarnation, direction, state)| Record::Ack(Ack { connection, incarnation, direction, state }));
    let reset = (connection(), incarnation(), direction(), any::<u8>()).prop_map(|(connection, incarnation, direction, reason)| {
        Record::Reset(Reset { connection, incarnation, direction, reason: ResetReason::from(reason) })
    });
    let replay = (connection(), incarnation(), any::<bool>())
        .prop_map(|(connection, incarnation, process_lives)| Record::Replay(Replay { connection, incarnation, process_lives }));
    let reply = (connection(), incarnation(), incarnation(), incarnation(), 0..20i32, ack_state()).prop_map(
        |(connection, requested, incarnation, service, errno, c2s)| {
            let errno = if errno == 1 { 111 } else { 0 };
            Record::ConnectReply(ConnectReply { connection, requested, incarnation, service, end: 0, errno, c2s })
        },
    );
    let request = (
        (connection(), incarnation(), incarnation(), incarnation(), any::<bool>()),
        (number(), number(), number(), number(), number(), any::<bool>(), number(), small()),
    )
        .prop_map(|((connection, incarnation, seen, service, replays), (a, b, c, d, e, fin_s2c, hash_s2c, window))| {
            Record::ConnectRequest(ConnectRequest {
                connection,
                incarnation,
                seen,
                seen_end: u64::from(window % 3 == 0),
                service,
                resume: if replays { Resume::Mark } else { Resume::Present },
                mark: Mark { c2s: a, s2c: b },
                acked_c2s: c,
                written_s2c: d,
                received_s2c: e,
                fin_s2c,
                hash_s2c,
                window,
                settled_ms: (replays && window % 2 == 0).then_some(0),
            })
        });
    prop_oneof![6 => data, 4 => ack, 1 => reset, 2 => replay, 3 => reply, 3 => request]
}

#[derive(Clone, Debug)]
enum Step {
    Hear(Record, usize),
    Say(usize),
    Wrote(usize),
    Wait(u64),
    Eof,
    Closed,
    Reset,
    Replay(Incarnation),
    Attached(Incarnation),
    Refused,
    Lost,
    AskReplay,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (record(), 0..50usize).prop_map(|(record, length)| Step::Hear(record, length)),
        4 => (0..3000usize).prop_map(Step::Say),
        4 => (0..100usize).prop_map(Step::Wrote),
        4 => (0..40_000u64).prop_map(Step::Wait),
        1 => Just(Step::Eof),
        1 => Just(Step::Closed),
        1 => Just(Step::Reset),
        2 => incarnation().prop_map(Step::Replay),
        4 => incarnation().prop_map(Step::Attached),
        1 => Just(Step::Refused),
        2 => Just(Step::Lost),
        1 => Just(Step::AskReplay),
    ]
}

fn config() -> Config {
    Config { window: 1000, log_bound: 3000, max_data: 100, ..Config::default() }
}

fn first_request() -> ConnectRequest {
    ConnectRequest {
        connection: ConnectionId(7),
        incarnation: Incarnation(0),
        seen: Incarnation(0),
        seen_end: 0,
        service: Incarnation(0),
        resume: Resume::Mark,
        mark: Mark::default(),
        acked_c2s: 0,
        written_s2c: 0,
        received_s2c: 0,
        fin_s2c: false,
        hash_s2c: 0,
        window: 500,
        settled_ms: None,
    }
}

const FRAMES: usize = 20_000;

fn client_takes(policy: &str, steps: &[Step]) {
    let mut now = Instant::now();
    let mut end = ClientEnd::new(ConnectionId(7), config(), mark_policy(policy).unwrap(), now);
    if !steps.len().is_multiple_of(5) {
        let reply = ConnectReply {
            connection: ConnectionId(7),
            requested: Incarnation(0),
            incarnation: Incarnation(1),
            service: Incarnation(1),
            end: 0,
            errno: 0,
            c2s: AckState { window: 500, ..AckState::default() },
        };
        end.handle_connect_reply(&reply, now).unwrap();
    }
    for step in steps {
        match step {
            Step::Hear(record, length) => {
                let payload = Bytes::from(vec![1; *length]);
                let _ = match record {
                    Record::Data(r) => end.handle_data(r, payload, now),
                    Record::Ack(r) => end.handle_ack(r, now),
                    Record::Reset(r) => end.handle_reset(r, now),
                    Record::ConnectReply(r) => end.handle_connect_reply(r, now),
                    Record::Replay(r) => end.handle_replay(r, now),
                    Record::ConnectRequest(_) => Ok(()),
                };
            }
            Step::Say(length) => end.app_read(Bytes::from(vec![2; (*length).min(end.read_capacity())]), now),
            Step::Wrote(count) => end.app_wrote(*count, now),
            Step::Wait(time) => {
                now += Duration::from_millis(*time);
                end.handle_timeout(now);
            }
            Step::Eof => end.app_eof(now),
            Step::Closed => end.app_closed(now),
            Step::Reset => end.app_reset(now),
            Step::Replay(service) => end.replay(*service, now),
            Step::Attached(_) | Step::Refused | Step::Lost | Step::AskReplay => {}
        }
        assert!(end.app_waiting() <= 1000);
        assert!(end.log_memory() <= 3000 + 3 * 1000);
        let frames = std::iter::from_fn(|| end.poll_transmit(now)).take(FRAMES).count();
        assert!(frames < FRAMES, "sends for ever");
        while let Some(action) = end.poll_app(now) {
            if action == AppAction::Write {
                break;
            }
        }
        while end.poll_event().is_some() {}
        let _ = end.poll_timeout();
    }
}

fn server_takes(steps: &[Step]) {
    let mut now = Instant::now();
    let mut end = ServerEnd::new(ConnectionId(7), config(), now);
    if !steps.len().is_multiple_of(5) {
        let mut request = first_request();
        request.mark.c2s = steps.len() as u64 % 3;
        end.handle_connect_request(&request, now).unwrap();
        end.attached(Incarnation(1), now).unwrap();
    }
    for step in steps {
        match step {
            Step::Hear(record, length) => {
                let payload = Bytes::from(vec![1; *length]);
                let _ = match record {
                    Record::Data(r) => end.handle_data(r, payload, now),
                    Record::Ack(r) => end.handle_ack(r, now),
                    Record::Reset(r) => end.handle_reset(r, now),
                    Record::ConnectRequest(r) => end.handle_connect_request(r, now).map(|decision| {
                        if decision == ConnectDecision::Attach && *length > 5 {
                            end.attached(Incarnation(1), now).unwrap();
                        }
                    }),
                    Record::ConnectReply(_) | Record::Replay(_) => Ok(()),
                };
            }
            Step::Say(length) => end.app_read(Bytes::from(vec![2; (*length).min(end.read_capacity())]), now),
            Step::Wrote(count) => end.app_wrote(*count, now),
            Step::Wait(time) => {
                now += Duration::from_millis(*time);
                end.handle_timeout(now);
            }
            Step::Eof => end.app_eof(now),
            Step::Closed => end.app_closed(now),
            Step::Reset => end.app_reset(now),
            Step::Replay(_) => {}
            Step::Attached(service) => {
                let _ = end.attached(*service, now);
            }
            Step::Refused => end.refused(111, now),
            Step::Lost => end.server_lost(now),
            Step::AskReplay => end.ask_replay(now),
        }
        assert!(end.app_waiting() <= 1000);
        let frames = std::iter::from_fn(|| end.poll_transmit(now)).take(FRAMES).count();
        assert!(frames < FRAMES, "sends for ever");
        while let Some(action) = end.poll_app(now) {
            if action == AppAction::Write {
                break;
            }
        }
        while end.poll_event().is_some() {}
        let _ = end.poll_timeout();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_records_panics_the_client_s_end(
        policy in prop::sample::select(vec!["request", "http", "resp", "turn", "stream", "reconnect"]),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        client_takes(policy, &steps);
    }

    #[test]
    fn no_sequence_of_records_panics_the_server_s_end(steps in prop::collection::vec(step(), 1..60)) {
        server_takes(&steps);
    }

    #[test]
    fn every_record_survives_the_wire(record in record()) {
        let bytes = rmp_serde::to_vec(&record).unwrap();
        prop_assert_eq!(rmp_serde::from_slice::<Record>(&bytes).unwrap(), record);
    }

    #[test]
    fn bytes_that_are_no_record_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = rmp_serde::from_slice::<Record>(&bytes);
        let _ = rmp_serde::from_slice::<Data>(&bytes);
        let _ = rmp_serde::from_slice::<ConnectRequest>(&bytes);
    }
}
