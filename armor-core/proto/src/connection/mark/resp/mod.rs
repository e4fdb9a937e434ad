//! RESP, the protocol of Redis (RESP2 and RESP3): when a command is complete, when its answer is, and what the connection
//! remembers of commands that were answered long ago.
//!
//! A mark lies after each command that was answered in full. Where the server remembers something for the connection:
//!
//! | command | mark |
//! |---|---|
//! | MULTI, WATCH, ASKING | none until what they open is closed again |
//! | AUTH, SELECT, CLIENT SETNAME, SETINFO, NO-EVICT, NO-TOUCH, READONLY, READWRITE | passes them; they become the prologue |
//! | QUIT, SHUTDOWN | none beyond |
//! | HELLO with arguments, SUBSCRIBE and its like, MONITOR, CLIENT REPLY and TRACKING, RESET, … | given up |
//!
//! HELLO is given up because its answer tells the connection's number, which another process does not give again.
//!
//! Invariant: no argument is kept but of a setting; the state takes less than a thousand bytes whatever the commands are.
//! Invariant: whether a command had an effect is told by its answer, never assumed.

mod command;
mod kind;
mod reply;
mod settings;

use serde::{Deserialize, Serialize};

use self::command::Commands;
use self::kind::{Command, Kind};
use self::reply::{Replies, Reply};
use self::settings::Settings;
use super::Prologue;
use super::request::End;
use super::waiting::Waiting;
use crate::connection::record::Mark;

/// Follows both streams of one connection.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Resp {
    commands: Commands,
    replies: Replies,
    waiting: Waiting<Kind>,
    settings: Settings,
    /// MULTI was answered, EXEC was not.
    transaction: bool,
    /// WATCH was answered, and nothing that ends it.
    watching: bool,
    /// The next command is another one for having come after ASKING.
    asking: bool,
    /// The client has begun a command before it had the answer to the one before.
    pipelines: bool,
    #[serde(skip)]
    mark: Option<Mark>,
}

impl Resp {
    /// The last mark that was found and not yet taken.
    pub(super) fn take_mark(&mut self) -> Option<Mark> {
        self.mark.take()
    }

    /// The settings of the connection at the last mark.
    pub(super) fn prologue(&self) -> Prologue {
        self.settings.prologue()
    }

    /// The client has waited for each answer before it spoke again, and the connection has no state.
    pub(super) fn takes_turns(&self) -> bool {
        !self.pipelines && self.waiting.is_sequential() && self.settings.is_empty() && !self.is_open()
    }

    /// The same, small enough to be saved; `None` when it cannot be.
    pub(super) fn to_save(&self) -> Option<Self> {
        let Resp { commands, replies, settings, transaction, watching, asking, pipelines, .. } = self;
        let waiting = self.waiting.in_few().ok()?;
        let (commands, replies, settings) = (commands.clone(), replies.clone(), settings.clone());
        let (transaction, watching, asking, pipelines) = (*transaction, *watching, *asking, *pipelines);
        Some(Resp { commands, replies, waiting, settings, transaction, watching, asking, pipelines, mark: None })
    }

    pub(super) fn is_sound(&self) -> bool {
        self.commands.is_sound() && self.replies.is_sound() && self.waiting.is_sound() && self.settings.is_sound()
    }

    /// Makes what is not saved.
    pub(super) fn restored(&mut self) {
        self.settings.write_prologue();
    }

    /// The server remembers something that only the commands to come will close.
    fn is_open(&self) -> bool {
        self.transaction || self.watching || self.asking
    }

    /// The client says `bytes` from the offset `at` on.
    pub(super) fn client_spoke(&mut self, at: u64, bytes: &[u8]) -> Result<(), End> {
        let mut taken = 0;
        while taken < bytes.len() {
            if self.commands.is_idle() {
                self.pipelines |= !self.waiting.is_empty();
            }
            let (length, command) = self.commands.take(&bytes[taken..], self.settings.room())?;
            taken += length;
            if let Some(command) = command {
                self.asked(command, at + taken as u64)?;
            }
        }
        Ok(())
    }

    fn asked(&mut self, command: Command, end: u64) -> Result<(), End> {
        let mut kind = command.kind;
        if let Some(slot) = command.slot
            && !self.commands.take_text().is_some_and(|text| self.settings.ask(slot, text))
        {
            // A login that is too long to be kept.
            kind = Kind::Stateful;
        }
        self.waiting.push(kind, end).map_err(|_| End::Held)?;
        self.look_at_front()
    }

    /// Whether the connection goes where no mark can follow. It does so only when all before was answered.
    fn look_at_front(&self) -> Result<(), End> {
        if self.waiting.front() == Some(Kind::Stateful) { Err(End::GivenUp) } else { Ok(()) }
    }

    /// The server says `bytes` from the offset `at` on.
    pub(super) fn server_answered(&mut self, at: u64, bytes: &[u8]) -> Result<(), End> {
        let mut taken = 0;
        while taken < bytes.len() {
            let (length, reply) = self.replies.take(&bytes[taken..])?;
            taken += length;
            match reply {
                Some(Reply::Push) => {}
                Some(reply) => self.answered(reply, at + taken as u64)?,
                // A server that speaks unasked is not understood.
                None if self.waiting.is_empty() && !self.replies.may_be_unasked() => return Err(End::Lost),
                None => {}
            }
        }
        Ok(())
    }

    fn answered(&mut self, reply: Reply, s2c: u64) -> Result<(), End> {
        let kind = self.waiting.front().ok_or(End::Lost)?;
        let end = self.waiting.answered();
        let asking = std::mem::take(&mut self.asking);
        match (kind, reply) {
            // Inside of a transaction a command is queued or refused. This one was carried out.
            (Kind::Plain, Reply::Ok | Reply::Other) => self.transaction = false,
            (Kind::Multi, Reply::Ok) => self.transaction = true,
            (Kind::Watch, Reply::Ok) => self.watching = true,
            (Kind::Exec, Reply::Ok | Reply::Other | Reply::Aborted) | (Kind::Discard | Kind::Unwatch, Reply::Ok) => {
                self.transaction = false;
                self.watching = false;
            }
            (Kind::Asking, Reply::Ok) => self.asking = true,
            // Nobody knows which of them was which: what can be open counts as open.
            (Kind::Mixed, _) if end.is_some() => {
                self.transaction = true;
                self.watching = true;
                self.asking = true;
            }
            (Kind::Setting, Reply::Ok) if self.is_open() || asking => return Err(End::Held),
            (Kind::Setting, Reply::Ok) => self.settings.made(),
            (Kind::Setting, Reply::Error | Reply::Aborted) => self.settings.refused(),
            (Kind::Hello, Reply::Error) => {}
            (Kind::Last, _) => return Err(End::Held),
            // A setting that a transaction will make, perhaps; or one that is known to be beyond reach.
            (Kind::Setting | Kind::Hello | Kind::Stateful, _) => return Err(End::GivenUp),
            _ => {}
        }
        if let Some(c2s) = end.filter(|_| !self.is_open()) {
            self.mark = Some(Mark { c2s, s2c });
        }
        self.look_at_front()
    }
}
