//! `armor start`: runs one ARMOR in the foreground.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, anyhow};
use armor_core::composition::Composition;
use armor_core::element::Setup;
use armor_proto::hookup::ENV_SHIM_PATH;
use armor_proto::ids::ArmorId;
use armor_vault::{ENV_VAULT, Session};

use crate::environment::{ArmorDirectory, Base, Place};
use crate::transport;
use crate::{compositions, log, own_vault, services, shim_library};

/// Run one ARMOR in the foreground
///
/// `armor up` does this for a whole environment; use `start` under an init system or to run a composition of your own.
/// This process becomes the ARMOR's vault: it starts the ARMOR, starts it again with --restore when it dies, passes SIGTERM and SIGINT on, and ends
/// with its status.
/// The log goes to stderr; ARMOR_LOG (or RUST_LOG) says how much of it, such as ARMOR_LOG=debug.
#[derive(clap::Args)]
pub(crate) struct Start {
    /// Composition: ftm, daemon, execution, gateway, or a TOML file
    config: PathBuf,
    /// Name, unique in the network [default: ftm for an FTM, node1 for a daemon, else the file's name]
    #[arg(long)]
    name: Option<String>,
    /// Directory of this ARMOR for sockets, state and its log [default: NAME in the environment's run directory]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Set a key of an element, such as daemon_tcp_mgmt.listen=127.0.0.1:7117
    #[arg(long = "set", value_name = "ELEMENT.KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String, String)>,
    /// Gateway socket of the daemon (short for --set armor_gateway.daemon=SOCK)
    #[arg(long, value_name = "SOCK")]
    daemon: Option<PathBuf>,
    /// Give the elements the state back that was captured in an earlier life in the same directory
    #[arg(long)]
    restore: bool,
    /// Run the ARMOR in this very process, without a vault: nothing starts it again when it dies. So it is with --daemon in any case: the
    /// daemon does
    #[arg(long)]
    no_vault: bool,
}

fn setting(text: &str) -> Result<(String, String, String), String> {
    text.split_once('=')
        .and_then(|(key, value)| key.split_once('.').map(|(element, key)| (element.to_owned(), key.to_owned(), value.to_owned())))
        .filter(|(element, key, _)| !element.is_empty() && !key.is_empty())
        .ok_or_else(|| "expected ELEMENT.KEY=VALUE, such as daemon_tcp_mgmt.listen=127.0.0.1:7117".to_owned())
}

impl Start {
    pub(crate) fn run(mut self) -> anyhow::Result<ExitCode> {
        let mut composition = self.composition()?;
        let name = match self.name.take() {
            Some(name) => name,
            None => self.default_name(&composition),
        };
        name.split('/').try_for_each(services::check_name).map_err(|reason| anyhow!("--name: {reason}"))?;
        let run_dir = match &self.run_dir {
            Some(path) => std::path::absolute(path).with_context(|| format!("run directory {}", path.display()))?,
            None => Base::of(&Place { run_dir: None })?.armor(&name).path().to_path_buf(),
        };
        let directory = ArmorDirectory::at(&name, run_dir);
        let hooks_up = composition.elements().iter().any(|element| element.starts_with("APP_COMM_"));
        self.under_vault(&directory, hooks_up)?;
        if self.restore && composition.kind() == "ftm" {
            self.listen_where_it_was(&directory);
            composition = self.composition()?;
        }
        let claim = directory.claim()?;
        if hooks_up {
            library_in_environment(&directory)?;
        }
        log::to_stderr();
        armor_core::host::abort_on_panic();
        let setup = Setup {
            armor: ArmorId::of_name(&name),
            name: name.clone(),
            kind: composition.kind().to_owned(),
            run_dir: directory.path().to_path_buf(),
        };
        let kinds = armor_elements::all();
        armor_core::host::run(&composition, &kinds, setup, self.restore, || {
            match claim.ready() {
                Ok(()) => tracing::info!("ARMOR {name} is ready in {}", directory.path().display()),
                Err(error) => tracing::error!("{} cannot be written: {error}", directory.path().display()),
            }
            if self.daemon.is_none() && !self.no_vault {
                tokio::task::spawn_local(own_vault::watch(directory.clone()));
            }
        })?;
        tracing::info!("ARMOR {name} has ended");
        Ok(ExitCode::SUCCESS)
    }

