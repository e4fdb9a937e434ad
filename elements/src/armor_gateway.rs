//! `armor_gateway`: attaches an ARMOR to the daemon of its node; the other side of `daemon_gateway`.
//!
//! Purpose: everything that leaves this ARMOR goes to the daemon by one unix socket, which is connected again when it breaks.
//! Subscribes: `MSG_ROUTE`, `MSG_DAEMON_HELLO` (the daemon's answer to the attachment), `MSG_STATE_MEMORY`, `MSG_LEASE_TOLD` and `MSG_LINK_CHANGED` (they
//! come to every ARMOR). Emits: `MSG_ARMOR_ATTACH`.
//! Configuration: `daemon`, see [`Config`].
//!
//! Invariant: messages that leave while the daemon is away wait within the bounds of [`Waiting`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::Route;
use armor_proto::frame::{Encoded, Frame};
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;
use bytes::BytesMut;
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::links::{Backoff, Closed, Link, LinkId, LinkOwner, Sent, Stream, Waiting, encode};
use crate::operations::{ArmorAttach, DaemonHello, LeaseTold, LinkChanged, StateMemory};

/// How long a message may wait for the daemon.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(500);

/// The element.
pub struct ArmorGateway {
    config: Config,
    link: Option<(LinkId, Link)>,
    next_link: LinkId,
    backoff: Backoff,
    /// Every message takes the same way, so all of them wait under -1, in order.
    waiting: Waiting,
    scratch: BytesMut,
    ticking: bool,
    told: bool,
    dropped: u64,
    daemon: String,
    /// What the FTM remembers by, for people; elements that have told it something hear it themselves.
    ftm_memory: Option<u64>,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The daemon's `armor.sock`.
    daemon: PathBuf,
}

impl Element for ArmorGateway {
    const NAME: &'static str = "armor_gateway";
    const PURPOSE: &'static str = "attaches an ARMOR to the daemon of its node";
    const EXAMPLE: &'static str = "daemon = \"/run/armor/node1/armor.sock\"\n";
    const EXCLUDES: &'static [&'static str] = &["daemon_gateway"];
    type Config = Config;

    fn new(config: Config, _: &Setup) -> Result<Self, String> {
        Ok(ArmorGateway {
            config,
            link: None,
            next_link: 0,
            backoff: Backoff::default(),
            waiting: Waiting::new(LONGEST_WAIT),
            scratch: BytesMut::with_capacity(64 << 10),
            ticking: false,
            told: false,
            dropped: 0,
            daemon: String::new(),
            ftm_memory: None,
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::route).on(Self::hello).on(Self::memory).on(Self::lease).on(Self::link_changed).emits::<ArmorAttach>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        self.connect(context);
        Ok(())
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.ticking = false;
        self.dropped += self.waiting.expire(Instant::now()).iter().map(|(_, messages)| *messages as u64).sum::<u64>();
        self.tick_later(context);
    }

    fn status(&self) -> serde_json::Value {
        let link = self.link.as_ref().map(|(_, link)| link);
        serde_json::json!({
            "socket": self.config.daemon, "daemon": self.daemon, "attached": link.is_some(),
            "queued_bytes": link.map_or(0, Link::queued_bytes), "waiting": self.waiting.len(), "dropped": self.dropped, "ftm_memory": self.ftm_memory.map(|memory| format!("{memory:016x}")),
        })
    }
}

impl ArmorGateway {
    fn route(&mut self, _: &Route, context: &mut Context<'_>) {
        if context.routed_to().is_none_or(|destination| destination == ArmorId::NONE) {
            return;
        }
        let Some(routed) = context.take_routed() else { return };
        match routed.encode(&mut self.scratch) {
            Ok(encoded) => self.send(encoded, context),
            Err(error) => context.event(Event::new("message-refused").with("destination", routed.destination()).with("reason", error)),
        }
    }

