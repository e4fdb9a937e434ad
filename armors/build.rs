//! Builds the shim and puts it beside the program's objects, so that `armor` carries its preload library in itself.
//!
//! `ARMOR_SHIM_LIBRARY=/path/libarmor_shim.so` takes a library that was built elsewhere (packagers, cross builds).

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    println!("cargo::rerun-if-env-changed=ARMOR_SHIM_LIBRARY");
    for watched in ["../shim/src", "../shim/Cargo.toml", "../armor-core/proto/src", "../armor-core/proto/Cargo.toml", "build.rs"] {
        println!("cargo::rerun-if-changed={}", here.join(watched).display());
    }
    let library = match std::env::var_os("ARMOR_SHIM_LIBRARY") {
        Some(path) => PathBuf::from(path),
        None => build(&here.join("../shim/Cargo.toml"), &out.join("shim"))?,
    };
    std::fs::copy(&library, out.join("libarmor.so")).map_err(|error| format!("the preload library {}: {error}", library.display()))?;
    Ok(())
}

fn build(manifest: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = std::env::var("TARGET")?;
    let mut cargo = Command::new(std::env::var("CARGO")?);
    cargo.args(["build", "--release", "--package", "armor-shim", "--locked", "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(target_dir).args(["--target", &target]);
    // What cargo sets for this build (flags of a sanitizer, clippy as a wrapper, features) is not meant for the library.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let disturbs = name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_MANIFEST_")
            || ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"]
                .contains(&&*name)
            || ["CLIPPY_ARGS", "RUSTC", "RUSTDOC", "OUT_DIR", "TARGET", "HOST", "PROFILE", "DEBUG", "OPT_LEVEL"].contains(&&*name);
        if disturbs {
            cargo.env_remove(&*name);
        }
    }
    if !cargo.status()?.success() {
        return Err("the preload library (crate armor-shim) does not build; see the messages above".into());
    }
    Ok(target_dir.join(target).join("release/libarmor_shim.so"))
}
