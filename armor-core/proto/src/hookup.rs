//! The hook-up protocol: what an application's shim and its ARMOR say to each other (thesis §4.2, §4.3).
//!
//! Requests travel over two unix seqpacket sockets in the run directory, one datagram each, at most one fd
//! beside it (SCM_RIGHTS). The result of a hook-up is a unix stream socket whose abstract [`Name`] carries
//! all there is to know about it, so neither side keeps a table that fork, dup or exec could make wrong.
//!
//! Nothing here knows how the application's calls are caught (preload, seccomp, a library that it links).
//!
//! Invariant: no bytes of an application can panic the reader or make it allocate more than
//! [`DATAGRAM_LIMIT`] for one datagram.

mod endpoint;
mod message;
mod name;

pub use endpoint::{ENDPOINT_LENGTH, Endpoint, IpFamily};
pub use message::{DATAGRAM_LIMIT, HookupError, PROTOCOL_VERSION, Reply, Request};
pub use name::{ConnectState, NAME_LENGTH, Name, NameError, Role};

/// File name of the socket in the run directory that answers for listeners and server-side connections.
pub const SERVER_SOCKET: &str = "app_comm_server.sock";

/// File name of the socket in the run directory that answers for client-side connections.
pub const CLIENT_SOCKET: &str = "app_comm_client.sock";

/// Environment variable: the run directory. Without it the shim does nothing.
pub const ENV_RUN_DIR: &str = "ARMOR_RUN_DIR";

/// Environment variable: the name under which what this program binds is registered (optional).
pub const ENV_SERVICE: &str = "ARMOR_SERVICE";

/// Environment variable: which of the service's instances, running or standing by, this process belongs to; a number.
pub const ENV_INSTANCE: &str = "ARMOR_INSTANCE";

/// Environment variable: path of the preload library, put back into cleaned environments.
pub const ENV_SHIM_PATH: &str = "ARMOR_SHIM_PATH";

/// Environment variable: the value `off` disables the shim.
pub const ENV_SHIM: &str = "ARMOR_SHIM";
