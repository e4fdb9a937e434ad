//! `armor stop`: ends a supervised application for good.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use armor_elements::operations::{AppStop, AppStopped, UninstallArmor};
use armor_proto::ids::ArmorId;

use crate::client::Client;
use crate::environment::{Base, Place};
use crate::output;
use crate::survey::{Found, Survey, element, entries};

/// Stop an application that `armor launch` started, or a gateway
///
/// It is asked to end (SIGTERM), then killed, and not started again; its clients see an orderly end or a reset.
#[derive(clap::Args)]
pub(crate) struct Stop {
    /// Name of the application or of the gateway
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
            [] => return self.gateway(&base, &survey),
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
            client.send(ArmorId::of_name(node), UninstallArmor { name: own.to_owned(), number: 0 })?;
        }
        output::print(&format!("{name}: stopped\n"))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Ends a gateway of this name; its clients are reset.
    fn gateway(&self, base: &Base, survey: &Survey) -> anyhow::Result<ExitCode> {
        let name = &self.name;
        let is_it = |found: &&Found| {
            let installed = found.name.split_once('/').filter(|(_, own)| own == name);
            installed.is_some_and(|(node, _)| self.node.as_ref().is_none_or(|asked| asked == node))
                && found.status.as_ref().is_some_and(|status| status["kind"] == "gateway")
        };
        let gateways: Vec<&str> = survey.armors.iter().filter(is_it).filter_map(|found| found.name.split('/').next()).collect();
        let node = match &gateways[..] {
            [] => bail!(
                "no application {name:?} is supervised here; nor is there a gateway of that name: `armor status{}` lists them",
                base.option()
            ),
            [only] => *only,
            several => bail!("gateways {name:?} are on {}; choose a node with --node", several.join(", ")),
        };
        let mut client = Client::attach(&base.entrance()?)?;
        client.send(ArmorId::of_name(node), UninstallArmor { name: name.clone(), number: 0 })?;
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            let statuses = client.statuses(&[ArmorId::of_name(node)], Duration::from_secs(2))?;
            let Some(status) = statuses.get(&ArmorId::of_name(node)) else { continue };
            if entries(&element(status, "armor_installer")["installed"]).iter().all(|installed| installed["name"] != **name) {
                output::print(&format!("{name}: stopped\n"))?;
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("gateway {name} has not ended on {node} in time; look at its log")
    }
}
