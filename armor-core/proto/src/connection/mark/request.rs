//! Policy `request`, the default, and its forms `http` and `resp`: a mark after each request that was answered in full.
//!
//! The client's first bytes say which protocol it speaks. Where it is none that ARMOR understands, turns are all there is to go by.
//!
//! Invariant: what is not understood is never understood again later on the same connection.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::http::Http;
use super::resp::Resp;
use super::turn::{Heard, TurnPolicy};
use super::{Conversation, MarkPolicy, PolicyStateError, Prologue, saved};
use crate::connection::record::Mark;

const NAME: &str = "request";

/// First byte of a TLS connection, and the second one.
const TLS: [u8; 2] = [0x16, 0x03];

/// A protocol that ARMOR understands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    Http,
    /// The protocol of Redis, RESP2 and RESP3.
    Resp,
}

/// Why a protocol is not followed any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The bytes are not understood. Turns may do, if the client took turns so far.
    Lost,
    /// The bytes mean something only after what came before: no mark can lie beyond this place.
    Held,
    /// The connection has come into a state that no other process can be brought into.
    GivenUp,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
enum Course {
    /// Nobody has spoken.
    #[default]
    Unknown,
    /// The first byte may be TLS's.
    PerhapsTls,
    Http(Box<Http>),
    Resp(Box<Resp>),
    Turns,
    /// What belongs to the last mark.
    Held(Prologue),
    GivenUp,
}

/// Follows HTTP/1 or RESP, whichever the client speaks, and sets a mark at the end of each answer; anything else is served as by
/// [`TurnPolicy`].
///
/// | the client's first bytes | marks |
/// |---|---|
/// | a request of HTTP/1.0 or HTTP/1.1 | after each request that was answered in full, pipelined ones too |
/// | `*` (RESP) | the same; none inside of a transaction; logins and the like become a [`Prologue`] |
/// | HTTP/2 | none: always from the beginning |
/// | TLS | none, and no replay: another process has other keys |
/// | anything else, or the server speaks first | turns |
///
/// When bytes come that it does not understand it goes over to turns for good, if the client has waited for each answer so far and
/// the connection has no state. Otherwise it sets no further mark, which is always right.
#[derive(Debug, Default)]
pub struct RequestPolicy {
    /// For a protocol that is not understood.
    turns: TurnPolicy,
    forced: Option<Protocol>,
    course: Course,
}

#[derive(Serialize, Deserialize)]
struct State {
    heard: Heard,
    course: Course,
}

impl RequestPolicy {
    /// A policy that takes the client's bytes for this protocol from the first one on.
    #[must_use]
    pub fn of(protocol: Protocol) -> Self {
        RequestPolicy { forced: Some(protocol), ..RequestPolicy::default() }
    }

    /// What to do about a protocol that is not understood.
    #[must_use]
    pub fn or_else(self, turns: TurnPolicy) -> Self {
        RequestPolicy { turns, ..self }
    }

    fn recognise(&self, first: u8) -> Course {
        match (self.forced, first) {
            (Some(Protocol::Http), _) | (None, b'A'..=b'Z') => Course::Http(Box::default()),
            (Some(Protocol::Resp), _) | (None, b'*') => Course::Resp(Box::default()),
            (None, first) if first == TLS[0] => Course::PerhapsTls,
            (None, _) => Course::Turns,
        }
    }

    /// The course in a form that can be saved. One that waits for too much goes on without further marks.
    fn to_save(&self) -> Course {
        let saved = match &self.course {
            Course::Http(http) => http.to_save().map(|http| Course::Http(Box::new(http))),
            Course::Resp(resp) => resp.to_save().map(|resp| Course::Resp(Box::new(resp))),
            other => Some(other.clone()),
        };
        saved.unwrap_or_else(|| Course::Held(self.prologue()))
    }

    fn end(&mut self, end: End) {
        let (takes_turns, prologue) = match &self.course {
            Course::Http(http) => (http.takes_turns(), Prologue::default()),
            Course::Resp(resp) => (resp.takes_turns(), resp.prologue()),
            _ => return,
        };
        self.course = match end {
            End::Lost if takes_turns => Course::Turns,
            End::Lost | End::Held => Course::Held(prologue),
            End::GivenUp => Course::GivenUp,
        };
    }
}

impl MarkPolicy for RequestPolicy {
    fn client_spoke(&mut self, at: &Conversation, mut bytes: &[u8]) -> Option<Mark> {
        let turn = self.turns.client_spoke(at, bytes);
        if let (Course::Unknown, Some((first, rest))) = (&self.course, bytes.split_first()) {
            self.course = self.recognise(*first);
            if self.course == Course::PerhapsTls {
                bytes = rest;
            }
        }
        if let (Course::PerhapsTls, Some(next)) = (&self.course, bytes.first()) {
            self.course = if *next == TLS[1] { Course::GivenUp } else { Course::Turns };
        }
        let (result, mark) = match &mut self.course {
            Course::Http(http) => (http.client_spoke(at.present(), bytes), http.take_mark()),
            Course::Resp(resp) => (resp.client_spoke(at.c2s_end, bytes), None),
            Course::Turns => return turn,
            _ => return None,
        };
        if let Err(end) = result {
            self.end(end);
        }
        mark.filter(|_| !self.gave_up())
    }

    fn server_answered(&mut self, at: &Conversation, bytes: &[u8]) -> Option<Mark> {
        self.turns.server_answered(at, bytes);
        let (result, mark) = match &mut self.course {
            Course::Http(http) => (http.server_answered(at.present(), bytes), http.take_mark()),
            Course::Resp(resp) => (resp.server_answered(at.s2c_received, bytes), resp.take_mark()),
            Course::Unknown | Course::PerhapsTls => {
                self.course = Course::Turns;
                return None;
            }
            _ => return None,
        };
        if let Err(end) = result {
            self.end(end);
        }
        mark.filter(|_| !self.gave_up())
    }

    fn settles_after(&self, at: &Conversation) -> Option<Duration> {
        if self.course == Course::Turns { self.turns.settles_after(at) } else { None }
    }

    fn went_on_without_replay(&mut self) {
        self.end(End::Lost);
    }

    fn prologue(&self) -> Prologue {
        match &self.course {
            Course::Resp(resp) => resp.prologue(),
            Course::Held(prologue) => prologue.clone(),
            _ => Prologue::default(),
        }
    }

    fn gave_up(&self) -> bool {
        self.course == Course::GivenUp
    }

    fn save(&self, out: &mut Vec<u8>) {
        saved::seal(NAME, &State { heard: self.turns.heard(), course: self.to_save() }, out);
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PolicyStateError> {
        let state: State = saved::open(NAME, state, |state: &State| match &state.course {
            Course::Http(http) => http.is_sound(),
            Course::Resp(resp) => resp.is_sound(),
            _ => true,
        })?;
        self.turns.hear_again(state.heard);
        self.course = state.course;
        if let Course::Resp(resp) = &mut self.course {
            resp.restored();
        }
        Ok(())
    }
}
