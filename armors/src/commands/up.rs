//! `armor up`: an environment on this machine, in the background.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use armor_elements::operations::check_labels;
use armor_proto::hookup::{ENV_RUN_DIR, ENV_SERVICE, ENV_SHIM_PATH};
use armor_proto::ids::ArmorId;
use armor_vault::Session;

use crate::client::Client;
use crate::ending::Ending;
use crate::environment::{ArmorDirectory, Base, Place};
use crate::keys::Protection;
use crate::survey::{element, entries};
use crate::transport::{self, Transport};
use crate::{output, services, shim_library};

const PATIENCE: Duration = Duration::from_secs(10);

/// Start an ARMOR environment: the FTM and a daemon, in the background
///
/// With --ftm it joins the network of an FTM elsewhere and starts a daemon only. What runs already is left running.
#[derive(clap::Args)]
pub(crate) struct Up {
    /// Name of a node's daemon, unique in the network; several give several daemons on this machine
    #[arg(long = "node", value_name = "NAME", default_value = "node1")]
    nodes: Vec<String>,
    /// Address for links between nodes: of the FTM, or of the daemon with --ftm [default: loopback, or this machine's address towards --ftm]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Join the FTM at this address (its --listen)
    #[arg(long, value_name = "HOST:PORT")]
    ftm: Option<String>,
    /// What the nodes that are started say of themselves; services choose by it where they may move when their node fails
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = super::launch::variable)]
    labels: Vec<(String, String)>,
    /// What becomes of applications that may move when their node does not hear its FTM: they "serve" on, or are killed ("stop") before they are started elsewhere
    #[arg(long, value_name = "WHAT", value_parser = ["serve", "stop"])]
    isolated: Option<String>,
    /// What links between nodes are made of: over "udp" they outlive outages and changes of address
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    #[command(flatten)]
    protection: Protection,
    #[command(flatten)]
    place: Place,
}

impl Up {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        for name in &self.nodes {
            services::check_name(name).map_err(|reason| anyhow!("--node: {reason}"))?;
            if name == "ftm" {
                bail!("--node: \"ftm\" is the name of the FTM; choose another");
            }
        }
        let base = Base::of(&self.place)?;
        // Until the end: two that start the same ARMOR would take each other's leftovers away.
        let _alone = base.create()?;
        let mut started = Started { children: Vec::new() };
        let mut text = String::new();

