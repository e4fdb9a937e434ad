//! Events: what operators want to know, with names and values, for `armor events`, the log and the metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970 on the clock of the ARMOR that tells it.
    pub at_ms: u64,
    /// Name of that ARMOR.
    pub armor: String,
    /// What happened, in kebab-case: "server-failed", "connection-recovered", ….
    pub what: String,
    /// Values that belong to it.
    pub values: BTreeMap<String, String>,
}

impl Event {
    /// An event of now; the ARMOR's name is filled in by the dispatcher.
    #[must_use]
    pub fn new(what: &str) -> Event {
        Event { at_ms: now_ms(), armor: String::new(), what: what.to_owned(), values: BTreeMap::new() }
    }

    /// With one more value.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Event {
        self.values.insert(name.to_owned(), value.to_string());
        self
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
