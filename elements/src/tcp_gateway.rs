//! `tcp_gateway`: where clients connect that cannot load the shim: another operating system, a browser, a static program (thesis §5.3).
//!
//! Purpose: listens on plain TCP addresses, each for one protected service, and hands the connections that it accepts to `APP_COMM_CLIENT`, to which it is
//! what the shim is of other clients. Their bytes do not pass through here.
//! Subscribes: `MSG_APP_SERVER_TABLE`.
//! Emits: nothing; it asks at the hook-up socket of `APP_COMM_CLIENT`, which has to be in the same ARMOR.
//! Configuration: `listeners` (`listen`, `service`, `port`), `wait_ms`, `waiting`, `keepalive_s`; see [`Config`].
//!
//! Invariant: an accepted connection is in the vault until `APP_COMM_CLIENT` has it, and it is handed over once.
//! Invariant: who waits for a service longer than `wait_ms` is reset; nobody waits for ever.

#[path = "tcp_gateway/offer.rs"]
mod offer;
#[path = "tcp_gateway/target.rs"]
mod target;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_core::events::Event;
use armor_proto::hookup::{CLIENT_SOCKET, Endpoint, Request};
use rustix::io::Errno;
use serde::Deserialize;
use target::Target;

use crate::endpoints::{Handed, Keeping, ServerTable, descriptors, tcp, watched_descriptor};
use crate::operations::AppServerTable;

/// Most addresses of one gateway.
const MAX_LISTENERS: usize = 64;
/// Connections that the kernel holds for each until they are accepted; its own bound is net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// How often those that wait are tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// Pause before the next accept when there is no room, or no descriptor.
const PAUSE: Duration = Duration::from_millis(20);
/// At most one event about clients that were turned away is told of each address in this time.
const TOLD_AGAIN: Duration = Duration::from_secs(1);

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it listens, and for which services.
    listeners: Vec<ListenerConfig>,
    /// How long a client waits for a service that is not there, in milliseconds. Then its connection is reset.
    #[serde(default = "default_wait_ms")]
    wait_ms: u64,
    /// Accepted connections that may wait for a service or for room; at this bound no more are accepted, and the others wait in the kernel.
    #[serde(default = "default_waiting")]
    waiting: usize,
    /// Seconds of silence after which a client is asked by TCP whether it is there.
    #[serde(default = "default_keepalive_s")]
    keepalive_s: u32,
}

fn default_wait_ms() -> u64 {
    10_000
}
fn default_waiting() -> usize {
    1024
}
fn default_keepalive_s() -> u32 {
    60
}

/// One address.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerConfig {
    /// Where clients connect: address and port, or a port alone, which is one of loopback.
    listen: Address,
    /// Name of the service, or the address that it serves.
    service: String,
    /// Which of its ports, when it has several; otherwise the lowest.
    port: Option<u16>,
}

/// `10.0.0.1:80`, or `80` for `127.0.0.1:80`.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(try_from = "AddressText")]
struct Address(SocketAddr);

#[derive(Deserialize)]
#[serde(untagged)]
enum AddressText {
    Port(u16),
    Text(String),
}

impl TryFrom<AddressText> for Address {
    type Error = String;

    fn try_from(text: AddressText) -> Result<Address, String> {
        match text {
            AddressText::Port(port) => Ok(Address(([127, 0, 0, 1], port).into())),
            AddressText::Text(text) => {
                text.parse().map(Address).map_err(|_| format!("{text:?} is no address; write it as \"0.0.0.0:8080\""))
            }
        }
    }
}

struct Listener {
    address: SocketAddr,
    target: Target,
    socket: Rc<OwnedFd>,
    /// Handed over so far, and turned away.
    accepted: u64,
    refused: u64,
    /// When clients were last told of that were turned away, and how many since.
    told: Option<Instant>,
    untold: u64,
}

