//! The handshake before a connection is a link.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use armor_core::context::Context;
use armor_proto::ids::ArmorId;
use armor_proto::secure::{HandshakeError, Transport};
use tokio::net::TcpStream;

use super::DaemonTcpMgmt;
use crate::links::daemons::HELLO_WITHIN;
use crate::links::{NoHandshake, answered, dialled};

impl DaemonTcpMgmt {
    /// A connection has been accepted.
    pub(super) fn accepted(&mut self, mut stream: TcpStream, remote: SocketAddr, context: &mut Context<'_>) {
        if self.daemons.security.is_none() {
            self.hold(stream, None, None, remote.to_string(), context);
            return;
        }
        let mut greeting = self.greetings.admit(remote.ip());
        let handle = context.handle::<Self>();
        context.spawn(async move {
            let answer = |transport, message: &[u8]| {
                let answered = handle.call(|element, context| {
                    let security = element.daemons.security.as_mut()?;
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
        let Some(security) = &mut self.daemons.security else {
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
        let told = self.daemons.peers.get(&armor).is_some_and(|peer| peer.told);
        if !told && !matches!(why, NoHandshake::Late) {
            self.refuse(why, address, context);
        }
        self.daemons.not_connected(armor, address, &why.to_string(), context);
    }

    fn refuse(&mut self, why: &NoHandshake, peer: &str, context: &mut Context<'_>) {
        if let (Some(kind), Some(security)) = (why.kind(), &mut self.daemons.security) {
            security.refuse(kind, peer, &why.to_string(), context);
        }
    }
}
