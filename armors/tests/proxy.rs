//! Proxy ARMORs (thesis §5.3): one on a mobile host, one at a gateway in front of a server that runs without ARMOR. The connection outlives the link between them
//! and both of their processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod environment;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use environment::{Environment, free_port, text};
use sha2::{Digest, Sha256};

/// A way to an ARMOR that can be cut: it is told to others in place of the address where the ARMOR listens.
#[derive(Clone)]
struct Way {
    address: String,
    cut: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Way {
    /// To the address that stands in a file, once it does.
    fn to(file: PathBuf) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let way = Way { address, cut: Arc::default(), refused: Arc::default(), streams: Arc::default() };
        let own = way.clone();
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                let to = std::fs::read_to_string(&file).ok().and_then(|address| TcpStream::connect(address.trim()).ok());
                match to {
                    Some(to) if !own.cut.load(Ordering::SeqCst) => own.join(&from, &to),
                    _ => drop(own.refused.fetch_add(1, Ordering::SeqCst)),
                }
            }
        });
        way
    }

    fn join(&self, one: &TcpStream, other: &TcpStream) {
        for (from, to) in [(one, other), (other, one)] {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            self.streams.lock().unwrap().push(from.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}

/// A program of the test's own, without ARMOR. It ends with it.
struct Plain(Child);

impl Plain {
    fn start(command: &[&str]) -> Plain {
        Plain(Command::new(command[0]).args(&command[1..]).process_group(0).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // A group of its own: the program may be started by a script of that name.
        let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// `armor start` of a composition in configs/, under the environment's FTM. `armor down` ends it.
fn start(environment: &Environment, composition: &str, name: &str, settings: &[String]) -> Way {
    let directory = environment.directory(name);
    let way = Way::to(directory.join("tcp.addr"));
    let ftm = std::fs::read_to_string(environment.directory("ftm").join("tcp.addr")).unwrap();
    let config = format!("{}/../configs/{composition}.toml", env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir_all(environment.directory("")).unwrap();
    let log = std::fs::File::create(environment.file(&format!("{name}.log"))).unwrap();
    let mut start = Command::new(env!("CARGO_BIN_EXE_armor"));
    start.args(["start", &config, "--name", name]).env("ARMOR_BASE_DIR", environment.directory(""));
    start.args(["--set", &format!("daemon_tcp_mgmt.ftm={}", ftm.trim())]);
    start.args(["--set", &format!("daemon_tcp_mgmt.advertise={}", way.address)]);
    start.args(settings.iter().flat_map(|setting| ["--set", setting]));
    let mut vault = start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).spawn().unwrap();
    std::thread::spawn(move || vault.wait());
    environment.wait_for(name, || directory.join("ready").exists().then_some(()));
    way
}

/// The gateway's Proxy ARMOR in front of a server, once the network knows of it.
fn gateway(environment: &Environment, port: u16) -> Way {
    let servers = format!("wired_servers.servers=[{{ address = \"127.0.0.1:{port}\", service = \"shop\" }}]");
    let way = start(environment, "proxy-gateway", "gateway1", &[servers]);
    environment.wait_for("the service", || {
        environment.armor(&["status"]).output().unwrap().stdout.windows(4).any(|at| at == b"shop").then_some(())
    });
    way
}

/// Ends of connections at the gateway.
fn ends(environment: &Environment) -> Vec<serde_json::Value> {
    let status = environment.status();
    let armors = status["armors"].as_array().cloned().unwrap_or_default();
    let of = |armor: &serde_json::Value| armor.pointer("/status/elements/wired_servers/state/connections")?.as_array().cloned();
    armors.iter().filter_map(of).flatten().collect()
}

fn logs(environment: &Environment) -> String {
    let events = environment.armor(&["events"]).output().unwrap();
    let log = |name: &str| std::fs::read_to_string(environment.file(&format!("{name}.log"))).unwrap_or_default();
    format!("{}\n--- gateway1\n{}\n--- laptop\n{}", String::from_utf8_lossy(&events.stdout), log("gateway1"), log("laptop"))
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at ^ at >> 9 ^ at >> 17).wrapping_mul(31) as u8).collect()
}

#[test]
fn a_download_from_a_server_without_armor_outlives_the_link_and_both_proxies() {
    let environment = Environment::up();
    let root = environment.file("www");
    std::fs::create_dir(&root).unwrap();
    let content = noise(32 << 20);
    std::fs::write(root.join("big.bin"), &content).unwrap();
    let port = free_port();
    let _server =
        Plain::start(&["python3", "-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--directory", root.to_str().unwrap()]);
    environment.wait_for("the server", || TcpStream::connect(("127.0.0.1", port)).ok());
    let ways = [gateway(&environment, port), start(&environment, "proxy-mobile", "laptop", &[])];
    let file = environment.file("received.bin");
    let mut curl = environment.armor(&["run", "--node", "laptop"]);
    curl.args(["--", "curl", "-sS", "--limit-rate", "8M", "-o", file.to_str().unwrap(), &format!("http://127.0.0.1:{port}/big.bin")]);
    let mut curl = curl.stderr(Stdio::piped()).spawn().unwrap();
    for part in 1..6 {
        let arrived = || std::fs::metadata(&file).ok().filter(|meta| meta.len() > part << 22);
        environment.wait_for("the download to go on", || arrived().map(|_| ()).or_else(|| curl.try_wait().unwrap().map(|_| ())));
        match part {
            1 => assert_eq!(ends(&environment).len(), 1, "it goes through the gateway"),
            2 => drop(environment.kill_armor("laptop")),
            3 => drop(environment.kill_armor("gateway1")),
            _ => {
                let refused = || ways.iter().map(|way| way.refused.load(Ordering::SeqCst)).sum::<usize>();
                let before = refused();
                ways.iter().for_each(Way::cut);
                environment.wait_for("several tries to link again", || (refused() >= before + 3).then_some(()));
                ways.iter().for_each(Way::mend);
            }
        }
    }
    let output = curl.wait_with_output().unwrap();
    assert!(output.status.success(), "curl: {}\n{}", text(&output), logs(&environment));
    assert!(std::fs::read(&file).unwrap() == content, "another stream\n{}", logs(&environment));
    environment.wait_for("nothing to be left", || ends(&environment).is_empty().then_some(()));
}

#[test]
fn a_client_and_a_server_without_armor_see_what_each_other_does() {
    let environment = Environment::up();
    let port = free_port();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/gateway_server.py");
    let mut server = Plain::start(&["python3", script, &port.to_string()]);
    let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines();
    environment.wait_for("the server", || TcpStream::connect(("127.0.0.1", port)).ok());
    let _way = gateway(&environment, port);
    let listen = free_port();
    let output = environment.armor(&["gateway", "--listen", &listen.to_string(), "--service", "shop", "--node", "node1"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let connect = |asks: &str| {
        let mut client = TcpStream::connect(("127.0.0.1", listen)).unwrap();
        client.write_all(asks.as_bytes()).unwrap();
        client
    };
    let line = |client: &TcpStream| {
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        line
    };
    // A half-close, and an answer behind it; the gateway dies in between.
    let told = noise(2 << 20);
    let mut client = connect("hash\n");
    client.write_all(&told[..1 << 20]).unwrap();
    environment.kill_armor("gateway1");
    client.write_all(&told[1 << 20..]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let digest: String = Sha256::digest(&told).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(line(&client), format!("{} {digest}\n", told.len()), "{}", logs(&environment));
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    // Resets, both ways, and a close.
    let error = connect("reset\n").read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let client = connect("watch\n");
    assert_eq!(line(&client), "watching\n");
    rustix::net::sockopt::set_socket_linger(client.as_fd(), Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(said.next().unwrap().unwrap(), "ended by ConnectionResetError");
    let client = connect("watch\n");
    assert_eq!(line(&client), "watching\n");
    drop(client);
    assert_eq!(said.next().unwrap().unwrap(), "closed after 0");
    // A server that has gone refuses, and a client that could not be refused any more is reset.
    let mut client = connect("pour 100000000\n");
    client.peek(&mut [0; 1]).unwrap();
    drop(server);
    let mut heard = Vec::new();
    let ended = client.read_to_end(&mut heard);
    assert!(heard.len() < 100_000_000, "it has ended: {ended:?}");
    drop(client);
    let error = connect("who\n").read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    environment.wait_for("nothing to be left", || (ends(&environment).is_empty() && environment.client_ends().is_empty()).then_some(()));
}
