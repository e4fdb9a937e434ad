//! `state_capture`: keeps the captured state of an ARMOR's elements where a restart finds it (thesis §3.2.1); a basic element.
//!
//! Subscribes: `MSG_STATE_CAPTURED`. Emits: nothing. Configuration: none; states lie in `state/` of the run directory.

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
        Ok(StateCapture { store, captured: 0 })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::captured);
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "captured": self.captured })
    }
}

impl StateCapture {
    fn captured(&mut self, state: &StateCaptured, context: &mut Context<'_>) {
        match self.store.save(&state.element, &state.state) {
            Ok(()) => self.captured += 1,
            Err(error) => context.event(Event::new("state-not-captured").with("element", &state.element).with("reason", error)),
        }
    }
}
