//! A daemon installs ARMORs as processes: this test's own program plays the part of `armor start`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

mod network;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use armor_core::composition::Composition;
use armor_core::element::Setup;
use armor_elements::operations::{ArmorReady, InstallArmor, UninstallArmor};
use armor_proto::ids::ArmorId;
use network::{Client, FTM, Node, WITHIN, daemon, eventually};
use rustix::process::{Pid, Signal, kill_process};

const ARGUMENTS: &str = "ARMOR_TEST_ARGUMENTS";

/// No test: the installed ARMOR, when the script below has started this program.
#[test]
fn installed_armor() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let value = |key: &str| arguments[arguments.iter().position(|argument| *argument == key).expect("argument") + 1].to_owned();
    if arguments[1] == "broken" {
        println!("this composition is broken");
        std::process::exit(3);
    }
    let own =
        format!("[[element]]\nname = \"armor_gateway\"\ndaemon = {:?}\n[[element]]\nname = \"heartbeat_responder\"\n", value("--daemon"));
    let text = if arguments[1] == "execution" { own } else { std::fs::read_to_string(arguments[1]).expect("composition") };
    let kinds = armor_elements::all();
    let composition = Composition::parse("installed", &text, &kinds).expect("composition");
    let name = value("--name");
    let setup = Setup { armor: ArmorId::of_name(&name), name, kind: "execution".into(), run_dir: value("--run-dir").into() };
    armor_core::host::run(&composition, &kinds, setup, arguments.contains(&"--restore"), || ()).expect("runs");
}

fn program(directory: &Path) -> String {
    let path = directory.join("armor");
    let own = std::env::current_exe().expect("own program");
    // Its directory is in the command line, as that of an ARMOR is: a daemon's next life knows the process by it. To the test's program it is one more name of a test.
    let script = format!(
        "#!/bin/sh\nfor argument; do [ \"$before\" = --run-dir ] && directory=$argument; before=$argument; done\n\
         {ARGUMENTS}=\"$*\" exec {} --nocapture --exact installed_armor \"$directory\"\n",
        own.display()
    );
    // Written by another process: a program that another test is just starting would hold a copy of our descriptor, and what is open
    // for writing cannot be executed.
    let mut install = Command::new("install").args(["-m", "755", "/dev/stdin"]).arg(&path).stdin(Stdio::piped()).spawn().expect("install");
    install.stdin.take().expect("stdin").write_all(script.as_bytes()).expect("script");
    assert!(install.wait().expect("install").success());
    path.display().to_string()
}

fn with_installer(ftm: &Node, base: &Path) -> String {
    let installer = format!("[[element]]\nname = \"armor_installer\"\nheartbeat_ms = 40\nmisses = 10\nprogram = {:?}\n", program(base));
    daemon(&ftm.tcp_address(), &installer)
}

fn install(client: &mut Client, node: &Node, name: &str, composition: &str) -> ArmorReady {
    client.send(node.armor, InstallArmor { name: name.into(), composition: composition.into(), number: 0 });
    client.receive(WITHIN).expect("an answer")
}

fn pid(client: &mut Client, armor: ArmorId) -> Pid {
    let pid = client.status(armor)["pid"].as_i64().expect("pid");
    Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid")
}

/// Whether it has ended; whoever it is left to may not have waited for it yet.
fn has_ended(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| matches!(rest.trim_start().chars().next(), None | Some('Z' | 'X')))
}

