//! Nodes as network namespaces: each has an interface of its own into one bridge, so that a node can be cut off. Needs root, and `ip` and `bridge` of iproute2.
//!
//! Invariant: the namespaces that were made are gone when the network is dropped. Their processes are their owner's to end.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// A node's port at the bridge.
fn port(number: usize) -> String {
    format!("p{number}")
}

/// A network of nodes.
pub(crate) struct Network {
    prefix: String,
    names: Vec<String>,
}

impl Network {
    /// A network with a node of each of these names.
    ///
    /// # Errors
    /// When this user or machine cannot have network namespaces.
    pub(crate) fn make(names: &[&str]) -> anyhow::Result<Network> {
        if !rustix::process::geteuid().is_root() {
            bail!("--placements namespaces needs root, to make network namespaces; run it as root, or take --placements groups");
        }
        let prefix = format!("armor-campaign-{}", std::process::id());
        let mut network = Network { prefix, names: Vec::new() };
        network.add("net")?;
        let bridge = network.namespace("net");
        ip(&["-n", &bridge, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &bridge, "link", "set", "bridge", "up"])?;
        for (number, &name) in names.iter().enumerate() {
            network.add(name)?;
            let (node, port) = (network.namespace(name), port(number));
            ip(&["-n", &node, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &bridge])?;
            ip(&["-n", &bridge, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &node, "address", "add", &format!("{}/24", address(number)), "dev", "eth0"])?;
            ip(&["-n", &node, "link", "set", "lo", "up"])?;
            ip(&["-n", &node, "link", "set", "eth0", "up"])?;
        }
        Ok(network)
    }

    fn add(&mut self, name: &str) -> anyhow::Result<()> {
        let namespace = self.namespace(name);
        // Left over by a process of the same number that was killed.
        let _ = Command::new("ip").args(["netns", "delete", &namespace]).stderr(Stdio::null()).status();
        ip(&["netns", "add", &namespace])?;
        self.names.push(name.to_owned());
        Ok(())
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// What runs a command on a node.
    pub(crate) fn on(&self, name: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(name)]);
        command
    }

    /// The node's address.
    pub(crate) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.number(name).map(address)
    }

    /// Blocks the node's port at the bridge, or opens it again: as in a broken switch, nobody sees a carrier go.
    ///
    /// # Errors
    /// Those of `bridge`.
    pub(crate) fn cut(&self, name: &str, cut: bool) -> anyhow::Result<()> {
        let number = self.number(name).with_context(|| format!("node {name} is not in the network"))?;
        run("bridge", &["-n", &self.namespace("net"), "link", "set", "dev", &port(number), "state", if cut { "0" } else { "3" }])
    }

    fn number(&self, name: &str) -> Option<usize> {
        // The first one is the bridge.
        self.names.iter().skip(1).position(|other| other == name)
    }
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(number).unwrap_or(u8::MAX - 2) + 1)
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.names.iter().rev() {
            let _ = ip(&["netns", "delete", &self.namespace(name)]);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("`{program}` cannot be executed; install iproute2, or take --placements groups"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed: {}; may this machine have network namespaces?", arguments.join(" "), said.trim());
    }
    Ok(())
}
