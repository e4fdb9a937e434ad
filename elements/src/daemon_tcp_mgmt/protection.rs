//! What protects links: the handshake before a link is one, who may say what on it, and keys that are renewed or taken out.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::Instant;

use armor_core::context::Context;
use armor_proto::ids::ArmorId;
use armor_proto::secure::{HandshakeError, Transport};
use tokio::net::TcpStream;

use super::{DaemonTcpMgmt, HELLO_WITHIN, LOOK, LOOKING, REKEY_AFTER};
use crate::links::security::kind_of;
use crate::links::{LinkId, NoHandshake, answered, dialled};
use crate::operations::DaemonHello;

impl DaemonTcpMgmt {
    /// A connection has been accepted.
    pub(super) fn accepted(&mut self, mut stream: TcpStream, remote: SocketAddr, context: &mut Context<'_>) {
        if self.security.is_none() {
            self.hold(stream, None, None, remote.to_string(), context);
            return;
        }
        let mut greeting = self.greetings.admit(remote.ip());
        let handle = context.handle::<Self>();
        context.spawn(async move {
            let answer = |transport, message: &[u8]| {
                let answered = handle.call(|element, context| {
                    let security = element.security.as_mut()?;
                    security.refresh(context);
                    Some(security.answer(transport, message))
                });
                answered.flatten().unwrap_or_else(|| Err(HandshakeError::Library("this daemon ends".to_owned())))
            };
            let result = tokio::select! {
                result = tokio::time::timeout(HELLO_WITHIN, answered(&mut stream, answer)) => result.unwrap_or(Err(NoHandshake::Late)),
                _ = &mut greeting.evicted => Err(NoHandshake::Crowded),
            };
            handle.call(|element, context| {
                element.greetings.done(greeting.id);
                match result {
                    Ok(channel) => element.hold(stream, Some(channel), None, remote.to_string(), context),
                    Err(why) => element.refuse(&why, &remote.to_string(), context),
                }
            });
        });
    }

    /// A daemon that was dialled has been connected to.
    pub(super) fn connected(&mut self, mut stream: TcpStream, armor: ArmorId, address: String, context: &mut Context<'_>) {
        let Some(security) = &mut self.security else {
            self.hold(stream, None, Some(armor), address, context);
            return;
        };
        security.refresh(context);
        let (dialling, first) = match security.dial(armor, Transport::Tcp) {
            Ok(begun) => begun,
            Err(error) => {
                self.not_introduced(armor, &address, &NoHandshake::Refused(error), context);
                return;
            }
        };
        if let Ok(socket) = stream.as_fd().try_clone_to_owned() {
            self.introducing.insert(armor, socket);
        }
        let handle = context.handle::<Self>();
        context.spawn(async move {
            let result = tokio::time::timeout(HELLO_WITHIN, dialled(&mut stream, dialling, &first)).await;
            let result = result.unwrap_or(Err(NoHandshake::Late));
            handle.call(|element, context| {
                element.introducing.remove(&armor);
                match result {
                    Ok(channel) => element.hold(stream, Some(channel), Some(armor), address, context),
                    Err(why) => element.not_introduced(armor, &address, &why, context),
                }
            });
        });
    }

    fn not_introduced(&mut self, armor: ArmorId, address: &str, why: &NoHandshake, context: &mut Context<'_>) {
        // Told once while it goes on: it is tried again and again. Who does not answer in time is only slow, or being started again.
        let told = self.peers.get(&armor).is_some_and(|peer| peer.told);
        if !told && !matches!(why, NoHandshake::Late) {
            self.refuse(why, address, context);
        }
        self.not_connected(armor, address, &why.to_string(), context);
    }

    fn refuse(&mut self, why: &NoHandshake, peer: &str, context: &mut Context<'_>) {
        if let (Some(kind), Some(security)) = (why.kind(), &mut self.security) {
            security.refuse(kind, peer, &why.to_string(), context);
        }
    }

    /// Whether what a peer says to be is not what its key belongs to; its link is closed then.
    pub(super) fn lies(&mut self, id: LinkId, hello: &DaemonHello, context: &mut Context<'_>) -> bool {
        let Some(held) = self.links.get(&id) else { return false };
        let (Some((name, _)), Some(security)) = (&held.shown, &mut self.security) else { return false };
        if hello.name == *name && hello.armor == ArmorId::of_name(name) {
            return false;
        }
        let error = HandshakeError::WrongName { said: hello.name.chars().take(48).collect(), listed: name.clone() };
        security.refuse(kind_of(&error), &held.remote, &error.to_string(), context);
        held.link.close();
        true
    }

    /// Once a second: nodes that were taken out of the list lose their links, and links that have had their keys for long get others.
    pub(super) fn look_at_keys(&mut self, now: Instant, context: &mut Context<'_>) {
        context.timer(LOOK, LOOKING);
        let Some(security) = &mut self.security else { return };
        let changed = security.look(context);
        for held in self.links.values_mut() {
            if now.saturating_duration_since(held.rekeyed) >= REKEY_AFTER {
                held.rekeyed = now;
                held.link.rekey();
            }
            let Some((name, key)) = held.shown.as_ref().filter(|_| changed) else { continue };
            if !security.trusts(name, key) {
                security.refuse("removed", &held.remote, &format!("{name} has been taken out of the list of trusted nodes"), context);
                held.link.close();
            }
        }
    }
}
