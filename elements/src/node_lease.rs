//! `node_lease`: until when the applications of this node may run although nothing is heard of the FTM.
//!
//! Purpose: with `isolated = "stop"` the node asks the FTM for a lease with each of its heartbeats. `term` says until when one lasts, and why it has run out before the FTM
//! starts anything elsewhere. Overseers, in this daemon and in the ARMORs of its node, stop by themselves what may run elsewhere when it has (`app_oversight`).
//! Subscribes: `MSG_HEARTBEAT`, `MSG_LEASE_GRANTED`. Emits: `MSG_LEASE_ASK` (to the FTM), `MSG_LEASE_TOLD` (to this ARMOR; `daemon_gateway` takes it on).
//! Configuration: `isolated` (`"serve"`: applications go on; `"stop"`), `lease_ms`.
//!
//! Invariant: a lease counts from before its question was sent, never from its answer.

#[path = "node_lease/term.rs"]
pub(crate) mod term;

use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::now_ms;
use armor_proto::ids::ArmorId;
use serde::Deserialize;

use crate::operations::{Heartbeat, LeaseAsk, LeaseGranted, LeaseTold, since_boot};

/// The element.
pub struct NodeLease {
    config: Config,
    /// Tells questions of this life from those of others.
    life: u64,
    granted: u64,
    until: Option<Duration>,
}

/// What becomes of applications that may run elsewhere when this node is isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolated {
    /// They go on, for whoever can reach them.
    #[default]
    Serve,
    /// They are killed before the FTM starts them elsewhere.
    Stop,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    isolated: Isolated,
    /// Longest lease; it is cut to what the FTM's own patience allows ([`term::until`]).
    lease_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { isolated: Isolated::Serve, lease_ms: 250 }
    }
}

impl Element for NodeLease {
    const NAME: &'static str = "node_lease";
    const PURPOSE: &'static str = "stops the applications of a node that is isolated before they are started elsewhere";
    const EXAMPLE: &'static str = "isolated = \"stop\"\nlease_ms = 250\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        if config.lease_ms == 0 || config.lease_ms > 3_600_000 {
            return Err(format!("lease_ms is {}; it is at least 1, and at most an hour", config.lease_ms));
        }
        Ok(NodeLease { config, life: now_ms() << 20 ^ setup.armor.0, granted: 0, until: None })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::heartbeat).on(Self::granted).emits::<LeaseAsk>().emits::<LeaseTold>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        // The FTM counts from what it hears of this life, which is later than now. What an earlier life had been granted its overseers know.
        let longest = Duration::from_millis(self.config.lease_ms);
        self.until = (self.config.isolated == Isolated::Stop).then(|| since_boot() + longest);
        self.tell(true, context);
        Ok(())
    }

    fn status(&self) -> serde_json::Value {
        let left = self.until.map(|until| until.saturating_sub(since_boot()).as_millis() as u64);
        let isolated = if self.config.isolated == Isolated::Stop { "stop" } else { "serve" };
        serde_json::json!({ "isolated": isolated, "lease_ms": self.config.lease_ms, "left_ms": left, "granted": self.granted })
    }
}

impl NodeLease {
    fn heartbeat(&mut self, heartbeat: &Heartbeat, context: &mut Context<'_>) {
        if self.config.isolated == Isolated::Stop && heartbeat.asker == ArmorId::FTM {
            let ask = LeaseAsk { armor: context.armor(), life: self.life, asked_us: since_boot().as_micros() as u64 };
            context.send_to(ArmorId::FTM, ask);
        }
    }

    fn granted(&mut self, granted: &LeaseGranted, context: &mut Context<'_>) {
        let asked = Duration::from_micros(granted.asked_us);
        if self.config.isolated == Isolated::Serve || granted.life != self.life || asked > since_boot() {
            return;
        }
        let until = term::until(asked, Duration::from_millis(self.config.lease_ms), Duration::from_millis(granted.limit_ms));
        self.granted += 1;
        if self.until.is_none_or(|before| before < until) {
            self.until = Some(until);
            self.tell(false, context);
        }
    }

    fn tell(&self, opening: bool, context: &mut Context<'_>) {
        let until_us = self.until.map(|until| until.as_micros() as u64);
        context.send_to(context.armor(), LeaseTold { until_us, opening });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;
    use armor_core::context::Effect;
    use armor_proto::message::downcast;
    use armor_proto::operation::Operation;

    fn setup() -> Setup {
        Setup { armor: ArmorId(5), name: "b".into(), kind: "daemon".into(), run_dir: "/".into() }
    }

    fn sent<O: Operation>(run: impl FnOnce(&mut Context<'_>)) -> Vec<O> {
        let (setup, mut effects) = (setup(), Vec::new());
        run(&mut Context::detached(&setup, None, &mut effects));
        let messages = effects.iter().filter_map(|effect| if let Effect::Send(message) = effect { Some(message) } else { None });
        messages.filter_map(|message| downcast::<O>(&message.top()?.operations[0]).cloned()).collect()
    }

    fn element(isolated: Isolated) -> NodeLease {
        NodeLease::new(Config { isolated, lease_ms: 250 }, &setup()).expect("works")
    }

    #[test]
    fn a_lease_counts_from_its_question_and_only_the_ftm_is_asked() {
        let mut lease = element(Isolated::Stop);
        let beat = |asker| Heartbeat { sequence: 1, asker };
        assert_eq!(sent::<LeaseAsk>(|context| lease.heartbeat(&beat(ArmorId(9)), context)).len(), 0);
        let asks = sent::<LeaseAsk>(|context| lease.heartbeat(&beat(ArmorId::FTM), context));
        let [LeaseAsk { armor: ArmorId(5), life, asked_us }] = asks[..] else { panic!("{asks:?}") };
        let granted = |life, asked_us| LeaseGranted { life, asked_us, limit_ms: 300 };
        let told = sent::<LeaseTold>(|context| lease.granted(&granted(life, asked_us), context));
        assert!(matches!(told[..], [LeaseTold { until_us: Some(until), opening: false }] if until == asked_us + 250_000), "{told:?}");
        // Old, of another life, or of another boot.
        for wrong in [granted(life, asked_us), granted(life, asked_us - 1), granted(life + 1, asked_us + 1), granted(life, u64::MAX / 2)] {
            assert_eq!(sent::<LeaseTold>(|context| lease.granted(&wrong, context)).len(), 0, "{wrong:?}");
        }
    }

    #[test]
    fn a_node_that_serves_asks_for_nothing_and_tells_that_none_is_needed() {
        let mut lease = element(Isolated::Serve);
        assert_eq!(sent::<LeaseAsk>(|context| lease.heartbeat(&Heartbeat { sequence: 1, asker: ArmorId::FTM }, context)).len(), 0);
        let told = sent::<LeaseTold>(|context| lease.start(context).expect("works"));
        assert!(matches!(told[..], [LeaseTold { until_us: None, opening: true }]));
    }

    #[test]
    fn a_lease_of_no_time_is_refused() {
        for lease_ms in [0, u64::MAX] {
            assert!(NodeLease::new(Config { isolated: Isolated::Stop, lease_ms }, &setup()).is_err());
        }
    }
}
