//! The environment of a campaign: FTM, daemons and the server, each node a group of processes or a network namespace.
//!
//! ARMORs are started with `armor start`, each with a vault of its own, so that their links can be led through relays.
//!
//! Invariant: whatever was started ends when the stage is dropped, and its run directory goes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use armor_core::events::Event;
use armor_elements::links::security;
use armor_elements::operations::{Events, EventsQuery};
use armor_proto::hookup::{ENV_RUN_DIR, ENV_SERVICE};
use armor_proto::ids::ArmorId;
use armor_vault::ENV_VAULT;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::matrix::{Cell, Placement, Policy, Target};
use super::network::Network;
use super::relay::Relay;
use super::talk::{FILE, FILE_BYTES, file};
use crate::client::Client;
use crate::ending::Process;
use crate::environment::{ArmorDirectory, Base, Place, fresh_directory};
use crate::free_address::free_address;
use crate::recovery::Recovery;
use crate::survey::{element, entries};

/// The server's name as a service.
const SERVICE: &str = "campaign";
pub(crate) const FTM: &str = "ftm";
/// Node of the server.
pub(crate) const SERVER_NODE: &str = "node1";
/// Node of the clients.
pub(crate) const CLIENT_NODE: &str = "node2";
/// Where a server may go.
const SPARE_NODE: &str = "node3";
const SERVER_PORT: u16 = 9000;
/// How long an environment may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(1);

/// What the server's overseer says.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Process of the server, while one runs.
    pub(crate) pid: Option<u32>,
    /// All its standbys wait in their binds.
    pub(crate) prepared: bool,
    pub(crate) restarts: u64,
    /// In the order of time.
    pub(crate) recoveries: Vec<Recovery>,
}

pub(crate) struct Stage {
    cell: Cell,
    program: PathBuf,
    base: Base,
    network: Option<Network>,
    relays: BTreeMap<&'static str, Relay>,
    nodes: Vec<&'static str>,
    /// Until they are waited for they would be zombies.
    children: Vec<Child>,
    ended: bool,
    pub(crate) server: SocketAddr,
    seed: u64,
    next_event: u64,
    /// How much of the server's log was read.
    read: usize,
}

impl Stage {
    /// Starts everything but the server.
    pub(crate) fn up(cell: Cell, seed: u64) -> anyhow::Result<Stage> {
        let program = std::env::current_exe().context("the path of the armor program is unknown")?;
        let nodes = match cell.target {
            Target::Node => vec![SERVER_NODE, CLIENT_NODE, SPARE_NODE],
            _ => vec![SERVER_NODE, CLIENT_NODE],
        };
        let all: Vec<&str> = [FTM].into_iter().chain(nodes.iter().copied()).collect();
        let network = match cell.placement {
            Placement::Groups => None,
            Placement::Namespaces => Some(Network::make(&all)?),
        };
        let mut relays = BTreeMap::new();
        if cell.needs_relays() {
            for name in [FTM, SERVER_NODE, CLIENT_NODE] {
                relays.insert(name, Relay::listen()?);
            }
        }
        let base = Base::of(&Place { run_dir: Some(fresh_directory("armor-campaign")?) })?;
        let server = match network.as_ref().and_then(|network| network.address(SERVER_NODE)) {
            Some(address) => SocketAddr::new(address.into(), SERVER_PORT),
            None => free_address()?,
        };
        let mut stage =
            Stage { cell, program, base, network, relays, nodes, children: Vec::new(), ended: false, server, seed, next_event: 0, read: 0 };
        stage.make_keys(&all)?;
        stage.start_armors()?;
        Ok(stage)
    }

    /// Where keys are, on a network of namespaces, whose addresses are beyond this machine.
    fn keys(&self) -> PathBuf {
        self.base.path().join("keys")
    }

    fn make_keys(&self, names: &[&str]) -> anyhow::Result<()> {
        for name in names.iter().filter(|_| self.network.is_some()) {
            let made = security::change_trusted(&self.keys(), |trusted| {
                let public = security::make_key(&self.keys(), name)?.public();
                trusted.add(name, public).map_err(|error| error.to_string())
            });
            made.map_err(|reason| anyhow!(reason))?;
        }
        Ok(())
    }

