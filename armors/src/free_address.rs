//! A loopback address for a server that is about to be started.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context as _;

/// Below the ports that the kernel gives to sockets that connect (`ip_local_port_range`): no client takes it before the server has it, or between two of its
/// lives.
const PORTS: Range<u16> = 10_000..30_000;

/// An address of which nobody has bound the port at the moment; another one each time.
///
/// # Errors
/// When there is none.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Processes beside each other begin in different places.
    let first = std::process::id().wrapping_mul(97) % u32::from(count);
    (0..count)
        .map(|_| {
            let next = (first + u32::from(GIVEN.fetch_add(1, Ordering::Relaxed))) % u32::from(count);
            SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + u16::try_from(next).unwrap_or(0)))
        })
        .find(|address| TcpListener::bind(address).is_ok())
        .with_context(|| format!("no free port on 127.0.0.1 from {} to {}", PORTS.start, PORTS.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_free_and_never_the_same() -> anyhow::Result<()> {
        let (first, second) = (free_address()?, free_address()?);
        assert_ne!(first, second);
        assert!(PORTS.contains(&first.port()) && PORTS.contains(&second.port()));
        Ok(())
    }
}
