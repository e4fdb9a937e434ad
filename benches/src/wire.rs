//! What a client asks of the server: the first nine bytes of each connection.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};

/// Length of what a connection begins with: what, and a number of 64 bits, little-endian.
pub const HEAD: usize = 9;

/// What becomes of a connection. The first byte is none that a text protocol begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Packets of so many bytes, each answered by one of the same length when it is there in full.
    Echo(u64),
    /// The server says so many bytes.
    Download(u64),
    /// The client says so many bytes, which one byte answers.
    Upload(u64),
    /// One byte.
    Touch,
}

impl Wish {
    /// As it is sent.
    pub fn encode(self) -> [u8; HEAD] {
        let (what, number) = match self {
            Wish::Echo(bytes) => (1, bytes),
            Wish::Download(bytes) => (2, bytes),
            Wish::Upload(bytes) => (3, bytes),
            Wish::Touch => (4, 0),
        };
        let mut head = [what; HEAD];
        head[1..].copy_from_slice(&number.to_le_bytes());
        head
    }

    /// What was sent; nothing when nobody who speaks this protocol did.
    pub fn decode(head: &[u8; HEAD]) -> Option<Wish> {
        let [what, number @ ..] = *head;
        let number = u64::from_le_bytes(number);
        match what {
            1 if (1..=MOST_ECHO).contains(&number) => Some(Wish::Echo(number)),
            2 => Some(Wish::Download(number)),
            3 => Some(Wish::Upload(number)),
            4 => Some(Wish::Touch),
            _ => None,
        }
    }
}

/// The largest packet that the server keeps room for.
pub const MOST_ECHO: u64 = 1 << 20;

/// Connects, without delay of small packets, and asks.
///
/// # Errors
/// Those of the connection.
pub fn ask(server: SocketAddr, wish: Wish) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.write_all(&wish.encode())?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_understood_and_nothing_else_is() {
        for wish in [Wish::Echo(32), Wish::Echo(MOST_ECHO), Wish::Download(1 << 40), Wish::Upload(0), Wish::Touch] {
            assert_eq!(Wish::decode(&wish.encode()), Some(wish));
        }
        for bad in [Wish::Echo(0).encode(), Wish::Echo(MOST_ECHO + 1).encode(), *b"GET / HTT", [0; HEAD]] {
            assert_eq!(Wish::decode(&bad), None, "{bad:?}");
        }
    }
}
