//! Handshake, records and packets between two nodes, a stranger and whoever sits on the way.
#![allow(clippy::unwrap_used, clippy::panic)]

use armor_proto::secure::{
    Dialling, Established, HandshakeError, Identity, KeyPair, MAX_HANDSHAKE, MAX_RECORD, PACKET_OVERHEAD, PHASE_PACKETS, PacketError,
    PacketOpener, PacketSealer, RECORD_OVERHEAD, RecordError, RecordOpener, RecordSealer, Transport, Trusted, WINDOW, answer, dial,
};
use bytes::BytesMut;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

fn node(name: &str) -> Identity {
    Identity { name: name.to_owned(), keys: KeyPair::generate().unwrap() }
}

fn list(nodes: &[&Identity]) -> Trusted {
    let mut trusted = Trusted::default();
    nodes.iter().for_each(|node| assert!(trusted.add(&node.name, node.keys.public()).unwrap()));
    trusted
}

fn pair() -> (Established, Established) {
    let (a, b) = (node("a"), node("b"));
    let trusted = list(&[&a, &b]);
    let (mut dialling, first) = dial(&a, "b", &trusted, Transport::Tcp).unwrap();
    let (at_b, second) = answer(&b, &trusted, Transport::Tcp, &first).unwrap();
    (dialling.finish(&second).unwrap(), at_b)
}

fn records() -> (RecordSealer, RecordOpener) {
    let (a, b) = pair();
    (a.records().0, b.records().1)
}

fn packets() -> (PacketSealer, PacketOpener) {
    let (a, b) = pair();
    (a.packets().0, b.packets().1)
}

fn sealed(sealer: &mut RecordSealer, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(pieces, &mut out).unwrap();
    out
}

#[test]
fn two_nodes_of_a_list_know_each_other_and_speak_both_ways() {
    let (at_a, at_b) = pair();
    assert_eq!((&*at_a.peer, &*at_b.peer), ("b", "a"));
    let ((mut a_seals, mut a_opens), (mut b_seals, mut b_opens)) = (at_a.records(), at_b.records());
    let mut heard = BytesMut::new();
    let mut said = sealed(&mut a_seals, &[b"he", b"", b"llo"]);
    assert_eq!(b_opens.open(&mut said, &mut heard), Ok(said.len()));
    assert_eq!(&heard.split()[..], b"hello");
    let mut said = sealed(&mut b_seals, &[b"good day"]);
    assert!(!said.windows(4).any(|part| part == b"good"));
    assert_eq!(a_opens.open(&mut said, &mut heard), Ok(said.len()));
    assert_eq!(&heard[..], b"good day");
    // What one side has said is nothing that the other could have.
    let mut back = sealed(&mut a_seals, &[b"x"]);
    assert!(a_opens.open(&mut back, &mut heard).is_err());
}

#[test]
fn who_is_not_in_the_list_is_told_apart_from_who_has_another_name_and_who_has_the_own_key() {
    let (a, b, stranger) = (node("a"), node("b"), node("c"));
    let trusted = list(&[&a, &b]);
    let knows_all = list(&[&a, &b, &stranger]);
    let first = |who: &Identity| dial(who, "b", &knows_all, Transport::Tcp).unwrap().1;
    let refused = |message: &[u8]| answer(&b, &trusted, Transport::Tcp, message).unwrap_err();
    assert_eq!(refused(&first(&stranger)), HandshakeError::UnknownKey { key: stranger.keys.public() });
    let liar = Identity { name: "b".to_owned(), keys: a.keys.clone() };
    assert_eq!(refused(&first(&liar)), HandshakeError::WrongName { said: "b".to_owned(), listed: "a".to_owned() });
    let twin = Identity { name: "x".to_owned(), keys: b.keys.clone() };
    assert_eq!(dial(&twin, "b", &knows_all, Transport::Tcp).unwrap_err(), HandshakeError::OwnKey);
    assert!(matches!(dial(&a, "nobody", &trusted, Transport::Tcp).unwrap_err(), HandshakeError::NotListed { .. }));
    // Keys for TCP are none for UDP.
    assert_eq!(answer(&b, &trusted, Transport::Udp, &first(&a)).unwrap_err(), HandshakeError::Altered);
    // An old list at the one that dials: the key that it has for b was another one's.
    let mut old = list(&[&a]);
    old.add("b", stranger.keys.public()).unwrap();
    assert_eq!(refused(&dial(&a, "b", &old, Transport::Tcp).unwrap().1), HandshakeError::NotForUs);
    // And who took b's place cannot answer as b.
    let (mut dialling, message) = dial(&a, "b", &trusted, Transport::Tcp).unwrap();
    assert_eq!(answer(&stranger, &trusted, Transport::Tcp, &message).unwrap_err(), HandshakeError::NotForUs);
    let (_, foreign) = answer(&b, &trusted, Transport::Tcp, &first(&a)).unwrap();
    assert_eq!(dialling.finish(&foreign).unwrap_err(), HandshakeError::Altered);
    let (_, own) = answer(&b, &trusted, Transport::Tcp, &message).unwrap();
    assert!(dialling.finish(&own).is_ok(), "a foreign answer does not spoil the true one");
    assert!(matches!(dialling.finish(&own), Err(HandshakeError::Altered)), "which counts once");
}

