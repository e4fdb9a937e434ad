//! Ending what was started in process groups of its own.

use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Waits for a child that was asked to end; when it does not in time its whole group is killed. Children that it has left are killed at any rate.
pub(super) fn end(child: &mut Child, patience: Duration) {
    let deadline = Instant::now() + patience;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    // The number is its own as long as its status was not taken, or somebody of its group lives; else nobody has it yet, in so short a time.
    signal(child.id(), Signal::KILL);
    let _ = child.wait();
}

/// To a whole group; that it is empty is no error.
pub(super) fn signal(group: u32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group.cast_signed()) {
        let _ = kill_process_group(group, signal);
    }
}
