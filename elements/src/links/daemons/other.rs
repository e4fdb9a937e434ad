//! Beside an element for the other kind of links: who of the two takes a message (thesis §5.4). They meet in `MSG_CARRIER_TOLD`.

use armor_core::context::Context;
use armor_proto::ids::ArmorId;

use super::{Daemons, PeerLink};
use crate::links::as_frame;
use crate::operations::{Carrier, CarrierTold, LinkQuery};

/// Most daemons remembered as those of the other kind.
const MAX_OTHERS: usize = 4096;

impl<L: PeerLink> Daemons<L> {
    pub(super) fn tell_other(&self, armor: ArmorId, daemon: ArmorId, linked: bool, context: &mut Context<'_>) {
        context.send_to(context.armor(), CarrierTold { carrier: self.carrier, armor, daemon, linked });
    }

    /// The other element has said something.
    pub(crate) fn told_by_other(&mut self, told: &CarrierTold, context: &mut Context<'_>) {
        if told.carrier == self.carrier {
            return;
        }
        self.beside = true;
        if told.armor != told.daemon {
            if !self.peers.contains_key(&told.armor) {
                self.locations.learn(told.armor, told.daemon);
            }
        } else if !told.linked {
            self.elsewhere.remove(&told.daemon);
        } else if told.daemon != context.armor() && self.elsewhere.len() < MAX_OTHERS {
            self.elsewhere.insert(told.daemon);
            self.hand_over(context);
        }
    }

    /// Whether messages for that daemon are the other element's: it has a link there and this one has none, or it alone can have one.
    pub(super) fn is_elsewhere(&self, daemon: ArmorId) -> bool {
        self.beside && !self.is_linked(daemon) && (self.elsewhere.contains(&daemon) || self.others.contains(&daemon))
    }

    /// A daemon is reached by links of that kind.
    pub(super) fn reached_by(&mut self, daemon: ArmorId, carrier: Carrier, context: &mut Context<'_>) {
        if carrier == self.carrier {
            self.others.remove(&daemon);
        } else if self.beside && self.others.len() < MAX_OTHERS {
            self.others.insert(daemon);
            self.hand_over(context);
        }
    }

    /// Messages that wait here and are the other's go back to the dispatcher.
    fn hand_over(&mut self, context: &mut Context<'_>) {
        let theirs: Vec<ArmorId> =
            self.waiting.destinations().filter(|armor| self.next_hop(*armor).is_some_and(|hop| self.is_elsewhere(hop))).collect();
        for armor in theirs {
            for encoded in self.waiting.take(armor) {
                if let Some(frame) = as_frame(&encoded) {
                    context.received(frame);
                }
            }
        }
    }

    /// Whether it is the other element that knows how the link to a daemon is. When neither has one, one of them says so.
    pub(super) fn other_answers(&self, query: &LinkQuery) -> bool {
        self.beside && !self.is_linked(query.peer) && (self.elsewhere.contains(&query.peer) || self.carrier == Carrier::Udp)
    }
}
