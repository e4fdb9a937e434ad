//! `daemon_tcp_mgmt`: TCP links to other daemons (thesis §5.4, `daemon_tcp_mgmt_t`).
//!
//! Purpose: keeps the table daemon-id → address, filled on demand from the FTM; keeps links open once they are established;
//! routes messages to remote daemons; accepts links. The first frame of a link, both ways, is `MSG_DAEMON_HELLO`.
//! Subscribes: `MSG_ROUTE`, `MSG_ARMOR_LOCATION`, `MSG_DAEMON_REGISTERED`, `MSG_ARMOR_ATTACH`, `MSG_NODE_FAILED`, `MSG_LINK_QUERY`, `MSG_CARRIER_TOLD`.
//! Emits: `MSG_DAEMON_REGISTER` (acknowledged), `MSG_LOCATE_ARMOR`, `MSG_LINK_LOST` (to the FTM), `MSG_LINK_STATE`, `MSG_LINK_CHANGED`, `MSG_CARRIER_TOLD` (to this ARMOR).
//! Configuration: `listen`, `ftm` (absent in the FTM's own composition), `advertise`, `keys` or `insecure`; see [`Config`].
//!
//! With `keys` each link begins with a handshake, and everything on it is encrypted and authenticated; whom a key does not belong to is not heard.
//!
//! The listener outlives the process in the vault: links to a daemon that is being started again wait there, and one that is dialled is refused only when
//! its vault is dead too.
//!
//! The other daemons and the ways of messages are `links::daemons`; here are the listener (`listening`), dialling and the handshake (`protection`).

#[path = "daemon_tcp_mgmt/listening.rs"]
mod listening;
#[path = "daemon_tcp_mgmt/protection.rs"]
mod protection;
#[cfg(test)]
#[path = "daemon_tcp_mgmt/tests.rs"]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_core::operations::{Route, SendReliable};
use armor_proto::frame::Frame;
use armor_proto::ids::ArmorId;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};

use crate::endpoints::Keeping;
use crate::links::daemons::{Daemons, Opening};
use crate::links::security::{Security, check_protected};
use crate::links::{Channel, Closed, Greetings, Link, LinkId, LinkOwner, Stream, acknowledged, write_address};
use crate::operations::{
    ArmorAttach, ArmorLocation, Carrier, CarrierTold, DaemonRegister, DaemonRegistered, LinkChanged, LinkLost, LinkQuery, LinkState,
    LocateArmor, NodeFailed,
};

use listening::{listen, still_listens};

/// Key of the listener in the vault.
const LISTENER: &str = "listener";
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The element.
pub struct DaemonTcpMgmt {
    config: Config,
    keeping: Keeping,
    /// The listener of an earlier life, until this one starts; then the present one. The vault has it too, so that whoever dials a daemon that is
    /// just being started again is connected at once, and sees that its node is alive.
    listener: Option<OwnedFd>,
    daemons: Daemons<Link>,
    next_link: LinkId,
    /// Accepted, and the handshake is not done.
    greetings: Greetings,
    /// Connected to daemons that have been dialled, which have not answered the handshake yet: how their kernels do is known all the same.
    introducing: HashMap<ArmorId, OwnedFd>,
}

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Address to accept links on; port 0 lets the kernel choose, `<run_dir>/tcp.addr` tells it.
    listen: SocketAddr,
    /// Address of the FTM, `host:port`; absent in the FTM's own composition.
    ftm: Option<String>,
    /// Address told to other daemons when it is not the one listened on (port forwarding).
    advertise: Option<String>,
    /// Directory with this ARMOR's private key and the list of trusted nodes (`armor keygen`, `armor trust`): links are protected with it.
    keys: Option<PathBuf>,
    /// Links beyond this machine without protection: whoever is on the network may do everything.
    #[serde(default)]
    insecure: bool,
}

/// What is written, when it is allowed.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub struct Config {
    listen: SocketAddr,
    ftm: Option<String>,
    advertise: Option<String>,
    keys: Option<PathBuf>,
}

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Config, String> {
        let Written { listen, ftm, advertise, keys, insecure } = written;
        let addresses = [("listen", Some(listen.to_string())), ("ftm", ftm.clone()), ("advertise", advertise.clone())];
        let addresses = addresses.each_ref().map(|(key, address)| (*key, address.as_deref()));
        check_protected(DaemonTcpMgmt::NAME, &addresses, keys.as_deref(), insecure)?;
        Ok(Config { listen, ftm, advertise, keys })
    }
}

