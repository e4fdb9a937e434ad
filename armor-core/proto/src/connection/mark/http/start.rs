//! The first line of a message.

use serde::{Deserialize, Serialize};

use crate::connection::mark::line::Line;
use crate::connection::mark::request::End;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Version {
    Http10,
    Http11,
}

/// The methods that change where messages end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Method {
    Head,
    Connect,
    Other,
}

/// The two kinds of first lines.
pub(super) trait StartLine: Sized + Copy {
    /// Whether a line that begins like this can become one.
    fn may_begin(head: &[u8]) -> bool;
    /// Reads a complete line; `None` for one that is to be passed over.
    fn parse(line: &Line) -> Result<Option<Self>, End>;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct RequestLine {
    pub(super) method: Method,
    pub(super) version: Version,
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

impl StartLine for RequestLine {
    fn may_begin(head: &[u8]) -> bool {
        let method = head.iter().take_while(|byte| is_token(**byte)).count();
        // RFC 9112 §2.2: an empty line before a request.
        head == b"\r" || method == head.len() || (method > 0 && head[method] == b' ')
    }

    fn parse(line: &Line) -> Result<Option<Self>, End> {
        let head = line.head();
        if head.is_empty() {
            return Ok(None);
        }
        if line.is_whole() && head == b"PRI * HTTP/2.0" {
            return Err(End::Held);
        }
        let version = match () {
            () if line.ends_with(b" HTTP/1.1") => Version::Http11,
            () if line.ends_with(b" HTTP/1.0") => Version::Http10,
            () => return Err(End::Lost),
        };
        let name = head.iter().take_while(|byte| is_token(**byte)).count();
        // The method, a space, a target, and the version with its space.
        let complete = !line.is_whole() || head.len() > name + 1 + b" HTTP/1.1".len();
        if name == 0 || head.get(name) != Some(&b' ') || head.get(name + 1) == Some(&b' ') || head.contains(&b'\r') || !complete {
            return Err(End::Lost);
        }
        let method = match &head[..name] {
            b"HEAD" => Method::Head,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        };
        Ok(Some(RequestLine { method, version }))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct StatusLine {
    pub(super) version: Version,
    pub(super) status: u16,
}

impl StartLine for StatusLine {
    fn may_begin(head: &[u8]) -> bool {
        let known = b"HTTP/1.";
        let length = head.len().min(known.len());
        head[..length] == known[..length]
    }

    fn parse(line: &Line) -> Result<Option<Self>, End> {
        let head = line.head();
        let version = match head.get(..9) {
            Some(b"HTTP/1.1 ") => Version::Http11,
            Some(b"HTTP/1.0 ") => Version::Http10,
            _ => return Err(End::Lost),
        };
        let digits = head.get(9..12).filter(|digits| digits.iter().all(u8::is_ascii_digit)).ok_or(End::Lost)?;
        let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        if status < 100 || head.get(12).is_some_and(|byte| *byte != b' ') || head.contains(&b'\r') {
            return Err(End::Lost);
        }
        Ok(Some(StatusLine { version, status }))
    }
}
