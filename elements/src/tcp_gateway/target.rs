//! Which service an address leads to: by name, wherever it runs, or by the address that it serves.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use armor_proto::hookup::Endpoint;

use crate::endpoints::ServerTable;
use crate::operations::check_name;

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Named { name: String, port: Option<u16> },
    At(SocketAddr),
}

impl Target {
    /// What is wrong with it.
    pub(super) fn check(service: &str, port: Option<u16>) -> Result<(), String> {
        match Self::new(service, port) {
            Target::At(_) if port.is_some() => Err(format!("listeners: service {service} names the port already; leave out port")),
            Target::At(_) => Ok(()),
            Target::Named { name, .. } => check_name(&name).map_err(|reason| format!("listeners: service {name:?}: {reason}")),
        }
    }

    pub(super) fn new(service: &str, port: Option<u16>) -> Target {
        service.parse().map_or_else(|_| Target::Named { name: service.to_owned(), port }, Target::At)
    }

    /// What a client of this network would dial to reach it now; `None` when it is not there.
    pub(super) fn find(&self, table: &ServerTable) -> Option<Endpoint> {
        match self {
            Target::At(address) => {
                let dialled = Endpoint::from(*address);
                table.find(dialled).map(|_| dialled)
            }
            Target::Named { name, port } => {
                let own = table.rows().filter(|row| row.service == *name && port.is_none_or(|port| row.address.port == port));
                let row = own.min_by_key(|row| (row.address.port, row.address.ip))?;
                // A server at the wildcard address answers at loopback too, on whichever node it is.
                let ip = match row.address.ip {
                    IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                    ip => ip,
                };
                Some(Endpoint { ip, ..row.address })
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Named { name, port: None } => f.write_str(name),
            Target::Named { name, port: Some(port) } => write!(f, "{name}, port {port}"),
            Target::At(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::{Policy, ServerRow};
    use armor_proto::ids::{ArmorId, Incarnation};

    fn row(service: &str, address: &str) -> ServerRow {
        let address = address.parse::<SocketAddr>().map(Endpoint::from).unwrap_or(Endpoint::new([0; 4].into(), 0));
        let (armor, incarnation) = (ArmorId(1), Incarnation(1));
        ServerRow { address, armor, incarnation, service: service.into(), policy: Policy::Request, deadline_ms: 0, settled_ms: None }
    }

    #[test]
    fn a_service_is_found_by_its_name_its_port_or_its_address() {
        let rows = vec![row("web", "0.0.0.0:8080"), row("web", "0.0.0.0:443"), row("db", "10.0.0.2:5432"), row("six", "[::]:90")];
        let table = ServerTable::new(rows, Vec::new());
        let found = |service: &str, port| Target::new(service, port).find(&table).map(|found| SocketAddr::from(found).to_string());
        assert_eq!(found("web", None).as_deref(), Some("127.0.0.1:443"), "the lowest port");
        assert_eq!(found("web", Some(8080)).as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(found("db", None).as_deref(), Some("10.0.0.2:5432"));
        assert_eq!(found("six", None).as_deref(), Some("[::1]:90"));
        assert_eq!(found("10.0.0.2:5432", None).as_deref(), Some("10.0.0.2:5432"));
        assert_eq!((found("db", Some(80)), found("shop", None), found("10.0.0.3:5432", None)), (None, None, None));
    }
}
