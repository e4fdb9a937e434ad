//! Where the keys of this machine's ARMORs are, and what `armor up` tells its ARMORs about them.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use armor_elements::links::security;

use crate::services;
use crate::transport::Transport;

/// Which keys a command is about.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct KeyPlace {
    /// Directory of keys and of the list of trusted nodes [default: /etc/armor/keys (root), $XDG_CONFIG_HOME/armor/keys or ~/.config/armor/keys]
    #[arg(long = "keys", value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl KeyPlace {
    /// The directory that was asked for, or the default one.
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.directory {
            return std::path::absolute(path).with_context(|| format!("--keys {}", path.display()));
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/etc/armor/keys"));
        }
        let configuration = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        configuration.map(|path| path.join("armor/keys")).context("neither XDG_CONFIG_HOME nor HOME is set; give the directory with --keys")
    }
}

/// What protects the links of ARMORs that are started.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Protection {
    #[command(flatten)]
    place: KeyPlace,
    /// Links beyond this machine without encryption and authentication: for networks that nobody else is on
    #[arg(long, conflicts_with = "directory")]
    insecure: bool,
}

impl Protection {
    /// The settings for ARMORs of these names whose links are at these addresses. Links beyond this machine have keys unless it was said that they
    /// have none; links inside it have them when a directory was given.
    ///
    /// # Errors
    /// When a key is missing or cannot be read.
    pub(crate) fn settings(&self, names: &[&str], addresses: &[&str], transport: Transport) -> anyhow::Result<Vec<String>> {
        let beyond = addresses.iter().any(|address| !security::is_loopback(address));
        if self.insecure {
            return Ok(if beyond { transport.settings("insecure", |_| "true".to_owned()) } else { Vec::new() });
        }
        if self.place.directory.is_none() && !beyond {
            return Ok(Vec::new());
        }
        let directory = self.place.path()?;
        let trusted = security::read_trusted(&directory).map_err(|reason| anyhow!(reason))?;
        for name in names {
            let keys = security::read_key(&directory, name).map_err(|reason| {
                anyhow!("links beyond this machine are encrypted: {reason}, or say --insecure on a network that nobody else is on")
            })?;
            if let Some(other) = trusted.key(name).filter(|key| *key != keys.public()) {
                bail!("{} has {other} for {name}, whose key here is {}", security::trusted_file(&directory).display(), keys.public());
            }
        }
        let directory = toml::Value::String(services::utf8(directory)?).to_string();
        Ok(transport.settings("keys", |_| directory.clone()))
    }
}
