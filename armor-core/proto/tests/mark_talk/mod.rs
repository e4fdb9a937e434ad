//! A conversation as a mark policy sees it, without ends and network: what each side says, in pieces of any size.

#![allow(dead_code, unreachable_pub)]

use std::time::Instant;

use armor_proto::connection::{Conversation, MAX_SAVED, Mark, MarkPolicy, mark_policy};

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Client,
    Server,
}
pub use Side::{Client, Server};

/// A policy and the conversation so far. Every mark is checked: it must be one that an end would take.
pub struct Talk {
    name: &'static str,
    policy: Box<dyn MarkPolicy + Send>,
    pub mark: Mark,
    /// Ends of both streams.
    pub said: Mark,
    answered: u64,
    start: Instant,
}

impl Talk {
    pub fn new(name: &'static str) -> Talk {
        let policy = mark_policy(name).unwrap();
        Talk { name, policy, mark: Mark::default(), said: Mark::default(), answered: 0, start: Instant::now() }
    }

    pub fn client(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.say(Client, bytes.as_ref())
    }

    pub fn server(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.say(Server, bytes.as_ref())
    }

    pub fn say(&mut self, side: Side, bytes: &[u8]) -> &mut Self {
        let at = Conversation {
            mark: self.mark,
            c2s_end: self.said.c2s,
            c2s_acked: self.said.c2s,
            c2s_answered: self.answered,
            s2c_received: self.said.s2c,
            s2c_waiting: 0,
            recovering: false,
            now: self.start,
        };
        let length = bytes.len() as u64;
        let (before, mark) = (
            self.said,
            match side {
                Client => self.policy.client_spoke(&at, bytes),
                Server => self.policy.server_answered(&at, bytes),
            },
        );
        match side {
            Client => self.said.c2s += length,
            Server => {
                self.said.s2c += length;
                self.answered = self.said.c2s;
            }
        }
        if let Some(mark) = mark {
            assert!((self.mark.c2s..=self.said.c2s).contains(&mark.c2s), "{mark:?} after {:?}, {:?} is said", self.mark, self.said);
            assert!((before.s2c..=self.said.s2c).contains(&mark.s2c), "{mark:?} with s2c from {} to {}", before.s2c, self.said.s2c);
            assert!(!self.gave_up(), "a mark after giving up");
            let prologue = self.policy.prologue();
            assert!(prologue.said.len() as u64 <= mark.c2s && prologue.answered.len() as u64 <= mark.s2c);
            self.mark = mark;
        }
        self
    }

    pub fn gave_up(&self) -> bool {
        self.policy.gave_up()
    }

    pub fn prologue(&self) -> (String, String) {
        let prologue = self.policy.prologue();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(&prologue.said), text(&prologue.answered))
    }

    /// The policy's process dies, and another one takes its state.
    pub fn save_and_restore(&mut self) -> usize {
        let before = self.policy.prologue();
        let mut state = vec![7; 3];
        self.policy.save(&mut state);
        let length = state.len() - 3;
        assert!(length <= MAX_SAVED, "{length} bytes");
        self.policy = mark_policy(self.name).unwrap();
        self.policy.restore(&state[3..]).unwrap();
        assert_eq!(self.policy.prologue(), before);
        length
    }

    pub fn saved(&self) -> Vec<u8> {
        let mut state = Vec::new();
        self.policy.save(&mut state);
        state
    }

    /// Where everything said so far ends.
    pub fn is_at_present(&self) -> bool {
        self.mark == self.said
    }
}

/// A request, its answer, and whether a mark may lie after them.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub asked: Vec<u8>,
    pub answered: Vec<u8>,
    pub closed: bool,
}

/// Exchanges under way at once: the client speaks ahead by at most so many requests, the server answers in pieces.
pub fn interleave(exchanges: &[Exchange], ahead: usize, choices: &[u8]) -> Vec<(Side, Vec<u8>)> {
    let mut choices = choices.iter().copied().cycle();
    let mut choose = move |most: usize| usize::from(choices.next().unwrap_or(0)) % (most + 1);
    let mut steps: Vec<(Side, Vec<u8>)> = Vec::new();
    // Requests said in full and answers said in full, and how much of the next ones.
    let (mut asked, mut answered, mut of_request, mut of_answer) = (0, 0, 0, 0);
    while answered < exchanges.len() {
        let may_ask = asked < exchanges.len() && asked - answered < ahead;
        let may_answer = answered < asked;
        if may_ask && (!may_answer || choose(1) == 0) {
            let left = &exchanges[asked].asked[of_request..];
            let length = if choose(2) > 0 { left.len() } else { 1 + choose(left.len() - 1) };
            steps.push((Client, left[..length].to_vec()));
            of_request += length;
            if of_request == exchanges[asked].asked.len() {
                (asked, of_request) = (asked + 1, 0);
            }
        } else {
            let left = &exchanges[answered].answered[of_answer..];
            let length = if choose(2) > 0 { left.len() } else { 1 + choose(left.len() - 1) };
            steps.push((Server, left[..length].to_vec()));
            of_answer += length;
            if of_answer == exchanges[answered].answered.len() {
                (answered, of_answer) = (answered + 1, 0);
            }
        }
    }
    // Neighbours of one side become one piece, so that pieces hold ends of several messages.
    let mut joined: Vec<(Side, Vec<u8>)> = Vec::new();
    for (side, bytes) in steps {
        match joined.last_mut() {
            Some((last, all)) if *last == side => all.extend(bytes),
            _ => joined.push((side, bytes)),
        }
    }
    joined
}

/// The mark that belongs to so much of both streams: after the last exchange that is complete and closed.
pub fn expected(exchanges: &[Exchange], said: Mark) -> Mark {
    let (mut mark, mut end) = (Mark::default(), Mark::default());
    for exchange in exchanges {
        end.c2s += exchange.asked.len() as u64;
        end.s2c += exchange.answered.len() as u64;
        if exchange.closed && end.s2c <= said.s2c && end.c2s <= said.c2s {
            mark = end;
        }
    }
    mark
}

/// Pieces of `bytes`, of lengths that `choices` draw.
pub fn pieces<'a>(mut bytes: &'a [u8], choices: &mut impl Iterator<Item = u8>) -> Vec<&'a [u8]> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let length = (usize::from(choices.next().unwrap_or(0)) % 24 + 1).min(bytes.len());
        let (piece, rest) = bytes.split_at(length);
        all.push(piece);
        bytes = rest;
    }
    all
}
