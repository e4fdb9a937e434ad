//! A set of numbers kept as ranges: packet numbers, offsets of a stream.

use std::collections::VecDeque;
use std::ops::Range;

/// Ranges in ascending order that neither touch nor overlap. How many there may be is the owner's affair ([`RangeSet::drop_first`]).
#[derive(Debug, Clone, Default)]
pub(super) struct RangeSet {
    ranges: VecDeque<Range<u64>>,
}

impl RangeSet {
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Range<u64>> {
        self.ranges.iter()
    }

    pub(super) fn first(&self) -> Option<Range<u64>> {
        self.ranges.front().cloned()
    }

    /// One more than the greatest number.
    pub(super) fn end(&self) -> u64 {
        self.ranges.back().map_or(0, |range| range.end)
    }

    pub(super) fn drop_first(&mut self) -> Option<Range<u64>> {
        self.ranges.pop_front()
    }

    /// Index of the first range that ends at or behind `at`.
    fn search(&self, at: u64) -> usize {
        // What comes is nearly always at the end.
        match self.ranges.back() {
            None => 0,
            Some(last) if at > last.end => self.ranges.len(),
            Some(last) if at >= last.start => self.ranges.len() - 1,
            Some(_) => self.ranges.partition_point(|range| range.end < at),
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.ranges.get(self.search(number + 1)).is_some_and(|range| range.contains(&number))
    }

    /// Adds a range; false when all of it was there.
    pub(super) fn insert(&mut self, range: Range<u64>) -> bool {
        let mut new = false;
        self.insert_telling(range, |_| new = true);
        new
    }

    /// Adds a range and tells, in ascending order, which parts of it were not there.
    pub(super) fn insert_telling(&mut self, range: Range<u64>, mut tell: impl FnMut(Range<u64>)) {
        if range.is_empty() {
            return;
        }
        let first = self.search(range.start);
        let mut merged = range.clone();
        let mut at = range.start;
        let mut last = first;
        while let Some(found) = self.ranges.get(last) {
            if found.start > range.end {
                break;
            }
            if found.start > at {
                tell(at..found.start);
            }
            at = at.max(found.end);
            merged.start = merged.start.min(found.start);
            merged.end = merged.end.max(found.end);
            last += 1;
        }
        if at < range.end {
            tell(at..range.end);
        }
        if last == first {
            self.ranges.insert(first, merged);
            return;
        }
        self.ranges[first] = merged;
        if last - first > 1 {
            self.ranges.drain(first + 1..last);
        }
    }

    /// Takes a range out.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut at = self.ranges.partition_point(|found| found.end <= range.start);
        while at < self.ranges.len() && self.ranges[at].start < range.end {
            let found = self.ranges[at].clone();
            let (before, behind) = (found.start..range.start, range.end..found.end);
            match (before.is_empty(), behind.is_empty()) {
                (true, true) => {
                    self.ranges.remove(at);
                }
                (false, true) => {
                    self.ranges[at] = before;
                    at += 1;
                }
                (true, false) => {
                    self.ranges[at] = behind;
                    at += 1;
                }
                (false, false) => {
                    self.ranges[at] = before;
                    self.ranges.insert(at + 1, behind);
                    at += 2;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_set_that_a_tree_of_numbers_is(changes in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60)) {
            let (mut ranges, mut model) = (RangeSet::default(), BTreeSet::new());
            for (add, start, length) in changes {
                let range = start..start + length;
                if add {
                    let mut told = Vec::new();
                    ranges.insert_telling(range.clone(), |new| told.extend(new));
                    let new: Vec<_> = range.clone().filter(|number| !model.contains(number)).collect();
                    prop_assert_eq!(told, new);
                    model.extend(range);
                } else {
                    ranges.remove(range.clone());
                    model.retain(|number| !range.contains(number));
                }
                prop_assert_eq!(ranges.iter().cloned().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.ranges.iter().zip(ranges.ranges.iter().skip(1)).all(|(a, b)| a.end < b.start));
                for number in 0..80 {
                    prop_assert_eq!(ranges.contains(number), model.contains(&number));
                }
            }
        }
    }
}
