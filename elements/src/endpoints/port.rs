//! A protected connection's end joined to the application's socket and to its record in the journal: the loop that carries bytes
//! between the two.
//!
//! Invariant: nothing is read while the end has no room (back-pressure), nothing is written while the application has none.
//! Invariant: the state of the end is saved before each call on the socket, and before anybody is told of what it has become.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use armor_journal::{Journal, JournalError, Keep, LastCall, Received, Record as JournalRecord};

use armor_proto::connection::{
    Ack, AppAction, ClientEnd, Data, Direction, Event as EndEvent, ProtocolError, Record, Reset, ResetReason, ServerEnd,
};
use armor_proto::ids::ArmorId;
use bytes::Bytes;
use serde::Serialize;

use super::application_socket::{ApplicationSocket, Ending, Read, Reading};
use super::unread_byte::Whereabouts;

/// Most reads from one application before others have a turn.
const READS_PER_TURN: usize = 8;
/// Most slices in one write.
const SLICES: usize = 32;
/// Pause before an application is read again whose bytes found no room in the journal.
const ROOM_AGAIN: Duration = Duration::from_millis(20);

thread_local! {
    /// Where states are put together.
    static STATE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the two ends of a connection have in common.
pub trait End {
    /// Which of the two streams comes from the other end.
    const INCOMING: Direction;
    /// What has to be known of bytes that were given to the application.
    const KEEP: Keep;
    /// See `ClientEnd::save`.
    fn save(&self, state: &mut Vec<u8>);
    /// What the call on the application's socket had done during which the process died.
    fn last_call(&mut self, call: LastCall, now: Instant);
    /// See `ClientEnd::drops_next_read`.
    fn drops_next_read(&self) -> bool;
    /// See `ClientEnd::resume`.
    fn resume(&mut self, now: Instant);
    /// See `ClientEnd::handle_data`.
    ///
    /// # Errors
    /// When it makes no sense; it is ignored then.
    fn handle_data(&mut self, data: &Data, payload: Bytes, now: Instant) -> Result<(), ProtocolError>;
    /// See `ClientEnd::handle_ack`.
    ///
    /// # Errors
    /// When it makes no sense; it is ignored then.
    fn handle_ack(&mut self, ack: &Ack, now: Instant) -> Result<(), ProtocolError>;
    /// See `ClientEnd::handle_reset`.
    ///
    /// # Errors
    /// When it makes no sense; it is ignored then.
    fn handle_reset(&mut self, reset: &Reset, now: Instant) -> Result<(), ProtocolError>;
    /// See `ClientEnd::app_read`.
    fn app_read(&mut self, bytes: Bytes, now: Instant);
    /// See `ClientEnd::app_eof`.
    fn app_eof(&mut self, now: Instant);
    /// See `ClientEnd::app_closed`.
    fn app_closed(&mut self, now: Instant);
    /// See `ClientEnd::app_reset`.
    fn app_reset(&mut self, now: Instant);
    /// The application is gone after it had ended its stream in order.
    fn app_gone(&mut self, now: Instant);
    /// See `ClientEnd::app_wrote`.
    fn app_wrote(&mut self, count: usize, now: Instant);
    /// See `ClientEnd::app_slices`.
    fn app_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize;
    /// See `ClientEnd::read_capacity`.
    fn read_capacity(&self) -> usize;
    /// See `ClientEnd::poll_transmit`.
    fn poll_transmit(&mut self, now: Instant) -> Option<(Record, Bytes)>;
    /// See `ClientEnd::poll_app`.
    fn poll_app(&mut self, now: Instant) -> Option<AppAction>;
    /// See `ClientEnd::poll_event`.
    fn poll_event(&mut self) -> Option<EndEvent>;
    /// See `ClientEnd::poll_timeout`.
    fn poll_timeout(&self) -> Option<Instant>;
    /// See `ClientEnd::handle_timeout`.
    fn handle_timeout(&mut self, now: Instant);
    /// See `ClientEnd::path_changed`.
    fn path_changed(&mut self);
}

macro_rules! end {
    ($end:ty, $incoming:expr, $gone:ident, $keep:expr, $drops:expr, $given:expr) => {
        impl End for $end {
            const INCOMING: Direction = $incoming;
            const KEEP: Keep = $keep;
            fn save(&self, state: &mut Vec<u8>) {
                <$end>::save(self, state);
            }
            fn last_call(&mut self, call: LastCall, now: Instant) {
                match call {
                    LastCall::Received(pieces) => pieces.into_iter().for_each(|piece| <$end>::app_read(self, piece, now)),
                    given => $given(self, given, now),
                }
            }
            fn drops_next_read(&self) -> bool {
                $drops(self)
            }
            fn resume(&mut self, now: Instant) {
                <$end>::resume(self, now);
            }
            fn handle_data(&mut self, data: &Data, payload: Bytes, now: Instant) -> Result<(), ProtocolError> {
                <$end>::handle_data(self, data, payload, now)
            }
            fn handle_ack(&mut self, ack: &Ack, now: Instant) -> Result<(), ProtocolError> {
                <$end>::handle_ack(self, ack, now)
            }
            fn handle_reset(&mut self, reset: &Reset, now: Instant) -> Result<(), ProtocolError> {
                <$end>::handle_reset(self, reset, now)
            }
            fn app_read(&mut self, bytes: Bytes, now: Instant) {
                <$end>::app_read(self, bytes, now);
            }
            fn app_eof(&mut self, now: Instant) {
                <$end>::app_eof(self, now);
            }
            fn app_closed(&mut self, now: Instant) {
                <$end>::app_closed(self, now);
            }
            fn app_reset(&mut self, now: Instant) {
                <$end>::app_reset(self, now);
            }
            fn app_gone(&mut self, now: Instant) {
                <$end>::$gone(self, now);
            }
            fn app_wrote(&mut self, count: usize, now: Instant) {
                <$end>::app_wrote(self, count, now);
            }
            fn app_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
                <$end>::app_slices(self, slices)
            }
            fn read_capacity(&self) -> usize {
                <$end>::read_capacity(self)
            }
            fn poll_transmit(&mut self, now: Instant) -> Option<(Record, Bytes)> {
                <$end>::poll_transmit(self, now)
            }
            fn poll_app(&mut self, now: Instant) -> Option<AppAction> {
                <$end>::poll_app(self, now)
            }
            fn poll_event(&mut self) -> Option<EndEvent> {
                <$end>::poll_event(self)
            }
            fn poll_timeout(&self) -> Option<Instant> {
                <$end>::poll_timeout(self)
            }
            fn path_changed(&mut self) {
                <$end>::path_changed(self);
            }
            fn handle_timeout(&mut self, now: Instant) {
                <$end>::handle_timeout(self, now);
            }
        }
    };
}

