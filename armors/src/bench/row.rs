//! What is measured beside each other. One variant is one row of every table; another way for data, past the ARMORs say, is one more of them.

use serde::{Deserialize, Serialize};

/// A way from the client to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// No proxy
    Direct,
    /// A minimal proxy of the bench's own at each end: epoll, one thread
    Own,
    /// HAProxy at each end
    Haproxy,
    /// HAProxy at each end, with `busy-polling`
    HaproxyBusy,
    /// socat at each end
    Socat,
    /// ARMOR: client and server by the daemons of their nodes
    Daemon,
    /// ARMOR: client and server each by an Execution ARMOR
    Execution,
}

impl Row {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Row::Direct => "direct TCP",
            Row::Own => "own dual proxy",
            Row::Haproxy => "two HAProxy",
            Row::HaproxyBusy => "two HAProxy, busy-polling",
            Row::Socat => "two socat",
            Row::Daemon => "ARMOR, daemons",
            Row::Execution => "ARMOR, Execution ARMORs",
        }
    }

    pub(crate) fn is_armor(self) -> bool {
        matches!(self, Row::Daemon | Row::Execution)
    }

    /// The program that has to be installed for it.
    pub(crate) fn needs(self) -> Option<&'static str> {
        match self {
            Row::Haproxy | Row::HaproxyBusy => Some("haproxy"),
            Row::Socat => Some("socat"),
            _ => None,
        }
    }

    /// It burns a core also when nothing is asked of it, so it is stopped while others have their turn.
    pub(crate) fn is_restless(self) -> bool {
        self == Row::HaproxyBusy
    }

    /// Most connections that are worth trying.
    pub(crate) fn most_connections(self) -> u64 {
        match self {
            // Each costs it two processes.
            Row::Socat => 1000,
            _ => u64::MAX,
        }
    }
}
