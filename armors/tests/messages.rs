//! What the program says when something is wrong: which thing, where, what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn armor(base: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_armor"))
        .args(arguments)
        .env("ARMOR_BASE_DIR", base)
        .env_remove("ARMOR_RUN_DIR")
        .current_dir("/")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn file(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn an_unknown_element_is_named_with_file_line_column_and_the_nearest_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "own.toml", "[armor]\nkind = \"own\"\n\n[[element]]\nname = \"heartbeat_respond\"\n");
    let output = armor(directory.path(), &["check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "{}:5:8: unknown element \"heartbeat_respond\". Did you mean \"heartbeat_responder\"? `armor elements` lists all of them\n",
        path.display()
    );
    assert_eq!(said(&output), expected);
    let output = armor(directory.path(), &["start", path.to_str().unwrap()]);
    assert_eq!(said(&output), format!("armor: {expected}"));
}

#[test]
fn an_unknown_key_of_an_element_is_named_with_file_line_column() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "own.toml", "[[element]]\nname = \"heartbeat_responder\"\nperiod = 3\n");
    let output = armor(directory.path(), &["check", path.to_str().unwrap()]);
    assert_eq!(said(&output), format!("{}:3:1: unknown field `period`, there are no fields\n", path.display()));
}

#[test]
fn an_element_that_sends_acknowledged_messages_is_refused_without_one_that_keeps_them() {
    let directory = tempfile::tempdir().unwrap();
    let text = "[[element]]\nname = \"heartbeat_responder\"\n\n[[element]]\nname = \"daemon_gateway\"\n";
    let path = file(&directory, "own.toml", text);
    let output = armor(directory.path(), &["check", path.to_str().unwrap()]);
    let expected = format!(
        "{}:5:8: daemon_gateway sends acknowledged messages, and no element here keeps them; add [[element]] name = \"reliable_messaging\"\n",
        path.display()
    );
    assert_eq!((output.status.code(), said(&output)), (Some(1), expected));
    let path = file(&directory, "own.toml", &format!("{text}\n[[element]]\nname = \"reliable_messaging\"\n"));
    assert!(armor(directory.path(), &["check", path.to_str().unwrap()]).status.success());
}

#[test]
fn an_element_in_a_thread_of_its_own_is_checked_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let path = file(&directory, "own.toml", text);
        said(&armor(directory.path(), &["check", path.to_str().unwrap()])).replace(&format!("{}:", path.display()), "")
    };
    assert_eq!(check("[[element]]\nname = \"heartbeat_responder\"\narbiter = true\n"), "");
    let ill_typed = check("[[element]]\nname = \"heartbeat_responder\"\narbiter = \"yes\"\n");
    assert_eq!(ill_typed, "3:11: arbiter is true (the element has a thread of its own) or false\n");
    let refused = check("[[element]]\nname = \"armor_gateway\"\ndaemon = \"/x\"\narbiter = true\n");
    let expected = "4:11: armor_gateway takes messages over (MSG_ROUTE), which it can in the main thread only; remove arbiter\n";
    assert_eq!(refused, expected);
}

#[test]
fn a_service_file_is_checked_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "web.toml", "name = \"web\"\ncommand = [\"true\"]\npolicy = \"sometimes\"\n");
    let output = armor(directory.path(), &["check", path.to_str().unwrap()]);
    let expected = format!(
        "{}:3:10: unknown variant `sometimes`, expected one of `reconnect`, `request`, `http`, `resp`, `turn`, `stream`\n",
        path.display()
    );
    assert_eq!(said(&output), expected);

    let path = file(&directory, "web.toml", "command = []\nname = \"web\"\n");
    let output = armor(directory.path(), &["check", path.to_str().unwrap()]);
    let expected = format!(
        "{}:1:1: command is empty; it lists the program and its arguments, such as [\"python3\", \"-m\", \"http.server\"]\n",
        path.display()
    );
    assert_eq!(said(&output), expected);

    let path = file(&directory, "web.toml", "name = \"web\"\ncommand = [\"true\"]\npolicy = \"stream\"\nsettled_ms = 500\n");
    let output = armor(directory.path(), &["check", path.to_str().unwrap()]);
    let expected = format!(
        "{}:4:1: settled_ms means nothing with policy stream or reconnect; leave it out, or take policy request or turn\n",
        path.display()
    );
    assert_eq!(said(&output), expected);

    let path = file(&directory, "web.toml", "command = [\"true\"]\nname = \"a/b\"\n");
    let output = armor(directory.path(), &["check", path.to_str().unwrap()]);
    let expected = format!(
        "{}:2:1: \"a/b\" is no name: take 1 to 48 letters, digits, '-', '_' or '.', the first one a letter or digit\n",
        path.display()
    );
    assert_eq!(said(&output), expected);
}

