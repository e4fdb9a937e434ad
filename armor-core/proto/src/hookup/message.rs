//! [`Request`] and [`Reply`]: the datagrams of the hook-up protocol and their codec.
//!
//! A datagram is one byte of protocol version and one msgpack value (rmp-serde, compact arrays). The limit is on the
//! whole datagram. A message of another version is refused before it is looked into.

use rmp_serde::Serializer;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::endpoint::Endpoint;
use super::name::Name;

/// First byte of each datagram.
pub const PROTOCOL_VERSION: u8 = 1;

/// Largest datagram in bytes, version byte included.
pub const DATAGRAM_LIMIT: usize = 4096;

/// What the shim asks or tells. `pid` is the process as it sees itself; the kernel's word is SO_PEERCRED.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// `bind(2)`: bind the TCP socket that comes along, or let it stand in for one that is kept for this address. It is not
    /// known yet whether it will listen or connect. Carries the application's TCP socket. Reply: [`Reply::Bound`], perhaps after
    /// [`Reply::Hold`].
    Bind {
        /// What the application asked for; port 0 lets the ARMOR choose.
        addr: Endpoint,
        /// Name of the service, from the environment.
        service: Option<String>,
        /// The application.
        pid: u32,
        /// `IPV6_V6ONLY` of the socket.
        v6_only: bool,
        /// `SO_REUSEPORT` of the socket.
        reuse_port: bool,
        /// Which instance of the service the process belongs to, from the environment; 0 when nobody has said.
        #[serde(default)]
        instance: u64,
    },
    /// `listen(2)` has succeeded: register the address as a service (thesis `MSG_APP_REGISTER_SERVER`). Reply:
    /// [`Reply::Registered`].
    Listen {
        /// Id of the listener.
        listener: u64,
        /// As given to `listen`.
        backlog: i32,
        /// The application.
        pid: u32,
    },
    /// The bound socket is not to listen but to connect. Reply: [`Reply::Withdrawn`], which carries the TCP socket back, with
    /// its options and still bound, when this ARMOR has it.
    Withdraw {
        /// Id of the listener that it would have been.
        listener: u64,
    },
    /// `connect(2)`. Carries the application's TCP socket, which may be bound. Reply: [`Reply::Connected`] with the new
    /// socket, or [`Reply::Bypass`].
    Connect {
        /// Where to, in the family of the application's socket.
        addr: Endpoint,
        /// Answer at once with a pending socket.
        nonblocking: bool,
        /// Number under which the application will have the new socket.
        descriptor: i32,
        /// The application.
        pid: u32,
    },
    /// An orderly close of one copy has just happened. No reply.
    Closed {
        /// The socket.
        name: Name,
        /// The application.
        pid: u32,
    },
    /// `shutdown(2)` of the sending side has just happened. No reply.
    Finished {
        /// The socket.
        name: Name,
        /// The application.
        pid: u32,
    },
    /// One copy has just been closed with `SO_LINGER` on and 0 seconds: TCP would send RST, not FIN. Sent in place
    /// of [`Request::Closed`]; it counts if that copy is the last. No reply.
    Aborted {
        /// The socket.
        name: Name,
        /// The application.
        pid: u32,
    },
    /// End of file with the other end gone: was it a close or a reset? Reply: [`Reply::Ended`].
    HowEnded {
        /// The socket.
        name: Name,
    },
    /// `setsockopt(2)` on the TCP socket that is kept for this one. Reply: [`Reply::Option`].
    SetOption {
        /// The socket.
        name: Name,
        /// As given to `setsockopt`.
        level: i32,
        /// As given to `setsockopt`.
        option: i32,
        /// As given to `setsockopt`.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
    },
    /// `getsockopt(2)` on the TCP socket that is kept for this one. Reply: [`Reply::Option`].
    GetOption {
        /// The socket.
        name: Name,
        /// As given to `getsockopt`.
        level: i32,
        /// As given to `getsockopt`.
        option: i32,
        /// Size of the application's buffer in bytes.
        length: u32,
    },
    /// Of a gateway, which speaks for a client that has no shim: it has accepted a TCP connection for the service at `addr`. Carries the TCP
    /// socket, which is the application's end from now on. Reply: [`Reply::Connected`] without a socket, which says whether the connection is
    /// taken, not whether the server has answered.
    Accepted {
        /// The service, as a client of this network would dial it.
        addr: Endpoint,
        /// The client: what the server is told as its peer.
        client: Endpoint,
        /// It may have been handed over before; then it is taken already.
        again: bool,
    },
}

