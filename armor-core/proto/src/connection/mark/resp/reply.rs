//! The server's stream: replies of all types of RESP2 and RESP3.
//!
//! Invariant: no value is kept, and nested ones are counted, not stacked, but for those whose length is told at their end.

use serde::{Deserialize, Serialize};

use crate::connection::mark::line::Line;
use crate::connection::mark::request::End;

/// Aggregates of unknown length that may lie in each other.
const DEPTH: usize = 8;
/// Stands in [`Replies::frames`] for an aggregate of unknown length.
const STREAMED: u64 = 0;

/// What a reply says, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// `+OK`
    Ok,
    /// `+QUEUED`
    Queued,
    /// `-EXECABORT`: the transaction is over.
    Aborted,
    /// Any other error.
    Error,
    /// Any other value.
    Other,
    /// A value behind attributes.
    Unclear,
    /// No answer: the server speaks of its own accord.
    Push,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
enum Place {
    /// The line with which a value begins.
    #[default]
    Head,
    /// So many bytes of a bulk value.
    Bytes(u64),
    /// The line end after them.
    Return,
    Feed,
    /// A line `;<length>` inside of a string that comes in pieces.
    Piece,
}

/// Where the stream is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Replies {
    place: Place,
    line: Line,
    /// The bulk value is a piece of a string, and more pieces follow.
    in_pieces: bool,
    /// Values that are still to come, of the aggregates that the present one lies in.
    frames: Vec<u64>,
    /// What the reply says that has begun.
    reply: Option<Reply>,
}

impl Replies {
    /// Takes bytes, of which there is at least one, up to the next thing of interest. How many were taken, and the reply that is
    /// complete with them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Reply>), End> {
        let first = bytes.first().copied().unwrap_or_default();
        match &mut self.place {
            Place::Bytes(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= length as u64;
                if *left == 0 {
                    self.place = Place::Return;
                }
                Ok((length, None))
            }
            Place::Return if first == b'\r' => {
                self.place = Place::Feed;
                Ok((1, None))
            }
            Place::Feed if first == b'\n' => {
                self.place = if self.in_pieces { Place::Piece } else { Place::Head };
                Ok((1, if self.in_pieces { None } else { self.value_ended() }))
            }
            Place::Return | Place::Feed => Err(End::Lost),
            Place::Head | Place::Piece => {
                let (length, complete) = self.line.take(bytes);
                let known: &[u8] = if self.place == Place::Piece { b";" } else { b"+-:$*_#,(!=%~>|." };
                if self.line.head().first().is_some_and(|first| !known.contains(first)) {
                    return Err(End::Lost);
                }
                if !complete {
                    return Ok((length, None));
                }
                if !self.line.strip_return() {
                    return Err(End::Lost);
                }
                let mut line = std::mem::take(&mut self.line);
                let reply = if self.place == Place::Piece { self.piece(&line)? } else { self.head(&line)? };
                line.clear();
                self.line = line;
                Ok((length, reply))
            }
        }
    }

    /// What has begun is no answer, or nothing has begun.
    pub(super) fn may_be_unasked(&self) -> bool {
        match self.reply {
            Some(reply) => reply == Reply::Push,
            None => self.line.head().first().is_none_or(|first| *first == b'>'),
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        self.line.is_sound() && self.frames.len() <= DEPTH
    }

    fn head(&mut self, line: &Line) -> Result<Option<Reply>, End> {
        let head = line.head();
        let (kind, streamed) = (head.first().copied().ok_or(End::Lost)?, head.get(1..) == Some(b"?") && line.is_whole());
        let said = said(line);
        let opening = self.reply.is_none();
        self.reply.get_or_insert(said);
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Ok(self.value_ended()),
            b'.' if line.is_whole() && head.len() == 1 && !opening && self.frames.last() == Some(&STREAMED) => {
                self.frames.pop();
                Ok(self.value_ended())
            }
            b'$' if streamed => {
                self.place = Place::Piece;
                self.in_pieces = true;
                Ok(None)
            }
            b'$' | b'!' | b'=' => match number(line, 1) {
                Some(-1) if kind == b'$' => Ok(self.value_ended()),
                Some(length) => self.bulk(u64::try_from(length).map_err(|_| End::Lost)?),
                None => Err(End::Lost),
            },
            b'*' | b'~' | b'>' | b'%' if streamed => self.push_frame(STREAMED),
            b'*' | b'~' | b'>' | b'%' | b'|' => match number(line, 1) {
                Some(-1) if kind == b'*' => Ok(self.value_ended()),
                Some(count) => self.aggregate(kind, u64::try_from(count).map_err(|_| End::Lost)?),
                None => Err(End::Lost),
            },
            _ => Err(End::Lost),
        }
    }

    fn bulk(&mut self, length: u64) -> Result<Option<Reply>, End> {
        self.place = if length == 0 { Place::Return } else { Place::Bytes(length) };
        Ok(None)
    }

    fn piece(&mut self, line: &Line) -> Result<Option<Reply>, End> {
        match u64::try_from(number(line, 1).ok_or(End::Lost)?).map_err(|_| End::Lost)? {
            0 => {
                self.in_pieces = false;
                self.place = Place::Head;
                Ok(self.value_ended())
            }
            length => self.bulk(length),
        }
    }

    fn aggregate(&mut self, kind: u8, count: u64) -> Result<Option<Reply>, End> {
        let values = if matches!(kind, b'%' | b'|') { count.checked_mul(2).ok_or(End::Lost)? } else { count };
        let inside = self.frames.last_mut().filter(|left| **left != STREAMED);
        match (kind, inside) {
            // Attributes are no value: the one that they belong to is still to come.
            (b'|', Some(left)) => *left = left.checked_add(values).ok_or(End::Lost)?,
            (b'|', None) => return self.push_frame(values.checked_add(1).ok_or(End::Lost)?),
            (_, _) if values == 0 => return Ok(self.value_ended()),
            // It counts as ended with its last value.
            (_, Some(left)) => *left = (*left - 1).checked_add(values).ok_or(End::Lost)?,
            (_, None) => return self.push_frame(values),
        }
        Ok(None)
    }

    fn push_frame(&mut self, values: u64) -> Result<Option<Reply>, End> {
        if self.frames.len() == DEPTH {
            return Err(End::Lost);
        }
        self.frames.push(values);
        Ok(None)
    }

    /// A value is complete, and with it the aggregates whose last one it was; perhaps the reply.
    fn value_ended(&mut self) -> Option<Reply> {
        while let Some(left) = self.frames.last_mut() {
            if *left == STREAMED {
                return None;
            }
            *left -= 1;
            if *left > 0 {
                return None;
            }
            self.frames.pop();
        }
        self.reply.take()
    }
}

/// What a reply says that begins with this line.
fn said(line: &Line) -> Reply {
    match line.head() {
        b"+OK" => Reply::Ok,
        b"+QUEUED" => Reply::Queued,
        head if head.starts_with(b"-EXECABORT") => Reply::Aborted,
        [b'-' | b'!', ..] => Reply::Error,
        [b'|', ..] => Reply::Unclear,
        [b'>', ..] => Reply::Push,
        _ => Reply::Other,
    }
}

/// The number that a whole line is from this place on, written in the one way in which Redis writes it.
pub(super) fn number(line: &Line, from: usize) -> Option<i64> {
    let digits = line.head().get(from..).filter(|_| line.is_whole())?;
    let plain = match digits.strip_prefix(b"-").unwrap_or(digits) {
        [b'0'] => digits.len() == 1,
        [b'1'..=b'9', ..] => digits.len() <= 18,
        _ => false,
    };
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}
