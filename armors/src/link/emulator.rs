//! A running network of emulated links: two namespaces, a TUN device per link and end, and one thread that carries the packets between them.
//!
//! Invariant: all that it makes belongs to this process, so nothing is left when that is killed.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::model::{Counts, Direction};
use super::namespace::Namespace;
use super::network::{Address, End, Network, Way, check_pair};
use super::settings::Settings;

/// Packets that are read from a device before what is due is sent.
const READ_AT_ONCE: usize = 64;
/// The largest IP packet.
const LARGEST_PACKET: usize = 65_535;
/// What the kernel keeps for the thread to read, per device; it drops what comes on top.
const DEVICE_QUEUE_PACKETS: u32 = 4_096;
/// Orders on their way to the thread.
const ORDERS: usize = 16;
/// How long the thread may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// How one way of a link has fared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WayReport {
    pub(crate) link: String,
    pub(crate) way: Way,
    /// Packets that were ready, but that the kernel did not take (a device that is down, a header damaged by corruption).
    pub(crate) refused_by_kernel: u64,
    #[serde(flatten)]
    pub(crate) counts: Counts,
}

/// For how long a link is to be dark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Dark {
    For(Duration),
    UntilChanged,
    NotAnyMore,
}

/// A change of what runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Change {
    /// All links without it.
    pub(crate) link: Option<String>,
    /// Both ways without it.
    pub(crate) way: Option<Way>,
    pub(crate) settings: Settings,
    pub(crate) dark: Option<Dark>,
    /// New addresses of the ends a and b.
    pub(crate) addresses: [Option<Address>; 2],
}

enum Order {
    Change(Vec<usize>, Box<Change>),
    Report(SyncSender<Vec<WayReport>>),
    End,
}

struct Ends {
    name: String,
    addresses: [Address; 2],
}

/// See the head of this file.
pub(crate) struct Emulator {
    seed: u64,
    namespaces: [Namespace; 2],
    links: Vec<Ends>,
    orders: SyncSender<Order>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    /// # Errors
    /// Without root, TUN or `ip`; says which, and what to do.
    pub(crate) fn start(network: Network) -> anyhow::Result<Emulator> {
        let seed = network.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
        let namespaces = [Namespace::make()?, Namespace::make()?];
        for namespace in &namespaces {
            // The kernel would ask for IPv6 routers over each device. Where this is not allowed, or there is no IPv6, that is a few packets more.
            namespace.inside(|| {
                let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/router_solicitations", "0");
                Ok(())
            })?;
        }
        let (mut wires, mut links) = (Vec::new(), Vec::new());
        for (index, link) in network.links.into_iter().enumerate() {
            let device = |end: usize| {
                let device = namespaces[end].inside(|| open_device(&link.name))?;
                let (own, peer) = (&link.addresses[end], &link.addresses[1 - end]);
                namespaces[end].ip(&bring_up(&link.name, link.device_mtu, own, peer))?;
                anyhow::Ok(device)
            };
            let devices = [device(0), device(1)];
            let [a, b] = devices;
            let about = || format!("link {}", link.name);
            let devices = [a.with_context(about)?, b.with_context(about)?];
            let own_seed = |way: u64| seed.wrapping_add(2 * index as u64 + way);
            let [there, back] = link.settings;
            let ways = [Direction::new(there, link.trace.clone(), own_seed(0)), Direction::new(back, link.trace, own_seed(1))];
            wires.push(Wire { name: link.name.clone(), devices, ways, refused: [0; 2], gone: [false; 2] });
            links.push(Ends { name: link.name, addresses: link.addresses });
        }
        let (orders, taken) = sync_channel(ORDERS);
        let (wake, woken) = UnixStream::pair().context("no pair of sockets")?;
        wake.set_nonblocking(true).and_then(|()| woken.set_nonblocking(true)).context("sockets")?;
        let carry = move || carry(wires, &taken, woken);
        let thread = std::thread::Builder::new().name("links".into()).spawn(carry).context("no thread for the links")?;
        Ok(Emulator { seed, namespaces, links, orders, wake, thread: Some(thread) })
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn namespace(&self, end: End) -> &Namespace {
        &self.namespaces[end as usize]
    }

    /// Name and addresses of each link, as they are now.
    pub(crate) fn links(&self) -> impl Iterator<Item = (&str, &[Address; 2])> {
        self.links.iter().map(|link| (&*link.name, &link.addresses))
    }

    /// Starts a program at one end.
    pub(crate) fn spawn(&self, end: End, command: &mut Command) -> anyhow::Result<Child> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.namespace(end).inside(|| command.spawn().with_context(|| format!("{name} cannot be started")))
    }

