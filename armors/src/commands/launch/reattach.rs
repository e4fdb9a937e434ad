//! Options of `armor launch` for clients whose connections outlive their process.

use std::time::Duration;

use armor_elements::operations::{ApplicationSpec, ReattachPolicy, ReattachSpec};

use super::{milliseconds, seconds};

#[derive(clap::Args)]
pub(super) struct ReattachOptions {
    /// Connections that it makes wait for its next process when it fails, instead of being closed [default: they are closed]
    #[arg(long, value_enum, value_name = "HOW")]
    reattach: Option<ReattachName>,
    /// How long they wait for it to connect [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    reattach_within: Option<Duration>,
    /// With replay: most bytes kept of what a server has said on a connection [default: 4194304]
    #[arg(long, value_name = "BYTES")]
    reattach_log: Option<u64>,
    /// Most connections that are kept [default: 64]
    #[arg(long, value_name = "N")]
    reattach_connections: Option<u32>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ReattachName {
    /// It is told again all that its servers have said, and what it says again is dropped: for programs that run from their beginning
    /// and do the same when they read the same
    Replay,
    /// It goes on at the present: for programs that keep their own position
    Resume,
}

impl ReattachOptions {
    /// Puts them into a spec, over what a service file says.
    pub(super) fn apply(&self, spec: &mut ApplicationSpec) -> anyhow::Result<()> {
        if let Some(name) = self.reattach {
            let policy = match name {
                ReattachName::Replay => ReattachPolicy::Replay,
                ReattachName::Resume => ReattachPolicy::Resume,
            };
            spec.reattach.get_or_insert(ReattachSpec::of(policy)).policy = policy;
        }
        let Some(reattach) = &mut spec.reattach else {
            if self.reattach_within.is_some() || self.reattach_log.is_some() || self.reattach_connections.is_some() {
                anyhow::bail!("{}: give --reattach replay or --reattach resume too, or [reattach] in the service file", spec.name);
            }
            return Ok(());
        };
        reattach.within_ms = self.reattach_within.map_or(reattach.within_ms, milliseconds);
        reattach.log_bytes = self.reattach_log.unwrap_or(reattach.log_bytes);
        reattach.connections = self.reattach_connections.unwrap_or(reattach.connections);
        Ok(())
    }
}
