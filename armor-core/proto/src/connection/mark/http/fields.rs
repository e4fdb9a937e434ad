//! The header fields that say where a message ends and whether the connection goes on after it.

use serde::{Deserialize, Serialize};

use super::start::Version;
use crate::connection::mark::line::Line;
use crate::connection::mark::request::End;

/// The last transfer coding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Coding {
    Chunked,
    Other,
}

/// What the lines of a head have said so far.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Fields {
    pub(super) length: Option<u64>,
    pub(super) coding: Option<Coding>,
    close: bool,
    keep_alive: bool,
    /// `Expect: 100-continue`.
    pub(super) expects: bool,
    /// The client authenticates the connection and not the request (RFC 4559; NTLM).
    pub(super) authenticates_connection: bool,
    /// The last line matters, so one that continues it would too.
    open: bool,
}

impl Default for Fields {
    fn default() -> Self {
        Fields {
            length: None,
            coding: None,
            close: false,
            keep_alive: false,
            expects: false,
            authenticates_connection: false,
            // No line can continue the start line.
            open: true,
        }
    }
}

impl Fields {
    /// RFC 9112 §9.3.
    pub(super) fn goes_on(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Takes a line that is not empty.
    pub(super) fn take(&mut self, line: &Line) -> Result<(), End> {
        let head = line.head();
        if head.contains(&b'\r') {
            return Err(End::Lost);
        }
        if matches!(head.first(), Some(b' ' | b'\t')) {
            return if self.open { Err(End::Lost) } else { Ok(()) };
        }
        self.open = false;
        let Some(colon) = head.iter().position(|byte| *byte == b':') else {
            // A name that is longer than what is kept is none that matters.
            return if line.is_whole() { Err(End::Lost) } else { Ok(()) };
        };
        let (name, value) = (&head[..colon], head[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(End::Lost);
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("authorization") || is("proxy-authorization") {
            let scheme = value.split(u8::is_ascii_whitespace).next().unwrap_or_default();
            self.authenticates_connection |= [&b"ntlm"[..], b"negotiate"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
            return Ok(());
        }
        self.open = ["content-length", "transfer-encoding", "connection", "expect"].into_iter().any(is);
        if !self.open {
            return Ok(());
        }
        if !line.is_whole() {
            return Err(End::Lost);
        }
        if is("content-length") {
            self.take_length(value)
        } else if is("transfer-encoding") {
            self.take_coding(value)
        } else if is("connection") {
            for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
            Ok(())
        } else {
            self.expects = true;
            if value.eq_ignore_ascii_case(b"100-continue") { Ok(()) } else { Err(End::Lost) }
        }
    }

    fn take_length(&mut self, value: &[u8]) -> Result<(), End> {
        let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok()).ok_or(End::Lost)?;
        if self.length.is_some_and(|other| other != length) {
            return Err(End::Lost);
        }
        self.length = Some(length);
        Ok(())
    }

    fn take_coding(&mut self, value: &[u8]) -> Result<(), End> {
        if self.coding.is_some() || value.is_empty() {
            return Err(End::Lost);
        }
        let mut codings = value.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let last = codings.next().is_some_and(chunked);
        if codings.any(chunked) {
            return Err(End::Lost);
        }
        self.coding = Some(if last { Coding::Chunked } else { Coding::Other });
        Ok(())
    }
}
