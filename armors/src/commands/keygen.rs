//! `armor keygen`: key pairs for the ARMORs of this machine.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use armor_elements::links::security;

use crate::keys::KeyPlace;
use crate::output;

/// Make key pairs for the FTM and daemons of this machine, and print their public keys
///
/// The private key goes into NAME.key, which is its user's alone and is never overwritten; the public one into the list of trusted nodes beside it, and
/// to standard output as a line for the lists of other nodes: `armor keygen node2 | ssh first-node armor trust -`.
#[derive(clap::Args)]
pub(crate) struct Keygen {
    /// Names of ARMORs with links to other nodes: ftm, and the names of daemons (armor up --node)
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    place: KeyPlace,
}

impl Keygen {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let directory = self.place.path()?;
        let mut text = String::new();
        for name in &self.names {
            let line = security::change_trusted(&directory, |trusted| {
                if let Some(known) = trusted.key(name) {
                    return Err(format!("{name} has the key {known} in the list; take it out with `armor trust --remove {name}` first"));
                }
                let public = security::make_key(&directory, name)?.public();
                trusted.add(name, public).map_err(|error| error.to_string())?;
                Ok(format!("{name} {public}"))
            });
            match line {
                Ok(line) => writeln!(text, "{line}")?,
                Err(reason) if text.is_empty() => return Err(anyhow!(reason)),
                // What was made is told all the same.
                Err(reason) => {
                    output::print(&text)?;
                    bail!(reason);
                }
            }
        }
        output::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
