//! Where is a server whose ARMOR refuses a connect (thesis §4.2.1)? The FTM is asked; the question may be lost with it, and is asked again.
//!
//! Invariant: a connect is refused by the FTM's word, never because the FTM does not answer: then its deadline ends it.

use std::time::{Duration, Instant};

/// How long the FTM may take to answer before a further refusal asks it again: as connect requests are sent again first.
const ANSWERS_WITHIN: Duration = Duration::from_millis(200);

/// The question of one connect.
#[derive(Default)]
pub(super) struct LookUp {
    asked: Option<Instant>,
}

impl LookUp {
    /// The ARMOR that is known has refused. Whether the FTM is to be asked.
    pub(super) fn refused(&mut self, now: Instant) -> bool {
        let is_due = self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ANSWERS_WITHIN);
        if is_due {
            self.asked = Some(now);
        }
        is_due
    }

    /// The FTM has answered. Whether it was asked.
    pub(super) fn answered(&mut self) -> bool {
        self.asked.take().is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use armor_core::context::{Context, Effect, Effects};
    use armor_core::element::{Element as _, Setup};
    use armor_proto::connection::{AckState, ConnectReply};
    use armor_proto::hookup::{Endpoint, Request};
    use armor_proto::ids::{ArmorId, ConnectionId, Incarnation};
    use armor_proto::message::downcast;

    use super::super::{AppCommClient, Config};
    use super::*;
    use crate::endpoints::{Asked, ReplyTo, ServerTable};
    use crate::operations::{AppLookupServerInfo, AppServerInfo, AppcommConnectReply, Policy, ServerRow};

    #[test]
    fn the_ftm_is_asked_once_at_a_time_and_again_when_it_does_not_answer() {
        let (mut look_up, now) = (LookUp::default(), Instant::now());
        assert!(!look_up.answered(), "nobody has asked");
        assert!(look_up.refused(now) && !look_up.refused(now + ANSWERS_WITHIN / 2));
        assert!(look_up.refused(now + ANSWERS_WITHIN), "it may have died over the question");
        assert!(look_up.answered() && !look_up.answered(), "an answer that comes twice is one");
        assert!(look_up.refused(now + ANSWERS_WITHIN));
    }

    #[tokio::test]
    async fn a_connect_waits_while_the_ftm_does_not_answer() {
        let address = Endpoint::new([127, 0, 0, 1].into(), 80);
        let row = |armor: u64| ServerRow {
            address,
            armor: ArmorId(armor),
            incarnation: Incarnation(1),
            service: "web".into(),
            policy: Policy::Request,
            deadline_ms: 30_000,
            settled_ms: None,
        };
        let directory = tempfile::tempdir().unwrap();
        let setup = Setup { armor: ArmorId(5), name: "node".into(), kind: "daemon".into(), run_dir: directory.path().into() };
        let mut element = AppCommClient::new(Config { max_connections: 4, ..Config::default() }, &setup).unwrap();
        element.table = Some(ServerTable::new(vec![row(7)], Vec::new()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, client) = listener.accept().unwrap();
        let (reply, _asker) = ReplyTo::pair();
        let request = Request::Accepted { addr: address, client: client.into(), again: false };
        let mut effects = Effects::new();
        let asked = Asked { request, socket: Some(accepted.into()), pid: std::process::id(), reply };
        element.accepted(asked, &mut Context::detached(&setup, None, &mut effects));
        let id = *element.clients.keys().next().unwrap();
        let refusal = AppcommConnectReply { reply: refusal(id) };
        // How many questions a refusal leads to.
        let refuse = |element: &mut AppCommClient| {
            let mut effects = Effects::new();
            element.connect_reply(&refusal, &mut Context::detached(&setup, None, &mut effects));
            let is_question = |effect: &&Effect| {
                let Effect::Send(message) = effect else { return false };
                message.top().and_then(|bundle| downcast::<AppLookupServerInfo>(bundle.operations.front()?)).is_some()
            };
            effects.iter().filter(is_question).count()
        };
        let answer = |element: &mut AppCommClient, row: ServerRow| {
            let info = AppServerInfo { address, request: id.0, row: Some(row), moving: false };
            element.server_info(&info, &mut Context::detached(&setup, None, &mut Effects::new()));
        };
        assert_eq!((refuse(&mut element), refuse(&mut element)), (1, 0));
        assert!(element.clients.contains_key(&id), "it waits");
        element.clients.get_mut(&id).unwrap().looked_up.asked = Instant::now().checked_sub(ANSWERS_WITHIN);
        assert_eq!(refuse(&mut element), 1);
        // Both questions are answered: the server has moved, and has not refused there.
        answer(&mut element, row(8));
        answer(&mut element, row(8));
        assert!(element.clients.contains_key(&id));
        assert_eq!(refuse(&mut element), 1);
        answer(&mut element, row(8));
        assert!(element.clients.is_empty(), "by the FTM's word");
    }

    fn refusal(connection: ConnectionId) -> ConnectReply {
        let (requested, errno, c2s) = (Incarnation(1), libc::ECONNREFUSED, AckState::default());
        ConnectReply { connection, requested, incarnation: requested, service: requested, end: 1, errno, c2s }
    }
}
