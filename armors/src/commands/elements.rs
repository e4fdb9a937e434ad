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
                Some(kind) => describe(kind, &kinds)?,
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

/// In which thread such an element may live.
fn thread(kind: &ElementKind, kinds: &[ElementKind]) -> String {
    if let Some(operation) = kind.takes_messages() {
        return format!("the main one, for it takes messages over ({operation})");
    }
    if kind.keeps_states() {
        return "the main one, for it gives captured states back before any element starts".to_owned();
    }
    let naming = kinds.iter().filter(|other| other.same_thread.contains(&kind.name)).map(|other| other.name);
    let together: Vec<&str> = kind.same_thread.iter().copied().chain(naming).collect();
    let own = "the main one, or with arbiter = true its own";
    if together.is_empty() { own.to_owned() } else { format!("{own}; not its own beside {}", together.join(", ")) }
}

fn describe(kind: &ElementKind, kinds: &[ElementKind]) -> anyhow::Result<String> {
    let names = |list: &[Subscription]| match list {
        [] => "nothing".to_owned(),
        list => list.iter().map(|subscription| subscription.name).collect::<Vec<_>>().join(", "),
    };
    let mut text =
        format!("{}: {}\n\nSubscribes to: {}\nEmits:         {}\n", kind.name, kind.purpose, names(&kind.subscribes), names(&kind.emits));
    writeln!(text, "Thread:        {}", thread(kind, kinds))?;
    if !kind.excludes.is_empty() {
        writeln!(text, "Not beside:    {}", kind.excludes.join(", "))?;
    }
    write!(text, "\nExample:\n\n    [[element]]\n    name = {:?}\n", kind.name)?;
    for line in kind.example.trim().lines() {
        writeln!(text, "    {line}")?;
    }
    Ok(text)
}
