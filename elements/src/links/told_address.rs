//! The file in the run directory that tells where a daemon accepts links.

use std::net::SocketAddr;
use std::path::Path;

/// Writes `tcp.addr` or `udp.addr`, which scripts and `armor` read: whole, or not at all.
///
/// # Errors
/// What the file system says, with the file's path.
pub fn write_address(run_dir: &Path, file: &str, address: SocketAddr) -> Result<(), String> {
    let (path, new) = (run_dir.join(file), run_dir.join(format!("{file}.new")));
    std::fs::write(&new, format!("{address}\n"))
        .and_then(|()| std::fs::rename(&new, &path))
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::write_address;

    #[test]
    fn the_newest_address_is_told_and_a_directory_that_is_gone_is_named() {
        let directory = tempfile::tempdir().unwrap();
        for port in [7, 8] {
            write_address(directory.path(), "udp.addr", ([127, 0, 0, 1], port).into()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(directory.path().join("udp.addr")).unwrap(), "127.0.0.1:8\n");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let gone = directory.path().join("gone");
        let error = write_address(&gone, "tcp.addr", ([127, 0, 0, 1], 7).into()).unwrap_err();
        assert!(error.starts_with(&format!("{} cannot be written", gone.join("tcp.addr").display())), "{error}");
    }
}