/// A client that `APP_COMM_CLIENT` does not have yet.
struct Waiting {
    socket: Rc<OwnedFd>,
    client: Endpoint,
    listener: usize,
    since: Instant,
    /// An offer is under way.
    offered: bool,
    /// Of an earlier life, which may have handed it over.
    again: bool,
}

/// The element.
pub struct TcpGateway {
    config: Config,
    hook_up: PathBuf,
    keeping: Keeping,
    /// What an earlier life has left, until this one starts.
    left: Handed,
    listeners: Vec<Listener>,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    table: Option<ServerTable>,
    timing: bool,
}

impl Element for TcpGateway {
    const NAME: &'static str = "tcp_gateway";
    const PURPOSE: &'static str = "listens on plain TCP for clients without the preload library (thesis §5.3)";
    const EXAMPLE: &'static str = "listeners = [{ listen = \"0.0.0.0:8080\", service = \"web\" }, { listen = 6380, service = \"10.0.0.2:6379\" }]\nwait_ms = 10000\nwaiting = 1024\nkeepalive_s = 60\n";
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        check(&config)?;
        descriptors::take_all();
        let (keeping, left) = Keeping::open(setup, Self::NAME)?;
        Ok(TcpGateway {
            config,
            hook_up: setup.run_dir.join(CLIENT_SOCKET),
            keeping,
            left,
            listeners: Vec::new(),
            waiting: BTreeMap::new(),
            // Keys of an earlier life do not come again.
            next: armor_core::events::now_ms() << 20,
            table: None,
            timing: false,
        })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::table);
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        let mut left = std::mem::take(&mut self.left);
        for config in &self.config.listeners {
            let address = config.listen.0;
            let socket = match left.take(&listener_key(address)) {
                Some(socket) => socket,
                None => self.bind(address)?,
            };
            let target = Target::new(&config.service, config.port);
            let socket = Rc::new(socket);
            self.listeners.push(Listener { address, target, socket, accepted: 0, refused: 0, told: None, untold: 0 });
        }
        self.take_up(&mut left, context);
        self.keeping.forget_rest(&mut left);
        self.keeping.watch(context, |_, _, _| {}, Self::keep_again);
        (0..self.listeners.len()).for_each(|listener| self.serve(listener, context));
        Ok(())
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.timing = false;
        self.try_again(Instant::now(), context);
    }

    fn stop(&mut self, _: &mut Context<'_>) {
        self.keeping.ended();
    }

    fn status(&self) -> serde_json::Value {
        let listeners = self.listeners.iter().enumerate().map(|(at, listener)| {
            let dialled = self.table.as_ref().and_then(|table| listener.target.find(table));
            serde_json::json!({
                "listen": listener.address.to_string(), "service": listener.target.to_string(),
                "address": dialled.map(|dialled| SocketAddr::from(dialled).to_string()), "accepted": listener.accepted, "refused": listener.refused,
                "waiting": self.waiting.values().filter(|waiting| waiting.listener == at).count(),
            })
        });
        serde_json::json!({ "listeners": listeners.collect::<Vec<_>>() })
    }
}

fn check(config: &Config) -> Result<(), String> {
    if config.listeners.is_empty() || config.listeners.len() > MAX_LISTENERS {
        return Err(format!("listeners has {} entries, a gateway has 1 to {MAX_LISTENERS}", config.listeners.len()));
    }
    if config.waiting == 0 || config.wait_ms == 0 || config.keepalive_s == 0 || config.keepalive_s > 32_767 {
        return Err("waiting and wait_ms are at least 1, keepalive_s is 1 to 32767".to_owned());
    }
    for (at, listener) in config.listeners.iter().enumerate() {
        if listener.listen.0.port() == 0 {
            return Err(format!("listeners: {} has no port; name the one that clients connect to", listener.listen.0));
        }
        if config.listeners[..at].iter().any(|other| other.listen == listener.listen) {
            return Err(format!("listeners: {} is there twice; an address leads to one service", listener.listen.0));
        }
        Target::check(&listener.service, listener.port)?;
    }
    Ok(())
}

