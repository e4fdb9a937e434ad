//! Clients that are supervised and whose service file says `[reattach]`: when such a process fails its connections wait, and the next one
//! takes them up. Every other client ends as TCP would let it end.
//!
//! Which connection a connect takes up is told by its address and its place among the connects to that. With `replay` the k-th connect of a
//! process takes up the k-th connection of the one before, whatever had become of that; with `resume` the first of those that wait.
//!
//! Invariant: an application has at most one place for each connection, and a process is given none that another one has.
//! Invariant: the places are captured before a process is told of its connection.

#[path = "reattach/endings.rs"]
mod endings;
#[path = "reattach/places.rs"]
mod places;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::connection::{
    ClientEnd, Event as EndEvent, OnDivergence as EndOnDivergence, Reattach, ReattachPolicy as EndPolicy, Transcript, TranscriptLost,
};
use armor_proto::hookup::{Endpoint, Reply, Request};
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
use rustix::process::{Pid, getpgid};
use serde::{Deserialize, Serialize};

use super::restored::{Keys, Wait};
use super::{AppCommClient, Client, State};
use crate::endpoints::{ApplicationSocket, Asked, Drained, Ending, Proxy, TranscriptFile, client_pair};
use crate::operations::{AppClientConnected, AppFailed, AppIsOver, AppStarted, ClientRow, OnDivergence, ReattachPolicy, ReattachSpec};
use endings::end_now;
use places::Places;

/// Places of connections that are remembered of an application; beyond them none is taken up any more.
const MOST_PLACES: usize = 65_536;

/// What a connection's record says of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct AboutReattach {
    pub(super) application: String,
    spec: ReattachSpec,
    on_divergence: OnDivergence,
}

impl AboutReattach {
    fn settings(&self) -> Reattach {
        Reattach {
            policy: match self.spec.policy {
                ReattachPolicy::Replay => EndPolicy::Replay,
                ReattachPolicy::Resume => EndPolicy::Resume,
            },
            within: Duration::from_millis(self.spec.within_ms),
            transcript_bound: self.spec.log_bytes,
            on_divergence: match self.on_divergence {
                OnDivergence::Reset => EndOnDivergence::Reset,
                OnDivergence::Continue => EndOnDivergence::Continue,
            },
        }
    }

    fn policy(&self) -> ReattachPolicy {
        self.spec.policy
    }
}

/// What a connection has that may outlive its client's process.
pub(super) struct Reattachable {
    pub(super) about: AboutReattach,
    transcript: Option<TranscriptFile>,
    /// The application's end, with all that is in it and was not read: for `resume`. While it is here the kernel does not say that the
    /// application's own copies are closed, so it is let go of as soon as a close is announced.
    copy: Option<OwnedFd>,
    /// End of file without announcement was seen.
    limbo: Option<Ending>,
    /// How the stream of the lost process had ended.
    ending: Option<Ending>,
    announced: Option<Announced>,
}

/// What the shim has said of the end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Announced {
    Closed,
    Aborted,
}

/// A supervised application whose connections outlive its process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Application {
    about: AboutReattach,
    incarnation: Incarnation,
    /// Also the number of its process group.
    pid: u32,
    alive: bool,
    /// There were too many connects: none is taken up any more.
    crowded: bool,
    places: BTreeMap<Endpoint, Places>,
}

fn group_of(pid: u32) -> Option<u32> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    u32::try_from(getpgid(Some(pid)).ok()?.as_raw_nonzero().get()).ok()
}

impl AppCommClient {
    pub(super) fn application_started(&mut self, started: &AppStarted, context: &mut Context<'_>) {
        let name = &started.spec.name;
        let Some(spec) = started.spec.reattach else {
            if self.applications.remove(name).is_some() {
                context.state_changed();
            }
            return;
        };
        match self.applications.get(name).filter(|earlier| earlier.alive) {
            // Told again in a new life of the ARMOR.
            Some(earlier) if earlier.incarnation == started.incarnation => return,
            // The ARMOR was away when it failed.
            Some(_) => self.application_is_gone(name, true, context),
            None => {}
        }
        context.state_changed();
        let about = AboutReattach { application: name.clone(), spec, on_divergence: started.spec.on_divergence };
        let places = self.applications.remove(name).map_or_else(BTreeMap::new, |earlier| earlier.places);
        let application = Application { about, incarnation: started.incarnation, pid: started.pid, alive: true, crowded: false, places };
        self.applications.insert(name.clone(), application);
    }

