//! The settings of connections' ends, and how connections ended.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use armor_proto::connection::{Config, MarkPolicy, OnDivergence as EndOnDivergence, ReconnectPolicy, RequestPolicy, StreamPolicy};
use armor_proto::ids::ConnectionId;

use crate::operations::{OnDivergence, Policy};

/// Connections whose reset is remembered for the shim's question; the oldest are forgotten, and then end like a close.
const REMEMBERED: usize = 65_536;

/// How connections ended, for applications that read to the end of file.
#[derive(Debug, Default)]
pub struct Ends {
    reset: HashSet<ConnectionId>,
    order: VecDeque<ConnectionId>,
}

impl Ends {
    /// The connection was reset, not closed.
    pub fn remember_reset(&mut self, id: ConnectionId) {
        if self.reset.insert(id) {
            self.order.push_back(id);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.reset.remove(&oldest);
            }
        }
    }

    /// The errno that a read at the end of the stream gives: 0 for a close.
    #[must_use]
    pub fn how(&self, id: ConnectionId) -> i32 {
        if self.reset.contains(&id) { libc::ECONNRESET } else { 0 }
    }
}

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
