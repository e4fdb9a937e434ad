//! What becomes of connections when a server's process fails or ends (thesis §4.5.1).
//!
//! Invariant: end of file is never taken for a close unless the close was announced or the process's fate says so.

use std::rc::Rc;
use std::time::Instant;

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::connection::ResetReason;
use armor_proto::ids::ConnectionId;

use super::readiness::Readiness;
use super::timelines::Step;
use super::{AppCommServer, Application};
use crate::endpoints::{Ending, Proxy};
use crate::operations::{AppFailed, AppStarted};

impl AppCommServer {
    pub(super) fn application_started(&mut self, started: &AppStarted, _: &mut Context<'_>) {
        let (spec, incarnation) = (Rc::new(started.spec.clone()), started.incarnation);
        self.timelines.reached(&spec.name, Step::Restarted);
        let (name, readiness) = (spec.name.clone(), Readiness::of(&spec));
        self.applications.insert(name, Application { spec, incarnation, alive: true, readiness });
    }

    pub(super) fn application_failed(&mut self, failed: &AppFailed, context: &mut Context<'_>) {
        if let Some(application) = self.applications.get_mut(&failed.name) {
            application.alive = false;
        }
        let addresses = self.addresses_of(&failed.name);
        if addresses.is_empty() {
            return;
        }
        if failed.restarting {
            self.timelines.begin(&failed.name, failed.incarnation.0 + 1, failed.failed_at_ms);
        }
        let now = Instant::now();
        for address in addresses {
            if let Some(service) = self.services.get_mut(&address) {
                service.listeners.clear();
                service.recovering = failed.restarting;
            }
            for id in self.connections_of(address, |_| true) {
                if failed.restarting {
                    self.lost(id, now, context);
                } else if failed.orderly {
                    self.ended_orderly(id, now, context);
                } else {
                    self.give_up(id, ResetReason::RestartLimit, context);
                }
            }
            if !failed.restarting {
                self.unregister(address, context);
            }
        }
        if !failed.restarting {
            self.applications.remove(&failed.name);
        }
    }

    /// The process behind a connection is dead: what it had written is still read, then the end waits for the next process.
    fn lost(&mut self, id: ConnectionId, now: Instant, context: &mut Context<'_>) {
        if let Some(server) = self.servers.get_mut(&id) {
            server.lose_process(now);
            self.turn(id, now, context);
        }
    }

    fn ended_orderly(&mut self, id: ConnectionId, now: Instant, context: &mut Context<'_>) {
        if let Some(server) = self.servers.get_mut(&id) {
            if server.port.socket.is_none() {
                return self.give_up(id, ResetReason::ServerGone, context);
            }
            server.port.drain_dead(now);
            server.port.end.app_closed(now);
            server.life += 1;
            self.turn(id, now, context);
        }
    }

    pub(super) fn give_up(&mut self, id: ConnectionId, reason: ResetReason, context: &mut Context<'_>) {
        self.with(id, context, |port, now| port.end.abort(reason, now));
    }

    /// A stream ended without a word, and the time for one is over.
    pub(super) fn fate(&mut self, id: ConnectionId, life: u32, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(server) = self.servers.get_mut(&id).filter(|server| server.life == life) else { return };
        let Some(ending) = server.limbo else { return };
        let supervised = self.services.get(&server.address).filter(|service| service.supervised);
        let Some(service) = supervised else {
            // Nobody will start it again, or it has closed its listener: end as TCP would.
            server.limbo = None;
            server.port.read_done = true;
            match ending {
                Ending::Reset => server.port.end.app_reset(now),
                _ => server.port.end.app_closed(now),
            }
            self.turn(id, now, context);
            return;
        };
        if self.applications.get(&service.name).is_some_and(|application| application.alive) {
            // The service lives, the process that held this connection does not: another one takes it over.
            let told = Event::new("worker-failed").with("service", &service.name).with("connection", id);
            context.event(told);
            self.lost(id, now, context);
            self.with(id, context, |port, now| port.end.ask_replay(now));
        }
    }
}