fn listener_key(address: SocketAddr) -> String {
    format!("listener {address}")
}

/// The address that it came in by is part of it, so that it finds its service again.
fn waiting_key(number: u64, address: SocketAddr) -> String {
    format!("client {number:x} {address}")
}

// Accepting.
impl TcpGateway {
    fn bind(&self, address: SocketAddr) -> Result<OwnedFd, String> {
        let keepalive = Duration::from_secs(self.config.keepalive_s.into());
        let socket = tcp::listen(address, BACKLOG, keepalive).map_err(|error| {
            let advice = match error.raw_os_error() {
                Some(libc::EADDRINUSE) => "another program has it (a protected service too reserves its own address); choose another port",
                Some(libc::EADDRNOTAVAIL) => "this machine does not have that address; choose one of its own, or 0.0.0.0",
                Some(libc::EACCES) => "ports below 1024 are root's; choose another one",
                _ => "choose another address",
            };
            format!("cannot listen at {address}: {error}: {advice}")
        })?;
        self.keeping.keep(&listener_key(address), socket.as_fd());
        Ok(socket)
    }

    fn serve(&self, listener: usize, context: &mut Context<'_>) {
        let (socket, handle) = (Rc::clone(&self.listeners[listener].socket), context.handle::<Self>());
        context.spawn(async move {
            let Ok(watched) = socket.try_clone().and_then(watched_descriptor) else { return };
            while let Ok(mut ready) = watched.readable().await {
                loop {
                    match handle.call(|element, _| element.has_room()) {
                        Some(true) => {}
                        Some(false) => {
                            tokio::time::sleep(PAUSE).await;
                            continue;
                        }
                        None => return,
                    }
                    match tcp::accept(watched.get_ref()) {
                        Ok(client) => {
                            handle.call(|element, context| element.accepted(listener, client, context));
                        }
                        Err(Errno::AGAIN) => break,
                        Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                            handle.call(|element, context| {
                                element.turned_away(listener, 0, "out of file descriptors; raise ulimit -n", context);
                            });
                            tokio::time::sleep(PAUSE).await;
                        }
                        // It has gone again.
                        Err(Errno::CONNABORTED | Errno::INTR) => {}
                        Err(_) => tokio::time::sleep(PAUSE).await,
                    }
                }
                ready.clear_ready();
            }
        });
    }

    fn has_room(&self) -> bool {
        self.waiting.len() < self.config.waiting
    }

    fn accepted(&mut self, listener: usize, socket: OwnedFd, context: &mut Context<'_>) {
        let Ok(client) = tcp::client_of(&socket) else { return };
        self.next += 1;
        self.keeping.keep(&waiting_key(self.next, self.listeners[listener].address), socket.as_fd());
        self.wait(
            self.next,
            Waiting { socket: Rc::new(socket), client, listener, since: Instant::now(), offered: false, again: false },
            context,
        );
    }

    fn wait(&mut self, number: u64, waiting: Waiting, context: &mut Context<'_>) {
        self.waiting.insert(number, waiting);
        self.offer(number, context);
        if !std::mem::replace(&mut self.timing, true) {
            context.timer(AGAIN, 0);
        }
    }

    /// Clients that an earlier life had accepted, whether or not it had handed them over.
    fn take_up(&mut self, left: &mut Handed, context: &mut Context<'_>) {
        for key in left.keys() {
            let Some((number, address)) = key.strip_prefix("client ").and_then(|rest| rest.split_once(' ')) else { continue };
            let listener = self.listeners.iter().position(|listener| listener.address.to_string() == address);
            let (Ok(number), Some(listener)) = (u64::from_str_radix(number, 16), listener) else { continue };
            let Some(socket) = left.take(&key) else { continue };
            match tcp::client_of(&socket) {
                Ok(client) => {
                    let waiting = Waiting { socket: Rc::new(socket), client, listener, since: Instant::now(), offered: false, again: true };
                    self.wait(number, waiting, context);
                }
                Err(_) => self.keeping.forget(&key),
            }
        }
    }

    /// Another vault keeps nothing yet.
    fn keep_again(&mut self) {
        for listener in &self.listeners {
            self.keeping.keep(&listener_key(listener.address), listener.socket.as_fd());
        }
        for (&number, waiting) in &self.waiting {
            self.keeping.keep(&waiting_key(number, self.listeners[waiting.listener].address), waiting.socket.as_fd());
        }
    }
}

