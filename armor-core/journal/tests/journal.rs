//! What a journal holds comes back, what is damaged is refused, and every bound has its answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use armor_journal::{ABOUT_LIMIT, Bounds, Journal, JournalError, Keep, LastCall, Record, Recovery, STATE_LIMIT};

const SMALL: Bounds = Bounds { records: 4, small_blocks: 8, large_blocks: 2 };

fn pair() -> (UnixStream, UnixStream) {
    let (own, other) = UnixStream::pair().unwrap();
    own.set_nonblocking(true).unwrap();
    (own, other)
}

fn memory(journal: &Journal) -> OwnedFd {
    journal.descriptor().try_clone_to_owned().unwrap()
}

/// As a process that died would leave it: its journal is never dropped.
fn die(journal: Journal, records: Vec<Record>) -> Recovery {
    let memory = memory(&journal);
    records.into_iter().for_each(std::mem::forget);
    std::mem::forget(journal);
    Journal::open(memory).unwrap().1
}

fn text(pieces: &[bytes::Bytes]) -> String {
    String::from_utf8(pieces.concat()).unwrap()
}

#[test]
fn a_record_comes_back_with_its_last_state_its_log_and_its_last_call() {
    let journal = Journal::create(&SMALL).unwrap();
    let mut record = journal.begin(b"who", b"new").unwrap();
    let (own, mut other) = pair();
    other.write_all(b"hello ").unwrap();
    let first = record.receive(own.as_fd(), 100).unwrap();
    record.save(b"said hello").unwrap();
    other.write_all(b"world").unwrap();
    let second = record.receive(own.as_fd(), 100).unwrap();
    assert_eq!((&first.first[..], &second.first[..]), (&b"hello "[..], &b"world"[..]));
    let recovery = die(journal, vec![record]);
    let [recovered] = &recovery.records[..] else { panic!("{recovery:?}") };
    assert_eq!((&recovered.about[..], &recovered.state[..]), (&b"who"[..], &b"said hello"[..]));
    assert_eq!(text(&recovered.log), "hello ");
    assert!(matches!(&recovered.last, Some(LastCall::Received(new)) if text(new) == "world"), "{recovered:?}");
}

