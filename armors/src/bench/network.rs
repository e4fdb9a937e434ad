//! A network namespace of the bench's own, in which every TCP socket gets the same congestion control, whoever makes it.
//!
//! What a kernel takes by default (BBR without a pacing queue, say) may cost loopback more than half of its throughput, and programs differ in whether they
//! choose another one. A route of loopback says it for all of them. Invariant: no setting of the machine is changed; the namespace goes with its last process.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use rustix::process::Pid;

use crate::program::{self, Found};

/// Set within the namespace.
const INSIDE: &str = "ARMOR_BENCH_NETWORK";
pub(super) const CONGESTION: &str = "cubic";

/// Whether all rows have the same congestion control; why not, if not.
pub(super) type Same = Result<(), String>;

/// Starts this program again in a namespace of its own, unless it is there already.
///
/// # Errors
/// When the namespace cannot be set up.
pub(super) fn enter() -> anyhow::Result<Same> {
    if std::env::var_os(INSIDE).is_some() {
        return set_up();
    }
    if !rustix::process::geteuid().is_root() {
        return Ok(Err("only root may make a network namespace".to_owned()));
    }
    for tool in ["unshare", "ip"] {
        if !matches!(program::find(tool.as_ref()), Found::At(_)) {
            return Ok(Err(format!("{tool} is not installed (util-linux, iproute2)")));
        }
    }
    let own = std::env::current_exe().context("the path of the armor program is unknown")?;
    let possible =
        Command::new("unshare").args(["--net", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        return Ok(Err("the kernel gives no network namespace here".to_owned()));
    }
    let error = Command::new("unshare").args(["--net", "--"]).arg(own).args(std::env::args_os().skip(1)).env(INSIDE, "own").exec();
    bail!("unshare cannot be executed: {error}")
}

fn set_up() -> anyhow::Result<Same> {
    ip(&["link", "set", "lo", "up"])?;
    let route = ["route", "replace", "local", "127.0.0.1", "dev", "lo", "table", "local", "scope", "host", "proto", "kernel"];
    Ok(ip(&[&route[..], &["src", "127.0.0.1", "congctl", CONGESTION]].concat()).map_err(|error| format!("{error:#}")))
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output().context("ip (iproute2) cannot be executed")?;
    if !output.status.success() {
        bail!("`ip {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The congestion controls of all established TCP sockets of processes, as the kernel tells them. Nothing when it cannot be asked.
pub(super) fn congestion_of(pids: &[Pid]) -> Option<BTreeSet<String>> {
    let known = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").ok()?;
    let known: BTreeSet<&str> = known.split_whitespace().collect();
    let output = Command::new("ss").args(["--tcp", "--info", "--numeric", "--processes", "--no-header", "--oneline"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let own: BTreeSet<String> = pids.iter().map(|pid| format!("pid={pid},")).collect();
    let of_these = |line: &&str| own.iter().any(|pid| line.contains(&**pid));
    Some(text.lines().filter(of_these).flat_map(str::split_whitespace).filter(|word| known.contains(word)).map(str::to_owned).collect())
}