    /// # Errors
    /// When there is no such link, or addresses cannot be set. What was changed before stays changed.
    pub(crate) fn change(&mut self, change: Change) -> anyhow::Result<()> {
        let indices: Vec<usize> = match &change.link {
            None => (0..self.links.len()).collect(),
            Some(name) => self.links.iter().position(|link| link.name == *name).into_iter().collect(),
        };
        let names = || self.links.iter().map(|link| &*link.name).collect::<Vec<_>>().join(", ");
        if indices.is_empty() {
            bail!("there is no link {:?}; there are: {}", change.link.unwrap_or_default(), names());
        }
        if change.addresses.iter().any(Option::is_some) {
            let [index] = indices[..] else { bail!("say which link's addresses are to be changed: {}", names()) };
            self.change_addresses(index, &change.addresses)?;
        }
        self.order(Order::Change(indices, Box::new(change)))
    }

    /// The addresses of one end, or of both.
    fn change_addresses(&mut self, index: usize, wanted: &[Option<Address>; 2]) -> anyhow::Result<()> {
        let link = &mut self.links[index];
        let old = link.addresses;
        let new = [wanted[0].unwrap_or(old[0]), wanted[1].unwrap_or(old[1])];
        check_pair(&new)?;
        // What an address is taken from by hand beforehand is told as an error; the link goes on with what it had.
        for end in 0..2 {
            let device = &link.name;
            let (own, peer) = (new[end], new[1 - end]);
            let mut lines = String::new();
            if own != old[end] {
                lines += &format!("address del {} dev {device}\n{}", old[end], add_address(device, &own));
            } else if peer.ip != old[1 - end].ip {
                lines += &format!("route del {} dev {device}\n", old[1 - end].host());
            }
            lines += &route(device, &own, &peer);
            self.namespaces[end].ip(&lines)?;
            link.addresses[end] = own;
        }
        Ok(())
    }

    /// How every way has fared.
    pub(crate) fn report(&self) -> anyhow::Result<Vec<WayReport>> {
        let (answer, answered) = sync_channel(1);
        self.order(Order::Report(answer))?;
        answered.recv_timeout(ANSWERS_WITHIN).context("the thread of the links does not answer")
    }