    fn send(&mut self, encoded: Encoded, context: &mut Context<'_>) {
        let Some((_, link)) = &self.link else {
            if !self.waiting.push(ArmorId::NONE, encoded, Instant::now()) {
                self.dropped += 1;
            }
            self.tick_later(context);
            return;
        };
        match link.send(encoded) {
            Sent::Written | Sent::Queued => {}
            Sent::FirstDropped => {
                self.dropped += 1;
                tracing::warn!("messages are being dropped: the daemon does not read");
            }
            Sent::Dropped | Sent::Closed => self.dropped += 1,
        }
    }

    fn hello(&mut self, hello: &DaemonHello, _: &mut Context<'_>) {
        self.daemon.clone_from(&hello.name);
    }

    fn memory(&mut self, memory: &StateMemory, _: &mut Context<'_>) {
        self.ftm_memory = Some(memory.memory);
    }

    fn lease(&mut self, _: &LeaseTold, _: &mut Context<'_>) {}

    fn link_changed(&mut self, _: &LinkChanged, _: &mut Context<'_>) {}

    fn connect(&mut self, context: &mut Context<'_>) {
        let pause = self.backoff.pause();
        let path = self.config.daemon.clone();
        let handle = context.handle::<Self>();
        context.spawn(async move {
            tokio::time::sleep(pause).await;
            let connected = UnixStream::connect(&path).await;
            handle.call(|element, context| match connected {
                Ok(stream) => element.connected(stream, context),
                Err(error) => {
                    if !std::mem::replace(&mut element.told, true) {
                        tracing::error!("no daemon at {}: {error}", path.display());
                    }
                    element.connect(context);
                }
            });
        });
    }

    fn connected(&mut self, stream: UnixStream, context: &mut Context<'_>) {
        self.next_link += 1;
        let link = Link::open::<Self>(self.next_link, Stream::Unix(stream), context);
        let attach = ArmorAttach { armor: context.armor(), name: context.setup().name.clone(), pid: std::process::id() };
        // The daemon's identity is not known here, nor needed.
        let mut message = Message::to(ArmorId::NONE, attach);
        message.source = context.armor();
        if let Ok(encoded) = encode(&message) {
            link.send(encoded);
        }
        self.link = Some((self.next_link, link));
        for encoded in self.waiting.take(ArmorId::NONE) {
            self.send(encoded, context);
        }
        if std::mem::replace(&mut self.told, false) {
            context.event(Event::new("daemon-back"));
        }
    }

    fn tick_later(&mut self, context: &mut Context<'_>) {
        if !self.waiting.is_empty() && !std::mem::replace(&mut self.ticking, true) {
            context.timer(TICK, 0);
        }
    }
}

impl LinkOwner for ArmorGateway {
    fn link_frame(&mut self, _: LinkId, frame: Frame, context: &mut Context<'_>) {
        // The link has proved to be good, so a break is followed by an attempt at once.
        self.backoff.reset();
        context.received(frame);
    }

    fn link_closed(&mut self, id: LinkId, why: &Closed, context: &mut Context<'_>) {
        if self.link.as_ref().is_some_and(|(current, _)| *current == id) {
            self.link = None;
            self.told = true;
            tracing::warn!("the link to the daemon has ended: {why}");
            self.connect(context);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn messages_wait_while_the_daemon_is_away() {
        let setup = Setup { armor: ArmorId(5), name: "e".into(), kind: "test".into(), run_dir: "/".into() };
        let mut gateway = ArmorGateway::new(Config { daemon: "/nowhere".into() }, &setup).expect("works");
        let mut effects = Vec::new();
        let message = Message::to(ArmorId(9), armor_core::operations::StatusQuery {});
        let encoded = encode(&message).expect("works");
        gateway.send(encoded, &mut Context::detached(&setup, None, &mut effects));
        assert_eq!(gateway.waiting.len(), 1);
        assert!(matches!(effects[..], [armor_core::context::Effect::Timer(..)]));
    }
}
