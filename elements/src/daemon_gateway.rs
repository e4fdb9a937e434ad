//! `daemon_gateway`: where the ARMORs of this node attach to their daemon (thesis §3.2.1: ARMORs reach each other through
//! their daemons).
//!
//! Purpose: listens on `<run_dir>/armor.sock`; the first frame of a link is `MSG_ARMOR_ATTACH`, to this ARMOR or, when the
//! speaker does not know it, to -1: the answer is then `MSG_DAEMON_HELLO`. Belongs before `daemon_tcp_mgmt` in a composition.
//! Subscribes: `MSG_ROUTE`, `MSG_ARMOR_ATTACH`, `MSG_DAEMON_REGISTERED`, `MSG_STATE_MEMORY`, `MSG_LINK_CHANGED`, `MSG_LEASE_TOLD`.
//! Emits: `MSG_ARMOR_ATTACH` (to this ARMOR's other elements), `MSG_ARMOR_INSTALLED` (acknowledged), `MSG_STATE_MEMORY`, `MSG_LINK_CHANGED` and
//! `MSG_LEASE_TOLD` (to attached ARMORs).
//! Configuration: none.
//!
//! Invariant: only processes of this user or of root may attach.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::{Route, SendReliable};
use armor_proto::frame::{Encoded, Frame};
use armor_proto::ids::ArmorId;
use armor_proto::message::Message;
use bytes::BytesMut;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};

use crate::links::{Closed, Link, LinkId, LinkOwner, Sent, Stream, Waiting, encode, introduction};
use crate::operations::{ArmorAttach, ArmorInstalled, DaemonHello, DaemonRegistered, LeaseTold, LinkChanged, StateMemory};

/// Most processes attached at once.
const MAX_LINKS: usize = 4096;
/// How long a process may take to say who it is.
const ATTACH_WITHIN: Duration = Duration::from_secs(5);
/// How long messages are kept for an ARMOR that is gone: it is being restarted, most likely.
const AWAY: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(500);

/// The element.
pub struct DaemonGateway {
    attached: HashMap<ArmorId, Attached>,
    links: HashMap<LinkId, Held>,
    next_link: LinkId,
    /// ARMORs that were attached a moment ago.
    away: HashMap<ArmorId, Instant>,
    waiting: Waiting,
    scratch: BytesMut,
    ticking: bool,
    dropped: u64,
    /// What the FTM remembers by, for ARMORs that attach.
    ftm_memory: Option<u64>,
    /// This node's lease, for them too.
    lease: Option<LeaseTold>,
}

/// No keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

struct Attached {
    id: LinkId,
    link: Link,
    name: String,
    pid: u32,
}

struct Held {
    link: Link,
    armor: Option<ArmorId>,
    pid: u32,
    opened: Instant,
}

impl Element for DaemonGateway {
    const NAME: &'static str = "daemon_gateway";
    const PURPOSE: &'static str = "where the ARMORs of this node and the armor program attach to their daemon";
    const EXAMPLE: &'static str = "";
    type Config = Config;

    fn new(_: Config, _: &Setup) -> Result<Self, String> {
        Ok(DaemonGateway {
            attached: HashMap::new(),
            links: HashMap::new(),
            next_link: 0,
            away: HashMap::new(),
            waiting: Waiting::new(AWAY),
            scratch: BytesMut::with_capacity(64 << 10),
            ticking: false,
            dropped: 0,
            ftm_memory: None,
            lease: None,
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::route)
            .on(Self::attach)
            .on(Self::registered)
            .on(Self::memory)
            .on(Self::link_changed)
            .on(Self::lease)
            .emits::<ArmorAttach>()
            .emits::<ArmorInstalled>()
            .emits::<StateMemory>()
            .emits::<LinkChanged>()
            .emits::<LeaseTold>()
            .emits::<SendReliable>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        let listener = listen(&context.setup().run_dir)?;
        let handle = context.handle::<Self>();
        context.spawn(async move {
            loop {
                let called = match listener.accept().await {
                    Ok((stream, _)) => handle.call(|element, context| element.hold(stream, context)),
                    Err(error) => {
                        let called = handle.call(|_, context| context.event(Event::new("attach-refused").with("reason", &error)));
                        // Out of file descriptors, most likely: not again at once.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        called
                    }
                };
                if called.is_none() {
                    return;
                }
            }
        });
        Ok(())
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.ticking = false;
        self.tick(Instant::now(), context);
    }

    fn status(&self) -> serde_json::Value {
        let attached: Vec<serde_json::Value> = self
            .attached
            .iter()
            .map(|(armor, attached)| {
                serde_json::json!({
                    "armor": armor.to_string(), "name": attached.name, "pid": attached.pid,
                    "queued_bytes": attached.link.queued_bytes(), "dropped": attached.link.dropped(),
                })
            })
            .collect();
        serde_json::json!({ "attached": attached, "away": self.away.len(), "waiting": self.waiting.len(), "dropped": self.dropped })
    }

    fn stop(&mut self, context: &mut Context<'_>) {
        // Nobody can attach to what is ending.
        let _ = std::fs::remove_file(context.setup().run_dir.join("armor.sock"));
    }
}

impl DaemonGateway {
    fn route(&mut self, _: &Route, context: &mut Context<'_>) {
        let Some(destination) = context.routed_to() else { return };
        let attached = self.attached.contains_key(&destination);
        if !attached && !self.away.contains_key(&destination) {
            return;
        }
        let Some(routed) = context.take_routed() else { return };
        match routed.encode(&mut self.scratch) {
            Ok(encoded) if attached => self.send(destination, encoded, context),
            Ok(encoded) => {
                if !self.waiting.push(destination, encoded, Instant::now()) {
                    self.dropped += 1;
                }
            }
            Err(error) => context.event(Event::new("message-refused").with("destination", destination).with("reason", error)),
        }
    }

