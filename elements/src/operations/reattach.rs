//! How connections of a supervised client outlive its process.

use serde::{Deserialize, Serialize};

/// How the next process of a client takes its connections up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReattachPolicy {
    /// It runs from its beginning, and what it does depends on what it reads alone.
    Replay,
    /// It keeps its own position, and goes on at the present.
    Resume,
}

/// Connections that an application has made are not closed when its process fails: they wait for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReattachSpec {
    /// What the next process is given.
    pub policy: ReattachPolicy,
    /// Most bytes that are kept of what a connection's server has said, for `replay`.
    #[serde(default = "default_log_bytes")]
    pub log_bytes: u64,
    /// Most connections that are kept; further ones end with their process.
    #[serde(default = "default_connections")]
    pub connections: u32,
    /// How long they wait for the next process to connect, in ms.
    #[serde(default = "default_within_ms")]
    pub within_ms: u64,
}

impl ReattachSpec {
    /// Most of `connections`.
    pub const MOST_CONNECTIONS: u32 = 1024;

    /// With this policy, and the default of all else.
    #[must_use]
    pub fn of(policy: ReattachPolicy) -> Self {
        ReattachSpec { policy, log_bytes: default_log_bytes(), connections: default_connections(), within_ms: default_within_ms() }
    }

    /// What is wrong with it: the key, and what to write instead.
    ///
    /// # Errors
    /// When no connection could ever be taken up.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, value) in [("log_bytes", self.log_bytes), ("connections", u64::from(self.connections)), ("within_ms", self.within_ms)] {
            if value == 0 {
                return Err((key, format!("{key} is 0, so no connection could be taken up; leave it out for the default")));
            }
        }
        let most = Self::MOST_CONNECTIONS;
        if self.connections > most {
            return Err(("connections", format!("connections is {}, at most {most} are kept for an application", self.connections)));
        }
        Ok(())
    }
}

fn default_log_bytes() -> u64 {
    4 << 20
}
fn default_connections() -> u32 {
    64
}
fn default_within_ms() -> u64 {
    30_000
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::super::ApplicationSpec;
    use super::*;

    fn spec(table: &str) -> Result<ApplicationSpec, toml::de::Error> {
        toml::from_str(&format!("name = \"fetch\"\ncommand = [\"fetch\"]\n[reattach]\n{table}"))
    }

    #[test]
    fn the_policy_alone_is_needed_and_it_comes_over_the_wire() {
        let read = spec("policy = \"replay\"").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(read.reattach, Some(ReattachSpec::of(ReattachPolicy::Replay)));
        assert_eq!(read.check(), Ok(()));
        let wire = rmp_serde::to_vec(&read).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rmp_serde::from_slice::<ApplicationSpec>(&wire).ok(), Some(read));
    }

    #[test]
    fn a_table_with_which_nothing_could_be_taken_up_is_refused() {
        assert!(spec("").is_err() && spec("policy = \"repeat\"").is_err());
        for (table, key) in [
            ("log_bytes = 0", "log_bytes"),
            ("connections = 0", "connections"),
            ("connections = 1025", "connections"),
            ("within_ms = 0", "within_ms"),
        ] {
            let read = spec(&format!("policy = \"resume\"\n{table}")).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(read.check().map_err(|(key, _)| key), Err(format!("reattach.{key}")), "{table}");
        }
    }
}
