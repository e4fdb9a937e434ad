//! What the two comm elements have in common: after everything that happens to a connection its end has a turn, and what the end
//! wants is carried out (thesis §4.2: the proxy threads).
//!
//! Invariant: an end is never left without a turn after it was told something.

use std::time::Instant;

use armor_core::context::Context;
use armor_core::element::Element;
use armor_core::events::Event;
use armor_proto::connection::{ConnectRequest, Direction, Event as EndEvent, Record, Reset, ResetReason};
use armor_proto::hookup::Reply;
use armor_proto::ids::{ArmorId, ConnectionId};
use armor_proto::message::Message;
use bytes::Bytes;

use super::AT_ONCE;
use super::crowd::{self, Crowd};
use super::port::{End, Port, Turn};
use super::remembered::Remembered;
use super::unread_byte::Whereabouts;
use crate::operations::{
    AppcommAck, AppcommConnectReply, AppcommData, AppcommReplay, AppcommReset, AppcommServerConnectRequest, LinkChanged,
};

/// What an application is told that has read to the end of a connection's stream: one that was not reset was closed.
#[must_use]
pub fn how_ended(resets: &Remembered<ResetReason>, id: ConnectionId) -> Reply {
    Reply::Ended { errno: resets.of(id).map_or(0, |_| libc::ECONNRESET) }
}

/// An element that stands between applications and the other ends of their connections.
///
/// Its timer tokens are connection ids, whole ones: they use all 64 bits.
pub trait Proxy: Element {
    /// Which end it keeps.
    type End: End;

    /// The end of a connection, and its socket.
    fn port(&mut self, id: ConnectionId) -> Option<&mut Port<Self::End>>;

    /// All connections, in any order.
    fn connections(&self) -> Vec<ConnectionId>;

    /// Where the other end is.
    fn other_end(&self, id: ConnectionId) -> ArmorId;

    /// Where the application's end is, if that is known.
    fn whereabouts(&self, id: ConnectionId) -> Option<Whereabouts> {
        let _ = id;
        None
    }

    /// Puts a connect request into the operation that carries it. Only a client's end sends one.
    fn connect_request(&self, request: ConnectRequest, context: &Context<'_>) -> Option<AppcommServerConnectRequest> {
        let _ = (request, context);
        None
    }

