//! Ending what was started in process groups of its own.

use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Waits for a child that was asked to end, then kills what is left of its group: itself, when it did not end in time, and children of its own.
pub(super) fn end(child: &mut Child, patience: Duration) {
    let deadline = Instant::now() + patience;
    while !has_ended(child) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(child.id(), Signal::KILL);
    let _ = child.wait();
}

/// Leaves it to be waited for, so that its number stays its own.
fn has_ended(child: &Child) -> bool {
    let Some(pid) = Pid::from_raw(child.id().cast_signed()) else { return true };
    let looking = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // Somebody else has waited for it when there is no such child.
    waitid(WaitId::Pid(pid), looking).map_or(true, |status| status.is_some())
}

/// To a whole group; that it is empty is no error.
pub(super) fn signal(group: u32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group.cast_signed()) {
        let _ = kill_process_group(group, signal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use super::super::process::of_groups;
    use super::*;

    #[test]
    fn a_child_that_does_not_end_is_killed_with_its_own() {
        let mut child = Command::new("sh").args(["-c", "sleep 3600 & cat; true"]).process_group(0).stdin(Stdio::piped()).spawn().unwrap();
        let group = child.id();
        while of_groups(&[group]).len() < 3 {
            std::thread::yield_now();
        }
        end(&mut child, Duration::from_millis(1));
        // The children are killed, and nobody of this process's waits for them.
        while of_groups(&[group]).iter().any(|pid| !is_zombie(*pid)) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_child_that_has_ended_is_not_waited_for_in_vain() {
        let mut child = Command::new("true").process_group(0).spawn().unwrap();
        end(&mut child, Duration::from_secs(3600));
        assert!(of_groups(&[child.id()]).is_empty());
    }

    fn is_zombie(pid: Pid) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }
}
