//! Lists the element files: `src/app_comm_client.rs` holds the element `AppCommClient`. A file without its element does not
//! compile, so a new element is one new file.

use std::fmt::Write as _;
use std::path::PathBuf;

/// Files in `src/` that are no elements.
const OTHERS: &[&str] = &["lib", "operations"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("src");
    println!("cargo::rerun-if-changed={}", source.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&source)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
            && !OTHERS.contains(&name)
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    let mut code = String::new();
    for name in &names {
        writeln!(code, "#[path = {:?}]\npub mod {name};", source.join(format!("{name}.rs")))?;
    }
    writeln!(
        code,
        "/// Every element of this crate, by file name.\n#[must_use]\npub fn all() -> Vec<armor_core::element::ElementKind> {{\n    vec!["
    )?;
    for name in &names {
        writeln!(code, "        armor_core::element::ElementKind::of::<{name}::{}>(),", camel(name))?;
    }
    writeln!(code, "    ]\n}}")?;
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("elements.rs"), code)?;
    Ok(())
}

fn camel(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
        })
        .collect()
}
