//! HTTP/1.0 and HTTP/1.1 (RFC 9112): when a request is complete, when its answer is, and which answer belongs to which request.
//!
//! A mark lies after each request that was answered in full, however many more the client has sent meanwhile. None lies
//! after an answer with which the server ends the connection: the end belongs to the answer, and a new process that is told
//! nothing would not say it.
//!
//! Invariant: no body is kept; the state takes a few hundred bytes whatever the messages are.
//! Invariant: what two readers of RFC 9112 could read differently is not understood.

mod body;
mod fields;
mod message;
mod start;

use serde::{Deserialize, Serialize};

use self::body::Body;
use self::fields::{Coding, Fields};
use self::message::{Message, Part};
use self::start::{Method, RequestLine, StatusLine, Version};
use super::request::End;
use super::waiting::{self, Waiting};
use crate::connection::record::Mark;

/// What has to be known of a request to find the end of its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Asked {
    /// The method is HEAD: whatever the answer's head says, there is no body.
    head_only: bool,
    /// As far as the client is concerned the connection goes on after the answer.
    goes_on: bool,
}

impl waiting::Kind for Asked {
    /// Answers to requests of different kinds end differently.
    fn share(self, next: Self) -> Option<Self> {
        (self == next).then_some(self)
    }
}

/// A request whose head is complete and whose body is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Open {
    asked: Asked,
    /// The client waits for `100 Continue` and may yet decide to send no body.
    hesitates: bool,
    /// It was answered in full already.
    answered: bool,
}

/// Follows both streams of one connection.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Http {
    requests: Message<RequestLine>,
    answers: Message<StatusLine>,
    open: Option<Open>,
    /// Complete requests.
    waiting: Waiting<Asked>,
    /// The client has begun a request before it had the answer to the one before.
    pipelines: bool,
    /// The client's stream cannot be followed any further; answers to what came before can.
    client_left: bool,
    #[serde(skip)]
    mark: Option<Mark>,
}

impl Http {
    /// The last mark that was found and not yet taken.
    pub(super) fn take_mark(&mut self) -> Option<Mark> {
        self.mark.take()
    }

    /// The client has waited for each answer before it spoke again.
    pub(super) fn takes_turns(&self) -> bool {
        !self.pipelines && !self.client_left && self.waiting.is_sequential()
    }

    /// The same, small enough to be saved; `None` when it cannot be.
    pub(super) fn to_save(&self) -> Option<Self> {
        let Http { requests, answers, open, pipelines, client_left, .. } = self;
        let waiting = self.waiting.in_few().ok()?;
        let (requests, answers, open) = (requests.clone(), answers.clone(), *open);
        Some(Http { requests, answers, open, waiting, pipelines: *pipelines, client_left: *client_left, mark: None })
    }

    pub(super) fn is_sound(&self) -> bool {
        self.requests.is_sound() && self.answers.is_sound() && self.waiting.is_sound()
    }

    /// The client says `bytes` from the offset `at` on.
    pub(super) fn client_spoke(&mut self, at: Mark, bytes: &[u8]) -> Result<(), End> {
        let mut taken = 0;
        while taken < bytes.len() && !self.client_left {
            if self.requests.is_idle() {
                self.pipelines |= !self.waiting.is_empty();
            }
            let (length, part) = self.requests.take(&bytes[taken..])?;
            taken += length;
            match part {
                Part::More => {
                    if let Some(open) = &mut self.open {
                        open.hesitates = false;
                    }
                }
                Part::Head(line, fields) => {
                    let body = self.request_head(&line, &fields)?;
                    if self.client_left {
                        return self.leave();
                    }
                    if self.requests.expect(body) {
                        self.request_ended(Mark { c2s: at.c2s + taken as u64, s2c: at.s2c })?;
                    }
                }
                Part::End => self.request_ended(Mark { c2s: at.c2s + taken as u64, s2c: at.s2c })?,
            }
        }
        Ok(())
    }

