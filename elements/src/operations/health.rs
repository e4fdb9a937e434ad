//! How it is found that an application hangs (thesis §3.3.2, time domain): `[health]` in a service file.

use serde::{Deserialize, Serialize};

use super::ready::times_are_no_zero;
use super::{ReadyQuestion, SpokenBytes};

/// When an application counts as hung: it is killed then, and recovered as after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// It is asked to accept a connection.
    #[serde(default)]
    pub connect: bool,
    /// What it is told on a connection of its own; nothing when it speaks first.
    #[serde(default)]
    pub send: SpokenBytes,
    /// What its answer begins with. It is asked when this is there.
    #[serde(default)]
    pub expect: Option<SpokenBytes>,
    /// Where it is connected to when it listens at several ports; the first one when absent.
    #[serde(default)]
    pub port: Option<u16>,
    /// A program and its arguments: status 0 says that the application is well.
    #[serde(default)]
    pub command: Vec<String>,
    /// Pause between two probes, in ms.
    #[serde(default = "default_interval_ms")]
    pub interval_ms: u64,
    /// How long one probe may take, in ms.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// So many failed probes in a row, and it hangs.
    #[serde(default = "default_failures")]
    pub failures: u32,
    /// A process of it that was stopped (SIGSTOP) for so long, while a client's bytes wait unread or a connection waits unaccepted, hangs; in
    /// ms, 0 for never.
    #[serde(default = "default_stopped_ms")]
    pub stopped_ms: u64,
    /// It hangs when input has waited for so long and it has read nothing, accepted nothing, said nothing and used no processor
    /// time meanwhile, in ms. Never when absent: a server may wait for something else.
    #[serde(default)]
    pub progress_ms: Option<u64>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            connect: false,
            send: SpokenBytes::default(),
            expect: None,
            port: None,
            command: Vec::new(),
            interval_ms: default_interval_ms(),
            timeout_ms: default_timeout_ms(),
            failures: default_failures(),
            stopped_ms: default_stopped_ms(),
            progress_ms: None,
        }
    }
}

impl Health {
    /// What it is asked over a connection: a question without `expect` is answered by accepting.
    #[must_use]
    pub fn question(&self) -> Option<ReadyQuestion> {
        let expect = match &self.expect {
            Some(expect) => expect.clone(),
            None if self.connect => SpokenBytes::default(),
            None => return None,
        };
        let Health { send, port, interval_ms, timeout_ms, .. } = self.clone();
        Some(ReadyQuestion { send, expect, port, interval_ms, timeout_ms })
    }

    /// What is wrong with it: the key, and what to write instead.
    ///
    /// # Errors
    /// When it cannot be followed.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, reason: &str| Err((key, reason.to_owned()));
        times_are_no_zero(self.interval_ms, self.timeout_ms)?;
        if self.failures == 0 {
            return wrong("failures", "failures is 0: it would be killed without having failed; take 1 or more");
        }
        if self.progress_ms == Some(0) {
            return wrong("progress_ms", "progress_ms is 0: no server reads in no time; leave it out for never, or give milliseconds");
        }
        if self.command.first().is_some_and(String::is_empty) {
            return wrong(
                "command",
                "command begins with an empty string; it lists a program and its arguments, such as [\"redis-cli\", \"ping\"]",
            );
        }
        if self.connect && self.expect.is_some() {
            return wrong("connect", "an answer as expected says more than an accepted connection; leave connect out, or expect");
        }
        if !self.connect && self.expect.is_none() && self.port.is_some() {
            return wrong("port", "port says where it is connected to, and nothing connects; add connect = true, or expect");
        }
        match &self.expect {
            None if !self.send.0.is_empty() => wrong("send", "nothing is expected for what is sent; add expect, or leave send out"),
            None => Ok(()),
            Some(_) => self.question().map_or(Ok(()), |question| question.check()),
        }
    }
}

fn default_interval_ms() -> u64 {
    1000
}
fn default_timeout_ms() -> u64 {
    1000
}
fn default_failures() -> u32 {
    3
}
fn default_stopped_ms() -> u64 {
    1000
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::super::ApplicationSpec;
    use super::*;

    fn health(keys: &str) -> Health {
        toml::from_str(keys).unwrap_or_else(|error| panic!("{keys}: {error}"))
    }

    #[test]
    fn an_empty_table_is_the_default_and_a_service_without_one_has_it_too() {
        assert_eq!(health(""), Health::default());
        let spec: ApplicationSpec = toml::from_str("name = \"a\"\ncommand = [\"a\"]").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(spec.health, Health::default());
        let wire = rmp_serde::to_vec(&spec).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rmp_serde::from_slice::<ApplicationSpec>(&wire).ok(), Some(spec));
        assert_eq!(Health::default().question(), None);
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_its_key() {
        for (keys, key) in [
            ("interval_ms = 0", "interval_ms"),
            ("timeout_ms = 0", "timeout_ms"),
            ("failures = 0", "failures"),
            ("progress_ms = 0", "progress_ms"),
            ("command = [\"\"]", "command"),
            ("connect = true\nexpect = \"x\"", "connect"),
            ("port = 80", "port"),
            ("send = \"x\"", "send"),
            ("expect = \"\"", "expect"),
        ] {
            assert_eq!(health(keys).check().map_err(|(key, _)| key), Err(key), "{keys}");
        }
        for keys in
            ["connect = true\nport = 80", "send = \"PING\"\nexpect = \"+PONG\"", "command = [\"true\"]\nstopped_ms = 0\nprogress_ms = 500"]
        {
            assert_eq!(health(keys).check(), Ok(()), "{keys}");
        }
        let spec: ApplicationSpec =
            toml::from_str("name = \"a\"\ncommand = [\"a\"]\n[health]\nfailures = 0").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(spec.check().map_err(|(key, _)| key), Err("health.failures".to_owned()));
        assert!(toml::from_str::<Health>("interval = 5").is_err());
    }
}
