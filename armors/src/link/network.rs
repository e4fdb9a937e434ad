//! What is to be emulated: two ends and the links between them, from a link file or from options.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::trace::Trace;

const MOST_LINKS: usize = 16;
/// The kernel's bound for the name of a device.
const LONGEST_NAME: usize = 15;
const LEAST_DEVICE_MTU: u32 = 576;
const DEVICE_MTU: u32 = 1500;

/// One of the two ends of all links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    A,
    B,
}

/// A way over a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    AToB,
    BToA,
}

/// The address of an end, with the length of its network's prefix: `10.77.0.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

impl FromStr for Address {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Address> {
        let about = || format!("{text:?} is no address with a prefix like 10.77.0.1/24");
        let (ip, prefix) = text.split_once('/').with_context(about)?;
        let address = Address { ip: ip.parse().with_context(about)?, prefix: prefix.parse().with_context(about)? };
        let bits = if address.ip.is_ipv4() { 32 } else { 128 };
        ensure!(address.prefix <= bits && !address.ip.is_unspecified() && !address.ip.is_multicast(), about());
        Ok(address)
    }
}

impl TryFrom<String> for Address {
    type Error = anyhow::Error;
    fn try_from(text: String) -> anyhow::Result<Address> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Address {
    /// As a host route: the other end is reached over the device whatever its network is.
    pub(crate) fn host(&self) -> String {
        format!("{}/{}", self.ip, if self.ip.is_ipv4() { 32 } else { 128 })
    }
}

/// A link file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkFile {
    seed: Option<u64>,
    #[serde(default)]
    links: BTreeMap<String, LinkFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkFile {
    /// Of the ends a and b.
    addresses: Option<[Address; 2]>,
    device_mtu: Option<u32>,
    /// Path of a trace, below the link file's directory when it is relative.
    trace: Option<std::path::PathBuf>,
    #[serde(default)]
    both: Settings,
    #[serde(default)]
    a_to_b: Settings,
    #[serde(default)]
    b_to_a: Settings,
}

/// One link, as it starts.
#[derive(Debug)]
pub(crate) struct Link {
    /// Its name, and that of its device at both ends.
    pub(crate) name: String,
    /// Of the ends a and b.
    pub(crate) addresses: [Address; 2],
    pub(crate) device_mtu: u32,
    /// Of the ways a to b and b to a.
    pub(crate) settings: [Settings; 2],
    pub(crate) trace: Option<Trace>,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) seed: Option<u64>,
    /// In the order of their names.
    pub(crate) links: Vec<Link>,
}

impl Network {
    /// One link, `link0`.
    pub(crate) fn of_one(
        settings: &Settings,
        addresses: Option<[Address; 2]>,
        device_mtu: Option<u32>,
        trace: Option<Trace>,
    ) -> anyhow::Result<Network> {
        let file = LinkFile { addresses, device_mtu, both: settings.clone(), ..LinkFile::default() };
        let mut link = link(0, "link0", file, None)?;
        link.trace = trace;
        Ok(Network { seed: None, links: vec![link] })
    }

    /// # Errors
    /// Names the file, and what is wrong in it.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Network> {
        let about = || format!("link file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(about)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Network::parse(&text, directory).with_context(about)
    }

    fn parse(text: &str, directory: &Path) -> anyhow::Result<Network> {
        let file: NetworkFile = toml::from_str(text)?;
        ensure!(
            (1..=MOST_LINKS).contains(&file.links.len()),
            "{} links; 1 to {MOST_LINKS} are possible, [links.NAME] each",
            file.links.len()
        );
        let links = file.links.into_iter().enumerate();
        let links = links.map(|(index, (name, file))| link(index, &name, file, Some(directory)).with_context(|| format!("link {name:?}")));
        Ok(Network { seed: file.seed, links: links.collect::<anyhow::Result<_>>()? })
    }
}

fn link(index: usize, name: &str, file: LinkFile, directory: Option<&Path>) -> anyhow::Result<Link> {
    check_name(name)?;
    ensure!(name != "lo", "the name lo is taken");
    let own = |last| Address { ip: Ipv4Addr::new(10, 77, index as u8, last).into(), prefix: 24 };
    let addresses = file.addresses.unwrap_or([own(1), own(2)]);
    check_pair(&addresses)?;
    let device_mtu = file.device_mtu.unwrap_or(DEVICE_MTU);
    ensure!((LEAST_DEVICE_MTU..=65_535).contains(&device_mtu), "device MTU {device_mtu}: it is from {LEAST_DEVICE_MTU} to 65535");
    let trace = match (&file.trace, directory) {
        (Some(path), Some(directory)) => Some(Trace::read(&directory.join(path))?),
        _ => None,
    };
    let settings = [file.a_to_b.over(file.both.clone()), file.b_to_a.over(file.both)];
    Ok(Link { name: name.to_owned(), addresses, device_mtu, settings, trace })
}

/// # Errors
/// When two addresses cannot be those of the two ends of a link.
pub(crate) fn check_pair([a, b]: &[Address; 2]) -> anyhow::Result<()> {
    ensure!(a.ip != b.ip, "both ends of a link cannot have the address {}", a.ip);
    ensure!(a.ip.is_ipv4() == b.ip.is_ipv4(), "{} and {} are not of one family", a.ip, b.ip);
    Ok(())
}

/// # Errors
/// When it cannot be the name of a device or of a file.
pub(crate) fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if name.is_empty() || name.len() > LONGEST_NAME || name.starts_with('-') || !fits {
        bail!("the name {name:?} cannot be used: 1 to {LONGEST_NAME} letters, digits, - and _");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::link::settings::Share;

    #[test]
    fn the_example_is_read() {
        let network = Network::read(Path::new("../examples/links/roaming.toml")).unwrap();
        assert_eq!(network.links.iter().map(|link| &*link.name).collect::<Vec<_>>(), ["cellular", "wifi"]);
        assert_eq!(network.links[0].addresses[1].to_string(), "10.77.2.2/24");
        assert!(network.links[0].trace.is_some());
        let [there, back] = &network.links[1].settings;
        assert_eq!((there.loss, there.rate == back.rate), (Some(Share(0.01)), false));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            "",
            "[links.\"a/b\"]",
            "[links.wifi]\nspeed = 1",
            "[links.wifi]\naddresses = [\"10.0.0.1/24\", \"10.0.0.1/24\"]",
            "[links.wifi]\naddresses = [\"10.0.0.1/24\", \"fd00::1/64\"]",
            "[links.wifi]\naddresses = [\"10.0.0.1/33\", \"10.0.0.2/24\"]",
            "[links.wifi]\ndevice_mtu = 10",
            "[links.wifi]\ntrace = \"missing\"",
            "[links.wifi.both]\nloss = \"2\"",
            "[links.lo]",
        ] {
            assert!(Network::parse(text, Path::new(".")).is_err(), "{text}");
        }
    }
}
