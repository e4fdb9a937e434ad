//! What `/proc/PID/stat` says of a process or of a thread (proc_pid_stat(5)).

use std::path::Path;

/// One look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Third field: R, S, D, T, t, Z, X, ….
    pub state: char,
    /// Fifth field: its process group.
    pub group: u32,
    /// Ninth field: the kernel's `PF_` flags.
    flags: u32,
    /// Fields 14 and 15: processor time of all its threads, in clock ticks.
    pub ticks: u64,
    /// Field 22: when it was started, in clock ticks after boot.
    pub born: u64,
}

impl Stat {
    /// Of a process that there is; a zombie is one.
    #[must_use]
    pub fn of(pid: u32) -> Option<Stat> {
        Stat::read(Path::new(&format!("/proc/{pid}/stat")))
    }

    /// From a file of that form, a thread's for example.
    #[must_use]
    pub fn read(file: &Path) -> Option<Stat> {
        Stat::parse(&std::fs::read_to_string(file).ok()?)
    }

    fn parse(stat: &str) -> Option<Stat> {
        // The second field is the program's name in parentheses, which may hold anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |at: usize| fields.get(at - 3)?.parse::<u64>().ok();
        Some(Stat {
            state: rest.chars().next()?,
            group: field(5)?.try_into().ok()?,
            flags: field(9)?.try_into().ok()?,
            ticks: field(14)?.saturating_add(field(15)?),
            born: field(22)?,
        })
    }

    /// It has ended, though nobody may have waited for it yet.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// It has ended, or is about to: the kernel closes its sockets one after the other, and tells of its end only then.
    #[must_use]
    pub fn is_exiting(&self) -> bool {
        /// `PF_EXITING` of the kernel's sched.h.
        const EXITING: u32 = 4;
        self.has_ended() || self.flags & EXITING != 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Stat;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) R 1 (b) S 1 5 5 0 -1 4194308 0 0 0 0 30 12 0 0 20 0 1 0 9900 1 2 3\n";
        let stat = Stat::parse(stat).unwrap();
        assert_eq!((stat.state, stat.group, stat.ticks, stat.born), ('S', 5, 42, 9900));
        assert!(stat.is_exiting() && !stat.has_ended());
        for cut in ["", "7 (a", "7 (a) ", "7 (a) S 1 5 5 0 -1 4194308 0 0 0 0 30 12 0 0 20 0 1 0"] {
            assert_eq!(Stat::parse(cut), None, "{cut}");
        }
    }

    #[test]
    fn a_process_that_lives_is_not_exiting_and_one_that_ended_is() {
        let is_exiting = |pid| Stat::of(pid).is_none_or(|stat| stat.is_exiting());
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