#[test]
fn a_send_is_known_by_its_bytes_or_by_their_number() {
    for keep in [Keep::Bytes, Keep::Count] {
        let journal = Journal::create(&SMALL).unwrap();
        let mut record = journal.begin(b"", b"").unwrap();
        let (own, mut other) = pair();
        let slices = [IoSlice::new(b"half "), IoSlice::new(b"and half")];
        assert_eq!(record.send(own.as_fd(), &slices, keep).unwrap(), 13);
        let mut heard = [0; 13];
        other.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"half and half");
        match (die(journal, vec![record]).records.remove(0).last, keep) {
            (Some(LastCall::Sent(bytes)), Keep::Bytes) => assert_eq!(&bytes[..], b"half and half"),
            (Some(LastCall::Counted(13)), Keep::Count) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_call_whose_effects_were_saved_is_no_news() {
    let journal = Journal::create(&SMALL).unwrap();
    let mut record = journal.begin(b"", b"").unwrap();
    let (own, _other) = pair();
    record.send(own.as_fd(), &[IoSlice::new(b"x")], Keep::Count).unwrap();
    record.save(b"after").unwrap();
    let recovered = die(journal, vec![record]).records.remove(0);
    assert!(recovered.last.is_none() && recovered.state == b"after", "{recovered:?}");
}

#[test]
fn a_recovered_record_goes_on_and_is_recovered_again() {
    let journal = Journal::create(&Bounds { small_blocks: 64, ..SMALL }).unwrap();
    let (own, mut other) = pair();
    let mut expected = String::new();
    let mut memory = memory(&journal);
    std::mem::forget(journal.begin(b"", b"0").unwrap());
    std::mem::forget(journal);
    for life in 0..20 {
        let (journal, mut recovery) = Journal::open(memory).unwrap();
        let recovered = recovery.records.remove(0);
        let new = if let Some(LastCall::Received(new)) = &recovered.last { text(new) } else { String::new() };
        assert_eq!(text(&recovered.log) + &new, expected, "life {life}");
        let mut record = recovered.record;
        record.save(b"again").unwrap();
        let piece = format!("piece {life}, ");
        other.write_all(piece.as_bytes()).unwrap();
        std::mem::forget(record.receive(own.as_fd(), 1000).unwrap());
        std::mem::forget((recovered.log, record));
        expected += &piece;
        memory = journal.descriptor().try_clone_to_owned().unwrap();
        std::mem::forget(journal);
    }
}

#[test]
fn two_calls_after_one_state_are_refused() {
    let journal = Journal::create(&SMALL).unwrap();
    let mut record = journal.begin(b"", b"").unwrap();
    let (own, _other) = pair();
    record.send(own.as_fd(), &[IoSlice::new(b"x")], Keep::Count).unwrap();
    let refused = record.send(own.as_fd(), &[IoSlice::new(b"x")], Keep::Count).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn bulk_goes_into_large_blocks_and_memory_that_nobody_looks_at_is_used_again() {
    let journal = Journal::create(&SMALL).unwrap();
    let mut record = journal.begin(b"", b"").unwrap();
    let (own, mut other) = pair();
    let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || other.write_all(&copy).unwrap());
    let mut got = Vec::new();
    let mut largest = 0;
    while got.len() < sent.len() {
        record.save(b"").unwrap();
        match record.receive(own.as_fd(), 128 * 1024) {
            Ok(received) => {
                largest = largest.max(received.first.len());
                got.extend_from_slice(&received.first);
                got.extend_from_slice(&received.second);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    writer.join().unwrap();
    assert!(got == sent);
    assert!(largest > 4096, "the largest piece has {largest} bytes");
}

#[test]
fn a_full_journal_says_so_and_goes_on_when_something_is_let_go() {
    let journal = Journal::create(&SMALL).unwrap();
    let records: Vec<Record> = (0..4).map(|_| journal.begin(b"", b"").unwrap()).collect();
    assert!(matches!(journal.begin(b"", b""), Err(JournalError::Full(4))));
    drop(records);
    let mut record = journal.begin(b"", b"").unwrap();
    let (own, mut other) = pair();
    other.set_nonblocking(true).unwrap();
    let mut kept = Vec::new();
    let full = loop {
        let _ = other.write(&[7; 60_000]);
        record.save(b"").unwrap();
        match record.receive(own.as_fd(), 1 << 20) {
            Ok(received) => kept.push(received),
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    kept.clear();
    record.save(b"").unwrap();
    assert!(!record.receive(own.as_fd(), 1 << 20).unwrap().first.is_empty(), "the bytes had stayed in the socket");
}

#[test]
fn small_pieces_go_on_in_large_blocks_when_the_small_ones_are_used_up() {
    let journal = Journal::create(&SMALL).unwrap();
    let mut record = journal.begin(b"", b"").unwrap();
    let (own, mut other) = pair();
    let (mut kept, mut received) = (Vec::new(), 0);
    loop {
        other.write_all(&[7; 100]).unwrap();
        record.save(b"").unwrap();
        match record.receive(own.as_fd(), 1 << 20) {
            Ok(piece) => {
                received += piece.first.len() + piece.second.len();
                kept.push(piece);
            }
            Err(error) => break assert_eq!(error.kind(), std::io::ErrorKind::StorageFull),
        }
    }
    let of_small = SMALL.small_blocks as usize * 4096;
    assert!(received > of_small, "{received} bytes were kept, and {of_small} have room in small blocks");
}

#[test]
fn what_is_too_long_is_refused_and_the_state_before_holds() {
    let journal = Journal::create(&SMALL).unwrap();
    let long = vec![1; ABOUT_LIMIT + 1];
    assert!(matches!(journal.begin(&long, b""), Err(JournalError::TooLong { .. })));
    let mut record = journal.begin(&long[1..], &[2; STATE_LIMIT]).unwrap();
    assert!(matches!(record.save(&[3; STATE_LIMIT + 1]), Err(JournalError::TooLong { .. })));
    let recovered = die(journal, vec![record]).records.remove(0);
    assert_eq!((recovered.about.len(), recovered.state), (ABOUT_LIMIT, vec![2; STATE_LIMIT]));
}

#[test]
fn a_record_that_was_dropped_does_not_come_back_and_its_bytes_stay_readable() {
    let journal = Journal::create(&SMALL).unwrap();
    let mut record = journal.begin(b"", b"").unwrap();
    let (own, mut other) = pair();
    other.write_all(b"stays").unwrap();
    let received = record.receive(own.as_fd(), 100).unwrap();
    drop(record);
    let another = journal.begin(b"another", b"").unwrap();
    assert_eq!(&received.first[..], b"stays");
    let recovery = die(journal, vec![another]);
    assert_eq!(recovery.records.iter().map(|record| &record.about[..]).collect::<Vec<_>>(), [b"another"]);
}

#[test]
fn damage_anywhere_is_refused_record_by_record_and_never_a_panic() {
    let fresh = || {
        let journal = Journal::create(&SMALL).unwrap();
        let records = vec![journal.begin(b"one", b"state one").unwrap(), journal.begin(b"two", b"state two").unwrap()];
        let memory = memory(&journal);
        records.into_iter().for_each(std::mem::forget);
        std::mem::forget(journal);
        std::fs::File::from(memory)
    };
    let whole = Journal::open(fresh().into()).unwrap().1;
    assert_eq!((whole.records.len(), whole.damaged.len()), (2, 0));
    let (mut damaged, mut refused) = (0, 0);
    for place in (0..96u64).chain(4096..4240).chain((4096 * 2 + 65536)..(4096 * 2 + 65536 + 4096)) {
        let file = fresh();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 0x5a], place).unwrap();
        match Journal::open(file.into()) {
            Ok((_, recovery)) => {
                damaged += recovery.damaged.len();
                for record in &recovery.records {
                    let state = &record.state[..];
                    assert!([&b"state one"[..], b"state two"].contains(&state), "byte {place}: {state:?}");
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(damaged > 40 && refused > 20, "{damaged} records damaged, {refused} journals refused");
}

#[test]
fn another_version_and_other_memory_are_refused_with_the_reason() {
    let journal = Journal::create(&SMALL).unwrap();
    let file = std::fs::File::from(memory(&journal));
    file.write_all_at(&9u32.to_le_bytes(), 8).unwrap();
    let refused = Journal::open(file.into()).unwrap_err().to_string();
    assert_eq!(refused, "the journal is of version 9, this program writes version 2: its connections cannot be taken over");
    let other = rustix_memory();
    assert!(Journal::open(other).is_err());
    assert!(matches!(Journal::create(&Bounds { records: 0, ..SMALL }), Err(JournalError::Bounds { .. })));
}

fn rustix_memory() -> OwnedFd {
    let memory = rustix::fs::memfd_create("other", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 100).unwrap();
    memory
}

#[test]
fn what_is_forgotten_leaves_no_gap_in_what_follows() {
    // Within a block, across blocks, and a whole block.
    for (log, forgotten) in [(10, 5), (4_000, 200_000), (4_096, 9_000), (300_000, 1), (300_000, 150_000)] {
        let journal = Journal::create(&Bounds { records: 1, small_blocks: 8, large_blocks: 6 }).unwrap();
        let mut record = journal.begin(b"", b"").unwrap();
        let (own, mut other) = pair();
        let mut receive = |record: &mut Record, bytes: &[u8]| {
            let mut pieces = Vec::new();
            for part in bytes.chunks(20_000) {
                other.write_all(part).unwrap();
                let mut left = part.len();
                while left > 0 {
                    record.save(b"").unwrap();
                    let received = record.receive(own.as_fd(), left).unwrap();
                    left -= received.first.len() + received.second.len();
                    pieces.extend([received.first, received.second]);
                }
            }
            pieces
        };
        let before: Vec<u8> = (0..log).map(|at| (at % 251) as u8).collect();
        let held = receive(&mut record, &before);
        let mut left: usize = forgotten;
        while left > 0 {
            let some = left.min(7_000);
            drop(receive(&mut record, &vec![b'x'; some]));
            record.forget_last(some);
            record.save(b"").unwrap();
            left -= some;
        }
        let after = receive(&mut record, b"and what follows");
        record.save(b"last").unwrap();
        other.write_all(b"?").unwrap();
        record.receive(own.as_fd(), 10).unwrap();
        assert_eq!([held.concat(), after.concat()].concat(), [&before[..], b"and what follows"].concat());
        let recovered = die(journal, vec![record]).records.remove(0);
        assert!(recovered.log.concat() == [&before[..], b"and what follows"].concat(), "{log} bytes, {forgotten} forgotten");
        assert!(matches!(&recovered.last, Some(LastCall::Received(new)) if text(new) == "?"));
    }
}

#[test]
fn a_call_that_is_to_be_forgotten_is_forgotten_after_a_death_too() {
    let journal = Journal::create(&SMALL).unwrap();
    let mut record = journal.begin(b"", b"").unwrap();
    let (own, mut other) = pair();
    other.write_all(b"log").unwrap();
    let held = record.receive(own.as_fd(), 100).unwrap();
    record.save(b"log").unwrap();
    other.write_all(b"again").unwrap();
    drop(record.receive(own.as_fd(), 100).unwrap());
    let memory = memory(&journal);
    std::mem::forget((held, record, journal));
    let (journal, mut recovery) = Journal::open(memory).unwrap();
    let mut recovered = recovery.records.remove(0);
    assert!(matches!(recovered.last.take(), Some(LastCall::Received(new)) if text(&new) == "again"));
    recovered.record.forget_last(5);
    recovered.record.save(b"log").unwrap();
    other.write_all(b" goes on").unwrap();
    let more = recovered.record.receive(own.as_fd(), 100).unwrap();
    recovered.record.save(b"on").unwrap();
    assert_eq!(&more.first[..], b" goes on");
    let held = std::mem::take(&mut recovered.log);
    let recovered = die(journal, vec![recovered.record]).records.remove(0);
    assert_eq!(text(&recovered.log), "log goes on");
    drop(held);
}
