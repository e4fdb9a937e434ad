//! Links with keys, with real processes: what is protected goes on over kills, and strangers, altered bytes and floods are refused, counted and told.
#![allow(clippy::unwrap_used, clippy::panic)]

mod environment;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use environment::echo::{echo_server, finishes_identical, verifier_with};
use environment::{Environment, text};
use serde_json::Value;

/// `armor SUBCOMMAND --keys DIR`.
fn armor(subcommand: &[&str], keys: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_armor"));
    command.args(subcommand).arg("--keys").arg(keys).stdin(Stdio::null());
    command
}

fn done(command: &mut Command) -> String {
    let output: Output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// An environment with keys, and where they are.
struct Protected {
    environment: Environment,
    keys: tempfile::TempDir,
}

impl Protected {
    fn up(nodes: &[&str]) -> Protected {
        let keys = tempfile::tempdir().unwrap();
        done(armor(&["keygen", "ftm"], keys.path()).args(nodes));
        let keys_option = keys.path().to_str().unwrap();
        let nodes = nodes.iter().flat_map(|node| ["--node", node]);
        let environment = Environment::up_with(&nodes.chain(["--keys", keys_option]).collect::<Vec<_>>());
        Protected { environment, keys }
    }

    /// The state of the links of an ARMOR.
    fn links(&self, armor: &str) -> Value {
        let status = self.environment.status();
        let found = status["armors"].as_array().into_iter().flatten().find(|found| found["name"] == armor);
        found.map_or(Value::Null, |found| found["status"]["elements"]["daemon_tcp_mgmt"]["state"].clone())
    }

    fn refused(&self, armor: &str, kind: &str) -> u64 {
        self.links(armor)["security"]["refused"][kind].as_u64().unwrap_or(0)
    }

    /// Waits until a refusal of this kind is counted at the FTM, and told with this reason.
    fn is_refused(&self, kind: &str, reason: &str) {
        self.environment.wait_for(kind, || (self.refused("ftm", kind) > 0).then_some(()));
        let told = || {
            let events = self.environment.events("link-refused");
            events.iter().any(|event| event["values"]["reason"].as_str().is_some_and(|said| said.contains(reason))).then_some(())
        };
        self.environment.wait_for(&format!("an event with {reason:?}"), told);
        let output = self.environment.armor(&["status"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains(kind), "{}", text(&output));
    }

    fn ftm_address(&self) -> String {
        std::fs::read_to_string(self.environment.directory("ftm").join("tcp.addr")).unwrap().trim().to_owned()
    }

    /// Registered daemons, the FTM beside them.
    fn daemons(&self) -> Vec<String> {
        let status = self.environment.status();
        let rows = status.pointer("/armors/0/status/elements/daemon_registry/state/daemons").and_then(Value::as_array).cloned();
        rows.into_iter().flatten().filter_map(|row| row["name"].as_str().map(str::to_owned)).collect()
    }

    fn is_linked(&self, armor: &str, peer: &str) -> bool {
        self.links(armor)["peers"].as_array().into_iter().flatten().any(|found| found["name"] == peer && found["linked"] == true)
    }
}

/// A daemon that wants to join; ends with the test.
struct Joining(std::process::Child);

impl Joining {
    fn start(protected: &Protected, name: &str, ftm: &str, protection: &[&str]) -> Joining {
        let directory = protected.environment.file(name);
        std::fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_armor"));
        command.args(["start", "daemon", "--no-vault", "--name", name, "--run-dir"]).arg(&directory);
        command.arg("--set").arg(format!("daemon_tcp_mgmt.ftm={ftm}"));
        command.args(protection.iter().flat_map(|setting| ["--set", setting]));
        command.env_remove("ARMOR_RUN_DIR").env_remove("ARMOR_SHIM").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Joining(command.spawn().unwrap())
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_connection_between_nodes_with_keys_goes_on_over_kills_of_server_daemons_and_ftm() {
    let protected = Protected::up(&["node1", "node2"]);
    let environment = &protected.environment;
    let (port, server) = echo_server(environment, &["--node", "node1"]);
    let mut client = verifier_with(environment, &["--node", "node2"], &port, &["10"]);
    for _ in 0..3 {
        environment.kill("echo");
        environment.kill_armor("node1");
        environment.kill_armor("node2");
        environment.kill_armor("ftm");
    }
    finishes_identical(environment, &mut client);
    assert_ne!(environment.pid("echo"), Some(server));
    for (armor, peer) in [("node1", "node2"), ("node2", "node1"), ("node1", "ftm")] {
        environment.wait_for("the link", || protected.is_linked(armor, peer).then_some(()));
    }
    for armor in ["ftm", "node1", "node2"] {
        let links = protected.links(armor);
        let peers = links["peers"].as_array().cloned().unwrap_or_default();
        assert!(peers.iter().all(|peer| (peer["linked"] == true) == (peer["keys"].as_u64() >= Some(1))), "{links}");
        assert_eq!(links["security"]["refusals"], 0, "{links}");
    }
}

#[test]
fn who_has_no_key_of_the_list_or_anothers_name_does_not_register() {
    let protected = Protected::up(&["node1"]);
    let ftm = protected.ftm_address();
    // It knows the network's list, and is not in it.
    let other = tempfile::tempdir().unwrap();
    done(&mut armor(&["keygen", "stranger"], other.path()));
    let list = std::fs::read_to_string(protected.keys.path().join("trusted")).unwrap();
    let mut add = armor(&["trust", "-"], other.path());
    let mut add = add.stdin(Stdio::piped()).spawn().unwrap();
    add.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    assert!(add.wait().unwrap().success());
    let keys = format!("daemon_tcp_mgmt.keys={}", other.path().display());
    let stranger = Joining::start(&protected, "stranger", &ftm, &[&keys]);
    protected.is_refused("unknown-key", "is not in the list of trusted nodes");

    // It has node1's key, and says to be another one.
    std::fs::copy(protected.keys.path().join("node1.key"), other.path().join("liar.key")).unwrap();
    let liar = Joining::start(&protected, "liar", &ftm, &[&keys]);
    protected.is_refused("wrong-name", "it says to be \"liar\", and its key is \"node1\"'s");

    // It has no keys at all.
    let plain = Joining::start(&protected, "plain", &ftm, &[]);
    protected.is_refused("plain", "it speaks without encryption");
    assert_eq!(protected.daemons(), ["ftm", "node1"]);
    drop((stranger, liar, plain));

    // Garbage.
    TcpStream::connect(&ftm).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    protected.is_refused("malformed", "which is no handshake");
}

#[test]
fn a_node_that_is_added_is_let_in_and_one_that_is_removed_loses_its_links() {
    let protected = Protected::up(&["node1"]);
    let environment = &protected.environment;
    let other = tempfile::tempdir().unwrap();
    let line = done(&mut armor(&["keygen", "late"], other.path()));
    let (name, key) = line.trim().split_once(' ').unwrap();
    for entry in done(&mut armor(&["trust", "--list"], protected.keys.path())).lines().skip(1) {
        done(armor(&["trust"], other.path()).args(entry.split_whitespace()));
    }
    let keys = format!("daemon_tcp_mgmt.keys={}", other.path().display());
    let _joining = Joining::start(&protected, "late", &protected.ftm_address(), &[&keys]);
    protected.is_refused("unknown-key", key);
    done(&mut armor(&["trust", name, key], protected.keys.path()));
    environment.wait_for("the node to register", || protected.daemons().contains(&"late".to_owned()).then_some(()));
    done(&mut armor(&["trust", "--remove", "late"], protected.keys.path()));
    protected.is_refused("removed", "late has been taken out of the list of trusted nodes");
    environment.wait_for("the node to be gone", || {
        environment.events("node-failed").iter().any(|event| event["values"]["node"] == "late").then_some(())
    });
    assert!(!protected.is_linked("ftm", "late"));
    assert!(protected.is_linked("ftm", "node1"), "the others' links are as they were");
}

/// A relay on the way to the FTM. `meddle` may change what the daemon says: it is given the number of the connection, the offset, and the bytes.
struct Between {
    address: String,
    /// What daemons have said, by connection.
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Between {
    fn new(to: String, meddle: impl Fn(usize, usize, &mut [u8]) + Send + Sync + 'static) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let between = Between { address: listener.local_addr().unwrap().to_string(), heard: Arc::default() };
        let (heard, meddle) = (Arc::clone(&between.heard), Arc::new(meddle));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&to) else { continue };
                let number = {
                    let mut heard = heard.lock().unwrap();
                    heard.push(Vec::new());
                    heard.len() - 1
                };
                let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut back_from, &mut back_to);
                    let _ = back_to.shutdown(Shutdown::Both);
                });
                let (heard, meddle) = (Arc::clone(&heard), Arc::clone(&meddle));
                std::thread::spawn(move || {
                    let (mut near, mut far) = (near, far);
                    let mut piece = [0; 65536];
                    let mut offset = 0;
                    while let Ok(got @ 1..) = near.read(&mut piece) {
                        heard.lock().unwrap()[number].extend_from_slice(&piece[..got]);
                        meddle(number, offset, &mut piece[..got]);
                        offset += got;
                        if far.write_all(&piece[..got]).is_err() {
                            break;
                        }
                    }
                    let _ = far.shutdown(Shutdown::Both);
                });
            }
        });
        between
    }
}

