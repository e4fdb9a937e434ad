//! `armor gateway`: an address for clients that cannot load the preload library.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use armor_elements::operations::{ArmorReady, InstallArmor};
use armor_proto::ids::ArmorId;

use crate::client::Client;
use crate::environment::{ArmorDirectory, Base, Place};
use crate::survey::{element, entries, text};
use crate::{compositions, output, services};

/// How long the ARMOR may take to start.
const PATIENCE: Duration = Duration::from_secs(15);

/// Let clients that cannot load the preload library reach a protected service, over plain TCP
///
/// For browsers, other operating systems, static programs: their connections too outlive crashes of the server, its daemon and its node. An ARMOR of its
/// own listens; `armor stop NAME` ends it. Who can reach the address can use the service: it is loopback unless --listen says otherwise.
#[derive(clap::Args)]
pub(crate) struct Gateway {
    /// Where clients connect; a port alone is one of loopback
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = address)]
    listen: SocketAddr,
    /// The service that they reach: its name, wherever it runs, or an address that it serves
    #[arg(long, value_name = "NAME|ADDR:PORT")]
    service: String,
    /// Which port of the service, when it serves several [default: the lowest]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Name of the gateway, unique on its node [default: gateway-PORT]
    #[arg(long)]
    name: Option<String>,
    /// Node where it listens [default: the only one, or node1]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// How long a client waits for the service when that is not there, in seconds; then its connection is reset [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = super::launch::seconds)]
    wait: Option<Duration>,
    /// The service need not be there yet
    #[arg(long)]
    later: bool,
    #[command(flatten)]
    place: Place,
}

/// `8080` or `0.0.0.0:8080`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<u16>().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).or_else(|_| text.parse());
    let address = address.map_err(|_| "expected a port or an address, such as 8080 or 0.0.0.0:8080".to_owned())?;
    if address.port() == 0 { Err("port 0 is none; name the one that clients connect to".to_owned()) } else { Ok(address) }
}

