//! What a supervised application is, and how it is kept running: a service file says it, and it travels to the overseer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Health, Placement, ReadyQuestion, ReattachSpec, StandbyCount, StandbyElsewhere};

/// How a service recovers its connections: where a new process takes them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The connection is re-established and the stream goes on (thesis §4.5.1).
    Reconnect,
    /// Replay from the first request that was not answered in full: HTTP/1 and RESP, recognised by what the client says first. Other
    /// protocols as with `turn`.
    #[default]
    Request,
    /// The same for a service that is known to speak HTTP/1.
    Http,
    /// The same for a service that is known to speak RESP, as Redis does.
    Resp,
    /// Replay from the last time that the client spoke after an answer: other protocols of questions and answers.
    Turn,
    /// Replay from the beginning: deterministic streams.
    Stream,
}

/// What to do when regenerated output differs from what the client was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum OnDivergence {
    /// Reset the connection: honest.
    #[default]
    Reset,
    /// Go on (thesis); an event tells it.
    Continue,
}

/// What a supervised application is and how it is kept running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationSpec {
    /// Name of the service, unique on its node.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory; the launcher's when absent.
    #[serde(default)]
    pub directory: Option<String>,
    /// Environment beside the daemon's own.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// How connections recover.
    #[serde(default)]
    pub policy: Policy,
    /// On divergence.
    #[serde(default)]
    pub on_divergence: OnDivergence,
    /// Restarts allowed within `restart_window_s`; one more failure ends the service and resets its clients.
    #[serde(default = "default_restart_limit")]
    pub restart_limit: u32,
    /// Seconds over which restarts are counted.
    #[serde(default = "default_restart_window_s")]
    pub restart_window_s: u64,
    /// First pause before a restart when the program died young, in ms; doubles up to 5 s.
    #[serde(default = "default_backoff_ms")]
    pub backoff_ms: u64,
    /// Clients get ECONNRESET when recovery takes longer, in ms.
    #[serde(default = "default_deadline_ms")]
    pub deadline_ms: u64,
    /// Where turns are all that is known of the protocol: an answer followed by so much silence counts as complete when the server is
    /// then lost, in ms. Never when absent.
    #[serde(default)]
    pub settled_ms: Option<u32>,
    /// How it is asked whether it is ready; absent when it is ready as soon as it listens.
    #[serde(default)]
    pub ready: Option<ReadyQuestion>,
    /// Further instances that are started ahead and wait inside their first `bind` for the failure of the running one.
    #[serde(default)]
    pub standby: StandbyCount,
    /// Other nodes that hold one more such instance, for the failure of its own node.
    #[serde(default)]
    pub standby_elsewhere: StandbyElsewhere,
    /// Where it may run when its node fails.
    #[serde(default)]
    pub placement: Placement,
    /// When it counts as hung.
    #[serde(default)]
    pub health: Health,
    /// How connections that it makes outlive its process; absent when they end with it.
    #[serde(default)]
    pub reattach: Option<ReattachSpec>,
}

impl ApplicationSpec {
    /// What of it contradicts itself: the key, with its table (`ready.expect`), and a sentence that names it and says what to write instead.
    ///
    /// # Errors
    /// When it cannot be followed.
    pub fn check(&self) -> Result<(), (String, String)> {
        check_name(&self.name).map_err(|reason| ("name".to_owned(), reason))?;
        if self.command.first().is_none_or(String::is_empty) {
            let example = "it lists the program and its arguments, such as [\"python3\", \"-m\", \"http.server\"]";
            return Err(("command".to_owned(), format!("command is empty; {example}")));
        }
        if let Some(Err((key, reason))) = self.ready.as_ref().map(ReadyQuestion::check) {
            return Err((format!("ready.{key}"), format!("ready.{key}: {reason}")));
        }
        self.standby.check().map_err(|(key, reason)| (key.to_owned(), reason))?;
        if let Err((key, reason)) = self.placement.check() {
            return Err((format!("placement.{key}"), format!("placement.{key}: {reason}")));
        }
        self.standby_elsewhere.check(&self.placement).map_err(|(key, reason)| (key.to_owned(), reason))?;
        if let Err((key, reason)) = self.health.check() {
            return Err((format!("health.{key}"), format!("health.{key}: {reason}")));
        }
        if let Some(Err((key, reason))) = self.reattach.as_ref().map(ReattachSpec::check) {
            return Err((format!("reattach.{key}"), format!("reattach.{key}: {reason}")));
        }
        let wrong = match (self.settled_ms, self.policy) {
            (Some(0), _) => "settled_ms is 0: no silence would be needed for an answer to be complete; leave it out, or take 1 or more",
            (Some(_), Policy::Stream | Policy::Reconnect) => {
                "settled_ms means nothing with policy stream or reconnect; leave it out, or take policy request or turn"
            }
            _ => return Ok(()),
        };
        Err(("settled_ms".to_owned(), wrong.to_owned()))
    }
}

/// Whether a service or an ARMOR may have this name: names become file names.
///
/// # Errors
/// When not, with what to write instead.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if name.is_empty() || name.len() > 48 || !name.chars().all(plain) || name.starts_with(['.', '-']) {
        return Err(format!("{name:?} is no name: take 1 to 48 letters, digits, '-', '_' or '.', the first one a letter or digit"));
    }
    Ok(())
}

fn default_restart_limit() -> u32 {
    10
}
fn default_restart_window_s() -> u64 {
    60
}
fn default_backoff_ms() -> u64 {
    50
}
fn default_deadline_ms() -> u64 {
    30_000
}

/// How a supervised application is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplicationState {
    /// Its process runs.
    Running,
    /// It failed and is being started again.
    Restarting,
    /// It ended by itself with status 0, or was stopped.
    Ended,
    /// It failed too often, or cannot be started.
    GivenUp,
}

impl ApplicationState {
    /// Its process runs, or is to be started.
    #[must_use]
    pub fn is_meant_to_run(self) -> bool {
        matches!(self, ApplicationState::Running | ApplicationState::Restarting)
    }
}
