//! What the kernel tells of processes, and where they may run.
//!
//! Invariant: a process that ends meanwhile is left out; it is no error.

use std::path::PathBuf;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Processes of process groups.
pub(super) fn of_groups(groups: &[u32]) -> Vec<Pid> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| group(*pid).is_some_and(|group| groups.contains(&group))).collect()
}

fn group(pid: Pid) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything: state, parent, group.
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

/// What they have used of the CPU since they began, in s: of their living threads.
pub(super) fn cpu_seconds(pids: &[Pid]) -> f64 {
    let ns: u64 = pids
        .iter()
        .flat_map(|pid| threads(*pid))
        .filter_map(|thread| {
            let told = std::fs::read_to_string(thread.join("schedstat")).ok()?;
            told.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum();
    ns as f64 / 1e9
}

fn threads(pid: Pid) -> Vec<PathBuf> {
    std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What they have of memory, in KiB; pages that several share are shared out among them.
pub(super) fn memory_kib(pids: &[Pid]) -> u64 {
    let of = |pid: &Pid| {
        let told = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        told.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok())
    };
    pids.iter().filter_map(of).sum()
}

/// The file name of its program.
pub(super) fn program(pid: Pid) -> Option<String> {
    Some(std::fs::read_link(format!("/proc/{pid}/exe")).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// The cores that this process may run on, and one of them.
pub(super) struct Cores {
    all: CpuSet,
    one: CpuSet,
    pub(super) pinned_to: usize,
}

impl Cores {
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn of_this_process() -> rustix::io::Result<Cores> {
        let all = sched_getaffinity(None)?;
        // The last one: the first one has more interrupts to serve.
        let pinned_to = (0..CpuSet::MAX_CPU).rev().find(|&core| all.is_set(core)).unwrap_or(0);
        let mut one = CpuSet::new();
        one.set(pinned_to);
        Ok(Cores { all, one, pinned_to })
    }

    /// Puts processes, and what they start from now on, onto one core, or lets them run where they like.
    pub(super) fn pin(&self, pids: &[Pid], pinning: super::metric::Pinning) {
        let cores = match pinning {
            super::metric::Pinning::OneCore => &self.one,
            super::metric::Pinning::Free => &self.all,
        };
        for thread in pids.iter().flat_map(|pid| threads(*pid)) {
            let thread = thread.file_name().and_then(|name| Pid::from_raw(name.to_str()?.parse().ok()?));
            // It may have ended.
            let _ = thread.map(|thread| sched_setaffinity(Some(thread), cores));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_found_by_its_group_with_its_memory_and_program() {
        let mut child = Command::new("cat").process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pids = of_groups(&[child.id()]);
        assert_eq!(pids.len(), 1);
        assert!(program(pids[0]).is_some() && memory_kib(&pids) > 0);
        let cores = Cores::of_this_process().unwrap();
        cores.pin(&pids, super::super::metric::Pinning::OneCore);
        assert_eq!(sched_getaffinity(Some(pids[0])).unwrap().count(), 1);
        cores.pin(&pids, super::super::metric::Pinning::Free);
        assert_eq!(sched_getaffinity(Some(pids[0])).unwrap().count(), sched_getaffinity(None).unwrap().count());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(of_groups(&[child.id()]).is_empty());
    }

    #[test]
    fn own_work_is_counted() {
        let pid = [rustix::process::getpid()];
        let before = cpu_seconds(&pid);
        let mut sum = 0u64;
        while cpu_seconds(&pid) <= before {
            sum = (0..100_000u64).fold(sum, |sum, number| sum.wrapping_mul(31) ^ number);
        }
        assert!(std::hint::black_box(sum) != 1);
    }
}
