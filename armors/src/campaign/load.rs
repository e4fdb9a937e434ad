//! The clients of a campaign as processes: started through `armor run`, told of each fault, listened to line by line.
//!
//! Invariant: no client outlives the load.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::client::{Broken, Word};
use super::talk::Talk;

/// Clients of one process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) node: &'static str,
    pub(crate) connections: u32,
}

/// What all clients of a load have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    pub(crate) server: SocketAddr,
    pub(crate) talk: Talk,
    pub(crate) seed: u64,
    pub(crate) pause_ms: u64,
    /// Number of the first connection.
    pub(crate) first: u32,
}

/// How a connection took a fault, in ms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    /// Longest pause that had a part in the time since the fault.
    pub(crate) stall_ms: f64,
    /// From the fault to the end of that pause.
    pub(crate) resumed_ms: f64,
}

/// A connection that is not what it should be.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Break {
    pub(crate) connection: u32,
    pub(crate) how: Broken,
    pub(crate) what: String,
}

struct Process {
    child: Child,
    /// Dropped to let it end.
    orders: Option<ChildStdin>,
    connections: u32,
    begun: bool,
    /// Its output has ended.
    ended: bool,
}

/// All clients of a stage.
pub(crate) struct Load {
    processes: Vec<Process>,
    words: Receiver<(usize, Option<Word>)>,
    speaker: Sender<(usize, Option<Word>)>,
    mark: u64,
    flows: BTreeMap<u32, Flow>,
    breaks: Vec<Break>,
    /// Connections that have ended in order.
    ended: u32,
}

impl Load {
    pub(crate) fn new() -> Load {
        let (speaker, words) = channel();
        Load { processes: Vec::new(), words, speaker, mark: 0, flows: BTreeMap::new(), breaks: Vec::new(), ended: 0 }
    }

    /// Starts clients; `command` runs the client's program where it belongs.
    pub(crate) fn start(&mut self, mut command: Command, program: Program, connections: u32) -> anyhow::Result<()> {
        let Program { server, talk, seed, pause_ms, first } = program;
        let first = first + self.connections();
        for (name, value) in [
            ("--connect", server.to_string()),
            ("--talk", talk.name().to_owned()),
            ("--seed", seed.to_string()),
            ("--pause-ms", pause_ms.to_string()),
        ] {
            command.args([name, &value]);
        }
        command.args(["--first", &first.to_string(), "--connections", &connections.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("`armor run` cannot be executed")?;
        let (orders, output) = (child.stdin.take(), child.stdout.take());
        let number = self.processes.len();
        self.processes.push(Process { child, orders, connections, begun: false, ended: false });
        let speaker = self.speaker.clone();
        let output = output.context("no pipe")?;
        let read = move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(word) = serde_json::from_str(&line)
                    && speaker.send((number, Some(word))).is_err()
                {
                    return;
                }
            }
            let _ = speaker.send((number, None));
        };
        std::thread::Builder::new().name("client".to_owned()).spawn(read).context("no thread for a client")?;
        Ok(())
    }

    /// Connections of all clients.
    pub(crate) fn connections(&self) -> u32 {
        self.processes.iter().map(|process| process.connections).sum()
    }

    /// Takes in one word, or nothing until the deadline; whether there was one.
    fn hear(&mut self, deadline: Instant) -> bool {
        let (process, word) = match self.words.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(heard) => heard,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        };
        match word {
            Some(Word::Begun {}) => self.processes[process].begun = true,
            Some(Word::Flows { mark, connection, stall_ms, resumed_ms }) if mark == self.mark => {
                self.flows.insert(connection, Flow { stall_ms, resumed_ms });
            }
            Some(Word::Flows { .. }) => {}
            Some(Word::Broken { connection, how, what }) => self.breaks.push(Break { connection, how, what }),
            Some(Word::Ended { .. }) => self.ended += 1,
            None => self.processes[process].ended = true,
        }
        true
    }

    /// Takes in what was said already.
    pub(crate) fn catch_up(&mut self) {
        while self.hear(Instant::now()) {}
    }

    /// Waits until every connection has heard something.
    ///
    /// # Errors
    /// When one breaks, or patience is over.
    pub(crate) fn await_begin(&mut self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while self.processes.iter().any(|process| !process.begun) {
            if let Some(Break { connection, how, what }) = self.breaks.first() {
                bail!("connection {connection} broke at its beginning ({how:?}): {what}");
            }
            if !self.hear(deadline) || self.processes.iter().any(|process| process.ended) {
                bail!("not every client has heard something within {} s", patience.as_secs());
            }
        }
        Ok(())
    }

    /// Tells all clients of a fault at a time (ns of CLOCK_MONOTONIC).
    pub(crate) fn mark(&mut self, at_ns: u64) {
        self.mark += 1;
        self.flows.clear();
        for orders in self.processes.iter_mut().filter_map(|process| process.orders.as_mut()) {
            // One that is gone is found below: it has closed its output.
            let _ = writeln!(orders, "mark {} {at_ns}", self.mark);
        }
    }

    /// Connections of the last mark that flow again.
    pub(crate) fn flows(&self) -> &BTreeMap<u32, Flow> {
        &self.flows
    }

    /// Waits until all connections flow again that are not broken, or patience is over; whether they do.
    pub(crate) fn await_flow(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let all = self.connections() as usize;
        while self.flows.len() + self.breaks.len() < all {
            if !self.hear(deadline) {
                return false;
            }
        }
        true
    }

    pub(crate) fn breaks(&self) -> &[Break] {
        &self.breaks
    }

    /// Lets every connection finish in order, and waits for that; those that have not are hung.
    pub(crate) fn end(mut self, patience: Duration) -> (Vec<Break>, u32) {
        for process in &mut self.processes {
            process.orders = None;
        }
        let deadline = Instant::now() + patience;
        while self.processes.iter().any(|process| !process.ended) && self.hear(deadline) {}
        let hung = self.connections().saturating_sub(self.ended + u32::try_from(self.breaks.len()).unwrap_or(u32::MAX));
        (std::mem::take(&mut self.breaks), hung)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for process in &mut self.processes {
            if !process.ended {
                let _ = process.child.kill();
            }
            let _ = process.child.wait();
        }
    }
}