    /// It is said again by the next life of an ARMOR.
    pub(super) fn application_is_over(&mut self, over: &AppIsOver, context: &mut Context<'_>) {
        self.application_is_gone(&over.name, false, context);
    }

    pub(super) fn application_failed(&mut self, failed: &AppFailed, context: &mut Context<'_>) {
        if self.applications.get(&failed.name).is_some_and(|application| application.alive || !failed.restarting) {
            self.application_is_gone(&failed.name, failed.restarting, context);
        }
    }

    fn application_is_gone(&mut self, name: &str, restarting: bool, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(name) else { return };
        context.state_changed();
        application.alive = false;
        application.places.values_mut().for_each(Places::fail);
        if !restarting {
            self.applications.remove(name);
        }
        let own = |client: &Client| client.reattach.as_ref().is_some_and(|reattach| reattach.about.application == name);
        let connections: Vec<_> = self.clients.iter().filter(|(_, client)| own(client)).map(|(&id, _)| id).collect();
        // At most as many as are kept for an application.
        for id in connections {
            if restarting {
                self.client_lost(id, context);
            } else {
                self.release(id, context);
            }
        }
    }

    /// The supervised application that a process belongs to: what would be killed with it, and no other process.
    fn supervised(&self, pid: u32) -> Option<&Application> {
        if self.applications.is_empty() {
            return None;
        }
        let group = group_of(pid)?;
        self.applications.values().find(|application| application.alive && !application.crowded && application.pid == group)
    }

    /// What a new connection of this process is about, when it is to outlive it.
    pub(super) fn reattach_for(&mut self, pid: u32, context: &mut Context<'_>) -> Option<AboutReattach> {
        let about = self.supervised(pid)?.about.clone();
        let kept = |client: &Client| {
            client.port.end.can_reattach()
                && client.reattach.as_ref().is_some_and(|reattach| reattach.about.application == about.application)
        };
        if self.clients.values().filter(|client| kept(client)).count() >= about.spec.connections as usize {
            let reason = format!("{} connections of the application are kept already (connections)", about.spec.connections);
            self.tell(Event::new("reattach-lost").with("service", &about.application).with("reason", reason), context);
            return None;
        }
        Some(about)
    }

    /// Lets a new end outlive its client's process. `application` is the socket that the client is given.
    pub(super) fn let_reattach(
        &self,
        id: ConnectionId,
        about: AboutReattach,
        end: &mut ClientEnd,
        application: &OwnedFd,
        now: Instant,
    ) -> std::io::Result<Reattachable> {
        let keys = Keys::of(id);
        let mut reattach = Reattachable { about, transcript: None, copy: None, limbo: None, ending: None, announced: None };
        match reattach.about.policy() {
            ReattachPolicy::Replay => {
                let file = TranscriptFile::create()?;
                let shared: Box<dyn Transcript + Send> = Box::new(file.share()?);
                self.keeping.keep(&keys.transcript, file.descriptor());
                end.set_reattach(reattach.about.settings(), Some(shared), now);
                reattach.transcript = Some(file);
            }
            ReattachPolicy::Resume => {
                let copy = application.try_clone()?;
                self.keeping.keep(&keys.copy, copy.as_fd());
                end.set_reattach(reattach.about.settings(), None, now);
                reattach.copy = Some(copy);
            }
        }
        Ok(reattach)
    }

    /// The same for one of an earlier life of this ARMOR, with what the vault has kept.
    pub(super) fn let_reattach_again(
        about: AboutReattach,
        end: &mut ClientEnd,
        transcript: Option<OwnedFd>,
        copy: Option<OwnedFd>,
        now: Instant,
    ) -> Reattachable {
        let transcript = transcript.map(TranscriptFile::from);
        let shared = transcript.as_ref().and_then(|file| file.share().ok()).map(|file| Box::new(file) as Box<dyn Transcript + Send>);
        end.set_reattach(about.settings(), shared, now);
        Reattachable { about, transcript, copy, limbo: None, ending: None, announced: None }
    }

