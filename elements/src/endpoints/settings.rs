//! The settings of connections' ends.

use std::time::Duration;

use armor_proto::connection::{Config, MarkPolicy, OnDivergence as EndOnDivergence, ReconnectPolicy, RequestPolicy, StreamPolicy};

use crate::operations::{OnDivergence, Policy};

/// Settings of an end.
#[must_use]
pub fn connection_config(window: u32, log_bound: usize, deadline_ms: u64, on_divergence: OnDivergence) -> Config {
    Config {
        window,
        log_bound,
        deadline: Duration::from_millis(deadline_ms),
        on_divergence: match on_divergence {
            OnDivergence::Reset => EndOnDivergence::Reset,
            OnDivergence::Continue => EndOnDivergence::Continue,
        },
        ..Config::default()
    }
}

/// The mark policy of a service.
#[must_use]
pub fn policy(policy: Policy) -> Box<dyn MarkPolicy + Send> {
    match policy {
        Policy::Reconnect => Box::new(ReconnectPolicy),
        Policy::Request => Box::new(RequestPolicy::default()),
        Policy::Stream => Box::new(StreamPolicy),
    }
}
