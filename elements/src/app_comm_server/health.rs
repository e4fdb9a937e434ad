//! Whether supervised servers that run are well (thesis §3.3.2, time domain): at intervals it is looked what waits for them, and those whose
//! service files say so are asked. What hangs is told to the overseer, which kills it; then it is recovered as after a crash.
//!
//! Invariant: it costs nothing on the way of a byte. What was given and said is counted there anyway, and the kernel is asked by timer alone,
//! about connections on which something may wait.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_proto::ids::{ConnectionId, Incarnation};
use tokio::net::UnixStream;

use super::connections::Server;
use super::progress::{Hang, Line, Progress};
use super::{AppCommServer, Application};
use crate::endpoints::{Next, Outcome, Probe, Processes, Series, ask, is_accepted, unread};
use crate::operations::{AppHung, ApplicationSpec};

/// Most connections of a service of which it is asked in one look whether they are accepted.
const ACCEPTED_AT_ONCE: usize = 8;

/// How one life of an application is.
#[derive(Debug)]
pub(super) struct Condition {
    progress: Progress,
    /// A connection that was found not to be accepted.
    unaccepted: Option<ConnectionId>,
    /// Of its probes, once it is ready and has some.
    series: Option<Series>,
    /// The connection of the present probe, and the TCP socket that answers for its options.
    connection: Option<(ConnectionId, OwnedFd)>,
}

impl Condition {
    /// Of a process that runs.
    pub(super) fn of(spec: &ApplicationSpec) -> Condition {
        Condition { progress: Progress::new(&spec.health), unaccepted: None, series: None, connection: None }
    }

    /// The socket that answers for the options of a connection that probes.
    pub(super) fn holder(&self, id: ConnectionId) -> Option<&OwnedFd> {
        self.connection.as_ref().filter(|(own, _)| *own == id).map(|(_, holder)| holder)
    }
}

/// What is known of what an application has taken on one connection.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Taken {
    /// The life of its socket that is known to be accepted.
    accepted_in: Option<u32>,
    /// How much it had been given when it had read all of it.
    all_of: Option<u64>,
}

impl Taken {
    fn is_accepted(self, life: u32) -> bool {
        self.accepted_in == Some(life)
    }
}

/// What waits for a service, and what it has said.
#[derive(Default)]
struct Waiting {
    lines: Vec<Line>,
    said: u64,
    asked: usize,
    /// One connection that is not accepted. They are accepted in order, so it stands for those behind it.
    unaccepted: Option<ConnectionId>,
}

impl Waiting {
    /// Looks at one connection of a service that is ready, or is not.
    fn look(&mut self, id: ConnectionId, server: &mut Server, ready: bool) {
        let (given, said) = (server.port.written_bytes, server.port.read_bytes);
        self.said = self.said.wrapping_add(said);
        if self.unaccepted.is_none() && self.asked < ACCEPTED_AT_ONCE && !server.taken.is_accepted(server.life) {
            self.asked += usize::from(server.port.socket.is_some());
            self.unaccepted = is_unaccepted(server, ready).then_some(id);
        }
        let socket = server.port.socket.as_ref().filter(|_| server.taken.all_of != Some(given));
        let unread = socket.map_or(0, |socket| unread(socket.descriptor().as_fd()));
        server.taken.all_of = (unread == 0).then_some(given);
        let accepted = self.unaccepted != Some(id);
        if unread > 0 || !accepted {
            self.lines.push(Line { id, unread, given, said, accepted });
        }
    }
}

/// Whether a connection has not been accepted. One that could not be connected to a server that is ready found its listener's queue full.
fn is_unaccepted(server: &mut Server, ready: bool) -> bool {
    let Some(socket) = &server.port.socket else { return ready && server.queued };
    let accepted = is_accepted(socket.descriptor().as_fd()) != Some(false);
    server.taken.accepted_in = accepted.then_some(server.life);
    !accepted
}

impl AppCommServer {
    /// Looks at intervals, for ever.
    pub(super) fn look_after_health(&mut self, context: &mut Context<'_>) {
        let handle = context.handle::<Self>();
        context.spawn(async move {
            let mut pause = Progress::LOOKS.0;
            loop {
                tokio::time::sleep(pause).await;
                match handle.call(|element, context| element.look_at_health(Instant::now(), context)) {
                    Some(next) => pause = next,
                    None => return,
                }
            }
        });
    }

