//! What carries messages between daemons.

use serde::{Deserialize, Serialize};

/// A kind of links; a daemon has one of them, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Carrier {
    /// `daemon_tcp_mgmt`.
    Tcp,
    /// `daemon_udp_mgmt`.
    Udp,
}
