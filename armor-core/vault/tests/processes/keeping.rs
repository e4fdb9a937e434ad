//! Descriptors that are kept come back.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;

use armor_vault::{Notice, VaultError};
use rustix::process::{Resource, Signal, getrlimit};

use crate::stage::{Stage, memory, raw, role_vault, send, signal, texts, wait_for};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_thousand_descriptors_outlive_the_process_that_kept_them", a_thousand_descriptors),
    ("as_many_descriptors_as_may_be_open_are_handed_over", as_many_as_may_be_open),
    ("an_owner_that_does_not_read_disturbs_nobody", a_slow_owner),
    ("keys_are_replaced_and_forgotten_and_owners_are_apart", keys_and_owners),
    ("a_second_hello_takes_over_and_fences_the_first", a_second_hello),
    ("what_a_stopped_vault_took_is_kept_and_what_it_did_not_is_said", a_stopped_vault),
    ("a_stopped_vault_is_found_by_heartbeats", heartbeats),
    ("a_bound_is_told", a_bound),
    ("what_is_left_of_an_owner_that_has_ended_is_nothing", an_ended_owner),
    ("without_a_vault_nothing_is_done", without_a_vault),
];

fn a_thousand_descriptors() {
    let stage = Stage::quiet();
    let mut client = stage.client("keeper", &["node1", "667"]);
    assert_eq!(client.line(), "0");
    assert_eq!(client.child.wait().unwrap().signal(), Some(9));
    // Twice: what was handed over is still kept.
    for life in 0..2 {
        let (_keeper, handed) = stage.connect("node1");
        assert_eq!((handed.kept.len(), handed.exited.len()), (334 + 2 * 333, 0));
        for (key, descriptor) in handed.kept {
            let words: Vec<&str> = key.split(' ').collect();
            if words[0] == "memory" {
                assert_eq!(crate::stage::text(&descriptor), format!("text {}", words[1]));
                continue;
            }
            let expected = format!("to {} {}", words[2], words[1]);
            let mut socket = UnixStream::from(descriptor);
            if life == 0 {
                // Looked at, not taken.
                let mut bytes = [0; 64];
                let (got, _) = rustix::net::recv(&socket, &mut bytes[..], rustix::net::RecvFlags::PEEK).unwrap();
                assert_eq!(bytes[..got], *expected.as_bytes());
            } else {
                let mut bytes = vec![0; expected.len()];
                socket.read_exact(&mut bytes).unwrap();
                assert_eq!(bytes, expected.as_bytes());
            }
        }
    }
}

fn as_many_as_may_be_open() {
    let stage = Stage::quiet();
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).min(21_000) as usize;
    let count = (most - 700).min(20_000);
    let mut client = stage.client("many", &[&count.to_string()]);
    assert_eq!(client.child.wait().unwrap().signal(), Some(9));
    let said = stage.client("collector", &[]).line();
    assert_eq!(said, format!("{count} 0 many"));
}

fn a_slow_owner() {
    let stage = Stage::quiet();
    let (keeper, _) = stage.connect("slow");
    let memory = memory("slow");
    for number in 0..2000 {
        keeper.keep(&format!("{number:060}"), memory.as_fd()).unwrap();
    }
    // Says Hello and reads nothing: the hand-over is stuck in its middle.
    let slow = raw(&stage.socket());
    assert!(send(&slow, b"\x01\x81\xa5Hello\x91\xa4slow", None, 0));
    wait_for("the end of the connection before", || matches!(keeper.receive(), Err(VaultError::Lost)).then_some(()));
    for round in 0..100 {
        let (other, handed) = stage.connect("other");
        assert_eq!(handed.kept.len(), round);
        other.keep(&round.to_string(), memory.as_fd()).unwrap();
    }
    drop(slow);
    assert_eq!(stage.connect("slow").1.kept.len(), 2000);
}

fn keys_and_owners() {
    let stage = Stage::quiet();
    let (_probe, _) = stage.connect("probe");
    let before = stage.descriptors();
    let (one, _) = stage.connect("one");
    let (two, _) = stage.connect("two");
    one.keep("b", memory("1").as_fd()).unwrap();
    two.keep("b", memory("2").as_fd()).unwrap();
    one.keep("a", memory("3").as_fd()).unwrap();
    one.keep("b", memory("4").as_fd()).unwrap();
    two.keep("c", memory("5").as_fd()).unwrap();
    two.forget("c").unwrap();
    two.forget("never kept").unwrap();
    for wrong in ["", &"k".repeat(65)] {
        assert!(matches!(one.keep(wrong, memory("6").as_fd()), Err(VaultError::Name { .. })));
        assert!(matches!(one.forget(wrong), Err(VaultError::Name { .. })));
    }
    drop((one, two));
    let owned = |key: &str, text: &str| (key.to_owned(), text.to_owned());
    let (one, handed) = stage.connect("one");
    assert_eq!(texts(&handed), [owned("a", "3"), owned("b", "4")]);
    let (two, handed) = stage.connect("two");
    assert_eq!(texts(&handed), [owned("b", "2")]);
    one.forget("a").unwrap();
    one.forget("b").unwrap();
    two.forget("b").unwrap();
    drop((one, two));
    wait_for("the vault to close everything", || (stage.descriptors() == before).then_some(()));
}

