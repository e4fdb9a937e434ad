//! `armor campaign-client`: an ordinary blocking client with several connections. It knows nothing of ARMOR.
//!
//! It compares every byte that it is told, and notes when bytes arrive. On stdin it is told `mark ID AT`: a fault was injected at that time (nanoseconds of
//! CLOCK_MONOTONIC). Each connection then says on stdout when something has come back that was said after the mark, and how long the longest
//! pause since the fault was. `end`, or the end of stdin, lets it finish every connection in order.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::pattern::{Direction, Draw, Pattern};
use super::talk::{FILE_BYTES, Head, Question, Talk, file};

/// Arrivals that are remembered per connection, to find the pause around a fault.
const REMEMBERED: usize = 4096;
/// Bytes of one write of a flow, and of an answer that is asked for.
const CHUNK: (u64, u64) = (16, 256);
const ANSWER: (u64, u64) = (16, 2048);

/// The clients of a campaign
#[derive(clap::Args)]
pub(crate) struct Clients {
    #[arg(long)]
    connect: SocketAddr,
    #[arg(long, value_enum)]
    talk: Talk,
    #[arg(long)]
    seed: u64,
    /// Number of the first connection
    #[arg(long)]
    first: u32,
    /// How many connections
    #[arg(long)]
    connections: u32,
    /// Pause between two writes or requests
    #[arg(long, value_name = "MS")]
    pause_ms: u64,
}

/// A line on stdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// All connections have heard something.
    Begun {},
    /// A connection flows again after a mark.
    Flows {
        mark: u64,
        connection: u32,
        /// Longest pause that had a part in the time since the fault, in ms.
        stall_ms: f64,
        /// From the fault to the end of that pause, in ms.
        resumed_ms: f64,
    },
    /// A connection is not what it should be; it is over.
    Broken { connection: u32, how: Broken, what: String },
    /// A connection has ended in order, all its bytes compared.
    Ended { connection: u32, received: u64 },
}

/// How a connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Broken {
    Lost,
    Repeated,
    Altered,
    Reset,
    /// The server has closed although its client had not.
    Closed,
    Refused,
}

struct Fault {
    how: Broken,
    what: String,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        let how = match error.kind() {
            io::ErrorKind::InvalidData => Broken::Altered,
            io::ErrorKind::UnexpectedEof => Broken::Closed,
            _ => Broken::Reset,
        };
        Fault { how, what: error.to_string() }
    }
}

impl From<super::pattern::Wrong> for Fault {
    fn from(wrong: super::pattern::Wrong) -> Fault {
        let how = match wrong.how {
            super::pattern::How::Lost { .. } => Broken::Lost,
            super::pattern::How::Repeated { .. } => Broken::Repeated,
            super::pattern::How::Altered => Broken::Altered,
        };
        Fault { how, what: wrong.to_string() }
    }
}

/// What reader, writer and marks of a connection share.
#[derive(Default)]
struct Notes {
    /// Bytes or requests.
    said: u64,
    heard: u64,
    /// Times of arrivals, in ns.
    arrivals: VecDeque<u64>,
    mark: Option<Mark>,
}

struct Mark {
    id: u64,
    at_ns: u64,
    /// What has to be heard more than.
    said: u64,
}

struct Shared {
    notes: Vec<Mutex<Notes>>,
    first: u32,
    /// Connections that have heard nothing yet.
    silent: AtomicU32,
    ending: AtomicBool,
}