    fn order(&self, order: Order) -> anyhow::Result<()> {
        self.orders.send(order).map_err(|_| anyhow!("the thread of the links has ended"))?;
        // A full socket wakes it as well.
        let _ = (&self.wake).write(&[0]);
        Ok(())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if self.order(Order::End).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn open_device(name: &str) -> anyhow::Result<SyncDevice> {
    let advice = || "no TUN device can be made; links need root and the kernel's TUN driver (`modprobe tun`; in a container `--device /dev/net/tun --cap-add NET_ADMIN`)";
    // No offloads: a packet is what one packet is on a real link, with its checksum.
    let device = DeviceBuilder::new().name(name).with(|device| {
        device.offload(false).packet_information(false);
    });
    let device = device.build_sync().with_context(advice)?;
    device.set_nonblocking(true).context("TUN device")?;
    Ok(device)
}

/// Lines for `ip`. The kernel is to send nothing by itself, so that what is counted is what programs say.
fn bring_up(device: &str, mtu: u32, own: &Address, peer: &Address) -> String {
    let set = format!("link set dev {device} addrgenmode none\nlink set dev {device} mtu {mtu} txqueuelen {DEVICE_QUEUE_PACKETS} up\n");
    set + &add_address(device, own) + &route(device, own, peer)
}

fn add_address(device: &str, address: &Address) -> String {
    let flag = if address.ip.is_ipv4() { "" } else { " nodad" };
    format!("address add {address} dev {device}{flag}\n")
}

fn route(device: &str, own: &Address, peer: &Address) -> String {
    format!("route replace {} dev {device} src {}\n", peer.host(), own.ip)
}

/// One link in the thread.
struct Wire {
    name: String,
    devices: [SyncDevice; 2],
    /// From each end to the other.
    ways: [Direction; 2],
    refused: [u64; 2],
    /// The device was deleted from inside.
    gone: [bool; 2],
}

impl Wire {
    /// Reads what has come to an end. False when there may be more.
    fn read(&mut self, end: usize, now: Duration, buffer: &mut [u8]) -> bool {
        for _ in 0..READ_AT_ONCE {
            match self.devices[end].recv(buffer) {
                Ok(0) => return true,
                Ok(length) => self.ways[end].enter(now, buffer[..length].to_vec()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
        false
    }

    /// Gives the other end what is due.
    fn write(&mut self, end: usize, now: Duration) {
        while let Some(packet) = self.ways[end].leave(now) {
            if self.devices[1 - end].send(&packet).is_err() {
                self.refused[end] += 1;
            }
        }
    }
}

/// The thread: until it is told to end.
fn carry(mut wires: Vec<Wire>, orders: &Receiver<Order>, mut woken: UnixStream) {
    // The kernel may otherwise sleep 50 µs longer than it is asked to.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
    let start = Instant::now();
    let mut buffer = vec![0; LARGEST_PACKET];
    loop {
        let now = start.elapsed();
        let mut next = None::<Duration>;
        for wire in &mut wires {
            for end in 0..2 {
                wire.write(end, now);
                next = [next, wire.ways[end].next(now)].into_iter().flatten().min();
            }
        }
        let sleep = next.map_or(LONGEST_SLEEP, |next| next.saturating_sub(start.elapsed()).min(LONGEST_SLEEP));
        let timeout = Timespec { tv_sec: sleep.as_secs() as i64, tv_nsec: i64::from(sleep.subsec_nanos()) };
        let ready: Vec<PollFlags> = {
            let mut polled = vec![PollFd::new(&woken, PollFlags::IN)];
            for wire in &wires {
                // What is gone reports nothing but errors, for ever.
                polled.extend((0..2).map(|end| PollFd::new(&wire.devices[end], PollFlags::IN)));
            }
            for (index, wire) in wires.iter().enumerate() {
                for end in 0..2 {
                    if wire.gone[end] {
                        polled[1 + 2 * index + end] = PollFd::new(&woken, PollFlags::IN);
                    }
                }
            }
            match rustix::event::poll(&mut polled, Some(&timeout)) {
                Ok(_) => polled.iter().map(PollFd::revents).collect(),
                Err(_) => continue,
            }
        };
        let now = start.elapsed();
        for (index, wire) in wires.iter_mut().enumerate() {
            for end in 0..2 {
                let flags = ready[1 + 2 * index + end];
                if wire.gone[end] {
                    continue;
                }
                let drained = !flags.contains(PollFlags::IN) || wire.read(end, now, &mut buffer);
                if drained && flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                    wire.gone[end] = true;
                    eprintln!("armor: link {}: its device at one end is gone; the link is dead", wire.name);
                }
            }
        }
        if ready[0].contains(PollFlags::IN) {
            let _ = woken.read(&mut [0; 64]);
            while let Ok(order) = orders.try_recv() {
                match order {
                    Order::Change(indices, change) => {
                        let now = start.elapsed();
                        for index in indices {
                            apply(&mut wires[index], now, &change);
                        }
                    }
                    // Who asks no longer waits when this fails.
                    Order::Report(answer) => drop(answer.try_send(report(&wires))),
                    Order::End => return,
                }
            }
        }
    }
}

fn apply(wire: &mut Wire, now: Duration, change: &Change) {
    for way in [Way::AToB, Way::BToA] {
        if change.way.is_some_and(|only| only != way) {
            continue;
        }
        let direction = &mut wire.ways[way as usize];
        direction.change(now, change.settings.clone());
        match change.dark {
            Some(Dark::For(length)) => direction.darken(now, length),
            Some(Dark::UntilChanged) => direction.darken(now, Duration::MAX),
            Some(Dark::NotAnyMore) => direction.darken(now, Duration::ZERO),
            None => {}
        }
    }
}

fn report(wires: &[Wire]) -> Vec<WayReport> {
    let ways = [Way::AToB, Way::BToA];
    let of = |wire: &Wire, way: Way| WayReport {
        link: wire.name.clone(),
        way,
        refused_by_kernel: wire.refused[way as usize],
        counts: wire.ways[way as usize].counts().clone(),
    };
    wires.iter().flat_map(|wire| ways.map(|way| of(wire, way))).collect()
}
