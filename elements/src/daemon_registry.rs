//! `daemon_registry`: the FTM's list of all daemons of the network and of the ARMORs behind them (thesis §5.4).
//!
//! Subscribes: `MSG_DAEMON_REGISTER`, `MSG_ARMOR_INSTALLED`, `MSG_LOCATE_ARMOR`, `MSG_HEARTBEAT_REPLY`, `MSG_NODE_FAILED`,
//! `MSG_NODE_BACK`.
//! Emits: `MSG_DAEMON_REGISTERED`, `MSG_ARMOR_LOCATION`.
//! Configuration: none.
//!
//! Invariant: an identity belongs to one name; both tables are bounded.

use std::collections::BTreeMap;
use std::net::IpAddr;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::{Event, now_ms};
use armor_proto::ids::{ArmorId, MessageId};
use serde::{Deserialize, Serialize};

use crate::operations::{
    ArmorInstalled, ArmorLocation, Carrier, DaemonRegister, DaemonRegistered, HeartbeatReply, LocateArmor, NodeBack, NodeFailed,
};

const MAX_DAEMONS: usize = 4096;
const MAX_ARMORS: usize = 65_536;

/// The element.
#[derive(Default)]
pub struct DaemonRegistry {
    table: Table,
    /// Not captured: what an observer wants to know, of this life.
    seen: BTreeMap<ArmorId, Seen>,
    /// Number of the newest announcement of an ARMOR; announcements are sent again and may overtake each other.
    newest: BTreeMap<ArmorId, (ArmorId, MessageId)>,
}

/// No keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

#[derive(Default, Serialize, Deserialize)]
struct Table {
    daemons: BTreeMap<ArmorId, Daemon>,
    armors: BTreeMap<ArmorId, Installed>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct Daemon {
    name: String,
    /// By what it is reached, and where.
    addresses: BTreeMap<Carrier, String>,
    node_addresses: Vec<IpAddr>,
}

impl Daemon {
    fn address(&self) -> &str {
        self.addresses.values().next().map_or("", String::as_str)
    }
}

#[derive(PartialEq, Serialize, Deserialize)]
struct Installed {
    name: String,
    daemon: ArmorId,
}

#[derive(Default)]
struct Seen {
    last_ms: u64,
    failed: bool,
}

impl Element for DaemonRegistry {
    const NAME: &'static str = "daemon_registry";
    const PURPOSE: &'static str = "the FTM's list of daemons, their addresses, and where every ARMOR is";
    const EXAMPLE: &'static str = "";
    type Config = Config;

    fn new(_: Config, _: &Setup) -> Result<Self, String> {
        Ok(DaemonRegistry::default())
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::register)
            .on(Self::installed)
            .on(Self::locate)
            .on(Self::heard)
            .on(Self::node_failed)
            .on(Self::node_back)
            .emits::<DaemonRegistered>()
            .emits::<ArmorLocation>();
    }

    fn capture(&self) -> Option<Vec<u8>> {
        rmp_serde::to_vec(&self.table).ok()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.table = rmp_serde::from_slice(state).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn status(&self) -> serde_json::Value {
        let daemons: Vec<serde_json::Value> = self
            .table
            .daemons
            .iter()
            .map(|(id, daemon)| {
                let armors = self.table.armors.iter().filter(|(_, armor)| armor.daemon == *id);
                let armors: Vec<serde_json::Value> =
                    armors.map(|(id, armor)| serde_json::json!({ "armor": id.to_string(), "name": armor.name })).collect();
                let seen = self.seen.get(id);
                serde_json::json!({
                    "armor": id.to_string(), "name": daemon.name, "address": daemon.address(), "addresses": daemon.addresses.values().collect::<Vec<_>>(), "node_addresses": daemon.node_addresses,
                    "last_seen_ms": seen.map(|seen| seen.last_ms), "failed": seen.is_some_and(|seen| seen.failed), "armors": armors,
                })
            })
            .collect();
        serde_json::json!({ "daemons": daemons })
    }
}

impl DaemonRegistry {
    fn register(&mut self, register: &DaemonRegister, context: &mut Context<'_>) {
        let reason = self.refusal(register);
        let accepted = reason.is_none();
        if let Some(reason) = &reason {
            context.event(Event::new("daemon-refused").with("daemon", &register.name).with("reason", reason));
        } else {
            // One with both kinds of links registers by each.
            let mut addresses = self.table.daemons.get(&register.armor).map_or_else(BTreeMap::new, |known| known.addresses.clone());
            addresses.insert(register.carrier, register.address.clone());
            let row = Daemon { name: register.name.clone(), addresses, node_addresses: register.node_addresses.clone() };
            self.seen.insert(register.armor, Seen { last_ms: now_ms(), failed: false });
            let event = Event::new("daemon-registered").with("daemon", &row.name).with("address", &register.address);
            if self.table.daemons.get(&register.armor) != Some(&row) {
                self.table.daemons.insert(register.armor, row);
                context.state_changed();
            }
            context.event(event);
        }
        context.send_to(register.armor, DaemonRegistered { accepted, reason: reason.unwrap_or_default() });
    }

