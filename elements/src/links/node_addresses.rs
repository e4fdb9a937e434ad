//! The addresses of this node's interfaces, as the kernel lists them under /proc/net.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Every address of this node that a peer may have dialled: loopback too, link-local IPv6 not (it needs a scope).
#[must_use]
pub fn node_addresses() -> Vec<IpAddr> {
    let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut addresses: BTreeSet<IpAddr> = local_v4(&v4).map(IpAddr::V4).chain(local_v6(&v6).map(IpAddr::V6)).collect();
    addresses.insert(IpAddr::V4(Ipv4Addr::LOCALHOST));
    addresses.into_iter().collect()
}

/// `|-- 192.0.2.2` followed by `/32 host LOCAL`.
fn local_v4(fib_trie: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut last = None;
    fib_trie.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
            return None;
        }
        if line.starts_with("/32 ") && line.ends_with("LOCAL") { last } else { None }
    })
}

fn local_v6(if_inet6: &str) -> impl Iterator<Item = Ipv6Addr> {
    if_inet6.lines().filter_map(|line| {
        let address = line.split_whitespace().next()?;
        let address = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
        (!address.is_unicast_link_local()).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_read_from_the_kernels_tables() {
        let fib = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n           |-- 127.0.0.0\n              /8 host LOCAL\n           |-- 192.0.2.2\n              /32 host LOCAL\n        |-- 192.0.2.255\n           /32 link BROADCAST\n";
        assert_eq!(local_v4(fib).collect::<Vec<_>>(), [Ipv4Addr::new(192, 0, 2, 2)]);
        let six = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(local_v6(six).collect::<Vec<_>>(), [Ipv6Addr::LOCALHOST]);
        assert!(node_addresses().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