    /// A process has a new connection, or one that it has taken up: whichever it is has its place.
    pub(super) fn takes_place(&mut self, pid: u32, address: Endpoint, id: ConnectionId, context: &mut Context<'_>) -> bool {
        let Some(name) = self.supervised(pid).map(|application| application.about.application.clone()) else { return false };
        let Some(application) = self.applications.get_mut(&name) else { return false };
        context.state_changed();
        let policy = application.about.policy();
        application.places.entry(address).or_default().make(id, policy);
        let taken: usize = application.places.values().map(|places| places.made.len() + places.lost.len()).sum();
        if taken > MOST_PLACES {
            application.crowded = true;
            application.places.clear();
            let told = Event::new("reattach-lost")
                .with("service", &name)
                .with("reason", format!("it has connected more than {MOST_PLACES} times"));
            context.event(told);
        }
        true
    }

    /// The connect of the present process has failed.
    pub(super) fn place_is_free(&mut self, client: &Client, id: ConnectionId, context: &mut Context<'_>) {
        self.each_places(client, context, |places| places.unmake(id, None));
    }

    /// The connection is gone.
    pub(super) fn place_is_empty(&mut self, client: &Client, id: ConnectionId, context: &mut Context<'_>) {
        self.each_places(client, context, |places| places.over(id));
    }

    /// Changes the places among which that of a connection is. One that is not kept has its place too, so all applications are looked at.
    fn each_places(&mut self, client: &Client, context: &mut Context<'_>, change: impl Fn(&mut Places) -> bool) {
        let mut places = self.applications.values_mut().filter_map(|application| application.places.get_mut(&client.dialled));
        if places.any(change) {
            context.state_changed();
        }
    }

    /// Gives a connect of a new process a connection that waits for it. What it does not concern is given back.
    pub(super) fn reattach_if_one_waits(&mut self, asked: Asked, context: &mut Context<'_>) -> Option<Asked> {
        let Request::Connect { addr, .. } = asked.request else { return Some(asked) };
        let Some(name) = self.supervised(asked.pid).map(|application| application.about.application.clone()) else { return Some(asked) };
        let Some(application) = self.applications.get_mut(&name) else { return Some(asked) };
        let policy = application.about.policy();
        let Some(places) = application.places.get_mut(&addr) else { return Some(asked) };
        let ends = &self.clients;
        let waits = |id: &ConnectionId| ends.get(id).is_some_and(|client| client.port.end.can_reattach() && !client.is_attached());
        let found = match policy {
            ReattachPolicy::Replay => places.lost.front().copied().flatten().filter(waits),
            ReattachPolicy::Resume => places.lost.iter().flatten().copied().find(waits),
        };
        match found {
            Some(id) => self.reattach(id, asked, context),
            None => Some(asked),
        }
    }