end!(ClientEnd, Direction::S2c, app_gone, Keep::Bytes, ClientEnd::drops_next_read, |end: &mut ClientEnd, given, now| {
    if let LastCall::Sent(bytes) = given {
        end.app_given(&bytes, now);
    }
});
end!(ServerEnd, Direction::C2s, server_lost, Keep::Count, |_| false, |end: &mut ServerEnd, given, _| {
    if let LastCall::Counted(count) = given {
        end.app_given(count);
    }
});

/// What a turn of the loop asks of the element.
#[derive(Debug, Default)]
pub struct Turn {
    /// Records for the other end.
    pub records: Vec<(Record, Bytes)>,
    /// What the end reports.
    pub events: Vec<EndEvent>,
    /// The application must see a reset: remember it, then drop the socket.
    pub reset: Option<ResetReason>,
    /// The application's buffer is full: call again when it is writable.
    pub wait_writable: bool,
    /// When `handle_timeout` is due, if earlier than what was armed before.
    pub arm: Option<Instant>,
    /// The state could not be saved: an invariant is broken.
    pub broken: Option<JournalError>,
}

/// Whether a read filled its buffer: there may be more.
enum Filled {
    Yes,
    No,
}

/// What was found in the socket of a process that has died.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// How its stream ended, if that was seen.
    pub ending: Option<Ending>,
    /// The journal had no room for all that it had said: what was last is lost, and its stream has no orderly end.
    pub cut: bool,
}

/// What an element keeps with each end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The ARMOR of the other end.
    pub other_end: ArmorId,
    /// The element's own word.
    pub word: u32,
}

impl Note {
    const LENGTH: usize = 12;

    fn write(self, state: &mut Vec<u8>) {
        state.extend(self.other_end.0.to_le_bytes());
        state.extend(self.word.to_le_bytes());
    }

    /// Takes the note off a saved state; what is left is the end's.
    #[must_use]
    pub fn read(state: &[u8]) -> Option<(Note, &[u8])> {
        let (note, end) = state.split_at_checked(Note::LENGTH)?;
        let (other_end, word) = note.split_at(8);
        let note =
            Note { other_end: ArmorId(u64::from_le_bytes(other_end.try_into().ok()?)), word: u32::from_le_bytes(word.try_into().ok()?) };
        Some((note, end))
    }
}

