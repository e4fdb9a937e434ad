//! Standbys of applications: processes whose first `bind` is held until they are to serve, and when their overseer may start the next.
//!
//! Invariant: of a supervised application's instances only the running one is given an address.

use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_proto::hookup::{Reply, Request};
use armor_proto::ids::Incarnation;

use super::AppCommServer;
use crate::endpoints::Asked;
use crate::operations::{AppFlows, AppStandbyEnded, AppStandbyHeld, AppStandbyStarted};

/// Most binds of one standby that are held at once: those of its children, and of its threads.
const MOST_HELD: usize = 64;
/// Pause between two looks at a service that has come back.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A service that serves for so long counts as flowing: a client may be slow to take what it is told again.
const FLOWS_AFTER: Duration = Duration::from_secs(5);

/// A standby.
pub(super) struct Standby {
    /// Name of the service.
    name: String,
    /// Binds that are answered when it is to serve.
    held: Vec<Asked>,
}

impl AppCommServer {
    /// A standby has started. Told again in a new life of the ARMOR.
    pub(super) fn standby_started(&mut self, started: &AppStandbyStarted, _: &mut Context<'_>) {
        let name = started.name.clone();
        self.standbys.entry(started.instance).or_insert_with(|| Standby { name, held: Vec::new() });
    }

    /// Its process is gone.
    pub(super) fn standby_ended(&mut self, ended: &AppStandbyEnded, _: &mut Context<'_>) {
        self.standbys.remove(&ended.instance);
    }

    /// An instance is the running one from now on: the binds of it that are held are answered.
    pub(super) fn release(&mut self, instance: u64, context: &mut Context<'_>) {
        let held = self.standbys.remove(&instance).map_or_else(Vec::new, |standby| standby.held);
        for asked in held {
            self.bind(asked, context);
        }
    }

    /// A bind that may be carried out is given back. That of a standby is held; that of an instance that is over is refused.
    pub(super) fn unless_held(&mut self, asked: Asked, context: &mut Context<'_>) -> Option<Asked> {
        let Request::Bind { service, instance, .. } = &asked.request else { return Some(asked) };
        let instance = *instance;
        let refuse = |errno| Reply::Bound { errno, listener: 0, name: None };
        if let Some(standby) = self.standbys.get_mut(&instance) {
            if standby.held.len() >= MOST_HELD {
                asked.reply.send(&refuse(libc::ENOBUFS), None);
                return None;
            }
            asked.reply.send(&Reply::Hold, None);
            standby.held.push(asked);
            context.send_to(context.armor(), AppStandbyHeld { name: standby.name.clone(), instance });
            return None;
        }
        let running = service.as_ref().and_then(|name| self.applications.get(name)).map_or(0, |application| application.instance);
        if instance != 0 && running != 0 && instance != running {
            asked.reply.send(&refuse(libc::EADDRINUSE), None);
            return None;
        }
        Some(asked)
    }