    fn send(&mut self, destination: ArmorId, encoded: Encoded, context: &mut Context<'_>) {
        let Some(Attached { link, name, .. }) = self.attached.get(&destination) else { return };
        match link.send(encoded) {
            Sent::Written | Sent::Queued => {}
            Sent::FirstDropped => {
                self.dropped += 1;
                context.event(Event::new("link-congested").with("peer", name).with("queued_bytes", link.queued_bytes()));
            }
            Sent::Dropped | Sent::Closed => self.dropped += 1,
        }
    }

    fn hold(&mut self, stream: UnixStream, context: &mut Context<'_>) {
        let Ok(peer) = stream.peer_cred() else { return };
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        let refused = if peer.uid() != 0 && peer.uid() != rustix::process::geteuid().as_raw() {
            Some(format!("user {} may not attach here", peer.uid()))
        } else if self.links.len() >= MAX_LINKS {
            Some(format!("{MAX_LINKS} processes are attached"))
        } else {
            None
        };
        if let Some(reason) = refused {
            context.event(Event::new("attach-refused").with("pid", pid).with("reason", reason));
            return;
        }
        self.next_link += 1;
        let link = Link::open::<Self>(self.next_link, Stream::Unix(stream), context);
        self.links.insert(self.next_link, Held { link, armor: None, pid, opened: Instant::now() });
        self.tick_later(context);
    }

    /// The first frame of a link.
    fn introduced(&mut self, id: LinkId, frame: &Frame, context: &mut Context<'_>) {
        let Some(held) = self.links.get_mut(&id) else { return };
        let refused = |reason: &str, context: &mut Context<'_>| {
            context.event(Event::new("attach-refused").with("pid", held.pid).with("reason", reason));
            held.link.close();
        };
        let Some(attach) = introduction::<ArmorAttach>(frame) else {
            return refused("its first frame is no MSG_ARMOR_ATTACH", context);
        };
        if attach.armor == context.armor() || attach.armor == ArmorId::NONE {
            return refused("its identity is this daemon's, or none", context);
        }
        held.armor = Some(attach.armor);
        let (link, pid) = (held.link.clone(), held.pid);
        if frame.destination == ArmorId::NONE {
            let hello =
                DaemonHello { armor: context.armor(), name: context.setup().name.clone(), address: String::new(), life: 0, only: true };
            let mut message = Message::to(attach.armor, hello);
            message.source = context.armor();
            if let Ok(encoded) = encode(&message) {
                link.send(encoded);
            }
        }
        let attached = Attached { id, link, name: attach.name.clone(), pid };
        if let Some(before) = self.attached.insert(attach.armor, attached) {
            // The same ARMOR has attached again before its old link was seen to end.
            before.link.close();
        }
        self.away.remove(&attach.armor);
        for encoded in self.waiting.take(attach.armor) {
            self.send(attach.armor, encoded, context);
        }
        if !attach.armor.is_ephemeral() {
            self.announce(attach.armor, &attach.name, Presence::Here, context);
            if let Some(memory) = self.ftm_memory {
                context.send_reliable(Message::to(attach.armor, StateMemory { memory }));
            }
            // It may have been attached to an earlier life of this daemon, which has taken messages along.
            context.send_to(attach.armor, LinkChanged { peer: context.armor() });
            if let Some(lease) = &self.lease {
                context.send_to(attach.armor, lease.clone());
            }
        }
        // The pid of the socket is the kernel's word.
        context.send_to(context.armor(), ArmorAttach { pid, ..attach });
    }

    fn announce(&self, armor: ArmorId, name: &str, presence: Presence, context: &mut Context<'_>) {
        let present = presence == Presence::Here;
        let installed = ArmorInstalled { armor, name: name.to_owned(), daemon: context.armor(), present };
        context.send_reliable(Message::to(ArmorId::FTM, installed));
    }

