//! How a server is asked whether it is ready.

use serde::{Deserialize, Serialize};

/// A question that a server answers as expected when it is ready. Until then it counts as not listening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadyQuestion {
    /// What is said to it; nothing to a server that speaks first.
    #[serde(default)]
    pub send: SpokenBytes,
    /// What its answer begins with.
    pub expect: SpokenBytes,
    /// Where it is asked when it listens at several ports; the first one where it listens when absent.
    #[serde(default)]
    pub port: Option<u16>,
    /// Pause between two tries, in ms.
    #[serde(default = "default_ready_interval_ms")]
    pub interval_ms: u64,
    /// How long one try may take, in ms.
    #[serde(default = "default_ready_timeout_ms")]
    pub timeout_ms: u64,
}

impl ReadyQuestion {
    /// Most bytes of `send` and of `expect`.
    pub const MOST_BYTES: usize = 4096;

    /// What is wrong with it: the key, and what to write instead.
    ///
    /// # Errors
    /// When it cannot be asked, or any answer would do.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let most = Self::MOST_BYTES;
        if self.expect.0.is_empty() {
            return Err((
                "expect",
                "expect is empty; write what the answer of a server that is ready begins with, such as \"+PONG\"".to_owned(),
            ));
        }
        for (key, bytes) in [("send", &self.send), ("expect", &self.expect)] {
            if bytes.0.len() > most {
                return Err((key, format!("{key} has {} bytes, at most {most} are taken", bytes.0.len())));
            }
        }
        times_are_no_zero(self.interval_ms, self.timeout_ms)
    }
}

/// Of a question that is asked again and again.
pub(super) fn times_are_no_zero(interval_ms: u64, timeout_ms: u64) -> Result<(), (&'static str, String)> {
    match [("interval_ms", interval_ms), ("timeout_ms", timeout_ms)].iter().find(|(_, value)| *value == 0) {
        Some((key, _)) => Err((key, format!("{key} is 0; leave it out for the default, or give milliseconds"))),
        None => Ok(()),
    }
}

/// Bytes that are written as text (`"PING\r\n"`) where they are text, and as a list of numbers (`[0, 0, 0, 8, 4, 210]`) where not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpokenBytes(pub Vec<u8>);

impl Serialize for SpokenBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for SpokenBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = SpokenBytes;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a string, or a list of bytes (0 to 255)")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SpokenBytes, E> {
                Ok(SpokenBytes(text.as_bytes().to_vec()))
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<SpokenBytes, E> {
                Ok(SpokenBytes(bytes.to_vec()))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<SpokenBytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element()? {
                    bytes.push(byte);
                }
                Ok(SpokenBytes(bytes))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

fn default_ready_interval_ms() -> u64 {
    20
}
fn default_ready_timeout_ms() -> u64 {
    1000
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::super::ApplicationSpec;
    use super::*;

    #[test]
    fn bytes_are_text_or_numbers_in_toml_and_come_over_the_wire() {
        let text = "name = \"db\"\ncommand = [\"db\"]\n[ready]\nsend = [0, 8, 210, 255]\nexpect = \"\\u0000+PONG\\r\\n\"\n";
        let spec: ApplicationSpec = toml::from_str(text).unwrap_or_else(|error| panic!("{error}"));
        let Some(question) = &spec.ready else { panic!("asked") };
        assert_eq!((&question.send.0[..], &question.expect.0[..]), (&[0, 8, 210, 255][..], &b"\0+PONG\r\n"[..]));
        let wire = rmp_serde::to_vec(&spec).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rmp_serde::from_slice::<ApplicationSpec>(&wire).ok(), Some(spec));
        assert!(toml::from_str::<ReadyQuestion>("expect = [256]").is_err());
    }

    #[test]
    fn a_question_to_which_any_answer_would_do_is_refused() {
        let question = |expect: &str, interval_ms| ReadyQuestion {
            send: SpokenBytes::default(),
            expect: SpokenBytes(expect.into()),
            port: None,
            interval_ms,
            timeout_ms: 1,
        };
        assert_eq!(question("220 ", 1).check(), Ok(()));
        assert_eq!(question("", 1).check().map_err(|(key, _)| key), Err("expect"));
        assert_eq!(question("x", 0).check().map_err(|(key, _)| key), Err("interval_ms"));
        assert_eq!(question(&"x".repeat(5000), 1).check().map_err(|(key, _)| key), Err("expect"));
    }
}