    fn start_armors(&mut self) -> anyhow::Result<()> {
        self.start(FTM, FTM, &[])?;
        self.await_ready(FTM)?;
        let listens = |stage: &Stage, name: &str| -> anyhow::Result<SocketAddr> {
            let address = stage.base.armor(name).tcp_address().with_context(|| format!("{name} has not told its address"))?;
            address.parse().with_context(|| format!("{name}: {address} is no address"))
        };
        let ftm = listens(self, FTM)?;
        let ftm = match self.relays.get(FTM) {
            Some(relay) => {
                relay.to(ftm);
                relay.address
            }
            None => ftm,
        };
        for name in self.nodes.clone() {
            // Where links to it go; its relay is told below, before anybody needs it.
            let advertise = self.relays.get(name).map(|relay| format!("daemon_tcp_mgmt.advertise={}", relay.address));
            let settings = [format!("daemon_tcp_mgmt.ftm={ftm}"), "armor_installer.restart_window_s=0".to_owned()];
            let settings: Vec<String> = settings.into_iter().chain(advertise).collect();
            self.start(name, "daemon", &settings)?;
        }
        for name in self.nodes.clone() {
            self.await_ready(name)?;
            if let Some(relay) = self.relays.get(name) {
                relay.to(listens(self, name)?);
            }
        }
        self.await_condition("the daemons to register", UP_WITHIN, |stage| stage.registered())
    }