    /// Sees to it that this process runs under the vault that it should have; if not it becomes another one and does not come back.
    fn under_vault(&self, directory: &ArmorDirectory, hooks_up: bool) -> anyhow::Result<()> {
        let present = std::env::var_os(ENV_VAULT);
        let own = present.as_deref() == Some(directory.vault_socket().as_os_str());
        // An installed ARMOR is watched by its daemon; what it keeps it keeps in the vault of its node.
        if own || self.daemon.is_some() {
            return Ok(());
        }
        if hooks_up && directory.pid().is_none() && directory.vault().is_none() {
            // A vault that has it gives it to all lives of its ARMOR, so that none has to execute itself once more.
            directory.prepare()?;
            library_in_environment(directory)?;
        }
        if !self.no_vault {
            let program = std::env::current_exe().context("the path of the armor program is unknown")?;
            let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
            let mut vault = armor_vault::command(&program, &directory.name, directory.path(), Session::Same, &arguments);
            return Err(vault.exec()).with_context(|| format!("{} cannot be executed", program.display()));
        }
        directory.refuse_under_vault()?;
        match present {
            // Of another ARMOR, for example of the one whose application this is.
            Some(_) => Err(execute_again(|command| command.env_remove(ENV_VAULT))),
            None => Ok(()),
        }
    }

    /// An FTM that comes back takes the port again at which daemons look for it, when it was free to choose.
    fn listen_where_it_was(&mut self, directory: &ArmorDirectory) {
        for name in transport::ELEMENTS {
            let before: Option<SocketAddr> = directory.link_address(name).and_then(|address| address.parse().ok());
            let listen = self.settings.iter_mut().rfind(|(element, key, _)| element == name && key == "listen");
            if let (Some(before), Some((_, _, listen))) = (before, listen)
                && let Ok(mut address) = listen.parse::<SocketAddr>()
                && address.port() == 0
            {
                address.set_port(before.port());
                *listen = address.to_string();
            }
        }
    }

    fn composition(&self) -> anyhow::Result<Composition> {
        let mut settings = self.settings.clone();
        if let Some(socket) = &self.daemon {
            let socket = services::utf8(std::path::absolute(socket).context("--daemon")?)?;
            settings.push(("armor_gateway".to_owned(), "daemon".to_owned(), toml::Value::String(socket).to_string()));
        }
        let composition = compositions::read(&self.config)?;
        if settings.is_empty() { Ok(composition) } else { Ok(composition.with_settings(&settings, &armor_elements::all())?) }
    }

    fn default_name(&self, composition: &Composition) -> String {
        match composition.kind() {
            "ftm" => "ftm".to_owned(),
            "daemon" => "node1".to_owned(),
            _ => self.config.file_stem().map_or_else(|| "armor".to_owned(), |stem| stem.to_string_lossy().into_owned()),
        }
    }
}

/// Elements learn from the environment where the preload library is. A process cannot safely change its own environment,
/// so it executes itself once more with the right one.
fn library_in_environment(directory: &ArmorDirectory) -> anyhow::Result<()> {
    let present = std::env::var_os(ENV_SHIM_PATH).map(PathBuf::from);
    if present.is_some_and(|path| shim_library::is_current(&path)) {
        return Ok(());
    }
    let library = shim_library::install(directory.path())?;
    Err(execute_again(|command| command.env(ENV_SHIM_PATH, library)))
}

/// Executes this program once more, with the same arguments and another environment.
fn execute_again(environment: impl FnOnce(&mut Command) -> &mut Command) -> anyhow::Error {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut again = Command::new("/proc/self/exe");
    again.args(arguments.iter().skip(1));
    environment(&mut again);
    if let Some(name) = arguments.first() {
        again.arg0(name);
    }
    anyhow::Error::new(again.exec()).context("armor cannot execute itself through /proc/self/exe")
}

#[cfg(test)]
mod tests {
    use super::setting;

    #[test]
    fn a_setting_names_an_element_a_key_and_a_value() {
        let owned = |a: &str, b: &str, c: &str| Ok((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(setting("daemon_tcp_mgmt.listen=127.0.0.1:0"), owned("daemon_tcp_mgmt", "listen", "127.0.0.1:0"));
        assert_eq!(setting("e.key=a=b.c"), owned("e", "key", "a=b.c"));
        assert!(setting("listen=127.0.0.1:0").is_err());
        assert!(setting(".a=1").is_err());
    }
}
