//! How the recovery of a service went, as APP_COMM_SERVER tells it (thesis §6.2.4: error recovery time).

use serde::{Deserialize, Serialize};

/// Milliseconds from the failure of a service to each step of its recovery.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Recovery {
    pub(crate) service: String,
    pub(crate) incarnation: u64,
    pub(crate) at_ms: u64,
    pub(crate) detected_ms: Option<u64>,
    pub(crate) restarted_ms: Option<u64>,
    pub(crate) bound_ms: Option<u64>,
    pub(crate) ready_ms: Option<u64>,
    pub(crate) reconnected_ms: Option<u64>,
    pub(crate) replayed_ms: Option<u64>,
    pub(crate) flowing_ms: Option<u64>,
}

impl Recovery {
    /// Name and time of each step, in their order.
    pub(crate) fn steps(&self) -> [(&'static str, Option<u64>); 7] {
        [
            ("detected", self.detected_ms),
            ("restarted", self.restarted_ms),
            ("bound", self.bound_ms),
            ("ready", self.ready_ms),
            ("reconnected", self.reconnected_ms),
            ("replayed", self.replayed_ms),
            ("flowing", self.flowing_ms),
        ]
    }
}