#[test]
fn every_wrong_file_of_a_check_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let good = file(&directory, "good.toml", "[[element]]\nname = \"heartbeat_responder\"\n");
    let none = directory.path().join("none.toml");
    let bad = file(&directory, "bad.toml", "[[element]\n");
    let names: Vec<&str> = [&good, &none, &bad].iter().map(|path| path.to_str().unwrap()).collect();
    let output = armor(directory.path(), &["check", names[0], names[1], names[2]]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<String> = said(&output).lines().map(str::to_owned).collect();
    assert_eq!(lines[0], format!("{}:1:1: cannot be read: No such file or directory (os error 2)", none.display()));
    assert!(lines[1].starts_with(&format!("{}:1:", bad.display())), "{lines:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout)
            .starts_with(&format!("{}: ok, composition of kind armor with 1 elements\n", good.display()))
    );
}

#[test]
fn elements_are_described() {
    let directory = tempfile::tempdir().unwrap();
    let list = armor(directory.path(), &["elements"]);
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.starts_with("ELEMENT "), "{list}");
    assert!(list.contains("\nheartbeat_responder "), "{list}");
    let one = armor(directory.path(), &["elements", "heartbeat_responder"]);
    assert_eq!(
        String::from_utf8(one.stdout).unwrap(),
        "heartbeat_responder: answers heartbeats, so that the daemon or the FTM knows that this ARMOR lives\n\n\
         Subscribes to: MSG_HEARTBEAT\nEmits:         MSG_HEARTBEAT_REPLY\n\
         Thread:        the main one, or with arbiter = true its own\n\n\
         Example:\n\n    [[element]]\n    name = \"heartbeat_responder\"\n"
    );
    let gateway = String::from_utf8(armor(directory.path(), &["elements", "daemon_gateway"]).stdout).unwrap();
    assert!(gateway.contains("\nThread:        the main one, for it takes messages over (MSG_ROUTE)\n"), "{gateway}");
    for (name, other) in
        [("app_oversight", "APP_COMM_SERVER, APP_COMM_CLIENT"), ("APP_COMM_SERVER", "app_oversight"), ("APP_COMM_CLIENT", "app_oversight")]
    {
        let one = String::from_utf8(armor(directory.path(), &["elements", name]).stdout).unwrap();
        let thread = format!("\nThread:        the main one, or with arbiter = true its own; not its own beside {other}\n");
        assert!(one.contains(&thread), "{one}");
    }
    let unknown = armor(directory.path(), &["elements", "nothing"]);
    assert_eq!(said(&unknown), "armor: unknown element \"nothing\"; `armor elements` lists all of them\n");
}

#[test]
fn without_an_environment_every_command_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["status"][..], &["events"], &["stop", "web"], &["run", "--", "true"], &["launch", "--name", "web", "--", "true"]] {
        let output = armor(directory.path(), arguments);
        assert_eq!(said(&output), format!("armor: no daemon runs in {}; start it with `armor up`\n", directory.path().display()));
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
    }
    let output = armor(directory.path(), &["run", "--node", "node7", "--", "true"]);
    let expected = format!("armor: daemon node7 does not run in {}; start it with `armor up --node node7`\n", directory.path().display());
    assert_eq!(said(&output), expected);
    let output = armor(directory.path(), &["down"]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn run_ends_as_a_shell_does_when_there_is_no_such_program() {
    let directory = tempfile::tempdir().unwrap();
    let output = armor(directory.path(), &["run", "--", "no-such-program"]);
    assert_eq!((output.status.code(), said(&output)), (Some(127), "armor: no-such-program: command not found\n".to_owned()));
    let output = armor(directory.path(), &["run", "--", "/etc/passwd"]);
    assert_eq!((output.status.code(), said(&output)), (Some(126), "armor: /etc/passwd is not executable\n".to_owned()));
}

#[test]
fn a_silence_that_settles_nothing_is_refused_on_the_command_line_too() {
    let directory = tempfile::tempdir().unwrap();
    for (options, reason) in [
        (
            ["--settled", "1", "--policy", "reconnect"],
            "settled_ms means nothing with policy stream or reconnect; leave it out, or take policy request or turn",
        ),
        (
            ["--settled", "0", "--policy", "turn"],
            "settled_ms is 0: no silence would be needed for an answer to be complete; leave it out, or take 1 or more",
        ),
    ] {
        let arguments = [&["launch", "--name", "web"][..], &options, &["--", "true"]].concat();
        let output = armor(directory.path(), &arguments);
        assert_eq!((output.status.code(), said(&output)), (Some(1), format!("armor: web: {reason}\n")));
    }
}

#[test]
fn a_command_without_the_two_dashes_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let output = armor(directory.path(), &["launch", "--name", "web", "python3"]);
    assert_eq!(
        said(&output),
        "armor: python3: cannot be read: No such file or directory (os error 2); a command to launch goes after `--`\n"
    );
}

#[test]
fn a_run_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let output = armor(directory.path(), &["up", "--run-dir", "/proc/none"]);
    let said = said(&output);
    assert!(said.starts_with("armor: run directory /proc/none cannot be made; choose another with --run-dir: "), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_run_directory_that_is_too_long_for_sockets_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("d".repeat(100));
    let path = file(&directory, "own.toml", "[[element]]\nname = \"heartbeat_responder\"\n");
    let output = armor(directory.path(), &["start", path.to_str().unwrap(), "--run-dir", long.to_str().unwrap()]);
    let expected =
        format!("armor: run directory {} is too long for socket names (108 bytes); choose a shorter one with --run-dir\n", long.display());
    assert_eq!(said(&output), expected);
}