// Handing over.
impl TcpGateway {
    fn table(&mut self, table: &AppServerTable, context: &mut Context<'_>) {
        self.table = Some(ServerTable::new(table.rows.clone(), table.node_addresses.clone()));
        self.try_again(Instant::now(), context);
    }

    fn offer(&mut self, number: u64, context: &mut Context<'_>) {
        let Some(table) = &self.table else { return };
        let Some(waiting) = self.waiting.get_mut(&number).filter(|waiting| !waiting.offered) else { return };
        let Some(addr) = self.listeners[waiting.listener].target.find(table) else { return };
        waiting.offered = true;
        let request = Request::Accepted { addr, client: waiting.client, again: waiting.again };
        let (hook_up, socket, handle) = (self.hook_up.clone(), Rc::clone(&waiting.socket), context.handle::<Self>());
        context.spawn(async move {
            let answer = offer::offer(&hook_up, &request, &socket).await;
            handle.call(|element, context| element.answered(number, answer, context));
        });
    }

    fn answered(&mut self, number: u64, answer: Result<(), Errno>, context: &mut Context<'_>) {
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        // An answer that was lost may have been a yes.
        (waiting.offered, waiting.again) = (false, true);
        if answer.is_ok() {
            self.listeners[waiting.listener].accepted += 1;
            self.forget(number);
        } else {
            // It is tried again until its time is over: the service may be about to come, or there may be room then.
            self.expire(number, Instant::now(), context);
        }
    }

    fn try_again(&mut self, now: Instant, context: &mut Context<'_>) {
        let numbers: Vec<u64> = self.waiting.keys().copied().collect();
        for number in numbers {
            self.expire(number, now, context);
            self.offer(number, context);
        }
        if !self.waiting.is_empty() && !std::mem::replace(&mut self.timing, true) {
            context.timer(AGAIN, 0);
        }
    }

    /// Turns a client away whose time is over, and forgets one that has gone.
    fn expire(&mut self, number: u64, now: Instant, context: &mut Context<'_>) {
        let Some(waiting) = self.waiting.get(&number).filter(|waiting| !waiting.offered) else { return };
        let listener = waiting.listener;
        if tcp::has_failed(&waiting.socket) {
            self.forget(number);
        } else if now.saturating_duration_since(waiting.since) >= Duration::from_millis(self.config.wait_ms) {
            tcp::abort(&waiting.socket);
            self.forget(number);
            let reason = match self.table.as_ref().map(|table| self.listeners[listener].target.find(table)) {
                Some(Some(_)) => "it was not taken in time: max_connections of APP_COMM_CLIENT, its journal or its descriptors are used up",
                Some(None) => "the service is not there; look for it in armor status",
                None => "nothing is known of services: the FTM has not answered, or this composition has no APP_COMM_CLIENT",
            };
            self.turned_away(listener, 1, reason, context);
        }
    }

    fn forget(&mut self, number: u64) {
        if let Some(waiting) = self.waiting.remove(&number) {
            self.keeping.forget(&waiting_key(number, self.listeners[waiting.listener].address));
        }
    }

