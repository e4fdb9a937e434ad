//! Model applications: deterministic servers that can be killed at any byte, and the clients that go with them.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::protocols::{Dialogue, Session, Speech, Store, uncrashed};

/// What the two applications do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Model {
    /// `Q<number> <length>\n` is answered with so many bytes; one at a time.
    Requests,
    /// The same after a greeting of the server.
    Greeting,
    /// One request, a long answer, and the server closes.
    Stream,
    /// The client uploads, ends its stream, and is answered with what arrived.
    Upload,
    /// Every byte comes back changed, at once.
    Echo,
    /// The client uploads and closes without waiting; the server stores what it got at the end.
    Sink,
    /// The server says bytes from a sequence that its processes share; the client uploads (policy `reconnect`).
    Source,
    /// HTTP/1.1 and RESP with effects that last; see [`super::protocols`].
    Http,
    Resp,
}

impl Model {
    pub fn speech(self) -> Option<Speech> {
        match self {
            Model::Http => Some(Speech::Http),
            Model::Resp => Some(Speech::Resp),
            _ => None,
        }
    }
}

pub const GREETING: &[u8] = b"220 model server ready\n";

pub fn answer(number: usize, length: usize) -> impl Iterator<Item = u8> {
    (0..length).map(move |at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ (number as u8).wrapping_mul(77))
}

fn receipt(bytes: &[u8]) -> Vec<u8> {
    let sum = bytes.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("got {} bytes {sum}\n", bytes.len()).into_bytes()
}

/// What outlives processes: the disk, so to speak.
#[derive(Default)]
pub struct Disk {
    pub stored: Option<Vec<u8>>,
    pub sequence: u64,
    pub sequence_end: u64,
    /// Everything that processes were given, over all of them.
    pub heard: Vec<u8>,
    pub store: Store,
}

/// One connection of one server process.
pub struct ServerProcess {
    model: Model,
    pub heard: Vec<u8>,
    consumed: usize,
    eof: bool,
    /// Said but not yet in the socket.
    pending: VecDeque<u8>,
    pub socket: VecDeque<u8>,
    pub said: u64,
    ending: bool,
    pub closed: bool,
    /// Changes every byte that is said: 0 for a deterministic server.
    twist: u8,
    session: Session,
}

pub const SOCKET: usize = 4096;

impl ServerProcess {
    pub fn new(model: Model, number: u8, twist: u8) -> Self {
        let mut process = ServerProcess {
            model,
            heard: Vec::new(),
            consumed: 0,
            eof: false,
            pending: VecDeque::new(),
            socket: VecDeque::new(),
            said: 0,
            ending: false,
            closed: false,
            twist,
            session: Session::of(number),
        };
        if model == Model::Greeting {
            process.pending.extend(GREETING);
        }
        process
    }

    pub fn hear(&mut self, bytes: &[u8], disk: &mut Disk) {
        self.heard.extend_from_slice(bytes);
        disk.heard.extend_from_slice(bytes);
    }

    pub fn hear_eof(&mut self) {
        assert!(!self.eof, "a process was told twice that the client's stream had ended");
        self.eof = true;
    }

    pub fn heard_eof(&self) -> bool {
        self.eof
    }

    /// Lets the process run until it has nothing to do or its socket is full.
    pub fn run(&mut self, disk: &mut Disk) {
        match self.model {
            Model::Requests | Model::Greeting | Model::Stream => {
                while let Some(length) = self.heard[self.consumed..].iter().position(|b| *b == b'\n') {
                    let line = std::str::from_utf8(&self.heard[self.consumed..self.consumed + length]).expect("a request in ASCII");
                    let (number, size) = line[1..].split_once(' ').expect("two numbers");
                    assert_eq!(&line[..1], "Q", "a request is cut");
                    self.pending.extend(answer(number.parse().unwrap(), size.parse().unwrap()));
                    self.consumed += length + 1;
                    self.ending |= self.model == Model::Stream;
                }
                self.ending |= self.eof;
            }
            Model::Upload if self.eof && !self.ending => {
                self.pending.extend(receipt(&self.heard));
                self.ending = true;
            }
            Model::Echo => {
                self.pending.extend(self.heard[self.consumed..].iter().map(|byte| byte ^ 0x55));
                self.consumed = self.heard.len();
                self.ending = self.eof;
            }
            Model::Sink if self.eof => {
                disk.stored = Some(self.heard.clone());
                self.ending = true;
            }
            Model::Source => {
                while self.socket.len() < SOCKET && disk.sequence < disk.sequence_end {
                    self.socket.push_back((disk.sequence % 251) as u8);
                    disk.sequence += 1;
                    self.said += 1;
                }
                self.ending = self.eof && disk.sequence == disk.sequence_end;
            }
            Model::Http | Model::Resp => {
                let speech = self.model.speech().expect("a protocol");
                while let Some((length, answer)) = self.session.serve(speech, &self.heard[self.consumed..], &mut disk.store) {
                    self.consumed += length;
                    self.pending.extend(answer);
                }
                self.ending |= self.eof;
            }
            Model::Upload | Model::Sink => {}
        }
        while self.socket.len() < SOCKET {
            let Some(byte) = self.pending.pop_front() else { break };
            self.socket.push_back(byte ^ self.twist);
            self.said += 1;
        }
        self.closed = self.ending && self.pending.is_empty();
    }
}