    /// One look; the pause before the next.
    pub(super) fn look_at_health(&mut self, now: Instant, context: &mut Context<'_>) -> Duration {
        let living = self.applications.iter().filter(|(_, application)| application.alive).map(|(name, _)| name.clone());
        let is_ready = |name: &String| self.services.values().any(|service| service.name == *name && self.is_ready(service));
        let living: BTreeMap<String, bool> = living.map(|name| (name.clone(), is_ready(&name))).collect();
        if living.is_empty() {
            return Progress::LOOKS.0;
        }
        let mut waiting: BTreeMap<&str, Waiting> = BTreeMap::new();
        for (name, &ready) in &living {
            // The same as before, as long as it waits: of another one it would not be known since when.
            let unaccepted = self.applications.get(name).and_then(|application| application.health.unaccepted);
            let unaccepted = unaccepted.filter(|id| self.servers.get_mut(id).is_some_and(|server| is_unaccepted(server, ready)));
            waiting.insert(name, Waiting { unaccepted, ..Waiting::default() });
        }
        for (&id, server) in self.servers.iter_mut().filter(|(_, server)| server.supervised) {
            if let (Some(&ready), Some(waiting)) = (living.get(&*server.service), waiting.get_mut(&*server.service)) {
                waiting.look(id, server, ready);
            }
        }
        let (mut pause, mut processes) = (Progress::LOOKS.0, None);
        for (name, &ready) in &living {
            if ready {
                self.begin_probing(name, now, context);
            }
            let Some(Application { pid, health, incarnation, .. }) = self.applications.get_mut(name) else { continue };
            pause = health.progress.pause().map_or(pause, |own| own.min(pause));
            let Waiting { lines, said, unaccepted, .. } = waiting.remove(name.as_str()).unwrap_or_default();
            health.unaccepted = unaccepted;
            if health.progress.looked(&lines, said, now)
                && let Some(hang) = health.progress.judge(&processes.get_or_insert_with(Processes::now).of_group(*pid), now)
            {
                tell(name, *incarnation, hang, context);
            }
        }
        pause
    }

    /// Asks a server again and again, if its service file says so, from when it is ready.
    fn begin_probing(&mut self, name: &str, now: Instant, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(name).filter(|application| application.health.series.is_none()) else { return };
        let Some(question) = application.spec.health.question() else { return };
        application.health.series = Some(Series::of_ready(application.spec.health.failures, now));
        let life = application.incarnation;
        let (service, handle) = (name.to_owned(), context.handle::<Self>());
        let connect = move || handle.call(|element, _| element.connect_health(&service, life))?;
        let (service, handle) = (name.to_owned(), context.handle::<Self>());
        let report = move |probe: &Probe, outcome| {
            handle.call(|element, context| element.probed(&service, life, probe, outcome, Instant::now(), context)).unwrap_or(Next::Stop)
        };
        context.spawn(ask(Probe::new(question, now), connect, report));
    }

    /// How a life of an application is; `None` when that is over.
    fn condition(&mut self, name: &str, life: Incarnation) -> Option<&mut Condition> {
        let application = self.applications.get_mut(name).filter(|application| application.alive && application.incarnation == life)?;
        Some(&mut application.health)
    }

    pub(super) fn connect_health(&mut self, name: &str, life: Incarnation) -> Option<io::Result<UnixStream>> {
        self.condition(name, life)?;
        let port = self.applications.get(name).and_then(|application| application.spec.health.port);
        let connected = self.connect_to_application(name, port);
        let condition = self.condition(name, life)?;
        Some(connected.map(|(socket, connection)| {
            condition.connection = Some(connection);
            socket
        }))
    }

    /// A probe is over.
    pub(super) fn probed(
        &mut self,
        name: &str,
        life: Incarnation,
        probe: &Probe,
        outcome: Outcome,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Next {
        // What has closed its listener for good cannot be asked, which says nothing of those whom it serves.
        let listens = self.services.values().any(|service| service.name == name && service.is_listening());
        let Some(condition) = self.condition(name, life) else { return Next::Stop };
        condition.connection = None;
        let Some(series) = &mut condition.series else { return Next::Stop };
        if outcome == Outcome::Fits {
            series.passed(now);
        } else if listens && let Some(silent) = series.failed(now) {
            let why = series.as_reason(probe.heard_last());
            tell(name, life, Hang { processes: Vec::new(), why, silent }, context);
            return Next::Stop;
        }
        Next::Again
    }
}

fn tell(name: &str, incarnation: Incarnation, hang: Hang, context: &mut Context<'_>) {
    let Hang { processes, why, silent } = hang;
    let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
    context.send_to(context.armor(), AppHung { name: name.to_owned(), incarnation, processes, why, silent_ms });
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)]
mod tests {
    use super::super::bench::{Bench, Client, Served, application, read, write};
    use super::*;
    use crate::operations::Policy;
    use serde_json::json;

