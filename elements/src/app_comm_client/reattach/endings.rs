//! How the streams of clients that may be reattached end: closed, or by the death of the process.
//!
//! Invariant: an end without announcement waits for the process's fate; what was announced is a close when the kernel says so too.

use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_proto::ids::ConnectionId;

use super::super::restored::Keys;
use super::super::{AppCommClient, Client};
use super::Announced;
use crate::endpoints::{ApplicationSocket, Ending, Proxy, Read, is_exiting};

/// How long an end of stream without announcement waits for the end of its process, which the kernel tells a little later.
const FATE: Duration = Duration::from_millis(100);
/// How many times longer for a process that is dying.
const DYING: u32 = 20;

impl AppCommClient {
    /// A stream has ended; whether anything has been decided about that.
    pub(in super::super) fn stream_ended(&mut self, id: ConnectionId, ending: Ending, now: Instant, context: &mut Context<'_>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if ending == Ending::Half {
            client.port.read_done = true;
            return client.port.end.app_eof(now);
        }
        let keeps = client.port.end.can_reattach();
        match client.reattach.as_mut().filter(|reattach| keeps && reattach.announced.is_none()) {
            None => {
                let announced = client.reattach.as_mut().and_then(|reattach| reattach.announced.take());
                client.port.read_done = true;
                end_now(client, if announced == Some(Announced::Aborted) { Ending::Reset } else { ending }, now);
            }
            // Closed or died: the announcement, or the process's fate, decides.
            Some(reattach) => {
                reattach.limbo = Some(ending);
                let life = client.life;
                self.await_fate(id, life, FATE, context);
            }
        }
    }

    /// The shim says that the application has closed its copy; counts if the kernel says so too.
    pub(in super::super) fn announced(&mut self, id: ConnectionId, aborted: bool, context: &mut Context<'_>) {
        let now = Instant::now();
        let announced = if aborted { Announced::Aborted } else { Announced::Closed };
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(reattach) = &mut client.reattach else { return };
        if client.port.end.is_lost() {
            // The ARMOR was away when it was closed.
            let ending = reattach.ending.take().unwrap_or(Ending::Gone);
            end_now(client, if aborted { Ending::Reset } else { ending }, now);
            let dialled = client.dialled;
            for places in self.applications.values_mut().filter_map(|application| application.places.get_mut(&dialled)) {
                places.make_again(id);
            }
            context.state_changed();
        } else if reattach.copy.take().is_some() {
            // From now on the kernel tells when the last copy is closed.
            self.keeping.forget(&Keys::of(id).copy);
            reattach.announced = Some(announced);
            client.port.end.let_go();
        } else {
            // Nobody reads any more behind a half-close.
            let closed = || client.port.read_done && client.port.socket.as_ref().is_some_and(ApplicationSocket::hung_up);
            let (read, ending) = match reattach.limbo.take() {
                Some(ending) => (Read::Finished, Some(ending)),
                None if closed() => (Read::Finished, Some(Ending::Gone)),
                None => client.port.read_all(now),
            };
            if read == Read::Paused {
                // The end of the stream lies behind bytes for which there is no room yet.
                reattach.announced = Some(announced);
            }
            if let Some(ending) = ending {
                client.port.read_done = true;
                match ending {
                    Ending::Half => client.port.end.app_eof(now),
                    ending => end_now(client, if aborted { Ending::Reset } else { ending }, now),
                }
            }
        }
        self.turn(id, now, context);
    }

    fn await_fate(&self, id: ConnectionId, life: u32, pause: Duration, context: &mut Context<'_>) {
        let handle = context.handle::<Self>();
        context.spawn(async move {
            tokio::time::sleep(pause).await;
            handle.call(|element, context| element.fate(id, life, pause, context));
        });
    }

    /// The time for a word about the end of a stream is over.
    fn fate(&mut self, id: ConnectionId, life: u32, waited: Duration, context: &mut Context<'_>) {
        let now = Instant::now();
        let Some(client) = self.clients.get_mut(&id).filter(|client| client.life == life) else { return };
        let Some(reattach) = client.reattach.as_mut().filter(|reattach| reattach.limbo.is_some()) else { return };
        match self.applications.get(&reattach.about.application) {
            // The overseer will say more.
            Some(application) if waited == FATE && application.alive && is_exiting(application.pid) => {
                return self.await_fate(id, life, FATE * DYING, context);
            }
            // A process of an application that lives on has died, and nobody starts that again.
            _ => {
                let Some(ending) = reattach.limbo.take() else { return };
                end_now(client, ending, now);
            }
        }
        self.turn(id, now, context);
    }

    /// A connection of an earlier life of this ARMOR whose application has no end of it any more. If the application lives it may never
    /// have got it: then it asks again.
    pub(in super::super) fn found_hung_up(&mut self, id: ConnectionId, context: &mut Context<'_>) {
        let Some(client) = self.clients.get(&id).filter(|client| client.port.end.can_reattach()) else { return };
        let Some(reattach) = &client.reattach else { return };
        let (name, dialled) = (reattach.about.application.clone(), client.dialled);
        let lives = self.applications.get(&name).is_some_and(|application| application.alive && !is_exiting(application.pid));
        if lives && let Some(client) = self.clients.get_mut(&id).filter(|client| client.port.end.has_heard_process()) {
            // It had got it, and has closed it while nobody was here to be told.
            let now = Instant::now();
            let drained = client.port.drain_dead(now);
            let ending = if drained.cut { Ending::Reset } else { drained.ending.unwrap_or(Ending::Gone) };
            client.life += 1;
            end_now(client, ending, now);
            self.keeping.forget(&Keys::of(id).socket);
            return self.turn(id, now, context);
        }
        self.client_lost(id, context);
        if lives && let Some(places) = self.applications.get_mut(&name).and_then(|application| application.places.get_mut(&dialled)) {
            places.unmake(id, Some(id));
            context.state_changed();
        }
    }
}

/// Ends a connection as its process has ended it.
pub(super) fn end_now(client: &mut Client, ending: Ending, now: Instant) {
    match ending {
        Ending::Half => client.port.end.app_eof(now),
        Ending::Gone => client.port.end.app_closed(now),
        Ending::Reset => client.port.end.app_reset(now),
    }
}
