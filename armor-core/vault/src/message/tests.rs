//! Round trips, limits, and garbage.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn requests() -> Vec<Request> {
    vec![
        Request::Hello { owner: "node1/web".into() },
        Request::Keep { key: "k".repeat(KEY_LIMIT) },
        Request::Forget { key: "journal".into() },
        Request::Heard { sequence: u64::MAX },
        Request::Alive,
        Request::Ended,
    ]
}

fn answers() -> Vec<Answer> {
    vec![
        Answer::Kept { keys: vec!["k".repeat(KEY_LIMIT); BATCH] },
        Answer::Exited { sequence: 7, process: Exited { pid: u32::MAX, status: i32::MIN } },
        Answer::Handed { count: 20_000 },
        Answer::Refused { key: "journal".into(), reason: "a bound".into() },
    ]
}

fn datagrams() -> Vec<Vec<u8>> {
    let requests = requests().into_iter().map(|request| encode(&request));
    requests.chain(answers().into_iter().map(|answer| encode(&answer))).collect::<Result<_, _>>().unwrap()
}

#[test]
fn every_message_survives_the_round_trip() {
    for request in requests() {
        assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request);
    }
    for answer in answers() {
        assert_eq!(decode::<Answer>(&encode(&answer).unwrap()).unwrap(), answer);
    }
}

#[test]
fn names_have_limits() {
    for key in [String::new(), "k".repeat(KEY_LIMIT + 1)] {
        assert!(
            decode::<Request>(&encode(&Request::Keep { key: key.clone() }).unwrap()).unwrap_err().starts_with("a name has 1 to 64 bytes")
        );
        assert!(decode::<Answer>(&encode(&Answer::Kept { keys: vec![key] }).unwrap()).is_err());
    }
    assert!(decode::<Request>(&encode(&Request::Hello { owner: "o".repeat(OWNER_LIMIT + 1) }).unwrap()).is_err());
    assert!(encode(&Answer::Refused { key: "k".into(), reason: "r".repeat(DATAGRAM_LIMIT) }).is_err());
}

#[test]
fn no_cut_or_longer_message_of_another_version_is_read() {
    for datagram in datagrams() {
        for length in 0..datagram.len() {
            assert!(decode::<Request>(&datagram[..length]).is_err());
            assert!(decode::<Answer>(&datagram[..length]).is_err());
        }
        let longer = [&datagram[..], &[0xc0]].concat();
        assert!(decode::<Request>(&longer).is_err() && decode::<Answer>(&longer).is_err());
        let other = [&[PROTOCOL_VERSION + 1], &datagram[1..]].concat();
        assert!(decode::<Request>(&other).is_err() && decode::<Answer>(&other).is_err());
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_or_read_but_never_more(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), valid in 0usize..10, at in 0usize..200) {
        let mut changed = datagrams()[valid].clone();
        let at = at % changed.len();
        changed[at] = bytes.first().copied().unwrap_or(0);
        if let Some(first) = bytes.first_mut() {
            *first = PROTOCOL_VERSION;
        }
        for datagram in [bytes, changed] {
            if let Ok(request) = decode::<Request>(&datagram) {
                prop_assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request);
            }
            if let Ok(answer) = decode::<Answer>(&datagram) {
                prop_assert_eq!(decode::<Answer>(&encode(&answer).unwrap()).unwrap(), answer);
            }
        }
    }
}
