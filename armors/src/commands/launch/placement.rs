//! `armor launch --migrate`, `--prefer`, `--require`, `--spread`: where a server runs when its node fails.

use armor_elements::operations::ApplicationSpec;

/// Options of `armor launch`.
#[derive(clap::Args)]
pub(super) struct PlacementOptions {
    /// Start it on another node when its own fails [default: true]. Say false for a server whose data lie on its node's disk
    #[arg(long, value_name = "BOOL")]
    migrate: Option<bool>,
    /// Node that is to take it over then; several: the best first
    #[arg(long, value_name = "NODE")]
    prefer: Vec<String>,
    /// Only nodes of which this is said (`armor up --label`)
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::variable)]
    require: Vec<(String, String)>,
    /// Rather not a node with another server of this group
    #[arg(long, value_name = "GROUP")]
    spread: Option<String>,
}

impl PlacementOptions {
    pub(super) fn apply(&self, spec: &mut ApplicationSpec) {
        let placement = &mut spec.placement;
        if let Some(migrate) = self.migrate {
            placement.migrate = migrate;
        }
        if !self.prefer.is_empty() {
            placement.nodes.clone_from(&self.prefer);
        }
        placement.labels.extend(self.require.iter().cloned());
        if self.spread.is_some() {
            placement.spread.clone_from(&self.spread);
        }
    }
}