impl Shared {
    fn notes(&self, connection: u32) -> MutexGuard<'_, Notes> {
        self.notes[(connection - self.first) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn says(&self, connection: u32, amount: u64) {
        self.notes(connection).said += amount;
    }

    fn hears(&self, connection: u32, amount: u64) {
        let now = now_ns();
        let mut notes = self.notes(connection);
        let first = notes.arrivals.is_empty();
        if notes.arrivals.len() >= REMEMBERED {
            notes.arrivals.pop_front();
        }
        notes.arrivals.push_back(now);
        notes.heard += amount;
        if notes.mark.as_ref().is_some_and(|mark| notes.heard > mark.said)
            && let Some(mark) = notes.mark.take()
        {
            let (stall_ns, until_ns) = longest_pause(&notes.arrivals, mark.at_ns);
            let resumed_ms = until_ns.saturating_sub(mark.at_ns) as f64 / 1e6;
            say(&Word::Flows { mark: mark.id, connection, stall_ms: stall_ns as f64 / 1e6, resumed_ms });
        }
        drop(notes);
        if first && self.silent.fetch_sub(1, Ordering::Relaxed) == 1 {
            say(&Word::Begun {});
        }
    }

    fn ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

/// The longest pause between arrivals that has a part after a time, and its end.
fn longest_pause(arrivals: &VecDeque<u64>, since: u64) -> (u64, u64) {
    let pairs = arrivals.iter().zip(arrivals.iter().skip(1));
    let pauses = pairs.filter(|&(_, &to)| to >= since).map(|(&from, &to)| (to - from, to));
    pauses.max_by_key(|&(pause, _)| pause).unwrap_or((0, since))
}

/// CLOCK_MONOTONIC, which all processes of a machine share.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn say(word: &Word) {
    if let Ok(line) = serde_json::to_string(word) {
        let mut stdout = io::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}

impl Clients {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let shared = Arc::new(Shared {
            notes: (0..self.connections).map(|_| Mutex::default()).collect(),
            first: self.first,
            silent: AtomicU32::new(self.connections),
            ending: AtomicBool::new(false),
        });
        let clients = Arc::new(self);
        let threads = (0..clients.connections).map(|number| {
            let (clients, shared) = (Arc::clone(&clients), Arc::clone(&shared));
            let connection = clients.first + number;
            std::thread::Builder::new().spawn(move || clients.talk(connection, &shared))
        });
        let threads = threads.collect::<io::Result<Vec<_>>>()?;
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["mark", id, at] => {
                    let (id, at_ns) = (id.parse()?, at.parse()?);
                    for number in 0..clients.connections {
                        let mut notes = shared.notes(clients.first + number);
                        notes.mark = Some(Mark { id, at_ns, said: notes.said });
                    }
                }
                _ => break,
            }
        }
        shared.ending.store(true, Ordering::Relaxed);
        let broken = threads.into_iter().map(|thread| thread.join().unwrap_or(false)).filter(|fine| !fine).count();
        Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// One connection to its end.
    fn talk(&self, connection: u32, shared: &Arc<Shared>) -> bool {
        let talked = match self.talk {
            Talk::Flow => self.flow(connection, shared),
            Talk::Http | Talk::Turn => self.ask(connection, shared),
            Talk::Files => self.fetch(connection, shared),
        };
        match talked {
            Ok(received) => {
                say(&Word::Ended { connection, received });
                true
            }
            Err(Fault { how, what }) => {
                say(&Word::Broken { connection, how, what });
                false
            }
        }
    }

