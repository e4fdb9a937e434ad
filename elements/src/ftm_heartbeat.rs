//! `ftm_heartbeat`: the FTM asks every daemon whether it lives (thesis §3.3.1).
//!
//! Subscribes: `MSG_DAEMON_REGISTER` (learns the daemons), `MSG_HEARTBEAT_REPLY`.
//! Emits: `MSG_HEARTBEAT`, `MSG_NODE_FAILED`, `MSG_NODE_BACK` (to this ARMOR).
//! Configuration: `interval_ms`, `misses`; see [`Config`].
//!
//! Invariant: a failure is told once; a daemon that answers again is told back.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_proto::ids::ArmorId;
use serde::Deserialize;

use crate::operations::{DaemonRegister, Heartbeat, HeartbeatReply, NodeBack, NodeFailed};

const MAX_NODES: usize = 4096;
/// Heartbeats on their way whose round trip can still be measured.
const REMEMBERED: usize = 32;
/// A node that has failed is asked only every so many intervals.
const FAILED_EVERY: u64 = 10;

/// The element.
pub struct FtmHeartbeat {
    config: Config,
    sequence: u64,
    sent: VecDeque<(u64, Instant)>,
    nodes: BTreeMap<ArmorId, Node>,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Pause between two heartbeats.
    #[serde(default = "default_interval_ms")]
    interval_ms: u64,
    /// A node has failed when it leaves this many heartbeats in a row without an answer.
    #[serde(default = "default_misses")]
    misses: u32,
}

fn default_interval_ms() -> u64 {
    100
}
fn default_misses() -> u32 {
    3
}

struct Node {
    name: String,
    misses: u32,
    asked: bool,
    failed: bool,
    round_trip_us: Option<u64>,
}

impl Element for FtmHeartbeat {
    const NAME: &'static str = "ftm_heartbeat";
    const PURPOSE: &'static str = "the FTM's heartbeats to daemons: finds nodes that have failed";
    const EXAMPLE: &'static str = "interval_ms = 100\nmisses = 3\n";
    type Config = Config;

    fn new(config: Config, _: &Setup) -> Result<Self, String> {
        if config.interval_ms == 0 || config.misses == 0 {
            return Err("interval_ms and misses are at least 1".to_owned());
        }
        Ok(FtmHeartbeat { config, sequence: 0, sent: VecDeque::new(), nodes: BTreeMap::new() })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::registered).on(Self::reply).emits::<Heartbeat>().emits::<NodeFailed>().emits::<NodeBack>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        context.timer(Duration::from_millis(self.config.interval_ms), 0);
        Ok(())
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.beat(Instant::now(), context);
        context.timer(Duration::from_millis(self.config.interval_ms), 0);
    }

    fn status(&self) -> serde_json::Value {
        let nodes: Vec<serde_json::Value> = self
            .nodes
            .iter()
            .map(|(armor, node)| {
                serde_json::json!({
                    "armor": armor.to_string(), "name": node.name, "alive": !node.failed,
                    "round_trip_us": node.round_trip_us, "misses": node.misses,
                })
            })
            .collect();
        serde_json::json!({ "interval_ms": self.config.interval_ms, "nodes": nodes })
    }
}

impl FtmHeartbeat {
    fn registered(&mut self, register: &DaemonRegister, context: &mut Context<'_>) {
        // The FTM need not ask itself.
        if register.armor == context.armor() || (self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(&register.armor)) {
            return;
        }
        let node = self.nodes.entry(register.armor).or_insert_with(|| Node {
            name: register.name.clone(),
            misses: 0,
            asked: false,
            failed: false,
            round_trip_us: None,
        });
        // It has just spoken.
        node.misses = 0;
        node.asked = false;
    }

    fn beat(&mut self, now: Instant, context: &mut Context<'_>) {
        self.sequence += 1;
        self.sent.push_back((self.sequence, now));
        if self.sent.len() > REMEMBERED {
            self.sent.pop_front();
        }
        for (armor, node) in &mut self.nodes {
            if node.asked {
                node.misses = node.misses.saturating_add(1);
            }
            if node.misses >= self.config.misses && !node.failed {
                node.failed = true;
                let silent_ms = u64::from(node.misses) * self.config.interval_ms;
                context.event(Event::new("node-failed").with("node", &node.name).with("silent_ms", silent_ms));
                context.send_to(context.armor(), NodeFailed { armor: *armor, name: node.name.clone() });
            }
            node.asked = !node.failed || self.sequence.is_multiple_of(FAILED_EVERY);
            if node.asked {
                context.send_to(*armor, Heartbeat { sequence: self.sequence, asker: context.armor() });
            }
        }
    }

    fn reply(&mut self, reply: &HeartbeatReply, context: &mut Context<'_>) {
        let Some(node) = self.nodes.get_mut(&reply.armor) else { return };
        node.misses = 0;
        node.asked = false;
        if let Some((_, sent)) = self.sent.iter().find(|(sequence, _)| *sequence == reply.sequence) {
            node.round_trip_us = u64::try_from(sent.elapsed().as_micros()).ok();
        }
        if std::mem::replace(&mut node.failed, false) {
            context.event(Event::new("node-back").with("node", &node.name));
            context.send_to(context.armor(), NodeBack { armor: reply.armor, name: node.name.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;
    use armor_core::context::Effect;
    use armor_proto::message::downcast;

    #[test]
    fn a_silent_node_fails_once_and_comes_back_when_it_answers() {
        let setup = Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir: "/".into() };
        let mut heartbeat = FtmHeartbeat::new(Config { interval_ms: 100, misses: 3 }, &setup).expect("works");
        let mut effects = Vec::new();
        let mut context = Context::detached(&setup, None, &mut effects);
        let register = DaemonRegister { armor: ArmorId(7), name: "a".into(), address: String::new(), node_addresses: vec![] };
        heartbeat.registered(&register, &mut context);
        for _ in 0..20 {
            heartbeat.beat(Instant::now(), &mut context);
        }
        heartbeat.reply(&HeartbeatReply { sequence: 20, armor: ArmorId(7) }, &mut context);
        let told: Vec<&str> =
            effects.iter().filter_map(|effect| if let Effect::Event(event) = effect { Some(event.what.as_str()) } else { None }).collect();
        assert_eq!(told, ["node-failed", "node-back"]);
        let failures = effects.iter().filter(|effect| {
            matches!(effect, Effect::Send(message) if message.top().is_some_and(|bundle| downcast::<NodeFailed>(&bundle.operations[0]).is_some()))
        });
        assert_eq!(failures.count(), 1);
        assert!(heartbeat.nodes[&ArmorId(7)].round_trip_us.is_some());
    }

    #[test]
    fn a_node_that_answers_late_but_steadily_has_not_failed() {
        let setup = Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir: "/".into() };
        let mut heartbeat = FtmHeartbeat::new(Config { interval_ms: 100, misses: 3 }, &setup).expect("works");
        let mut effects = Vec::new();
        let mut context = Context::detached(&setup, None, &mut effects);
        let register = DaemonRegister { armor: ArmorId(7), name: "a".into(), address: String::new(), node_addresses: vec![] };
        heartbeat.registered(&register, &mut context);
        for sequence in 1..20u64 {
            heartbeat.beat(Instant::now(), &mut context);
            heartbeat.reply(&HeartbeatReply { sequence: sequence.saturating_sub(2), armor: ArmorId(7) }, &mut context);
        }
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Event(_))));
    }
}
