//! The command line of a vault: `PROGRAM vault --name NAME --run-dir DIR [--new-session] [--adopt PID] -- PROGRAM ARGUMENTS…`.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Command;

/// Whether a vault, and with it its ARMOR, leaves the session of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// For what runs in the background.
    New,
    /// For what somebody has started at a terminal.
    Same,
}

/// A vault for an ARMOR that is to be started as `program` with these arguments.
#[must_use]
pub fn command(program: &Path, name: &str, run_dir: &Path, session: Session, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.args(["vault", "--name", name, "--run-dir"]).arg(run_dir);
    if session == Session::New {
        command.arg("--new-session");
    }
    command.arg("--").arg(program).args(arguments);
    command
}

/// Another vault for this very process, an ARMOR whose own vault is lost. To be spawned by it.
///
/// It kills what is left of the lost one. All owners have to reconnect, and to keep everything again.
///
/// # Errors
/// When the path of this program is not known.
pub fn replacement(name: &str, run_dir: &Path) -> io::Result<Command> {
    let program = std::env::current_exe()?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let first = command(&program, name, run_dir, Session::New, &arguments);
    let mut replacement = Command::new(&program);
    replacement.args(["vault", "--adopt", &std::process::id().to_string()]).args(first.get_args().skip(1));
    Ok(replacement)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn arguments(command: &Command) -> Vec<String> {
        command.get_args().map(|argument| argument.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_vault_starts_the_armor_with_its_own_arguments() {
        let start = ["start", "ftm"].map(OsString::from);
        let vault = command(Path::new("/bin/armor"), "ftm", Path::new("/run/ftm"), Session::Same, &start);
        assert_eq!(arguments(&vault).join(" "), "vault --name ftm --run-dir /run/ftm -- /bin/armor start ftm");
        let own = std::env::current_exe().unwrap();
        let vault = replacement("node1", Path::new("/run/node1")).unwrap();
        assert_eq!(vault.get_program(), own);
        let expected = format!("vault --adopt {} --name node1 --run-dir /run/node1 --new-session -- {}", std::process::id(), own.display());
        let expected: Vec<String> = expected.split(' ').map(str::to_owned).chain(std::env::args().skip(1)).collect();
        assert_eq!(arguments(&vault), expected);
    }
}
