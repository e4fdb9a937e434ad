//! Frames: how a message travels between processes.
//!
//! A fixed header of 40 bytes, the bundle stack and payload fields in msgpack, then the bulk payload untouched. Sizes vary
//! with the content: the thesis's fixed 8 KB message was its largest cost (thesis §6.2.1).
//!
//! ```text
//!  0  magic  "AR"        2   version  1     3  reserved 0
//!  4  flags u16          6   reserved u16 0
//!  8  head length u32   12   payload length u32
//! 16  source u64        24   destination u64        (armor-ids; a gateway reads no further)
//! 32  message id u32 low, or 0                      (full id is in the head)
//! 36  CRC32C over bytes 0..36, head and payload
//! ```
//!
//! Invariant: nothing that arrives can make this module panic or allocate more than [`MAX_FRAME`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::ids::{ArmorId, MessageId};
use crate::message::{Bundle, Flags, Message, PayloadFields};
use crate::operation::{BundledOperation, OperationKind};

/// Bytes of the fixed header.
pub const HEADER: usize = 40;
/// Largest head (bundle stack and fields) that is accepted.
pub const MAX_HEAD: usize = 1 << 20;
/// Largest bulk payload that is accepted.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Largest frame that is accepted.
pub const MAX_FRAME: usize = HEADER + MAX_HEAD + MAX_PAYLOAD;

/// What a frame begins with.
pub const MAGIC: [u8; 2] = *b"AR";
const VERSION: u8 = 1;

/// What is wrong with a frame. All of them close the link it came by, except [`FrameError::Content`] which drops the frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol at all.
    #[error("frame starts with {got:02x?}, expected {MAGIC:02x?}: the peer does not speak the ARMOR protocol")]
    Magic {
        /// The bytes that came.
        got: [u8; 2],
    },
    /// Another version.
    #[error("frame has version {got}, this program speaks {VERSION}: use the same release on every node")]
    Version {
        /// The version that came.
        got: u8,
    },
    /// A length beyond the bound.
    #[error("frame announces {got} bytes of {part}, at most {limit} are accepted")]
    Length {
        /// "head" or "payload".
        part: &'static str,
        /// What was announced.
        got: usize,
        /// The bound.
        limit: usize,
    },
    /// The checksum does not match.
    #[error("frame checksum is {got:08x}, expected {expected:08x}: bytes were altered on the way")]
    Checksum {
        /// Computed.
        expected: u32,
        /// In the frame.
        got: u32,
    },
    /// The head is no bundle stack.
    #[error("frame content cannot be decoded: {0}")]
    Content(String),
    /// A message that cannot be sent.
    #[error("message cannot be encoded: {0}")]
    Encode(String),
}

#[derive(Serialize)]
struct HeadOut<'a> {
    id: u64,
    stack: Vec<(u64, Vec<(u16, serde_bytes::ByteBuf)>)>,
    fields: &'a PayloadFields,
}

#[derive(Deserialize)]
struct HeadIn {
    id: u64,
    stack: Vec<(u64, Vec<(u16, serde_bytes::ByteBuf)>)>,
    fields: PayloadFields,
}

/// A frame ready to be sent: `head` (header, stack, fields) and the payload that follows it.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Header and msgpack.
    pub head: Bytes,
    /// Bulk bytes, to be written after the head.
    pub payload: Bytes,
}

