//! Where a body ends (RFC 9112 §6.3, §7.1).

use serde::{Deserialize, Serialize};

use crate::connection::mark::line::Line;
use crate::connection::mark::request::End;

/// What comes next of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Body {
    /// So many bytes, and then it ends.
    Bytes(u64),
    /// Chunked: the line with the next chunk's size.
    Size,
    /// Chunked: so many bytes of a chunk.
    Chunk(u64),
    /// Chunked: the empty line after a chunk.
    AfterChunk,
    /// Chunked: lines up to an empty one.
    Trailer,
    /// It ends with the connection.
    ToClose,
}

impl Body {
    /// Takes bytes. How many were taken, and whether the body ended with them.
    pub(super) fn take(&mut self, line: &mut Line, bytes: &[u8]) -> Result<(usize, bool), End> {
        if let Body::Bytes(left) | Body::Chunk(left) = self {
            let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= length as u64;
            let over = *left == 0;
            let ended = over && matches!(self, Body::Bytes(_));
            if over && !ended {
                *self = Body::AfterChunk;
            }
            return Ok((length, ended));
        }
        if *self == Body::ToClose {
            return Ok((bytes.len(), false));
        }
        let (length, complete) = line.take(bytes);
        if !complete {
            return Ok((length, false));
        }
        if !line.strip_return() {
            return Err(End::Lost);
        }
        let ended = self.line_ended(line)?;
        line.clear();
        Ok((length, ended))
    }

    fn line_ended(&mut self, line: &Line) -> Result<bool, End> {
        match self {
            Body::Size => {
                *self = match chunk_size(line).ok_or(End::Lost)? {
                    0 => Body::Trailer,
                    size => Body::Chunk(size),
                };
            }
            Body::AfterChunk if line.is_empty() => *self = Body::Size,
            Body::Trailer => return Ok(line.is_empty()),
            _ => return Err(End::Lost),
        }
        Ok(false)
    }
}

/// The size before an extension, if there is one.
fn chunk_size(line: &Line) -> Option<u64> {
    let end = line.head().iter().position(|byte| *byte == b';');
    if end.is_none() && !line.is_whole() {
        return None;
    }
    let digits = line.head()[..end.unwrap_or(line.head().len())].trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
