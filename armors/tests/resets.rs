//! How a reset shows: the same program against a TCP server that resets it, and against a protected server that is given up.
#![allow(clippy::unwrap_used, clippy::panic)]

mod environment;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use environment::{Beside, Environment, compile, free_port};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

const WAYS: [&str; 9] = ["blocked", "kernel", "read", "stdio", "option", "poll", "epoll", "write", "send"];

/// What is left of a watcher's output.
fn rest(mut watcher: Beside) -> String {
    std::iter::from_fn(|| watcher.line()).collect::<Vec<_>>().join("|")
}

/// What the program sees when a TCP connection is reset while it has a line to read.
fn as_tcp_shows_it(program: &str, way: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(program);
    command.arg(listener.local_addr().unwrap().port().to_string()).arg(way);
    let mut watcher = Beside::start(command);
    let (mut socket, _) = listener.accept().unwrap();
    let mut line = [0; 11];
    socket.read_exact(&mut line).unwrap();
    socket.write_all(&line).unwrap();
    assert_eq!(watcher.line().as_deref(), Some("connected"));
    // TCP's reset.
    rustix::net::sockopt::set_socket_linger(socket.as_fd(), Some(Duration::ZERO)).unwrap();
    drop(socket);
    rest(watcher)
}

/// The kernel lets this process borrow descriptors of one that is not its child, as the daemon does with its clients'.
fn may_borrow_descriptors() -> bool {
    let orphan = Command::new("sh").args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]).output().unwrap();
    let orphan = Pid::from_raw(String::from_utf8(orphan.stdout).unwrap().trim().parse().unwrap()).unwrap();
    let borrowed = pidfd_getfd(pidfd_open(orphan, PidfdFlags::empty()).unwrap(), 0, PidfdGetfdFlags::empty());
    kill_process(orphan, Signal::KILL).unwrap();
    borrowed.is_ok()
}

#[test]
fn a_reset_shows_as_on_tcp() {
    let environment = Environment::up();
    let port = free_port().to_string();
    let server = compile(&environment, "epoll_echo_server");
    let program = compile(&environment, "reset_watcher");
    environment.launch("echo", &["--restart-limit", "0"], &[&server, &port]);
    let mut watchers: Vec<Beside> = WAYS.iter().map(|way| Beside::start(environment.run(&[&program, &port, way]))).collect();
    for watcher in &mut watchers {
        assert_eq!(watcher.line().as_deref(), Some("connected"));
    }
    let kernel_shows_it = may_borrow_descriptors();
    environment::kill(environment.pid("echo").unwrap());
    for (watcher, way) in watchers.into_iter().zip(WAYS) {
        let tcp = as_tcp_shows_it(&program, way);
        let expected = match way {
            // A unix socket says EPIPE, and signals it, where TCP says ECONNRESET first. What waits to be asked for is kept.
            "write" => "EPIPE EPIPE signals 2",
            "send" => "EPIPE EPIPE signals 0, then ECONNRESET",
            _ => &tcp,
        };
        // Where the kernel does not let the ARMOR reach the client's end, the hooks show the reset in those calls that they know.
        let expected = match way {
            _ if kernel_shows_it => expected,
            "blocked" => "0",
            "kernel" => "11 0 0",
            "stdio" => "last words|nothing no error 0",
            "option" => "0 0 11 0",
            "poll" | "epoll" => "0x2015",
            "send" => "EPIPE EPIPE signals 0, then 0",
            _ => expected,
        };
        assert_eq!(rest(watcher), expected, "{way}; TCP: {tcp}\n{}", environment.logs());
    }
}
