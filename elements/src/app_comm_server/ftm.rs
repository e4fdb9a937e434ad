//! An FTM that is away, or has forgotten what it was told (thesis §3.3).
//!
//! A server that listens waits for APP_SERVER_DB, for ever: an error would end a program that has done nothing wrong, and the FTM comes back. But
//! somebody is told, and the registration is sent again beyond the time for which acknowledged messages are.
//!
//! Invariant: registering again disturbs nobody: the service keeps its incarnation, and no connection is asked for anything.

use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::hookup::Endpoint;
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;

use super::AppCommServer;
use crate::operations::{AppRegisterServer, AppServerRegistered, StateMemory};

/// After so long without an answer of the FTM an operator is told that a server's listen waits.
const WAITS: Duration = Duration::from_secs(5);
/// How often it is told and registered again: as long as acknowledged messages are sent again.
const AGAIN: Duration = armor_proto::reliable::GIVE_UP;

impl AppCommServer {
    /// The FTM answers a registration soon, or an operator is told.
    pub(super) fn wait_for_ftm(&self, request: u64, context: &mut Context<'_>) {
        let handle = context.handle::<Self>();
        context.spawn(async move {
            let mut pause = WAITS;
            loop {
                tokio::time::sleep(pause).await;
                if handle.call(|element, context| element.still_waits(request, context)) != Some(true) {
                    return;
                }
                pause = AGAIN;
            }
        });
    }

    /// Whether a registration has no answer yet.
    fn still_waits(&mut self, request: u64, context: &mut Context<'_>) -> bool {
        let Some(registration) = self.registrations.get(&request) else { return false };
        let Some(service) = self.services.get(&registration.address) else { return false };
        let waited = registration.since.elapsed();
        let told = Event::new("listen-waits").with("service", &service.name).with("address", std::net::SocketAddr::from(service.address));
        context.event(told.with("waited_s", waited.as_secs()).with("reason", "the FTM does not answer; see that it runs (armor up)"));
        if waited >= AGAIN {
            // The acknowledged message has been given up.
            context.send_reliable(Message::to(ArmorId::FTM, AppRegisterServer { row: service.row(context.armor()), request }));
        }
        true
    }

    /// The FTM has answered a registration.
    pub(super) fn waited_for_ftm(&self, address: &Endpoint, since: Instant, context: &mut Context<'_>) {
        if since.elapsed() >= WAITS
            && let Some(service) = self.services.get(address)
        {
            context.event(Event::new("listen-answered").with("service", &service.name).with("waited_s", since.elapsed().as_secs()));
        }
    }

    /// The FTM is known again. If it has lost something it is told of all services.
    pub(super) fn memory(&mut self, memory: &StateMemory, context: &mut Context<'_>) {
        // What it had yet to answer its earlier life may have taken along. An answer that comes twice is heard once.
        for (&request, registration) in &self.registrations {
            if let Some(service) = self.services.get(&registration.address) {
                let row = service.row(context.armor());
                context.send_reliable(Message::to(ArmorId::FTM, AppRegisterServer { row, request }));
            }
        }
        if self.ftm_memory.replace(memory.memory) == Some(memory.memory) {
            return;
        }
        for service in self.services.values().filter(|service| service.registered) {
            self.next = self.next.wrapping_add(1);
            let again = AppRegisterServer { row: service.row(context.armor()), request: self.next };
            context.send_reliable(Message::to(ArmorId::FTM, again));
        }
    }

    /// The answer to such a registration. Whoever listens does so already.
    pub(super) fn registered_again(&mut self, answer: &AppServerRegistered, context: &mut Context<'_>) {
        let Some(service) = self.services.get_mut(&answer.address.unmapped()).filter(|service| service.registered) else { return };
        if answer.errno == 0 {
            service.incarnation = service.incarnation.max(answer.incarnation);
        } else {
            // Another one has taken the address while the FTM did not know of this one: new clients find that one.
            let reason = std::io::Error::from_raw_os_error(answer.errno);
            context.event(Event::new("server-refused").with("service", &service.name).with("reason", reason));
        }
    }
}
