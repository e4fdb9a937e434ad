//! The open descriptors of this process, from `/proc/self/fd`, without allocation.

use libc::c_int;

use crate::sys;

/// Calls `visit` with each open descriptor; the shim's own are among them. `false`: there is no `/proc`.
pub(crate) fn each_open(mut visit: impl FnMut(c_int)) -> bool {
    let Ok(directory) = sys::open_directory(b"/proc/self/fd\0", libc::O_RDONLY) else { return false };
    let mut buffer = Entries([0; 4096]);
    loop {
        let length = match sys::getdents(directory.raw(), &mut buffer.0) {
            Ok(0) | Err(_) => return true,
            Ok(length) => length,
        };
        let mut rest = &buffer.0[..length];
        while let Some((fd, after)) = next_entry(rest) {
            rest = after;
            if let Some(fd) = fd.filter(|fd| *fd != directory.raw()) {
                visit(fd);
            }
        }
    }
}

#[repr(align(8))]
struct Entries([u8; 4096]);

/// Splits off one `linux_dirent64` (inode 8, offset 8, length 2, type 1, name); its name as a number, if it is one.
fn next_entry(entries: &[u8]) -> Option<(Option<c_int>, &[u8])> {
    let length = usize::from(u16::from_ne_bytes([*entries.get(16)?, *entries.get(17)?]));
    let (entry, rest) = entries.split_at_checked(length.max(19))?;
    let mut number: Option<c_int> = None;
    for byte in entry[19..].iter().take_while(|byte| **byte != 0) {
        if !byte.is_ascii_digit() {
            return Some((None, rest));
        }
        let digit = c_int::from(byte - b'0');
        number = number.unwrap_or(0).checked_mul(10).and_then(|tens| tens.checked_add(digit));
    }
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_opened_file_is_among_the_open_descriptors() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut seen = Vec::new();
        assert!(each_open(|fd| seen.push(fd)));
        assert!(seen.contains(&file.as_raw_fd()) && seen.contains(&2), "{seen:?}");
    }
}