    /// The application is shown a reset; its socket is closed.
    fn was_reset(&mut self, id: ConnectionId, reason: ResetReason, context: &mut Context<'_>);

    /// The end reports something.
    fn report(&mut self, id: ConnectionId, event: EndEvent, context: &mut Context<'_>);

    /// Events of connections that come in crowds.
    fn crowd(&mut self) -> &mut Crowd;

    /// Tells an event of a connection: now, or together with others when there are many.
    fn tell(&mut self, event: Event, context: &mut Context<'_>) {
        let crowd = self.crowd();
        if crowd.is_empty() {
            let handle = context.handle::<Self>();
            context.spawn(async move {
                tokio::time::sleep(crowd::WHILE).await;
                handle.call(|element, context| {
                    element.crowd().others().into_iter().for_each(|event| context.event(event));
                });
            });
        }
        if let Some(event) = crowd.joined(event) {
            context.event(event);
        }
    }

    /// Does something to a connection, then lets its end act. False when there is no such connection.
    fn with(&mut self, id: ConnectionId, context: &mut Context<'_>, work: impl FnOnce(&mut Port<Self::End>, Instant)) -> bool {
        let now = Instant::now();
        let Some(port) = self.port(id) else { return false };
        work(port, now);
        self.turn(id, now, context);
        true
    }

    /// Lets an end act until it wants nothing more.
    fn turn(&mut self, id: ConnectionId, now: Instant, context: &mut Context<'_>) {
        let Some(port) = self.port(id) else { return };
        let Turn { records, events, reset, wait_writable, arm, broken } = port.turn(now);
        let writable = port.socket.as_ref().filter(|_| wait_writable).map(|socket| socket.watch());
        if let Some(error) = broken {
            // What was not saved must not be told.
            return context.fail_stop(format!("connection {id}: {error}"));
        }
        if reset.is_some() {
            let whereabouts = self.whereabouts(id);
            if let Some(port) = self.port(id) {
                port.reset(whereabouts);
            }
        }
        for (record, payload) in records {
            self.send(id, record, payload, context);
        }
        if let Some(due) = arm {
            context.timer(due.saturating_duration_since(now), id.0);
        }
        if let Some(watch) = writable {
            let handle = context.handle::<Self>();
            context.spawn(async move {
                watch.writable().await;
                handle.call(|element, context| element.with(id, context, |port, _| port.writable()));
            });
        }
        if let Some(reason) = reset {
            self.was_reset(id, reason, context);
        }
        for event in events {
            self.report(id, event, context);
        }
    }

    /// Sends a record to the other end.
    fn send(&mut self, id: ConnectionId, record: Record, payload: Bytes, context: &mut Context<'_>) {
        let to = self.other_end(id);
        let message = match record {
            Record::ConnectRequest(request) => match self.connect_request(request, context) {
                Some(request) => Message::to(to, request),
                None => return,
            },
            Record::ConnectReply(reply) => Message::to(to, AppcommConnectReply { reply }),
            Record::Data(data) => Message::to(to, AppcommData { data }).with_payload(payload),
            Record::Ack(ack) => Message::to(to, AppcommAck { ack }),
            Record::Reset(reset) => Message::to(to, AppcommReset { reset }),
            Record::Replay(replay) => Message::to(to, AppcommReplay { replay }),
        };
        context.send(message);
    }

    /// A timer of a connection has run out.
    fn time_is_up(&mut self, id: ConnectionId, context: &mut Context<'_>) {
        self.with(id, context, |port, now| port.timeout(now));
    }

    /// `MSG_LINK_CHANGED`: what was on its way to other nodes may be lost, so it is asked for, or said again, now.
    fn link_changed(&mut self, _: &LinkChanged, context: &mut Context<'_>) {
        // Behind which daemon an ARMOR is, its daemon may have forgotten with the link. Ends that miss nothing say nothing.
        let own = context.armor();
        let elsewhere = self.connections().into_iter().filter(|id| self.other_end(*id) != own).collect();
        self.paths_changed(elsewhere, context);
    }

    /// Tells the ends; others have a turn before the rest.
    fn paths_changed(&mut self, mut ids: Vec<ConnectionId>, context: &mut Context<'_>) {
        let rest = ids.split_off(ids.len().min(AT_ONCE));
        for id in ids {
            self.with(id, context, |port, _| port.end.path_changed());
        }
        if !rest.is_empty() {
            let handle = context.handle::<Self>();
            context.spawn(async move {
                tokio::task::yield_now().await;
                handle.call(|element, context| element.paths_changed(rest, context));
            });
        }
    }

    /// `MSG_APPCOMM_DATA`: bytes from the other end.
    fn data(&mut self, data: &AppcommData, context: &mut Context<'_>) {
        let data = &data.data;
        if data.direction != Self::End::INCOMING {
            // Both comm elements of an ARMOR hear it.
            return;
        }
        let payload = context.message().map(|message| message.payload.clone()).unwrap_or_default();
        let known = self.with(data.connection, context, |port, now| {
            let _ = port.end.handle_data(data, payload, now);
        });
        if !known {
            // As TCP answers bytes for a connection that is not there.
            let direction = if data.direction == Direction::C2s { Direction::S2c } else { Direction::C2s };
            let reset = Reset { connection: data.connection, incarnation: data.incarnation, direction, reason: ResetReason::Closed };
            context.send_to(context.source(), AppcommReset { reset });
        }
    }

    /// `MSG_APPCOMM_ACK`: bytes have reached the other application.
    fn ack(&mut self, ack: &AppcommAck, context: &mut Context<'_>) {
        if ack.ack.direction != Self::End::INCOMING {
            self.with(ack.ack.connection, context, |port, now| {
                let _ = port.end.handle_ack(&ack.ack, now);
            });
        }
    }

    /// `MSG_APPCOMM_RESET`: the other end has reset the connection.
    fn reset(&mut self, reset: &AppcommReset, context: &mut Context<'_>) {
        if reset.reset.direction != Self::End::INCOMING {
            // Both comm elements of an ARMOR hear it.
            return;
        }
        self.with(reset.reset.connection, context, |port, now| {
            let _ = port.end.handle_reset(&reset.reset, now);
        });
    }
}