    fn turned_away(&mut self, listener: usize, clients: u64, reason: &str, context: &mut Context<'_>) {
        let Some(listener) = self.listeners.get_mut(listener) else { return };
        listener.refused += clients;
        listener.untold += clients;
        let now = Instant::now();
        if listener.told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_AGAIN) {
            listener.told = Some(now);
            let event = Event::new("gateway-refused").with("address", listener.address).with("service", &listener.target);
            context.event(event.with("clients", std::mem::take(&mut listener.untold)).with("reason", reason));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn checked(listeners: &str) -> Result<(), String> {
        check(&toml::from_str::<Config>(&format!("listeners = [{listeners}]")).map_err(|error| error.to_string())?)
    }

    #[tokio::test]
    async fn clients_that_wait_are_bounded_and_are_reset_when_their_time_is_over() {
        use std::io::Read as _;

        use armor_core::context::{Effect, Effects};

        let setup = Setup { armor: armor_proto::ids::ArmorId(7), name: "gateway".into(), kind: "gateway".into(), run_dir: "/".into() };
        let listening = tcp::listen(([127, 0, 0, 1], 0).into(), 16, Duration::from_secs(60)).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&listening).unwrap()).unwrap();
        let config = format!("listeners = [{{ listen = \"{address}\", service = \"web\" }}]\nwaiting = 2\nwait_ms = 1000");
        let mut gateway = TcpGateway::new(toml::from_str(&config).unwrap(), &setup).unwrap();
        let target = Target::new("web", None);
        gateway.listeners.push(Listener { address, target, socket: Rc::new(listening), accepted: 0, refused: 0, told: None, untold: 0 });
        let mut effects = Effects::new();
        let mut clients: Vec<_> = (0..2)
            .map(|_| {
                assert!(gateway.has_room());
                let client = std::net::TcpStream::connect(address).unwrap();
                let listener = Rc::clone(&gateway.listeners[0].socket);
                rustix::event::poll(&mut [rustix::event::PollFd::new(&*listener, rustix::event::PollFlags::IN)], None).unwrap();
                let accepted = tcp::accept(&listener).unwrap();
                gateway.accepted(0, accepted, &mut Context::detached(&setup, None, &mut effects));
                client
            })
            .collect();
        assert!(!gateway.has_room(), "the others wait in the kernel");
        let now = Instant::now();
        gateway.try_again(now, &mut Context::detached(&setup, None, &mut effects));
        assert_eq!(gateway.waiting.len(), 2);
        gateway.try_again(now + Duration::from_secs(2), &mut Context::detached(&setup, None, &mut effects));
        assert!(gateway.waiting.is_empty() && gateway.has_room());
        for client in &mut clients {
            assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
        let told: Vec<_> =
            effects.iter().filter_map(|effect| if let Effect::Event(event) = effect { Some(&*event.what) } else { None }).collect();
        assert_eq!((told, gateway.listeners[0].refused), (vec!["gateway-refused"], 2), "once a second");
    }

    #[test]
    fn a_port_alone_is_one_of_loopback() {
        let config: Config = toml::from_str("listeners = [{ listen = 8080, service = \"web\" }]").unwrap();
        assert_eq!(config.listeners[0].listen.0, ([127, 0, 0, 1], 8080).into());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_write_instead() {
        assert_eq!(checked("{ listen = \"0.0.0.0:80\", service = \"web\" }"), Ok(()));
        for (listeners, expected) in [
            ("", "1 to 64"),
            ("{ listen = \"0.0.0.0:0\", service = \"web\" }", "has no port"),
            ("{ listen = 80, service = \"web\" }, { listen = \"127.0.0.1:80\", service = \"shop\" }", "is there twice"),
            ("{ listen = \"web\", service = \"web\" }", "is no address"),
            ("{ listen = 80, service = \"\" }", "service"),
            ("{ listen = 80, service = \"10.0.0.1:80\", port = 81 }", "port"),
        ] {
            let error = checked(listeners).unwrap_err();
            assert!(error.contains(expected), "{listeners}: {error}");
        }
    }
}
