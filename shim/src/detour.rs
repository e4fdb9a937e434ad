//! [`Detour`]: how a hook ends. Served here, handed to the kernel for a stated reason, or failed with an errno.

use libc::c_int;

/// A kernel error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) c_int);

impl Errno {
    /// Sets `errno` and gives the -1 that goes with it.
    pub(crate) fn report(self) -> c_int {
        crate::sys::set_errno(self.0);
        -1
    }
}

/// Why a call goes to the real function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bypass {
    /// No `ARMOR_RUN_DIR`, or switched off.
    Inactive,
    /// Not an IP address of the socket's family.
    NotIp,
    /// Not a TCP socket.
    NotTcp,
    /// The kernel has bound or connected it already, before us or beside us.
    KernelHasIt,
    /// Bound to an address without a port (IP_BIND_ADDRESS_NO_PORT): it will connect.
    NoPort,
    /// Not a socket that an ARMOR made.
    NotProtected,
    /// The unix socket itself has the right answer.
    Native,
    /// The ARMOR serves no such address.
    NotAService,
    /// No ARMOR answers.
    Unreachable,
    /// The ARMOR would not.
    Refused,
}

/// What keeps a hook from having served the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aside {
    /// Call the real function.
    Bypass(Bypass),
    /// Report this error.
    Error(Errno),
}

impl From<Errno> for Aside {
    fn from(errno: Errno) -> Self {
        Self::Error(errno)
    }
}

impl From<Bypass> for Aside {
    fn from(reason: Bypass) -> Self {
        Self::Bypass(reason)
    }
}

/// Result of a hook's logic.
pub(crate) type Detour<T> = Result<T, Aside>;