    fn reattach(&mut self, id: ConnectionId, asked: Asked, context: &mut Context<'_>) -> Option<Asked> {
        let now = Instant::now();
        let Request::Connect { addr, descriptor, .. } = asked.request else { return Some(asked) };
        let Some(client) = self.clients.get_mut(&id) else { return Some(asked) };
        let Some(reattach) = &mut client.reattach else { return Some(asked) };
        let application = match reattach.about.policy() {
            ReattachPolicy::Replay => {
                let made = client_pair(&client.name).and_then(|pair| Ok((ApplicationSocket::new(pair.own)?, pair.application)));
                let (own, application) = match made {
                    Ok(made) => made,
                    Err(error) => return self.cannot_reattach(id, &asked, &error, context),
                };
                self.keeping.keep(&Keys::of(id).socket, own.descriptor().as_fd());
                client.port.attach(own);
                client.life += 1;
                application
            }
            ReattachPolicy::Resume => match reattach.copy.as_ref().map(OwnedFd::try_clone) {
                Some(Ok(copy)) => copy,
                Some(Err(error)) => return self.cannot_reattach(id, &asked, &error, context),
                None => return Some(asked),
            },
        };
        (reattach.limbo, reattach.ending, reattach.announced) = (None, None, None);
        if client.port.end.app_reattached(now).is_err() {
            return Some(asked);
        }
        (client.pid, client.descriptor, client.holder) = (asked.pid, descriptor, asked.socket);
        if client.state == State::Lost {
            client.state = if client.port.end.is_established() { State::Established } else { State::Recovering };
        }
        let name = client.name;
        let replays = client.reattach.as_ref().is_some_and(|reattach| reattach.about.policy() == ReattachPolicy::Replay);
        self.takes_place(asked.pid, addr, id, context);
        // Saved before the process hears of it.
        self.turn(id, now, context);
        let reply = asked.reply;
        context.then(move || reply.send(&Reply::Connected { errno: 0, pending: false, name: Some(name) }, Some(application.as_fd())));
        if replays {
            // With `resume` it is the socket that was read before.
            self.watch(id, context);
        }
        None
    }

    /// The process behind a connection is gone, and another one is started.
    /// The connection goes on waiting in its place, for another try.
    fn cannot_reattach(&mut self, id: ConnectionId, asked: &Asked, error: &std::io::Error, context: &mut Context<'_>) -> Option<Asked> {
        if let Some(service) = self.clients.get(&id).map(|client| client.server.service.clone()) {
            self.tell(Event::new("connect-refused").with("service", &service).with("reason", error), context);
        }
        let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
        asked.reply.send(&Reply::Connected { errno, pending: false, name: None }, None);
        None
    }

    fn client_lost(&mut self, id: ConnectionId, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(reattach) = &mut client.reattach else { return };
        if client.port.end.is_lost() {
            return;
        }
        let policy = reattach.about.policy();
        let connecting = client.waiting.is_some();
        if connecting && policy == ReattachPolicy::Resume {
            // A connect under way is made by the next process anew.
            client.port.end.let_go();
            self.end_lost(id, now);
            return self.turn(id, now, context);
        }
        if connecting {
            // Nobody waits for its outcome any more.
            client.waiting = None;
            client.port.note.word = Wait::Over.word();
            self.keeping.forget(&Keys::of(id).application);
        }
        if !client.port.end.can_reattach() {
            if let Some(ending) = reattach.limbo.take() {
                end_now(client, ending, now);
            }
        } else if policy == ReattachPolicy::Resume && reattach.copy.is_none() {
            // What it had not read is not known.
            client.port.end.let_go();
            if let Some(ending) = reattach.limbo.take() {
                end_now(client, ending, now);
            }
            let told = Event::new("reattach-lost").with("service", &client.server.service).with("connection", id);
            self.tell(told.with("reason", "a process has closed its copy of the socket while another one had it"), context);
        } else {
            let mut drained = Drained::default();
            if policy == ReattachPolicy::Replay && client.port.socket.is_some() {
                client.life += 1;
                self.keeping.forget(&Keys::of(id).socket);
                // What fills the socket of a connect under way is no part of the stream.
                if connecting {
                    client.port.detach();
                } else {
                    drained = client.port.drain_dead(now);
                }
            }
            let ending = reattach.limbo.take().or(drained.ending);
            match reattach.announced.take() {
                Some(Announced::Aborted) => client.port.end.app_reset(now),
                Some(Announced::Closed) if drained.cut => client.port.end.app_reset(now),
                Some(Announced::Closed) => client.port.end.app_closed(now),
                None => {
                    reattach.ending = ending;
                    client.port.end.app_lost(now);
                }
            }
        }
        self.turn(id, now, context);
    }

    /// No process will take the connection up: it ends as it would have without all this.
    fn release(&mut self, id: ConnectionId, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.port.end.let_go();
        self.keeping.forget(&Keys::of(id).transcript);
        self.end_lost(id, now);
        self.turn(id, now, context);
    }

