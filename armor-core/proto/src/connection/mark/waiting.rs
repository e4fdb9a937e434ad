//! Requests that wait for their answers, in order, with where each one ends in the client's stream.
//!
//! Invariant: at most [`GROUPS`] entries, [`SAVED_GROUPS`] of them in a saved state. Beyond that requests share the last one, and a mark can
//! lie only after all of them.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Requests that may wait with an end of their own.
pub(super) const GROUPS: usize = 4096;
/// The same in a saved state.
const SAVED_GROUPS: usize = 16;

/// What has to be known of a request when its answer comes.
pub(super) trait Kind: Copy {
    /// What has to be known of an entry that stands for both; `None` when nothing can.
    fn share(self, next: Self) -> Option<Self>;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Group<K> {
    kind: K,
    requests: u64,
    /// End of the last of them in the client's stream.
    end: u64,
}

impl<K: Kind> Group<K> {
    fn join(&mut self, next: Group<K>) -> Result<(), Full> {
        self.kind = self.kind.share(next.kind).ok_or(Full)?;
        self.requests += next.requests;
        self.end = next.end;
        Ok(())
    }
}

/// The queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Waiting<K> {
    groups: VecDeque<Group<K>>,
}

impl<K> Default for Waiting<K> {
    fn default() -> Self {
        Waiting { groups: VecDeque::new() }
    }
}

impl<K: Kind> Waiting<K> {
    /// Adds a request.
    ///
    /// # Errors
    /// [`Full`] when there is no entry left for it and it cannot share the last one.
    pub(super) fn push(&mut self, kind: K, end: u64) -> Result<(), Full> {
        let group = Group { kind, requests: 1, end };
        let full = self.groups.len() >= GROUPS;
        match self.groups.back_mut().filter(|_| full) {
            Some(last) => last.join(group),
            None => {
                self.groups.push_back(group);
                Ok(())
            }
        }
    }

    /// The kind of the request whose answer comes next.
    pub(super) fn front(&self) -> Option<K> {
        self.groups.front().map(|group| group.kind)
    }

    /// The first request was answered. Where it ends, if its entry stands for no other one that still waits.
    pub(super) fn answered(&mut self) -> Option<u64> {
        let front = self.groups.front_mut()?;
        front.requests -= 1;
        if front.requests > 0 {
            return None;
        }
        self.groups.pop_front().map(|group| group.end)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// At most one waits.
    pub(super) fn is_sequential(&self) -> bool {
        self.groups.iter().map(|group| group.requests).sum::<u64>() <= 1
    }

    /// The same requests in so few entries that they can be saved.
    ///
    /// # Errors
    /// [`Full`] when some of them cannot share one.
    pub(super) fn in_few(&self) -> Result<Waiting<K>, Full> {
        let mut few = Waiting { groups: self.groups.iter().take(SAVED_GROUPS).copied().collect() };
        for group in self.groups.iter().skip(SAVED_GROUPS) {
            few.groups.back_mut().ok_or(Full)?.join(*group)?;
        }
        Ok(few)
    }

    /// Whether it can have been made by [`Waiting::in_few`].
    pub(super) fn is_sound(&self) -> bool {
        let ends = self.groups.iter().map(|group| group.end);
        let counts = self.groups.iter().all(|group| (1..=u64::from(u32::MAX)).contains(&group.requests));
        self.groups.len() <= SAVED_GROUPS && counts && ends.is_sorted()
    }
}

/// There is no entry left.
#[derive(Debug)]
pub(super) struct Full;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    impl Kind for u8 {
        fn share(self, next: u8) -> Option<u8> {
            (self == next).then_some(self)
        }
    }

    #[test]
    fn each_request_has_its_own_end_until_the_queue_is_full_and_again_when_it_has_drained() {
        let mut waiting = Waiting::default();
        let groups = GROUPS as u64;
        for end in 1..=groups + 4 {
            waiting.push(0u8, end * 10).unwrap();
        }
        assert!(waiting.push(1, groups * 100).is_err());
        for end in 1..groups {
            assert_eq!(waiting.answered(), Some(end * 10));
        }
        waiting.push(1, groups * 100).unwrap();
        for _ in groups..groups + 4 {
            assert_eq!(waiting.answered(), None, "one of five that share an end");
        }
        assert_eq!(waiting.answered(), Some((groups + 4) * 10));
        assert_eq!((waiting.front(), waiting.answered(), waiting.answered()), (Some(1), Some(groups * 100), None));
    }

    #[test]
    fn a_saved_queue_has_the_first_ends_and_the_last_one() {
        let mut waiting = Waiting::default();
        for end in 1..=100 {
            waiting.push(0u8, end * 10).unwrap();
        }
        let mut few = waiting.in_few().unwrap();
        assert!(few.is_sound() && !waiting.is_sound());
        let ends: Vec<Option<u64>> = (0..101).map(|_| few.answered()).collect();
        assert_eq!(ends[..15], (1..=15).map(|end| Some(end * 10)).collect::<Vec<_>>());
        assert_eq!(ends[15..99], [None; 84]);
        assert_eq!(ends[99..], [Some(1000), None]);
        waiting.push(1, 1010).unwrap();
        assert!(waiting.in_few().is_err());
    }
}
