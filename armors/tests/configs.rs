//! Every file in `configs/` is what the program takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

#[test]
fn every_configuration_passes_the_check() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut checked = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new(env!("CARGO_BIN_EXE_armor")).arg("check").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.starts_with(&format!("{}: ok, ", path.display())), "{said}");
        assert!(!said.contains("warning"), "{said}");
        checked += 1;
    }
    assert!(checked >= 5, "only {checked} configurations in {}", directory.display());
}

#[test]
fn built_in_compositions_are_the_files() {
    for name in ["ftm", "daemon", "execution", "gateway"] {
        // A composition is read before anything else, so a wrong setting shows that it was found and understood.
        let output = Command::new(env!("CARGO_BIN_EXE_armor"))
            .args(["start", name, "--run-dir", "/proc/none", "--set", "nothing.here=1"])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = format!("armor: <built-in {name}>:1:1: cannot set nothing.here: no element \"nothing\" in this composition\n");
        assert_eq!(said, expected);
    }
}
