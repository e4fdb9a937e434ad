//! Where in the network an application may run when its node fails (thesis §4.5.4): a service file says it, the FTM follows it.

use std::collections::BTreeMap;

use armor_proto::hookup::Endpoint;
use serde::{Deserialize, Serialize};

/// One launch of an application: the same over all its lives, restarts and nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaunchId(pub u64);

/// Key and value, as a node says them of itself (`armor up --label zone=a`).
pub type Labels = BTreeMap<String, String>;

/// An address that a server had bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedAddress {
    /// With the port that it got.
    pub address: Endpoint,
    /// It had asked for port 0.
    pub any_port: bool,
}

/// Which node takes an application over when its own fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// It may run elsewhere. A server whose data lie on one node's disk wants `false`: it goes on when its node is back.
    #[serde(default = "default_migrate")]
    pub migrate: bool,
    /// Nodes that are preferred, the best first.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// It runs on no others.
    #[serde(default)]
    pub only_preferred: bool,
    /// What a node's labels must say.
    #[serde(default)]
    pub labels: Labels,
    /// Name of a group of applications that are rather not together on one node.
    #[serde(default)]
    pub spread: Option<String>,
}

impl Default for Placement {
    fn default() -> Self {
        let (nodes, only_preferred, labels, spread) = Default::default();
        Placement { migrate: default_migrate(), nodes, only_preferred, labels, spread }
    }
}

fn default_migrate() -> bool {
    true
}

impl Placement {
    /// Most nodes and labels.
    pub const MOST: usize = 64;

    /// What is wrong with it: the key, and what to write instead.
    ///
    /// # Errors
    /// When it cannot be followed.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let most = Self::MOST;
        if self.nodes.len() > most {
            return Err(("nodes", format!("nodes names {} nodes, at most {most} are taken", self.nodes.len())));
        }
        if self.nodes.iter().any(String::is_empty) {
            return Err(("nodes", "nodes has an empty name; write the names that `armor status` shows".to_owned()));
        }
        if self.only_preferred && self.nodes.is_empty() {
            return Err(("only_preferred", "only_preferred needs nodes: name at least one, or leave it out".to_owned()));
        }
        check_labels(&self.labels).map_err(|reason| ("labels", reason))?;
        if self.spread.as_ref().is_some_and(|group| group.is_empty() || group.len() > 64) {
            return Err(("spread", "spread is the name of a group, 1 to 64 bytes".to_owned()));
        }
        if !self.migrate && *self != (Placement { migrate: false, ..Placement::default() }) {
            return Err(("migrate", "migrate = false leaves nothing to choose: leave out nodes, labels and spread, or migrate".to_owned()));
        }
        Ok(())
    }
}

/// What is wrong with labels, of a service or of a node.
///
/// # Errors
/// When there are too many, or one is empty or too long.
pub fn check_labels(labels: &Labels) -> Result<(), String> {
    let most = Placement::MOST;
    if labels.len() > most {
        return Err(format!("there are {} labels, at most {most} are taken", labels.len()));
    }
    match labels.iter().find(|(key, value)| key.is_empty() || key.len() > 64 || value.len() > 64) {
        Some((key, _)) => Err(format!("label {key:?}: a key has 1 to 64 bytes, a value at most 64")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(toml: &str) -> Option<&'static str> {
        toml::from_str::<Placement>(toml).unwrap().check().err().map(|(key, _)| key)
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_its_key() {
        for (toml, key) in [
            ("", None),
            ("migrate = false", None),
            ("nodes = [\"a\"]\nonly_preferred = true\nlabels = { zone = \"a\" }\nspread = \"shop\"", None),
            ("only_preferred = true", Some("only_preferred")),
            ("nodes = [\"\"]", Some("nodes")),
            ("spread = \"\"", Some("spread")),
            ("labels = { \"\" = \"a\" }", Some("labels")),
            ("migrate = false\nspread = \"shop\"", Some("migrate")),
        ] {
            assert_eq!(refused(toml), key, "{toml}");
        }
        assert!(toml::from_str::<Placement>("node = \"a\"").is_err(), "an unknown key");
    }
}
