//! Processes of other users: refused where applications hook up and where ARMORs attach, unless the composition lets them in.
//! A run directory is closed to them in any case; here it is opened, so that the ARMOR itself has to say no.
#![allow(clippy::unwrap_used, clippy::panic)]

mod environment;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use environment::{Environment, compile, free_port, text};
use rustix::process::Uid;
use serde_json::Value;

const NOBODY: u32 = 65534;
const SOMEBODY_ELSE: u32 = 12345;

/// Only root can be other users. Whoever is not becomes root of a user namespace that has some, and runs the test there.
fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", "--map-auto"]).arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let status = inside.status().unwrap();
    assert!(status.success(), "{test} needs root, or sub-uids of this user in /etc/subuid and the package uidmap: {status}");
    false
}

fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A node whose run directory everybody can reach.
struct OpenNode<'a> {
    environment: &'a Environment,
    directory: PathBuf,
}

impl<'a> OpenNode<'a> {
    fn new(environment: &'a Environment, name: &str) -> Self {
        let run = environment.file("run");
        let directory = run.join(name);
        for closed in [environment.path(), &run, &directory] {
            open(closed, 0o711);
        }
        for socket in ["app_comm_client.sock", "app_comm_server.sock", "armor.sock"] {
            open(&directory.join(socket), 0o666);
        }
        open(&run.join("libarmor.so"), 0o755);
        OpenNode { environment, directory }
    }

    /// A program of another user that is hooked up to this node's daemon.
    fn program(&self, user: u32, command: &[&str]) -> Command {
        let shim = self.environment.file("run/libarmor.so");
        let mut program = Command::new(command[0]);
        program.args(&command[1..]).uid(user).gid(user).stdin(Stdio::null());
        program.env("ARMOR_RUN_DIR", &self.directory).env("ARMOR_SHIM_PATH", &shim).env("LD_PRELOAD", shim);
        program
    }

    /// Attaches to the gateway as another user: whether it lets him stay.
    fn lets_attach(&self, user: u32) -> bool {
        let path = self.directory.join("armor.sock");
        let attached = std::thread::spawn(move || {
            // Of this thread alone, which is what the kernel reports of the peer.
            let user = Uid::from_raw(user);
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            let mut socket = UnixStream::connect(path).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            socket.read(&mut [0]).map_or(true, |read| read > 0)
        });
        attached.join().unwrap()
    }

    /// The events of this name that tell of a user.
    fn told(&self, what: &str, user: u32) -> Vec<Value> {
        let of_user = |event: &Value| event["values"]["reason"].as_str().is_some_and(|reason| reason.starts_with(&format!("user {user} ")));
        self.environment.wait_for(what, || {
            Some(self.environment.events(what).into_iter().filter(of_user).collect()).filter(|told: &Vec<_>| !told.is_empty())
        })
    }
}

/// A program that runs beside the test.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_of_other_users_are_refused_with_an_event_and_the_rest_goes_on() {
    if !is_root("processes_of_other_users_are_refused_with_an_event_and_the_rest_goes_on") {
        return;
    }
    let environment = Environment::up();
    let port = free_port().to_string();
    let (server, client) = (compile(&environment, "epoll_echo_server"), compile(&environment, "echo_client"));
    environment.launch("echo", &[], &[&server, &port]);
    let node = OpenNode::new(&environment, "node1");

    let output = node.program(NOBODY, &[&client, &port, "3", "1"]).output().unwrap();
    let refusal = "armor: the ARMOR refuses: user 65534 may not hook up here\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), refusal);
    // The kernel is asked, and there nobody listens: the port is only kept.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "error: Connection refused\n");
    let output = node.program(NOBODY, &[&server, &free_port().to_string()]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("{refusal}bind: Permission denied\n"));
    assert!(!node.lets_attach(NOBODY));
    assert_eq!(node.told("hook-up-refused", NOBODY).len(), 2);
    assert_eq!(node.told("attach-refused", NOBODY).len(), 1);

    let output = environment.output(&[&client, &port, "3", "1"]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn users_that_the_composition_names_are_let_in_and_nobody_else() {
    if !is_root("users_that_the_composition_names_are_let_in_and_nobody_else") {
        return;
    }
    let environment = Environment::up();
    let ftm = std::fs::read_to_string(environment.file("run/ftm/tcp.addr")).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_armor"));
    daemon.args(["start", "daemon", "--name", "node2", "--run-dir"]).arg(environment.file("run/node2"));
    for setting in [
        &format!("daemon_tcp_mgmt.ftm={}", ftm.trim()),
        "daemon_tcp_mgmt.listen=127.0.0.1:0",
        "APP_COMM_CLIENT.allowed_uids=[65534]",
        "APP_COMM_SERVER.allowed_uids=[65534]",
    ] {
        daemon.args(["--set", setting]);
    }
    let log = std::fs::File::create(environment.file("node2.log")).unwrap();
    let _daemon = Beside(daemon.stdin(Stdio::null()).stderr(log).spawn().unwrap());
    environment.wait_for("node2", || environment.file("run/node2/ready").exists().then_some(()));
    // The library of this node, at the place of the other one's.
    let node = OpenNode::new(&environment, "node2");

    let (server, client) = (compile(&environment, "epoll_echo_server"), compile(&environment, "echo_client"));
    let (roots, nobodys) = (free_port().to_string(), free_port().to_string());
    environment.launch("echo", &[], &[&server, &roots]);
    let _server = Beside(node.program(NOBODY, &[&server, &nobodys]).spawn().unwrap());
    // Both ways, and by a client of each.
    for port in [&roots, &nobodys] {
        environment.wait_for("the clients", || {
            let own = environment.armor(&["run"]).args(["--node", "node1", "--", &client, port, "20", "1"]).output().unwrap();
            let foreign = node.program(NOBODY, &[&client, port, "20", "2"]).output().unwrap();
            (own.status.success() && foreign.status.success()).then_some(())
        });
    }

    let mut other = node.program(SOMEBODY_ELSE, &[&client, &roots, "3", "1"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(other.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(!other.wait().unwrap().success());
    assert_eq!(said, "armor: the ARMOR refuses: user 12345 may not hook up here\n");
    assert!(!node.lets_attach(NOBODY), "who may hook up may not act as an ARMOR");
    assert_eq!(node.told("hook-up-refused", SOMEBODY_ELSE).len(), 1);
}