impl Encoded {
    /// Bytes on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Never true: a frame has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Encodes a message. The payload is not copied.
///
/// # Errors
/// When the message has no bundle, is larger than the bounds, or holds an operation that serde refuses.
pub fn encode(message: &Message, scratch: &mut BytesMut) -> Result<Encoded, FrameError> {
    let destination = message.destination().ok_or_else(|| FrameError::Encode("it has no bundle, so it has no destination".to_owned()))?;
    if message.payload.len() > MAX_PAYLOAD {
        return Err(FrameError::Length { part: "payload", got: message.payload.len(), limit: MAX_PAYLOAD });
    }
    scratch.clear();
    scratch.put_bytes(0, HEADER);
    encode_head(message, scratch)?;
    let head_length = scratch.len() - HEADER;
    if head_length > MAX_HEAD {
        return Err(FrameError::Length { part: "head", got: head_length, limit: MAX_HEAD });
    }
    {
        let mut header = &mut scratch[..HEADER];
        header.put_slice(&MAGIC);
        header.put_u8(VERSION);
        header.put_u8(0);
        header.put_u16_le(message.flags.0);
        header.put_u16_le(0);
        header.put_u32_le(u32::try_from(head_length).unwrap_or(u32::MAX));
        header.put_u32_le(u32::try_from(message.payload.len()).unwrap_or(u32::MAX));
        header.put_u64_le(message.source.0);
        header.put_u64_le(destination.0);
        header.put_u32_le(message.id.0 as u32);
    }
    let sum = checksum(&scratch[..HEADER - 4], &scratch[HEADER..], &message.payload);
    scratch[HEADER - 4..HEADER].copy_from_slice(&sum.to_le_bytes());
    Ok(Encoded { head: scratch.split().freeze(), payload: message.payload.clone() })
}

fn encode_head(message: &Message, scratch: &mut BytesMut) -> Result<(), FrameError> {
    let refused = |error: rmp_serde::encode::Error| FrameError::Encode(error.to_string());
    let mut stack = Vec::with_capacity(message.stack().len());
    for bundle in message.stack() {
        let mut operations = Vec::with_capacity(bundle.operations.len());
        for operation in &bundle.operations {
            let body = match operation {
                BundledOperation::Typed(typed) => {
                    let mut body = Vec::with_capacity(64);
                    typed.encode(&mut body).map_err(refused)?;
                    body
                }
                BundledOperation::Encoded { body, .. } => body.to_vec(),
            };
            operations.push((operation.kind().0, serde_bytes::ByteBuf::from(body)));
        }
        stack.push((bundle.destination.0, operations));
    }
    let head = HeadOut { id: message.id.0, stack, fields: &message.fields };
    rmp_serde::encode::write(&mut scratch.writer(), &head).map_err(refused)
}

fn checksum(header: &[u8], head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(header), head), payload)
}

/// A whole frame as it came, checked but with its content not looked at: what a gateway needs to pass it on.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The ARMOR that began the message.
    pub source: ArmorId,
    /// The ARMOR it goes to next.
    pub destination: ArmorId,
    /// Flags.
    pub flags: Flags,
    bytes: Bytes,
    head_length: usize,
}

impl Frame {
    /// Takes one whole frame off the front of `buffer`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no frame; the link is then out of step and must be closed.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some((head_length, payload_length)) = Self::announced(buffer)? else {
            return Ok(None);
        };
        let total = HEADER + head_length + payload_length;
        if buffer.len() < total {
            buffer.reserve(total - buffer.len());
            return Ok(None);
        }
        let bytes = buffer.split_to(total).freeze();
        let mut rest = &bytes[4..];
        let flags = Flags(rest.get_u16_le());
        let mut rest = &bytes[16..];
        let source = ArmorId(rest.get_u64_le());
        let destination = ArmorId(rest.get_u64_le());
        let mut rest = &bytes[HEADER - 4..];
        let got = rest.get_u32_le();
        let expected = crc32c::crc32c_append(crc32c::crc32c(&bytes[..HEADER - 4]), &bytes[HEADER..]);
        if got != expected {
            return Err(FrameError::Checksum { expected, got });
        }
        Ok(Some(Frame { source, destination, flags, bytes, head_length }))
    }

    fn announced(buffer: &BytesMut) -> Result<Option<(usize, usize)>, FrameError> {
        if buffer.len() < HEADER {
            // Say at the first bytes that a stranger speaks, not after 40 of them.
            if buffer.len() >= 2 && buffer[..2] != MAGIC {
                return Err(FrameError::Magic { got: [buffer[0], buffer[1]] });
            }
            return Ok(None);
        }
        if buffer[..2] != MAGIC {
            return Err(FrameError::Magic { got: [buffer[0], buffer[1]] });
        }
        if buffer[2] != VERSION {
            return Err(FrameError::Version { got: buffer[2] });
        }
        let mut lengths = &buffer[8..16];
        let (head, payload) = (lengths.get_u32_le() as usize, lengths.get_u32_le() as usize);
        if head > MAX_HEAD {
            return Err(FrameError::Length { part: "head", got: head, limit: MAX_HEAD });
        }
        if payload > MAX_PAYLOAD {
            return Err(FrameError::Length { part: "payload", got: payload, limit: MAX_PAYLOAD });
        }
        Ok(Some((head, payload)))
    }

    /// The frame's bytes, to be passed on as they are.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Decodes the bundle stack; operations stay encoded until somebody who subscribed to them looks.
    ///
    /// # Errors
    /// [`FrameError::Content`] when the head is no bundle stack within the bounds.
    pub fn decode(&self) -> Result<Message, FrameError> {
        let content = |what: String| FrameError::Content(what);
        let head = &self.bytes[HEADER..HEADER + self.head_length];
        let head: HeadIn = rmp_serde::from_slice(head).map_err(|error| content(error.to_string()))?;
        if head.stack.is_empty() || head.stack.len() > Message::MAX_BUNDLES {
            return Err(content(format!("{} bundles, expected 1 to {}", head.stack.len(), Message::MAX_BUNDLES)));
        }
        if head.fields.len() > PayloadFields::MAX_FIELDS {
            return Err(content(format!("{} payload fields, at most {}", head.fields.len(), PayloadFields::MAX_FIELDS)));
        }
        let mut stack = Vec::with_capacity(head.stack.len());
        for (destination, operations) in head.stack {
            if operations.len() > Message::MAX_OPERATIONS {
                return Err(content(format!("{} operations, at most {}", operations.len(), Message::MAX_OPERATIONS)));
            }
            let operations = operations
                .into_iter()
                .map(|(kind, body)| BundledOperation::Encoded { kind: OperationKind(kind), body: body.into_vec().into() })
                .collect();
            stack.push(Bundle { destination: ArmorId(destination), operations });
        }
        if stack.last().map(|bundle| bundle.destination) != Some(self.destination) {
            return Err(content("the header names another destination than the top bundle".to_owned()));
        }
        let payload = self.bytes.slice(HEADER + self.head_length..);
        Ok(Message::from_parts(self.source, MessageId(head.id), self.flags, stack, head.fields, payload))
    }
}

