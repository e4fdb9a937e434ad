//! What the clients and servers of a campaign say to each other.
//!
//! Flow: a client says who it is (four bytes), then bytes of its pattern; the server answers each of them with one byte of its own pattern.
//! Http and Turn: numbered requests, answered with bytes that are a function of the number. So every answer is a function of what was said
//! on the connection, as the policies for replay ask for.

use std::io::{self, BufRead, Write};

use super::pattern::{Direction, Pattern};

/// Most bytes of an answer.
pub(crate) const LONGEST_ANSWER: usize = 1 << 16;
/// Most bytes of a line of a request.
const LONGEST_LINE: u64 = 4096;
/// Most lines of the head of a message.
const MOST_LINES: usize = 64;

/// A protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Talk {
    /// Two streams of bytes, full duplex.
    Flow,
    /// Requests of HTTP/1.1 on a connection that stays.
    Http,
    /// One request of HTTP for a file on each connection, as to `python3 -m http.server`.
    Files,
    /// Questions and answers in lines.
    Turn,
}

impl Talk {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Talk::Flow => "flow",
            Talk::Http => "http",
            Talk::Files => "files",
            Talk::Turn => "turn",
        }
    }
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) connection: u32,
    pub(crate) number: u64,
    /// Bytes of the answer.
    pub(crate) length: usize,
}

impl Question {
    pub(crate) fn say(&self, talk: Talk) -> String {
        let Question { connection, number, length } = self;
        match talk {
            Talk::Turn => format!("ask {connection} {number} {length}\n"),
            Talk::Files => format!("GET /{FILE} HTTP/1.1\r\nHost: campaign\r\nConnection: close\r\n\r\n"),
            Talk::Http | Talk::Flow => format!("GET /{connection}/{number}/{length} HTTP/1.1\r\nHost: campaign\r\n\r\n"),
        }
    }

    /// Reads a question; `None` at the end.
    ///
    /// # Errors
    /// Those of the socket; what is no question.
    pub(crate) fn hear(talk: Talk, from: &mut impl BufRead) -> io::Result<Option<Question>> {
        let Some(line) = line(from)? else { return Ok(None) };
        let no_question = || invalid(format!("no question: {line:?}"));
        let words: Vec<&str> = match talk {
            Talk::Turn => line.strip_prefix("ask ").ok_or_else(no_question)?.split(' ').collect(),
            _ => line.strip_prefix("GET /").and_then(|rest| rest.strip_suffix(" HTTP/1.1")).ok_or_else(no_question)?.split('/').collect(),
        };
        let [connection, number, length] = words[..] else { return Err(no_question()) };
        let question = (connection.parse(), number.parse(), length.parse());
        let (Ok(connection), Ok(number), Ok(length)) = question else { return Err(no_question()) };
        if length > LONGEST_ANSWER {
            return Err(no_question());
        }
        if talk != Talk::Turn {
            head(from)?;
        }
        Ok(Some(Question { connection, number, length }))
    }

    pub(crate) fn pattern(&self, seed: u64) -> Pattern {
        Pattern::new(seed, self.connection, Direction::ToClient).of_answer(self.number)
    }

    /// Answers it.
    ///
    /// # Errors
    /// Those of the socket.
    pub(crate) fn answer(&self, talk: Talk, seed: u64, to: &mut impl Write) -> io::Result<()> {
        let mut said = match talk {
            Talk::Turn => format!("answer {} {}\n", self.number, self.length),
            _ => format!("HTTP/1.1 200 OK\r\nX-Number: {}\r\nContent-Length: {}\r\n\r\n", self.number, self.length),
        }
        .into_bytes();
        let head = said.len();
        said.resize(head + self.length, 0);
        self.pattern(seed).fill(0, &mut said[head..]);
        to.write_all(&said)
    }
}

/// What an answer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// The request that is answered, when the answer says so.
    pub(crate) number: Option<u64>,
    pub(crate) length: usize,
}

