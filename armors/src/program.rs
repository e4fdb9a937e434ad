//! What kind of program is about to be run: whether the preload library will be in it.
//!
//! Invariant: reads at most a few kilobytes of a file and believes none of its numbers.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Where a command is, as a shell would find it.
pub(crate) enum Found {
    At(PathBuf),
    /// There, but not executable.
    Forbidden(PathBuf),
    Missing,
}

/// Looks a program up in PATH, unless its name has a slash.
pub(crate) fn find(name: &Path) -> Found {
    let candidates: Vec<PathBuf> = if name.as_os_str().as_encoded_bytes().contains(&b'/') {
        vec![name.to_path_buf()]
    } else {
        std::env::var_os("PATH")
            .map(|path| std::env::split_paths(&path).map(|directory| directory.join(name)).collect())
            .unwrap_or_default()
    };
    let mut forbidden = None;
    for candidate in candidates {
        let Ok(metadata) = candidate.metadata() else { continue };
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            return Found::At(candidate);
        }
        forbidden.get_or_insert(candidate);
    }
    forbidden.map_or(Found::Missing, Found::Forbidden)
}

/// Why the preload library will not be in the program, if so.
pub(crate) fn why_unprotected(program: &Path) -> Option<String> {
    let mut program = program.to_path_buf();
    // A script's interpreter may be a script.
    for _ in 0..4 {
        let file = File::open(&program).ok()?;
        let metadata = file.metadata().ok()?;
        let foreign = (metadata.mode() & 0o4000 != 0 && metadata.uid() != rustix::process::geteuid().as_raw())
            || (metadata.mode() & 0o2010 == 0o2010 && metadata.gid() != rustix::process::getegid().as_raw());
        let name = program.display();
        if foreign {
            return Some(format!("{name} is setuid or setgid: the loader ignores LD_PRELOAD for it"));
        }
        let mut start = [0; 256];
        let got = file.read_at(&mut start, 0).ok()?;
        if let Some(line) = start[..got].strip_prefix(b"#!") {
            program = interpreter(line)?;
            continue;
        }
        return elf(&file).map(|why| format!("{name} {why}"));
    }
    None
}

fn interpreter(line: &[u8]) -> Option<PathBuf> {
    let line = String::from_utf8_lossy(line.split(|&byte| byte == b'\n').next()?).into_owned();
    let mut words = line.split_whitespace();
    let program = PathBuf::from(words.next()?);
    if program.file_name().is_some_and(|name| name == "env") {
        let named = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
        return match find(Path::new(named)) {
            Found::At(path) => Some(path),
            _ => None,
        };
    }
    Some(program)
}

const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

fn elf(file: &File) -> Option<String> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    // Class and byte order, both of this very machine.
    if header[4] != 2 || header[5] != if cfg!(target_endian = "big") { 2 } else { 1 } {
        return Some("is no 64-bit program of this machine: the preload library is".to_owned());
    }
    let (table, size, count) = (u64_at(&header, 32)?, u64::from(u16_at(&header, 54)?), u16_at(&header, 56)?);
    let (mut interpreted, mut go) = (false, false);
    for index in 0..u64::from(count.min(128)) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, table.checked_add(index * size)?).ok()?;
        match u32_at(&entry, 0)? {
            PT_INTERP => interpreted = true,
            PT_NOTE => go |= is_go_note(file, u64_at(&entry, 8)?),
            _ => {}
        }
    }
    if go {
        return Some("is a Go program: it calls the kernel itself, past the C library".to_owned());
    }
    (!interpreted).then(|| "is statically linked: the loader never sees it".to_owned())
}

/// Go's linker puts a note with the owner "Go" and the build id first in its segment.
fn is_go_note(file: &File, at: u64) -> bool {
    let mut note = [0; 16];
    file.read_exact_at(&mut note, at).is_ok() && note[..4] == 4u32.to_ne_bytes() && &note[12..] == b"Go\0\0"
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    fn program(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn elf_with(segments: &[u32], note: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        for kind in segments {
            let mut entry = [0; 56];
            entry[..4].copy_from_slice(&kind.to_le_bytes());
            entry[8..16].copy_from_slice(&(64 + 56 * segments.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&entry);
        }
        bytes.extend_from_slice(note);
        bytes
    }

    #[test]
    fn a_shell_and_a_script_for_it_are_protected() {
        assert_eq!(why_unprotected(Path::new("/bin/sh")), None);
        assert_eq!(why_unprotected(program(b"#! /bin/sh -e\nexit\n").path()), None);
    }

    #[test]
    fn static_and_go_programs_are_told() {
        let file = program(&elf_with(&[1], b""));
        assert!(why_unprotected(file.path()).unwrap().ends_with("is statically linked: the loader never sees it"));
        let file = program(&elf_with(&[PT_INTERP, PT_NOTE], b"\x04\0\0\0\x53\0\0\0\x04\0\0\0Go\0\0"));
        assert!(why_unprotected(file.path()).unwrap().contains("is a Go program"));
        let file = program(&elf_with(&[PT_INTERP], b""));
        assert_eq!(why_unprotected(file.path()), None);
    }

    #[test]
    fn a_damaged_program_is_left_to_the_kernel() {
        let whole = elf_with(&[PT_INTERP, PT_NOTE], b"");
        for length in 0..whole.len() {
            why_unprotected(program(&whole[..length]).path());
        }
        let mut wild = whole;
        wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(why_unprotected(program(&wild).path()), None);
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert!(matches!(find(Path::new("sh")), Found::At(_)));
        assert!(matches!(find(Path::new("/etc/passwd")), Found::Forbidden(_)));
        assert!(matches!(find(Path::new("no-such-program")), Found::Missing));
    }
}
