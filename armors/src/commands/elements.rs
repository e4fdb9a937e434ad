//! `armor elements`: what compositions can be made of.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use armor_core::element::{ElementKind, Subscription};

use crate::output::{self, Table};

/// List the elements that compositions are made of
#[derive(clap::Args)]
pub(crate) struct Elements {
    /// Show everything about this element
    name: Option<String>,
}

impl Elements {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let kinds = armor_elements::all();
        let text = match &self.name {
            None => list(&kinds),
            Some(name) => match kinds.iter().find(|kind| kind.name.eq_ignore_ascii_case(name)) {
                Some(kind) => describe(kind)?,
                None => bail!("unknown element {name:?}; `armor elements` lists all of them"),
            },
        };
        output::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn list(kinds: &[ElementKind]) -> String {
    let mut table = Table::new(&["ELEMENT", "PURPOSE"]);
    for kind in kinds {
        table.row([kind.name.to_owned(), kind.purpose.to_owned()]);
    }
    table.render()
}

fn describe(kind: &ElementKind) -> anyhow::Result<String> {
    let names = |list: &[Subscription]| match list {
        [] => "nothing".to_owned(),
        list => list.iter().map(|subscription| subscription.name).collect::<Vec<_>>().join(", "),
    };
    let mut text =
        format!("{}: {}\n\nSubscribes to: {}\nEmits:         {}\n", kind.name, kind.purpose, names(&kind.subscribes), names(&kind.emits));
    match kind.takes_messages() {
        Some(operation) => writeln!(text, "Thread:        the main one, for it takes messages over ({operation})")?,
        None => writeln!(text, "Thread:        the main one, or with arbiter = true its own")?,
    }
    if !kind.excludes.is_empty() {
        writeln!(text, "Not beside:    {}", kind.excludes.join(", "))?;
    }
    write!(text, "\nExample:\n\n    [[element]]\n    name = {:?}\n", kind.name)?;
    for line in kind.example.trim().lines() {
        writeln!(text, "    {line}")?;
    }
    Ok(text)
}
