//! The way of a message: to a daemon that is linked, or into the queue of those that wait for their way, which is sought meanwhile.

use std::time::Instant;

use armor_core::context::{Context, Routed};
use armor_core::events::Event;
use armor_proto::frame::{Encoded, Frame};
use armor_proto::ids::ArmorId;

use super::{Daemons, HELLO_WITHIN, PeerLink, QUESTIONS_PER_TICK, TICK, TICKING};
use crate::links::{Acknowledged, Sent, as_frame};
use crate::operations::{ArmorAttach, ArmorLocation, LinkQuery, LinkState, LocateArmor, NodeFailed};

impl<L: PeerLink> Daemons<L> {
    pub(crate) fn route(&mut self, context: &mut Context<'_>) {
        let Some(destination) = context.routed_to() else { return };
        let own = context.armor();
        // Without an FTM there is nobody to ask.
        let knows_ftm = own == ArmorId::FTM || self.knows_ftm;
        if self.next_hop(destination).is_some_and(|hop| self.is_elsewhere(hop)) {
            return;
        }
        if destination == ArmorId::NONE || !(knows_ftm || self.next_hop(destination).is_some()) {
            return;
        }
        let Some(routed) = context.take_routed() else { return };
        if let Routed::Frame(frame) = &routed {
            self.avoid_echo(frame);
        }
        let encoded = match routed.encode(&mut self.scratch) {
            Ok(encoded) => encoded,
            Err(error) => {
                context.event(Event::new("message-refused").with("destination", destination).with("reason", error));
                return;
            }
        };
        match self.next_hop(destination).filter(|hop| self.is_linked(*hop)) {
            Some(hop) => self.send(hop, encoded, context),
            None => self.keep(destination, encoded, context),
        }
    }

    /// The daemon to which messages for `destination` go.
    pub(crate) fn next_hop(&self, destination: ArmorId) -> Option<ArmorId> {
        if [&self.elsewhere, &self.others].iter().any(|known| known.contains(&destination)) || self.peers.contains_key(&destination) {
            return Some(destination);
        }
        self.locations.daemon_of(destination)
    }

