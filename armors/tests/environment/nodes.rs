//! A network of several nodes for one test. Each node has a run directory and a daemon of its own; the first one has the FTM too.
//!
//! Where the nodes are: [`Placement::Groups`], all on loopback, so that their links cannot be cut; or [`Placement::Namespaces`], each in a network namespace of
//! its own, joined by a bridge in one more. The namespaces have no names: each is held by a process that ends with the test, however that ends.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use super::{PATIENCE, free_port, kill, lives, signal, text};

/// A MAC address that nobody has: what is sent there is lost without a word.
const NOWHERE: &str = "02:00:00:00:00:fe";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    Groups,
    Namespaces,
}

pub struct Nodes {
    directory: tempfile::TempDir,
    nodes: Vec<Node>,
    /// Holds the bridge that the nodes are joined by.
    bridge: Option<Namespace>,
    ftm: String,
}

struct Node {
    name: String,
    address: String,
    namespace: Option<Namespace>,
}

/// A network namespace: it lives as long as this process, and what else runs in it.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Namespace {
        // It reads a pipe of this test and so ends with it.
        let mut holder = Command::new("unshare");
        holder.args(["--net", "--", "sh", "-c", "ip link set lo up && echo ready && exec cat"]);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "a network namespace cannot be made; it takes root, and the package iproute2");
        Namespace { holder }
    }

    /// The command that runs what follows in it.
    fn enter(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.holder.id()), "--".to_owned()]
    }

    fn ip(&self, arguments: &str) {
        let mut ip = self.command(&["ip"]);
        let output = ip.args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", text(&output));
    }

    fn command(&self, words: &[&str]) -> Command {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).args(words).stdin(Stdio::null());
        command
    }

    fn inode(pid: u32) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Whether this process may make network namespaces. One that is not root runs the test once more as root of a user namespace, and has nothing to do itself then.
/// `test` is the test's whole name.
pub fn may_make_namespaces(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let status = inside.status().unwrap();
    assert!(
        status.success(),
        "{test} needs root, or a kernel that allows user namespaces to everybody (`unshare --user --net true`): {status}"
    );
    false
}

impl Nodes {
    /// Starts the FTM and the daemon of the first node beside each other, then the daemons of the others.
    pub fn up(placement: Placement, names: &[&str]) -> Nodes {
        Self::up_with(placement, names, &[])
    }

    /// The same; `first` are options of the `armor up` that starts the first node.
    pub fn up_with(placement: Placement, names: &[&str], first: &[&str]) -> Nodes {
        let directory = tempfile::Builder::new().prefix("armor-nodes-").tempdir().unwrap();
        let bridge = (placement == Placement::Namespaces).then(Namespace::new);
        let mut nodes = Nodes { directory, nodes: Vec::new(), bridge, ftm: String::new() };
        if let Some(bridge) = &nodes.bridge {
            bridge.ip("link add br0 type bridge");
            bridge.ip("link set br0 up");
        }
        for name in names {
            nodes.add(name);
        }
        nodes.ftm = format!("{}:{}", nodes.nodes[0].address, free_port());
        for (index, name) in names.iter().enumerate() {
            nodes.start(name, if index == 0 { first } else { &[] });
        }
        nodes
    }

    /// A place for a node; nothing runs there yet.
    fn add(&mut self, name: &str) {
        let index = self.nodes.len() + 1;
        let namespace = self.bridge.as_ref().map(|bridge| {
            let namespace = Namespace::new();
            bridge.ip(&format!("link add port{index} type veth peer name eth0 netns {}", namespace.holder.id()));
            bridge.ip(&format!("link set port{index} master br0 up"));
            namespace.ip(&format!("addr add 10.0.0.{index}/24 dev eth0"));
            namespace.ip("link set eth0 up");
            namespace
        });
        if namespace.is_some() {
            // Links beyond this machine have keys.
            let names = if index == 1 { vec!["ftm", name] } else { vec![name] };
            let output =
                Command::new(env!("CARGO_BIN_EXE_armor")).arg("keygen").args(names).arg("--keys").arg(self.keys()).output().unwrap();
            assert!(output.status.success(), "armor keygen: {}", text(&output));
        }
        let address = if namespace.is_some() { format!("10.0.0.{index}") } else { "127.0.0.1".to_owned() };
        self.nodes.push(Node { name: name.to_owned(), address, namespace });
    }