    /// Ends a connection whose process is gone, or may be: the kernel says how.
    fn end_lost(&mut self, id: ConnectionId, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(reattach) = &mut client.reattach else { return };
        if reattach.copy.take().is_some() {
            self.keeping.forget(&Keys::of(id).copy);
        }
        let limbo = reattach.limbo.take();
        match reattach.about.policy() {
            ReattachPolicy::Replay if client.port.end.is_lost() => {
                let ending = reattach.ending.take().unwrap_or(Ending::Gone);
                end_now(client, ending, now);
            }
            ReattachPolicy::Resume if client.port.end.is_lost() => client.port.end.app_read_on(),
            _ => {
                if let Some(ending) = limbo {
                    end_now(client, ending, now);
                }
            }
        }
    }

    /// What an end reports of its client's process.
    pub(super) fn report_process(&mut self, id: ConnectionId, event: EndEvent, context: &mut Context<'_>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let service = client.server.service.clone();
        let told = |what: &str| Event::new(what).with("connection", id).with("service", &service);
        match event {
            EndEvent::ClientLost => {
                client.state = State::Lost;
                self.tell(told("client-lost"), context);
            }
            EndEvent::Reattached { told: again, expected } => {
                self.tell(told("client-reattached").with("told_again_bytes", again).with("expected_bytes", expected), context);
            }
            EndEvent::SaidAgain { regenerated } => {
                self.tell(told("client-flows").with("regenerated_bytes", regenerated), context);
            }
            EndEvent::NotReattached => {
                self.tell(told("reattach-lost").with("reason", "no process has connected in time (within_ms)"), context);
                let now = Instant::now();
                self.end_lost(id, now);
                self.turn(id, now, context);
            }
            EndEvent::TranscriptLost(why) => {
                let reason = match why {
                    TranscriptLost::Bound(bytes) => format!("its server has said {bytes} bytes, which is more than log_bytes"),
                    TranscriptLost::Failed(kind) => format!("what its server has said could not be kept: {kind}"),
                    TranscriptLost::Missing => "what its server has said is gone with the ARMOR".to_owned(),
                };
                self.keeping.forget(&Keys::of(id).transcript);
                self.tell(told("reattach-lost").with("reason", reason), context);
            }
            EndEvent::Archived => {
                client.state = State::Kept;
                let row = ClientRow { connection: id, armor: context.armor() };
                context.send_to(ArmorId::FTM, AppClientConnected { address: client.server.address, client: row, connected: false });
            }
            _ => {}
        }
    }

    /// Keeps what another vault does not know of.
    pub(super) fn keep_reattachable(&self, id: ConnectionId, client: &Client) {
        let Some(reattach) = &client.reattach else { return };
        let keys = Keys::of(id);
        if let Some(transcript) = &reattach.transcript {
            self.keeping.keep(&keys.transcript, transcript.descriptor());
        }
        self.keeping.keep_some(&keys.copy, reattach.copy.as_ref());
    }

    /// The application is shown a reset: nobody else may have a copy of its socket.
    pub(super) fn drop_copy(&mut self, id: ConnectionId) {
        if let Some(reattach) = self.clients.get_mut(&id).and_then(|client| client.reattach.as_mut()) {
            reattach.copy = None;
        }
    }

    pub(super) fn reattach_status(&self) -> serde_json::Value {
        let applications: serde_json::Map<String, serde_json::Value> = self
            .applications
            .iter()
            .map(|(name, application)| {
                let places = || application.places.values();
                let waiting: usize = places().map(|places| places.lost.iter().flatten().count()).sum();
                let made: usize = places().map(|places| places.made.len()).sum();
                let status = serde_json::json!({
                    "policy": application.about.policy(), "incarnation": application.incarnation.0, "alive": application.alive,
                    "waiting": waiting, "connects": made, "crowded": application.crowded,
                });
                (name.clone(), status)
            })
            .collect();
        applications.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_of_its_group_are_an_application_s() {
        assert_eq!(group_of(std::process::id()), group_of(std::process::id()));
        assert!(group_of(std::process::id()).is_some());
        assert_eq!((group_of(0), group_of(u32::MAX)), (None, None));
    }
}