    /// A supervised server and a client; nothing is accepted yet. The test itself is the application's process, which is at work.
    fn served(keys: serde_json::Value) -> (Bench, Served, Client) {
        let mut bench = Bench::new();
        bench.started(&application("web", json!({ "health": keys })), 1);
        let served = bench.serve("web");
        let client = bench.client(&served, Policy::Stream);
        (bench, served, client)
    }

    /// The lines on which something waits.
    fn lines(bench: &mut Bench) -> Vec<(bool, bool)> {
        let mut waiting = Waiting::default();
        bench.element.servers.iter_mut().for_each(|(&id, server)| waiting.look(id, server, true));
        waiting.lines.iter().map(|line| (line.accepted, line.unread > 0)).collect()
    }

    #[tokio::test]
    async fn what_waits_is_what_was_not_accepted_or_not_read() {
        let (mut bench, served, mut client) = served(json!({}));
        assert_eq!(lines(&mut bench), [(false, false)]);
        let socket = served.accept().unwrap();
        assert_eq!(lines(&mut bench), []);
        client.says(b"question");
        bench.exchange(&mut client);
        assert_eq!(lines(&mut bench), [(true, true)]);
        assert_eq!(read(&socket), b"question");
        assert_eq!(lines(&mut bench), []);
        write(&socket, b"answer");
        bench.readable(&client);
        assert_eq!(lines(&mut bench), []);
        let others: Vec<Client> = (0..3).map(|_| bench.client(&served, Policy::Stream)).collect();
        assert_eq!(lines(&mut bench), [(false, false)], "one stands for {}", others.len());
    }

    #[tokio::test]
    async fn a_client_that_finds_the_queue_full_waits_too() {
        let mut bench = Bench::new();
        bench.started(&application("web", json!({})), 1);
        let served = bench.bind("web", 0, &[]);
        bench.listen_with(&served, 0);
        let _clients: Vec<Client> = (0..5).map(|_| bench.client(&served, Policy::Request)).collect();
        while served.accept().is_some() {}
        assert_eq!(lines(&mut bench), [(false, false)]);
    }

    #[tokio::test]
    async fn so_many_failed_probes_in_a_row_are_told_once() {
        let (mut bench, _served, _client) = served(json!({ "connect": true, "failures": 2 }));
        let now = Instant::now();
        bench.call(|element, context| element.look_at_health(now, context));
        let mut probe = Probe::new(application("web", json!({ "health": { "connect": true } })).health.question().unwrap(), now);
        let _ = probe.poll(now);
        probe.failed("not accepted within 1000 ms");
        let probed = |bench: &mut Bench, life, outcome, second| {
            let now = now + Duration::from_secs(second);
            bench.call(|element, context| element.probed("web", Incarnation(life), &probe, outcome, now, context))
        };
        assert_eq!(probed(&mut bench, 1, Outcome::Misses, 1), Next::Again);
        assert_eq!(probed(&mut bench, 1, Outcome::Fits, 2), Next::Again);
        assert_eq!(probed(&mut bench, 1, Outcome::Misses, 3), Next::Again);
        assert!(bench.hung.is_empty());
        assert_eq!(probed(&mut bench, 1, Outcome::Misses, 5), Next::Stop);
        assert_eq!(bench.hung.len(), 1);
        assert_eq!((bench.hung[0].silent_ms, bench.hung[0].processes.len()), (3000, 0));
        assert_eq!(bench.hung[0].why, "2 probes in a row have failed, the last one: not accepted within 1000 ms");
        assert_eq!(probed(&mut bench, 2, Outcome::Misses, 6), Next::Stop, "another life has probes of its own");
    }

    #[tokio::test]
    async fn a_server_that_has_closed_its_listener_is_not_judged_by_probes() {
        let (mut bench, served, _client) = served(json!({ "expect": "x", "failures": 1 }));
        let now = Instant::now();
        bench.call(|element, context| element.look_at_health(now, context));
        bench.close(served);
        assert!(bench.call(|element, _| element.connect_health("web", Incarnation(1))).is_some_and(|connected| connected.is_err()));
        let probe = Probe::new(application("web", json!({ "health": { "expect": "x" } })).health.question().unwrap(), now);
        let next = bench.call(|element, context| element.probed("web", Incarnation(1), &probe, Outcome::Misses, now, context));
        assert!(next == Next::Again && bench.hung.is_empty());
    }
}
