//! `armor start`: runs one ARMOR in the foreground.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use armor_core::composition::Composition;
use armor_core::element::Setup;
use armor_proto::hookup::ENV_SHIM_PATH;
use armor_proto::ids::ArmorId;

use crate::environment::{ArmorDirectory, Base, Place};
use crate::{compositions, services, shim_library};

/// Run one ARMOR in the foreground
///
/// `armor up` does this for a whole environment; use `start` under an init system or to run a composition of your own.
/// The log goes to stderr; ARMOR_LOG (or RUST_LOG) says how much of it, such as ARMOR_LOG=debug.
#[derive(clap::Args)]
pub(crate) struct Start {
    /// Composition: ftm, daemon, execution, or a TOML file
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
    /// Leave the session of the terminal, as `armor up` needs it
    #[arg(long, hide = true)]
    new_session: bool,
}

fn setting(text: &str) -> Result<(String, String, String), String> {
    text.split_once('=')
        .and_then(|(key, value)| key.split_once('.').map(|(element, key)| (element.to_owned(), key.to_owned(), value.to_owned())))
        .filter(|(element, key, _)| !element.is_empty() && !key.is_empty())
        .ok_or_else(|| "expected ELEMENT.KEY=VALUE, such as daemon_tcp_mgmt.listen=127.0.0.1:7117".to_owned())
}

impl Start {
    pub(crate) fn run(mut self) -> anyhow::Result<ExitCode> {
        if self.new_session {
            // Fails only for a process that leads a session or group already, which is just as well.
            let _ = rustix::process::setsid();
        }
        let composition = self.composition()?;
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
        let claim = directory.claim()?;
        if composition.elements().iter().any(|element| element.starts_with("APP_COMM_")) {
            library_in_environment(&directory)?;
        }
        log_to_stderr();
        armor_core::host::abort_on_panic();
        let setup = Setup {
            armor: ArmorId::of_name(&name),
            name: name.clone(),
            kind: composition.kind().to_owned(),
            run_dir: directory.path().to_path_buf(),
        };
        let kinds = armor_elements::all();
        armor_core::host::run(&composition, &kinds, setup, self.restore, || match claim.ready() {
            Ok(()) => tracing::info!("ARMOR {name} is ready in {}", directory.path().display()),
            Err(error) => tracing::error!("{} cannot be written: {error}", directory.path().display()),
        })?;
        tracing::info!("ARMOR {name} has ended");
        Ok(ExitCode::SUCCESS)
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
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut again = std::process::Command::new("/proc/self/exe");
    again.args(&arguments[1..]).env(ENV_SHIM_PATH, library);
    if let Some(name) = arguments.first() {
        again.arg0(name);
    }
    Err(again.exec()).context("armor cannot execute itself through /proc/self/exe")
}

fn log_to_stderr() {
    use std::io::IsTerminal as _;
    let wanted = ["ARMOR_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_else(|| "info".to_owned());
    let (filter, wrong) = match tracing_subscriber::EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (tracing_subscriber::EnvFilter::new("info"), Some(error)),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    if let Some(error) = wrong {
        tracing::warn!("ARMOR_LOG={wanted:?} is not understood ({error}); logging at info");
    }
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
