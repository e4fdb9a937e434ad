//! Which connection a connect takes up: its place among the connects of an application to one address.

use std::collections::VecDeque;

use armor_proto::ids::ConnectionId;
use serde::{Deserialize, Serialize};

use crate::operations::ReattachPolicy;

/// Connections to one address, in the order of their connects; one that is over leaves its place empty.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Places {
    /// Of processes before, not taken up yet.
    pub(super) lost: VecDeque<Option<ConnectionId>>,
    /// Of the present process.
    pub(super) made: Vec<Option<ConnectionId>>,
}

impl Places {
    /// The process has failed.
    pub(super) fn fail(&mut self) {
        for place in self.made.drain(..).rev() {
            self.lost.push_front(place);
        }
    }

    /// A connection of the present process, in its next place.
    pub(super) fn make(&mut self, id: ConnectionId, policy: ReattachPolicy) {
        match policy {
            ReattachPolicy::Replay => drop(self.lost.pop_front()),
            // Any of those that wait, or a new one.
            ReattachPolicy::Resume => self.lost.retain(|place| *place != Some(id)),
        }
        self.made.push(Some(id));
    }

    /// The present process has not got the connection: its place is for another try.
    pub(super) fn unmake(&mut self, id: ConnectionId, again: Option<ConnectionId>) -> bool {
        let at = self.made.iter().rposition(|made| *made == Some(id));
        if let Some(at) = at {
            self.made.remove(at);
            self.lost.push_front(again);
        }
        at.is_some()
    }

    /// The process had got it after all.
    pub(super) fn make_again(&mut self, id: ConnectionId) {
        if self.lost.front() == Some(&Some(id)) {
            self.lost.pop_front();
            self.made.push(Some(id));
        }
    }

    pub(super) fn over(&mut self, id: ConnectionId) -> bool {
        let place = self.lost.iter_mut().chain(&mut self.made).find(|place| **place == Some(id));
        let found = place.is_some();
        if let Some(place) = place {
            *place = None;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLAY: ReattachPolicy = ReattachPolicy::Replay;

    fn ids(places: &[Option<ConnectionId>]) -> Vec<u64> {
        places.iter().map(|place| place.map_or(0, |id| id.0)).collect()
    }

    fn state(places: &Places) -> (Vec<u64>, Vec<u64>) {
        let lost: Vec<_> = places.lost.iter().copied().collect();
        (ids(&lost), ids(&places.made))
    }

    #[test]
    fn the_kth_connect_has_the_kth_place_whatever_became_of_the_others() {
        let mut places = Places::default();
        for id in 1..=4 {
            places.make(ConnectionId(id), REPLAY);
        }
        assert!(places.over(ConnectionId(2)) && !places.over(ConnectionId(2)));
        places.fail();
        assert_eq!(state(&places), (vec![1, 0, 3, 4], vec![]));
        // The second one is made anew, and this process dies before it connects again.
        places.make(ConnectionId(1), REPLAY);
        places.make(ConnectionId(5), REPLAY);
        assert_eq!(state(&places), (vec![3, 4], vec![1, 5]));
        places.fail();
        assert_eq!(state(&places), (vec![1, 5, 3, 4], vec![]));
    }

    #[test]
    fn with_resume_a_connection_waits_in_its_place_until_a_process_has_it() {
        const RESUME: ReattachPolicy = ReattachPolicy::Resume;
        let mut places = Places::default();
        for id in 1..=3 {
            places.make(ConnectionId(id), RESUME);
        }
        places.fail();
        places.make(ConnectionId(2), RESUME);
        places.make(ConnectionId(4), RESUME);
        assert_eq!(state(&places), (vec![1, 3], vec![2, 4]));
    }

    #[test]
    fn a_connect_that_was_refused_does_not_count() {
        let mut places = Places::default();
        places.make(ConnectionId(1), REPLAY);
        assert!(places.unmake(ConnectionId(1), None));
        places.make(ConnectionId(2), REPLAY);
        places.make(ConnectionId(3), REPLAY);
        assert_eq!(state(&places).1, [2, 3]);
        places.fail();
        places.make(ConnectionId(2), REPLAY);
        assert_eq!(state(&places), (vec![3], vec![2]));
    }

    #[test]
    fn a_connection_that_a_process_may_not_have_got_waits_in_its_place() {
        let mut places = Places::default();
        places.make(ConnectionId(1), REPLAY);
        places.make(ConnectionId(2), REPLAY);
        places.fail();
        places.make(ConnectionId(1), REPLAY);
        assert!(places.unmake(ConnectionId(1), Some(ConnectionId(1))));
        assert_eq!(state(&places), (vec![1, 2], vec![]));
        // It had got it after all, and closed it.
        places.make_again(ConnectionId(1));
        assert_eq!(state(&places), (vec![2], vec![1]));
    }
}