#[test]
fn every_altered_bit_of_a_handshake_is_refused_and_so_is_each_that_is_cut_short() {
    let (a, b) = (node("a"), node("b"));
    let trusted = list(&[&a, &b]);
    let (_, first) = dial(&a, "b", &trusted, Transport::Tcp).unwrap();
    for bit in 0..first.len() * 8 {
        let mut other = first.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(answer(&b, &trusted, Transport::Tcp, &other).is_err(), "bit {bit} of the first message");
    }
    let (mut dialling, first) = dial(&a, "b", &trusted, Transport::Tcp).unwrap();
    let (_, second) = answer(&b, &trusted, Transport::Tcp, &first).unwrap();
    assert!(second.len() <= first.len() && first.len() <= MAX_HANDSHAKE, "nobody is flooded by answers");
    for bit in 0..second.len() * 8 {
        let mut other = second.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        // The sign bit of the ephemeral key is no part of it (RFC 7748, §5), but it is hashed.
        assert!(dialling.finish(&other).is_err(), "bit {bit} of the second message");
    }
    for length in 0..first.len() {
        assert!(answer(&b, &trusted, Transport::Tcp, &first[..length]).is_err());
        assert!(dialling.finish(&second[..length.min(second.len() - 1)]).is_err());
    }
    assert!(dialling.finish(&second).is_ok());
}

#[test]
fn a_first_message_that_is_said_again_gives_its_sender_nothing() {
    let (a, b) = (node("a"), node("b"));
    let trusted = list(&[&a, &b]);
    let (mut dialling, first) = dial(&a, "b", &trusted, Transport::Tcp).unwrap();
    let (_, second) = answer(&b, &trusted, Transport::Tcp, &first).unwrap();
    let (mut seals, _) = dialling.finish(&second).unwrap().records();
    let mut record = sealed(&mut seals, &[b"order"]);
    // Replayed, message and record: b answers with another key, and what was said under the old one says nothing.
    let (again, _) = answer(&b, &trusted, Transport::Tcp, &first).unwrap();
    assert!(matches!(again.records().1.open(&mut record, &mut BytesMut::new()), Err(RecordError::Altered { number: 0 })));
}

#[test]
fn a_removed_key_is_a_strangers() {
    let (a, b) = (node("a"), node("b"));
    let mut trusted = list(&[&a, &b]);
    let (_, first) = dial(&a, "b", &trusted, Transport::Tcp).unwrap();
    trusted.remove("a");
    assert_eq!(answer(&b, &trusted, Transport::Tcp, &first).unwrap_err(), HandshakeError::UnknownKey { key: a.keys.public() });
}

