//! Standbys of a server on other nodes: how many, and how they are doing.

use serde::{Deserialize, Serialize};

use super::{LaunchId, Placement};

/// Other nodes that hold an instance of a server inside its first `bind`, for the failure of its own; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StandbyElsewhere(pub u32);

impl StandbyElsewhere {
    /// Most nodes that hold one for an application.
    pub const MOST: u32 = 4;

    /// What is wrong with it: the key, and what to write instead.
    ///
    /// # Errors
    /// When there would be too many, or the application may run nowhere else.
    pub fn check(self, placement: &Placement) -> Result<(), (&'static str, String)> {
        let key = "standby_elsewhere";
        if self.0 > Self::MOST {
            let most = Self::MOST;
            return Err((key, format!("{key} is {}, at most {most} nodes hold one; each costs the memory of the whole program", self.0)));
        }
        if self.0 > 0 && !placement.migrate {
            return Err((
                key,
                format!("{key} needs placement.migrate = true: a standby on another node is for a server that may run there"),
            ));
        }
        Ok(())
    }
}

/// How a standby on a node is doing, as its overseer says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldState {
    /// It is on its way to its bind, or is about to be started again.
    Starting,
    /// It has come to its bind.
    Waiting,
    /// This node does not hold it (any more), and why.
    Refused(String),
}

/// A standby that an overseer was told to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTold {
    /// Of which launch.
    pub launch: LaunchId,
    /// By which order.
    pub number: u64,
    /// How it is doing.
    pub state: HoldState,
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::super::ApplicationSpec;

    #[test]
    fn it_is_off_by_default_bounded_and_only_for_what_may_move() {
        let refused = |lines: &str| {
            let spec: ApplicationSpec =
                toml::from_str(&format!("name = \"web\"\ncommand = [\"web\"]\n{lines}\n")).unwrap_or_else(|error| panic!("{error}"));
            spec.check().err().map(|(key, _)| key)
        };
        let key = Some("standby_elsewhere".to_owned());
        for (lines, expected) in [
            ("", None),
            ("standby_elsewhere = 0\n[placement]\nmigrate = false", None),
            ("standby = 16\nstandby_elsewhere = 4", None),
            ("standby_elsewhere = 5", key.clone()),
            ("standby_elsewhere = 1\n[placement]\nmigrate = false", key),
        ] {
            assert_eq!(refused(lines), expected, "{lines}");
        }
    }
}