    /// Meant for the other elements; a link was tied to its ARMOR when its first frame came.
    fn attach(&mut self, _: &ArmorAttach, _: &mut Context<'_>) {}

    /// The FTM may be a new one, or may have missed something while the link was down.
    fn registered(&mut self, registered: &DaemonRegistered, context: &mut Context<'_>) {
        if registered.accepted {
            for (armor, attached) in self.attached.iter().filter(|(armor, _)| !armor.is_ephemeral()) {
                self.announce(*armor, &attached.name, Presence::Here, context);
            }
        }
    }

    /// The ARMORs of this node have told the FTM things too.
    fn memory(&mut self, memory: &StateMemory, context: &mut Context<'_>) {
        self.ftm_memory = Some(memory.memory);
        // Acknowledged: a link that is full of applications' bytes drops what comes then.
        for armor in self.attached.keys().filter(|armor| !armor.is_ephemeral()) {
            context.send_reliable(Message::to(*armor, memory.clone()));
        }
    }

    /// The ways of this node's ARMORs lead over the links of their daemon.
    fn link_changed(&mut self, up: &LinkChanged, context: &mut Context<'_>) {
        for armor in self.attached.keys().filter(|armor| !armor.is_ephemeral()) {
            context.send_to(*armor, up.clone());
        }
    }

    /// The ARMORs of this node keep to its lease by themselves, also when this daemon cannot tell them any more that it has run out.
    fn lease(&mut self, lease: &LeaseTold, context: &mut Context<'_>) {
        self.lease = Some(lease.clone());
        for armor in self.attached.keys().filter(|armor| !armor.is_ephemeral()) {
            context.send_to(*armor, lease.clone());
        }
    }

    fn tick_later(&mut self, context: &mut Context<'_>) {
        if !std::mem::replace(&mut self.ticking, true) {
            context.timer(TICK, 0);
        }
    }

    fn tick(&mut self, now: Instant, context: &mut Context<'_>) {
        self.away.retain(|_, since| now.saturating_duration_since(*since) < AWAY);
        for (destination, messages) in self.waiting.expire(now) {
            self.dropped += messages as u64;
            context.event(Event::new("messages-dropped").with("destination", destination).with("messages", messages));
        }
        for held in self.links.values() {
            if held.armor.is_none() && now.saturating_duration_since(held.opened) >= ATTACH_WITHIN {
                held.link.close();
            }
        }
        if !self.away.is_empty() || !self.waiting.is_empty() || self.links.values().any(|held| held.armor.is_none()) {
            self.tick_later(context);
        }
    }
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Presence {
    Here,
    Gone,
}

impl LinkOwner for DaemonGateway {
    fn link_frame(&mut self, id: LinkId, frame: Frame, context: &mut Context<'_>) {
        match self.links.get(&id) {
            Some(Held { armor: Some(_), .. }) => context.received(frame),
            Some(_) => self.introduced(id, &frame, context),
            None => {}
        }
    }

    fn link_closed(&mut self, id: LinkId, why: &Closed, context: &mut Context<'_>) {
        let Some(held) = self.links.remove(&id) else { return };
        if let Closed::Frame(error) = why {
            context.event(Event::new("attach-refused").with("pid", held.pid).with("reason", error));
        }
        let Some(armor) = held.armor else { return };
        // The same ARMOR may have attached by another link since.
        if self.attached.get(&armor).is_none_or(|attached| attached.id != id) {
            return;
        }
        if let Some(attached) = self.attached.remove(&armor)
            && !armor.is_ephemeral()
        {
            self.away.insert(armor, Instant::now());
            self.tick_later(context);
            self.announce(armor, &attached.name, Presence::Gone, context);
        }
    }
}

fn listen(run_dir: &Path) -> Result<UnixListener, String> {
    let path = run_dir.join("armor.sock");
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::InvalidInput => {
            format!("{} is too long for a socket's path (107 bytes): choose a shorter --run-dir", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    };
    match std::os::unix::net::UnixStream::connect(&path) {
        Ok(_) => {
            return Err(format!("another ARMOR runs in this directory ({} answers): stop it, or choose another --run-dir", path.display()));
        }
        // Left behind by an ARMOR that died.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(&path).map_err(failed)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("works");
        let _inside = runtime.enter();
        let directory = std::env::temp_dir().join(format!("armor-gateway-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("works");
        let socket = directory.join("armor.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket));
        // A program that another test is just starting holds a copy of it until it runs.
        while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            std::thread::yield_now();
        }
        let first = listen(&directory);
        assert!(first.is_ok(), "{first:?}");
        let mode = std::fs::metadata(&socket).map(|data| data.permissions().mode() & 0o777);
        assert_eq!(mode.ok(), Some(0o600));
        let second = listen(&directory);
        assert!(second.is_err_and(|reason| reason.contains("another ARMOR runs in this directory")));
        let _ = std::fs::remove_dir_all(&directory);
    }
}
