//! Many bytes in one direction.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;

use crate::wire::{Wish, ask};

/// What is written at once.
pub const CHUNK: usize = 64 << 10;

/// What came of it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Transfer {
    /// So many were moved.
    pub bytes: u64,
    /// From the first byte to the last one, in s.
    pub seconds: f64,
}

/// The server says `bytes`.
///
/// # Errors
/// Those of the connection; when it ends early.
pub fn download(server: SocketAddr, bytes: u64) -> anyhow::Result<Transfer> {
    let begun = Instant::now();
    let mut stream = ask(server, Wish::Download(bytes)).with_context(|| server.to_string())?;
    let mut buffer = vec![0; 4 * CHUNK];
    let mut left = bytes;
    while left > 0 {
        let got = stream.read(&mut buffer)? as u64;
        anyhow::ensure!(got > 0 && got <= left, "{server} has sent {} of {bytes} bytes, and then {got}", bytes - left);
        left -= got;
    }
    Ok(Transfer { bytes, seconds: begun.elapsed().as_secs_f64() })
}

/// The client says `bytes`; it is over when the server has told that it has them all.
///
/// # Errors
/// Those of the connection; when it ends early.
pub fn upload(server: SocketAddr, bytes: u64) -> anyhow::Result<Transfer> {
    let begun = Instant::now();
    let mut stream = ask(server, Wish::Upload(bytes)).with_context(|| server.to_string())?;
    let chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(CHUNK as u64);
        stream.write_all(&chunk[..length as usize])?;
        left -= length;
    }
    stream.read_exact(&mut [0]).with_context(|| format!("{server} has not taken all of {bytes} bytes"))?;
    Ok(Transfer { bytes, seconds: begun.elapsed().as_secs_f64() })
}
