//! What becomes of a process that is not a child.

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Comes back when the process has ended; at once when there is no such process.
pub async fn watch_process(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return };
    if let Ok(pidfd) = super::watched::watched(pidfd) {
        let _ = pidfd.readable().await;
    }
}

/// Whether the process is on its way out, or gone: the kernel closes its sockets one after the other, and tells of its end only then.
#[must_use]
pub fn is_exiting(pid: u32) -> bool {
    /// In the ninth field of /proc/PID/stat, `PF_EXITING` of the kernel's sched.h.
    const EXITING: u32 = 4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The second field is the program's name in parentheses, which may hold anything.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    let mut fields = after_name.split(' ');
    let gone = matches!(fields.next(), Some("Z" | "X"));
    gone || fields.nth(5).and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & EXITING != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::is_exiting;

    #[test]
    fn a_process_that_lives_is_not_exiting_and_one_that_ended_is() {
        assert!(!is_exiting(std::process::id()));
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(!is_exiting(child.id()));
        child.kill().unwrap();
        // A zombie until it is waited for.
        while !is_exiting(child.id()) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(is_exiting(child.id()));
    }
}
