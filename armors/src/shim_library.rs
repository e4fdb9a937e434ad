//! The preload library that the program carries in itself (thesis §4.1), and putting it where applications can load it.

use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libarmor.so"));
const FILE: &str = "libarmor.so";

/// Writes the library to `directory/libarmor.so` when it is missing or another one.
pub(crate) fn install(directory: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(directory.join(FILE)).context("the working directory is gone")?;
    if path.as_os_str().as_bytes().iter().any(|byte| b" :\t\n".contains(byte)) {
        bail!(
            "{} cannot hold the preload library: the loader takes a space or colon in LD_PRELOAD for the end of a path; choose \
             another directory with --run-dir",
            directory.display()
        );
    }
    if !is_current(&path) {
        // A program that is being started must find the old file or the new one, whole.
        let fresh = directory.join(format!(".{FILE}.{}", std::process::id()));
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o700)
            .open(&fresh)
            .and_then(|mut file| file.write_all(LIBRARY))
            .and_then(|()| std::fs::rename(&fresh, &path));
        if let Err(error) = written {
            let _ = std::fs::remove_file(&fresh);
            return Err(error).with_context(|| format!("the preload library cannot be written to {}", path.display()));
        }
    }
    Ok(path)
}

/// Whether the file is the library of this very program.
pub(crate) fn is_current(path: &Path) -> bool {
    // In pieces: each start of an ARMOR compares, and memory for the whole of it costs more than reading it.
    let same = || -> std::io::Result<bool> {
        let mut file = std::fs::File::open(path)?;
        let (mut piece, mut rest) = ([0; 32 << 10], LIBRARY);
        loop {
            let got = file.read(&mut piece)?;
            match rest.split_at_checked(got) {
                Some((expected, after)) if got > 0 && *expected == piece[..got] => rest = after,
                _ => return Ok(got == 0 && rest.is_empty()),
            }
        }
    };
    same().unwrap_or(false)
}

/// LD_PRELOAD with `library` at its end, once.
pub(crate) fn preload(present: Option<OsString>, library: &Path) -> OsString {
    let present = without(present, library.as_os_str());
    let mut list = present.unwrap_or_default();
    if !list.is_empty() {
        list.push(":");
    }
    list.push(library);
    list
}

/// LD_PRELOAD without the library; `None` when nothing is left.
pub(crate) fn without(present: Option<OsString>, library: &OsStr) -> Option<OsString> {
    let present = present?.into_vec();
    let rest: Vec<&[u8]> =
        present.split(|byte| b" :".contains(byte)).filter(|entry| !entry.is_empty() && *entry != library.as_bytes()).collect();
    (!rest.is_empty()).then(|| OsString::from_vec(rest.join(&b':')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_library_is_appended_once() {
        let library = Path::new("/run/armor/libarmor.so");
        assert_eq!(preload(None, library), "/run/armor/libarmor.so");
        assert_eq!(preload(Some("/run/armor/libarmor.so /a.so".into()), library), "/a.so:/run/armor/libarmor.so");
    }

    #[test]
    fn the_library_is_written_whole_and_only_when_it_differs() {
        let directory = tempfile::tempdir().unwrap();
        let path = install(directory.path()).unwrap();
        let written = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert!(is_current(&path));
        install(directory.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written);
        std::fs::write(&path, "old").unwrap();
        install(directory.path()).unwrap();
        assert!(is_current(&path));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_the_loader_would_misread_is_refused() {
        let message = install(Path::new("/a b")).unwrap_err().to_string();
        assert!(message.starts_with("/a b cannot hold the preload library"), "{message}");
    }
}
