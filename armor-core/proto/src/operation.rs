//! Operations: typed requests that are delivered to every element which subscribed to their type (thesis §3.2.1).
//!
//! On the wire an operation is its [`OperationKind`] and a msgpack array of its fields; inside an ARMOR it is the Rust
//! struct, decoded once at the edge.

use std::any::Any;
use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Number of an operation type. `0x0000..0x8000` belongs to this project, the rest is open to researchers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationKind(pub u16);

impl OperationKind {
    /// First number of the range that is kept for elements outside this project.
    pub const OPEN_RANGE: u16 = 0x8000;

    /// A kind in the open range, drawn from the operation's name, for elements outside this project.
    #[must_use]
    pub const fn of_name(name: &str) -> OperationKind {
        // FNV-1a folded to 15 bits; const, so that `Operation::KIND` can use it.
        let bytes = name.as_bytes();
        let mut hash = 0x811c_9dc5_u32;
        let mut index = 0;
        while index < bytes.len() {
            hash = (hash ^ bytes[index] as u32).wrapping_mul(0x0100_0193);
            index += 1;
        }
        OperationKind(((hash ^ (hash >> 15)) as u16 & 0x7fff) | Self::OPEN_RANGE)
    }
}

impl fmt::Debug for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationKind({:#06x})", self.0)
    }
}

/// A typed operation. Implement it with [`operations!`](crate::operations) or by hand.
pub trait Operation: Serialize + DeserializeOwned + Send + fmt::Debug + Clone + 'static {
    /// Its number on the wire.
    const KIND: OperationKind;
    /// Its name in the thesis's style, `MSG_…`.
    const NAME: &'static str;
}

/// An operation of any type, as bundles hold it.
pub trait AnyOperation: Send + fmt::Debug {
    /// [`Operation::KIND`] of the operation inside.
    fn kind(&self) -> OperationKind;
    /// [`Operation::NAME`] of the operation inside.
    fn name(&self) -> &'static str;
    /// Appends the msgpack form.
    ///
    /// # Errors
    /// When serde refuses a field (a map key that is no string, for example).
    fn encode(&self, into: &mut Vec<u8>) -> Result<(), rmp_serde::encode::Error>;
    /// For downcasting.
    fn as_any(&self) -> &dyn Any;
    /// A copy, for messages that may have to be sent again.
    fn clone_box(&self) -> Box<dyn AnyOperation>;
}

impl<O: Operation> AnyOperation for O {
    fn kind(&self) -> OperationKind {
        O::KIND
    }
    fn name(&self) -> &'static str {
        O::NAME
    }
    fn encode(&self, mut into: &mut Vec<u8>) -> Result<(), rmp_serde::encode::Error> {
        rmp_serde::encode::write(&mut into, self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn clone_box(&self) -> Box<dyn AnyOperation> {
        Box::new(self.clone())
    }
}

/// An operation as it sits in a bundle: decoded, or still the bytes that came from the wire.
#[derive(Debug)]
pub enum BundledOperation {
    /// A Rust value.
    Typed(Box<dyn AnyOperation>),
    /// Not decoded here: on its way to another ARMOR, or not yet looked at.
    Encoded {
        /// The operation's type.
        kind: OperationKind,
        /// msgpack of its fields.
        body: bytes::Bytes,
    },
}

impl BundledOperation {
    /// The operation's type.
    #[must_use]
    pub fn kind(&self) -> OperationKind {
        match self {
            BundledOperation::Typed(operation) => operation.kind(),
            BundledOperation::Encoded { kind, .. } => *kind,
        }
    }
}

impl Clone for BundledOperation {
    fn clone(&self) -> Self {
        match self {
            BundledOperation::Typed(operation) => BundledOperation::Typed(operation.clone_box()),
            BundledOperation::Encoded { kind, body } => BundledOperation::Encoded { kind: *kind, body: body.clone() },
        }
    }
}

impl<O: Operation> From<O> for BundledOperation {
    fn from(operation: O) -> Self {
        BundledOperation::Typed(Box::new(operation))
    }
}

/// Decodes the fields of an operation of type `O`.
///
/// # Errors
/// When the bytes are not a msgpack array of `O`'s fields.
pub fn decode<O: Operation>(body: &[u8]) -> Result<O, rmp_serde::decode::Error> {
    rmp_serde::from_slice(body)
}

/// Declares operation structs: `0x0010 MSG_APP_REGISTER_SERVER => pub struct AppRegisterServer { … }`.
///
/// The struct is named after the operation (`MSG_APP_REGISTER_SERVER` → `AppRegisterServer`); a test in the crate that
/// uses the macro checks that rule and that no number is used twice, through the list that the macro makes.
#[macro_export]
macro_rules! operations {
    ($list:ident; $( $(#[$meta:meta])* $kind:literal $wire:ident => pub struct $name:ident { $( $(#[$fmeta:meta])* $field:ident : $ty:ty ),* $(,)? } )*) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
            #[allow(missing_docs, reason = "the operation's own text says what its fields are")]
            pub struct $name { $( $(#[$fmeta])* pub $field: $ty ),* }
            impl $crate::operation::Operation for $name {
                const KIND: $crate::operation::OperationKind = $crate::operation::OperationKind($kind);
                const NAME: &'static str = stringify!($wire);
            }
        )*
        /// (number, name on the wire, name of the struct) of every operation declared here.
        pub const $list: &[(u16, &str, &str)] = &[ $( ($kind, stringify!($wire), stringify!($name)) ),* ];
    };
}

/// `MSG_APP_REGISTER_SERVER` → `AppRegisterServer`, the name rule for operation structs.
#[must_use]
pub fn struct_name(wire_name: &str) -> String {
    wire_name
        .trim_start_matches("MSG_")
        .split('_')
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters.flat_map(char::to_lowercase)).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_rule_turns_message_names_into_struct_names() {
        assert_eq!(struct_name("MSG_APP_REGISTER_SERVER"), "AppRegisterServer");
        assert_eq!(struct_name("MSG_BUNDLE_ACK"), "BundleAck");
    }

    #[test]
    fn kinds_of_names_lie_in_the_open_range() {
        assert!(OperationKind::of_name("MSG_X").0 >= OperationKind::OPEN_RANGE);
    }
}