/// What the ARMOR answers. `errno` 0 is success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Bind`].
    Bound {
        /// The kernel's word on the bind.
        errno: i32,
        /// Id of the listener, when `errno` is 0.
        listener: u64,
        /// Name to bind the unix socket to, when `errno` is 0.
        name: Option<Name>,
    },
    /// To [`Request::Bind`] of a standby: the answer comes by the same way when the process is to serve, however long that takes.
    Hold,
    /// To [`Request::Listen`].
    Registered {
        /// Why the address is no service; 0 when every ARMOR of the network knows it.
        errno: i32,
    },
    /// To [`Request::Connect`]. Carries the application's new socket when `errno` is 0.
    Connected {
        /// Why not.
        errno: i32,
        /// The connect goes on: see [`ConnectState`](super::ConnectState).
        pending: bool,
        /// Name of the new socket's peer, when `errno` is 0.
        name: Option<Name>,
    },
    /// To [`Request::Connect`]: not a service of this environment, use the kernel.
    Bypass,
    /// To [`Request::HowEnded`].
    Ended {
        /// 0 for an orderly end, else `ECONNRESET` or what the ARMOR says.
        errno: i32,
    },
    /// To [`Request::SetOption`] and [`Request::GetOption`].
    Option {
        /// The kernel's word.
        errno: i32,
        /// The option's value, empty for `SetOption`.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
    },
    /// To [`Request::Withdraw`].
    Withdrawn,
    /// The request is not served: malformed, or from a user who may not ask.
    Refused {
        /// For a human.
        reason: String,
    },
}

/// Why a datagram cannot be made or read.
#[derive(Debug, Error)]
pub enum HookupError {
    /// A datagram without a byte.
    #[error("empty hook-up datagram")]
    Empty,
    /// Longer than [`DATAGRAM_LIMIT`] or than the buffer given.
    #[error("hook-up datagram longer than {limit} bytes")]
    TooLong {
        /// What was allowed.
        limit: usize,
    },
    /// From another version of the protocol.
    #[error("hook-up protocol version {got}, expected {PROTOCOL_VERSION}")]
    Version {
        /// The version byte found.
        got: u8,
    },
    /// Not a message.
    #[error("malformed hook-up datagram")]
    Malformed(#[source] rmp_serde::decode::Error),
    /// A message, and then something.
    #[error("{extra} bytes after the end of a hook-up message")]
    Trailing {
        /// How many.
        extra: usize,
    },
}

impl Request {
    /// Writes the datagram into `buffer` without allocating and returns its length.
    ///
    /// # Errors
    /// [`HookupError::TooLong`] when it does not fit `buffer` or [`DATAGRAM_LIMIT`].
    pub fn encode_into(&self, buffer: &mut [u8]) -> Result<usize, HookupError> {
        encode_into(self, buffer)
    }

    /// The datagram.
    ///
    /// # Errors
    /// [`HookupError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, HookupError> {
        encode(self)
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`HookupError`]; never panics, whatever the bytes.
    pub fn decode(datagram: &[u8]) -> Result<Self, HookupError> {
        decode(datagram)
    }
}

impl Reply {
    /// The datagram.
    ///
    /// # Errors
    /// [`HookupError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, HookupError> {
        encode(self)
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`HookupError`]; never panics, whatever the bytes.
    pub fn decode(datagram: &[u8]) -> Result<Self, HookupError> {
        decode(datagram)
    }
}

fn encode(message: &impl Serialize) -> Result<Vec<u8>, HookupError> {
    let mut buffer = vec![0; DATAGRAM_LIMIT];
    let length = encode_into(message, &mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn encode_into(message: &impl Serialize, buffer: &mut [u8]) -> Result<usize, HookupError> {
    let limit = buffer.len().min(DATAGRAM_LIMIT);
    let too_long = || HookupError::TooLong { limit };
    let (version, mut body) = buffer[..limit].split_first_mut().ok_or_else(too_long)?;
    *version = PROTOCOL_VERSION;
    // Our own types always serialise; only the buffer's end can stop the writer.
    message.serialize(&mut Serializer::new(&mut body)).map_err(|_| too_long())?;
    let unused = body.len();
    Ok(limit - unused)
}

fn decode<T: DeserializeOwned>(datagram: &[u8]) -> Result<T, HookupError> {
    if datagram.len() > DATAGRAM_LIMIT {
        return Err(HookupError::TooLong { limit: DATAGRAM_LIMIT });
    }
    let (&version, mut body) = datagram.split_first().ok_or(HookupError::Empty)?;
    if version != PROTOCOL_VERSION {
        return Err(HookupError::Version { got: version });
    }
    let mut deserializer = rmp_serde::Deserializer::new(&mut body);
    // Nothing here nests deeper than an option in a variant.
    deserializer.set_max_depth(8);
    let message = T::deserialize(&mut deserializer).map_err(HookupError::Malformed)?;
    match body.len() {
        0 => Ok(message),
        extra => Err(HookupError::Trailing { extra }),
    }
}

#[cfg(test)]
mod tests;
