//! The client's stream: commands as arrays of bulk strings, or as lines of words.

use serde::{Deserialize, Serialize};

use super::kind::{self, Command};
use super::reply::number;
use crate::connection::mark::line::Line;
use crate::connection::mark::request::End;

/// Longest word of a command that means something here.
const WORD: usize = 16;
/// Words that mean something.
const WORDS: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
enum Place {
    #[default]
    Start,
    /// A line `*<arguments>`.
    Count,
    /// A line `$<length>`.
    Length,
    /// So many bytes of an argument.
    Argument(u64),
    /// The line end after an argument.
    Return,
    Feed,
    /// A command in one line.
    Inline,
}

/// Where the stream is.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Commands {
    place: Place,
    line: Line,
    /// Arguments that are still to come, the present one among them.
    arguments: u64,
    /// Words begun so far, counted up to one more than [`WORDS`].
    begun: usize,
    /// The first words in capitals, each at most one byte longer than [`WORD`], with spaces between them and none inside.
    #[serde(with = "serde_bytes")]
    words: Vec<u8>,
    /// The command's bytes, as long as it may be a setting.
    #[serde(with = "serde_bytes")]
    text: Vec<u8>,
    /// The text is not kept: it is no setting, or too long.
    dropped: bool,
}

impl std::fmt::Debug for Commands {
    /// Tells no text: it may hold a password.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Commands {{ place: {:?}, arguments: {}, words: {} }}", self.place, self.arguments, self.begun)
    }
}

impl Commands {
    /// Takes bytes, of which there is at least one, up to the next thing of interest. How many were taken, and the command that is
    /// complete with them; its text is kept if it is a setting's and not longer than `room`.
    pub(super) fn take(&mut self, bytes: &[u8], room: usize) -> Result<(usize, Option<Command>), End> {
        let first = bytes.first().copied().unwrap_or_default();
        if self.place == Place::Start {
            self.begin(first);
        }
        let (length, command) = match &mut self.place {
            Place::Argument(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= length as u64;
                let over = *left == 0;
                self.hear_word(&bytes[..length]);
                if over {
                    self.word_ended();
                    self.place = Place::Return;
                }
                (length, false)
            }
            Place::Return if first == b'\r' => {
                self.place = Place::Feed;
                (1, false)
            }
            Place::Feed if first == b'\n' => {
                self.arguments = self.arguments.saturating_sub(1);
                self.place = if self.arguments == 0 { Place::Start } else { Place::Length };
                (1, self.arguments == 0)
            }
            Place::Return | Place::Feed => return Err(End::Lost),
            Place::Start | Place::Count | Place::Length | Place::Inline => {
                let (length, complete) = self.line.take(bytes);
                if self.place == Place::Length && self.line.head().first().is_some_and(|byte| *byte != b'$') {
                    return Err(End::Lost);
                }
                (length, complete && self.line_ended()?)
            }
        };
        self.keep(&bytes[..length], room);
        Ok((length, command.then(|| self.command())))
    }

    /// The text of the command that was just complete, if it was kept.
    pub(super) fn take_text(&mut self) -> Option<Vec<u8>> {
        (!self.dropped).then(|| std::mem::take(&mut self.text))
    }

    /// Between two commands.
    pub(super) fn is_idle(&self) -> bool {
        self.place == Place::Start
    }

    pub(super) fn is_sound(&self) -> bool {
        self.line.is_sound() && self.begun <= WORDS + 1 && self.words.len() <= WORDS * (WORD + 2)
    }

    fn begin(&mut self, first: u8) {
        self.place = if first == b'*' { Place::Count } else { Place::Inline };
        self.line.clear();
        self.begun = 0;
        self.words.clear();
        self.text.clear();
        self.dropped = false;
    }

    /// Whether a command is complete with the line.
    fn line_ended(&mut self) -> Result<bool, End> {
        let returned = self.line.strip_return();
        if self.place == Place::Inline {
            return self.inline_ended();
        }
        let number = number(&self.line, 1).filter(|_| returned).ok_or(End::Lost)?;
        self.line.clear();
        if self.place == Place::Count {
            // Nothing is asked with no argument, and nothing is answered.
            self.arguments = u64::try_from(number).unwrap_or(0);
            self.place = if self.arguments == 0 { Place::Start } else { Place::Length };
            return Ok(false);
        }
        let length = u64::try_from(number).map_err(|_| End::Lost)?;
        self.word_begins();
        self.place = if length == 0 { Place::Return } else { Place::Argument(length) };
        Ok(false)
    }

    fn inline_ended(&mut self) -> Result<bool, End> {
        let line = std::mem::take(&mut self.line);
        self.place = Place::Start;
        let mut words = line.head().split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let Some(name) = words.next() else {
            return if line.is_whole() { Ok(false) } else { Err(End::Lost) };
        };
        let plain = name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-:|".contains(byte));
        if !plain || (!line.is_whole() && words.clone().next().is_none()) {
            return Err(End::Lost);
        }
        for word in std::iter::once(name).chain(words) {
            self.word_begins();
            self.hear_word(word);
            self.word_ended();
        }
        Ok(true)
    }

    fn word_begins(&mut self) {
        if (1..WORDS).contains(&self.begun) {
            self.words.push(b' ');
        }
        self.begun = (self.begun + 1).min(WORDS + 1);
    }

    fn hear_word(&mut self, bytes: &[u8]) {
        if self.begun > WORDS {
            return;
        }
        let so_far = self.words.iter().rev().take_while(|byte| **byte != b' ').count();
        let heard = bytes.iter().take((WORD + 1).saturating_sub(so_far));
        self.words.extend(heard.map(|byte| if byte.is_ascii_graphic() { byte.to_ascii_uppercase() } else { b'?' }));
    }

    fn word_ended(&mut self) {
        if self.begun == 1 && !kind::may_set(&self.words) {
            self.dropped = true;
            self.text.clear();
        }
    }

    fn keep(&mut self, bytes: &[u8], room: usize) {
        if self.dropped {
            return;
        }
        if self.text.len() + bytes.len() > room {
            self.dropped = true;
            self.text.clear();
        } else {
            self.text.extend_from_slice(bytes);
        }
    }

    fn command(&self) -> Command {
        let mut words = self.words.split(|byte| *byte == b' ');
        kind::command([(); WORDS].map(|()| words.next().unwrap_or_default()))
    }
}
