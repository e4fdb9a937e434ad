//! Runs one ARMOR from a composition that may have the elements of this crate beside those of ARMOR.
//!
//!     flow-meter meter-daemon.toml --name meter --run-dir /run/armor/meter

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use armor_core::composition::Composition;
use armor_core::element::Setup;
use armor_proto::ids::ArmorId;
use clap::Parser;

/// Runs one ARMOR that may have a flow_meter
#[derive(Parser)]
struct Arguments {
    /// Composition, a TOML file
    composition: PathBuf,
    /// Name of the ARMOR, unique in its network
    #[arg(long, default_value = "meter")]
    name: String,
    /// Directory of this ARMOR for sockets, logs and captured state
    #[arg(long)]
    run_dir: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    armor_core::host::abort_on_panic();
    let kinds = flow_meter::kinds();
    let composition = Composition::read(&arguments.composition, &kinds)?;
    let run_dir = std::path::absolute(&arguments.run_dir)?;
    let _lock = claim(&run_dir).with_context(|| format!("run directory {}", run_dir.display()))?;
    let ready = run_dir.join("ready");
    let setup = Setup {
        armor: ArmorId::of_name(&arguments.name),
        name: arguments.name,
        kind: composition.kind().to_owned(),
        run_dir: run_dir.clone(),
    };
    let ended = armor_core::host::run(&composition, &kinds, setup, false, || {
        if let Err(error) = std::fs::write(&ready, format!("{}\n", std::process::id())) {
            eprintln!("{}: {error}", ready.display());
        }
    });
    let _ = std::fs::remove_file(run_dir.join("ready"));
    let _ = std::fs::remove_file(run_dir.join("pid"));
    Ok(ended?)
}

/// Locks `pid` in the run directory: the `armor` program takes an ARMOR whose pid file is locked for a living one.
fn claim(run_dir: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(run_dir)?;
    let mut file = File::options().write(true).create(true).truncate(false).open(run_dir.join("pid"))?;
    file.try_lock().context("another ARMOR runs there")?;
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}