    pub(crate) fn is_linked(&self, peer: ArmorId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.link.is_some())
    }

    /// A frame that would go back to the daemon it came from: one of us has an old location, so the FTM is asked.
    /// Messages on their way home (source = destination) are no such frames.
    pub(crate) fn avoid_echo(&mut self, frame: &Frame) {
        if frame.source != frame.destination
            && let Some(hop) = self.locations.daemon_of(frame.destination)
            && self.next_hop(frame.source) == Some(hop)
        {
            self.locations.forget(frame.destination);
        }
    }

    pub(crate) fn send(&mut self, peer: ArmorId, encoded: Encoded, context: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        let Some((_, link)) = &peer.link else { return };
        match link.send(encoded) {
            Sent::Written | Sent::Queued => {}
            Sent::FirstDropped => {
                self.dropped += 1;
                context.event(Event::new("link-congested").with("peer", &peer.name).with("queued_bytes", link.queued_bytes()));
            }
            Sent::Dropped | Sent::Closed => self.dropped += 1,
        }
    }

    /// Keeps a message until its way is open, and sees that it is being opened.
    pub(crate) fn keep(&mut self, destination: ArmorId, encoded: Encoded, context: &mut Context<'_>) {
        let first = !self.waiting.is_waiting(destination);
        if !self.waiting.push(destination, encoded, Instant::now()) {
            self.dropped += 1;
            tracing::debug!(%destination, "a message was dropped: too many wait for their way");
        }
        if first {
            self.seek(destination, context);
        }
        self.tick_later(context);
    }

    pub(crate) fn seek(&mut self, destination: ArmorId, context: &mut Context<'_>) {
        if let Some(hop) = self.next_hop(destination) {
            self.dial(hop, context);
        }
        // Asked even when an address is known: a daemon may have come back elsewhere.
        if destination != ArmorId::FTM {
            context.send_to(ArmorId::FTM, LocateArmor { armor: destination, asker: context.armor() });
        }
    }

    pub(crate) fn location(&mut self, location: &ArmorLocation, context: &mut Context<'_>) {
        let ArmorLocation { armor, daemon, carrier, address } = location;
        if *daemon == ArmorId::NONE || *daemon == context.armor() {
            // Nobody knows it, or it is a local ARMOR that is not attached now. It may come within the time that messages
            // wait, but what an ephemeral speaker left behind is gone.
            if armor.is_ephemeral() && self.locations.daemon_of(*armor).is_none() {
                self.dropped += self.waiting.take(*armor).count() as u64;
            }
            return;
        }
        self.local.remove(armor);
        if armor != daemon {
            self.locations.learn(*armor, *daemon);
        }
        if *carrier != self.carrier {
            self.reached_by(*daemon, *carrier, context);
            return;
        }
        self.reached_by(*daemon, *carrier, context);
        let peer = self.peers.entry(*daemon).or_default();
        if !address.is_empty() && *daemon != ArmorId::FTM && peer.address.as_ref() != Some(address) {
            peer.address = Some(address.clone());
            peer.backoff.reset();
        }
        if peer.link.is_some() {
            self.flush_towards(*daemon, context);
        } else if self.waiting.is_waiting(*armor) {
            self.dial(*daemon, context);
        }
    }

    /// Sends what waits for a daemon and for ARMORs behind it.
    pub(crate) fn flush_towards(&mut self, daemon: ArmorId, context: &mut Context<'_>) {
        let reachable: Vec<ArmorId> = self.waiting.destinations().filter(|armor| self.next_hop(*armor) == Some(daemon)).collect();
        for armor in reachable {
            for encoded in self.waiting.take(armor) {
                self.send(daemon, encoded, context);
            }
        }
    }

    /// A local ARMOR is there now: what waited for it goes back to the dispatcher, and so to the gateway.
    pub(crate) fn attached(&mut self, attach: &ArmorAttach, context: &mut Context<'_>) {
        if !attach.armor.is_ephemeral() {
            self.local.insert(attach.armor);
            self.locations.forget(attach.armor);
        }
        for encoded in self.waiting.take(attach.armor) {
            if let Some(frame) = as_frame(&encoded) {
                context.received(frame);
            }
        }
    }

    /// A failed node's ARMORs may come back on another one. Its link is left to TCP: it may only be slow.
    pub(crate) fn node_failed(&mut self, failed: &NodeFailed, _: &mut Context<'_>) {
        self.locations.forget_daemon(failed.armor);
    }

    /// Answers how the link to a daemon is. `introducing`: what is known of one that is not there yet.
    pub(crate) fn link_query(&self, query: &LinkQuery, introducing: Option<Option<Acknowledged>>, context: &mut Context<'_>) {
        if self.other_answers(query) {
            return;
        }
        let link = self.peers.get(&query.peer).and_then(|peer| peer.link.as_ref()).map(|(_, link)| link);
        // A listener that its vault keeps has taken this one, and the daemon has yet to come back.
        let dialled = || self.links.values().find(|held| held.peer.is_none() && held.dialled == Some(query.peer)).map(|held| &held.link);
        let link = link.or_else(dialled);
        let acknowledged = match link {
            Some(link) => link.acknowledged(),
            None => introducing.flatten(),
        };
        let state = LinkState {
            peer: query.peer,
            linked: link.is_some() || introducing.is_some(),
            acknowledged_ms: acknowledged.map(|acknowledged| acknowledged.ago_ms),
            // What is not known is no proof of life.
            unacknowledged: acknowledged.is_none_or(|acknowledged| acknowledged.waiting > 0),
        };
        context.send_to(context.armor(), state);
    }

    pub(crate) fn tick_later(&mut self, context: &mut Context<'_>) {
        if !std::mem::replace(&mut self.ticking, true) {
            context.timer(TICK, TICKING);
        }
    }

    pub(crate) fn tick(&mut self, now: Instant, context: &mut Context<'_>) {
        for (destination, messages) in self.waiting.expire(now) {
            self.dropped += messages as u64;
            // The event would go to the FTM itself, and wait, and expire.
            if destination != ArmorId::FTM {
                context.event(Event::new("messages-dropped").with("destination", destination).with("messages", messages));
            }
        }
        for held in self.links.values() {
            if held.peer.is_none() && now.saturating_duration_since(held.opened) >= HELLO_WITHIN {
                held.link.close();
            }
        }
        self.look_at_silence(now, context);
        let sought: Vec<ArmorId> = self.waiting.destinations().take(QUESTIONS_PER_TICK).collect();
        for destination in sought {
            self.seek(destination, context);
        }
        if !self.waiting.is_empty() || self.links.values().any(|held| held.peer.is_none()) || self.is_watching_silence() {
            self.tick_later(context);
        }
    }
}
