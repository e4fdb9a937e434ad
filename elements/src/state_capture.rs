//! `state_capture`: keeps the captured state of an ARMOR's elements where a restart finds it (thesis §3.2.1); a basic element.
//!
//! Subscribes: `MSG_STATE_CAPTURED`. Emits: nothing. Configuration: none; states lie in `state/` of the run directory.
//!
//! Invariant: when a state cannot be saved the one before stays, and an event names the file and the reason: once, until it can be saved again.

use std::collections::BTreeSet;

use armor_core::capture::CaptureStore;
use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::StateCaptured;
use serde::Deserialize;

/// The element.
pub struct StateCapture {
    store: CaptureStore,
    captured: u64,
    failed: u64,
    /// Elements whose last state could not be saved.
    failing: BTreeSet<String>,
}

/// No keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Element for StateCapture {
    const NAME: &'static str = "state_capture";
    const PURPOSE: &'static str = "keeps captured element state, double-buffered and checksummed, for the ARMOR's next life";
    const EXAMPLE: &'static str = "";
    type Config = Config;

    fn new(_: Config, setup: &Setup) -> Result<Self, String> {
        let directory = setup.run_dir.join("state");
        let store = CaptureStore::open(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        Ok(StateCapture { store, captured: 0, failed: 0, failing: BTreeSet::new() })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::captured);
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "captured": self.captured, "failed": self.failed, "failing": self.failing })
    }
}

impl StateCapture {
    fn captured(&mut self, state: &StateCaptured, context: &mut Context<'_>) {
        match self.store.save(&state.element, &state.state) {
            Ok(()) => {
                self.captured += 1;
                if self.failing.remove(&state.element) {
                    context.event(Event::new("state-captured-again").with("element", &state.element));
                }
            }
            Err(error) => {
                self.failed += 1;
                if self.failing.insert(state.element.clone()) {
                    context.event(Event::new("state-not-captured").with("element", &state.element).with("reason", error));
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;
    use armor_core::context::{Effect, Effects};
    use armor_proto::ids::ArmorId;

    #[test]
    fn a_state_that_cannot_be_saved_is_told_once_with_file_and_reason_and_again_when_it_can() {
        let Ok(directory) = tempfile::tempdir() else { panic!("directory") };
        let setup = Setup { armor: ArmorId(5), name: "e".into(), kind: "test".into(), run_dir: directory.path().into() };
        let Ok(mut element) = StateCapture::new(Config {}, &setup) else { panic!("new") };
        let mut save = |state: &[u8]| {
            let (mut effects, state) = (Effects::new(), StateCaptured { element: "db".into(), state: state.to_vec() });
            element.captured(&state, &mut Context::detached(&setup, None, &mut effects));
            let events = effects.into_iter().map(|effect| match effect {
                Effect::Event(event) => (event.what.clone(), event.values.get("reason").cloned().unwrap_or_default()),
                _ => panic!("an event"),
            });
            (events.collect::<Vec<_>>(), element.status())
        };
        assert_eq!(save(b"one").0, []);
        assert_eq!(save(b"two").0, []);
        // What cannot be written to as a file.
        let slot = directory.path().join("state/db.0");
        assert!(std::fs::remove_file(&slot).and_then(|()| std::fs::create_dir(&slot)).is_ok());
        let reason = format!("{}: Is a directory (os error 21)", slot.display());
        assert_eq!(save(b"three").0, [("state-not-captured".to_owned(), reason)]);
        let (events, status) = save(b"four");
        assert_eq!(events, []);
        assert_eq!(status, serde_json::json!({ "captured": 2, "failed": 2, "failing": ["db"] }));
        let kept = CaptureStore::open(&directory.path().join("state")).ok().and_then(|store| store.load("db"));
        assert_eq!(kept.as_deref(), Some(&b"two"[..]));
        assert!(std::fs::remove_dir(&slot).is_ok());
        assert_eq!(save(b"five").0, [("state-captured-again".to_owned(), String::new())]);
    }
}
