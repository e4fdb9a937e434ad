//! `heartbeat_responder`: answers heartbeats; one of the basic elements of every ARMOR (thesis §3.2.1).
//!
//! Subscribes: `MSG_HEARTBEAT`. Emits: `MSG_HEARTBEAT_REPLY`. Configuration: none.

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use serde::Deserialize;

use crate::operations::{Heartbeat, HeartbeatReply};

/// The element.
pub struct HeartbeatResponder {
    answered: u64,
}

/// No keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Element for HeartbeatResponder {
    const NAME: &'static str = "heartbeat_responder";
    const PURPOSE: &'static str = "answers heartbeats, so that the daemon or the FTM knows that this ARMOR lives";
    const EXAMPLE: &'static str = "";
    type Config = Config;

    fn new(_: Config, _: &Setup) -> Result<Self, String> {
        Ok(HeartbeatResponder { answered: 0 })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::heartbeat).emits::<HeartbeatReply>();
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "answered": self.answered })
    }
}

impl HeartbeatResponder {
    fn heartbeat(&mut self, heartbeat: &Heartbeat, context: &mut Context<'_>) {
        self.answered += 1;
        let reply = HeartbeatReply { sequence: heartbeat.sequence, armor: context.armor() };
        context.send_to(heartbeat.asker, reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use armor_core::context::Effect;
    use armor_proto::ids::ArmorId;

    #[test]
    fn a_heartbeat_is_answered_to_the_one_who_asked() {
        let setup = Setup { armor: ArmorId(5), name: "e".into(), kind: "test".into(), run_dir: "/".into() };
        let mut effects = Vec::new();
        let mut element = HeartbeatResponder { answered: 0 };
        element.heartbeat(&Heartbeat { sequence: 3, asker: ArmorId(9) }, &mut Context::detached(&setup, None, &mut effects));
        let [Effect::Send(message)] = &effects[..] else { panic!("one message") };
        assert_eq!(message.destination(), Some(ArmorId(9)));
    }
}