    fn refusal(&self, register: &DaemonRegister) -> Option<String> {
        match self.table.daemons.get(&register.armor) {
            Some(known) if known.name != register.name => Some(format!(
                "the identity of {:?} belongs to {:?} in this network: give one of them another name",
                register.name, known.name
            )),
            None if self.table.daemons.len() >= MAX_DAEMONS => Some(format!("{MAX_DAEMONS} daemons are registered; no more are accepted")),
            _ => None,
        }
    }

    fn installed(&mut self, installed: &ArmorInstalled, context: &mut Context<'_>) {
        if let Some(message) = context.message() {
            let number = (message.source, message.id);
            if self.newest.get(&installed.armor).is_some_and(|newest| overtaken(*newest, number)) {
                return;
            }
            if self.newest.len() < MAX_ARMORS || self.newest.contains_key(&installed.armor) {
                self.newest.insert(installed.armor, number);
            }
        }
        let known = self.table.armors.get(&installed.armor);
        if !installed.present {
            // It may be at another daemon already.
            if known.is_some_and(|known| known.daemon == installed.daemon) {
                self.table.armors.remove(&installed.armor);
                context.state_changed();
            }
            return;
        }
        let row = Installed { name: installed.name.clone(), daemon: installed.daemon };
        if known == Some(&row) {
            return;
        }
        if known.is_none() && self.table.armors.len() >= MAX_ARMORS {
            context.event(Event::new("armor-refused").with("name", &row.name).with("reason", format!("{MAX_ARMORS} ARMORs are known")));
            return;
        }
        self.table.armors.insert(installed.armor, row);
        context.state_changed();
    }

    fn locate(&mut self, locate: &LocateArmor, context: &mut Context<'_>) {
        let daemon = match self.table.armors.get(&locate.armor) {
            Some(installed) => installed.daemon,
            None if self.table.daemons.contains_key(&locate.armor) => locate.armor,
            None => ArmorId::NONE,
        };
        let (daemon, carrier, address) = self.way(locate.asker, daemon);
        context.send_to(locate.asker, ArmorLocation { armor: locate.armor, daemon, carrier, address });
    }

    /// How `asker` reaches `daemon`: straight when both have links of one kind, else by one that has links of both (thesis §5.4), the FTM if it does.
    fn way(&self, asker: ArmorId, daemon: ArmorId) -> (ArmorId, Carrier, String) {
        let Some(target) = self.table.daemons.get(&daemon) else { return (daemon, Carrier::Tcp, String::new()) };
        let straight = |carrier: Carrier| (daemon, carrier, target.addresses.get(&carrier).cloned().unwrap_or_default());
        let first = target.addresses.keys().next().copied().unwrap_or(Carrier::Tcp);
        let Some(from) = self.table.daemons.get(&asker) else { return straight(first) };
        if let Some(carrier) = target.addresses.keys().find(|carrier| from.addresses.contains_key(carrier)) {
            return straight(*carrier);
        }
        let between = self.table.daemons.iter().filter(|(id, row)| {
            let failed = self.seen.get(id).is_some_and(|seen| seen.failed);
            let joins = |other: &Daemon| row.addresses.keys().any(|carrier| other.addresses.contains_key(carrier));
            !failed && joins(from) && joins(target)
        });
        let Some((id, row)) = between.min_by_key(|(id, _)| **id != ArmorId::FTM) else { return straight(first) };
        let by = row.addresses.iter().find(|(carrier, _)| from.addresses.contains_key(carrier));
        by.map_or_else(|| straight(first), |(carrier, address)| (*id, *carrier, address.clone()))
    }

    fn heard(&mut self, reply: &HeartbeatReply, _: &mut Context<'_>) {
        if let Some(seen) = self.seen.get_mut(&reply.armor) {
            seen.last_ms = now_ms();
        }
    }

    fn node_failed(&mut self, failed: &NodeFailed, _: &mut Context<'_>) {
        if let Some(seen) = self.seen.get_mut(&failed.armor) {
            seen.failed = true;
        }
    }