impl Head {
    /// Reads the head of an answer; `None` when the server has closed in place of it.
    ///
    /// # Errors
    /// Those of the socket; what is no answer.
    pub(crate) fn hear(talk: Talk, from: &mut impl BufRead) -> io::Result<Option<Head>> {
        let Some(line) = line(from)? else { return Ok(None) };
        let no_answer = || invalid(format!("no answer: {line:?}"));
        if talk == Talk::Turn {
            let words = line.strip_prefix("answer ").and_then(|words| words.split_once(' ')).ok_or_else(no_answer)?;
            let (Ok(number), Ok(length)) = (words.0.parse(), words.1.parse()) else { return Err(no_answer()) };
            return Ok(Some(Head { number: Some(number), length }));
        }
        if !line.starts_with("HTTP/1.") || !line.contains(" 200 ") {
            return Err(no_answer());
        }
        let (mut number, mut length) = (None, None);
        for (name, value) in head(from)? {
            match &*name {
                "x-number" => number = value.parse().ok(),
                "content-length" => length = value.parse().ok(),
                _ => {}
            }
        }
        let length =
            length.filter(|&length| length <= LONGEST_ANSWER).ok_or_else(|| invalid("an answer without a usable length".to_owned()))?;
        Ok(Some(Head { number, length }))
    }
}

/// The file that a server of files serves, and its bytes.
pub(crate) const FILE: &str = "campaign.bin";
pub(crate) const FILE_BYTES: usize = 16 << 10;

pub(crate) fn file(seed: u64) -> Pattern {
    Pattern::new(seed, u32::MAX, Direction::ToClient)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A line without its end; `None` at the end of the stream.
fn line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let got = io::Read::take(&mut *from, LONGEST_LINE).read_until(b'\n', &mut bytes)?;
    if got == 0 {
        return Ok(None);
    }
    if bytes.pop() != Some(b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends in the middle of a line"));
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map(Some).map_err(|error| invalid(format!("no text: {:?}", error.as_bytes())))
}

/// The fields of a head, names in small letters.
fn head(from: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    while fields.len() < MOST_LINES {
        let Some(line) = line(from)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        if line.is_empty() {
            return Ok(fields);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("no field: {line:?}")))?;
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Err(invalid(format!("more than {MOST_LINES} fields")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_question_is_heard_as_it_was_said_and_answered_with_its_bytes() {
        for talk in [Talk::Http, Talk::Turn] {
            let question = Question { connection: 3, number: 1 << 40, length: 1000 };
            let said = question.say(talk).into_bytes();
            let mut heard = &said[..];
            assert_eq!(Question::hear(talk, &mut heard).unwrap(), Some(question));
            assert_eq!(Question::hear(talk, &mut heard).unwrap(), None);
            let mut answer = Vec::new();
            question.answer(talk, 7, &mut answer).unwrap();
            let mut answer = &answer[..];
            assert_eq!(Head::hear(talk, &mut answer).unwrap(), Some(Head { number: Some(1 << 40), length: 1000 }));
            assert_eq!((answer.len(), question.pattern(7).check(0, answer)), (1000, Ok(())));
        }
    }

    #[test]
    fn what_is_no_message_is_an_error_and_never_more_than_that() {
        let wrong = [
            "",
            "ask 1 2",
            "ask 1 2 x\n",
            "ask 1 2 99999999\n",
            "GET /1/2 HTTP/1.1\r\n\r\n",
            "GET /1/2/3 HTTP/1.1\r\nHost",
            "\n",
            "\u{ff}\n",
        ];
        for text in wrong.into_iter().skip(1) {
            for talk in [Talk::Http, Talk::Turn] {
                assert!(Question::hear(talk, &mut text.as_bytes()).is_err(), "{text:?}");
                assert!(Head::hear(talk, &mut text.as_bytes()).is_err(), "{text:?}");
            }
        }
        let endless = vec![b'x'; 100_000];
        assert!(Question::hear(Talk::Turn, &mut &endless[..]).is_err());
        assert_eq!(Question::hear(Talk::Turn, &mut wrong[0].as_bytes()).unwrap(), None);
    }
}