/// An end and its socket.
pub struct Port<E> {
    /// The state machine.
    pub end: E,
    /// The ARMOR's end of the application's socket, while there is one.
    pub socket: Option<ApplicationSocket>,
    /// The stream from the application has ended; nothing is read any more.
    pub read_done: bool,
    /// What the element has to know of this connection when its process has died; saved with the end.
    pub note: Note,
    record: JournalRecord,
    broken: Option<JournalError>,
    /// When to look for room in the journal again.
    room_at: Option<Instant>,
    blocked: bool,
    paused: bool,
    armed: Option<Instant>,
    /// Bytes read from the application.
    pub read_bytes: u64,
    /// Bytes written to the application.
    pub written_bytes: u64,
}

impl<E: End> Port<E> {
    /// A new end, with a record of its own. `about` says for good what it is about.
    ///
    /// # Errors
    /// The journal is full.
    pub fn begin(journal: &Journal, about: &impl Serialize, note: Note, end: E) -> Result<Port<E>, JournalError> {
        let mut bytes = Vec::new();
        // Into memory, and without anything that msgpack cannot say: there is nothing to fail.
        let _ = rmp_serde::encode::write(&mut bytes, about);
        let record = journal.begin(&bytes, &[])?;
        let mut port = Port::new(end, note, record);
        port.save();
        Ok(port)
    }

    /// An end that has no socket yet, and its record.
    pub fn new(end: E, note: Note, record: JournalRecord) -> Port<E> {
        Port {
            end,
            socket: None,
            read_done: false,
            note,
            record,
            broken: None,
            room_at: None,
            blocked: false,
            paused: false,
            armed: None,
            read_bytes: 0,
            written_bytes: 0,
        }
    }

    /// Saves the end as it is now.
    pub fn save(&mut self) {
        let saved = STATE.with_borrow_mut(|state| {
            state.clear();
            self.note.write(state);
            self.end.save(state);
            self.record.save(state)
        });
        if let Err(error) = saved {
            self.broken = Some(error);
        }
    }

    /// Reads `count` bytes that are no part of the stream.
    ///
    /// # Errors
    /// The socket's.
    pub fn discard(&mut self, count: usize) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            match self.receive(left) {
                Reading::Bytes(received) => left -= received.first.len() + received.second.len(),
                Reading::Ended(_) => break,
                Reading::Empty | Reading::NoRoom => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
        Ok(())
    }

    /// Joins a socket to the end.
    pub fn attach(&mut self, socket: ApplicationSocket) {
        self.socket = Some(socket);
        self.read_done = false;
        self.blocked = false;
        self.paused = false;
    }

    /// Closes the ARMOR's end.
    pub fn detach(&mut self) {
        if let Some(socket) = self.socket.take() {
            socket.hang_up();
        }
    }

    /// Closes the ARMOR's end such that the application sees a reset.
    pub fn reset(&mut self, application: Option<Whereabouts>) {
        if let Some(socket) = self.socket.take() {
            socket.reset(application);
        }
    }

    /// Reads what the application has written. The ending is the element's to judge.
    pub fn read(&mut self, now: Instant) -> (Read, Option<Ending>) {
        for _ in 0..READS_PER_TURN {
            match self.read_once(now) {
                Ok(Filled::Yes) => {}
                Ok(Filled::No) => return (Read::Drained, None),
                Err(over) => return over,
            }
        }
        (Read::More, None)
    }

    /// Reads what is there now, to the last byte or to the end of the stream, as far as there is room.
    pub fn read_all(&mut self, now: Instant) -> (Read, Option<Ending>) {
        loop {
            // One that did not fill its buffer may have been the last before the end.
            if let Err(over) = self.read_once(now) {
                return over;
            }
        }
    }

    /// One read, or why there is none.
    fn read_once(&mut self, now: Instant) -> Result<Filled, (Read, Option<Ending>)> {
        if self.read_done || self.socket.is_none() {
            return Err((Read::Finished, None));
        }
        let room = self.end.read_capacity();
        if room == 0 {
            self.paused = true;
            return Err((Read::Paused, None));
        }
        match self.receive(room) {
            Reading::Bytes(received) => {
                let filled = if received.filled { Filled::Yes } else { Filled::No };
                self.take(received, now);
                Ok(filled)
            }
            Reading::Empty => Err((Read::Drained, None)),
            Reading::NoRoom => {
                self.paused = true;
                self.room_at = Some(now + ROOM_AGAIN);
                Err((Read::Paused, None))
            }
            Reading::Ended(ending) => Err((Read::Finished, Some(ending))),
        }
    }

