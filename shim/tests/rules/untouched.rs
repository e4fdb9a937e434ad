//! Rule 11: what the shim cannot or need not serve is left to the kernel.

use crate::FAMILIES;
use crate::binding::echo_server;
use crate::mock::{MockArmor, free_port};
use crate::program::{Running, compile, compiled, hooked, run};

#[test]
fn datagrams_are_untouched() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        run(&armor, "untouched", &["datagrams", family]);
        assert!(armor.requests().is_empty());
    }
}

#[test]
fn other_unix_sockets_are_untouched() {
    let armor = MockArmor::start();
    run(&armor, "untouched", &["unix", "4"]);
    assert!(armor.requests().is_empty());
}

#[test]
fn an_unregistered_server_is_reached_through_the_kernel() {
    for family in FAMILIES {
        run(&MockArmor::start(), "untouched", &["another", family, &echo_server(family).to_string()]);
    }
}

#[test]
fn errors_of_connect_are_the_kernels() {
    for family in FAMILIES {
        run(&MockArmor::start(), "untouched", &["nobody", family, &free_port().to_string()]);
    }
}

#[test]
fn without_a_run_directory_everything_is_native() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        let mut command = hooked(&armor, compiled("untouched"));
        command.args(["native", family]).env_remove("ARMOR_RUN_DIR");
        Running::start(command).succeed();
        assert!(armor.requests().is_empty());
    }
}

#[test]
fn switched_off_everything_is_native() {
    let armor = MockArmor::start();
    let mut command = hooked(&armor, compiled("untouched"));
    command.args(["native", "4"]).env("ARMOR_SHIM", "off");
    Running::start(command).succeed();
    assert!(armor.requests().is_empty());
}

#[test]
fn a_static_program_is_untouched() {
    let armor = MockArmor::start();
    let mut command = hooked(&armor, compile("untouched", &["-static"]));
    command.args(["native", "4"]);
    Running::start(command).succeed();
    assert!(armor.requests().is_empty());
}

#[test]
fn without_an_armor_bind_fails_and_says_why() {
    let armor = MockArmor::absent();
    let mut command = hooked(&armor, compiled("untouched"));
    command.args(["absent", "4"]);
    let mut program = Running::start(command);
    assert!(program.status().success());
    let errors = program.errors();
    assert!(errors.starts_with("armor: cannot bind 127.0.0.1:0: no ARMOR answers at /"), "{errors}");
    assert_eq!(errors.lines().count(), 1);
}

#[test]
fn without_an_armor_connect_goes_to_the_kernel() {
    for family in FAMILIES {
        run(&MockArmor::absent(), "untouched", &["another", family, &echo_server(family).to_string()]);
    }
}

#[test]
fn who_is_turned_away_is_told_once_and_connects_through_the_kernel() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.turn_away();
        let mut command = hooked(&armor, compiled("untouched"));
        command.args(["another", family, &echo_server(family).to_string()]);
        let mut program = Running::start(command);
        assert!(program.status().success());
        // One line for each of its connects.
        assert_eq!(program.errors(), "armor: the ARMOR refuses: not you\n".repeat(2));
    }
}

#[test]
fn who_is_turned_away_may_not_serve() {
    for family in FAMILIES {
        let armor = MockArmor::start();
        armor.turn_away();
        let mut command = hooked(&armor, compiled("untouched"));
        command.args(["refused", family]);
        let mut program = Running::start(command);
        assert!(program.status().success());
        assert_eq!(program.errors(), "armor: the ARMOR refuses: not you\n");
    }
}
