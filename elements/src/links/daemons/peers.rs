//! Links to peers: dialled, accepted, introduced, lost.

use std::net::SocketAddr;
use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::frame::Frame;
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;

use super::{Daemons, Held, MAX_LINKS, MAX_PEERS, Opening, PeerLink};
use crate::links::{Closed, LinkId, encode, introduction, node_addresses};
use crate::operations::{DaemonHello, DaemonRegister, DaemonRegistered, LinkChanged, LinkLost};

impl<L: PeerLink> Daemons<L> {
    /// Dials a daemon whose address is known, unless there is a link to it or one under way.
    pub(crate) fn dial(&mut self, armor: ArmorId, context: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&armor) else { return };
        if peer.dialling || (peer.link.is_some() && peer.silent.is_none()) {
            return;
        }
        // It may be where it was heard last, which it cannot know when there is a router between.
        let places = [peer.address.as_ref(), peer.heard_at.as_ref()];
        let (first, second) = if peer.attempts.is_multiple_of(2) { (places[0], places[1]) } else { (places[1], places[0]) };
        let Some(address) = first.or(second).cloned() else { return };
        peer.dialling = true;
        peer.attempts = peer.attempts.wrapping_add(1);
        (self.dialler)(armor, address, peer.backoff.pause(), context);
    }

    /// Whether there is room for one more link; if not, that is told.
    pub(crate) fn has_room(&mut self, dialled: Option<ArmorId>, remote: &str, context: &mut Context<'_>) -> bool {
        if self.links.len() < MAX_LINKS {
            return true;
        }
        context.event(Event::new("link-refused").with("peer", remote).with("reason", format!("{MAX_LINKS} links are open")));
        if let Some(peer) = dialled.and_then(|armor| self.peers.get_mut(&armor)) {
            peer.dialling = false;
        }
        false
    }

    /// Takes in a link on which frames can be sent now, and says who speaks.
    pub(crate) fn hold(&mut self, id: LinkId, link: L, opened: Opening, context: &mut Context<'_>) {
        let Opening { dialled, remote, return_address, local, shown } = opened;
        let only = dialled.and_then(|armor| self.peers.get(&armor)).is_some_and(|peer| peer.link.is_none());
        let instead = dialled.is_some() && !only;
        let hello = DaemonHello { armor: context.armor(), name: self.name.clone(), address: self.advertised(local), life: self.life, only };
        let mut message = Message::to(dialled.unwrap_or(ArmorId::NONE), hello);
        message.source = context.armor();
        match encode(&message) {
            Ok(encoded) => {
                link.send(encoded);
            }
            Err(error) => context.event(Event::new("message-refused").with("reason", error)),
        }
        let opened = Instant::now();
        self.links.insert(id, Held { link, peer: None, dialled, instead, remote, return_address, local, opened, shown, rekeyed: opened });
        self.tick_later(context);
    }

    pub(crate) fn not_connected(&mut self, armor: ArmorId, address: &str, reason: &str, context: &mut Context<'_>) {
        let Some(peer) = self.peers.get_mut(&armor) else { return };
        peer.dialling = false;
        if (peer.link.is_none() || peer.silent.is_some()) && !std::mem::replace(&mut peer.told, true) {
            context.event(Event::new("link-down").with("peer", &peer.name).with("address", address).with("reason", reason));
            if peer.silent.is_some() && armor != ArmorId::FTM {
                context.send_to(ArmorId::FTM, LinkLost { peer: armor, reporter: context.armor() });
            }
        }
        self.dial_if_wanted(armor, context);
    }

    /// The FTM is always wanted, other daemons while something waits for them.
    pub(crate) fn dial_if_wanted(&mut self, armor: ArmorId, context: &mut Context<'_>) {
        let silent = self.peers.get(&armor).is_some_and(|peer| peer.silent.is_some());
        if armor == ArmorId::FTM || silent || self.waiting.destinations().any(|waiting| self.next_hop(waiting) == Some(armor)) {
            self.dial(armor, context);
        }
    }

    pub(crate) fn hello(&mut self, id: LinkId, hello: DaemonHello, context: &mut Context<'_>) {
        if self.lies(id, &hello, context) {
            return;
        }
        let Some(held) = self.links.get_mut(&id) else { return };
        if hello.armor == context.armor() || hello.armor == ArmorId::NONE {
            let why = if hello.armor == ArmorId::NONE {
                "it has no identity"
            } else {
                "it has this daemon's own name; names are unique in a network"
            };
            context.event(Event::new("link-refused").with("peer", &held.remote).with("reason", why));
            held.link.close();
            return;
        }
        if let Some(dialled) = held.dialled
            && let Some(peer) = self.peers.get_mut(&dialled)
        {
            if dialled != hello.armor {
                if !std::mem::replace(&mut peer.told, true) {
                    context
                        .event(Event::new("wrong-peer").with("address", &held.remote).with("expected", dialled).with("found", &hello.name));
                }
                if dialled != ArmorId::FTM {
                    peer.address = None;
                }
                held.link.close();
                return;
            }
            peer.dialling = false;
        }
        held.peer = Some(hello.armor);
        let (local, link, return_address) = (held.local, held.link.clone(), held.return_address.clone());
        if self.peers.len() >= MAX_PEERS {
            self.peers.retain(|armor, peer| *armor == ArmorId::FTM || peer.link.is_some() || peer.dialling);
        }
        let peer = self.peers.entry(hello.armor).or_default();
        peer.name = hello.name;
        let known = peer.address.clone();
        if !hello.address.is_empty() && (hello.armor != ArmorId::FTM || peer.address.is_none()) {
            peer.address = Some(hello.address);
        }
        if peer.address != known {
            context.state_changed();
        }
        peer.heard_at = return_address;
        peer.backoff.reset();
        let same = std::mem::replace(&mut peer.life, hello.life) == hello.life;
        let accepted = peer.link.as_ref().and_then(|(current, _)| self.links.get(current)).is_some_and(|held| held.dialled.is_none());
        // One that has no other has closed the one that it had opened. Where both have dialled, both say so, and have not.
        let only = hello.only && (accepted || peer.silent.is_some());
        if same && !only && peer.link.as_ref().is_some_and(|(_, link)| link.outlives_silence()) {
            // The one that there is may have more on its way. This one is kept beside it, if it is not there again by now.
            let needless = peer.silent.is_none();
            if let Some(held) = self.links.get(&id).filter(|held| needless && held.instead) {
                held.link.close();
            }
            return;
        }
        let before = peer.link.replace((id, link));
        peer.told = false;
        peer.silent = None;
        peer.attempts = 0;
        if before.is_some() && (!same || only) {
            // They lead to a process that is dead, or has closed them.
            self.close_others(hello.armor, id);
        }
        let Some(peer) = self.peers.get(&hello.armor) else { return };
        let up = Event::new("link-up").with("peer", &peer.name);
        if hello.armor == ArmorId::FTM {
            let registration = self.registration(context.armor(), local);
            context.send_reliable(Message::to(ArmorId::FTM, registration));
        }
        context.event(up);
        self.tell_other(hello.armor, hello.armor, true, context);
        self.flush_towards(hello.armor, context);
        if hello.armor != ArmorId::FTM {
            context.send_to(context.armor(), LinkChanged { peer: hello.armor });
        }
    }

    pub(crate) fn registration(&self, armor: ArmorId, local: Option<SocketAddr>) -> DaemonRegister {
        DaemonRegister {
            armor,
            name: self.name.clone(),
            carrier: self.carrier,
            address: self.advertised(local),
            node_addresses: node_addresses(),
        }
    }

    pub(crate) fn registered(&mut self, registered: &DaemonRegistered, context: &mut Context<'_>) {
        self.registered = Some(if registered.accepted { Ok(()) } else { Err(registered.reason.clone()) });
        if !registered.accepted {
            tracing::error!("the FTM refuses this daemon: {}", registered.reason);
            context.event(Event::new("registration-refused").with("reason", &registered.reason));
        }
    }

    /// Where others reach this daemon; a wildcard is replaced by the address that a link goes out from.
    pub(crate) fn advertised(&self, local: Option<SocketAddr>) -> String {
        if let Some(advertise) = &self.advertise {
            return advertise.clone();
        }
        let Some(listening) = self.listening else { return String::new() };
        match local {
            Some(local) if listening.ip().is_unspecified() => SocketAddr::new(local.ip().to_canonical(), listening.port()).to_string(),
            _ => listening.to_string(),
        }
    }

    /// A frame has come by a link.
    pub(crate) fn link_frame(&mut self, id: LinkId, frame: Frame, context: &mut Context<'_>) {
        let Some(held) = self.links.get(&id) else { return };
        let Some(peer) = held.peer else {
            match introduction::<DaemonHello>(&frame) {
                Some(hello) => self.hello(id, hello, context),
                None => {
                    context.event(
                        Event::new("link-refused").with("peer", &held.remote).with("reason", "its first frame is no MSG_DAEMON_HELLO"),
                    );
                    held.link.close();
                }
            }
            return;
        };
        // A message on its way home says where its source is not.
        if frame.source != frame.destination
            && frame.source != peer
            && frame.source != context.armor()
            && !self.local.contains(&frame.source)
            && self.locations.daemon_of(frame.source) != Some(peer)
            && !self.peers.contains_key(&frame.source)
        {
            self.locations.learn(frame.source, peer);
            if self.beside {
                self.tell_other(frame.source, peer, true, context);
            }
        }
        context.received(frame);
    }

    /// A link has ended.
    pub(crate) fn link_closed(&mut self, id: LinkId, why: &Closed, context: &mut Context<'_>) {
        let Some(held) = self.links.remove(&id) else { return };
        if let Closed::Frame(error) = why {
            context.event(Event::new("link-refused").with("peer", &held.remote).with("reason", error));
        }
        if let (Closed::Record(error), Some(security)) = (why, &mut self.security) {
            security.refuse("altered", &held.remote, &error.to_string(), context);
        }
        let Some(armor) = held.peer else {
            // Closed before it said who it is: an attempt that failed.
            if let Some(dialled) = held.dialled {
                self.not_connected(dialled, &held.remote, &why.to_string(), context);
            }
            return;
        };
        if armor != ArmorId::FTM {
            // Who waits for an answer asks at once, and so opens the way again.
            context.send_to(context.armor(), LinkChanged { peer: armor });
        }
        // Another link to the same daemon (both had dialled) takes over.
        let other = self.links.iter().find(|(_, held)| held.peer == Some(armor)).map(|(id, held)| (*id, held.link.clone()));
        let Some(peer) = self.peers.get_mut(&armor) else { return };
        if peer.link.as_ref().is_some_and(|(current, _)| *current != id) {
            return;
        }
        peer.link = other;
        peer.silent = None;
        if peer.link.is_none() {
            let told = std::mem::replace(&mut peer.told, true);
            if !told {
                context.event(Event::new("link-down").with("peer", &peer.name).with("address", &held.remote).with("reason", why));
            }
            if !told && armor != ArmorId::FTM {
                context.send_to(ArmorId::FTM, LinkLost { peer: armor, reporter: context.armor() });
            }
            self.tell_other(armor, armor, false, context);
            self.dial_if_wanted(armor, context);
            self.locations.forget_daemon(armor);
        }
    }
}
