//! The floor: how long the same server takes without ARMOR from its death until it accepts again, when somebody starts it at once.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::matrix::Policy;
use super::measure::Spread;
use super::stage::{builtin, free_address, python};

/// Between two tries to connect.
const TRY_EVERY: Duration = Duration::from_micros(200);
const ACCEPTS_WITHIN: Duration = Duration::from_secs(20);

/// What was measured of one server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Floor {
    pub(crate) policy: Policy,
    pub(crate) command: Vec<String>,
    pub(crate) runs: u32,
    #[serde(flatten)]
    pub(crate) spread: Spread,
}

impl Floor {
    /// Starts, kills and starts again.
    ///
    /// # Errors
    /// When the server cannot be started, or does not accept.
    pub(crate) fn measure(policy: Policy, program: &Path, runs: u32, seed: u64) -> anyhow::Result<Floor> {
        let address = free_address()?;
        let command = match policy {
            Policy::Python => python(address, Path::new("/")),
            _ => builtin(program, address, policy, seed),
        };
        let mut running = Running::start(&command, address)?;
        let mut values = Vec::new();
        for _ in 0..runs {
            let begun = Instant::now();
            drop(running);
            running = Running::start(&command, address)?;
            values.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let spread = Spread::of(values).context("no runs")?;
        Ok(Floor { policy, command, runs, spread })
    }

    /// What a crash may cost at the median, in ms.
    pub(crate) fn allowed_ms(&self) -> f64 {
        1.5 * self.spread.median_ms + 3.0
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
