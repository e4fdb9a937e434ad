//! Every byte of a whole journal is damaged, one after the other: what comes back is what was there, or is missing and said to be. Never other bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use armor_journal::{Bounds, Journal, Keep, LastCall, Record, Recovery};

const BOUNDS: Bounds = Bounds { records: 4, small_blocks: 8, large_blocks: 1 };
/// The call under way: a page behind the header's; how many bytes it has moved is `msg_len`, behind the `msghdr`.
const MOVED: std::ops::Range<usize> = 4096 + 64 + 56..4096 + 64 + 60;

/// Where received bytes begin: of these, which are all alike, some have to do.
const BLOCKS: usize = 2 * 4096 + 64 * 1024 + 4 * 4096 + 4096;

/// What the process was doing when it died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Death {
    /// All that was done is saved.
    AtRest,
    Sending,
    Receiving,
}

fn pair() -> (UnixStream, UnixStream) {
    let (own, other) = UnixStream::pair().unwrap();
    own.set_nonblocking(true).unwrap();
    (own, other)
}

/// Bytes of a stream: no two places of it look alike.
fn stream(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| (at * 31 + (at >> 8) * 7) as u8).collect()
}

/// Receives what is said in pieces, with a state before each.
fn hears(record: &mut Record, own: &UnixStream, other: &mut UnixStream, pieces: &[usize], said: &mut usize, kept: &mut Vec<bytes::Bytes>) {
    for &piece in pieces {
        other.write_all(&stream(*said, piece)).unwrap();
        let end = *said + piece;
        while *said < end {
            record.save(format!("heard {said}").as_bytes()).unwrap();
            let received = record.receive(own.as_fd(), end - *said).unwrap();
            *said += received.first.len() + received.second.len();
            kept.extend([received.first, received.second]);
        }
    }
}