impl Element for DaemonTcpMgmt {
    const NAME: &'static str = "daemon_tcp_mgmt";
    const PURPOSE: &'static str = "TCP links to other daemons: accepts, connects on demand, routes";
    const EXAMPLE: &'static str = "listen = \"127.0.0.1:0\"\nftm = \"127.0.0.1:7000\"\n# advertise = \"192.0.2.1:7001\"\n# keys = \"/etc/armor/keys\"\n# insecure = true\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        if config.ftm.is_some() && setup.armor == ArmorId::FTM {
            return Err("this ARMOR is the FTM itself: remove the key ftm".to_owned());
        }
        let security = config.keys.as_ref().map(|directory| Security::read(directory, &setup.name)).transpose()?;
        let (keeping, mut handed) = Keeping::open(setup, Self::NAME)?;
        let daemons = Daemons::new(Carrier::Tcp, &setup.name, config.ftm.as_deref(), config.advertise.clone(), security, dial);
        Ok(DaemonTcpMgmt {
            config,
            listener: handed.take(LISTENER),
            keeping,
            daemons,
            next_link: 0,
            greetings: Greetings::default(),
            introducing: HashMap::new(),
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations
            .on(Self::route)
            .on(Self::location)
            .on(Self::registered)
            .on(Self::attached)
            .on(Self::node_failed)
            .on(Self::link_query)
            .on(Self::told_by_other)
            .emits::<DaemonRegister>()
            .emits::<LocateArmor>()
            .emits::<LinkLost>()
            .emits::<LinkState>()
            .emits::<LinkChanged>()
            .emits::<CarrierTold>()
            .emits::<SendReliable>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        // Peers know the address of the earlier life.
        let wanted = self.daemons.listening.unwrap_or(self.config.listen);
        let listener = match self.listener.take().and_then(|kept| still_listens(kept, wanted)) {
            Some(listener) => listener,
            None => listen(wanted)?,
        };
        let kept = listener.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        self.keeping.keep(LISTENER, kept.as_fd());
        self.keeping.watch(context, |_, _, _| {}, Self::keep_again);
        self.listener = Some(kept);
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        write_address(&context.setup().run_dir, "tcp.addr", address)?;
        self.accept_links(listener, context);
        self.daemons.started(address, context);
        Ok(())
    }

    fn timer(&mut self, token: u64, context: &mut Context<'_>) {
        self.daemons.timer(token, context);
    }

    fn capture(&self) -> Option<Vec<u8>> {
        self.daemons.capture()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.daemons.restore(state, self.config.listen)
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.keeping.ended();
    }

    fn status(&self) -> serde_json::Value {
        let mut status = self.daemons.status(self.config.ftm.as_deref());
        status["greetings"] = self.greetings.len().into();
        status
    }
}

/// Dials a daemon.
fn dial(armor: ArmorId, address: String, pause: Duration, context: &mut Context<'_>) {
    let handle = context.handle::<DaemonTcpMgmt>();
    context.spawn(async move {
        // Even a sleep of no time waits for the next whole millisecond.
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let connected = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(&address)).await;
        let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        handle.call(|element, context| match connected {
            Ok(stream) => element.connected(stream, armor, address, context),
            Err(error) => element.daemons.not_connected(armor, &address, &error.to_string(), context),
        });
    });
}

impl DaemonTcpMgmt {
    fn accept_links(&self, listener: TcpListener, context: &mut Context<'_>) {
        let handle = context.handle::<Self>();
        context.spawn(async move {
            loop {
                let called = match listener.accept().await {
                    Ok((stream, remote)) => handle.call(|element, context| element.accepted(stream, remote, context)),
                    Err(error) => {
                        let called = handle.call(|_, context| context.event(Event::new("link-refused").with("reason", &error)));
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
    }

    /// Takes in a connection on which frames can be sent now.
    fn hold(&mut self, stream: TcpStream, channel: Option<Channel>, dialled: Option<ArmorId>, remote: String, context: &mut Context<'_>) {
        if !self.daemons.has_room(dialled, &remote, context) {
            return;
        }
        self.next_link += 1;
        let id = self.next_link;
        let local = stream.local_addr().ok();
        let shown = channel.as_ref().map(|channel| (channel.peer.clone(), channel.key));
        let link = match channel {
            Some(channel) => Link::open_protected::<Self>(id, Stream::Tcp(stream), channel, context),
            None => Link::open::<Self>(id, Stream::Tcp(stream), context),
        };
        self.daemons.hold(id, link, Opening { dialled, remote, return_address: None, local, shown }, context);
    }

    fn route(&mut self, _: &Route, context: &mut Context<'_>) {
        self.daemons.route(context);
    }

    fn location(&mut self, location: &ArmorLocation, context: &mut Context<'_>) {
        self.daemons.location(location, context);
    }

    fn registered(&mut self, registered: &DaemonRegistered, context: &mut Context<'_>) {
        self.daemons.registered(registered, context);
    }

    fn attached(&mut self, attach: &ArmorAttach, context: &mut Context<'_>) {
        self.daemons.attached(attach, context);
    }

    fn node_failed(&mut self, failed: &NodeFailed, context: &mut Context<'_>) {
        self.daemons.node_failed(failed, context);
    }

    fn told_by_other(&mut self, told: &CarrierTold, context: &mut Context<'_>) {
        self.daemons.told_by_other(told, context);
    }

    fn link_query(&mut self, query: &LinkQuery, context: &mut Context<'_>) {
        let introducing = self.introducing.get(&query.peer).map(|socket| acknowledged(socket.as_fd()));
        self.daemons.link_query(query, introducing, context);
    }

    /// Another vault keeps nothing yet.
    fn keep_again(&mut self) {
        self.keeping.keep_some(LISTENER, self.listener.as_ref());
    }
}

impl LinkOwner for DaemonTcpMgmt {
    fn link_frame(&mut self, id: LinkId, frame: Frame, context: &mut Context<'_>) {
        self.daemons.link_frame(id, frame, context);
    }

    fn link_closed(&mut self, id: LinkId, why: &Closed, context: &mut Context<'_>) {
        self.daemons.link_closed(id, why, context);
    }
}
