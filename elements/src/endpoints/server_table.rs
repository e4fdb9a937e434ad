//! The servers of the network as everybody sees them, and which of them answers for an address that a client dials.

use std::collections::HashMap;
use std::net::IpAddr;

use armor_proto::hookup::Endpoint;

use crate::operations::ServerRow;

/// Servers by the address that they bound.
#[derive(Debug, Default, Clone)]
pub struct ServerTable {
    rows: HashMap<Endpoint, ServerRow>,
    node_addresses: Vec<IpAddr>,
}

impl ServerTable {
    /// A table from what APP_SERVER_DB sent.
    #[must_use]
    pub fn new(rows: Vec<ServerRow>, node_addresses: Vec<IpAddr>) -> ServerTable {
        ServerTable { rows: rows.into_iter().map(|row| (row.address.unmapped(), row)).collect(), node_addresses }
    }

    /// The server that answers for `dialled`: one bound to that very address, or one bound to the wildcard address of that
    /// port when the address is loopback or belongs to a node of the network.
    #[must_use]
    pub fn find(&self, dialled: Endpoint) -> Option<&ServerRow> {
        let dialled = dialled.unmapped();
        if let Some(row) = self.rows.get(&dialled) {
            return Some(row);
        }
        let ours = dialled.ip.is_loopback() || dialled.ip.is_unspecified() || self.node_addresses.contains(&dialled.ip);
        if !ours {
            return None;
        }
        let wildcard = |ip: IpAddr| self.rows.get(&Endpoint::new(ip, dialled.port));
        let v6 = IpAddr::from([0u16; 8]);
        let v4 = IpAddr::from([0u8; 4]);
        match dialled.ip {
            IpAddr::V4(_) => wildcard(v4).or_else(|| wildcard(v6)),
            IpAddr::V6(_) => wildcard(v6),
        }
        // connect() to the wildcard address means this host.
        .or_else(|| dialled.ip.is_unspecified().then(|| self.rows.get(&Endpoint::new([127, 0, 0, 1].into(), dialled.port))).flatten())
    }

    /// The server that bound this very address.
    #[must_use]
    pub fn at(&self, address: Endpoint) -> Option<&ServerRow> {
        self.rows.get(&address.unmapped())
    }

    /// All of them.
    pub fn rows(&self) -> impl Iterator<Item = &ServerRow> {
        self.rows.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Policy;
    use armor_proto::ids::{ArmorId, Incarnation};

    fn row(ip: [u8; 4], port: u16) -> ServerRow {
        ServerRow {
            address: Endpoint::new(ip.into(), port),
            armor: ArmorId(1),
            incarnation: Incarnation(1),
            service: "s".into(),
            policy: Policy::Request,
            deadline_ms: 0,
            settled_ms: None,
        }
    }

    #[test]
    fn a_wildcard_server_answers_for_loopback_and_node_addresses_but_not_for_strangers() {
        let table = ServerTable::new(vec![row([0, 0, 0, 0], 80), row([10, 0, 0, 1], 81)], vec![IpAddr::from([10, 0, 0, 1])]);
        let found = |ip: [u8; 4], port| table.find(Endpoint::new(ip.into(), port)).is_some();
        assert!(found([127, 0, 0, 1], 80) && found([10, 0, 0, 1], 80) && found([10, 0, 0, 1], 81));
        assert!(!found([93, 184, 216, 34], 80) && !found([127, 0, 0, 1], 81) && !found([127, 0, 0, 1], 82));
    }
}