    fn start(&mut self, name: &'static str, composition: &str, settings: &[String]) -> anyhow::Result<()> {
        let directory = self.base.armor(name);
        std::fs::create_dir_all(directory.path()).with_context(|| directory.path().display().to_string())?;
        let log = directory.log();
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).with_context(|| log.display().to_string())?;
        let address = self.network.as_ref().and_then(|network| network.address(name)).unwrap_or(Ipv4Addr::LOCALHOST);
        let mut command = self.on(name);
        command.args(["start", composition, "--name", name, "--run-dir"]).arg(directory.path());
        command.arg("--set").arg(format!("daemon_tcp_mgmt.listen={}", SocketAddr::new(IpAddr::V4(address), 0)));
        if self.network.is_some() {
            let keys = toml::Value::String(crate::services::utf8(self.keys())?);
            command.arg("--set").arg(format!("daemon_tcp_mgmt.keys={keys}"));
        }
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        command.stdin(Stdio::null()).stdout(log.try_clone().context("armor.log")?).stderr(log).current_dir("/");
        self.children.push(command.spawn().with_context(|| format!("{} cannot be executed", self.program.display()))?);
        Ok(())
    }

    /// The `armor` program on a node, without what the user has set for his own connections.
    fn on(&self, node: &str) -> Command {
        let mut command = match &self.network {
            Some(network) => {
                let mut command = network.on(node);
                command.arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        // A group of its own: Ctrl-C is for the campaign, which ends the rest in order.
        command.process_group(0);
        for variable in [ENV_RUN_DIR, ENV_SERVICE, ENV_VAULT] {
            command.env_remove(variable);
        }
        command
    }

    fn await_ready(&mut self, name: &str) -> anyhow::Result<()> {
        let directory = self.base.armor(name);
        let ready =
            self.await_condition(&format!("ARMOR {name}"), UP_WITHIN, |_| directory.is_ready() && Client::attach(&directory).is_ok());
        ready.with_context(|| directory.log_tail())
    }

    /// Whether every daemon is registered at the FTM and linked to it.
    pub(crate) fn registered(&self) -> bool {
        self.nodes.iter().all(|name| {
            let status = self.status(name, self.base.armor(name).armor()).unwrap_or_default();
            let links = element(&status, "daemon_tcp_mgmt");
            let ftm = ArmorId::FTM.to_string();
            links["registered"] == true && entries(&links["peers"]).iter().any(|peer| peer["armor"] == ftm && peer["linked"] == true)
        })
    }

    /// The state of an ARMOR, asked for at a node's daemon.
    fn status(&self, at: &str, armor: ArmorId) -> anyhow::Result<Value> {
        let directory = self.base.armor(at);
        let mut statuses = Client::attach(&directory)?.statuses(&[armor], Duration::from_secs(1))?;
        statuses.remove(&armor).with_context(|| format!("ARMOR {armor} does not answer; {}", directory.log_tail()))
    }

    /// Looks until a condition comes true.
    ///
    /// # Errors
    /// When it does not in time.
    pub(crate) fn await_condition(&self, what: &str, patience: Duration, condition: impl Fn(&Stage) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while !condition(self) {
            if Instant::now() > deadline {
                bail!("waited {} s for {what}", patience.as_secs());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Launches the server. `extra` are keys of its service file besides those that the cell asks for.
    pub(crate) fn launch(&mut self, extra: &toml::Table) -> anyhow::Result<()> {
        let text = |value: &str| toml::Value::String(value.to_owned());
        let policy = self.cell.policy;
        let command = match policy {
            _ if policy.is_python() => {
                let files = self.base.path().join("files");
                let mut bytes = vec![0; FILE_BYTES];
                file(self.seed).fill(0, &mut bytes);
                std::fs::create_dir(&files).and_then(|()| std::fs::write(files.join(FILE), bytes)).context("the file to be served")?;
                python(self.server, &files)
            }
            _ => builtin(&self.program, self.server, policy, self.seed),
        };
        let mut service = toml::Table::new();
        service.insert("name".to_owned(), text(SERVICE));
        service.insert("command".to_owned(), command.iter().map(|word| text(word)).collect::<Vec<_>>().into());
        service.insert("policy".to_owned(), text(policy.in_service()));
        // It tells the time in each answer.
        if policy.is_python() {
            service.insert("on_divergence".to_owned(), text("continue"));
        }
        if policy == Policy::PythonStandby {
            service.insert("standby".to_owned(), 1.into());
        }
        // It is killed more often than is good for any other service, and at once after its start.
        for (key, value) in [("restart_limit", 1_000_000), ("restart_window_s", 1), ("backoff_ms", 0)] {
            service.insert(key.to_owned(), value.into());
        }
        service.extend(extra.clone());
        let path = self.base.path().join("service.toml");
        std::fs::write(&path, service.to_string()).with_context(|| path.display().to_string())?;
        let mut launch = Command::new(&self.program);
        launch.args(["launch", "--run-dir"]).arg(self.base.path()).args(["--node", SERVER_NODE]);
        if self.cell.target == Target::Execution {
            launch.arg("--execution-armor");
        }
        call(launch.arg(&path), "armor launch").with_context(|| self.base.armor(SERVER_NODE).log_tail())
    }

    /// Clients on a node, ready to be started.
    pub(crate) fn client(&self, node: &str) -> Command {
        let mut command = self.on(node);
        command.args(["run", "--run-dir"]).arg(self.base.path()).args(["--node", node, "--"]).arg(&self.program).arg("campaign-client");
        command
    }

    /// The ARMOR that oversees the server.
    fn overseer(&self) -> String {
        match self.cell.target {
            Target::Execution => format!("{SERVER_NODE}/{SERVICE}"),
            _ => SERVER_NODE.to_owned(),
        }
    }

    /// Asks the server's overseer.
    pub(crate) fn look(&self) -> anyhow::Result<Look> {
        let status = self.status(SERVER_NODE, ArmorId::of_name(&self.overseer()))?;
        Ok(Look::of(&status))
    }

    pub(crate) fn directory(&self, target: Target) -> Option<ArmorDirectory> {
        Some(match target {
            Target::Daemon | Target::Vault => self.base.armor(SERVER_NODE),
            Target::ClientDaemon => self.base.armor(CLIENT_NODE),
            Target::Ftm => self.base.armor(FTM),
            Target::Execution => ArmorDirectory::at(&self.overseer(), self.base.armor(SERVER_NODE).path().join("armors").join(SERVICE)),
            Target::Server | Target::Node | Target::Link => return None,
        })
    }

    /// The process of a target, surely.
    pub(crate) fn process(&self, target: Target) -> anyhow::Result<Process> {
        let directory = self.directory(target);
        let find = || match (target, &directory) {
            (Target::Vault, Some(directory)) => directory.vault(),
            (_, Some(directory)) => directory.pid(),
            (_, None) => self.look().ok()?.pid,
        };
        Process::of(find).with_context(|| format!("there is no process of the {target}"))
    }

    pub(crate) fn relays(&self) -> &BTreeMap<&'static str, Relay> {
        &self.relays
    }

    pub(crate) fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// SIGKILL to everything of the server's node; nothing of it starts anything again.
    ///
    /// # Errors
    /// When there is nothing.
    pub(crate) fn kill_node<T>(&self, now: impl FnOnce() -> T) -> anyhow::Result<T> {
        let directory = self.base.armor(SERVER_NODE);
        let node = directory.path();
        let mut stopped = processes_below(node);
        if stopped.is_empty() {
            bail!("nothing runs on {SERVER_NODE}");
        }
        // The looking takes longer than the hitting.
        let at = now();
        // The vault and the daemon first: what they start is stopped in the second round.
        for pid in &stopped {
            let _ = kill_process(*pid, Signal::STOP);
        }
        for pid in processes_below(node) {
            let _ = kill_process(pid, Signal::STOP);
            stopped.push(pid);
        }
        for pid in stopped {
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(at)
    }

    /// Events that were told since the last call. Nothing while the FTM is away.
    pub(crate) fn news(&mut self) -> Vec<Event> {
        let mut news = Vec::new();
        let Ok(mut client) = Client::attach(&self.base.armor(FTM)) else { return news };
        loop {
            let page = client.send(ArmorId::FTM, EventsQuery { from: self.next_event });
            let Ok(Events { next, events }) = page.and_then(|()| client.wait(Duration::from_secs(2))) else { return news };
            if next < self.next_event {
                // Another life of the FTM counts anew.
                self.next_event = 0;
                continue;
            }
            self.next_event = next;
            if events.is_empty() {
                return news;
            }
            news.extend(events);
        }
    }

    /// Complaints of the server since the last call.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        let directory = self.directory(Target::Execution).filter(|_| self.cell.target == Target::Execution);
        let directory = directory.unwrap_or_else(|| self.base.armor(SERVER_NODE));
        let log = std::fs::read(directory.path().join("logs").join(format!("{SERVICE}.log"))).unwrap_or_default();
        // It may have been begun anew.
        let new = log.get(self.read..).unwrap_or(&log);
        let complaints = String::from_utf8_lossy(new)
            .lines()
            .filter_map(|line| line.strip_prefix(super::server::COMPLAINT).map(str::to_owned))
            .collect();
        self.read = log.len();
        complaints
    }

    /// Copies the logs of all ARMORs and of the server.
    pub(crate) fn save_logs(&self, to: &Path) -> std::io::Result<()> {
        let node = self.base.armor(SERVER_NODE).path().to_path_buf();
        let installed = node.join("armors").join(SERVICE);
        let mut logs: Vec<(String, PathBuf)> =
            [FTM].into_iter().chain(self.nodes.iter().copied()).map(|name| (format!("{name}.log"), self.base.armor(name).log())).collect();
        logs.push(("events.jsonl".to_owned(), self.base.armor(FTM).path().join("events.jsonl")));
        logs.push(("execution.log".to_owned(), installed.join("armor.log")));
        for directory in [node, installed] {
            logs.push(("server.log".to_owned(), directory.join("logs").join(format!("{SERVICE}.log"))));
        }
        std::fs::create_dir_all(to)?;
        for (name, log) in logs.into_iter().filter(|(_, log)| log.exists()) {
            std::fs::copy(log, to.join(name))?;
        }
        Ok(())
    }
}

/// The command of the campaign's own server.
pub(crate) fn builtin(program: &Path, listen: SocketAddr, policy: Policy, seed: u64) -> Vec<String> {
    let program = program.to_string_lossy().into_owned();
    let rest = ["campaign-server", "--listen", &listen.to_string(), "--talk", policy.talk().name(), "--seed", &seed.to_string()]
        .map(str::to_owned);
    [program].into_iter().chain(rest).collect()
}

/// The command of Python's server of files.
pub(crate) fn python(listen: SocketAddr, files: &Path) -> Vec<String> {
    let (port, address, files) = (listen.port().to_string(), listen.ip().to_string(), files.to_string_lossy());
    ["python3", "-m", "http.server", &port, "--bind", &address, "--directory", &files].map(str::to_owned).to_vec()
}

impl Look {
    fn of(status: &Value) -> Look {
        let applications = entries(&element(status, "app_oversight")["applications"]);
        let application = applications.iter().find(|row| row["name"] == SERVICE);
        let running = application.filter(|row| row["state"] == "running");
        let pid = running.and_then(|row| row["pid"].as_u64()).and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 1);
        let standbys = &application.unwrap_or(&Value::Null)["standbys"];
        let waiting = entries(&standbys["instances"]).iter().filter(|instance| instance["state"] == "waiting").count() as u64;
        let prepared = waiting >= standbys["wanted"].as_u64().unwrap_or(0);
        let restarts = application.and_then(|row| row["restarts"].as_u64()).unwrap_or(0);
        let recoveries = entries(&element(status, "APP_COMM_SERVER")["recoveries"]).iter();
        let recoveries =
            recoveries.filter_map(|row| serde_json::from_value(row.clone()).ok()).filter(|row: &Recovery| row.service == SERVICE);
        Look { pid, prepared, restarts, recoveries: recoveries.collect() }
    }
}

impl Stage {
    /// Ends everything; what `armor down` has left running is killed and told.
    pub(crate) fn down(&mut self) -> Vec<String> {
        // What is stopped cannot end by itself.
        for armor in self.base.present() {
            for process in [Process::of(|| armor.vault()), Process::of(|| armor.pid())].into_iter().flatten() {
                process.signal(Signal::CONT);
            }
        }
        let mut down = Command::new(&self.program);
        down.args(["down", "--patience", "5", "--run-dir"]).arg(self.base.path());
        let mut complaints: Vec<String> = call(&mut down, "armor down").err().map(|error| format!("{error:#}")).into_iter().collect();
        for pid in processes_below(self.base.path()) {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // One that is just ending has none.
            if !line.is_empty() {
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                complaints.push(format!("`armor down` has left process {pid}: {}", line.trim_end()));
            }
            let _ = kill_process(pid, Signal::KILL);
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
        self.ended = true;
        complaints
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let mut complaints = if self.ended { Vec::new() } else { self.down() };
        if let Err(error) = std::fs::remove_dir_all(self.base.path()) {
            complaints.push(format!("{} cannot be removed: {error}", self.base.path().display()));
        }
        for complaint in complaints {
            super::progress::say(&format!("armor: campaign: {complaint}"));
        }
    }
}

/// Processes whose command line or ARMOR is below a directory.
pub(crate) fn processes_below(directory: &Path) -> Vec<Pid> {
    let directory = directory.as_os_str().as_encoded_bytes();
    let names = |text: &[u8]| {
        text.windows(directory.len())
            .enumerate()
            .any(|(at, part)| part == directory && matches!(text.get(at + part.len()), None | Some(b'/' | 0)))
    };
    let belongs = |pid: &Pid| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let armor =
            |variable: &[u8]| variable.strip_prefix(ENV_RUN_DIR.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'=') && names(rest));
        names(&read("cmdline")) || read("environ").split(|&byte| byte == 0).any(armor)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|&pid| pid != rustix::process::getpid()).filter(belongs).collect()
}

fn call(command: &mut Command, name: &str) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("`{name}` cannot be executed"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed ({}): {}", output.status, said.trim().trim_start_matches("armor: "));
    }
    Ok(())
}
