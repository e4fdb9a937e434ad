//! [`Endpoint`]: an IP address and port in 23 bytes, as they stand in abstract names and requests.
//!
//! Invariant: two endpoints are equal exactly when their 23 bytes are.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Length in bytes of an encoded [`Endpoint`].
pub const ENDPOINT_LENGTH: usize = 23;

/// Address family of an [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    /// `AF_INET`
    V4,
    /// `AF_INET6`
    V6,
}

/// An IP address, its port and, for link-local IPv6, its scope (interface index).
///
/// Bytes: family (4 or 6), port u16 LE, address 16 bytes (IPv4 in the first four, zeros after), scope u32 LE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address, in the family that the application used.
    pub ip: IpAddr,
    /// The port in host order.
    pub port: u16,
    /// IPv6 scope id, 0 for IPv4.
    pub scope: u32,
}

impl Endpoint {
    /// An endpoint without scope.
    #[must_use]
    pub const fn new(ip: IpAddr, port: u16) -> Self {
        Self { ip, port, scope: 0 }
    }

    /// The wildcard address of `family`.
    #[must_use]
    pub const fn unspecified(family: IpFamily, port: u16) -> Self {
        match family {
            IpFamily::V4 => Self::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            IpFamily::V6 => Self::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        }
    }

    /// Family of the address.
    #[must_use]
    pub const fn family(&self) -> IpFamily {
        match self.ip {
            IpAddr::V4(_) => IpFamily::V4,
            IpAddr::V6(_) => IpFamily::V6,
        }
    }

    /// The same endpoint with `::ffff:a.b.c.d` written as `a.b.c.d`: the form in which endpoints are compared.
    #[must_use]
    pub fn unmapped(self) -> Self {
        match self.ip.to_canonical() {
            ip @ IpAddr::V4(_) => Self::new(ip, self.port),
            IpAddr::V6(_) => self,
        }
    }

    /// The same endpoint as a socket of `family` would report it, if it can: IPv4 is mapped to
    /// `::ffff:a.b.c.d` for IPv6, a mapped address is unmapped for IPv4. `None`: true IPv6 asked for as IPv4.
    #[must_use]
    pub fn in_family(self, family: IpFamily) -> Option<Self> {
        match (family, self.ip) {
            (IpFamily::V6, IpAddr::V4(v4)) => Some(Self::new(IpAddr::V6(v4.to_ipv6_mapped()), self.port)),
            (IpFamily::V6, IpAddr::V6(_)) => Some(self),
            (IpFamily::V4, _) => Some(self.unmapped()).filter(|unmapped| unmapped.family() == IpFamily::V4),
        }
    }

    /// The 23 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ENDPOINT_LENGTH] {
        let mut bytes = [0; ENDPOINT_LENGTH];
        match self.ip {
            IpAddr::V4(v4) => {
                bytes[0] = 4;
                bytes[3..7].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                bytes[0] = 6;
                bytes[3..19].copy_from_slice(&v6.octets());
                bytes[19..].copy_from_slice(&self.scope.to_le_bytes());
            }
        }
        bytes[1..3].copy_from_slice(&self.port.to_le_bytes());
        bytes
    }

    /// Reads the 23 bytes. `None` when the family is neither 4 nor 6 or bytes that must be zero are not.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; ENDPOINT_LENGTH]) -> Option<Self> {
        let [family, port_low, port_high, address @ .., s0, s1, s2, s3] = *bytes;
        let port = u16::from_le_bytes([port_low, port_high]);
        match family {
            4 => {
                let [a, b, c, d, rest @ ..] = address;
                let clean = rest == [0; 12] && [s0, s1, s2, s3] == [0; 4];
                clean.then(|| Self::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port))
            }
            6 => Some(Self { ip: IpAddr::V6(Ipv6Addr::from(address)), port, scope: u32::from_le_bytes([s0, s1, s2, s3]) }),
            _ => None,
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        let scope = match address {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        Self { ip: address.ip(), port: address.port(), scope }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        match endpoint.ip {
            IpAddr::V4(v4) => Self::V4(SocketAddrV4::new(v4, endpoint.port)),
            IpAddr::V6(v6) => Self::V6(SocketAddrV6::new(v6, endpoint.port, 0, endpoint.scope)),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_bytes())
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteArray::<ENDPOINT_LENGTH>::deserialize(deserializer)?;
        Self::from_bytes(&bytes).ok_or_else(|| de::Error::custom("an endpoint of no known family"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn bytes_and_socket_addresses_are_equivalent() {
        for text in ["127.0.0.1:8080", "0.0.0.0:0", "[::1]:65535", "[fe80::1%7]:22", "[::ffff:10.1.2.3]:9"] {
            let endpoint = endpoint(text);
            assert_eq!(Endpoint::from_bytes(&endpoint.to_bytes()), Some(endpoint), "{text}");
            assert_eq!(endpoint.to_string(), text);
        }
    }

    #[test]
    fn mapped_addresses_compare_equal_once_unmapped() {
        let mapped = endpoint("[::ffff:127.0.0.1]:80");
        let plain = endpoint("127.0.0.1:80");
        assert_eq!(mapped.unmapped(), plain);
        assert_eq!(plain.in_family(IpFamily::V6), Some(mapped));
        assert_eq!(mapped.in_family(IpFamily::V4), Some(plain));
        assert_eq!(endpoint("[::1]:80").in_family(IpFamily::V4), None);
        assert_eq!(endpoint("[::1]:80").unmapped(), endpoint("[::1]:80"));
    }

    #[test]
    fn bytes_of_no_family_are_refused() {
        let mut bytes = endpoint("1.2.3.4:5").to_bytes();
        bytes[0] = 5;
        assert_eq!(Endpoint::from_bytes(&bytes), None);
        bytes[0] = 4;
        bytes[22] = 1;
        assert_eq!(Endpoint::from_bytes(&bytes), None, "IPv4 has no scope");
    }
}
