//! What becomes of a process that is not a child.

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::process_stat::Stat;

/// Comes back when the process has ended; at once when there is no such process.
pub async fn watch_process(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return };
    if let Ok(pidfd) = super::watched::watched(pidfd) {
        let _ = pidfd.readable().await;
    }
}

/// Whether the process is on its way out, or gone.
#[must_use]
pub fn is_exiting(pid: u32) -> bool {
    Stat::of(pid).is_none_or(|stat| stat.is_exiting())
}
