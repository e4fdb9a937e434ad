//! Peers that do not answer on links that may come back (datagrams). What waits on such a link is kept; meanwhile its peer is dialled, since it may be
//! another process by now, or elsewhere.

use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::ids::ArmorId;

use super::{Daemons, PeerLink};
use crate::links::LinkId;
use crate::operations::LocateArmor;

/// A link whose peer has been silent for so long is given up for another one that there is.
const OTHER_AFTER: Duration = Duration::from_secs(2);
/// One whose peer has been silent for so long is closed: it is dialled anew when something is to be said.
const LONGEST_SILENCE: Duration = Duration::from_secs(15 * 60);

impl<L: PeerLink> Daemons<L> {
    /// The peer of a link does not answer, or does again.
    pub(crate) fn silent(&mut self, id: LinkId, silent: bool, context: &mut Context<'_>) {
        let Some(armor) = self.links.get(&id).and_then(|held| held.peer) else { return };
        let Some(peer) = self.peers.get_mut(&armor) else { return };
        if peer.link.as_ref().is_none_or(|(current, _)| *current != id) {
            return;
        }
        if silent {
            peer.silent.get_or_insert_with(Instant::now);
            self.dial(armor, context);
            if armor != ArmorId::FTM {
                // Who knows where it is now.
                context.send_to(ArmorId::FTM, LocateArmor { armor, asker: context.armor() });
            }
            self.tick_later(context);
            return;
        }
        let Some(since) = peer.silent.take() else { return };
        peer.attempts = 0;
        peer.backoff.reset();
        if std::mem::take(&mut peer.told) {
            let ms = since.elapsed().as_millis();
            context.event(Event::new("link-up").with("peer", &peer.name).with("silent_ms", ms));
        }
        // Those that were dialled in its place are not needed.
        for (other, held) in &self.links {
            if *other != id && held.peer == Some(armor) && held.instead {
                held.link.close();
            }
        }
    }

    /// The peer of a link is at another address now.
    pub(crate) fn moved(&mut self, id: LinkId, remote: String, context: &mut Context<'_>) {
        let Some(held) = self.links.get_mut(&id) else { return };
        let before = std::mem::replace(&mut held.remote, remote.clone());
        if held.return_address.is_some() {
            held.return_address = Some(remote.clone());
        }
        let Some(peer) = held.peer.and_then(|armor| self.peers.get_mut(&armor)) else { return };
        peer.heard_at = Some(remote.clone());
        context.event(Event::new("link-moved").with("peer", &peer.name).with("from", before).with("address", remote));
        context.state_changed();
    }

    /// Closes the links to a daemon but one.
    pub(super) fn close_others(&self, armor: ArmorId, id: LinkId) {
        for (other, held) in &self.links {
            if *other != id && held.peer == Some(armor) {
                held.link.close();
            }
        }
    }

    pub(super) fn is_watching_silence(&self) -> bool {
        self.peers.values().any(|peer| peer.silent.is_some())
    }

    /// Gives up links whose peers have been silent for too long.
    pub(super) fn look_at_silence(&mut self, now: Instant, context: &mut Context<'_>) {
        let silent = |since: &Instant, limit| now.saturating_duration_since(*since) >= limit;
        let long: Vec<ArmorId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.silent.as_ref().is_some_and(|since| silent(since, OTHER_AFTER)))
            .map(|(armor, _)| *armor)
            .collect();
        for armor in long {
            let other = self.links.iter().find(|(id, held)| {
                held.peer == Some(armor)
                    && self.peers.get(&armor).and_then(|peer| peer.link.as_ref()).is_some_and(|(current, _)| current != *id)
            });
            let other = other.map(|(id, held)| (*id, held.link.clone()));
            let Some(peer) = self.peers.get_mut(&armor) else { continue };
            let Some((_, link)) = &peer.link else { continue };
            let Some((id, other)) = other else {
                if peer.silent.as_ref().is_some_and(|since| silent(since, LONGEST_SILENCE)) {
                    link.close();
                }
                continue;
            };
            peer.link = Some((id, other));
            peer.silent = None;
            peer.attempts = 0;
            if std::mem::take(&mut peer.told) {
                context.event(Event::new("link-up").with("peer", &peer.name));
            }
            self.close_others(armor, id);
            self.flush_towards(armor, context);
        }
    }
}