#[test]
fn whoever_sits_on_the_way_can_alter_and_repeat_and_is_noticed_each_time() {
    let protected = Protected::up(&["node1"]);
    let environment = &protected.environment;
    done(&mut armor(&["keygen", "far"], protected.keys.path()));
    let altered = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&altered);
    // The first connection's handshake, the second's first record, the third's later words; the fourth goes through.
    let places = [20usize, 260, 600];
    let between = Between::new(protected.ftm_address(), move |number, offset, bytes| {
        if let Some(place) = places.get(number)
            && (offset..offset + bytes.len()).contains(place)
        {
            bytes[place - offset] ^= 1;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let keys = format!("daemon_tcp_mgmt.keys={}", protected.keys.path().display());
    let _joining = Joining::start(&protected, "far", &between.address, &[&keys]);
    environment.wait_for("the node to come through at last", || protected.daemons().contains(&"far".to_owned()).then_some(()));
    environment.wait_for("all alterations", || (altered.load(Ordering::Relaxed) == places.len() as u64).then_some(()));
    environment.wait_for("what was altered to be refused", || {
        (protected.refused("ftm", "not-for-us") + protected.refused("ftm", "altered") >= places.len() as u64).then_some(())
    });
    protected.is_refused("altered", "does not verify");
    environment.wait_for("the link", || protected.is_linked("ftm", "far").then_some(()));

    // All that a daemon has ever said on a link that worked, said again.
    let before = protected.refused("ftm", "altered");
    let said = between.heard.lock().unwrap().iter().max_by_key(|said| said.len()).unwrap().clone();
    assert!(said.len() > 600 && !said.windows(3).any(|part| part == b"far"), "{} bytes", said.len());
    let mut again = TcpStream::connect(protected.ftm_address()).unwrap();
    again.write_all(&said).unwrap();
    environment.wait_for("it to be refused", || (protected.refused("ftm", "altered") > before).then_some(()));
    let mut answer = Vec::new();
    let _ = again.read_to_end(&mut answer);
    assert!(answer.len() < 200, "an answer to the handshake at most, but {} bytes", answer.len());
}

#[test]
fn a_flood_of_connections_that_say_nothing_is_bounded_and_a_trusted_node_comes_through() {
    const FLOOD: usize = 1500;
    let protected = Protected::up(&["node1"]);
    let environment = &protected.environment;
    done(&mut armor(&["keygen", "late"], protected.keys.path()));
    let ftm = protected.ftm_address();
    let mut flood: Vec<TcpStream> = (0..FLOOD / 2).map(|_| TcpStream::connect(&ftm).unwrap()).collect();
    let keys = format!("daemon_tcp_mgmt.keys={}", protected.keys.path().display());
    let _joining = Joining::start(&protected, "late", &ftm, &[&keys]);
    // Half a handshake each.
    flood.extend((0..FLOOD / 2).map(|_| {
        let mut stream = TcpStream::connect(&ftm).unwrap();
        let _ = stream.write_all(b"AN\x01\x70\x00half");
        stream
    }));
    environment.wait_for("the node to register", || protected.daemons().contains(&"late".to_owned()).then_some(()));
    assert!(protected.links("ftm")["greetings"].as_u64() <= Some(256));
    let evicted = (FLOOD - 256) as u64;
    environment.wait_for("the flood to be refused", || {
        (protected.refused("ftm", "crowded") + protected.refused("ftm", "late") >= evicted).then_some(())
    });
    let events = environment.events("link-refused");
    assert!(events.len() < FLOOD / 4, "{} events", events.len());
    assert!(protected.is_linked("ftm", "node1"));
}

#[test]
fn keys_and_lists_are_checked_and_never_overwritten() {
    let keys = tempfile::tempdir().unwrap();
    let path = keys.path();
    let line = done(&mut armor(&["keygen", "node1"], path));
    let key = line.trim().split_once(' ').unwrap().1.to_owned();
    let private = std::fs::read_to_string(path.join("node1.key")).unwrap();
    let fails = |subcommand: &[&str], expected: &str| {
        let output = armor(subcommand, path).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(expected), "{subcommand:?}: {}", text(&output));
    };
    fails(&["keygen", "node1"], "armor trust --remove node1");
    fails(&["trust", "other", &key], "this key is node1's");
    fails(&["trust", "other", &key[..key.len() - 1]], "it is no key");
    fails(&["trust", "a/b", &key], "is no name of a node");
    fails(&["trust", "--remove", "nobody"], "nobody is not in");
    fails(&["trust", "other"], "give a name and its key");
    done(&mut armor(&["trust", "--remove", "node1"], path));
    fails(&["keygen", "node1"], "is there already");
    assert_eq!(std::fs::read_to_string(path.join("node1.key")).unwrap(), private);
    done(&mut armor(&["trust", "node1", &key], path));
    assert!(done(&mut armor(&["trust", "--list"], path)).contains(&key));
}

#[test]
fn links_beyond_this_machine_without_keys_are_refused_unless_it_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let composition = directory.path().join("daemon.toml");
    let check = |address: &str, more: &str| {
        let element = format!("name = \"daemon_tcp_mgmt\"\nlisten = \"127.0.0.1:0\"\nftm = \"{address}:7117\"\n{more}\n");
        std::fs::write(&composition, format!("[[element]]\nname = \"reliable_messaging\"\n[[element]]\n{element}")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_armor")).arg("check").arg(&composition).output().unwrap()
    };
    let refused = check("192.0.2.1", "");
    assert!(!refused.status.success() && text(&refused).contains("is beyond this machine"), "{}", text(&refused));
    assert!(check("192.0.2.1", "insecure = true").status.success());
    assert!(check("192.0.2.1", "keys = \"/etc/armor/keys\"").status.success());
    assert!(check("localhost", "").status.success());
    assert!(!check("192.0.2.1", "keys = \"/etc/armor/keys\"\ninsecure = true").status.success());
    // At the start too, before anything runs.
    let mut up = armor(&["up", "--listen", "192.0.2.1:0"], directory.path());
    let output = up.arg("--run-dir").arg(directory.path().join("run")).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("armor keygen ftm"), "{}", text(&output));
}
