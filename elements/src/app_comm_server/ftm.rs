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
use crate::operations::{AppServerRegistered, StateMemory};

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
            context.send_reliable(Message::to(ArmorId::FTM, service.registration(context.armor(), request)));
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
                context.send_reliable(Message::to(ArmorId::FTM, service.registration(context.armor(), request)));
            }
        }
        if self.ftm_memory.replace(memory.memory) == Some(memory.memory) {
            return;
        }
        for service in self.services.values().filter(|service| service.registered) {
            self.next = self.next.wrapping_add(1);
            let again = service.registration(context.armor(), self.next);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::super::bench::Bench;
    use super::*;
    use crate::operations::Policy;
    use armor_proto::ids::Incarnation;

    /// The registration that waits, as if it had begun so long ago.
    fn waits_since(bench: &mut Bench, ago: Duration) -> u64 {
        let (&request, registration) = bench.element.registrations.iter_mut().next().unwrap();
        registration.since = registration.since.checked_sub(ago).unwrap();
        request
    }

    #[tokio::test]
    async fn a_listen_that_waits_for_the_ftm_is_told_sent_again_and_told_when_it_is_answered() {
        let mut bench = Bench::new();
        let served = bench.bind("web", 0, &[]);
        let _asker = bench.begin_to_listen(&served);
        let request = waits_since(&mut bench, WAITS);
        assert!(bench.call(|element, context| element.still_waits(request, context)));
        assert_eq!(bench.told("listen-waits").len(), 1);
        assert_eq!(bench.registrations.len(), 1, "the acknowledged message is still being sent");
        waits_since(&mut bench, AGAIN);
        assert!(bench.call(|element, context| element.still_waits(request, context)));
        assert_eq!(bench.registrations.len(), 2, "nobody else sends it any more");
        bench.register(&[]);
        assert_eq!(bench.told("listen-answered").len(), 1);
        assert!(!bench.call(|element, context| element.still_waits(request, context)));
        bench.register(&[]);
        assert_eq!(bench.told("listen-answered").len(), 1, "an answer that comes twice is heard once");
    }

    #[tokio::test]
    async fn an_ftm_that_has_lost_something_is_told_of_each_service_again_and_nobody_is_disturbed() {
        let mut bench = Bench::new();
        let served = bench.serve("web");
        let client = bench.client(&served, Policy::Stream);
        let socket = served.accept().unwrap();
        let _only_bound = bench.bind("other", 0, &[]);
        for (memory, registrations) in [(1, 1), (1, 0), (2, 1)] {
            bench.call(|element, context| element.memory(&StateMemory { memory }, context));
            let again: Vec<_> = bench.registrations.iter().map(|asked| (&*asked.row.service, asked.row.incarnation)).collect();
            assert_eq!(again, vec![("web", Incarnation(1)); registrations]);
            if registrations > 0 {
                bench.register(&[]);
            }
        }
        assert_eq!(bench.state(&client).as_deref(), Some("established"));
        drop(socket);
        // Another service has its address by now.
        let taken = AppServerRegistered {
            address: served.address,
            request: 0,
            errno: libc::EADDRINUSE,
            incarnation: Incarnation(1),
            clients: std::collections::BTreeMap::new(),
        };
        bench.call(|element, context| element.registered(&taken, context));
        assert_eq!(bench.told("server-refused").len(), 1);
    }

    #[tokio::test]
    async fn a_registration_that_the_ftm_had_yet_to_answer_is_sent_to_its_next_life() {
        let mut bench = Bench::new();
        let served = bench.bind("web", 0, &[]);
        let _asker = bench.begin_to_listen(&served);
        let first = bench.registrations.pop_front().unwrap();
        bench.call(|element, context| element.memory(&StateMemory { memory: 1 }, context));
        assert!(bench.registrations.contains(&first), "the same request");
    }
}
