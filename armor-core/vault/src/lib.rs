//! The vault: a process that starts an ARMOR, starts it again when it dies, and keeps the descriptors that must outlive it.
//!
//! [`run`] is the vault: one thread, one `poll`, no runtime. `line.rs` is a connection of an ARMOR, `kept.rs` the descriptors, `life.rs` the ARMOR's
//! process, `exits.rs` how orphans of the ARMOR ended; `message.rs` is what is said. [`Keeper`] is the side of the ARMOR, `command.rs` the command line.
//!
//! Invariant: a descriptor whose [`Keeper::keep`] has returned outlives the process that kept it, whenever that is killed.
//! Invariant: nothing that is said to the vault ends it, blocks it or makes it grow without a bound.

mod command;
mod datagram;
mod exits;
mod keeper;
mod kept;
mod life;
mod line;
pub mod message;
mod vault;

pub use command::{Session, command, replacement};
pub use keeper::{Handed, Keeper, Notice, VaultError};
pub use life::{Found, Settings};
pub use message::Exited;
pub use vault::run;

/// Environment variable that tells an ARMOR, and the ARMORs that it installs, where their vault is.
pub const ENV_VAULT: &str = "ARMOR_VAULT";
