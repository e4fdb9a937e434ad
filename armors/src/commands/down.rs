//! `armor down`: ends the environment of this machine.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::ending::Ending;
use crate::environment::{ArmorDirectory, Base, Place};
use crate::output;

/// Stop the environment: applications, daemons, then the FTM
///
/// Only what runs on this machine is stopped. Logs and captured state stay in the run directory.
#[derive(clap::Args)]
pub(crate) struct Down {
    /// How long an ARMOR may take before it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    patience: u64,
    #[command(flatten)]
    place: Place,
}

impl Down {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let base = Base::of(&self.place)?;
        let patience = Duration::from_secs(self.patience);
        let present = base.present();
        if present.is_empty() {
            output::print(&format!("Nothing runs in {}.\n", base.path().display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = String::new();
        // Daemons stop the ARMORs that they installed; what is left of those (their daemon was dead) comes next.
        end(present.iter().filter(|armor| armor.name != "ftm" && !armor.name.contains('/')), patience, &mut text)?;
        end(base.present().iter().filter(|armor| armor.name != "ftm"), patience, &mut text)?;
        end(base.present().iter(), patience, &mut text)?;
        for armor in &present {
            armor.remove_sockets();
        }
        output::print(&text)?;
        if let Some(armor) = base.present().first() {
            bail!("ARMOR {} could not be ended", armor.name);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn end<'a>(armors: impl Iterator<Item = &'a ArmorDirectory>, patience: Duration, text: &mut String) -> anyhow::Result<()> {
    let asked: Vec<_> = armors.filter_map(|armor| Ending::begin(armor).map(|ending| (armor, ending))).collect();
    let deadline = Instant::now() + patience;
    for (armor, ending) in asked {
        writeln!(text, "{}: {}", armor.name, ending.finish(deadline))?;
    }
    Ok(())
}