/// The client's program.
pub struct Client {
    pub model: Model,
    /// Pieces to say, each once so many bytes have been heard.
    script: VecDeque<(usize, Vec<u8>)>,
    pub said: Vec<u8>,
    pub socket: VecDeque<u8>,
    pub heard: Vec<u8>,
    pub expected: Vec<u8>,
    pub eofs: usize,
    pub ended: bool,
    pub closed: bool,
    pub dialogue: Option<Dialogue>,
    /// The client says nothing for so many milliseconds.
    pub rests: Option<u64>,
    rests_next: VecDeque<u64>,
}

impl Client {
    pub fn new(model: Model, most: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut script = VecDeque::new();
        let mut expected = Vec::new();
        let mut dialogue = None;
        let mut rests_next = VecDeque::new();
        let upload = |rng: &mut StdRng| -> Vec<u8> {
            let length = rng.random_range(0..most);
            (0..length).map(|_| rng.random()).collect()
        };
        match model {
            Model::Requests | Model::Greeting | Model::Stream => {
                if model == Model::Greeting {
                    expected.extend_from_slice(GREETING);
                }
                let requests = if model == Model::Stream { 1 } else { rng.random_range(1..8) };
                for number in 0..requests {
                    let length = rng.random_range(1..most.max(2));
                    let line = format!("Q{number} {length}\n").into_bytes();
                    let cut = rng.random_range(0..line.len());
                    script.push_back((expected.len(), line[..cut].to_vec()));
                    script.push_back((expected.len(), line[cut..].to_vec()));
                    expected.extend(answer(number, length));
                }
            }
            Model::Upload => {
                let bytes = upload(&mut rng);
                expected = receipt(&bytes);
                script.push_back((0, bytes));
            }
            Model::Echo => {
                let bytes = upload(&mut rng);
                expected = bytes.iter().map(|byte| byte ^ 0x55).collect();
                script.push_back((0, bytes));
            }
            Model::Sink => script.push_back((0, upload(&mut rng))),
            Model::Source => {
                script.push_back((0, upload(&mut rng)));
                expected = (0..rng.random_range(0..most as u64)).map(|at| (at % 251) as u8).collect();
            }
            Model::Http | Model::Resp => {
                let speech = model.speech().expect("a protocol");
                let talk = Dialogue::new(speech, most, &mut rng);
                expected = uncrashed(speech, &talk.text());
                dialogue = Some(talk);
                rests_next.extend((0..20).map(|_| [0, 10, 100, 400][rng.random_range(0..4)]));
            }
        }
        Client {
            model,
            script,
            said: Vec::new(),
            socket: VecDeque::new(),
            heard: Vec::new(),
            expected,
            eofs: 0,
            ended: false,
            closed: false,
            dialogue,
            rests: None,
            rests_next,
        }
    }

    pub fn hear(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        if let Some(dialogue) = &mut self.dialogue {
            dialogue.hear(&self.heard);
        }
    }

    /// Puts the next batch into the script, after a rest.
    fn go_on_talking(&mut self) {
        let Some(dialogue) = self.dialogue.as_mut().filter(|dialogue| dialogue.waits_for_nothing() && !dialogue.is_over()) else { return };
        match self.rests {
            None => self.rests = Some(self.rests_next.pop_front().unwrap_or(0)),
            Some(0) => {
                self.rests = None;
                self.script.extend(dialogue.next_batch().map(|batch| (self.heard.len(), batch)));
            }
            Some(_) => {}
        }
        if self.rests == Some(0) {
            self.go_on_talking();
        }
    }

    /// Says what it can; afterwards `ended` and `closed` may be set.
    pub fn run(&mut self) {
        self.go_on_talking();
        while let Some((after, piece)) = self.script.front_mut() {
            if self.heard.len() < *after || self.socket.len() >= SOCKET {
                return;
            }
            let fits = piece.len().min(SOCKET - self.socket.len());
            let now: Vec<u8> = piece.drain(..fits).collect();
            self.socket.extend(&now);
            self.said.extend_from_slice(&now);
            if piece.is_empty() {
                self.script.pop_front();
            }
        }
        match self.model {
            Model::Requests | Model::Greeting => {
                self.ended |= self.heard.len() >= self.expected.len();
            }
            Model::Stream => self.ended |= self.eofs > 0,
            Model::Http | Model::Resp => self.ended |= self.dialogue.as_ref().is_some_and(Dialogue::is_over),
            Model::Sink => self.closed = true,
            Model::Upload | Model::Echo | Model::Source => self.ended = true,
        }
        self.closed |= self.eofs > 0 && self.ended;
    }
}