        let transport = self.transport;
        let everywhere = |address: String| transport.elements().iter().map(|element| (*element, address.clone())).collect();
        let (ftm, listen): (Vec<(&str, String)>, SocketAddr) = match &self.ftm {
            Some(ftm) => {
                let address = resolve(ftm)?;
                (everywhere(address.to_string()), self.listen.map_or_else(|| towards(address), Ok)?)
            }
            None => {
                let directory = base.armor("ftm");
                let listen = self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
                let names: Vec<&str> = std::iter::once("ftm").chain(self.nodes.iter().map(|name| &**name)).collect();
                let protection = self.protection.settings(&names, &[&listen.to_string()], transport)?;
                let life = Life::of_ftm(&base, &directory, listen, protection, transport);
                started.armor(&base, &directory, &transport.composition("ftm"), &life, &mut text)?;
                let address = transport.addresses(&directory);
                let address = address.with_context(|| {
                    format!(
                        "the FTM in {} has no links of that kind; `armor down` first, or leave --transport as it was",
                        directory.path().display()
                    )
                })?;
                // Daemons of this machine are beside the FTM, on a port that the kernel chooses.
                (address, SocketAddr::new(listen.ip(), 0))
            }
        };
        let nodes: Vec<&str> = self.nodes.iter().map(|name| &**name).collect();
        let (at, told) = (listen.to_string(), ftm.first().map_or_else(String::new, |(_, address)| address.clone()));
        let protection = self.protection.settings(&nodes, &[&told, &at], transport)?;
        for name in &self.nodes {
            let directory = base.armor(name);
            let mut settings: Vec<String> = ftm.iter().map(|(element, address)| format!("{element}.ftm={address}")).collect();
            settings.extend(transport.settings("listen", |_| at.clone()));
            settings.extend(protection.iter().cloned());
            settings.extend(labels_setting(&self.labels)?);
            settings.extend(self.isolated.iter().map(|what| format!("node_lease.isolated={what}")));
            // ARMORs that a dead daemon has installed live on and are taken up by its next life.
            let life = if directory.installed().is_empty() { Life::New(settings) } else { Life::Next(settings) };
            started.armor(&base, &directory, &transport.composition("daemon"), &life, &mut text)?;
            registered(&directory, &told)?;
        }
        let everything_ran = started.children.is_empty();
        started.children.clear();
        let heading = if everything_ran { "The environment is up already." } else { "The environment is up." };
        let (option, directory) = (base.option(), base.path().display());
        output::print(&format!(
            "{text}{heading} Run directory: {directory}\n\nNext:\n  \
             armor launch{option} --name web -- python3 -m http.server 8080   # a protected server\n  \
             armor run{option} -- curl http://127.0.0.1:8080/                 # any client\n  \
             armor status{option}\n  \
             armor down{option}\n"
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The setting that tells a daemon its labels.
fn labels_setting(labels: &[(String, String)]) -> anyhow::Result<Option<String>> {
    if labels.is_empty() {
        return Ok(None);
    }
    let labels = labels.iter().cloned().collect();
    check_labels(&labels).map_err(|reason| anyhow!("--label: {reason}"))?;
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{} = {}", quoted(key), quoted(value))).collect();
    Ok(Some(format!("app_oversight.labels={{ {} }}", labels.join(", "))))
}

/// How an ARMOR is started.
enum Life {
    /// With these settings, in an empty directory.
    New(Vec<String>),
    /// The same, with the state that its earlier life captured.
    Next(Vec<String>),
}

impl Life {
    /// An FTM that died beside living daemons is given its state and its address back: they look for it there.
    fn of_ftm(base: &Base, ftm: &ArmorDirectory, listen: SocketAddr, mut settings: Vec<String>, transport: Transport) -> Life {
        match transport.addresses(ftm) {
            Some(addresses) if !base.daemons().is_empty() => {
                settings.extend(addresses.iter().map(|(element, address)| format!("{element}.listen={address}")));
                Life::Next(settings)
            }
            _ => {
                settings.extend(transport.settings("listen", |_| listen.to_string()));
                Life::New(settings)
            }
        }
    }
}

/// What this call has started: ended again when something later fails.
struct Started {
    children: Vec<Begun>,
}

struct Begun {
    directory: ArmorDirectory,
    child: Child,
    /// An earlier life has left something that is wanted.
    is_next: bool,
}

impl Started {
    fn armor(&mut self, base: &Base, directory: &ArmorDirectory, composition: &str, life: &Life, text: &mut String) -> anyhow::Result<()> {
        let name = &directory.name;
        if let Some(pid) = directory.settled_pid() {
            writeln!(text, "{name}: runs already, pid {pid}")?;
            return Ok(());
        }
        if let Some(vault) = directory.vault() {
            bail!("ARMOR {name} dies again and again; end its vault (pid {vault}) with `armor down`; {}", directory.log_tail());
        }
        match life {
            Life::New(_) => directory.clean()?,
            Life::Next(_) => directory.remove_sockets_of_next_life(),
        }
        self.children.push(Begun {
            directory: directory.clone(),
            child: spawn(base, directory, composition, life)?,
            is_next: matches!(life, Life::Next(_)),
        });
        if let Some(Begun { child, .. }) = self.children.last_mut() {
            ready(directory, child)?;
            let addresses: Vec<String> = transport::ELEMENTS.iter().filter_map(|element| directory.link_address(element)).collect();
            let address = if addresses.is_empty() { String::new() } else { format!(", links at {}", addresses.join(" and ")) };
            // Beside the vault's.
            let pid = directory.pid().map_or_else(String::new, |pid| format!(", pid {pid}"));
            writeln!(text, "{name}: started{pid}{address}")?;
        }
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        for Begun { directory, child, is_next } in self.children.iter_mut().rev() {
            if let Some(ending) = Ending::begin(directory) {
                ending.finish(Instant::now() + Duration::from_secs(3));
            }
            // The vault has ended, or has not even begun.
            let _ = child.kill();
            let _ = child.wait();
            if *is_next {
                directory.remove_sockets_of_next_life();
            } else {
                directory.remove_sockets();
            }
        }
    }
}

fn spawn(base: &Base, directory: &ArmorDirectory, composition: &str, life: &Life) -> anyhow::Result<Child> {
    let library = shim_library::install(base.path())?;
    std::fs::create_dir_all(directory.path()).with_context(|| format!("run directory {}", directory.path().display()))?;
    let log = directory.log();
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).with_context(|| log.display().to_string())?;
    let program = std::env::current_exe().context("the path of the armor program is unknown")?;
    let mut arguments: Vec<OsString> = ["start", composition, "--name", &directory.name, "--run-dir"].map(OsString::from).to_vec();
    arguments.push(directory.path().into());
    let settings = match life {
        Life::New(settings) => settings,
        Life::Next(settings) => {
            arguments.push("--restore".into());
            settings
        }
    };
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]).map(OsString::from));
    let mut command = armor_vault::command(&program, &directory.name, directory.path(), Session::New, &arguments);
    // An environment that is started from inside another one must not hook up to that one.
    command.env_remove(ENV_RUN_DIR).env_remove(ENV_SERVICE).env(ENV_SHIM_PATH, &library);
    match shim_library::without(std::env::var_os("LD_PRELOAD"), library.as_os_str()) {
        Some(others) => command.env("LD_PRELOAD", others),
        None => command.env_remove("LD_PRELOAD"),
    };
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone().context("armor.log")?).stderr(log);
    command.spawn().with_context(|| format!("{} cannot be executed", program.display()))
}