    /// One more node, with its daemon.
    pub fn join(&mut self, name: &str) {
        self.join_with(name, &[]);
    }

    /// The same; `options` are those of its `armor up`.
    pub fn join_with(&mut self, name: &str, options: &[&str]) {
        self.add(name);
        self.start(name, options);
    }

    /// Starts what does not run on a node: its daemon, and on the first one the FTM.
    pub fn start(&self, name: &str, options: &[&str]) {
        let output = self.try_start(name, options);
        assert!(output.status.success(), "armor up on {name}: {}\n{}", text(&output), self.logs());
    }

    /// The command that starts one more node.
    pub fn joining(&mut self, name: &str, options: &[&str]) -> Command {
        self.add(name);
        self.starting(name, options)
    }

    pub fn try_start(&self, name: &str, options: &[&str]) -> Output {
        self.starting(name, options).output().unwrap()
    }

    fn starting(&self, name: &str, options: &[&str]) -> Command {
        let side = if self.index(name) == 0 { "--listen" } else { "--ftm" };
        let mut up = self.armor(name, &["up", "--node", name, side, &self.ftm]);
        if self.bridge.is_some() && !options.contains(&"--insecure") {
            up.arg("--keys").arg(self.keys());
        }
        up.args(options);
        up
    }

    /// The directory of keys, which all nodes share.
    pub fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    pub fn placement(&self) -> Placement {
        if self.bridge.is_some() { Placement::Namespaces } else { Placement::Groups }
    }

