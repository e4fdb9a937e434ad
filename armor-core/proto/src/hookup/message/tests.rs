//! Round trips of every message, and garbage.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::hookup::{NAME_LENGTH, Role};

fn endpoint(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

fn name(role: Role) -> Name {
    Name { role, id: 0x0123_4567_89ab_cdef, local: endpoint("[::1]:40000"), peer: endpoint("[::1]:80") }
}

fn every_request() -> Vec<Request> {
    let pid = u32::MAX;
    let name = name(Role::Server);
    vec![
        Request::Bind { addr: endpoint("0.0.0.0:0"), service: None, pid, v6_only: false, reuse_port: true, instance: 0 },
        Request::Bind { addr: endpoint("[::]:80"), service: Some("web".into()), pid, v6_only: true, reuse_port: false, instance: u64::MAX },
        Request::Listen { listener: 7, backlog: -1, pid },
        Request::Withdraw { listener: u64::MAX },
        Request::Connect { addr: endpoint("127.0.0.1:80"), nonblocking: true, descriptor: 7, pid },
        Request::Connect { addr: endpoint("[::1]:80"), nonblocking: false, descriptor: i32::MAX, pid },
        Request::Closed { name, pid },
        Request::Finished { name, pid },
        Request::Aborted { name, pid },
        Request::HowEnded { name },
        Request::SetOption { name, level: 6, option: 1, value: vec![1, 0, 0, 0] },
        Request::GetOption { name, level: 6, option: 11, length: 232 },
    ]
}

fn every_reply() -> Vec<Reply> {
    vec![
        Reply::Bound { errno: 0, listener: 7, name: Some(Name::listener(7, endpoint("0.0.0.0:8080"))) },
        Reply::Bound { errno: 98, listener: 0, name: None },
        Reply::Hold,
        Reply::Registered { errno: 105 },
        Reply::Connected { errno: 0, pending: true, name: Some(name(Role::Client)) },
        Reply::Connected { errno: 111, pending: false, name: None },
        Reply::Bypass,
        Reply::Ended { errno: 104 },
        Reply::Option { errno: 0, value: vec![0; 232] },
        Reply::Withdrawn,
        Reply::Refused { reason: "foreign user".into() },
    ]
}

#[test]
fn every_message_survives_the_round_trip() {
    for request in every_request() {
        assert_eq!(Request::decode(&request.encode().unwrap()).unwrap(), request);
    }
    for reply in every_reply() {
        assert_eq!(Reply::decode(&reply.encode().unwrap()).unwrap(), reply);
    }
}

#[test]
fn what_is_sent_on_a_close_fits_a_small_buffer() {
    let mut buffer = [0; 128];
    let request = Request::Closed { name: name(Role::Client), pid: 1 };
    let length = request.encode_into(&mut buffer).unwrap();
    assert!(length > NAME_LENGTH);
    assert_eq!(Request::decode(&buffer[..length]).unwrap(), request);
}

#[test]
fn no_cut_message_is_read() {
    for request in every_request() {
        let datagram = request.encode().unwrap();
        for length in 0..datagram.len() {
            assert!(Request::decode(&datagram[..length]).is_err(), "{request:?} cut to {length}");
        }
    }
}

#[test]
fn lengths_and_versions_are_checked() {
    assert!(matches!(Request::decode(&[]), Err(HookupError::Empty)));
    assert!(matches!(Request::decode(&[2, 0xc0]), Err(HookupError::Version { got: 2 })));
    assert!(matches!(Request::decode(&[1; DATAGRAM_LIMIT + 1]), Err(HookupError::TooLong { .. })));
    let mut datagram = Reply::Withdrawn.encode().unwrap();
    datagram.push(0);
    assert!(matches!(Reply::decode(&datagram), Err(HookupError::Trailing { extra: 1 })));
    let large = Request::SetOption { name: name(Role::Client), level: 0, option: 0, value: vec![0; DATAGRAM_LIMIT] };
    assert!(matches!(large.encode(), Err(HookupError::TooLong { limit: DATAGRAM_LIMIT })));
    assert!(matches!(Request::Withdraw { listener: 1 }.encode_into(&mut []), Err(HookupError::TooLong { limit: 0 })));
}

#[test]
fn a_claimed_length_beyond_the_datagram_allocates_nothing_of_that_size() {
    // fixmap 1, "SetOption", bin32 of 4 GiB - 1: refused by running out of bytes.
    let mut datagram = vec![PROTOCOL_VERSION, 0x81, 0xa9];
    datagram.extend(b"SetOption");
    datagram.extend([0xc6, 0xff, 0xff, 0xff, 0xff]);
    assert!(matches!(Request::decode(&datagram), Err(HookupError::Malformed(_))));
    // array32 and deep nesting
    assert!(Request::decode(&[PROTOCOL_VERSION, 0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
    let mut deep = vec![0x91; 2000];
    deep[0] = PROTOCOL_VERSION;
    assert!(Request::decode(&deep).is_err());
}

proptest! {
    #[test]
    fn garbage_is_an_error_or_a_message_but_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        bytes[0] = PROTOCOL_VERSION;
        let _ = Request::decode(&bytes);
        let _ = Reply::decode(&bytes);
    }

    #[test]
    fn a_damaged_message_never_panics(which in 0usize..12, at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut datagram = every_request()[which].encode().unwrap();
        let index = at.index(datagram.len());
        datagram[index] = value;
        let _ = Request::decode(&datagram);
    }
}

#[test]
fn a_bind_of_a_shim_that_knows_of_no_instances_is_understood() {
    // What a shim sent before there were instances: one value less in the array.
    let asked =
        Request::Bind { addr: endpoint("0.0.0.0:80"), service: Some("web".into()), pid: 7, v6_only: false, reuse_port: false, instance: 0 };
    let mut datagram = asked.encode().unwrap();
    let array = datagram.iter().position(|byte| *byte == 0x96).unwrap();
    datagram[array] = 0x95;
    assert_eq!(datagram.pop(), Some(0));
    assert_eq!(Request::decode(&datagram).unwrap(), asked);
}
