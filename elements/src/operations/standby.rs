//! How many instances of a server wait for its failure.

use serde::{Deserialize, Serialize};

/// Further instances of a server that are started ahead and held inside their first `bind`; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StandbyCount(pub u32);

impl StandbyCount {
    /// Most of one application.
    pub const MOST: u32 = 16;

    /// What is wrong with it: the key, and what to write instead.
    ///
    /// # Errors
    /// When there would be too many.
    pub fn check(self) -> Result<(), (&'static str, String)> {
        if self.0 > Self::MOST {
            let reason = format!("standby is {}, at most {} are started; each costs the memory of the whole program", self.0, Self::MOST);
            return Err(("standby", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::super::ApplicationSpec;
    use super::*;

    #[test]
    fn it_is_off_by_default_and_bounded() {
        let spec = |line: &str| -> ApplicationSpec {
            toml::from_str(&format!("name = \"web\"\ncommand = [\"web\"]\n{line}\n")).unwrap_or_else(|error| panic!("{error}"))
        };
        assert_eq!(spec("").standby, StandbyCount(0));
        assert_eq!((spec("standby = 16").standby, spec("standby = 16").check()), (StandbyCount(16), Ok(())));
        assert_eq!(spec("standby = 17").check().map_err(|(key, _)| key), Err("standby".to_owned()));
        assert!(toml::from_str::<ApplicationSpec>("name = \"web\"\ncommand = [\"web\"]\nstandby = -1").is_err());
    }
}
