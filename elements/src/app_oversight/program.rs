//! How the programs of an application are started: its own, and those that probe it.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use armor_proto::hookup::{ENV_RUN_DIR, ENV_SHIM_PATH};
use armor_vault::ENV_VAULT;
use tokio::process::Command;

use crate::endpoints::descriptors;
use crate::operations::ApplicationSpec;

/// A program under the shim, in the application's environment and directory and in a process group of its own; what it says goes behind what is in the log.
pub(super) fn protected(spec: &ApplicationSpec, command: &[String], run_dir: &Path, log: &Path) -> Result<Command, String> {
    let (program, arguments) = command.split_first().ok_or("the command is empty")?;
    let open = || {
        let log_file = File::options().create(true).append(true).open(log);
        log_file.map_err(|error| format!("log file {}: {error}", log.display()))
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(&spec.environment).env(ENV_RUN_DIR, run_dir).env_remove(ENV_VAULT);
    if let Ok(shim) = std::env::var(ENV_SHIM_PATH) {
        let preload = std::env::var("LD_PRELOAD").ok().filter(|other| !other.is_empty() && *other != shim);
        command.env("LD_PRELOAD", preload.map_or_else(|| shim.clone(), |other| format!("{other}:{shim}")));
    }
    if let Some(directory) = &spec.directory {
        command.current_dir(directory);
    }
    command.stdin(Stdio::null()).stdout(open()?).stderr(open()?).process_group(0);
    descriptors::with_usual_limit(command.as_std_mut());
    Ok(command)
}
