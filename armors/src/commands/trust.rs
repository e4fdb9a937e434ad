//! `armor trust`: the list of a network's nodes and their public keys.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use armor_elements::links::security;
use armor_proto::secure::{PublicKey, Trusted};

use crate::keys::KeyPlace;
use crate::output::{self, Table};

/// Longest list that is taken from standard input.
const MAX_INPUT: u64 = 1 << 20;

/// Trust nodes by their public keys, list them, or take them out
///
/// Running daemons take up a changed list by themselves, and close the links of nodes that were taken out.
#[derive(clap::Args)]
pub(crate) struct Trust {
    /// Name of the ARMOR that has the key (ftm, or a daemon's), or - for a list on standard input
    #[arg(value_name = "NAME", required_unless_present_any = ["list", "remove"], conflicts_with_all = ["list", "remove"])]
    name: Option<String>,
    /// Its public key, as `armor keygen` has printed it
    #[arg(value_name = "KEY", conflicts_with_all = ["list", "remove"])]
    key: Option<String>,
    /// Show the list
    #[arg(long, conflicts_with = "remove")]
    list: bool,
    /// Take nodes out of the list
    #[arg(long, value_name = "NAME", num_args = 1..)]
    remove: Vec<String>,
    #[command(flatten)]
    place: KeyPlace,
}

impl Trust {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let directory = self.place.path()?;
        let change = |change: &dyn Fn(&mut Trusted) -> Result<(), String>| {
            security::change_trusted(&directory, |trusted| change(trusted)).map_err(|reason| anyhow!(reason))
        };
        if self.list {
            let mut table = Table::new(&["NODE", "KEY"]);
            for (name, key) in security::read_trusted(&directory).map_err(|reason| anyhow!(reason))?.iter() {
                table.row([name.to_owned(), key.to_string()]);
            }
            output::print(&table.render())?;
            return Ok(ExitCode::SUCCESS);
        }
        if !self.remove.is_empty() {
            change(&|trusted| {
                self.remove.iter().try_for_each(|name| match trusted.remove(name) {
                    Some(_) => Ok(()),
                    None => Err(format!("{name} is not in {}", security::trusted_file(&directory).display())),
                })
            })?;
            return Ok(ExitCode::SUCCESS);
        }
        let added: Vec<(String, PublicKey)> = match (self.name.as_deref(), &self.key) {
            (Some("-"), None) => {
                let mut text = String::new();
                std::io::stdin().take(MAX_INPUT).read_to_string(&mut text).context("standard input")?;
                let list = Trusted::parse(&text).map_err(|error| anyhow!("standard input, {error}"))?;
                if list.is_empty() {
                    bail!("standard input has no line with a name and a key");
                }
                list.iter().map(|(name, key)| (name.to_owned(), key)).collect()
            }
            (Some(name), Some(key)) => vec![(name.to_owned(), key.parse().map_err(|error| anyhow!("the key of {name}: {error}"))?)],
            _ => bail!("give a name and its key, or - to read lines of both from standard input"),
        };
        change(&|trusted| added.iter().try_for_each(|(name, key)| trusted.add(name, *key).map(|_| ()).map_err(|error| error.to_string())))?;
        Ok(ExitCode::SUCCESS)
    }
}