    fn receive(&mut self, room: usize) -> Reading {
        self.save();
        match &self.socket {
            Some(socket) => socket.read(&mut self.record, room),
            None => Reading::Empty,
        }
    }

    fn take(&mut self, received: Received, now: Instant) {
        let (drops, length) = (self.end.drops_next_read(), received.first.len() + received.second.len());
        for piece in [received.first, received.second] {
            self.read_bytes += piece.len() as u64;
            if !piece.is_empty() {
                self.end.app_read(piece, now);
            }
        }
        if drops {
            self.record.forget_last(length);
        }
    }

    /// What the call on the application's socket had done during which the ARMOR's process died.
    pub fn last_call(&mut self, call: LastCall, now: Instant) {
        let known = match &call {
            LastCall::Received(pieces) if self.end.drops_next_read() => pieces.iter().map(Bytes::len).sum(),
            _ => 0,
        };
        self.end.last_call(call, now);
        if known > 0 {
            self.record.forget_last(known);
        }
    }

    /// Reads all that is left in the socket of a process that has died, window or not.
    pub fn drain_dead(&mut self, now: Instant) -> Drained {
        let mut drained = Drained::default();
        while !self.read_done {
            // What an earlier process had said is read apart from what is new.
            let most = if self.end.drops_next_read() { self.end.read_capacity() } else { super::READ_SIZE };
            if most == 0 {
                break;
            }
            match self.receive(most) {
                Reading::Bytes(received) => self.take(received, now),
                Reading::Ended(how) => {
                    drained.ending = Some(how);
                    break;
                }
                Reading::Empty => break,
                Reading::NoRoom => {
                    drained.cut = true;
                    break;
                }
            }
        }
        self.detach();
        drained
    }

    /// The application's buffer has room again.
    pub fn writable(&mut self) {
        self.blocked = false;
    }

    /// Lets the end act until it has nothing more to do.
    pub fn turn(&mut self, now: Instant) -> Turn {
        let mut turn = Turn::default();
        loop {
            while let Some(sent) = self.end.poll_transmit(now) {
                turn.records.push(sent);
            }
            match self.end.poll_app(now) {
                // Full, or between two processes: the bytes wait.
                Some(AppAction::Write) if self.blocked || self.socket.is_none() => break,
                Some(AppAction::Write) => self.write(now, &mut turn),
                Some(AppAction::ShutdownWrite) => {
                    if let Some(socket) = &self.socket {
                        socket.finish();
                    }
                }
                Some(AppAction::Reset(reason)) => {
                    turn.reset = Some(reason);
                    break;
                }
                None => break,
            }
        }
        while let Some(event) = self.end.poll_event() {
            turn.events.push(event);
        }
        self.save();
        turn.broken = self.broken.take();
        if self.room_at.is_some_and(|at| at <= now) {
            self.room_at = None;
        }
        if self.paused && self.end.read_capacity() > 0 && self.room_at.is_none() {
            self.paused = false;
            if let Some(socket) = &self.socket {
                socket.resume();
            }
        }
        if let Some(due) = self.end.poll_timeout().into_iter().chain(self.room_at).min()
            && self.armed.is_none_or(|armed| due < armed)
        {
            self.armed = Some(due);
            turn.arm = Some(due);
        }
        turn
    }

    /// A timer that [`Turn::arm`] asked for has run out.
    pub fn timeout(&mut self, now: Instant) {
        if self.armed.is_some_and(|armed| armed <= now) {
            self.armed = None;
        }
        self.end.handle_timeout(now);
    }

    fn write(&mut self, now: Instant, turn: &mut Turn) {
        self.save();
        let Some(socket) = &self.socket else { return };
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.end.app_slices(&mut slices);
        match socket.write(&mut self.record, &slices[..count], E::KEEP) {
            Ok(0) => {
                self.blocked = true;
                turn.wait_writable = true;
            }
            Ok(written) => {
                self.written_bytes += written as u64;
                self.end.app_wrote(written, now);
            }
            // The application is gone. After a half-close nobody reads any more, so this is the only sign of it.
            Err(_) if self.read_done => {
                self.end.app_gone(now);
                self.blocked = true;
            }
            // The reading side finds out how, and what that means.
            Err(_) => self.blocked = true,
        }
    }
}
