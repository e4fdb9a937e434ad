//! One row's processes: server, proxies or ARMORs, client.
//!
//! Invariant: everything of it ends when the lane is dropped.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::row::Row;
use super::shelter::Shelter;
use super::talker::Talker;
use super::{groups, process, proxies};
use crate::free_address::free_address;

const UP_WITHIN: Duration = Duration::from_secs(20);

/// The programs of the package armor-benches.
pub(super) struct Programs {
    pub(super) client: PathBuf,
    pub(super) server: PathBuf,
    pub(super) proxy: PathBuf,
}

/// Which of its servers a client speaks to. They differ with ARMOR alone, in what is kept for replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// Policy `request`, the default.
    Usual,
    /// Policy `reconnect`: nothing is kept beyond what was not acknowledged.
    Unkept,
}

pub(super) struct Lane {
    pub(super) row: Row,
    // The client ends first, then the proxies, then the server.
    talker: Talker,
    children: Vec<Child>,
    shelter: Option<Shelter>,
    usual: SocketAddr,
    unkept: SocketAddr,
    speaks_to: Service,
    pub(super) broken: bool,
}

impl Lane {
    /// Starts all of it.
    ///
    /// # Errors
    /// When something does not come up.
    pub(super) fn start(row: Row, programs: &Programs, files: &Path) -> anyhow::Result<Lane> {
        if row.is_armor() { Lane::armor(row, programs) } else { Lane::plain(row, programs, files) }
    }

    fn armor(row: Row, programs: &Programs) -> anyhow::Result<Lane> {
        let shelter = Shelter::up(row == Row::Execution)?;
        let (usual, unkept) = (free_address()?, free_address()?);
        shelter.launch("bench", "request", &programs.server, usual)?;
        shelter.launch("bulk", "reconnect", &programs.server, unkept)?;
        let talker = Talker::start(&mut shelter.client(&programs.client, usual))?;
        Ok(Lane { row, talker, children: Vec::new(), shelter: Some(shelter), usual, unkept, speaks_to: Service::Usual, broken: false })
    }

    fn plain(row: Row, programs: &Programs, files: &Path) -> anyhow::Result<Lane> {
        let log = |what: &str| files.join(format!("{row:?}-{what}.log"));
        let mut running = Running(Vec::new());
        let mut last = free_address()?;
        let mut server = Command::new(&programs.server);
        server.args(["--listen", &last.to_string()]);
        running.0.push(proxies::start(server, &log("server"))?);
        await_listener(last, &log("server"))?;
        for place in ["server-side", "client-side"] {
            let listen = free_address()?;
            let Some(command) = proxies::command(row, &programs.proxy, files, place, listen, last)? else { break };
            running.0.push(proxies::start(command, &log(place))?);
            await_listener(listen, &log(place))?;
            last = listen;
        }
        let talker = Talker::start(Command::new(&programs.client).arg(last.to_string()))?;
        let children = std::mem::take(&mut running.0);
        Ok(Lane { row, talker, children, shelter: None, usual: last, unkept: last, speaks_to: Service::Usual, broken: false })
    }

    /// All its processes.
    pub(super) fn processes(&self) -> Vec<Pid> {
        let own: Vec<u32> = self.children.iter().map(Child::id).chain([self.talker.group()]).collect();
        let mut pids = process::of_groups(&own);
        pids.extend(self.shelter.iter().flat_map(Shelter::processes));
        pids.sort_by_key(|pid| pid.as_raw_nonzero());
        pids.dedup();
        pids
    }

    /// Its proxies or ARMORs.
    pub(super) fn go_betweens(&self) -> Vec<Pid> {
        let ends =
            |pid: &Pid| process::program(*pid).is_none_or(|name| name.starts_with("bench-client") || name.starts_with("bench-server"));
        self.processes().into_iter().filter(|pid| !ends(pid)).collect()
    }

    /// Has its client do something, with one of its servers.
    ///
    /// # Errors
    /// When it cannot be done; [`Lane::broken`] tells whether anything else can.
    pub(super) fn ask(&mut self, service: Service, order: &str, patience: Duration) -> anyhow::Result<Value> {
        if self.speaks_to != service {
            let server = match service {
                Service::Usual => self.usual,
                Service::Unkept => self.unkept,
            };
            self.talker.ask(&format!("server {server}"), patience)?;
            self.speaks_to = service;
        }
        self.talker.ask(order, patience).inspect_err(|_| self.broken = !self.talker.listens())
    }

    /// Lets what never rests go on, when it has its turn.
    pub(super) fn wake(&self) {
        self.signal(Signal::CONT);
    }

    /// Stops it again.
    pub(super) fn rest(&self) {
        self.signal(Signal::STOP);
    }

    fn signal(&self, signal: Signal) {
        if self.row.is_restless() {
            self.children.iter().for_each(|child| groups::signal(child.id(), signal));
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.wake();
        end_all(&mut self.children);
    }
}

/// Children of a lane that is not complete yet.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        end_all(&mut self.0);
    }
}

fn end_all(children: &mut [Child]) {
    for child in children.iter_mut().rev() {
        groups::signal(child.id(), Signal::TERM);
        groups::end(child, Duration::from_secs(1));
    }
}

fn await_listener(address: SocketAddr, log: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + UP_WITHIN;
    while let Err(error) = TcpStream::connect(address) {
        if Instant::now() > deadline {
            bail!("nobody listens at {address} after {} s: {error}; {}", UP_WITHIN.as_secs(), crate::environment::tail(log));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A program of benches: beside this one.
pub(super) fn programs() -> anyhow::Result<Programs> {
    let own = std::env::current_exe().context("the path of the armor program is unknown")?;
    let find = |name: &str| {
        let path = own.with_file_name(name);
        if path.is_file() {
            Ok(path)
        } else {
            bail!("{} is missing; build it with `cargo build --release -p armor-benches`", path.display())
        }
    };
    Ok(Programs { client: find("bench-client")?, server: find("bench-server")?, proxy: find("bench-proxy")? })
}