#[test]
fn an_installed_armor_comes_back_whether_it_is_killed_or_silent_and_ends_with_its_daemon() {
    let base = tempfile::tempdir().expect("directory");
    let ftm = Node::start("ftm", base.path(), FTM, armor_elements::all());
    let node = Node::start("one", base.path(), &with_installer(&ftm, base.path()), armor_elements::all());
    // Everything goes by way of the FTM's node: the ARMOR is found wherever it is.
    let mut client = ftm.client();
    eventually("the daemon registers", || {
        (client.status(ArmorId::FTM)["elements"]["daemon_registry"]["state"]["daemons"].as_array()?.len() == 2).then_some(())
    });
    let ready = install(&mut client, &node, "x", "execution");
    assert_eq!(ready.error, "");
    assert_eq!(ready.armor, ArmorId::of_name("one/x"));
    assert!(Path::new(&ready.run_dir).join("armor.log").exists());

    let first = pid(&mut client, ready.armor);
    kill_process(first, Signal::KILL).expect("kill");
    let second = pid(&mut client, ready.armor);
    assert_ne!(first, second);
    kill_process(second, Signal::STOP).expect("stop");
    let third = eventually("the silent one is replaced", || Some(pid(&mut client, ready.armor)).filter(|pid| *pid != second));

    assert_eq!(install(&mut client, &node, "y", "execution").error, "");
    let other = pid(&mut client, ArmorId::of_name("one/y"));
    client.send(node.armor, UninstallArmor { name: "y".into(), number: 0 });
    eventually("the uninstalled one ends", || has_ended(other).then_some(()));
    let installed = client.status(node.armor)["elements"]["armor_installer"]["state"]["installed"].clone();
    assert_eq!(installed.as_array().expect("list").len(), 1, "{installed}");

    drop(node);
    assert!(has_ended(third), "the ARMOR has outlived an orderly end of its daemon");
}

#[test]
fn an_armor_that_cannot_start_is_answered_with_its_last_words() {
    let base = tempfile::tempdir().expect("directory");
    let ftm = Node::start("ftm", base.path(), FTM, armor_elements::all());
    let node = Node::start("one", base.path(), &with_installer(&ftm, base.path()), armor_elements::all());
    let mut client = node.client();
    let error = install(&mut client, &node, "x", "broken").error;
    assert!(error.contains("status 3") && error.contains("this composition is broken"), "{error}");
    assert!(install(&mut client, &node, "../x", "execution").error.contains("letters"));
    assert!(client.receive::<ArmorReady>(Duration::from_millis(50)).is_none());
}

#[test]
fn armors_outlive_a_crash_of_their_daemon_and_are_overseen_by_its_next_life() {
    let base = tempfile::tempdir().expect("directory");
    let ftm = Node::start("ftm", base.path(), FTM, armor_elements::all());
    let composition = base.path().join("daemon.toml");
    let text = with_installer(&ftm, base.path()) + "[[element]]\nname = \"state_capture\"\nstore = \"disk\"\n";
    std::fs::write(&composition, text).expect("composition");
    let daemon = ArmorId::of_name("one");
    let run_dir = base.path().join("one");
    let start = |restore: &[&str]| {
        let mut command = Command::new(base.path().join("armor"));
        command.arg("start").arg(&composition).args(["--name", "one", "--daemon", "none", "--run-dir"]).arg(&run_dir).args(restore);
        command.stdout(Stdio::null()).spawn().expect("daemon")
    };
    let mut process = start(&[]);
    let mut client = ftm.client();
    let armor = ArmorId::of_name("one/x");
    client.status(daemon);
    client.send(daemon, InstallArmor { name: "x".into(), composition: "execution".into(), number: 0 });
    assert_eq!(client.receive::<ArmorReady>(WITHIN).expect("answer").error, "");
    let first = pid(&mut client, armor);
    // Without a vault the file is all that its next life knows of it.
    eventually("what it has installed is on disk", || {
        let written = client.status(daemon)["elements"]["state_capture"]["state"]["file"]["unwritten"] == 0;
        written.then_some(())
    });

    process.kill().expect("kill");
    process.wait().expect("wait");
    let mut process = start(&["--restore"]);
    let state = |client: &mut Client| {
        client.status(daemon)["elements"]["armor_installer"]["state"]["installed"][0]["state"].as_str().map(str::to_owned)
    };
    eventually("it is adopted", || (state(&mut client)? == "running").then_some(()));
    assert_eq!(pid(&mut client, armor), first, "it was started a second time");
    kill_process(first, Signal::KILL).expect("kill");
    let second = pid(&mut client, armor);
    assert_ne!(first, second);

    client.send(daemon, armor_core::operations::Shutdown {});
    process.wait().expect("wait");
    assert!(has_ended(second), "the ARMOR has outlived an orderly end of its daemon");
}
