//! What is remembered of connections that are over, for those who ask late.

use std::collections::{HashMap, VecDeque};

use armor_proto::ids::ConnectionId;

/// Connections that are remembered; the oldest are forgotten.
const MOST: usize = 65_536;

/// Something about each of the last connections.
#[derive(Debug)]
pub struct Remembered<V> {
    of: HashMap<ConnectionId, V>,
    order: VecDeque<ConnectionId>,
}

impl<V> Default for Remembered<V> {
    fn default() -> Self {
        Remembered { of: HashMap::new(), order: VecDeque::new() }
    }
}

impl<V> Remembered<V> {
    /// Remembers `value`; what was remembered of the connection before is replaced.
    pub fn remember(&mut self, id: ConnectionId, value: V) {
        if self.of.insert(id, value).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.of.remove(&oldest);
        }
    }

    /// What is remembered of the connection.
    #[must_use]
    pub fn of(&self, id: ConnectionId) -> Option<&V> {
        self.of.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_the_oldest_connections_are_forgotten() {
        let mut remembered = Remembered::default();
        remembered.remember(ConnectionId(0), 1);
        remembered.remember(ConnectionId(0), 2);
        assert_eq!(remembered.of(ConnectionId(0)), Some(&2));
        (1..=MOST as u64).for_each(|id| remembered.remember(ConnectionId(id), 0));
        assert_eq!((remembered.of(ConnectionId(0)), remembered.of(ConnectionId(1))), (None, Some(&0)));
        assert_eq!((remembered.of.len(), remembered.order.len()), (MOST, MOST));
    }
}
