//! Sockets towards applications: where they ask to be hooked up (thesis §4.2: the message queues) and where their bytes flow
//! (thesis §4.2: the named pipes), in today's form.

mod application_socket;
mod crowd;
pub mod descriptors;
mod hookup_listener;
mod keeping;
mod named_sockets;
mod port;
mod probe;
mod process_fate;
mod process_group;
mod process_stat;
mod proxy;
mod refusals;
mod remembered;
mod series;
mod server_table;
mod settings;
mod socket_options;
mod spill;
mod taken;
pub mod tcp;
mod transcript;
mod unread_byte;
mod watched;

pub use application_socket::{ApplicationSocket, Ending, Read, Reading, Watch};
pub use crowd::Crowd;
pub use hookup_listener::{Asked, HookupListener, ReplyTo};
pub use keeping::{Handed, Keeping};
pub use named_sockets::{ClientPair, Pending, client_pair, dial, listener_is_gone, source_address_for};
pub use port::{Drained, End, Note, Port, Turn};
pub use probe::{Next, Outcome, Probe, Want, ask};
pub use process_fate::{is_exiting, watch_process};
pub use process_group::{Activity, Member, Processes};
pub use process_stat::Stat;
pub use proxy::{Proxy, how_ended};
pub use refusals::{answer_late, refuse};
pub use remembered::Remembered;
pub use series::Series;
pub use server_table::ServerTable;
pub use settings::{connection_config, policy};
pub use socket_options::{ConnectionOptions, fresh_socket, get_option_for, set_option_for};
pub(crate) use socket_options::{get_option, let_bind_choose_a_port};
pub use spill::{SharedFile, SpillFile};
pub use taken::{is_accepted, unread};
pub use transcript::TranscriptFile;
pub use unread_byte::Whereabouts;
pub use watched::watched as watched_descriptor;

/// Reads of an application's socket are made into buffers of this size.
pub const READ_SIZE: usize = 128 * 1024;

/// Most connections that `armor status` lists of an element: all of them might not fit into one message.
pub const LISTED: usize = 1000;

/// Most connections that an element deals with at once when something happens to all of a service's. Then others have a turn, so that
/// heartbeats are answered meanwhile.
pub const AT_ONCE: usize = 256;
