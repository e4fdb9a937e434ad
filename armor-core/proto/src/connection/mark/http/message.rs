//! A stream of messages of one direction: first line, fields, body.

use serde::{Deserialize, Serialize};

use super::body::Body;
use super::fields::Fields;
use super::start::StartLine;
use crate::connection::mark::line::Line;
use crate::connection::mark::request::End;

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
enum Place<S> {
    #[default]
    Start,
    Fields(S, Fields),
    Body(Body),
}

/// Where a stream is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Message<S> {
    line: Line,
    place: Place<S>,
}

impl<S> Default for Message<S> {
    fn default() -> Self {
        Message { line: Line::default(), place: Place::Start }
    }
}

/// What was reached.
pub(super) enum Part<S> {
    /// Nothing yet.
    More,
    /// The end of a head; [`Message::expect`] has to be told what follows.
    Head(S, Fields),
    /// The end of a body.
    End,
}

impl<S: StartLine> Message<S> {
    /// Takes bytes up to the next thing of interest. How many were taken, and what it is.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(usize, Part<S>), End> {
        if let Place::Body(body) = &mut self.place {
            let (length, ended) = body.take(&mut self.line, bytes)?;
            if ended {
                self.place = Place::Start;
            }
            return Ok((length, if ended { Part::End } else { Part::More }));
        }
        let (length, complete) = self.line.take(bytes);
        if matches!(self.place, Place::Start) && !S::may_begin(self.line.head()) {
            return Err(End::Lost);
        }
        if !complete {
            return Ok((length, Part::More));
        }
        if !self.line.strip_return() {
            return Err(End::Lost);
        }
        let part = self.line_ended()?;
        self.line.clear();
        Ok((length, part))
    }

    fn line_ended(&mut self) -> Result<Part<S>, End> {
        match &mut self.place {
            Place::Fields(start, fields) if self.line.is_empty() => Ok(Part::Head(*start, std::mem::take(fields))),
            Place::Fields(_, fields) => fields.take(&self.line).map(|()| Part::More),
            place => {
                if let Some(start) = S::parse(&self.line)? {
                    *place = Place::Fields(start, Fields::default());
                }
                Ok(Part::More)
            }
        }
    }

    /// After a head: what follows. Whether the message has ended with that.
    pub(super) fn expect(&mut self, body: Body) -> bool {
        let ended = body == Body::Bytes(0);
        self.place = if ended { Place::Start } else { Place::Body(body) };
        ended
    }

    /// Between two messages.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.place, Place::Start) && self.line.is_empty()
    }

    pub(super) fn is_sound(&self) -> bool {
        self.line.is_sound()
    }
}