    fn node_back(&mut self, back: &NodeBack, _: &mut Context<'_>) {
        if let Some(seen) = self.seen.get_mut(&back.armor) {
            seen.failed = false;
        }
    }
}

/// Whether `number` was sent before `newest` in the same life of the same sender.
fn overtaken(newest: (ArmorId, MessageId), number: (ArmorId, MessageId)) -> bool {
    let (newest_source, newest) = newest;
    let (source, number) = number;
    source == newest_source && number.0 >> 32 == newest.0 >> 32 && number.0 < newest.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;
    use armor_core::context::Effect;
    use armor_proto::message::{Message, downcast};
    use armor_proto::operation::Operation;

    fn register(name: &str, armor: ArmorId) -> DaemonRegister {
        DaemonRegister { armor, name: name.into(), carrier: Carrier::Tcp, address: format!("{name}:1"), node_addresses: vec![] }
    }

    fn sent<O: Operation>(run: impl FnOnce(&mut Context<'_>)) -> Vec<O> {
        let setup = Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir: "/".into() };
        let mut effects = Vec::new();
        run(&mut Context::detached(&setup, None, &mut effects));
        let messages = effects.iter().filter_map(|effect| if let Effect::Send(message) = effect { Some(message) } else { None });
        messages.filter_map(|message| downcast::<O>(&message.top()?.operations[0]).cloned()).collect()
    }

    #[test]
    fn a_daemon_may_register_again_but_a_name_that_collides_is_refused() {
        let mut registry = DaemonRegistry::default();
        let accepted = |registry: &mut DaemonRegistry, name: &str| {
            sent::<DaemonRegistered>(|context| registry.register(&register(name, ArmorId(7)), context))[0].accepted
        };
        assert!(accepted(&mut registry, "a"));
        assert!(accepted(&mut registry, "a"));
        assert!(!accepted(&mut registry, "b"));
    }

    #[test]
    fn an_armor_is_located_at_its_daemon_also_after_a_restart_of_the_ftm() {
        let mut registry = DaemonRegistry::default();
        sent::<DaemonRegistered>(|context| registry.register(&register("a", ArmorId(7)), context));
        let here = ArmorInstalled { armor: ArmorId(70), name: "a/x".into(), daemon: ArmorId(7), present: true };
        sent::<DaemonRegistered>(|context| registry.installed(&here, context));
        let mut next = DaemonRegistry::default();
        next.restore(&registry.capture().unwrap_or_default()).expect("works");
        let mut locate = |armor| {
            let locate = LocateArmor { armor, asker: ArmorId(9) };
            let ArmorLocation { daemon, address, .. } = sent::<ArmorLocation>(|context| next.locate(&locate, context)).remove(0);
            (daemon, address)
        };
        assert_eq!(locate(ArmorId(70)), (ArmorId(7), "a:1".to_owned()));
        assert_eq!(locate(ArmorId(7)), (ArmorId(7), "a:1".to_owned()));
        assert_eq!(locate(ArmorId(71)), (ArmorId::NONE, String::new()));
    }

    #[test]
    fn daemons_with_links_of_different_kinds_reach_each_other_by_one_that_has_both() {
        let mut registry = DaemonRegistry::default();
        let add = |registry: &mut DaemonRegistry, armor, name: &str, carriers: &[Carrier]| {
            for carrier in carriers {
                let register = DaemonRegister { carrier: *carrier, address: format!("{name}-{carrier:?}"), ..register(name, armor) };
                sent::<DaemonRegistered>(|context| registry.register(&register, context));
            }
        };
        add(&mut registry, ArmorId(7), "tcp", &[Carrier::Tcp]);
        add(&mut registry, ArmorId(8), "udp", &[Carrier::Udp]);
        assert_eq!(registry.way(ArmorId(8), ArmorId(7)).0, ArmorId(7), "there is no way");
        add(&mut registry, ArmorId(9), "both", &[Carrier::Tcp, Carrier::Udp]);
        assert_eq!(registry.way(ArmorId(8), ArmorId(7)), (ArmorId(9), Carrier::Udp, "both-Udp".to_owned()));
        assert_eq!(registry.way(ArmorId(7), ArmorId(8)), (ArmorId(9), Carrier::Tcp, "both-Tcp".to_owned()));
        assert_eq!(registry.way(ArmorId(9), ArmorId(8)), (ArmorId(8), Carrier::Udp, "udp-Udp".to_owned()));
        add(&mut registry, ArmorId::FTM, "ftm", &[Carrier::Tcp, Carrier::Udp]);
        assert_eq!(registry.way(ArmorId(8), ArmorId(7)).0, ArmorId::FTM);
    }

    #[test]
    fn an_old_announcement_that_comes_late_changes_nothing() {
        let mut registry = DaemonRegistry::default();
        let setup = Setup { armor: ArmorId::FTM, name: "ftm".into(), kind: "ftm".into(), run_dir: "/".into() };
        for (number, present) in [(5, true), (4, false)] {
            let installed = ArmorInstalled { armor: ArmorId(70), name: "x".into(), daemon: ArmorId(7), present };
            let mut message = Message::to(ArmorId::FTM, installed.clone());
            message.source = ArmorId(7);
            message.id = MessageId(number);
            let mut effects = Vec::new();
            registry.installed(&installed, &mut Context::detached(&setup, Some(&mut message), &mut effects));
        }
        assert!(registry.table.armors.contains_key(&ArmorId(70)));
    }
}
