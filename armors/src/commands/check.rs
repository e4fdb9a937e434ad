//! `armor check`: compositions and service files, without running them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use armor_core::composition::Composition;
use armor_elements::operations::{AppLaunched, AppStopped, ArmorReady, Events};
use armor_proto::operation::Operation;

use crate::{compositions, output, services};

/// Answers that the `armor` program hears, not an element.
const HEARD_BY_THE_PROGRAM: &[&str] = &[AppLaunched::NAME, AppStopped::NAME, ArmorReady::NAME, Events::NAME];

/// Check compositions and service files
///
/// Errors name file, line and column. Warned is of operations that an element sends and none hears, in these files and the built-in
/// compositions.
#[derive(clap::Args)]
pub(crate) struct Check {
    /// Compositions or service files, in TOML
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Check {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let kinds = armor_elements::all();
        let mut status = ExitCode::SUCCESS;
        let mut compositions = Vec::new();
        let mut text = String::new();
        for file in &self.files {
            match self::file(file) {
                Ok(Checked::Composition(composition)) => {
                    let count = composition.elements().len();
                    text.push_str(&format!("{}: ok, composition of kind {} with {count} elements\n", file.display(), composition.kind()));
                    compositions.push(composition);
                }
                Ok(Checked::Service(name)) => text.push_str(&format!("{}: ok, service {name}\n", file.display())),
                Err(error) => {
                    eprintln!("{error:#}");
                    status = ExitCode::FAILURE;
                }
            }
        }
        if !compositions.is_empty() {
            // The ARMORs that these ones will meet.
            let mut together: Vec<Composition> = compositions::BUILT_IN
                .iter()
                .filter(|(kind, _)| compositions.iter().all(|composition| composition.kind() != *kind))
                .filter_map(|(kind, _)| compositions::read(Path::new(kind)).ok())
                .collect();
            together.append(&mut compositions);
            for warning in Composition::unheard(&together.iter().collect::<Vec<_>>(), &kinds) {
                if !HEARD_BY_THE_PROGRAM.iter().any(|name| warning.0.split(' ').any(|word| word == *name)) {
                    text.push_str(&format!("warning: {}\n", warning.0));
                }
            }
        }
        output::print(&text)?;
        Ok(status)
    }
}

enum Checked {
    Composition(Composition),
    Service(String),
}

fn file(path: &Path) -> anyhow::Result<Checked> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| anyhow::anyhow!("{name}:1:1: cannot be read: {error}"))?;
    // A service file has a command; everything else is told what is wrong with it as a composition.
    let keys: Vec<String> =
        toml::from_str::<toml::Table>(&text).map(|table| table.into_iter().map(|(key, _)| key).collect()).unwrap_or_default();
    let is = |key: &str| keys.iter().any(|present| present == key);
    if !is("element") && !is("armor") && (is("command") || is("name")) {
        return Ok(Checked::Service(services::parse(&name, &text)?.name));
    }
    Ok(Checked::Composition(Composition::parse(&name, &text, &armor_elements::all())?))
}
