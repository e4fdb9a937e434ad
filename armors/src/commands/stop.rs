//! `armor stop`: ends a supervised application for good.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use armor_elements::operations::{AppStop, AppStopped, UninstallArmor};

use crate::client::Client;
use crate::environment::{Base, Place};
use crate::output;
use crate::survey::Survey;

/// Stop an application that `armor launch` started
///
/// It is asked to end (SIGTERM), then killed, and not started again; its clients see an orderly end or a reset.
#[derive(clap::Args)]
pub(crate) struct Stop {
    /// Name of the application
    name: String,
    /// Node where it runs, when several have one of this name
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    place: Place,
}

impl Stop {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let base = Base::of(&self.place)?;
        let name = &self.name;
        let survey = Survey::take(&base)?;
        let overseers: Vec<_> = survey
            .overseers(name)
            .into_iter()
            .filter(|found| self.node.as_ref().is_none_or(|node| found.name.split('/').next() == Some(node)))
            .collect();
        let overseer = match &overseers[..] {
            [] => bail!("no application {name:?} is supervised here; `armor status{}` lists them", base.option()),
            [only] => *only,
            several => {
                let names: Vec<_> = several.iter().map(|found| &*found.name).collect();
                bail!("application {name:?} runs under {}; choose a node with --node", names.join(", "))
            }
        };
        let mut client = Client::attach(&base.entrance()?)?;
        client.send(overseer.armor, AppStop { name: name.clone() })?;
        let stopped: AppStopped = client.wait(Duration::from_secs(15)).with_context(|| format!("{name} under {}", overseer.name))?;
        if !stopped.error.is_empty() {
            bail!("{name} under {}: {}", overseer.name, stopped.error);
        }
        // An Execution ARMOR that was installed for this application alone has nothing left to do.
        if let Some((node, own)) = overseer.name.split_once('/')
            && own == name
        {
            client.send(armor_proto::ids::ArmorId::of_name(node), UninstallArmor { name: own.to_owned() })?;
        }
        output::print(&format!("{name}: stopped\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
