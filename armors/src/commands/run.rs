//! `armor run`: a program whose connections are protected, in the foreground.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, bail};
use armor_elements::operations::{ArmorReady, InstallArmor, UninstallArmor};
use armor_proto::hookup::{ENV_RUN_DIR, ENV_SHIM_PATH};

use crate::client::Client;
use crate::environment::{ArmorDirectory, Base, Place};
use crate::program::{self, Found};
use crate::shim_library;

/// Run a program with protected connections, in place of this one
///
/// A client's connections to launched servers outlive the servers' crashes. The program is not changed and not supervised.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// Node whose daemon protects it [default: the only one, or node1]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Protect it by an ARMOR process of its own, installed for as long as it runs
    #[arg(long)]
    execution_armor: bool,
    #[command(flatten)]
    place: Place,
    /// The program and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let name = PathBuf::from(&self.command[0]);
        match program::find(&name) {
            Found::At(path) => warn_if_unprotected(&path),
            Found::Forbidden(path) => return Ok(refuse(126, &format!("{} is not executable", path.display()))),
            Found::Missing => return Ok(refuse(127, &format!("{}: command not found", name.display()))),
        }
        let base = Base::of(&self.place)?;
        let daemon = base.node(self.node.as_deref())?;
        let library = shim_library::install(base.path())?;
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .env("LD_PRELOAD", shim_library::preload(std::env::var_os("LD_PRELOAD"), &library))
            .env(ENV_SHIM_PATH, &library)
            .env(ENV_RUN_DIR, daemon.path());
        if self.execution_armor {
            return under_own_armor(&daemon, command);
        }
        let error = command.exec();
        Ok(refuse(126, &format!("{} cannot be executed: {error}", name.display())))
    }
}

fn refuse(status: u8, message: &str) -> ExitCode {
    eprintln!("armor: {message}");
    ExitCode::from(status)
}

/// Says on stderr that a program is beyond the reach of the preload library.
pub(super) fn warn_if_unprotected(path: &Path) {
    if let Some(why) = program::why_unprotected(path) {
        eprintln!("armor: warning: {why}; its connections are not protected");
    }
}

fn under_own_armor(daemon: &ArmorDirectory, mut command: Command) -> anyhow::Result<ExitCode> {
    let name = format!("run-{}", std::process::id());
    let mut client = Client::attach(daemon)?;
    let ready = install(&mut client, daemon, &name)?;
    let status = command.env(ENV_RUN_DIR, &ready.run_dir).status();
    client.send(daemon.armor(), UninstallArmor { name, number: 0 })?;
    let status = status.context("the command cannot be executed")?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Installs an Execution ARMOR on a node.
pub(super) fn install(client: &mut Client, daemon: &ArmorDirectory, name: &str) -> anyhow::Result<ArmorReady> {
    client.send(daemon.armor(), InstallArmor { name: name.to_owned(), composition: "execution".to_owned(), number: 0 })?;
    let ready: ArmorReady = client.wait(Duration::from_secs(15)).with_context(|| format!("Execution ARMOR {name} on {}", daemon.name))?;
    if !ready.error.is_empty() {
        bail!("Execution ARMOR {name} cannot be installed on {}: {}", daemon.name, ready.error);
    }
    Ok(ready)
}
