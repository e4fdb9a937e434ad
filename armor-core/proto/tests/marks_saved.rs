//! The state of a mark policy outside of its process: how long it is, and what is made of bytes that are none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod mark_talk;

use armor_proto::connection::{MAX_SAVED, Mark, MarkPolicy, mark_policy};
use mark_talk::{Side, Talk};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

const NAMES: [&str; 6] = ["request", "http", "resp", "turn", "stream", "reconnect"];

#[test]
fn the_longest_states_are_within_the_bound() {
    let long = "x".repeat(3000);
    let mut talk = Talk::new("http");
    talk.client("GET / HTTP/1.1\r\n\r\n".repeat(40)).client(format!("GET /{long} HTTP/1.1\r\nContent-Length: 5\r\nX{long}"));
    talk.server(format!("HTTP/1.1 200 {long}\r\nContent-Length: 123456789012345678\r\nX-{long}"));
    let http = talk.save_and_restore();
    assert!(http > 300, "{http}");

    let mut talk = Talk::new("resp");
    // Far in both streams, where offsets are long numbers.
    talk.said = Mark { c2s: 1 << 60, s2c: 1 << 60 };
    let small = ["AUTH a", "SELECT 1", "CLIENT SETNAME a", "CLIENT SETINFO LIB-NAME a", "CLIENT SETINFO LIB-VER a", "CLIENT NO-EVICT on"];
    for setting in small {
        talk.client(format!("{setting}\r\n")).server("+OK\r\n");
    }
    talk.client("SELECT 2\r\n".repeat(7));
    talk.client("*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nEXEC\r\n".repeat(20));
    let name = "n".repeat(30);
    talk.client(format!("*9\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$30\r\n{name}\r\n${}", "9".repeat(70)));
    talk.server(format!("{}+EXECABORT{long}", "*?\r\n".repeat(8)));
    let resp = talk.save_and_restore();
    assert!(resp > 800, "{resp}");
    assert!(!talk.gave_up() && talk.mark.c2s > 0);
}

/// Seals changed bytes again, so that the check at their end does not refuse them.
fn sealed(mut state: Vec<u8>) -> Vec<u8> {
    let body = state.len() - 4;
    let check = xxh3_64(&state[..body]).to_le_bytes();
    state[body..].copy_from_slice(&check[..4]);
    state
}

/// What was said before the policy's process died.
fn conversation() -> impl Strategy<Value = Vec<(Side, String)>> {
    let client = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "\r\n",
        "*2\r\n$6\r\nSELECT\r\n$1\r\n1\r\n",
        "PING\r\n",
        "*1\r\n$5\r\nMULTI\r\n",
        "Host: a\r\n",
    ]);
    let server = prop::sample::select(vec![
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "+OK\r\n",
        "*2\r\n+QUEUED\r\n",
        "$3\r\nab",
        "HTTP/1.1 2",
    ]);
    let piece = prop_oneof![client.prop_map(|text| (Side::Client, text)), server.prop_map(|text| (Side::Server, text))];
    prop::collection::vec(piece.prop_map(|(side, text)| (side, text.to_owned())), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_that_are_no_state_are_refused_and_change_nothing(
        name in prop::sample::select(NAMES.to_vec()),
        said in conversation(),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut talk = Talk::new(name);
        for (side, text) in said.iter().filter(|_| name != "reconnect") {
            talk.say(*side, text.as_bytes());
        }
        let state = talk.saved();
        prop_assert!(state.len() <= MAX_SAVED);
        let mut policy = mark_policy(name).unwrap();
        policy.restore(&state).unwrap();
        let mut changed = state.clone();
        changed[cut.index(state.len())] ^= 0x10;
        for wrong in [&garbage[..], &changed, &state[..cut.index(state.len())], &[&state[..], &garbage].concat()[..]] {
            if wrong != state {
                prop_assert!(policy.restore(wrong).is_err());
            }
        }
        let mut unchanged = Vec::new();
        policy.save(&mut unchanged);
        prop_assert_eq!(unchanged, state.clone());
        // Another policy's state is refused too; `http` and `resp` are forms of `request`.
        let kind = |name| if ["http", "resp"].contains(&name) { "request" } else { name };
        for other in NAMES.into_iter().filter(|other| kind(other) != kind(name)) {
            prop_assert!(mark_policy(other).unwrap().restore(&state).is_err());
        }
    }

    #[test]
    fn a_state_that_was_forged_neither_panics_nor_hangs_nor_grows(
        said in conversation(),
        more in conversation(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut talk = Talk::new("request");
        for (side, text) in &said {
            talk.say(*side, text.as_bytes());
        }
        let mut state = talk.saved();
        for (index, byte) in changes {
            let at = index.index(state.len());
            state[at] = byte;
        }
        let mut policy = mark_policy("request").unwrap();
        if policy.restore(&sealed(state)).is_ok() {
            listen(policy.as_mut(), &more);
            let mut state = Vec::new();
            policy.save(&mut state);
            prop_assert!(state.len() <= MAX_SAVED + 400, "{}", state.len());
        }
    }
}

/// Says everything to a policy; whatever mark it sets is the end's to refuse.
fn listen(policy: &mut dyn MarkPolicy, said: &[(Side, String)]) {
    let mut at = armor_proto::connection::Conversation {
        mark: Mark::default(),
        c2s_end: 1000,
        c2s_acked: 1000,
        c2s_answered: 1000,
        s2c_received: 1000,
        s2c_waiting: 0,
        recovering: false,
        now: std::time::Instant::now(),
    };
    for (side, text) in said {
        if *side == Side::Client {
            policy.client_spoke(&at, text.as_bytes());
            at.c2s_end += text.len() as u64;
        } else {
            policy.server_answered(&at, text.as_bytes());
            at.s2c_received += text.len() as u64;
        }
    }
}
