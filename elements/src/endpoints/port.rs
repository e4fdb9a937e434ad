//! A protected connection's end joined to the application's socket: the loop that carries bytes between the two.
//!
//! Invariant: nothing is read while the end has no room (back-pressure), nothing is written while the application has none.

use std::io::IoSlice;
use std::time::Instant;

use armor_proto::connection::{
    Ack, AppAction, ClientEnd, Data, Direction, Event as EndEvent, ProtocolError, Record, Reset, ResetReason, ServerEnd,
};
use bytes::Bytes;

use super::application_socket::{ApplicationSocket, Ending, Read, ReadBuffer, Reading};
use super::unread_byte::Whereabouts;

/// Most reads from one application before others have a turn.
const READS_PER_TURN: usize = 8;
/// Most slices in one write.
const SLICES: usize = 32;

/// What the two ends of a connection have in common.
pub trait End {
    /// Which of the two streams comes from the other end.
    const INCOMING: Direction;
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
}

macro_rules! end {
    ($end:ty, $incoming:expr, $gone:ident) => {
        impl End for $end {
            const INCOMING: Direction = $incoming;
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
            fn handle_timeout(&mut self, now: Instant) {
                <$end>::handle_timeout(self, now);
            }
        }
    };
}

end!(ClientEnd, Direction::S2c, app_closed);
end!(ServerEnd, Direction::C2s, server_lost);

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
}

/// An end and its socket.
pub struct Port<E> {
    /// The state machine.
    pub end: E,
    /// The ARMOR's end of the application's socket, while there is one.
    pub socket: Option<ApplicationSocket>,
    /// The stream from the application has ended; nothing is read any more.
    pub read_done: bool,
    blocked: bool,
    paused: bool,
    armed: Option<Instant>,
    /// Bytes read from the application.
    pub read_bytes: u64,
    /// Bytes written to the application.
    pub written_bytes: u64,
}

impl<E: End> Port<E> {
    /// An end that has no socket yet.
    pub fn new(end: E) -> Port<E> {
        Port { end, socket: None, read_done: false, blocked: false, paused: false, armed: None, read_bytes: 0, written_bytes: 0 }
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
    pub fn read(&mut self, buffer: &mut ReadBuffer, now: Instant) -> (Read, Option<Ending>) {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.read_done) else { return (Read::Finished, None) };
        for _ in 0..READS_PER_TURN {
            let room = self.end.read_capacity();
            if room == 0 {
                self.paused = true;
                return (Read::Paused, None);
            }
            match socket.read(buffer, room) {
                Reading::Bytes(bytes, more) => {
                    self.read_bytes += bytes.len() as u64;
                    self.end.app_read(bytes, now);
                    if !more {
                        return (Read::Drained, None);
                    }
                }
                Reading::Empty => return (Read::Drained, None),
                Reading::Ended(ending) => return (Read::Finished, Some(ending)),
            }
        }
        (Read::More, None)
    }

    /// Reads what is there now, to the last byte or to the end of the stream, as far as there is room.
    pub fn read_all(&mut self, buffer: &mut ReadBuffer, now: Instant) -> (Read, Option<Ending>) {
        while let Some(socket) = self.socket.as_ref().filter(|_| !self.read_done) {
            let room = self.end.read_capacity();
            if room == 0 {
                return (Read::Paused, None);
            }
            match socket.read(buffer, room) {
                Reading::Bytes(bytes, _) => {
                    self.read_bytes += bytes.len() as u64;
                    self.end.app_read(bytes, now);
                }
                Reading::Empty => return (Read::Drained, None),
                Reading::Ended(ending) => return (Read::Finished, Some(ending)),
            }
        }
        (Read::Finished, None)
    }

    /// Reads all that is left in the socket of a process that has died, window or not.
    pub fn drain_dead(&mut self, buffer: &mut ReadBuffer, now: Instant) {
        let Some(socket) = self.socket.take() else { return };
        while !self.read_done
            && let Reading::Bytes(bytes, _) = socket.read(buffer, super::READ_SIZE)
        {
            self.read_bytes += bytes.len() as u64;
            self.end.app_read(bytes, now);
        }
        socket.hang_up();
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
        if self.paused && self.end.read_capacity() > 0 {
            self.paused = false;
            if let Some(socket) = &self.socket {
                socket.resume();
            }
        }
        if let Some(due) = self.end.poll_timeout()
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
        let Some(socket) = &self.socket else { return };
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.end.app_slices(&mut slices);
        match socket.write(&slices[..count]) {
            Ok(0) => {
                self.blocked = true;
                turn.wait_writable = true;
            }
            Ok(written) => {
                self.written_bytes += written as u64;
                self.end.app_wrote(written, now);
            }
            // The application is gone. After a half-close nobody reads any more, so this is the only sign of it.
            Err(_) if self.read_done => self.end.app_gone(now),
            // The reading side finds out how, and what that means.
            Err(_) => self.blocked = true,
        }
    }
}
