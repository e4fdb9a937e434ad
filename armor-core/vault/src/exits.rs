//! How processes ended whose parents had died. The last ones are remembered for owners that come later.

use std::collections::VecDeque;

use crate::message::Exited;

/// More than this many are forgotten, the oldest first.
const REMEMBERED: usize = 4096;

#[derive(Default)]
pub(crate) struct Exits {
    last: VecDeque<Exited>,
    /// Sequence of the newest; the first one has 1.
    pub(crate) newest: u64,
}

impl Exits {
    pub(crate) fn push(&mut self, process: Exited) {
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(process);
        self.newest += 1;
    }

    /// The first one that is newer, and its sequence.
    pub(crate) fn after(&self, sequence: u64) -> Option<(u64, Exited)> {
        let forgotten = self.newest - self.last.len() as u64;
        let next = sequence.max(forgotten);
        let process = self.last.get(usize::try_from(next - forgotten).ok()?)?;
        Some((next + 1, *process))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_told_in_order_and_none_twice() {
        let mut exits = Exits::default();
        assert_eq!(exits.after(0), None);
        for pid in 1..=5000 {
            exits.push(Exited { pid, status: 0 });
        }
        let (mut heard, mut pids) = (0, Vec::new());
        while let Some((sequence, process)) = exits.after(heard) {
            (heard, pids) = (sequence, [pids, vec![process.pid]].concat());
        }
        assert_eq!(pids, (5000 - 4095..=5000).collect::<Vec<_>>());
        assert_eq!(exits.after(heard), None);
        assert_eq!(exits.after(u64::MAX), None);
    }
}
