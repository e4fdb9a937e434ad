//! One clear line on standard error, without allocation.

use std::fmt::{self, Write};

/// Writes `armor: …` and a newline in one call, cut when it is longer than a line should be.
pub(crate) fn complain(message: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 512], length: 0 };
    let _ = write!(line, "armor: {message}");
    line.bytes[line.length] = b'\n';
    crate::sys::write(libc::STDERR_FILENO, &line.bytes[..=line.length]);
}

struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - 1 - self.length;
        let text = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.length..self.length + text.len()].copy_from_slice(text);
        self.length += text.len();
        Ok(())
    }
}