fn a_second_hello() {
    let stage = Stage::quiet();
    let (first, _) = stage.connect("node1");
    first.keep("key", memory("first").as_fd()).unwrap();
    let (second, handed) = stage.connect("node1");
    assert_eq!(texts(&handed), [("key".to_owned(), "first".to_owned())]);
    // The first one is told so, and says nothing from then on.
    let outcome = wait_for("the end of the first connection", || first.keep("key", memory("late").as_fd()).err());
    assert!(matches!(outcome, VaultError::Lost), "{outcome}");
    assert!(first.keep("key", memory("late").as_fd()).is_ok() && first.forget("key").is_ok() && first.socket().is_none());
    assert!(matches!(first.receive(), Err(VaultError::Lost)));
    second.keep("other", memory("second").as_fd()).unwrap();
    let handed = first.reconnect().unwrap();
    assert_eq!(texts(&handed), [("key".to_owned(), "first".to_owned()), ("other".to_owned(), "second".to_owned())]);
    wait_for("the end of the second connection", || matches!(second.receive(), Err(VaultError::Lost)).then_some(()));
}

fn a_stopped_vault() {
    let stage = Stage::quiet();
    let (keeper, _) = stage.connect("node1");
    stage.signal_vault(Signal::STOP);
    let mut taken = Vec::new();
    let refused = loop {
        let key = format!("{:05}", taken.len());
        match keeper.keep(&key, memory(&key).as_fd()) {
            Ok(()) => taken.push(key),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, VaultError::Lost), "{refused}");
    assert!(matches!(keeper.receive(), Err(VaultError::Lost)), "who waits for notices would wait for ever");
    assert!(taken.len() > 50, "only {} fit", taken.len());
    // Another process cannot get its descriptors either, and is told.
    assert!(matches!(keeper.reconnect(), Err(VaultError::Lost)));
    stage.signal_vault(Signal::CONT);
    let handed = keeper.reconnect().unwrap();
    assert_eq!(texts(&handed), taken.iter().map(|key| (key.clone(), key.clone())).collect::<Vec<_>>());
}

fn heartbeats() {
    let stage = Stage::quiet();
    let (keeper, _) = stage.connect("node1");
    keeper.alive().unwrap();
    stage.signal_vault(Signal::STOP);
    let mut said = 0;
    wait_for("word of the stopped vault", || {
        said += 1;
        matches!(keeper.alive(), Err(VaultError::Lost)).then_some(())
    });
    // Its socket would have taken more.
    assert!(said < 200, "{said} heartbeats");
    stage.signal_vault(Signal::CONT);
    keeper.reconnect().unwrap();
}

fn a_bound() {
    // Both limits are low: the vault keeps nothing at all.
    let stage = Stage::start_by(|directory| {
        let vault = role_vault(directory, &[], &["obedient"]);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n 640 && exec \"$0\" \"$@\""]).arg(vault.get_program()).args(vault.get_args());
        command
    });
    let (keeper, _) = stage.connect("node1");
    keeper.keep("key", memory("text").as_fd()).unwrap();
    let notice = wait_for("word of the bound", || keeper.receive().unwrap());
    let Notice::Refused { key, reason } = notice else { panic!("{notice:?}") };
    assert_eq!(key, "key");
    assert!(reason.starts_with("0 descriptors are kept already; raise the hard limit of open files"), "{reason}");
    assert_eq!(keeper.reconnect().unwrap().kept.len(), 0);
}

fn an_ended_owner() {
    let stage = Stage::quiet();
    let (installed, _) = stage.connect("node1/web");
    let (daemon, _) = stage.connect("node1");
    installed.keep("key", memory("text").as_fd()).unwrap();
    daemon.keep("key", memory("text").as_fd()).unwrap();
    installed.ended().unwrap();
    drop((installed, daemon));
    assert_eq!(stage.connect("node1/web").1.kept.len(), 0);
    assert_eq!(stage.connect("node1").1.kept.len(), 1);
    // It was not the vault's own ARMOR: that one goes on.
    signal(stage.life(0), Signal::KILL);
    stage.life(1);
}

fn without_a_vault() {
    let keeper = armor_vault::Keeper::none();
    keeper.keep("key", memory("text").as_fd()).unwrap();
    keeper.forget("key").unwrap();
    keeper.alive().unwrap();
    keeper.ended().unwrap();
    assert_eq!(keeper.receive().unwrap(), None);
    assert!(keeper.socket().is_none());
    assert_eq!(keeper.reconnect().unwrap().kept.len(), 0);
    let nowhere = tempfile::tempdir().unwrap();
    let error = armor_vault::Keeper::connect(&nowhere.path().join("vault.sock"), "node1").unwrap_err();
    assert!(matches!(error, VaultError::Unreachable { .. }), "{error}");
}