#[test]
fn a_record_that_is_altered_repeated_left_out_or_moved_ends_the_stream() {
    let three = |sealer: &mut RecordSealer| [sealed(sealer, &[b"one"]), sealed(sealer, &[b"two"]), sealed(sealer, &[b"three"])];
    for order in [[0, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]] {
        let (mut sealer, mut opener) = records();
        let records = three(&mut sealer);
        let good = order.iter().enumerate().take_while(|(at, record)| at == *record).count();
        let mut raw = order.map(|record| records[record].clone()).concat();
        let mut plain = BytesMut::new();
        assert_eq!(opener.open(&mut raw, &mut plain), Err(RecordError::Altered { number: good as u64 }));
        assert_eq!(&plain[..], [&b"one"[..], b"two", b"three"][..good].concat());
        let mut right = records[good].clone();
        assert!(opener.open(&mut right, &mut plain).is_err(), "it stays ended");
    }
    let (mut sealer, _) = records();
    let record = sealed(&mut sealer, &[b"a record"]);
    for bit in 0..record.len() * 8 {
        let (mut sealer, mut opener) = records();
        let mut other = sealed(&mut sealer, &[b"a record"]);
        other[bit / 8] ^= 1 << (bit % 8);
        let mut plain = BytesMut::new();
        // A longer length waits for bytes that do not come; with them it does not verify.
        other.extend_from_slice(&vec![0; MAX_RECORD]);
        assert!(opener.open(&mut other, &mut plain).is_err(), "bit {bit}");
        assert!(plain.is_empty());
    }
}

#[test]
fn keys_of_a_stream_are_renewed_when_asked_for() {
    let (mut sealer, mut opener) = records();
    let mut plain = BytesMut::new();
    sealer.rekey();
    assert_eq!(sealer.keys(), 1, "a key that has done nothing is good");
    let (mut said, mut raw) = (Vec::new(), Vec::new());
    for number in 0..20u8 {
        said.push(number);
        sealer.seal(&[&[number]], &mut raw).unwrap();
        sealer.rekey();
    }
    assert_eq!(opener.open(&mut raw, &mut plain), Ok(raw.len()));
    assert_eq!(&plain[..], said);
    assert_eq!(sealer.keys(), 11, "the record that follows the question is the last under its key");
    // What was said under one key opens under no other.
    let mut old = raw[..RECORD_OVERHEAD + 1].to_vec();
    assert!(opener.open(&mut old, &mut plain).is_err());
}

#[test]
fn packets_in_any_order_open_once_each_and_none_that_is_too_old() {
    for seed in 0..100 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut sealer, mut opener) = packets();
        let count = WINDOW as usize * 2;
        let mut sent: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut number = 0u64;
        for _ in 0..count {
            number += rng.random_range(1..3);
            let mut packet = number.to_be_bytes().to_vec();
            packet.extend_from_slice(&[0; PACKET_OVERHEAD]);
            sealer.seal(number, b"header", &mut packet).unwrap();
            sent.push((number, packet));
            // Further apart than packets overtake each other.
            if sent.len().is_multiple_of(500) {
                sealer.rekey();
            }
        }
        // Neighbourhoods are shuffled, some packets lost, some repeated.
        for part in sent.chunks_mut(200) {
            part.shuffle(&mut rng);
        }
        let mut delivered = std::collections::BTreeSet::new();
        let mut highest = 0;
        for (number, packet) in &sent {
            if rng.random_ratio(1, 10) {
                continue;
            }
            for _ in 0..rng.random_range(1..3) {
                let mut packet = packet.clone();
                match opener.open(*number, b"header", &mut packet) {
                    Ok(length) => {
                        assert_eq!(&packet[..length], number.to_be_bytes());
                        assert!(delivered.insert(*number), "{number} twice");
                        highest = highest.max(*number);
                    }
                    Err(PacketError::Repeated { .. }) => assert!(delivered.contains(number)),
                    Err(other) => panic!("{number}: {other}"),
                }
            }
        }
        assert!(delivered.len() * 10 > count * 8, "{}", delivered.len());
        assert!(opener.keys() > 10 && sealer.keys() - opener.keys() <= 1);
        let (old, packet) = &mut sent.iter().find(|(number, _)| highest - number >= WINDOW).unwrap().clone();
        assert!(matches!(opener.open(*old, b"header", packet), Err(PacketError::Old { .. })));
    }
}

