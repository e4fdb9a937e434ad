//! `ftm_heartbeat`: the FTM asks every daemon whether it lives (thesis §3.3.1).
//!
//! When a node has failed is decided by `watch`. The nodes outlive this ARMOR: a node that dies together with the FTM's process is missed by the next one.
//! Subscribes: `MSG_DAEMON_REGISTER` (learns the daemons), `MSG_HEARTBEAT_REPLY`, `MSG_LEASE_ASK` (granted: see `node_lease`), `MSG_LINK_LOST` (asks at once), `MSG_LINK_STATE`.
//! Emits: `MSG_HEARTBEAT`, `MSG_LEASE_GRANTED`, and to this ARMOR `MSG_LINK_QUERY`, `MSG_NODE_FAILED`, `MSG_NODE_BACK`.
//! Configuration: `interval_ms`, `misses`, `busy_ms`; see [`Config`].
//!
//! Invariant: in one life a failure is told once; a daemon that answers again is told back.

#[cfg(test)]
#[path = "ftm_heartbeat/chance.rs"]
mod chance;
#[cfg(test)]
#[path = "ftm_heartbeat/lease_tests.rs"]
mod lease_tests;
#[path = "ftm_heartbeat/watch.rs"]
mod watch;

use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_proto::ids::ArmorId;
use serde::{Deserialize, Serialize};

use self::watch::{Act, State, Timing, Watch};
use crate::operations::{
    DaemonRegister, Heartbeat, HeartbeatReply, LeaseAsk, LeaseGranted, LinkLost, LinkQuery, LinkState, NodeBack, NodeFailed,
};

const MAX_NODES: usize = 4096;

/// The element.
pub struct FtmHeartbeat {
    config: Config,
    watch: Watch,
    /// The timer that counts, and when it runs out; earlier ones are ignored.
    timer: (u64, Option<Instant>),
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Pause between two heartbeats.
    #[serde(default = "default_interval_ms")]
    interval_ms: u64,
    /// A node has failed when nothing is heard of it for so many intervals and its link is gone or not acknowledged.
    #[serde(default = "default_misses")]
    misses: u32,
    /// A node whose kernel acknowledges while its daemon is silent has failed after so long. Longer than its vault takes to find a daemon
    /// that hangs and to start it again.
    #[serde(default = "default_busy_ms")]
    busy_ms: u64,
}

fn default_interval_ms() -> u64 {
    100
}
fn default_misses() -> u32 {
    3
}
fn default_busy_ms() -> u64 {
    3000
}

/// What outlives the FTM's process of a node.
#[derive(Serialize, Deserialize)]
struct Captured {
    armor: ArmorId,
    name: String,
    failed: bool,
}

impl Element for FtmHeartbeat {
    const NAME: &'static str = "ftm_heartbeat";
    const PURPOSE: &'static str = "the FTM's heartbeats to daemons: finds nodes that have failed";
    const EXAMPLE: &'static str = "interval_ms = 100\nmisses = 3\nbusy_ms = 3000\n";
    type Config = Config;

    fn new(config: Config, _: &Setup) -> Result<Self, String> {
        if config.interval_ms == 0 || config.misses == 0 {
            return Err("interval_ms and misses are at least 1".to_owned());
        }
        let interval = Duration::from_millis(config.interval_ms);
        let timing = Timing { interval, limit: interval.saturating_mul(config.misses), busy: Duration::from_millis(config.busy_ms) };
        if timing.limit > Duration::from_secs(3600) {
            return Err("interval_ms times misses is more than an hour; take less".to_owned());
        }
        if timing.busy < timing.limit || timing.busy > Duration::from_secs(86_400) {
            return Err(format!("busy_ms is {}; it is at least interval_ms times misses, and at most a day", config.busy_ms));
        }
        Ok(FtmHeartbeat { config, watch: Watch::new(timing, Instant::now()), timer: (0, None) })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::registered)
            .on(Self::reply)
            .on(Self::lease_asked)
            .on(Self::link_lost)
            .on(Self::link_state)
            .emits::<Heartbeat>()
            .emits::<LeaseGranted>()
            .emits::<LinkQuery>()
            .emits::<NodeFailed>()
            .emits::<NodeBack>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        self.carry_out(Instant::now(), context);
        Ok(())
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        if token == self.timer.0 {
            self.timer.1 = None;
            let now = Instant::now();
            self.watch.at(now);
            self.carry_out(now, context);
        }
    }

    fn capture(&self) -> Option<Vec<u8>> {
        let captured: Vec<Captured> = self
            .watch
            .nodes
            .iter()
            .map(|(armor, node)| Captured { armor: *armor, name: node.name.clone(), failed: Watch::is_told_failed(node) })
            .collect();
        rmp_serde::to_vec(&captured).ok()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let captured: Vec<Captured> = rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        for Captured { armor, name, failed } in captured.into_iter().take(MAX_NODES) {
            self.watch.restored(armor, name, failed, Instant::now());
        }
        Ok(())
    }

    fn status(&self) -> serde_json::Value {
        let now = Instant::now();
        let nodes: Vec<serde_json::Value> = self
            .watch
            .nodes
            .iter()
            .map(|(armor, node)| {
                let state = match node.state {
                    State::Alive => "alive",
                    State::Busy => "busy",
                    State::Failed => "failed",
                };
                serde_json::json!({
                    "armor": armor.to_string(), "name": node.name, "alive": node.state != State::Failed, "state": state,
                    "round_trip_us": node.round_trip.map(|trip| trip.as_micros() as u64), "silent_ms": node.silent(now).as_millis() as u64,
                })
            })
            .collect();
        serde_json::json!({ "interval_ms": self.config.interval_ms, "nodes": nodes })
    }
}

