//! Strangers and garbage are refused and disturb nobody.

use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use armor_vault::message::{Request, encode};

use crate::stage::{Stage, closed, memory, raw, send, texts, wait_for};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("garbage_is_refused_and_disturbs_nobody", garbage),
    ("who_is_no_friend_is_refused_as_another_user", another_user),
    ("descriptors_on_their_way_are_waited_for_as_another_user", on_their_way),
    ("connections_are_bounded_and_silent_ones_make_room", connections),
];

fn garbage() {
    let stage = Stage::quiet();
    let (_probe, _) = stage.connect("probe");
    let before = stage.descriptors();
    let (keeper, _) = stage.connect("rightful");
    keeper.keep("key", memory("text").as_fd()).unwrap();
    let said = |request: Request| encode(&request).unwrap();
    let hello = said(Request::Hello { owner: "stranger".into() });
    let keep = said(Request::Keep { key: "key".into() });
    let descriptor = memory("stranger");
    // Without Hello, without a descriptor, with too many, with one too much, a second Hello, of another version, cut, too long.
    let cases: Vec<Vec<(Vec<u8>, usize)>> = vec![
        vec![(keep.clone(), 1)],
        vec![(said(Request::Alive), 0)],
        vec![(said(Request::Ended), 0)],
        vec![(hello.clone(), 0), (keep.clone(), 0)],
        vec![(hello.clone(), 0), (keep.clone(), 2)],
        vec![(hello.clone(), 0), (said(Request::Forget { key: "key".into() }), 1)],
        vec![(hello.clone(), 1)],
        vec![(hello.clone(), 0), (hello.clone(), 0)],
        vec![([&[9], &hello[1..]].concat(), 0)],
        vec![(hello[..hello.len() - 1].to_vec(), 0)],
        vec![(vec![0; 10_000], 0)],
        vec![(vec![0; 5], 10)],
        vec![(said(Request::Hello { owner: String::new() }), 0)],
        vec![(said(Request::Hello { owner: "o".repeat(5000) }), 0)],
    ];
    for case in cases {
        let stranger = raw(&stage.socket());
        for (bytes, descriptors) in &case {
            assert!(send(&stranger, bytes, Some(&descriptor), *descriptors));
        }
        closed(&stranger);
        keeper.alive().unwrap();
    }
    // More descriptors than any message has: lost, and that is all. Then random bytes, with descriptors.
    let stranger = raw(&stage.socket());
    assert!(send(&stranger, &hello, Some(&descriptor), 253));
    drop(stranger);
    let mut state = u64::from(std::process::id());
    for _ in 0..300 {
        let stranger = raw(&stage.socket());
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut bytes: Vec<u8> = (0..1 + state as usize % 60).map(|at| (state >> (at % 50)) as u8).collect();
            bytes[0] = 1;
            send(&stranger, &bytes, Some(&descriptor), (state >> 40) as usize % 4);
        }
    }
    keeper.keep("other key", memory("other text").as_fd()).unwrap();
    let owned = |key: &str, text: &str| (key.to_owned(), text.to_owned());
    assert_eq!(texts(&keeper.reconnect().unwrap()), [owned("key", "text"), owned("other key", "other text")]);
    wait_for("everything of the strangers to be closed", || (stage.descriptors() == before + 3).then_some(()));
    // Nothing of it has touched the ARMOR.
    assert_eq!(stage.lives().len(), 1);
}

fn another_user() {
    let stage = Stage::quiet();
    let (keeper, _) = stage.connect("rightful");
    keeper.keep("key", memory("text").as_fd()).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&stage.socket()), 0o600);
    let said = stage.client("stranger", &[]).line();
    assert!(said.contains("cannot be reached: Permission denied"), "{said}");
    // Let in by the file system it is refused by the vault.
    std::fs::set_permissions(stage.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(stage.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let said = stage.client("stranger", &[]).line();
    assert!(said.starts_with("the vault is lost"), "{said}");
    keeper.alive().unwrap();
    assert_eq!(keeper.reconnect().unwrap().kept.len(), 1);
}

fn on_their_way() {
    // The kernel bounds what is on its way per user, for all but root: by the sender's limit of open files.
    let nobody = |command: &mut std::process::Command| {
        command.uid(65534).gid(65534);
    };
    let stage = Stage::start_by(|directory| {
        std::os::unix::fs::chown(directory, Some(65534), Some(65534)).unwrap();
        let vault = crate::stage::role_vault(directory, &[], &["obedient"]);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n 1000 && exec \"$0\" \"$@\""]).arg(vault.get_program()).args(vault.get_args());
        nobody(&mut command);
        command
    });
    let (keeper, _) = stage.connect("node1");
    let memory = memory("text");
    for number in 0..300 {
        keeper.keep(&number.to_string(), memory.as_fd()).unwrap();
    }
    let mut flood = crate::stage::role("flood");
    flood.arg(stage.path());
    nobody(&mut flood);
    let mut flood = crate::stage::Program::start(flood);
    assert_eq!(flood.line(), "on their way");
    let waiting = raw(&stage.socket());
    assert!(send(&waiting, &encode(&Request::Hello { owner: "node1".into() }).unwrap(), None, 0));
    wait_for("the hand-over", || matches!(keeper.receive(), Err(armor_vault::VaultError::Lost)).then_some(()));
    stage.connect("another one");
    let mut buffer = [0; 100];
    let said = rustix::net::recv(&waiting, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT);
    assert_eq!(said, Err(rustix::io::Errno::AGAIN));
    flood.kill();
    let (got, _) = rustix::net::recv(&waiting, &mut buffer[..], rustix::net::RecvFlags::empty()).unwrap();
    assert!(buffer[..got].windows(4).any(|part| part == b"Kept"), "{:?}", &buffer[..got]);
    assert_eq!(keeper.reconnect().unwrap().kept.len(), 300);
}

fn connections() {
    let stage = Stage::quiet();
    let (keeper, _) = stage.connect("rightful");
    keeper.keep("key", memory("text").as_fd()).unwrap();
    // Many that say nothing: the oldest of them are closed.
    let silent: Vec<_> = (0..600).map(|_| raw(&stage.socket())).collect();
    silent[..80].iter().for_each(closed);
    keeper.alive().unwrap();
    drop(silent);
    // Many that are owners: the rest is refused, and room is again when one has gone.
    let mut owners: Vec<_> = (0..511).map(|number| stage.connect(&number.to_string()).0).collect();
    assert!(armor_vault::Keeper::connect(&stage.socket(), "one more").is_err());
    owners.pop();
    wait_for("room", || armor_vault::Keeper::connect(&stage.socket(), "one more").ok());
    assert_eq!(keeper.reconnect().unwrap().kept.len(), 1);
}