    fn index(&self, name: &str) -> usize {
        self.nodes.iter().position(|node| node.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    fn node(&self, name: &str) -> &Node {
        &self.nodes[self.index(name)]
    }

    /// The address that a server on the node is reached at from the others.
    pub fn address(&self, name: &str) -> &str {
        &self.node(name).address
    }

    /// Where the FTM accepts links.
    pub fn ftm_address(&self) -> &str {
        &self.ftm
    }

    /// A file for the whole network.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The run directory of a node's environment.
    pub fn base(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The run directory of an ARMOR of a node: `("b", "b")` for its daemon, `("a", "ftm")`, `("b", "b/armors/web")`.
    pub fn run_dir(&self, node: &str, armor: &str) -> PathBuf {
        self.base(node).join(armor)
    }

    /// A command on a node, not under ARMOR.
    pub fn command(&self, node: &str, words: &[&str]) -> Command {
        let mut command = match &self.node(node).namespace {
            Some(namespace) => namespace.command(words),
            None => {
                let mut command = Command::new(words[0]);
                command.args(&words[1..]);
                command
            }
        };
        // What the user has set for his own connections is not meant for a test's.
        command.stdin(Stdio::null()).env("no_proxy", "*").env_remove("ARMOR_RUN_DIR").env_remove("ARMOR_SHIM");
        command
    }

    /// `armor SUBCOMMAND --run-dir …` on a node.
    pub fn armor(&self, node: &str, subcommand: &[&str]) -> Command {
        let mut command = self.command(node, &[&[env!("CARGO_BIN_EXE_armor")], subcommand].concat());
        command.arg("--run-dir").arg(self.base(node));
        command
    }

    /// `armor launch --name NAME OPTIONS -- COMMAND` on a node; comes back when the server has bound.
    pub fn launch(&self, node: &str, name: &str, options: &[&str], command: &[&str]) {
        let output = self.armor(node, &["launch", "--name", name]).args(options).arg("--").args(command).output().unwrap();
        assert!(output.status.success(), "armor launch {name} on {node}: {}\n{}", text(&output), self.logs());
    }

    /// `armor run -- COMMAND` on a node.
    pub fn run(&self, node: &str, command: &[&str]) -> Command {
        let mut run = self.armor(node, &["run"]);
        run.arg("--").args(command);
        run
    }

    /// The status as the first node's FTM gathers it.
    pub fn status(&self) -> Value {
        let output = self.armor(&self.nodes[0].name, &["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("armor status --json: {error}: {}", text(&output)))
    }

    /// The state of an element of an ARMOR; null while it does not answer.
    pub fn element(&self, armor: &str, element: &str) -> Value {
        let status = self.status();
        let found = status["armors"].as_array().into_iter().flatten().find(|found| found["name"] == armor);
        found.map_or(Value::Null, |found| found["status"]["elements"][element]["state"].clone())
    }

    /// An application as an overseer of this name has it (`b`, or `b/web` for an Execution ARMOR).
    pub fn application(&self, armor: &str, name: &str) -> Option<Value> {
        let state = self.element(armor, "app_oversight");
        state["applications"].as_array()?.iter().find(|application| application["name"] == name).cloned()
    }

    /// Pid of an application's process while it runs there.
    pub fn pid(&self, armor: &str, name: &str) -> Option<i32> {
        let application = self.application(armor, name)?;
        (application["state"] == "running").then_some(application["pid"].as_i64()? as i32)
    }

    /// Events of this name so far, from the FTM.
    pub fn events(&self, what: &str) -> Vec<Value> {
        let output = self.armor(&self.nodes[0].name, &["events", "--json"]).output().unwrap();
        let events = String::from_utf8_lossy(&output.stdout).into_owned();
        events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|event| event["what"] == what).collect()
    }

    /// Process of an ARMOR, or of its vault with `vault.pid`; see [`Nodes::run_dir`].
    pub fn process(&self, node: &str, armor: &str, file: &str) -> i32 {
        let path = self.run_dir(node, armor).join(file);
        self.wait_for(&path.display().to_string(), || std::fs::read_to_string(&path).ok()?.trim().parse().ok())
    }

    /// SIGKILL to an ARMOR alone; comes back when its vault has started it again, with the new pid.
    pub fn kill_armor(&self, node: &str, armor: &str) -> i32 {
        let killed = self.process(node, armor, "pid");
        kill(killed);
        self.wait_for("the ARMOR's next life", || {
            let ready = std::fs::read_to_string(self.run_dir(node, armor).join("ready")).ok()?.trim().parse().ok()?;
            (ready != killed && lives(ready)).then_some(ready)
        })
    }

    /// Everything of a node dies at once: vaults, ARMORs, applications, clients. In a namespace its link goes first, since a dead machine says nothing; on loopback the
    /// kernel, which lives on, closes its sockets.
    pub fn kill_node(&self, name: &str) {
        if self.node(name).namespace.is_some() {
            self.cut(name);
        }
        // Stopped first, so that nobody starts anybody again.
        let mut stopped = BTreeSet::new();
        loop {
            let found: BTreeSet<i32> = self.processes(name).difference(&stopped).copied().collect();
            if found.is_empty() {
                break;
            }
            found.iter().for_each(|pid| signal(*pid, Signal::STOP));
            stopped.extend(found);
        }
        stopped.iter().for_each(|pid| signal(*pid, Signal::KILL));
        self.wait_for("the end of all processes of the node", || stopped.iter().all(|pid| !lives(*pid)).then_some(()));
    }

    /// A node that was killed is switched on again: its link and its daemon, and the FTM if it had that.
    pub fn revive(&self, name: &str) {
        if self.node(name).namespace.is_some() {
            self.mend(name);
        }
        self.start(name, &[]);
    }

    /// Living processes of a node: those in its namespace, or those below its vaults and what else names its run directory.
    pub fn processes(&self, name: &str) -> BTreeSet<i32> {
        let all: Vec<(i32, i32)> =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| parent_of(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect();
        if let Some(namespace) = &self.node(name).namespace {
            let inside = Namespace::inode(namespace.holder.id());
            let holder = namespace.holder.id().cast_signed();
            return all
                .iter()
                .map(|(pid, _)| *pid)
                .filter(|pid| *pid != holder && Namespace::inode(pid.cast_unsigned()) == inside)
                .collect();
        }
        let base = self.base(name);
        let mut found: BTreeSet<i32> = all.iter().map(|(pid, _)| *pid).filter(|pid| mentions(*pid, base.as_os_str())).collect();
        loop {
            let below: Vec<i32> =
                all.iter().filter(|(pid, parent)| found.contains(parent) && !found.contains(pid)).map(|(pid, _)| *pid).collect();
            if below.is_empty() {
                return found;
            }
            found.extend(below);
        }
    }

    fn namespace(&self, name: &str) -> &Namespace {
        self.node(name).namespace.as_ref().unwrap_or_else(|| panic!("the link of {name} can be cut with Placement::Namespaces only"))
    }

    /// Takes a node's cable out: nothing passes any more, and nobody is told.
    pub fn cut(&self, name: &str) {
        // At the bridge: the node's own interface keeps its addresses and routes.
        self.namespace(name);
        self.bridge.as_ref().unwrap().ip(&format!("link set port{} nomaster", self.index(name) + 1));
    }

    /// The node hears all others, and none of them hears it.
    pub fn mute(&self, name: &str) {
        for other in self.nodes.iter().filter(|other| other.name != name) {
            self.namespace(name).ip(&format!("neigh replace {} lladdr {NOWHERE} dev eth0 nud permanent", other.address));
        }
    }

    /// All others hear the node, and it hears none of them.
    pub fn deafen(&self, name: &str) {
        for other in self.nodes.iter().filter(|other| other.name != name) {
            self.namespace(&other.name).ip(&format!("neigh replace {} lladdr {NOWHERE} dev eth0 nud permanent", self.address(name)));
        }
    }

    /// Undoes a cut, and deafness and muteness.
    pub fn mend(&self, name: &str) {
        self.namespace(name);
        self.bridge.as_ref().unwrap().ip(&format!("link set port{} master br0", self.index(name) + 1));
        for other in self.nodes.iter().filter(|other| other.name != name) {
            for (at, of) in [(name, &*other.address), (&*other.name, self.address(name))] {
                // Nothing is there when it was only cut.
                let _ = self.namespace(at).command(&["ip", "neigh", "del", of, "dev", "eth0"]).output();
            }
        }
    }

    pub fn wait_for<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition() {
                return found;
            }
            assert!(Instant::now() < give_up, "waited {PATIENCE:?} for {what}\n{}", self.logs());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Waits until there are `count` events of this name; gives all of them.
    pub fn wait_for_events(&self, what: &str, count: usize) -> Vec<Value> {
        self.wait_for(&format!("{count} events {what}"), || Some(self.events(what)).filter(|events| events.len() >= count))
    }

    /// The ends of all logs, for a failing test.
    pub fn logs(&self) -> String {
        let of = |path: PathBuf| {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            format!("--- {}\n{}\n", path.display(), tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        let first = &self.nodes[0].name;
        let daemons = self.nodes.iter().map(|node| of(self.run_dir(&node.name, &node.name).join("armor.log")));
        let installed = self.nodes.iter().flat_map(|node| {
            let armors = std::fs::read_dir(self.run_dir(&node.name, &node.name).join("armors")).into_iter().flatten().flatten();
            armors.map(|armor| of(armor.path().join("armor.log")))
        });
        std::iter::once(of(self.run_dir(first, "ftm").join("armor.log"))).chain(daemons).chain(installed).collect()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // The FTM, on the first one, comes last.
        for node in self.nodes.iter().rev() {
            let _ = self.armor(&node.name, &["down"]).output();
        }
        // What did not end by itself, or nobody knew any more.
        for node in &self.nodes {
            self.processes(&node.name).into_iter().for_each(kill);
        }
    }
}

/// A process and its parent; `None` for a zombie.
fn parent_of(pid: i32) -> Option<(i32, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    Some((pid, fields.next()?.parse().ok()?))
}

/// Whether a path, or something below it, is in the arguments or in the environment of a process.
fn mentions(pid: i32, path: &OsStr) -> bool {
    let below = [path.as_bytes(), b"/"].concat();
    ["cmdline", "environ"].iter().any(|file| {
        let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.split(|byte| *byte == 0).any(|word| word == path.as_bytes() || word.windows(below.len()).any(|part| part == below))
    })
}
