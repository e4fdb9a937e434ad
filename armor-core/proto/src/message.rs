//! Messages: a stack of bundles plus payload fields (thesis §3.2.1).
//!
//! The bundle on top is processed by its destination ARMOR, operation by operation; when it is done the message travels on
//! to the destination of the next bundle. Payload fields travel along and may be read and written by every element on the
//! way; the bulk [`payload`](Message::payload) is never copied.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ids::{ArmorId, MessageId};
use crate::operation::{BundledOperation, Operation};

/// Operations for one destination ARMOR, delivered in order.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The ARMOR that processes this bundle.
    pub destination: ArmorId,
    /// What it is to do, first one first.
    pub operations: std::collections::VecDeque<BundledOperation>,
}

impl Bundle {
    /// A bundle with one operation.
    pub fn new(destination: ArmorId, operation: impl Into<BundledOperation>) -> Bundle {
        Bundle { destination, operations: [operation.into()].into() }
    }

    /// The same bundle with one more operation at its end.
    #[must_use]
    pub fn then(mut self, operation: impl Into<BundledOperation>) -> Bundle {
        self.operations.push_back(operation.into());
        self
    }
}

/// The thesis's `MSG_EXPECT_ACK` and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flags(pub u16);

impl Flags {
    /// The sender holds a copy until its own `MSG_BUNDLE_ACK` bundle comes back (thesis §5.5).
    pub const EXPECT_ACK: Flags = Flags(1);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One message between ARMORs.
#[derive(Debug, Clone)]
pub struct Message {
    /// Who began it. Replies to a message go to the destinations of its later bundles, not here.
    pub source: ArmorId,
    /// Number of the message at its source, for acknowledgement and for dropping duplicates.
    pub id: MessageId,
    /// Flags.
    pub flags: Flags,
    /// Bundles, the next one to be processed last in the vector.
    stack: Vec<Bundle>,
    /// Named values that elements read and write while the message is processed (thesis §3.2.1: payload fields).
    pub fields: PayloadFields,
    /// Bulk bytes, untouched and uncopied.
    pub payload: Bytes,
}

impl Message {
    /// Most bundles on a stack, most operations in a bundle. More is refused at the edge and when pushing.
    pub const MAX_BUNDLES: usize = 64;
    /// Most operations in one bundle.
    pub const MAX_OPERATIONS: usize = 1024;

    /// A message with one bundle. Source and number are filled in by the ARMOR that sends it.
    #[must_use]
    pub fn new(bundle: Bundle) -> Message {
        Message {
            source: ArmorId::NONE,
            id: MessageId(0),
            flags: Flags::default(),
            stack: vec![bundle],
            fields: PayloadFields::default(),
            payload: Bytes::new(),
        }
    }

    /// One operation for one ARMOR.
    pub fn to(destination: ArmorId, operation: impl Into<BundledOperation>) -> Message {
        Message::new(Bundle::new(destination, operation))
    }

    /// The same message with bulk bytes.
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Message {
        self.payload = payload;
        self
    }

    /// A message from parts read off the wire; `stack` lists the bundle to be processed next last.
    #[must_use]
    pub fn from_parts(source: ArmorId, id: MessageId, flags: Flags, stack: Vec<Bundle>, fields: PayloadFields, payload: Bytes) -> Message {
        Message { source, id, flags, stack, fields, payload }
    }

    /// The same message with one more bundle, processed after those that are on it.
    #[must_use]
    pub fn followed_by(mut self, bundle: Bundle) -> Message {
        self.stack.insert(0, bundle);
        self
    }

    /// Where the message goes next: destination of the top bundle.
    #[must_use]
    pub fn destination(&self) -> Option<ArmorId> {
        self.stack.last().map(|bundle| bundle.destination)
    }

    /// The bundle to be processed next.
    #[must_use]
    pub fn top(&self) -> Option<&Bundle> {
        self.stack.last()
    }

    /// The bundle to be processed next, to be changed.
    pub fn top_mut(&mut self) -> Option<&mut Bundle> {
        self.stack.last_mut()
    }

    /// Takes the top bundle off: it is done.
    pub fn pop(&mut self) -> Option<Bundle> {
        self.stack.pop()
    }

    /// Puts a bundle on top: nested invocation, processed before what is there now (thesis §3.2.1).
    ///
    /// # Errors
    /// Gives the bundle back when the stack is full ([`Message::MAX_BUNDLES`]).
    pub fn push(&mut self, bundle: Bundle) -> Result<(), Bundle> {
        if self.stack.len() >= Self::MAX_BUNDLES {
            return Err(bundle);
        }
        self.stack.push(bundle);
        Ok(())
    }

    /// All bundles, the next one to be processed last.
    #[must_use]
    pub fn stack(&self) -> &[Bundle] {
        &self.stack
    }
}

/// Named values on a message. Each value is msgpack; at most [`PayloadFields::MAX_FIELDS`] of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PayloadFields(BTreeMap<String, serde_bytes::ByteBuf>);

impl PayloadFields {
    /// Most fields on one message.
    pub const MAX_FIELDS: usize = 64;

    /// Writes a field.
    ///
    /// # Errors
    /// When the value cannot be encoded or there are too many fields.
    pub fn set<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), FieldError> {
        if self.0.len() >= Self::MAX_FIELDS && !self.0.contains_key(name) {
            return Err(FieldError::TooMany { name: name.to_owned() });
        }
        let encoded = rmp_serde::to_vec(value).map_err(|source| FieldError::Encode { name: name.to_owned(), source })?;
        self.0.insert(name.to_owned(), serde_bytes::ByteBuf::from(encoded));
        Ok(())
    }

    /// Reads a field; `None` when it is not there.
    ///
    /// # Errors
    /// When it is there with another type.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FieldError> {
        self.0
            .get(name)
            .map(|encoded| rmp_serde::from_slice(encoded).map_err(|source| FieldError::Decode { name: name.to_owned(), source }))
            .transpose()
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a payload field could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    /// The message has [`PayloadFields::MAX_FIELDS`] already.
    #[error("payload field {name:?} does not fit: a message holds at most {} fields", PayloadFields::MAX_FIELDS)]
    TooMany {
        /// The field.
        name: String,
    },
    /// serde refused the value.
    #[error("payload field {name:?} cannot be encoded")]
    Encode {
        /// The field.
        name: String,
        /// serde's word.
        source: rmp_serde::encode::Error,
    },
    /// The field has another type.
    #[error("payload field {name:?} has another type than the one asked for")]
    Decode {
        /// The field.
        name: String,
        /// serde's word.
        source: rmp_serde::decode::Error,
    },
}

/// Looks at an operation as type `O` when it has been decoded already.
#[must_use]
pub fn downcast<O: Operation>(operation: &BundledOperation) -> Option<&O> {
    match operation {
        BundledOperation::Typed(typed) => typed.as_any().downcast_ref(),
        BundledOperation::Encoded { .. } => None,
    }
}
