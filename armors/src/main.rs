//! The `armor` program: runs ARMORs, protects programs with them and shows what they do (thesis §3.2.2, §4).
//!
//! One file per subcommand in `commands`; [`environment`] knows the run directories, [`client`] speaks to a gateway,
//! [`survey`] asks every ARMOR for its state, [`shim_library`] carries the preload library.
//!
//! Invariant: exit statuses are those of `EXIT_STATUS`; a message on stderr says what happened, to which thing, what to do.

mod bench;
mod campaign;
mod client;
mod commands;
mod compositions;
mod demo;
mod ending;
mod environment;
mod free_address;
mod interrupt;
mod keys;
mod link;
mod log;
mod output;
mod own_vault;
mod program;
mod recovery;
mod services;
mod shim_library;
mod survey;
mod transport;

use std::process::ExitCode;

use clap::Parser;

const EXIT_STATUS: &str = "\
Exit status: 0 done; 1 failed; 2 wrong usage; 3 no ARMOR environment runs; 4 not in time. \
`armor run` ends with the status of the program it runs, 126 when it cannot be executed, 127 when it is not found.

The run directory of the environment is --run-dir, else $ARMOR_BASE_DIR, else $XDG_RUNTIME_DIR/armor, else /run/armor (root) or \
/tmp/armor-<uid>.";

/// Keeps TCP clients connected while their servers crash, restart or move. Neither has to be changed.
#[derive(Parser)]
#[command(name = "armor", version, after_help = EXIT_STATUS, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    match command.run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("armor: {error:#}");
            ExitCode::from(error.downcast_ref::<environment::NotUp>().map_or(1, |_| 3))
        }
    }
}
