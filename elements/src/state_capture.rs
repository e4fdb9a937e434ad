//! `state_capture`: keeps the captured state of an ARMOR's elements where a restart finds it (thesis §3.2.1); a basic element.
//!
//! Purpose: writes each state into memory that the ARMOR's vault keeps too, so that it outlives this process; with `store = "disk"` into
//! `state.redb` in the run directory as well, which outlives the node. At a restart the newest whole state of each element is given back. Tells daemons that
//! register with this ARMOR, the FTM, by a number whether all that it was ever told is still there.
//! Subscribes: `MSG_STATE_CAPTURED`, `MSG_DAEMON_REGISTER`. Emits: `MSG_STATE_MEMORY`.
//! Configuration: `store`, see [`Config`].
//!
//! Invariant: when a state cannot be saved the one before stays, and an event tells the reason: once, until it can be saved again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use armor_core::capture::{CapturedStates, FileRefused, StateStore};
use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::StateCaptured;
use serde::Deserialize;

use crate::endpoints::Keeping;
use crate::operations::{DaemonRegister, StateMemory};

/// The file with the states, in the run directory.
pub const STATE_FILE: &str = "state.redb";
/// Key of the memory in the vault.
const MEMORY: &str = "states";
/// How long an orderly end waits for the disk.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// How often the writing to disk is looked at while something is unwritten.
const LOOK: Duration = Duration::from_millis(100);

/// The element.
pub struct StateCapture {
    states: CapturedStates,
    keeping: Keeping,
    captured: u64,
    failed: u64,
    /// How long the last capture took.
    last_us: u64,
    bytes: u64,
    /// Elements whose last state could not be saved.
    failing: BTreeSet<String>,
    /// A failure to write to disk was told.
    trouble_told: bool,
    looking: bool,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// "memory": states outlive the process as long as its vault lives. "disk": they outlive both, and the node.
    store: Store,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Store {
    #[default]
    Memory,
    Disk,
}

impl Default for Config {
    fn default() -> Self {
        Config { store: Store::Memory }
    }
}

impl Element for StateCapture {
    const NAME: &'static str = "state_capture";
    const PURPOSE: &'static str = "keeps captured element state, double-buffered and checksummed, for the ARMOR's next life";
    const EXAMPLE: &'static str = "store = \"memory\"\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        let (keeping, mut handed) = Keeping::open(setup, Self::NAME)?;
        let file = (config.store == Store::Disk).then(|| setup.run_dir.join(STATE_FILE));
        let states = CapturedStates::open(handed.take(MEMORY), file.as_deref())?;
        Ok(StateCapture {
            states,
            keeping,
            captured: 0,
            failed: 0,
            last_us: 0,
            bytes: 0,
            failing: BTreeSet::new(),
            trouble_told: false,
            looking: false,
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::captured).on(Self::daemon).emits::<StateMemory>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        self.keep();
        self.keeping.watch(context, |_: &mut Self, _, _| {}, Self::keep);
        for refused in self.states.take_nobodys() {
            context.event(Event::new("state-refused").with("element", refused.element).with("reason", refused.reason));
        }
        self.look(context);
        Ok(())
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.looking = false;
        self.look(context);
    }

    fn state_store(&mut self) -> Option<&mut dyn StateStore> {
        Some(&mut self.states)
    }

    fn status(&self) -> serde_json::Value {
        let file = self.states.file().map(|file| {
            let state = file.state();
            serde_json::json!({
                "path": file.path(), "unwritten": state.unwritten, "trouble": state.trouble, "transactions": state.transactions,
            })
        });
        serde_json::json!({
            "captured": self.captured, "failed": self.failed, "failing": self.failing, "bytes": self.bytes, "last_us": self.last_us, "file": file,
        })
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        if let Some(file) = self.states.file()
            && !file.flush(LAST_WRITE)
        {
            tracing::error!("{}: the last states are not written", file.path().display());
        }
        self.keeping.ended();
    }
}

impl StateCapture {
    fn keep(&mut self) {
        self.keeping.keep(MEMORY, self.states.memory().descriptor());
    }

    fn captured(&mut self, state: &StateCaptured, context: &mut Context<'_>) {
        let begun = Instant::now();
        let saved = self.states.save(&state.element, &state.state);
        self.last_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        match saved {
            Ok(()) => {
                self.captured += 1;
                self.bytes += state.state.len() as u64;
                if self.failing.remove(&state.element) {
                    context.event(Event::new("state-captured-again").with("element", &state.element));
                }
                self.look_later(context);
            }
            Err(error) => {
                self.failed += 1;
                if self.failing.insert(state.element.clone()) {
                    context.event(Event::new("state-not-captured").with("element", &state.element).with("reason", error));
                }
            }
        }
    }

