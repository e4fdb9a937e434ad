//! Which daemon an ARMOR was last heard from: the table of thesis §5.4, filled on demand.

use std::collections::{HashMap, VecDeque};

use armor_proto::ids::ArmorId;

/// Bounded table; the entry that was made first is forgotten first.
#[derive(Debug)]
pub struct Locations {
    daemons: HashMap<ArmorId, ArmorId>,
    order: VecDeque<ArmorId>,
    limit: usize,
}

impl Locations {
    /// A table for at most `limit` ARMORs.
    #[must_use]
    pub fn new(limit: usize) -> Locations {
        Locations { daemons: HashMap::new(), order: VecDeque::new(), limit }
    }

    /// `armor` is reached through `daemon`.
    pub fn learn(&mut self, armor: ArmorId, daemon: ArmorId) {
        if let Some(known) = self.daemons.get_mut(&armor) {
            *known = daemon;
            return;
        }
        // Entries that were forgotten one by one still stand in the order, so this may take more than one step.
        while self.order.len() >= self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.daemons.remove(&oldest);
        }
        self.daemons.insert(armor, daemon);
        self.order.push_back(armor);
    }

    /// The daemon through which `armor` is reached.
    #[must_use]
    pub fn daemon_of(&self, armor: ArmorId) -> Option<ArmorId> {
        self.daemons.get(&armor).copied()
    }

    /// Forgets one ARMOR.
    pub fn forget(&mut self, armor: ArmorId) {
        if self.daemons.remove(&armor).is_some() {
            self.order.retain(|known| *known != armor);
        }
    }

    /// Forgets every ARMOR that was reached through `daemon`.
    pub fn forget_daemon(&mut self, daemon: ArmorId) {
        self.daemons.retain(|_, known| *known != daemon);
        self.order.retain(|armor| self.daemons.contains_key(armor));
    }

    /// How many are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.daemons.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.daemons.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entry_is_forgotten_at_the_bound_and_the_newest_word_counts() {
        let mut locations = Locations::new(2);
        locations.learn(ArmorId(1), ArmorId(10));
        locations.learn(ArmorId(2), ArmorId(10));
        locations.learn(ArmorId(1), ArmorId(11));
        assert_eq!(locations.daemon_of(ArmorId(1)), Some(ArmorId(11)));
        locations.learn(ArmorId(3), ArmorId(12));
        assert_eq!(locations.len(), 2);
        assert_eq!(locations.daemon_of(ArmorId(1)), None);
        locations.forget_daemon(ArmorId(10));
        assert_eq!(locations.daemon_of(ArmorId(2)), None);
        locations.forget(ArmorId(3));
        assert!(locations.is_empty() && locations.order.is_empty());
    }
}
