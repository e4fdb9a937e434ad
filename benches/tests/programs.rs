//! The programs of the bench as they are run: a client, two proxies, a server.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use armor_benches::wire::Wish;
use serde_json::Value;

/// Ends with this value.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Starts a program that listens, and waits until it does.
fn listening(program: &str, address: SocketAddr, to: Option<SocketAddr>) -> Program {
    let mut command = Command::new(program);
    command.args(["--listen", &address.to_string()]).args(to.iter().flat_map(|to| ["--to".to_owned(), to.to_string()]));
    let mut program = Program(command.stdin(Stdio::null()).spawn().unwrap());
    while TcpStream::connect(address).is_err() {
        assert!(program.0.try_wait().unwrap().is_none(), "{command:?} has ended");
        std::thread::yield_now();
    }
    program
}

/// A server behind two proxies.
struct Chain {
    _programs: [Program; 3],
    address: SocketAddr,
}

fn chain() -> Chain {
    let [server, second, address] = [(), (), ()].map(|()| free_address());
    let proxy = env!("CARGO_BIN_EXE_bench-proxy");
    let first = listening(env!("CARGO_BIN_EXE_bench-server"), server, None);
    let programs = [first, listening(proxy, second, Some(server)), listening(proxy, address, Some(second))];
    Chain { _programs: programs, address }
}

struct Client {
    program: Program,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Client {
    fn of(server: SocketAddr) -> Client {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench-client"));
        let mut child = command.arg(server.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Client { program: Program(child), stdin, stdout }
    }

    fn ask(&mut self, order: &str) -> Value {
        writeln!(self.stdin, "{order}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{order}: {line:?}: {error}"))
    }
}

#[test]
fn every_order_is_obeyed_through_two_proxies() {
    let chain = chain();
    let mut client = Client::of(chain.address);
    for bytes in [1, 32, 65536, 1 << 20] {
        let answer = client.ask(&format!("round-trips {bytes} 10 60000"));
        assert!(answer["count"] == 10 && answer["exchanges"] == 11 && answer["p50"].as_f64().unwrap() > 0.0, "{answer}");
    }
    let calls = client.ask("connects 5");
    assert!(calls["connect"]["count"] == 5 && calls["close"]["count"] == 5, "{calls}");
    assert_eq!(client.ask("touches 5")["count"], 5);
    assert!(client.ask("rate 2 20")["connections"].as_u64().unwrap() > 0);
    assert_eq!(client.ask("server-calls 5")["bind"]["count"], 5);
    // More than all sockets on the way hold, so that proxies have to wait.
    for order in ["download 67108864", "upload 67108864"] {
        let answer = client.ask(order);
        assert!(answer["bytes"] == 67_108_864 && answer["seconds"].as_f64().unwrap() > 0.0, "{answer}");
    }
    assert!(client.ask("load 4 512 20")["requests"].as_u64().unwrap() > 0);
    for count in [20, 50, 3, 0] {
        assert_eq!(client.ask(&format!("hold {count}"))["open"], count);
    }
}

#[test]
fn what_cannot_be_done_is_told_and_the_next_order_is_obeyed() {
    let address = free_address();
    let mut client = Client::of(address);
    for (order, expected) in [
        ("dance", "dance: no such order"),
        ("touches many", "touches many: expected numbers"),
        ("round-trips 32", "round-trips 32: no such order"),
        ("touches 99999999999", "99999999999 is too much"),
        ("server nowhere", "server nowhere: expected an address"),
        ("touches 1", "Connection refused"),
    ] {
        let answer = client.ask(order);
        assert!(answer["error"].as_str().unwrap().contains(expected), "{order}: {answer}");
    }
    let _server = listening(env!("CARGO_BIN_EXE_bench-server"), address, None);
    assert_eq!(client.ask("touches 1")["count"], 1);
    drop(client.stdin);
    assert!(client.program.0.wait().unwrap().success(), "it ends with its stdin");
}

#[test]
fn a_connection_that_asks_for_nothing_known_is_closed_alone() {
    let chain = chain();
    let mut other = TcpStream::connect(chain.address).unwrap();
    other.write_all(&Wish::Echo(4).encode()).unwrap();
    let mut stranger = TcpStream::connect(chain.address).unwrap();
    stranger.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    // Closed with bytes unread it may be reset.
    assert!(stranger.read(&mut [0]).map_or(true, |got| got == 0));
    other.write_all(b"abcd").unwrap();
    let mut answer = [0; 4];
    other.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"abcd");
    // An end of stream passes the proxies.
    other.shutdown(Shutdown::Write).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
}