    fn request_head(&mut self, line: &RequestLine, fields: &Fields) -> Result<Body, End> {
        let body = match (fields.coding, fields.length) {
            (None, length) => Body::Bytes(length.unwrap_or(0)),
            (Some(Coding::Chunked), None) if line.version == Version::Http11 => Body::Size,
            _ => return Err(End::Lost),
        };
        // A tunnel, or an authentication that holds for the connection: what comes after means nothing to a new process.
        self.client_left = line.method == Method::Connect || fields.authenticates_connection;
        let asked = Asked { head_only: line.method == Method::Head, goes_on: fields.goes_on(line.version) };
        self.open = Some(Open { asked, hesitates: fields.expects && body != Body::Bytes(0), answered: false });
        Ok(body)
    }

    /// A mark can lie before this request, not after it: the end is reached when all before are answered.
    fn leave(&mut self) -> Result<(), End> {
        self.open = None;
        if self.waiting.is_empty() { Err(End::Held) } else { Ok(()) }
    }

    fn request_ended(&mut self, at: Mark) -> Result<(), End> {
        let Some(open) = self.open.take() else { return Err(End::Lost) };
        if open.answered {
            self.mark = Some(at);
            return Ok(());
        }
        self.waiting.push(open.asked, at.c2s).map_err(|_| End::Held)
    }

    /// The server says `bytes` from the offset `at` on.
    pub(super) fn server_answered(&mut self, at: Mark, bytes: &[u8]) -> Result<(), End> {
        let mut taken = 0;
        while taken < bytes.len() {
            // Before an answer begins somebody must have asked; a server that speaks unasked is not understood.
            let asked = self.waiting.front().or(self.open.filter(|open| !open.answered).map(|open| open.asked)).ok_or(End::Lost)?;
            let (length, part) = self.answers.take(&bytes[taken..])?;
            taken += length;
            let ended = match part {
                Part::More => false,
                Part::Head(line, fields) => match line.status {
                    101 => return Err(End::Held),
                    100..=199 => {
                        if let Some(open) = self.open.as_mut().filter(|_| line.status == 100) {
                            open.hesitates = false;
                        }
                        self.answers.expect(Body::Bytes(0));
                        false
                    }
                    _ => {
                        if self.waiting.is_empty() && self.open.is_some_and(|open| open.hesitates) {
                            // The client may send the body, or another request: nobody can tell which.
                            return Err(End::Lost);
                        }
                        let body = answer_body(asked, &line, &fields)?;
                        self.answers.expect(body)
                    }
                },
                Part::End => true,
            };
            if ended {
                self.answer_ended(at.s2c + taken as u64)?;
            }
        }
        Ok(())
    }

    fn answer_ended(&mut self, s2c: u64) -> Result<(), End> {
        if self.waiting.is_empty() {
            if let Some(open) = &mut self.open {
                open.answered = true;
            }
            return Ok(());
        }
        if let Some(c2s) = self.waiting.answered() {
            self.mark = Some(Mark { c2s, s2c });
        }
        if self.client_left && self.waiting.is_empty() { Err(End::Held) } else { Ok(()) }
    }
}

/// RFC 9112 §6.3.
fn answer_body(asked: Asked, line: &StatusLine, fields: &Fields) -> Result<Body, End> {
    if !asked.goes_on || !fields.goes_on(line.version) {
        return Ok(Body::ToClose);
    }
    if asked.head_only || matches!(line.status, 204 | 304) {
        return Ok(Body::Bytes(0));
    }
    match (fields.coding, fields.length) {
        (Some(_), Some(_)) => Err(End::Lost),
        (Some(_), None) if line.version == Version::Http10 => Err(End::Lost),
        (Some(Coding::Chunked), None) => Ok(Body::Size),
        (Some(Coding::Other), None) | (None, None) => Ok(Body::ToClose),
        (None, Some(length)) => Ok(Body::Bytes(length)),
    }
}
