//! The settings of connections' ends.

use std::time::Duration;

use armor_proto::connection::{
    Config, MarkPolicy, OnDivergence as EndOnDivergence, Protocol, ReconnectPolicy, RequestPolicy, StreamPolicy, TurnPolicy,
};

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

/// The mark policy of a service, and after how much silence an answer counts as complete where nothing else is known of it.
#[must_use]
pub fn policy(policy: Policy, settled_ms: Option<u32>) -> Box<dyn MarkPolicy + Send> {
    let mut turns = TurnPolicy::default();
    turns.settled_after = settled_ms.map(|silence| Duration::from_millis(u64::from(silence)));
    match policy {
        Policy::Reconnect => Box::new(ReconnectPolicy),
        Policy::Request => Box::new(RequestPolicy::default().or_else(turns)),
        Policy::Http => Box::new(RequestPolicy::of(Protocol::Http).or_else(turns)),
        Policy::Resp => Box::new(RequestPolicy::of(Protocol::Resp).or_else(turns)),
        Policy::Turn => Box::new(turns),
        Policy::Stream => Box::new(StreamPolicy),
    }
}