    /// An application that is to have standbys has come to serve: its overseer is told when its connections flow.
    pub(super) fn tell_when_it_flows(&mut self, name: &str, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(name).filter(|application| application.spec.standby.0 > 0) else { return };
        if std::mem::replace(&mut application.looked_at, true) {
            return;
        }
        let (life, since) = (application.incarnation, Instant::now());
        let (name, handle) = (name.to_owned(), context.handle::<Self>());
        context.spawn(async move {
            // A connect request that is on its way comes first.
            tokio::time::sleep(LOOK_AGAIN).await;
            while handle.call(|element, context| element.look_whether_it_flows(&name, life, since, context)) == Some(false) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
    }

    /// Tells the overseer when it does; `false` when it has to be looked at again.
    pub(super) fn look_whether_it_flows(&mut self, name: &str, life: Incarnation, since: Instant, context: &mut Context<'_>) -> bool {
        let runs = |application: &&super::Application| application.alive && application.incarnation == life;
        if self.applications.get(name).filter(runs).is_none() {
            return true;
        }
        let behind = || {
            let mut own = self.servers.values().filter(|server| *server.service == *name);
            own.any(|server| server.lacks_process() || server.port.end.catches_up())
        };
        if since.elapsed() < FLOWS_AFTER && behind() {
            return false;
        }
        context.send_to(context.armor(), AppFlows { name: name.to_owned(), incarnation: life });
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::super::bench::{Bench, Client, answer, application, read, write};
    use super::*;
    use crate::operations::{ApplicationSpec, Policy};
    use armor_proto::hookup::Endpoint;
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType};
    use serde_json::json;

    fn web() -> ApplicationSpec {
        application("web", json!({ "policy": "stream", "standby": 1 }))
    }

    /// An instance binds; where its shim hears the answer.
    fn binds(bench: &mut Bench, instance: u64, port: u16) -> OwnedFd {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let addr = Endpoint::new([127, 0, 0, 1].into(), port);
        let request = Request::Bind { addr, service: Some("web".into()), pid: 1, v6_only: false, reuse_port: false, instance };
        bench.ask(request, Some(socket))
    }

    fn standby(bench: &mut Bench, instance: u64) {
        let started = AppStandbyStarted { name: "web".to_owned(), instance };
        bench.call(|element, context| element.standby_started(&started, context));
    }

    fn errno(asker: &OwnedFd) -> Option<i32> {
        if let Reply::Bound { errno, .. } = answer(asker) { Some(errno) } else { None }
    }

    fn is_silent(asker: &OwnedFd) -> bool {
        rustix::io::read(asker, &mut [0; 64]) == Err(Errno::AGAIN)
    }

    #[tokio::test]
    async fn a_standby_s_bind_is_answered_when_the_running_instance_has_failed_and_not_before() {
        let mut bench = Bench::new();
        bench.started_as(&web(), 1, 10);
        let running = binds(&mut bench, 10, 0);
        let Reply::Bound { errno: 0, name: Some(name), .. } = answer(&running) else { panic!("refused") };
        bench.element.services.get_mut(&name.local).unwrap().registered = true;
        standby(&mut bench, 11);
        let held = binds(&mut bench, 11, name.local.port);
        assert_eq!(answer(&held), Reply::Hold);
        standby(&mut bench, 11);
        assert!(is_silent(&held));
        bench.failed(&web(), 1, true);
        assert!(is_silent(&held), "the overseer has yet to choose");
        bench.started_as(&web(), 2, 11);
        assert_eq!(errno(&held), Some(0));
        assert_eq!(bench.element.services[&name.local].incarnation, Incarnation(2));
        assert_eq!(errno(&binds(&mut bench, 10, name.local.port)), Some(libc::EADDRINUSE), "a child that its parent left behind");
    }

    #[tokio::test]
    async fn a_standby_that_is_chosen_on_its_way_to_its_bind_is_not_held_there() {
        let mut bench = Bench::new();
        bench.started_as(&web(), 1, 10);
        standby(&mut bench, 11);
        bench.failed(&web(), 1, true);
        bench.started_as(&web(), 2, 11);
        assert_eq!(errno(&binds(&mut bench, 11, 0)), Some(0));
    }

    #[tokio::test]
    async fn two_standbys_are_released_one_after_the_other() {
        let mut bench = Bench::new();
        bench.started_as(&web(), 1, 10);
        for instance in [11, 12] {
            standby(&mut bench, instance);
        }
        let held = [11, 12].map(|instance| binds(&mut bench, instance, 0));
        assert!(held.iter().all(|held| answer(held) == Reply::Hold));
        bench.failed(&web(), 1, true);
        bench.started_as(&web(), 2, 11);
        assert_eq!(errno(&held[0]), Some(0));
        assert!(is_silent(&held[1]));
        bench.failed(&web(), 2, true);
        bench.started_as(&web(), 3, 12);
        assert_eq!(errno(&held[1]), Some(0));
    }

    #[tokio::test]
    async fn a_standby_that_has_died_is_forgotten_with_what_it_had_asked() {
        let mut bench = Bench::new();
        bench.started_as(&web(), 1, 10);
        standby(&mut bench, 11);
        let held = binds(&mut bench, 11, 0);
        assert_eq!(answer(&held), Reply::Hold);
        let ended = AppStandbyEnded { name: "web".to_owned(), instance: 11 };
        bench.call(|element, context| element.standby_ended(&ended, context));
        assert_eq!(rustix::io::read(&held, &mut [0; 64]), Ok(0), "its end of the socket is closed");
        assert!(bench.element.standbys.is_empty());
    }

    #[tokio::test]
    async fn the_binds_of_one_standby_are_bounded() {
        let mut bench = Bench::new();
        bench.started_as(&web(), 1, 10);
        standby(&mut bench, 11);
        let held: Vec<_> = (0..MOST_HELD).map(|_| binds(&mut bench, 11, 0)).collect();
        assert!(held.iter().all(|held| answer(held) == Reply::Hold));
        assert_eq!(errno(&binds(&mut bench, 11, 0)), Some(libc::ENOBUFS));
    }

    #[tokio::test]
    async fn a_life_that_is_told_again_after_the_death_of_the_armor_changes_nothing_and_one_that_was_never_told_does() {
        let mut bench = Bench::new();
        bench.started_as(&web(), 1, 10);
        let served = bench.serve("web");
        let mut client = bench.client(&served, Policy::Stream);
        let _socket = served.accept().unwrap();
        bench.exchange(&mut client);
        bench.started_as(&web(), 1, 10);
        assert_eq!(bench.state(&client).as_deref(), Some("established"));
        bench.started_as(&web(), 2, 11);
        assert_eq!(bench.state(&client).as_deref(), Some("waiting"), "its process is gone");
    }

    /// Whether the overseer was told, or need not be.
    fn flows(bench: &mut Bench, life: u32, since: Instant) -> bool {
        bench.call(|element, context| element.look_whether_it_flows("web", Incarnation(life), since, context))
    }

    #[tokio::test]
    async fn a_service_flows_when_each_client_has_a_process_that_has_said_again_what_the_client_had() {
        let mut bench = Bench::new();
        bench.started(&web(), 1);
        let served = bench.serve("web");
        assert!(flows(&mut bench, 1, Instant::now()), "nobody waits");
        let mut client: Client = bench.client(&served, Policy::Stream);
        let socket = served.accept().unwrap();
        client.says(b"question");
        bench.exchange(&mut client);
        assert_eq!(read(&socket), b"question");
        write(&socket, b"one ");
        bench.readable(&client);
        bench.exchange(&mut client);
        let port = served.address.port;
        drop((socket, served));
        bench.failed(&web(), 1, true);
        bench.started(&web(), 2);
        assert!(!flows(&mut bench, 2, Instant::now()), "it has no process");
        assert!(flows(&mut bench, 1, Instant::now()), "that life is over");
        let served = bench.bind("web", port, &[]);
        bench.listen(&served);
        bench.exchange(&mut client);
        let socket = served.accept().unwrap();
        bench.exchange(&mut client);
        assert!(!flows(&mut bench, 2, Instant::now()), "it has said nothing yet");
        let long_ago = Instant::now().checked_sub(FLOWS_AFTER).unwrap();
        assert!(flows(&mut bench, 2, long_ago), "that need not be waited for without end");
        write(&socket, b"one two");
        bench.readable(&client);
        bench.exchange(&mut client);
        assert!(flows(&mut bench, 2, Instant::now()));
    }
}
