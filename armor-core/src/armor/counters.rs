//! What an ARMOR counts, for `armor status`.
//!
//! Invariant: a message that was taken up for dispatch ends in exactly one of `finished`, `routed`, `unroutable`,
//! `unknown_operation`, `undecodable`, `runaway`, `repeated` and `congested`, or is parked at an element with an Arbiter of its own.

use std::cell::Cell;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(Cell<u64>);

impl Counter {
    pub(crate) fn count(&self) {
        self.0.set(self.0.get() + 1);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.get()
    }
}

/// The counters of one ARMOR.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Messages taken up for dispatch.
    pub(crate) taken: Counter,
    /// Bundles that were processed here.
    pub(crate) processed: Counter,
    /// Messages whose last bundle was processed here.
    pub(crate) finished: Counter,
    /// Messages handed to a transport.
    pub(crate) routed: Counter,
    /// Messages for which no transport knew a way.
    pub(crate) unroutable: Counter,
    /// Messages dropped because no element hears one of their operations.
    pub(crate) unknown_operation: Counter,
    /// Messages dropped because they, or one of their operations, could not be decoded or may not come from outside.
    pub(crate) undecodable: Counter,
    /// Messages dropped because their operations pushed further ones without end.
    pub(crate) runaway: Counter,
    /// Messages that were processed before and are only acknowledged again.
    pub(crate) duplicates: Counter,
    /// Messages dropped because an earlier copy of them is still being processed.
    pub(crate) repeated: Counter,
    /// Messages dropped because too much waits for an element with an Arbiter of its own.
    pub(crate) congested: Counter,
    /// Messages refused because the queue was full; they were never taken up.
    pub(crate) overflow: Counter,
    /// Events about refused or dropped messages that were not told, because too many were.
    pub(crate) untold: Counter,
}

impl Counters {
    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::json!({
            "taken": self.taken.value(), "processed": self.processed.value(), "finished": self.finished.value(),
            "routed": self.routed.value(), "unroutable": self.unroutable.value(),
            "unknown_operation": self.unknown_operation.value(), "undecodable": self.undecodable.value(),
            "runaway": self.runaway.value(),
            "duplicates": self.duplicates.value(), "repeated": self.repeated.value(),
            "congested": self.congested.value(), "overflow": self.overflow.value(),
            "untold": self.untold.value(),
        })
    }
}
