//! The floor: how long the same server takes without ARMOR from its death until it accepts again, when somebody starts it at once.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::matrix::{Cell, Policy};
use super::measure::Spread;
use super::stage::{builtin, python};
use crate::free_address::free_address;

/// Between two tries to connect.
const TRY_EVERY: Duration = Duration::from_micros(200);
const ACCEPTS_WITHIN: Duration = Duration::from_secs(20);

/// What was measured of one server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Floor {
    /// Beside whose runs it was measured.
    pub(crate) cell: Cell,
    pub(crate) command: Vec<String>,
    pub(crate) runs: usize,
    #[serde(flatten)]
    pub(crate) spread: Spread,
}

/// The server that is started by hand, beside the one under ARMOR, so that both meet the same machine.
pub(crate) struct ByHand {
    cell: Cell,
    command: Vec<String>,
    address: SocketAddr,
    running: Option<Running>,
    values_ms: Vec<f64>,
}

impl ByHand {
    /// Starts it.
    ///
    /// # Errors
    /// When the server cannot be started, or does not accept.
    pub(crate) fn begin(cell: Cell, program: &Path, seed: u64) -> anyhow::Result<ByHand> {
        let address = free_address()?;
        let command = match cell.policy {
            _ if cell.policy.is_python() => python(address, Path::new("/")),
            _ => builtin(program, address, cell.policy, seed),
        };
        let running = Some(Running::start(&command, address)?);
        Ok(ByHand { cell, command, address, running, values_ms: Vec::new() })
    }

    /// Kills it and starts it again.
    ///
    /// # Errors
    /// As [`ByHand::begin`].
    pub(crate) fn once(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.running = None;
        self.running = Some(Running::start(&self.command, self.address)?);
        self.values_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }

    /// What was measured; nothing when nothing was.
    pub(crate) fn floor(self) -> Option<Floor> {
        let runs = self.values_ms.len();
        Some(Floor { cell: self.cell, runs, spread: Spread::of(self.values_ms)?, command: self.command })
    }
}

impl Floor {
    /// What a crash is to cost at most at the median, in ms.
    pub(crate) fn allowed_ms(&self) -> f64 {
        match self.cell.policy {
            Policy::PythonStandby => 0.2 * self.spread.median_ms,
            _ => 1.5 * self.spread.median_ms + 3.0,
        }
    }
}

/// A server that accepts; killed when dropped.
struct Running(Child);

impl Running {
    fn start(command: &[String], address: SocketAddr) -> anyhow::Result<Running> {
        let (program, arguments) = command.split_first().context("no command")?;
        let mut process = Command::new(program);
        process.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Running(process.spawn().with_context(|| format!("{program} cannot be executed"))?);
        let deadline = Instant::now() + ACCEPTS_WITHIN;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = running.0.try_wait().context("wait")? {
                bail!("{program} has ended ({status}) before it accepted at {address}");
            }
            if Instant::now() > deadline {
                bail!("{program} does not accept at {address} within {} s", ACCEPTS_WITHIN.as_secs());
            }
            std::thread::sleep(TRY_EVERY);
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