#[cfg(test)]
#[allow(unreachable_pub, dead_code, reason = "the macro makes public items")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    crate::operations! { TEST_OPERATIONS;
        /// Two numbers.
        0x7ff0 MSG_TEST_PAIR => pub struct TestPair { a: u64, b: String }
    }

    fn sample(payload: &[u8]) -> Message {
        let mut message = Message::to(ArmorId(7), TestPair { a: 5, b: "x".into() })
            .followed_by(Bundle::new(ArmorId(9), TestPair { a: 6, b: String::new() }))
            .with_payload(Bytes::copy_from_slice(payload));
        message.source = ArmorId(3);
        message.id = MessageId(77);
        message.fields.set("count", &12u32).expect("fits");
        message
    }

    fn wire(message: &Message) -> BytesMut {
        let encoded = encode(message, &mut BytesMut::new()).expect("encodes");
        let mut bytes = BytesMut::from(&encoded.head[..]);
        bytes.extend_from_slice(&encoded.payload);
        bytes
    }

    #[test]
    fn a_message_comes_back_as_it_went() {
        let mut bytes = wire(&sample(b"bulk"));
        let frame = Frame::take(&mut bytes).expect("valid").expect("whole");
        assert_eq!((frame.source, frame.destination), (ArmorId(3), ArmorId(7)));
        let mut message = frame.decode().expect("decodes");
        assert_eq!(&message.payload[..], b"bulk");
        assert_eq!(message.fields.read::<u32>("count").expect("typed"), Some(12));
        let first = message.pop().expect("bundle");
        let BundledOperation::Encoded { kind, body } = &first.operations[0] else { panic!("encoded") };
        assert_eq!(*kind, OperationKind(0x7ff0));
        assert_eq!(crate::operation::decode::<TestPair>(body).expect("pair"), TestPair { a: 5, b: "x".into() });
        assert_eq!(message.destination(), Some(ArmorId(9)));
        assert!(bytes.is_empty());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let whole = wire(&sample(b"0123456789"));
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(Some(_)) = Frame::take(&mut bytes) {
                panic!("bit {bit} flipped and nobody noticed")
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), prefix in any::<bool>()) {
            let mut buffer = BytesMut::new();
            if prefix { buffer.extend_from_slice(&[b'A', b'R', 1]); }
            buffer.extend_from_slice(&bytes);
            if let Ok(Some(frame)) = Frame::take(&mut buffer) { let _ = frame.decode(); }
        }

        #[test]
        fn frames_are_found_wherever_the_stream_is_cut(cuts in proptest::collection::vec(1usize..50, 1..40)) {
            let mut stream = wire(&sample(b"a")); stream.unsplit(wire(&sample(b"bb")));
            let mut buffer = BytesMut::new();
            let mut found = 0;
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let piece = stream.split_to(cut.min(stream.len()));
                buffer.extend_from_slice(&piece);
                while Frame::take(&mut buffer).expect("valid").is_some() { found += 1; }
            }
            prop_assert_eq!(found, 2);
        }
    }
}
