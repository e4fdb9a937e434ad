//! Bounds and times of a protected connection.

use std::time::Duration;

/// What to do when a new server process says something else than the one before (ARCHITECTURE.md, The way of a recovery).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDivergence {
    /// Reset both ends: honest.
    #[default]
    Reset,
    /// Drop as many bytes as the client has been given already and go on, as the thesis does.
    Continue,
}

/// Bounds and times. Both ends of a connection may differ in them.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes per direction that may be under way: unacknowledged at the sender, not yet written at the receiver.
    pub window: u32,
    /// Bytes of memory that the client's log may take; beyond it replay is lost, or the log goes to the [`Spill`](super::Spill).
    pub log_bound: usize,
    /// Most bytes in one [`Data`](super::Data).
    pub max_data: usize,
    /// How long an acknowledgement waits for data to ride on.
    pub ack_delay: Duration,
    /// First wait before unacknowledged data, or a connect request, is sent again; doubles from there.
    pub retransmit_first: Duration,
    /// Longest wait before something is sent again.
    pub retransmit_most: Duration,
    /// How long the other end, or the server's process, may be missing before both ends are reset.
    pub deadline: Duration,
    /// How long a new server process may say nothing while it still has to say again what the client has been given.
    pub regeneration_deadline: Duration,
    /// How long a silent connection goes unprobed; `None` never probes, and then a vanished peer is not noticed while idle.
    pub keep_alive: Option<Duration>,
    /// How long a finished end stays to answer a peer that does not know it yet, because the last acknowledgements were
    /// lost. Not less than `deadline`, or a peer cut off at the very end takes the end for a failure. Otherwise the end
    /// is drained as soon as both know.
    pub linger: Duration,
    /// What to do when a new process says something else.
    pub on_divergence: OnDivergence,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            window: 1 << 20,
            log_bound: 4 << 20,
            max_data: 256 << 10,
            ack_delay: Duration::from_millis(25),
            retransmit_first: Duration::from_millis(200),
            retransmit_most: Duration::from_secs(2),
            deadline: Duration::from_secs(30),
            regeneration_deadline: Duration::from_secs(60),
            keep_alive: Some(Duration::from_secs(10)),
            linger: Duration::from_secs(30),
            on_divergence: OnDivergence::Reset,
        }
    }
}
