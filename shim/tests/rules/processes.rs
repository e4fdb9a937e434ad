//! Rule 5: fork, vfork, spawn, duplicates, threads. Rule 6: exec. Rule 8: descriptors.

use armor_proto::hookup::{ENV_SERVICE, Request};

use crate::FAMILIES;
use crate::mock::{Behaviour, MockArmor};
use crate::program::{Running, compiled, hooked, run, start};

fn for_both_families(program: &str, what: &str) {
    for family in FAMILIES {
        run(&MockArmor::start(), program, &[what, family]);
    }
}

#[test]
fn pre_forked_children_accept_from_their_parents_listener() {
    for_both_families("processes", "prefork");
}

#[test]
fn a_child_that_closes_its_parents_sockets_ends_nothing() {
    for_both_families("processes", "child");
}

#[test]
fn duplicates_made_before_the_swap_are_swapped_too() {
    for_both_families("processes", "duplicates");
}

#[test]
fn spawned_and_vforked_programs_inherit_connections() {
    for_both_families("processes", "spawn");
}

#[test]
fn threads_share_protected_sockets() {
    for_both_families("processes", "threads");
}

fn exec(ways: &[&str]) {
    for (family, way) in FAMILIES.into_iter().flat_map(|family| ways.iter().map(move |way| (family, way))) {
        let armor = MockArmor::start();
        let mut command = hooked(&armor, compiled("exec"));
        command.args([way, family]).env(ENV_SERVICE, "named");
        Running::start(command).succeed();
    }
}

#[test]
fn inherited_sockets_are_known_after_exec_with_an_empty_environment() {
    exec(&["execve", "null", "execvpe", "fexecve", "execle", "spawn", "spawnp"]);
}

#[test]
fn inherited_sockets_are_known_after_exec_with_a_cleared_environment() {
    exec(&["execv", "execvp", "execl", "execlp"]);
}

#[test]
fn preload_is_appended_to_and_a_large_environment_is_kept() {
    exec(&["appended", "many", "vfork", "kept"]);
}

#[test]
fn a_program_started_through_env_i_is_hooked_up() {
    let armor = MockArmor::start();
    let mut command = hooked(&armor, "env");
    command.arg("-i").arg(compiled("untouched")).args(["binds", "4"]);
    Running::start(command).succeed();
    assert!(armor.requests().iter().any(|request| matches!(request, Request::Listen { .. })));
}

#[test]
fn a_child_can_be_started_without_the_shim() {
    let armor = MockArmor::start();
    let mut command = hooked(&armor, "env");
    command.arg("ARMOR_SHIM=off").arg(compiled("untouched")).args(["native", "4"]);
    Running::start(command).succeed();
    assert!(armor.requests().is_empty());
}

#[test]
fn descriptor_numbers_are_as_without_a_shim() {
    for_both_families("descriptors", "numbers");
}

#[test]
fn a_request_under_way_takes_a_high_descriptor() {
    let armor = MockArmor::start();
    armor.next_connect(Behaviour::Pend);
    let program = start(&armor, "connecting", &["plain", "4"]);
    armor.wait_for("connect", |requests| requests.iter().any(|request| matches!(request, Request::Connect { .. })));
    let entries = std::fs::read_dir(format!("/proc/{}/fd", program.id())).unwrap().map(Result::unwrap);
    let sockets = entries.filter(|entry| entry.path().read_link().is_ok_and(|link| link.to_string_lossy().starts_with("socket:")));
    let mut sockets: Vec<i32> = sockets.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap()).collect();
    sockets.sort_unstable();
    // The listener, the socket that connects, the request.
    assert!(matches!(sockets[..], [.., listener, client, 512] if client == listener + 1), "{sockets:?}");
    armor.release();
    program.succeed();
}

#[test]
fn closed_standard_descriptors_stay_closed() {
    for_both_families("descriptors", "standard");
}

#[test]
fn close_range_and_closefrom_leave_the_shim_working() {
    for_both_families("descriptors", "ranges");
}

#[test]
fn a_low_descriptor_limit_is_enough() {
    for_both_families("descriptors", "limit");
}
