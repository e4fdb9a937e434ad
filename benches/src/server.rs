//! The server: one thread, any number of connections.
//!
//! Invariant: a connection that fails, or says what it must not, ends alone.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Context as _;

use crate::bulk::CHUNK;
use crate::poller::{Poller, Ready, unless_busy};
use crate::wire::{HEAD, Wish};

const LISTENER: u64 = u64::MAX;

/// Serves for ever.
///
/// # Errors
/// When it cannot listen.
pub fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("{listen} cannot be listened at"))?;
    listener.set_nonblocking(true)?;
    let mut poller = Poller::new()?;
    poller.add(&listener, LISTENER, Ready::READ)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free = Vec::new();
    // What is read and written in bulk, by all.
    let mut scratch = vec![0; 4 * CHUNK];
    let mut ready = Vec::new();
    loop {
        ready.extend(poller.wait(None)?);
        for (number, _) in ready.drain(..) {
            if number == LISTENER {
                // Whoever has gone meanwhile is not there to be served.
                if let Ok(stream) = listener.accept().and_then(|(stream, _)| Connection::prepare(stream)) {
                    let number = free.pop().unwrap_or(connections.len());
                    poller.add(&stream, number as u64, Ready::READ)?;
                    connections.resize_with(connections.len().max(number + 1), || None);
                    connections[number] = Some(Connection { stream, state: State::Asking { head: [0; HEAD], got: 0 }, watch: Ready::READ });
                }
                continue;
            }
            // It may have been closed in this very turn.
            let index = number as usize;
            let Some(connection) = connections.get_mut(index).and_then(Option::as_mut) else { continue };
            match connection.go_on(&mut scratch) {
                Ok(Some(watch)) if watch == connection.watch => {}
                Ok(Some(watch)) => {
                    connection.watch = watch;
                    poller.change(&connection.stream, number, watch)?;
                }
                // Its end, or its failure: both are its own.
                Ok(None) | Err(_) => {
                    connections[index] = None;
                    free.push(index);
                }
            }
        }
    }
}

struct Connection {
    stream: TcpStream,
    state: State,
    watch: Ready,
}

enum State {
    Asking {
        head: [u8; HEAD],
        got: usize,
    },
    /// A packet comes, or, when it is there, goes.
    Hearing {
        packet: Vec<u8>,
        got: usize,
    },
    Answering {
        packet: Vec<u8>,
        gone: usize,
    },
    Saying {
        left: u64,
    },
    Taking {
        left: u64,
    },
    /// All was said; the client closes.
    Done,
}

impl Connection {
    fn prepare(stream: TcpStream) -> io::Result<TcpStream> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// As far as it goes without waiting. What it waits for then, or nothing at its end.
    fn go_on(&mut self, scratch: &mut [u8]) -> io::Result<Option<Ready>> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Done) {
                State::Asking { mut head, mut got } => {
                    match unless_busy(self.stream.read(&mut head[got..]))? {
                        Some(0) => return Ok(None),
                        Some(more) => got += more,
                        None => return Ok(self.rest(State::Asking { head, got }, Ready::READ)),
                    }
                    if got < HEAD {
                        return Ok(self.rest(State::Asking { head, got }, Ready::READ));
                    }
                    match Wish::decode(&head) {
                        None => return Ok(None),
                        Some(Wish::Echo(bytes)) => State::Hearing { packet: vec![0; bytes as usize], got: 0 },
                        Some(Wish::Download(left)) => State::Saying { left },
                        Some(Wish::Upload(left)) => State::Taking { left },
                        Some(Wish::Touch) => State::Taking { left: 0 },
                    }
                }
                State::Hearing { mut packet, mut got } => match unless_busy(self.stream.read(&mut packet[got..]))? {
                    Some(0) => return Ok(None),
                    Some(more) => {
                        got += more;
                        if got < packet.len() {
                            return Ok(self.rest(State::Hearing { packet, got }, Ready::READ));
                        }
                        State::Answering { packet, gone: 0 }
                    }
                    None => return Ok(self.rest(State::Hearing { packet, got }, Ready::READ)),
                },
                State::Answering { packet, mut gone } => {
                    gone += unless_busy(self.stream.write(&packet[gone..]))?.unwrap_or(0);
                    if gone < packet.len() {
                        return Ok(self.rest(State::Answering { packet, gone }, Ready::WRITE));
                    }
                    // The next packet is not there yet: it follows this one.
                    return Ok(self.rest(State::Hearing { packet, got: 0 }, Ready::READ));
                }
                State::Saying { left: 0 } => State::Done,
                State::Saying { left } => {
                    let length = left.min(CHUNK as u64) as usize;
                    match unless_busy(self.stream.write(&scratch[..length]))? {
                        Some(said) => State::Saying { left: left - said as u64 },
                        None => return Ok(self.rest(State::Saying { left }, Ready::WRITE)),
                    }
                }
                State::Taking { left: 0 } => {
                    self.stream.write_all(&[1])?;
                    State::Done
                }
                State::Taking { left } => {
                    let room = left.min(scratch.len() as u64) as usize;
                    match unless_busy(self.stream.read(&mut scratch[..room]))? {
                        Some(0) => return Ok(None),
                        Some(got) => State::Taking { left: left - got as u64 },
                        None => return Ok(self.rest(State::Taking { left }, Ready::READ)),
                    }
                }
                State::Done => match unless_busy(self.stream.read(&mut scratch[..1]))? {
                    Some(_) => return Ok(None),
                    None => return Ok(self.rest(State::Done, Ready::READ)),
                },
            }
        }
    }

    fn rest(&mut self, state: State, watch: Ready) -> Option<Ready> {
        self.state = state;
        Some(watch)
    }
}
