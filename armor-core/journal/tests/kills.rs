//! A process that reads, or writes, through a journal is killed with SIGKILL at random moments; what the journal then says is compared
//! with what the other end of the socket knows. `ARMOR_KILLS=N` does N kills of each kind.
//!
//! It is a program of its own, without the test harness: it starts itself as its victim.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unsafe_code)]

use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use armor_journal::{Bounds, Journal, Keep, LastCall, Recovered};

const VICTIM: &str = "ARMOR_JOURNAL_VICTIM";
const JOURNAL: i32 = 100;
const SOCKET: i32 = 101;

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

fn bytes(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(byte).collect()
}

/// Small numbers that look random.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn main() {
    if let Ok(kind) = std::env::var(VICTIM) {
        victim(&kind);
        return;
    }
    let kills: u64 = std::env::var("ARMOR_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let mut seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("kills: {kills} of each kind, seed {seed}");
    let mut moved = 0;
    for kill in 0..kills {
        moved += reader(next(&mut seed), kill);
        moved += writer(next(&mut seed), if kill % 2 == 0 { "staged" } else { "counted" });
    }
    assert!(moved > kills * 1000, "the victims did next to nothing: {moved} bytes");
    println!("test result: ok. {} passed; 0 failed ({moved} bytes, each once)", 2 * kills);
}

struct Victim {
    process: std::process::Child,
    socket: UnixStream,
    journal: OwnedFd,
}

fn start(kind: &str) -> Victim {
    let journal = Journal::create(&Bounds { records: 8, small_blocks: 64, large_blocks: 32 }).unwrap();
    let journal = journal.descriptor().try_clone_to_owned().unwrap();
    let (socket, theirs) = UnixStream::pair().unwrap();
    let (memory, other) = (journal.as_raw_fd(), theirs.as_raw_fd());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(VICTIM, kind).stdin(Stdio::null());
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in [(memory, JOURNAL), (other, SOCKET)] {
                if libc::dup2(from, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Victim { process: command.spawn().unwrap(), socket, journal }
}

impl Victim {
    /// Kills it at some moment after it has begun, and reads its journal.
    fn kill_and_recover(mut self, seed: &mut u64) -> (UnixStream, Recovered) {
        let pause = Duration::from_micros(next(seed) % 3000);
        let until = Instant::now() + pause;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let (_, mut recovery) = Journal::open(self.journal).unwrap();
        assert!(recovery.damaged.is_empty());
        assert_eq!(recovery.records.len(), 1);
        let recovered = recovery.records.pop().unwrap();
        assert_eq!(recovered.about, b"about");
        (self.socket, recovered)
    }
}

/// The state of the victims: how far they are, and how far back the log must reach.
fn state(at: u64, log_from: u64) -> [u8; 16] {
    let mut state = [0; 16];
    state[..8].copy_from_slice(&at.to_le_bytes());
    state[8..].copy_from_slice(&log_from.to_le_bytes());
    state
}

fn parse(state: &[u8]) -> (u64, u64) {
    let number = |range: std::ops::Range<usize>| u64::from_le_bytes(state[range].try_into().unwrap());
    (number(0..8), number(8..16))
}

fn reader(mut seed: u64, round: u64) -> u64 {
    let victim = start("reader");
    let mut feeder = victim.socket.try_clone().unwrap();
    let most = [64, 700, 9000, 100_000][round as usize % 4];
    let mut sizes = seed;
    // Fed from a thread until the socket is of no use any more.
    let (begun, has_begun) = std::sync::mpsc::channel();
    let feeding = std::thread::spawn(move || {
        let mut at = 0u64;
        loop {
            let piece = bytes(at..at + 1 + next(&mut sizes) % most);
            match feeder.write(&piece) {
                Ok(written) => at += written as u64,
                Err(_) => return at,
            }
            let _ = begun.send(at);
        }
    });
    // More than the socket holds, in bytes or in pieces: the victim has read some.
    for _ in 0..400 {
        if has_begun.recv().unwrap() > 300_000 {
            break;
        }
    }
    let (socket, recovered) = victim.kill_and_recover(&mut seed);
    let (at, log_from) = parse(&recovered.state);
    let log: Vec<u8> = recovered.log.iter().flatten().copied().collect();
    let have_from = at - log.len() as u64;
    assert!(have_from <= log_from, "the log reaches back to {have_from}, not to {log_from}");
    assert!(log == bytes(have_from..at), "the log before {at} is not what was sent");
    let mut taken = at;
    match recovered.last {
        Some(LastCall::Received(pieces)) => {
            let new: Vec<u8> = pieces.iter().flatten().copied().collect();
            taken += new.len() as u64;
            assert!(new == bytes(at..taken), "the last call's bytes are not what was sent");
        }
        None => {}
        other => panic!("{other:?}"),
    }
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    let sent = feeding.join().unwrap();
    assert!(taken <= sent);
    taken
}

fn writer(mut seed: u64, kind: &str) -> u64 {
    let victim = start(kind);
    let mut socket = victim.socket.try_clone().unwrap();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let (mut at, mut buffer) = (0u64, vec![0; 65536]);
        loop {
            let got = socket.read(&mut buffer).unwrap();
            if got == 0 {
                return at;
            }
            assert!(buffer[..got] == bytes(at..at + got as u64), "what came after {at} is not what should");
            at += got as u64;
            let _ = begun.send(());
        }
    });
    has_begun.recv().unwrap();
    let (socket, recovered) = victim.kill_and_recover(&mut seed);
    drop(socket);
    let (at, _) = parse(&recovered.state);
    let given = match (recovered.last, kind) {
        (Some(LastCall::Sent(sent)), "staged") => {
            let until = at + sent.len() as u64;
            assert!(sent == bytes(at..until), "the last call's bytes are not what was to be sent");
            until
        }
        (Some(LastCall::Counted(count)), "counted") => at + count as u64,
        (None, _) => at,
        other => panic!("{other:?}"),
    };
    assert_eq!(given, reading.join().unwrap(), "what was given, and what has come");
    given
}

