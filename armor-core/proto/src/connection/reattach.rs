//! How a connection outlives its client's process, and what has to be kept for that.
//!
//! Invariant: a new process is given exactly what the ones before were given, and then what they were not given yet.
//! Invariant: no byte that an earlier process had said reaches the server twice.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes};

use super::config::OnDivergence;
use super::digest::{RangeHash, Regeneration};
use super::event::TranscriptLost;
use super::saved::{SavedAgain, SavedReattach};

/// Most bytes of a transcript that are read at once.
const PIECE: usize = 64 << 10;

/// How the next process of a client takes a connection up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReattachPolicy {
    /// It runs from its beginning, and what it does depends on what it reads alone: it is told again all that the server has said, and
    /// what it says is compared with what was said before, and dropped.
    Replay,
    /// It goes on at the present: it keeps its own position.
    Resume,
}

/// How a connection outlives its client's process.
#[derive(Clone, Copy, Debug)]
pub struct Reattach {
    /// What the next process is given.
    pub policy: ReattachPolicy,
    /// How long a connection waits for it.
    pub within: Duration,
    /// Most bytes of the [`Transcript`]; beyond it the connection goes on, but no other process can take it up.
    pub transcript_bound: u64,
    /// What to do when the next process says something else.
    pub on_divergence: OnDivergence,
}

/// What a client was told on a connection, from its first byte: a file, for example. It has to outlive what the ends are saved to.
pub trait Transcript {
    /// Writes `bytes` at `offset`, which is at most behind the last byte so far.
    ///
    /// # Errors
    /// When they cannot be kept; then no other process can take the connection up.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Fills `into` with the bytes from `offset` on, which were all written.
    ///
    /// # Errors
    /// When they cannot be read; the connection is then reset.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Who is at the client's side.
pub(crate) enum Process {
    /// One that is where the connection is, or none that will ever come again.
    Present,
    /// Nobody, for the time being.
    Lost,
    /// One that is being brought there.
    Again(Again),
}

/// A new process on its way to where the one before was.
pub(crate) struct Again {
    /// Byte of the transcript that it is told next, and a piece from there on.
    pub(crate) at: u64,
    pub(crate) piece: Bytes,
    /// It has to be told that the server's stream has ended.
    pub(crate) fin: bool,
    /// An earlier process had ended the client's stream.
    pub(crate) ended: bool,
    pub(crate) regeneration: Option<Regeneration>,
}

/// The reattachment of one connection.
pub(crate) struct Reattachment {
    pub(crate) settings: Reattach,
    transcript: Option<Box<dyn Transcript + Send>>,
    /// Bytes in the transcript.
    pub(crate) told: u64,
    /// Hash of all that the client has said.
    pub(crate) said: RangeHash,
    /// Another process can take the connection up.
    pub(crate) kept: bool,
    /// A process has closed it in order.
    pub(crate) closed: bool,
    pub(crate) process: Process,
}

impl Reattachment {
    pub(crate) fn new(settings: Reattach, transcript: Option<Box<dyn Transcript + Send>>) -> Self {
        let kept = settings.policy == ReattachPolicy::Resume || transcript.is_some();
        Reattachment { settings, transcript, told: 0, said: RangeHash::default(), kept, closed: false, process: Process::Present }
    }

    pub(crate) fn save(&self) -> SavedReattach {
        let again = match &self.process {
            Process::Again(Again { at, fin, ended, regeneration, .. }) => {
                Some(SavedAgain { at: *at, fin: *fin, ended: *ended, regeneration: regeneration.as_ref().map(Regeneration::save) })
            }
            Process::Present | Process::Lost => None,
        };
        let Reattachment { told, kept, closed, .. } = *self;
        SavedReattach { told, said: self.said.digest(), kept, closed, lost: matches!(self.process, Process::Lost), again }
    }

    /// As it was. The transcript may be gone.
    pub(crate) fn restore(saved: &SavedReattach, settings: Reattach, transcript: Option<Box<dyn Transcript + Send>>) -> Self {
        let there = settings.policy == ReattachPolicy::Resume || transcript.is_some();
        let process = match (&saved.again, saved.lost) {
            (_, true) => Process::Lost,
            (Some(SavedAgain { at, fin, ended, regeneration }), false) => Process::Again(Again {
                at: (*at).min(saved.told),
                piece: Bytes::new(),
                fin: *fin,
                ended: *ended,
                regeneration: regeneration.as_ref().and_then(Regeneration::restore),
            }),
            (None, false) => Process::Present,
        };
        Reattachment {
            settings,
            transcript: transcript.filter(|_| saved.kept),
            told: saved.told,
            said: RangeHash::resume(saved.said),
            kept: saved.kept && there,
            closed: saved.closed,
            process,
        }
    }

    pub(crate) fn replays(&self) -> bool {
        self.settings.policy == ReattachPolicy::Replay
    }

    /// The client has said something new.
    pub(crate) fn client_said(&mut self, bytes: &[u8]) {
        if self.replays() && self.kept {
            self.said.update(bytes);
        }
    }

    /// The client was given something that it had not been given before.
    pub(crate) fn client_told(&mut self, bytes: &[u8]) -> Result<(), TranscriptLost> {
        if !self.replays() || !self.kept || self.closed {
            return Ok(());
        }
        let end = self.told + bytes.len() as u64;
        let written = match &mut self.transcript {
            _ if end > self.settings.transcript_bound => Err(TranscriptLost::Bound(end)),
            Some(transcript) => transcript.write_at(self.told, bytes).map_err(|error| TranscriptLost::Failed(error.kind())),
            None => Err(TranscriptLost::Missing),
        };
        if written.is_err() {
            self.give_up();
            return written;
        }
        self.told = end;
        if let Process::Again(again) = &mut self.process {
            // It has been told all, and has yet to say what the one before had said.
            again.at = end;
        }
        Ok(())
    }

    /// No other process can take the connection up any more. One that is being told the transcript still needs it.
    pub(crate) fn give_up(&mut self) {
        self.kept = false;
        if !self.retells() {
            self.transcript = None;
        }
    }

    /// The new process has to be told more of the transcript.
    pub(crate) fn retells(&self) -> bool {
        matches!(&self.process, Process::Again(again) if again.at < self.told)
    }

    /// Sees to it that the next piece for the new process is there; false when it has been told all.
    pub(crate) fn piece(&mut self) -> io::Result<bool> {
        let Process::Again(again) = &mut self.process else { return Ok(false) };
        if again.piece.is_empty() && again.at < self.told {
            let length = usize::try_from(self.told - again.at).unwrap_or(PIECE).min(PIECE);
            let mut bytes = vec![0; length];
            match &mut self.transcript {
                Some(transcript) => transcript.read_at(again.at, &mut bytes)?,
                None => return Err(io::ErrorKind::NotFound.into()),
            }
            again.piece = bytes.into();
        }
        Ok(!again.piece.is_empty())
    }

    /// So much of what was told again is written.
    pub(crate) fn retold(&mut self, count: usize) {
        if let Process::Again(again) = &mut self.process {
            again.at = (again.at + count as u64).min(self.told);
            let taken = count.min(again.piece.len());
            again.piece.advance(taken);
        }
    }
}