fn ready(directory: &ArmorDirectory, child: &mut Child) -> anyhow::Result<()> {
    let name = &directory.name;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if directory.is_ready() && Client::attach(directory).is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait().with_context(|| name.clone())? {
            bail!("ARMOR {name} ended while it was starting ({status}); {}", directory.log_tail());
        }
        if Instant::now() > deadline {
            bail!("ARMOR {name} was not ready within {} s; {}", PATIENCE.as_secs(), directory.log_tail());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the FTM knows the daemon, so that what is launched next is known everywhere.
fn registered(daemon: &ArmorDirectory, ftm: &str) -> anyhow::Result<()> {
    let name = &daemon.name;
    let deadline = Instant::now() + PATIENCE;
    let mut answered = false;
    while Instant::now() < deadline {
        let mut client = Client::attach(daemon)?;
        let statuses = client.statuses(&[ArmorId::FTM], Duration::from_millis(300))?;
        if let Some(status) = statuses.get(&ArmorId::FTM) {
            answered = true;
            if entries(&element(status, "daemon_registry")["daemons"]).iter().any(|row| row["name"] == **name) {
                return Ok(());
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if answered {
        bail!("the FTM at {ftm} did not register daemon {name}; is the name taken in this network? {}", daemon.log_tail());
    }
    bail!("the FTM at {ftm} does not answer daemon {name}; check the address and that no firewall is between them; {}", daemon.log_tail())
}

fn resolve(address: &str) -> anyhow::Result<SocketAddr> {
    let mut found = address
        .to_socket_addrs()
        .with_context(|| format!("--ftm {address}: expected HOST:PORT of the FTM, as in its tcp.addr or udp.addr"))?;
    found.next().with_context(|| format!("--ftm {address}: the name has no address"))
}

/// This machine's address as the FTM sees it, any port.
fn towards(ftm: SocketAddr) -> anyhow::Result<SocketAddr> {
    let any: IpAddr = if ftm.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    // Connecting a datagram socket sends nothing; it chooses the route.
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(ftm)?;
        socket.local_addr()
    });
    let local = local.with_context(|| format!("no route to the FTM at {ftm}; give this machine's address with --listen"))?;
    Ok(SocketAddr::new(local.ip(), 0))
}
