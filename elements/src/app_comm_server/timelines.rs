//! How recoveries went, step by step, for `armor status` (thesis §6.2.4: error recovery time).

use std::collections::{BTreeMap, VecDeque};

use armor_core::events::now_ms;
use serde::Serialize;

/// Recoveries that are kept; the oldest are forgotten.
const KEPT: usize = 64;

/// What a recovery goes through, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Step {
    /// The overseer knows that the process has failed.
    #[serde(rename = "detected_ms")]
    Detected,
    /// The FTM has chosen another node for it.
    #[serde(rename = "chosen_ms")]
    Chosen,
    /// The next process runs.
    #[serde(rename = "restarted_ms")]
    Restarted,
    /// It has bound its address and listens.
    #[serde(rename = "bound_ms")]
    Bound,
    /// It has answered its question if it has one.
    #[serde(rename = "ready_ms")]
    Ready,
    /// A first connection is connected to it.
    #[serde(rename = "reconnected_ms")]
    Reconnected,
    /// Its client has been asked for what has to be said again.
    #[serde(rename = "replayed_ms")]
    Replayed,
    /// It has said again what its client had been given.
    #[serde(rename = "flowing_ms")]
    Flowing,
}

/// One recovery.
#[derive(Debug, Serialize)]
struct Timeline {
    service: String,
    incarnation: u32,
    /// When the process failed, in milliseconds since 1970.
    at_ms: u64,
    /// Milliseconds after that.
    #[serde(flatten)]
    steps: BTreeMap<Step, u64>,
    /// A stream without anything to be said again flows, and its client's bytes are still being written.
    #[serde(skip)]
    flows: bool,
}

/// The last recoveries of this ARMOR's services.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Timelines {
    recoveries: VecDeque<Timeline>,
}

impl Timelines {
    /// A recovery begins: the process before `incarnation` failed at `at_ms`, and its overseer has just said so.
    pub(super) fn begin(&mut self, service: &str, incarnation: u32, at_ms: u64) {
        if self.recoveries.len() >= KEPT {
            self.recoveries.pop_front();
        }
        self.recoveries.push_back(Timeline { service: service.to_owned(), incarnation, at_ms, steps: BTreeMap::new(), flows: false });
        self.reached(service, Step::Detected);
    }

    /// An application is taken over from a node that has failed: the FTM knew it, and chose this one, then, by its clock.
    pub(super) fn begin_moved(&mut self, service: &str, incarnation: u32, failed_at_ms: u64, chosen_at_ms: u64) {
        if self.recoveries.len() >= KEPT {
            self.recoveries.pop_front();
        }
        let steps = BTreeMap::from([(Step::Detected, 0), (Step::Chosen, chosen_at_ms.saturating_sub(failed_at_ms))]);
        self.recoveries.push_back(Timeline { service: service.to_owned(), incarnation, at_ms: failed_at_ms, steps, flows: false });
    }

    /// The last recovery of a service has come to a step now. The first to reach it counts.
    pub(super) fn reached(&mut self, service: &str, step: Step) {
        self.reached_at(service, step, now_ms());
    }

    /// The same, then, in milliseconds since 1970.
    pub(super) fn reached_at(&mut self, service: &str, step: Step, at_ms: u64) {
        if let Some(timeline) = self.recoveries.iter_mut().rev().find(|timeline| timeline.service == service) {
            let before = timeline.steps.range(..step).next_back().map_or(0, |(_, &after)| after);
            let after = at_ms.saturating_sub(timeline.at_ms).max(before);
            timeline.flows |= step == Step::Flowing;
            if step != Step::Flowing {
                timeline.steps.entry(step).or_insert(after);
            }
            if timeline.flows && timeline.steps.contains_key(&Step::Replayed) {
                timeline.steps.entry(Step::Flowing).or_insert(after);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_reach_a_step_counts_and_the_names_are_those_of_the_status() {
        let mut timelines = Timelines::default();
        timelines.begin("web", 2, now_ms());
        timelines.begin("other", 2, 0);
        timelines.reached_at("other", Step::Restarted, 1);
        timelines.recoveries[0].steps.insert(Step::Bound, 7);
        timelines.reached("web", Step::Bound);
        timelines.reached("web", Step::Flowing);
        assert!(serde_json::json!(timelines)[0]["flowing_ms"].is_null(), "not before its client's bytes are written again");
        timelines.reached("web", Step::Replayed);
        timelines.reached("nobody", Step::Flowing);
        let status = serde_json::json!(timelines);
        assert_eq!((status[0]["bound_ms"].as_u64(), status[0]["reconnected_ms"].as_u64()), (Some(7), None));
        assert!(status[0]["detected_ms"].is_u64() && status[0]["flowing_ms"].is_u64(), "{status}");
        assert!(status[1]["flowing_ms"].is_null(), "{status}");
        assert_eq!(status[1]["restarted_ms"], status[1]["detected_ms"], "a step that is told late is not before the one before");
    }

    #[test]
    fn the_oldest_recoveries_are_forgotten() {
        let mut timelines = Timelines::default();
        for incarnation in 0..100 {
            timelines.begin("web", incarnation, 0);
        }
        assert_eq!((timelines.recoveries.len(), timelines.recoveries[0].incarnation), (KEPT, 36));
    }
}
