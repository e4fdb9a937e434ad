//! The compositions that come with the program, and reading others.

use std::path::Path;

use armor_core::composition::Composition;

/// Name and text of each built-in composition.
pub(crate) const BUILT_IN: &[(&str, &str)] = &[
    ("ftm", include_str!("../../configs/ftm.toml")),
    ("daemon", include_str!("../../configs/daemon.toml")),
    ("ftm-udp", include_str!("../../configs/ftm-udp.toml")),
    ("daemon-udp", include_str!("../../configs/daemon-udp.toml")),
    ("ftm-both", include_str!("../../configs/ftm-both.toml")),
    ("daemon-both", include_str!("../../configs/daemon-both.toml")),
    ("execution", include_str!("../../configs/execution.toml")),
    ("gateway", GATEWAY),
];

/// What `armor gateway` puts its own listener into.
pub(crate) const GATEWAY: &str = include_str!("../../configs/gateway.toml");

/// A composition by built-in name or path. A file called `ftm` in the working directory is reached as `./ftm`.
pub(crate) fn read(name_or_path: &Path) -> anyhow::Result<Composition> {
    let kinds = armor_elements::all();
    let built_in = BUILT_IN.iter().find(|(name, _)| Path::new(name) == name_or_path);
    Ok(match built_in {
        Some((name, text)) => Composition::parse(&format!("<built-in {name}>"), text, &kinds)?,
        None => Composition::read(name_or_path, &kinds).map_err(|error| match name_or_path.exists() {
            true => anyhow::Error::new(error),
            false => anyhow::anyhow!(
                "{error}; built-in compositions are ftm and daemon (with -udp or -both behind for links over UDP too), execution and gateway"
            ),
        })?,
    })
}