/// A journal as a dead process leaves it.
fn journal(death: Death) -> Vec<u8> {
    let journal = Journal::create(&BOUNDS).unwrap();
    let (mut one, mut two) = (journal.begin(b"one", b"new").unwrap(), journal.begin(b"two", b"new").unwrap());
    let (own_one, mut other_one) = pair();
    let (own_two, mut other_two) = pair();
    let (mut said_one, mut said_two, mut kept) = (0, 0, Vec::new());
    hears(&mut one, &own_one, &mut other_one, &[10, 3000, 2000, 500], &mut said_one, &mut kept);
    hears(&mut two, &own_two, &mut other_two, &[700, 4000], &mut said_two, &mut kept);
    one.save(b"one at rest").unwrap();
    two.save(b"two at rest").unwrap();
    two.send(own_two.as_fd(), &[IoSlice::new(b"said "), IoSlice::new(b"by two")], Keep::Bytes).unwrap();
    other_two.read_exact(&mut [0; 11]).unwrap();
    if death != Death::Sending {
        two.save(b"two has said it").unwrap();
    }
    if death == Death::Receiving {
        other_one.write_all(&stream(said_one, 20)).unwrap();
        kept.push(one.receive(own_one.as_fd(), 20).unwrap().first);
    }
    let image = File::from(journal.descriptor().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; image.metadata().unwrap().len() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    std::mem::forget((one, two, kept, journal));
    bytes
}

/// What is known of a record.
#[derive(PartialEq, Eq, Debug, Clone)]
struct Known {
    state: Vec<u8>,
    log: Vec<u8>,
    last: Option<(&'static str, Vec<u8>)>,
}

fn known(recovery: &Recovery) -> BTreeMap<Vec<u8>, Known> {
    let records = recovery.records.iter().map(|record| {
        let last = record.last.as_ref().map(|last| match last {
            LastCall::Received(pieces) => ("received", pieces.concat()),
            LastCall::Sent(bytes) => ("sent", bytes.to_vec()),
            LastCall::Counted(count) => ("counted", count.to_string().into_bytes()),
        });
        (record.about.clone(), Known { state: record.state.clone(), log: record.log.concat(), last })
    });
    records.collect()
}

#[test]
fn a_damaged_byte_gives_what_was_there_or_is_told_and_never_other_bytes() {
    for death in [Death::AtRest, Death::Sending, Death::Receiving] {
        let good = journal(death);
        let memory = rustix::fs::memfd_create("flips", rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        let file = File::from(memory);
        file.write_all_at(&good, 0).unwrap();
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::SHRINK).unwrap();
        let opened = || Journal::open(file.try_clone().unwrap().into());
        let (whole, recovery) = opened().unwrap();
        let expected = known(&recovery);
        assert_eq!((expected.len(), expected[&b"one"[..]].log.len()), (2, 5510), "{death:?}");
        assert_eq!(expected[&b"one"[..]].last.is_some(), death == Death::Receiving);
        assert_eq!(expected[&b"two"[..]].last.is_some(), death == Death::Sending);
        drop((recovery, whole));

        let (mut harmless, mut shorter, mut damaged, mut refused) = (0, 0, 0, 0);
        let mut trusted = 0;
        for place in
            (0..good.len()).filter(|place| good[*place] != 0 || place % 4096 < 128).filter(|place| *place < BLOCKS || place % 7 == 0)
        {
            // Each bit has its turn.
            let bad = good[place] ^ 1 << (place % 8);
            file.write_all_at(&good, 0).unwrap();
            file.write_all_at(&[bad], place as u64).unwrap();
            let Ok((_journal, recovery)) = opened() else {
                refused += 1;
                continue;
            };
            let found = known(&recovery);
            assert_eq!(found.len() + recovery.damaged.len(), 2, "{death:?}, byte {place}: a record is missing, and nobody says so");
            damaged += recovery.damaged.len();
            for (about, found) in &found {
                let Some(expected) = expected.get(about) else { panic!("{death:?}, byte {place}: another record") };
                if (&found.state, &found.last) != (&expected.state, &expected.last) && death != Death::AtRest {
                    // The kernel's word: how many bytes the call under way has moved, and which it has received. Nobody could vouch for them.
                    let new = expected.last.as_ref().filter(|(kind, _)| *kind == "received").map_or(0, |(_, new)| new.len());
                    let moved = MOVED.contains(&place);
                    assert!(
                        moved || new > 0 && found.last.as_ref().is_some_and(|(_, last)| last.len() == new),
                        "{death:?}, byte {place}: {found:?}"
                    );
                    trusted += 1;
                    continue;
                }
                assert_eq!((&found.state, &found.last), (&expected.state, &expected.last), "{death:?}, byte {place}");
                assert!(expected.log.ends_with(&found.log), "{death:?}, byte {place}: other bytes");
                match found.log.len() == expected.log.len() {
                    true => harmless += 1,
                    // Whoever needs the rest is refused by what is restored from it.
                    false => shorter += 1,
                }
            }
        }
        println!("{death:?}: {harmless} harmless, {shorter} logs shorter, {damaged} damaged, {refused} refused, {trusted} trusted");
        assert!(shorter > 1000 && damaged > 50 && refused > 50, "{death:?}");
        assert!(trusted <= if death == Death::AtRest { 0 } else { 30 }, "{death:?}: {trusted}");
    }
}

/// The kernel had stored the bytes of the last call, and nobody came to write their checksum: the next life does, for the one after it.
#[test]
fn bytes_of_the_call_under_way_are_vouched_for_by_the_next_life() {
    let table = 2 * 4096 + 64 * 1024 + 4 * 4096;
    let journal = Journal::create(&BOUNDS).unwrap();
    let memory = journal.descriptor().try_clone_to_owned().unwrap();
    let file = File::from(memory.try_clone().unwrap());
    let mut record = journal.begin(b"one", b"new").unwrap();
    let (own, mut other) = pair();
    let (mut said, mut kept) = (0, Vec::new());
    hears(&mut record, &own, &mut other, &[100, 200], &mut said, &mut kept);
    record.save(b"before").unwrap();
    let mut before = vec![0; 4096];
    file.read_exact_at(&mut before, table).unwrap();
    other.write_all(&stream(said, 50)).unwrap();
    kept.push(record.receive(own.as_fd(), 50).unwrap().first);
    file.write_all_at(&before, table).unwrap();
    std::mem::forget((record, kept, journal));

    for life in 0..3 {
        let (journal, mut recovery) = Journal::open(memory.try_clone().unwrap()).unwrap();
        let recovered = recovery.records.pop().expect("whole");
        let last = if let Some(LastCall::Received(new)) = &recovered.last { new.concat() } else { Vec::new() };
        assert_eq!([recovered.log.concat(), last].concat(), stream(0, 350), "life {life}");
        let mut record = recovered.record;
        record.save(format!("life {life}").as_bytes()).unwrap();
        std::mem::forget((record, recovered.log, recovered.last, journal));
    }
}