#[test]
fn the_key_of_packets_is_renewed_at_the_bound_without_a_word_and_over_losses() {
    let (mut sealer, mut opener) = packets();
    let seal = |sealer: &mut PacketSealer, number| {
        let mut packet = vec![7; 1 + PACKET_OVERHEAD];
        sealer.seal(number, b"", &mut packet).map(|()| packet)
    };
    let first = seal(&mut sealer, 0).unwrap();
    let mut last = Vec::new();
    for number in 1..PHASE_PACKETS {
        last = seal(&mut sealer, number).unwrap();
    }
    assert_eq!(sealer.keys(), 1);
    let mut beyond = seal(&mut sealer, PHASE_PACKETS).unwrap();
    assert_eq!(sealer.keys(), 2);
    assert_eq!(opener.open(0, b"", &mut first.clone()), Ok(1));
    assert_eq!(opener.open(PHASE_PACKETS, b"", &mut beyond), Ok(1), "over a million packets that were lost");
    assert_eq!(opener.open(PHASE_PACKETS - 1, b"", &mut last), Ok(1), "of the key before, late");
    assert_eq!(opener.keys(), 2);
    // Nobody heard the peer through ten keys.
    let mut packet = Vec::new();
    for number in 1..=10 {
        sealer.rekey();
        packet = seal(&mut sealer, PHASE_PACKETS + number).unwrap();
    }
    assert_eq!(opener.open(PHASE_PACKETS + 10, b"", &mut packet), Ok(1));
    assert_eq!((opener.keys(), sealer.keys()), (12, 12));
    assert_eq!(seal(&mut sealer, PHASE_PACKETS + 10), Err(PacketError::Used { number: PHASE_PACKETS + 10 }), "a number is used once");
    assert!(seal(&mut sealer, u64::MAX).is_err());
}

#[test]
fn every_altered_bit_of_a_packet_and_of_its_header_and_another_number_is_noticed_and_does_no_harm() {
    let (mut sealer, mut opener) = packets();
    let mut packet = vec![9; 40 + PACKET_OVERHEAD];
    sealer.seal(5, b"head", &mut packet).unwrap();
    for bit in 0..packet.len() * 8 {
        let mut other = packet.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(opener.open(5, b"head", &mut other).is_err(), "bit {bit}");
    }
    assert!(opener.open(5, b"heat", &mut packet.clone()).is_err());
    assert!(opener.open(6, b"head", &mut packet.clone()).is_err());
    for length in 0..packet.len() {
        assert!(opener.open(5, b"head", &mut packet[..length].to_vec()).is_err());
    }
    assert_eq!(opener.open(5, b"head", &mut packet.clone()), Ok(40));
    assert_eq!(opener.open(5, b"head", &mut packet), Err(PacketError::Repeated { number: 5 }));
}

fn whole(pieces: &[Vec<u8>]) -> Vec<u8> {
    pieces.concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_stream_comes_out_as_it_went_in_however_it_is_cut(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 1..20),
        large in 0usize..200_000, cuts in proptest::collection::vec(1usize..5000, 1..100), renew in any::<u8>(),
    ) {
        let (mut sealer, mut opener) = records();
        let mut raw = Vec::new();
        let large = vec![0xa5; large];
        for (index, piece) in pieces.iter().enumerate() {
            sealer.seal(&[piece, &large[..if index == 0 { large.len() } else { 0 }]], &mut raw).unwrap();
            if index % 8 == usize::from(renew % 8) { sealer.rekey(); }
        }
        let expected = [&pieces[0][..], &large, &whole(&pieces[1..])].concat();
        let mut plain = BytesMut::new();
        let mut waiting = Vec::new();
        let mut rest = &raw[..];
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            waiting.extend_from_slice(now);
            rest = later;
            let used = opener.open(&mut waiting, &mut plain).unwrap();
            waiting.drain(..used);
            prop_assert!(waiting.len() < MAX_RECORD + RECORD_OVERHEAD);
        }
        prop_assert!(waiting.is_empty());
        prop_assert_eq!(&plain[..], &expected[..]);
    }

    #[test]
    fn garbage_neither_panics_nor_opens(bytes in proptest::collection::vec(any::<u8>(), 0..2000), number in any::<u64>()) {
        let (a, b) = (node("a"), node("b"));
        let trusted = list(&[&a, &b]);
        prop_assert!(answer(&b, &trusted, Transport::Tcp, &bytes).is_err());
        let (mut dialling, _): (Dialling, _) = dial(&a, "b", &trusted, Transport::Tcp).unwrap();
        prop_assert!(dialling.finish(&bytes).is_err());
        let mut plain = BytesMut::new();
        let (_, mut opener) = records();
        let _ = opener.open(&mut bytes.clone(), &mut plain);
        prop_assert!(plain.is_empty());
        let (_, mut opener) = packets();
        prop_assert!(opener.open(number, b"", &mut bytes.clone()).is_err());
    }
}
