//! What a server's side answers to connect requests that lead to no process.

use armor_core::context::Context;
use armor_proto::connection::{AckState, ConnectReply, Direction, Reset, ResetReason};
use armor_proto::ids::Incarnation;

use crate::operations::{AppcommConnectReply, AppcommReset, AppcommServerConnectRequest};

/// To a connect request for a connection that is over here. Mostly it is a duplicate that was under way for long, and nobody waits
/// for an answer. A client that has not heard of the end takes it from this.
pub fn answer_late(asked: &AppcommServerConnectRequest, context: &mut Context<'_>) {
    let reset = Reset {
        connection: asked.request.connection,
        incarnation: asked.request.incarnation,
        direction: Direction::S2c,
        reason: ResetReason::ServerGone,
    };
    context.send_to(asked.client, AppcommReset { reset });
}

/// Nobody serves this address here, or not now.
pub fn refuse(asked: &AppcommServerConnectRequest, errno: i32, context: &mut Context<'_>) {
    let requested = asked.request.incarnation;
    let reply = ConnectReply {
        connection: asked.request.connection,
        requested,
        incarnation: requested,
        service: Incarnation(0),
        end: 0,
        errno,
        c2s: AckState::default(),
    };
    context.send_to(asked.client, AppcommConnectReply { reply });
}
