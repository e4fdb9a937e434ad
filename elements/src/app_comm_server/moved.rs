//! Services that move between nodes (thesis §4.5.4): what comes here brings the right to its addresses along, what has gone is let go of
//! without a word.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::hookup::Endpoint;
use armor_proto::ids::Incarnation;
use rustix::io::Errno;

use super::AppCommServer;
use super::restored::holder_key;
use crate::endpoints::Proxy;
use crate::operations::{AppFenced, AppTakeOver, PlacedAddress};

/// Addresses that an application had where it was, by its name. As many as an overseer has applications.
pub(super) type Rights = BTreeMap<String, Vec<PlacedAddress>>;

impl AppCommServer {
    /// An application is taken over: it may have the addresses that it had.
    pub(super) fn take_over(&mut self, order: &AppTakeOver, context: &mut Context<'_>) {
        let name = &order.spec.name;
        if self.applications.get(name).is_some_and(|application| application.alive) {
            // It has never been away.
            return;
        }
        self.rights.insert(name.clone(), order.addresses.clone());
        self.timelines.begin_moved(name, order.incarnation.0.saturating_add(1), order.failed_at_ms, order.chosen_at_ms);
        context.state_changed();
    }

    /// An application was ended because it runs elsewhere: its clients are there, and hear nothing from here any more.
    pub(super) fn fenced(&mut self, fenced: &AppFenced, context: &mut Context<'_>) {
        let name = &fenced.name;
        self.applications.remove(name);
        self.rights.remove(name);
        for address in self.addresses_of(name) {
            if let Some(mut service) = self.services.remove(&address) {
                service.forget_listeners(&self.keeping, |_| true);
            }
            self.keeping.forget(&holder_key(address));
            self.registrations.retain(|_, registration| registration.address != address);
        }
        for id in self.connections_where(|server| server.supervised && *server.service == **name) {
            self.with(id, context, |port, _| port.end.vanish());
        }
        context.state_changed();
    }

    /// The address that a bind to port 0 means when an earlier life of the application has done the same.
    pub(super) fn address_again(&self, asked: Endpoint, name: &str, life: Option<Incarnation>) -> Option<Endpoint> {
        let life = life.filter(|_| asked.port == 0)?;
        let is_free = |address: Endpoint| match self.services.get(&address.unmapped()) {
            Some(known) => {
                known.name == name && known.incarnation < life && known.listeners.iter().all(|listener| listener.binder.is_none())
            }
            None => true,
        };
        let own = self.services.values().filter(|service| service.name == name && service.any_port && service.registered);
        let had = self.rights.get(name).into_iter().flatten().filter(|right| right.any_port);
        let known = own.map(|service| service.address).chain(had.map(|right| right.address));
        let again = known.filter(|known| known.ip == asked.ip && is_free(*known)).min_by_key(|known| known.port)?;
        Some(Endpoint { port: again.port, ..asked })
    }

    fn has_right(&self, asked: Endpoint, name: &str) -> bool {
        self.rights.get(name).into_iter().flatten().any(|right| right.address.unmapped() == asked.unmapped())
    }

    /// Binds a holder. A server that was moved here has its address from the FTM: one that is not this node's, or that another program
    /// of this node has, is served all the same, to clients under ARMOR.
    pub(super) fn hold(&self, asked: Endpoint, name: &str, holder: &OwnedFd, context: &mut Context<'_>) -> Result<(), Errno> {
        let bound = rustix::net::bind(holder, &SocketAddr::from(asked));
        let Err(reason) = bound else { return Ok(()) };
        if !self.has_right(asked, name) {
            return Err(reason);
        }
        let reason = match reason {
            Errno::ADDRNOTAVAIL => {
                let _ = rustix::net::sockopt::set_ip_freebind(holder, true);
                match rustix::net::bind(holder, &SocketAddr::from(asked)) {
                    Ok(()) => return Ok(()),
                    Err(reason) => reason,
                }
            }
            reason => reason,
        };
        let told = Event::new("address-not-held").with("service", name).with("address", SocketAddr::from(asked));
        context.event(told.with("reason", reason));
        Ok(())
    }
}
