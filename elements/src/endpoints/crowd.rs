//! Events of connections, when there are many at once: when a server with thousands of clients comes back, each of them has the same
//! to tell. The first ones are told one by one, the others together, so that the event log keeps what came before.

use std::collections::BTreeMap;
use std::time::Duration;

use armor_core::events::Event;

/// So many events of one kind are told one by one in [`WHILE`].
const ONE_BY_ONE: u64 = 20;
/// How long the others are counted until they are told together.
pub(super) const WHILE: Duration = Duration::from_secs(1);
/// Values in which events are alike that are told together. Of the others, numbers of bytes are summed.
const ALIKE: &[&str] = &["service", "reason", "errno"];

/// What events have in common that are told together: name and values.
type Group = (String, BTreeMap<String, String>);

/// Events that were told within a second, and those that wait to be told together.
#[derive(Debug, Default)]
pub struct Crowd {
    groups: BTreeMap<Group, Members>,
}

#[derive(Debug, Default)]
struct Members {
    told: u64,
    others: u64,
    /// Sums of the values that are numbers of bytes.
    bytes: BTreeMap<String, u64>,
}

impl Crowd {
    /// Nothing was told for a while.
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes an event in; gives it back when it is to be told by itself.
    pub(super) fn joined(&mut self, event: Event) -> Option<Event> {
        let alike = event.values.iter().filter(|(name, _)| ALIKE.contains(&name.as_str()));
        let group = (event.what.clone(), alike.map(|(name, value)| (name.clone(), value.clone())).collect());
        let members = self.groups.entry(group).or_default();
        if members.told < ONE_BY_ONE {
            members.told += 1;
            return Some(event);
        }
        members.others += 1;
        for (name, value) in event.values.iter().filter(|(name, _)| name.ends_with("_bytes")) {
            *members.bytes.entry(name.clone()).or_default() += value.parse().unwrap_or(0);
        }
        None
    }

    /// The time is over: what was counted is told, and it begins anew.
    pub(super) fn others(&mut self) -> Vec<Event> {
        let counted = std::mem::take(&mut self.groups).into_iter().filter(|(_, members)| members.others > 0);
        let together = counted.map(|((what, alike), members)| {
            let mut event = Event::new(&what).with("connections", members.others);
            event.values.extend(alike);
            event.values.extend(members.bytes.into_iter().map(|(name, sum)| (name, sum.to_string())));
            event
        });
        together.collect()
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    fn recovered(connection: u64, service: &str) -> Event {
        Event::new("connection-recovered").with("connection", connection).with("service", service).with("replayed_bytes", 7)
    }

    #[test]
    fn the_first_are_told_one_by_one_and_the_others_together_with_the_sum_of_their_bytes() {
        let mut crowd = Crowd::default();
        let told: Vec<_> = (0..1000).filter_map(|connection| crowd.joined(recovered(connection, "web"))).collect();
        assert_eq!((told.len(), told[3].values["connection"].as_str()), (20, "3"));
        assert!(crowd.joined(recovered(1, "other")).is_some(), "another service has its own");
        let others = crowd.others();
        let [together] = &others[..] else { panic!("one event: {others:?}") };
        let values: Vec<_> = together.values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(together.what, "connection-recovered");
        assert_eq!(values, [("connections", "980"), ("replayed_bytes", "6860"), ("service", "web")]);
        assert!(crowd.joined(recovered(1001, "web")).is_some(), "and it begins anew");
    }
}
