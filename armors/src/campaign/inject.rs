//! Faults, and how it is seen from outside that they were found and mended.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::client::now_ns;
use super::load::Load;
use super::matrix::{Cell, Fault, Placement, Target};
use super::pattern::Draw;
use super::relay::Relay;
use super::stage::{CLIENT_NODE, FTM, SERVER_NODE, Stage};

/// How long a link is cut, in ms: within what the FTM takes for a slow node.
const CUT_MS: (u64, u64) = (20, 200);
/// How long bytes are waited for, to flip a bit in.
const FLIP_WITHIN: Duration = Duration::from_secs(2);
/// How long links are watched, to see which one the clients' bytes go by.
const BUSY: Duration = Duration::from_millis(20);
/// Between two looks at what was hit.
const LOOK: Duration = Duration::from_micros(500);

/// A fault that was injected.
pub(crate) struct Injected {
    /// When: before it could have any effect. CLOCK_MONOTONIC in ns, and milliseconds since 1970.
    pub(crate) at_ns: u64,
    pub(crate) at_unix_ms: f64,
    pub(crate) victim: Option<Numbered>,
    /// How long a link was cut.
    pub(crate) cut_ms: Option<f64>,
}

/// An ARMOR or a vault, as a victim: its process's number is in a file, and so will be that of the next one.
pub(crate) struct Numbered {
    pid: u32,
    file: PathBuf,
    ready: Option<PathBuf>,
}

fn now() -> (u64, f64) {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    (now_ns(), since.as_secs_f64() * 1e3)
}

/// Injects the fault of a cell, and tells the clients.
///
/// # Errors
/// When there is nothing to inject it into.
pub(crate) fn inject(cell: Cell, stage: &Stage, load: &mut Load, draw: &mut Draw) -> anyhow::Result<Injected> {
    let signal = if cell.fault == Fault::Stop { Signal::STOP } else { Signal::KILL };
    let injected = match cell.target {
        Target::Link => link(cell, stage, draw)?,
        Target::Node => {
            let (at_ns, at_unix_ms) = stage.kill_node(now)?;
            Injected { at_ns, at_unix_ms, victim: None, cut_ms: None }
        }
        target => {
            let process = stage.process(target)?;
            let (at_ns, at_unix_ms) = now();
            process.signal(signal);
            let victim = stage.directory(target).map(|directory| {
                let vault = target == Target::Vault;
                let file = directory.path().join(if vault { "vault.pid" } else { "pid" });
                Numbered { pid: process.pid, file, ready: (!vault).then(|| directory.ready_file()) }
            });
            Injected { at_ns, at_unix_ms, victim, cut_ms: None }
        }
    };
    load.mark(injected.at_ns);
    Ok(injected)
}

fn link(cell: Cell, stage: &Stage, draw: &mut Draw) -> anyhow::Result<Injected> {
    let length = Duration::from_millis(draw.between(CUT_MS.0, CUT_MS.1));
    let which = draw.below(4);
    let bit = draw.below(1 << 40);
    if cell.placement == Placement::Namespaces {
        let network = stage.network().context("no network")?;
        let node = if which < 2 { SERVER_NODE } else { CLIENT_NODE };
        let (at_ns, at_unix_ms) = now();
        network.cut(node, true)?;
        std::thread::sleep(length);
        network.cut(node, false)?;
        let cut_ms = Some((now_ns() - at_ns) as f64 / 1e6);
        return Ok(Injected { at_ns, at_unix_ms, victim: None, cut_ms });
    }
    let relays = stage.relays();
    // Mostly the link between the two daemons, at whichever end it was accepted last; sometimes those of the FTM.
    let daemons = || relays.iter().filter(|(name, _)| **name != FTM).map(|(_, relay)| relay);
    let before: Vec<u64> = daemons().map(Relay::passed).collect();
    std::thread::sleep(BUSY);
    let busiest = daemons().zip(before).max_by_key(|(relay, before)| relay.passed() - before).map(|(relay, _)| relay);
    let relay = if which == 0 { relays.get(FTM) } else { busiest }.context("no relay")?;
    let (at_ns, at_unix_ms) = now();
    let injected = |at_ns, cut_ms| Injected { at_ns, at_unix_ms, victim: None, cut_ms };
    match cell.fault {
        Fault::Cut => {
            relay.cut(true);
            std::thread::sleep(length);
            relay.cut(false);
            Ok(injected(at_ns, Some((now_ns() - at_ns) as f64 / 1e6)))
        }
        Fault::Reset => match relay.reset() {
            0 => bail!("no connection passes through the relay"),
            _ => Ok(injected(at_ns, None)),
        },
        _ => Ok(injected(flip(relay, bit)?, None)),
    }
}

fn flip(relay: &Relay, bit: u64) -> anyhow::Result<u64> {
    relay.flip(bit);
    relay.flipped(FLIP_WITHIN).with_context(|| format!("nothing has passed through the relay within {} s", FLIP_WITHIN.as_secs()))
}

/// What was seen of a recovery, in ms since the fault.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) detected_ms: Option<f64>,
    /// The target itself is as it was before.
    pub(crate) mended_ms: Option<f64>,
}

/// Waits until an ARMOR or a vault is as it was before, or the deadline.
pub(crate) fn await_mended(injected: &Injected, stage: &Stage, deadline: Instant) -> Seen {
    let since = || (now_ns() - injected.at_ns) as f64 / 1e6;
    let mut seen = Seen::default();
    // For others, what the server's overseer and the clients say is enough.
    let Some(Numbered { pid, file, ready }) = &injected.victim else { return seen };
    while Instant::now() < deadline {
        let next = number(file).filter(|next| next != pid);
        if next.is_some() && seen.detected_ms.is_none() {
            seen.detected_ms = Some(since());
        }
        let is_ready = ready.as_deref().is_none_or(|ready| number(ready) == next);
        if next.is_some() && is_ready && stage.registered() {
            seen.mended_ms = Some(since());
            break;
        }
        std::thread::sleep(LOOK);
    }
    seen
}

/// A process's number in a file, without the lock: whoever looks at that 2,000 times a second is in the way of who takes it.
fn number(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok()
}