    fn connect(&self) -> Result<TcpStream, Fault> {
        let stream = TcpStream::connect(self.connect).map_err(|error| Fault { how: Broken::Refused, what: format!("connect: {error}") })?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn pause(&self) {
        std::thread::sleep(Duration::from_millis(self.pause_ms));
    }

    fn flow(&self, connection: u32, shared: &Arc<Shared>) -> Result<u64, Fault> {
        let mut stream = self.connect()?;
        stream.write_all(&connection.to_be_bytes())?;
        let writer = {
            let (shared, mut stream) = (Arc::clone(shared), stream.try_clone()?);
            let pattern = Pattern::new(self.seed, connection, Direction::ToServer);
            let mut draw = Draw::of(self.seed, "chunks", connection.into());
            let pause = Duration::from_millis(self.pause_ms);
            std::thread::Builder::new().spawn(move || {
                let mut offset = 0;
                while !shared.ending() {
                    let mut chunk = vec![0; draw.between(CHUNK.0, CHUNK.1) as usize];
                    pattern.fill(offset, &mut chunk);
                    // Before the write: a part of it may come back before the write has returned.
                    shared.says(connection, chunk.len() as u64);
                    stream.write_all(&chunk)?;
                    offset += chunk.len() as u64;
                    std::thread::sleep(pause);
                }
                stream.shutdown(Shutdown::Write)?;
                io::Result::Ok(offset)
            })?
        };
        let pattern = Pattern::new(self.seed, connection, Direction::ToClient);
        let (mut offset, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            let got = match stream.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            pattern.check(offset, &buffer[..got])?;
            offset += got as u64;
            shared.hears(connection, got as u64);
        }
        if !shared.ending() {
            return Err(Fault { how: Broken::Closed, what: format!("end of stream at offset {offset}") });
        }
        let said = writer.join().map_err(|_| Fault { how: Broken::Altered, what: "the writer has panicked".to_owned() })??;
        match said.checked_sub(offset) {
            Some(0) => Ok(offset),
            Some(missing) => {
                Err(Fault { how: Broken::Lost, what: format!("{missing} bytes lost at the end of the stream, offset {offset}") })
            }
            None => Err(Fault { how: Broken::Repeated, what: format!("{} bytes more than were asked for", offset - said) }),
        }
    }

    fn ask(&self, connection: u32, shared: &Shared) -> Result<u64, Fault> {
        let mut stream = self.connect()?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let mut draw = Draw::of(self.seed, "questions", connection.into());
        let mut received = 0;
        for number in 0.. {
            if shared.ending() {
                break;
            }
            let question = Question { connection, number, length: draw.between(ANSWER.0, ANSWER.1) as usize };
            shared.says(connection, 1);
            stream.write_all(question.say(self.talk).as_bytes())?;
            let head = Head::hear(self.talk, &mut answers)?;
            let head = head.ok_or_else(|| Fault { how: Broken::Closed, what: format!("closed in place of answer {number}") })?;
            answered(head, &question)?;
            let mut body = vec![0; head.length];
            answers.read_exact(&mut body)?;
            question.pattern(self.seed).check(0, &body).map_err(|wrong| {
                let Fault { how, what } = wrong.into();
                Fault { how, what: format!("answer {number}: {what}") }
            })?;
            received += body.len() as u64;
            shared.hears(connection, 1);
            self.pause();
        }
        stream.shutdown(Shutdown::Write)?;
        match answers.read(&mut [0; 64])? {
            0 => Ok(received),
            more => Err(Fault { how: Broken::Repeated, what: format!("{more} bytes more than were asked for") }),
        }
    }

    fn fetch(&self, connection: u32, shared: &Shared) -> Result<u64, Fault> {
        let mut received = 0;
        for number in 0.. {
            if shared.ending() {
                break;
            }
            shared.says(connection, 1);
            let mut stream = self.connect()?;
            stream.write_all(Question { connection, number, length: FILE_BYTES }.say(Talk::Files).as_bytes())?;
            let mut answer = BufReader::new(stream);
            let head = Head::hear(Talk::Files, &mut answer)?;
            let head = head.ok_or_else(|| Fault { how: Broken::Closed, what: format!("closed in place of answer {number}") })?;
            let mut body = vec![0; head.length];
            answer.read_exact(&mut body)?;
            file(self.seed).check(0, &body)?;
            match FILE_BYTES.checked_sub(body.len()) {
                Some(0) => {}
                Some(missing) => {
                    return Err(Fault { how: Broken::Lost, what: format!("{missing} bytes lost at the end of file {number}") });
                }
                None => return Err(Fault { how: Broken::Repeated, what: format!("file {number} has {} bytes", body.len()) }),
            }
            received += body.len() as u64;
            shared.hears(connection, 1);
            self.pause();
        }
        Ok(received)
    }
}

fn answered(head: Head, question: &Question) -> Result<(), Fault> {
    let what = || format!("answer {:?} to question {}", head.number, question.number);
    match head.number.map(|number| number.cmp(&question.number)) {
        Some(std::cmp::Ordering::Less) => Err(Fault { how: Broken::Repeated, what: what() }),
        Some(std::cmp::Ordering::Greater) => Err(Fault { how: Broken::Lost, what: what() }),
        Some(std::cmp::Ordering::Equal) if head.length == question.length => Ok(()),
        _ => Err(Fault { how: Broken::Altered, what: what() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_one_that_has_a_part_after_the_fault() {
        let arrivals = VecDeque::from([0, 500, 510, 520, 600, 605]);
        assert_eq!(longest_pause(&arrivals, 505), (80, 600));
        assert_eq!(longest_pause(&arrivals, 499), (500, 500));
        assert_eq!(longest_pause(&arrivals, 700), (0, 700));
        assert_eq!(longest_pause(&VecDeque::new(), 1), (0, 1));
    }

    #[test]
    fn a_connection_flows_again_when_something_said_after_the_mark_has_come_back() {
        let shared = Shared { notes: vec![Mutex::default()], first: 4, silent: AtomicU32::new(1), ending: AtomicBool::new(false) };
        shared.says(4, 10);
        shared.hears(4, 4);
        shared.notes(4).mark = Some(Mark { id: 1, at_ns: 0, said: 10 });
        shared.hears(4, 6);
        assert!(shared.notes(4).mark.is_some(), "what was under way proves nothing");
        shared.says(4, 1);
        shared.hears(4, 1);
        assert!(shared.notes(4).mark.is_none());
    }
}
