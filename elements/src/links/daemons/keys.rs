//! Who may say what on a link, and keys that are renewed or taken out.

use std::time::Instant;

use armor_core::context::Context;
use armor_proto::ids::ArmorId;
use armor_proto::secure::HandshakeError;

use super::{Daemons, LOOK, LOOKING, PeerLink, REKEY_AFTER};
use crate::links::LinkId;
use crate::links::security::kind_of;
use crate::operations::DaemonHello;

impl<L: PeerLink> Daemons<L> {
    /// Whether what a peer says to be is not what its key belongs to; its link is closed then.
    pub(crate) fn lies(&mut self, id: LinkId, hello: &DaemonHello, context: &mut Context<'_>) -> bool {
        let Some(held) = self.links.get(&id) else { return false };
        let (Some((name, _)), Some(security)) = (&held.shown, &mut self.security) else { return false };
        if hello.name == *name && hello.armor == ArmorId::of_name(name) {
            return false;
        }
        let error = HandshakeError::WrongName { said: hello.name.chars().take(48).collect(), listed: name.clone() };
        security.refuse(kind_of(&error), &held.remote, &error.to_string(), context);
        held.link.close();
        true
    }

    /// Once a second: nodes that were taken out of the list lose their links, and links that have had their keys for long get others.
    pub(crate) fn look_at_keys(&mut self, now: Instant, context: &mut Context<'_>) {
        context.timer(LOOK, LOOKING);
        let Some(security) = &mut self.security else { return };
        let changed = security.look(context);
        for held in self.links.values_mut() {
            if now.saturating_duration_since(held.rekeyed) >= REKEY_AFTER {
                held.rekeyed = now;
                held.link.rekey();
            }
            let Some((name, key)) = held.shown.as_ref().filter(|_| changed) else { continue };
            if !security.trusts(name, key) {
                security.refuse("removed", &held.remote, &format!("{name} has been taken out of the list of trusted nodes"), context);
                held.link.close();
            }
        }
    }
}