impl Gateway {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let name = self.name.clone().unwrap_or_else(|| format!("gateway-{}", self.listen.port()));
        services::check_name(&name).map_err(|reason| anyhow!("--name: {reason}"))?;
        let base = Base::of(&self.place)?;
        let daemon = base.node(self.node.as_deref())?;
        let mut client = Client::attach(&daemon)?;
        let serves = self.look_for_service(&mut client, &base)?;
        let composition = self.composition()?;
        let file = write(&daemon, &name, &composition)?;
        client.send(daemon.armor(), InstallArmor { name: name.clone(), composition: services::utf8(file.clone())?, number: 0 })?;
        let ready: ArmorReady = client.wait(PATIENCE).with_context(|| format!("gateway {name} on {}", daemon.name))?;
        if !ready.error.is_empty() {
            // What has never run leaves nothing that the next try would stumble over.
            let _ = std::fs::remove_file(&file);
            bail!("gateway {name} cannot be started on {}: {}", daemon.name, ready.error);
        }
        let towards = serves.map_or_else(|| "is not there yet".to_owned(), |address| format!("serves {address}"));
        output::print(&format!(
            "{name}: listens at {} on {} for {}, which {towards}\nlog: {}/armor.log\n",
            self.listen, daemon.name, self.service, ready.run_dir
        ))?;
        Ok(ExitCode::SUCCESS)
    }

    /// The address that the service serves now. An unknown one is an error unless it may come later.
    fn look_for_service(&self, client: &mut Client, base: &Base) -> anyhow::Result<Option<String>> {
        let statuses = client.statuses(&[ArmorId::FTM], Duration::from_secs(2))?;
        let Some(ftm) = statuses.get(&ArmorId::FTM) else {
            if self.later {
                return Ok(None);
            }
            bail!("the FTM does not answer, so nothing is known of service {}; try again, or use --later", self.service);
        };
        let rows = entries(&element(ftm, "APP_SERVER_DB")["servers"]);
        let asked = self.service.parse::<SocketAddr>().ok();
        let is_it = |address: &SocketAddr, service: &str| match asked {
            // Which addresses a wildcard address stands for the FTM knows.
            Some(asked) => *address == asked || address.ip().is_unspecified() && address.port() == asked.port(),
            None => service == self.service && self.port.is_none_or(|port| port == address.port()),
        };
        let serving = rows.iter().filter_map(|row| Some((text(&row["address"]).parse::<SocketAddr>().ok()?, text(&row["service"]))));
        let mut serving: Vec<SocketAddr> =
            serving.filter(|(address, service)| is_it(address, service)).map(|(address, _)| address).collect();
        serving.sort_by_key(|address| (address.port(), address.ip()));
        match serving.first() {
            Some(address) => Ok(Some(address.to_string())),
            None if self.later => Ok(None),
            None => {
                let port = self.port.map_or_else(String::new, |port| format!(" at port {port}"));
                bail!(
                    "no service {}{port} is there; `armor status{}` lists them, and --later lets it come later",
                    self.service,
                    base.option()
                )
            }
        }
    }

    /// The built-in composition with the listener that was asked for.
    fn composition(&self) -> anyhow::Result<String> {
        let mut composition: toml::Table = toml::from_str(compositions::GATEWAY).context("the built-in composition gateway")?;
        let elements = composition.get_mut("element").and_then(toml::Value::as_array_mut);
        let own = elements.into_iter().flatten().filter_map(toml::Value::as_table_mut);
        for element in own.filter(|element| element.get("name").and_then(toml::Value::as_str) == Some("tcp_gateway")) {
            let mut listener = toml::Table::new();
            listener.insert("listen".to_owned(), self.listen.to_string().into());
            listener.insert("service".to_owned(), self.service.clone().into());
            if let Some(port) = self.port {
                listener.insert("port".to_owned(), i64::from(port).into());
            }
            element.insert("listeners".to_owned(), vec![toml::Value::Table(listener)].into());
            if let Some(wait) = self.wait {
                let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
                element.insert("wait_ms".to_owned(), wait_ms.into());
            }
        }
        toml::to_string(&composition).context("the composition of the gateway")
    }
}

/// Where the daemon finds the composition as long as the gateway lives.
fn write(daemon: &ArmorDirectory, name: &str, composition: &str) -> anyhow::Result<PathBuf> {
    let directory = daemon.path().join("gateways");
    let file = directory.join(format!("{name}.toml"));
    let runs = daemon.installed().into_iter().any(|(armor, _)| armor.name == format!("{}/{name}", daemon.name));
    if runs && std::fs::read_to_string(&file).ok().as_deref() != Some(composition) {
        bail!(
            "{name} runs already on {}, and is not what is asked for; stop it first (armor stop {name}), or choose another --name",
            daemon.name
        );
    }
    std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&file, composition)).with_context(|| file.display().to_string())?;
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gateway: Gateway,
    }

    #[test]
    fn what_is_asked_for_is_a_composition() {
        let line = ["gateway", "--listen", "8080", "--service", "web", "--port", "443", "--wait", "1.5"];
        let gateway = Line::try_parse_from(line).unwrap().gateway;
        let composition = gateway.composition().unwrap();
        armor_core::composition::Composition::parse("it", &composition, &armor_elements::all()).unwrap();
        for expected in ["listen = \"127.0.0.1:8080\"", "service = \"web\"", "port = 443", "wait_ms = 1500"] {
            assert!(composition.contains(expected), "{expected} is not in\n{composition}");
        }
    }

    #[test]
    fn addresses_are_ports_of_loopback_or_whole() {
        assert_eq!(address("80"), Ok(([127, 0, 0, 1], 80).into()));
        assert_eq!(address("0.0.0.0:80"), Ok(([0, 0, 0, 0], 80).into()));
        assert!(address("0").is_err() && address("web").is_err() && address("[::1]:0").is_err());
    }
}
