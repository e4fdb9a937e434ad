//! A standby: its bind is held until it is needed, over as many deaths of the ARMOR as come.

use armor_proto::hookup::{ENV_INSTANCE, ENV_SERVICE, Request};

use crate::mock::MockArmor;
use crate::program::{Running, compiled, hooked};

/// How many binds were asked for.
fn binds(requests: &[Request]) -> usize {
    requests.iter().filter(|request| matches!(request, Request::Bind { .. })).count()
}

fn standby(armor: &MockArmor) -> Running {
    let mut command = hooked(armor, compiled("server"));
    command.arg("4").env(ENV_SERVICE, "echo").env(ENV_INSTANCE, "18446744073709551615");
    Running::start(command)
}

#[test]
fn a_held_bind_returns_when_it_is_answered_and_the_server_serves() {
    let armor = MockArmor::start();
    armor.hold_binds();
    let mut server = standby(&armor);
    armor.wait_for("bind", |requests| binds(requests) == 1);
    assert!(armor.services().is_empty());
    let requests = armor.requests();
    let Request::Bind { service, instance, .. } = &requests[0] else { panic!("{requests:?}") };
    assert_eq!((service.as_deref(), *instance), (Some("echo"), u64::MAX));
    armor.release_held();
    server.line("port");
    armor.wait_for("listen", |requests| requests.iter().any(|request| matches!(request, Request::Listen { .. })));
}

#[test]
fn a_held_bind_is_asked_for_again_after_more_deaths_than_another_request_survives() {
    let armor = MockArmor::start();
    armor.hold_binds();
    let mut server = standby(&armor);
    for death in 1..=60 {
        armor.wait_for("bind", |requests| binds(requests) == death);
        armor.lose_held();
    }
    armor.wait_for("the last bind", |requests| binds(requests) == 61);
    armor.release_held();
    server.line("port");
}

#[test]
fn a_held_standby_ends_on_a_signal() {
    let armor = MockArmor::start();
    armor.hold_binds();
    let server = standby(&armor);
    armor.wait_for("bind", |requests| binds(requests) == 1);
    server.terminate();
}

#[test]
fn a_child_with_a_cleaned_environment_belongs_to_its_parents_instance() {
    let armor = MockArmor::start();
    let mut command = hooked(&armor, "env");
    command.arg("-i").arg(compiled("untouched")).args(["binds", "4"]).env(ENV_SERVICE, "echo").env(ENV_INSTANCE, "42");
    Running::start(command).succeed();
    let requests = armor.requests();
    let known = |request: &Request| matches!(request, Request::Bind { instance: 42, service: Some(name), .. } if name == "echo");
    assert!(requests.iter().any(known), "{requests:?}");
}
