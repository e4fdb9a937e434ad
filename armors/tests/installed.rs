//! The program alone, as `cargo install` leaves it: somewhere else, with nothing of the source tree in sight.
#![allow(clippy::unwrap_used, clippy::panic)]

mod environment;

use std::path::Path;
use std::process::{Command, Stdio};

use environment::{compile_to, free_port, text};

const SCRIPT: &str = r#"
set -e
mount -t tmpfs tmpfs "$SOURCE"
test -z "$(ls -A "$SOURCE")"
cd "$PLACE"
armor() { subcommand=$1; shift; "$PLACE/bin/armor" "$subcommand" --run-dir "$PLACE/run" "$@"; }
trap 'armor down' EXIT
armor up
armor launch --name echo -- "$PLACE/epoll_echo_server" "$PORT"
armor run -- "$PLACE/echo_client" "$PORT" 20 1
armor status
armor stop echo
"#;

#[test]
fn the_program_needs_nothing_but_itself() {
    let place = tempfile::tempdir().unwrap();
    let bin = place.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    // By another process: what this one has open for writing, a program that another test is just starting would hold open too.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_armor")).arg(&bin).status().unwrap().success());
    for program in ["epoll_echo_server", "echo_client"] {
        compile_to(&place.path().join(program), program);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "sh", "-c", SCRIPT]).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command.env("SOURCE", source).env("PLACE", place.path()).env("PORT", free_port().to_string());
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "in a mount namespace of its own (this needs root, or user namespaces): {said}");
    for expected in ["The environment is up.", "echo: launched on node1, ", "connected\n", "echo: stopped\n", "node1: stopped"] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    assert!(place.path().join("run/libarmor.so").exists());
}
