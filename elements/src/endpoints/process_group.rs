//! What the processes of an application do, as /proc tells it: an application is a process group.

use std::fs;

use super::process_stat::Stat;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks after boot: tells it from a later one with the same number.
    pub born: u64,
    /// What it does.
    pub activity: Activity,
    /// Processor time of all its threads, in clock ticks.
    pub ticks: u64,
}

/// What a process does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It was stopped by a signal, and not by a debugger.
    Stopped,
    /// One of its threads runs, waits for a processor or for a disk, or a debugger has it.
    AtWork,
    /// All of its threads wait for something.
    Waiting,
}

/// The processes of this machine at one moment.
#[derive(Debug)]
pub struct Processes {
    all: Vec<(u32, Stat)>,
}

impl Processes {
    /// Those that there are now. It costs some milliseconds where hundreds run.
    #[must_use]
    pub fn now() -> Processes {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Processes { all: pids.filter_map(|pid: u32| Some((pid, Stat::of(pid)?))).collect() }
    }

    /// The living ones of a group.
    #[must_use]
    pub fn of_group(&self, group: u32) -> Vec<Member> {
        self.all.iter().filter(|(_, stat)| stat.group == group).filter_map(|(pid, stat)| member(*pid, stat)).collect()
    }
}

fn member(pid: u32, stat: &Stat) -> Option<Member> {
    let activity = match stat.state {
        _ if stat.has_ended() => return None,
        'T' if !is_traced(pid) => Activity::Stopped,
        'R' | 'D' | 'T' | 't' => Activity::AtWork,
        _ if threads(pid).any(|state| matches!(state, 'R' | 'D' | 't')) => Activity::AtWork,
        _ => Activity::Waiting,
    };
    Some(Member { pid, born: stat.born, activity, ticks: stat.ticks })
}

fn threads(pid: u32) -> impl Iterator<Item = char> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(Stat::read(&entry.path().join("stat"))?.state))
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("TracerPid:")).is_some_and(|tracer| tracer.trim() != "0")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, kill_process_group};
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    #[test]
    fn a_group_is_its_living_processes_and_one_that_was_stopped_is_told_from_one_that_waits() {
        let mut child = Command::new("sh").args(["-c", "sleep 1000 & wait"]).process_group(0).spawn().unwrap();
        let group = Pid::from_child(&child);
        let activities = || {
            let mut members = Processes::now().of_group(child.id());
            members.sort_by_key(|member| member.born);
            members.iter().map(|member| member.activity).collect::<Vec<_>>()
        };
        for (signal, expected) in [(Signal::CONT, Activity::Waiting), (Signal::STOP, Activity::Stopped), (Signal::CONT, Activity::Waiting)]
        {
            kill_process_group(group, signal).unwrap();
            while activities() != [expected; 2] {
                std::thread::yield_now();
            }
        }
        kill_process_group(group, Signal::KILL).unwrap();
        // A zombie until it is waited for.
        while !activities().is_empty() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn who_computes_is_at_work_and_uses_processor_time() {
        let own = rustix::process::getpgrp().as_raw_nonzero().get().cast_unsigned();
        let me = || Processes::now().of_group(own).into_iter().find(|member| member.pid == std::process::id()).unwrap();
        let before = me();
        assert_eq!(before.activity, Activity::AtWork);
        while me().ticks == before.ticks {}
        assert_eq!(me().born, before.born);
    }
}