impl FtmHeartbeat {
    fn registered(&mut self, register: &DaemonRegister, context: &mut Context<'_>) {
        let known = self.watch.nodes.contains_key(&register.armor);
        // The FTM need not ask itself.
        if register.armor == context.armor() || (self.watch.nodes.len() >= MAX_NODES && !known) {
            return;
        }
        let now = Instant::now();
        self.watch.registered(register.armor, &register.name, now);
        if !known {
            context.state_changed();
        }
        self.carry_out(now, context);
    }

    fn reply(&mut self, reply: &HeartbeatReply, context: &mut Context<'_>) {
        let now = Instant::now();
        self.watch.replied(reply.armor, reply.sequence, now);
        self.carry_out(now, context);
    }

    /// A daemon wants to know that it was heard, as of a moment on its own clock. It is a sign of life.
    fn lease_asked(&mut self, ask: &LeaseAsk, context: &mut Context<'_>) {
        let now = Instant::now();
        if self.watch.spoke(ask.armor, now) {
            let limit_ms = self.watch.limit().as_millis() as u64;
            context.send_to(ask.armor, LeaseGranted { life: ask.life, asked_us: ask.asked_us, limit_ms });
        }
        self.carry_out(now, context);
    }

    fn link_lost(&mut self, lost: &LinkLost, context: &mut Context<'_>) {
        let now = Instant::now();
        if lost.reporter == context.armor() {
            self.watch.link_lost(lost.peer, now);
        } else {
            self.watch.doubted(lost.peer, now);
        }
        self.carry_out(now, context);
    }

    fn link_state(&mut self, state: &LinkState, context: &mut Context<'_>) {
        let now = Instant::now();
        let acknowledged = state.acknowledged_ms.map(|ms| Duration::from_millis(u64::from(ms)));
        let link = watch::LinkState { linked: state.linked, acknowledged, unacknowledged: state.unacknowledged };
        self.watch.link_state(state.peer, link, now);
        self.carry_out(now, context);
    }

    fn carry_out(&mut self, now: Instant, context: &mut Context<'_>) {
        while let Some(act) = self.watch.act() {
            let name = |armor: &ArmorId| self.watch.nodes.get(armor).map(|node| node.name.clone()).unwrap_or_default();
            match act {
                Act::Ask(armor, sequence) => context.send_to(armor, Heartbeat { sequence, asker: context.armor() }),
                Act::LookAtLink(peer) => context.send_to(context.armor(), LinkQuery { peer }),
                Act::Failed(armor, silent, why) => {
                    let name = name(&armor);
                    let event =
                        Event::new("node-failed").with("node", &name).with("silent_ms", silent.as_millis()).with("why", why.as_str());
                    context.event(event);
                    context.state_changed();
                    context.send_to(context.armor(), NodeFailed { armor, name });
                }
                Act::Back(armor) => {
                    let name = name(&armor);
                    context.event(Event::new("node-back").with("node", &name));
                    context.state_changed();
                    context.send_to(context.armor(), NodeBack { armor, name });
                }
            }
        }
        let due = self.watch.due();
        if self.timer.1.is_none_or(|armed| due < armed) {
            self.timer = (self.timer.0 + 1, Some(due));
            context.timer(due.saturating_duration_since(now), self.timer.0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]

    use super::*;

    #[test]
    fn a_configuration_that_cannot_be_followed_is_refused() {
        let setup = Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir: "/".into() };
        let works = |interval_ms, misses, busy_ms| FtmHeartbeat::new(Config { interval_ms, misses, busy_ms }, &setup).is_ok();
        assert!(works(100, 3, 3000) && works(1, 1, 1));
        for (interval_ms, misses, busy_ms) in
            [(0, 3, 3000), (100, 0, 3000), (100, 3, 299), (u64::MAX, u32::MAX, u64::MAX), (100, 3, u64::MAX)]
        {
            assert!(!works(interval_ms, misses, busy_ms), "{interval_ms} {misses} {busy_ms}");
        }
    }

    #[test]
    fn the_nodes_outlive_the_process() {
        let setup = Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir: "/".into() };
        let fresh = || FtmHeartbeat::new(Config { interval_ms: 100, misses: 3, busy_ms: 3000 }, &setup).expect("works");
        let (mut heartbeat, mut effects) = (fresh(), Vec::new());
        let register = DaemonRegister {
            armor: ArmorId(7),
            name: "a".into(),
            carrier: crate::operations::Carrier::Tcp,
            address: String::new(),
            node_addresses: vec![],
        };
        heartbeat.registered(&register, &mut Context::detached(&setup, None, &mut effects));
        let mut next = fresh();
        next.restore(&heartbeat.capture().expect("state")).expect("works");
        assert_eq!(next.watch.nodes[&ArmorId(7)].name, "a");
    }
}