/// Reads or writes until it is killed.
fn victim(kind: &str) {
    // SAFETY: the parent has put them there.
    let (memory, socket) = unsafe { (OwnedFd::from_raw_fd(JOURNAL), OwnedFd::from_raw_fd(SOCKET)) };
    let (journal, recovery) = Journal::open(memory).unwrap();
    assert!(recovery.records.is_empty());
    let mut record = journal.begin(b"about", &state(0, 0)).unwrap();
    let mut seed = u64::from(std::process::id());
    let mut at = 0u64;
    let wait = |events| {
        let mut poll = libc::pollfd { fd: SOCKET, events, revents: 0 };
        // SAFETY: one pollfd.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
    };
    if kind == "reader" {
        let mut log = std::collections::VecDeque::new();
        let mut log_from = 0u64;
        loop {
            record.save(&state(at, log_from)).unwrap();
            match record.receive(socket.as_fd(), 1 + next(&mut seed) as usize % 200_000) {
                Ok(received) if received.first.is_empty() => std::process::exit(2),
                Ok(received) => {
                    for piece in [received.first, received.second] {
                        at += piece.len() as u64;
                        log.push_back(piece);
                    }
                    let keep = next(&mut seed) % 300_000;
                    while log.len() > 1 && at - log_from > keep {
                        log_from += log.pop_front().unwrap().len() as u64;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => wait(libc::POLLIN),
                Err(error) => panic!("{error}"),
            }
        }
    }
    let keep = if kind == "staged" { Keep::Bytes } else { Keep::Count };
    loop {
        let piece = bytes(at..at + 1 + next(&mut seed) % 90_000);
        let (first, second) = piece.split_at(piece.len() / 3);
        record.save(&state(at, 0)).unwrap();
        match record.send(socket.as_fd(), &[IoSlice::new(first), IoSlice::new(second)], keep) {
            Ok(sent) => at += sent as u64,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => wait(libc::POLLOUT),
            Err(error) => panic!("{error}"),
        }
    }
}
