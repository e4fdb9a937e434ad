//! Service files: one [`ApplicationSpec`] in TOML.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use armor_elements::operations::ApplicationSpec;
pub(crate) use armor_elements::operations::check_name;

/// Reads a service file; paths in it start at its own directory.
pub(crate) fn read(path: &Path) -> anyhow::Result<ApplicationSpec> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| anyhow!("{}: cannot be read: {error}; a command to launch goes after `--`", path.display()))?;
    let mut spec = parse(&path.display().to_string(), &text)?;
    let own = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let own = own.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    if let Some(directory) = &spec.directory {
        spec.directory = Some(utf8(own.join(directory))?);
    }
    if let Some(program) = spec.command.first_mut()
        && program.contains('/')
    {
        *program = utf8(own.join(&*program))?;
    }
    Ok(spec)
}

/// Parses and checks a service file; `file` is for error messages.
///
/// # Errors
/// `file:line:column: what is wrong`.
pub(crate) fn parse(file: &str, text: &str) -> anyhow::Result<ApplicationSpec> {
    let spec: ApplicationSpec = toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        anyhow!("{file}:{line}:{column}: {}", error.message())
    })?;
    let at = |key: &str| {
        // Tables have keys of the same name: it is looked for from its own table on.
        let (table, key) = key.rsplit_once('.').map_or((None, key), |(table, key)| (Some(format!("[{table}]")), key));
        let begins = table.and_then(|table| text.lines().position(|line| line.trim_start().starts_with(&table))).unwrap_or(0);
        let says = |line: &str| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
        text.lines().skip(begins).position(says).map_or(begins + 1, |line| begins + line + 1)
    };
    if let Err((key, reason)) = spec.check() {
        let line = at(&key);
        bail!("{file}:{line}:1: {reason}");
    }
    Ok(spec)
}

/// Line and column, from 1, of a byte offset.
pub(crate) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or_default();
    (before.matches('\n').count() + 1, before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1)
}

/// Paths travel as text.
pub(crate) fn utf8(path: PathBuf) -> anyhow::Result<String> {
    path.into_os_string().into_string().map_err(|path| anyhow!("{} is not UTF-8: rename it", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_found_in_its_own_table() {
        let text = "name = \"a\"\ncommand = [\"a\"]\n[ready]\nexpect = \"x\"\ninterval_ms = 5\n[health]\nfailures = 2\ninterval_ms = 0\n";
        let error = parse("a.toml", text).map_or_else(|error| error.to_string(), |_| String::new());
        assert!(error.starts_with("a.toml:8:1: health.interval_ms: interval_ms is 0; "), "{error}");
        let error = parse("a.toml", &text.replace("failures = 2\ninterval_ms = 0", "port = 80"))
            .map_or_else(|error| error.to_string(), |_| String::new());
        assert!(error.starts_with("a.toml:7:1: health.port: "), "{error}");
    }
}
