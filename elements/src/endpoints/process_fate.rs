//! Waits for the end of a process that is not a child, by pidfd.

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Comes back when the process has ended; at once when there is no such process.
pub async fn watch_process(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return };
    if let Ok(pidfd) = super::watched::watched(pidfd) {
        let _ = pidfd.readable().await;
    }
}
