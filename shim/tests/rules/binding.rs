//! Rule 9: bind, listen and connect from a bound socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use armor_proto::hookup::{ENV_SERVICE, Request};

use crate::FAMILIES;
use crate::mock::{MockArmor, free_port};
use crate::program::{Running, compiled, hooked, run, start};

fn for_both_families(what: &str) {
    for family in FAMILIES {
        run(&MockArmor::start(), "binding", &[what, family]);
    }
}

#[test]
fn bind_errors_are_the_kernels() {
    for_both_families("twice");
}

#[test]
fn port_zero_is_resolved_at_bind() {
    for_both_families("zero");
}

#[test]
fn listen_without_bind_registers_a_port_of_the_kernels_choice() {
    for_both_families("unbound");
}

#[test]
fn connecting_to_ones_own_listener_works() {
    for_both_families("own");
}

/// The port that a client binds: 0, which the kernel resolves, and one of its own choice.
fn for_any_port(what: &str, more: impl Fn(&str) -> Option<String>, armor: impl Fn() -> MockArmor) {
    for (family, fixed) in FAMILIES.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let port = if fixed { free_port().to_string() } else { "0".to_owned() };
        let more = more(family);
        let arguments: Vec<&str> = [what, family, &port].into_iter().chain(more.as_deref()).collect();
        let armor = armor();
        run(&armor, "binding", &arguments);
        let bound = |request: &&Request| matches!(request, Request::Bind { .. });
        assert!(armor.requests().iter().filter(bound).count() > 0);
    }
}

#[test]
fn a_bound_client_keeps_its_port_at_a_service() {
    for_any_port("client", |_| None, MockArmor::start);
}

#[test]
fn a_bound_client_keeps_its_port_when_its_socket_is_not_given_back() {
    let forgetful = || {
        let armor = MockArmor::start();
        armor.keep_holders();
        armor
    };
    for_any_port("client", |_| Some("forgotten".to_owned()), forgetful);
}

#[test]
fn a_bound_client_keeps_its_port_at_a_server_that_is_no_service() {
    for_any_port("kernel", |family| Some(port_teller(family).to_string()), MockArmor::start);
}

#[test]
fn what_is_bound_and_closed_leaves_nothing_behind() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        run(&armor, "binding", &["closed", family, &free_port().to_string()]);
        armor.wait_for("close", |requests| requests.iter().any(|request| matches!(request, Request::Closed { .. })));
        assert!(armor.services().is_empty());
        assert!(!armor.requests().iter().any(|request| matches!(request, Request::Listen { .. })));
    }
}

#[test]
fn a_socket_that_was_bound_before_a_fork_is_one_listener_in_all_processes() {
    for_both_families("shared");
}

#[test]
fn an_address_without_a_port_is_bound_by_the_kernel_and_connects() {
    for_both_families("no_port");
}

#[test]
fn a_client_may_share_the_port_of_a_listener() {
    for_both_families("same_port");
}

#[test]
fn ports_can_be_shared_with_reuseport() {
    for_both_families("reuse");
}

/// A server outside of every ARMOR that echoes one connection.
pub(crate) fn echo_server(family: &str) -> u16 {
    let listener = TcpListener::bind(if family == "4" { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                stream.write_all(&byte).unwrap();
            }
        }
    });
    port
}

/// A server outside of every ARMOR that tells each client which port it sees.
fn port_teller(family: &str) -> u16 {
    let listener = TcpListener::bind(if family == "4" { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            stream.write_all(&peer.port().to_be_bytes()).unwrap();
        }
    });
    port
}

#[test]
fn registration_tells_what_the_armor_needs_to_know() {
    let armor = MockArmor::start();
    let mut command = hooked(&armor, compiled("server"));
    command.arg("6").env(ENV_SERVICE, "echo");
    let mut server = Running::start(command);
    let port: u16 = server.line("port").parse().unwrap();
    armor.wait_for("listening", |requests| requests.len() == 2);
    let requests = armor.requests();
    let Request::Bind { addr, service, pid, reuse_port, .. } = &requests[0] else { panic!("{requests:?}") };
    assert_eq!(SocketAddr::from(*addr), "[::1]:0".parse().unwrap());
    assert_eq!((service.as_deref(), *pid, *reuse_port), (Some("echo"), server.id(), false));
    let Request::Listen { backlog: 64, pid, .. } = requests[1] else { panic!("{requests:?}") };
    assert_eq!(pid, server.id());
    assert_eq!(armor.services(), [SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port))]);
}

#[test]
fn bind_waits_for_an_armor_on_its_way_up() {
    let mut armor = MockArmor::absent();
    let program = start(&armor, "untouched", &["binds", "4"]);
    thread::sleep(std::time::Duration::from_millis(200));
    armor.open_sockets();
    program.succeed();
}

#[test]
fn a_run_directory_with_a_long_path_is_reached() {
    let base = tempfile::tempdir().unwrap();
    let long = base.path().join("d".repeat(120));
    std::fs::create_dir(&long).unwrap();
    let armor = MockArmor::start_in(tempfile::tempdir_in(long).unwrap());
    run(&armor, "binding", &["own", "4"]);
}
