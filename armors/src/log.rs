//! The log of an ARMOR and of its vault, on stderr.

use std::io::IsTerminal as _;

/// Logs as much as ARMOR_LOG (or RUST_LOG) says.
pub(crate) fn to_stderr() {
    let wanted = ["ARMOR_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_else(|| "info".to_owned());
    let (filter, wrong) = match tracing_subscriber::EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (tracing_subscriber::EnvFilter::new("info"), Some(error)),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // Where a line cannot be written (the disk is full) neither can a word about that: trying to would be a panic.
    log.log_internal_errors(false).init();
    if let Some(error) = wrong {
        tracing::warn!("ARMOR_LOG={wanted:?} is not understood ({error}); logging at info");
    }
}