    /// A daemon registers with the FTM. It compares the number with the one that it knows.
    fn daemon(&mut self, daemon: &DaemonRegister, context: &mut Context<'_>) {
        context.send_to(daemon.armor, StateMemory { memory: self.states.number() });
    }

    fn look_later(&mut self, context: &mut Context<'_>) {
        if self.states.file().is_some() && !std::mem::replace(&mut self.looking, true) {
            context.timer(LOOK, 0);
        }
    }

    /// How the writing to disk goes.
    fn look(&mut self, context: &mut Context<'_>) {
        if let Some(FileRefused { reason, aside }) = self.states.take_file_refused() {
            let aside = aside.map_or_else(|error| error, |aside| aside.display().to_string());
            context.event(Event::new("state-file-refused").with("reason", reason).with("kept_as", aside));
        }
        let Some(state) = self.states.file().map(armor_core::capture::StateFile::state) else { return };
        match &state.trouble {
            Some(reason) if !self.trouble_told => {
                self.trouble_told = true;
                context.event(Event::new("state-not-written").with("reason", reason));
            }
            None if self.trouble_told => {
                self.trouble_told = false;
                context.event(Event::new("state-written-again"));
            }
            _ => {}
        }
        if state.unwritten > 0 || state.trouble.is_some() {
            self.look_later(context);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use armor_core::context::{Effect, Effects};
    use armor_proto::ids::ArmorId;
    use armor_proto::message::downcast;

    fn setup(directory: &tempfile::TempDir) -> Setup {
        Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "test".into(), run_dir: directory.path().into() }
    }

    fn element(store: Store, setup: &Setup) -> StateCapture {
        StateCapture::new(Config { store }, setup).unwrap()
    }

    fn told(effects: Effects) -> Vec<(String, String)> {
        let events = effects.into_iter().filter_map(|effect| match effect {
            Effect::Event(event) => Some((event.what.clone(), event.values.get("reason").cloned().unwrap_or_default())),
            _ => None,
        });
        events.collect()
    }

    #[test]
    fn a_state_that_cannot_be_saved_is_told_once_with_the_reason_and_again_when_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let setup = setup(&directory);
        let mut element = element(Store::Memory, &setup);
        let mut save = |state: Vec<u8>| {
            let (mut effects, state) = (Effects::new(), StateCaptured { element: "db".into(), state });
            element.captured(&state, &mut Context::detached(&setup, None, &mut effects));
            (told(effects), element.status())
        };
        assert_eq!(save(b"one".to_vec()).0, []);
        let large = vec![0; armor_core::capture::MAX_STATE + 1];
        let reason = "the state has 268435457 bytes, at most 268435456 are kept".to_owned();
        assert_eq!(save(large.clone()).0, [("state-not-captured".to_owned(), reason)]);
        let (events, status) = save(large);
        assert_eq!(events, []);
        assert_eq!((&status["captured"], &status["failed"], &status["failing"][0]), (&1.into(), &2.into(), &"db".into()));
        assert_eq!(save(b"five".to_vec()).0, [("state-captured-again".to_owned(), String::new())]);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_and_daemons_that_register_see_another_number() {
        let directory = tempfile::tempdir().unwrap();
        let setup = setup(&directory);
        std::fs::write(directory.path().join(STATE_FILE), "no store at all").unwrap();
        let mut element = element(Store::Disk, &setup);
        let mut effects = Effects::new();
        let mut context = Context::detached(&setup, None, &mut effects);
        element.start(&mut context).unwrap();
        let register = DaemonRegister {
            armor: ArmorId(7),
            name: "a".into(),
            carrier: crate::operations::Carrier::Tcp,
            address: String::new(),
            node_addresses: vec![],
        };
        element.daemon(&register, &mut context);
        element.daemon(&register, &mut context);
        element.states.not_taken("db");
        element.daemon(&register, &mut context);
        let numbers: Vec<u64> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Send(message) => Some(downcast::<StateMemory>(&message.top()?.operations[0])?.memory),
                _ => None,
            })
            .collect();
        assert!(numbers[0] == numbers[1] && numbers[1] != numbers[2], "{numbers:?}");
        let told = told(effects);
        assert!(
            told[0].0 == "state-file-refused" && told[0].1.starts_with(&directory.path().join(STATE_FILE).display().to_string()),
            "{told:?}"
        );
    }
}
