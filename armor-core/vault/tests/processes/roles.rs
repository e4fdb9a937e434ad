//! What this program is when a test starts it as another process.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use armor_vault::{ENV_VAULT, Found, Keeper, Settings, VaultError};
use rustix::process::{Pid, PidfdFlags, Resource, Signal, getrlimit};

use crate::kills;
use crate::stage::{memory, role_vault, signal};

pub(crate) fn play(role: &str, arguments: &[String]) -> ! {
    let directory = PathBuf::from(&arguments[0]);
    let rest = &arguments[1..];
    match role {
        "vault" => vault(&directory, rest),
        "armor" => armor(&directory, &rest[0], &rest[1..]),
        "keeper" => keeper(&directory, &rest[0], rest[1].parse().unwrap()),
        "many" => many(&directory, rest[0].parse().unwrap()),
        "collector" => collector(&directory),
        "victim" => kills::victim(&directory, &rest[0], rest[1].parse().unwrap()),
        "flood" => flood(),
        "stranger" => stranger(&directory),
        other => panic!("no role {other}"),
    }
}

fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

fn say(text: impl std::fmt::Display) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{text}").unwrap();
    stdout.flush().unwrap();
}

/// `DIRECTORY [hang=MS] [grace=MS] [adopt=PID] -- COMMAND…`
fn vault(directory: &Path, arguments: &[String]) -> ! {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let split = arguments.iter().position(|argument| argument == "--").unwrap();
    let option = |name: &str| {
        let value = arguments[..split].iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));
        value.map(|value| value.parse::<u32>().unwrap())
    };
    let found = option("adopt").map_or(Found::Nothing, |pid| {
        std::fs::write(directory.join("replacement"), std::process::id().to_string()).unwrap();
        match rustix::process::pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()) {
            Ok(process) => Found::Living { pid, process },
            Err(_) => Found::Dead,
        }
    });
    let status = armor_vault::run(Settings {
        name: "tested".to_owned(),
        socket: directory.join("vault.sock"),
        ready: directory.join("ready"),
        command: arguments[split + 1..].iter().map(Into::into).collect(),
        hang: option("hang").map(|hang| Duration::from_millis(hang.into())),
        grace: Duration::from_millis(option("grace").unwrap_or(30_000).into()),
        found,
    });
    match status {
        Ok(status) => std::process::exit(status.into()),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(99)
        }
    }
}

/// An ARMOR that writes its pid and arguments down, and behaves in one way.
#[expect(clippy::zombie_processes, reason = "what it starts is to outlive it")]
fn armor(directory: &Path, behaviour: &str, arguments: &[String]) -> ! {
    assert_eq!(std::env::var_os(ENV_VAULT).as_deref(), Some(directory.join("vault.sock").as_os_str()));
    let record = || {
        let mut lives = std::fs::File::options().create(true).append(true).open(directory.join("lives")).unwrap();
        lives.write_all(format!("{} {}\n", std::process::id(), arguments.join(" ")).as_bytes()).unwrap();
    };
    let ready = || std::fs::write(directory.join("ready"), "").unwrap();
    let number = |file: &str, number: u64| {
        let fresh = directory.join(format!("{file}.new"));
        std::fs::write(&fresh, number.to_string()).unwrap();
        std::fs::rename(fresh, directory.join(file)).unwrap();
    };
    let connect = || Keeper::connect(&directory.join("vault.sock"), "tested").unwrap();
    match behaviour {
        // Ends with status 0 when it is told to.
        "obedient" => {
            let told = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(Signal::TERM.as_raw(), Arc::clone(&told)).unwrap();
            let (waiting, wake) = UnixStream::pair().unwrap();
            signal_hook::low_level::pipe::register(Signal::TERM.as_raw(), wake).unwrap();
            number("open-files", getrlimit(Resource::Nofile).current.unwrap());
            ready();
            record();
            while !told.load(Ordering::SeqCst) {
                let _ = std::io::Read::read(&mut &waiting, &mut [0]);
            }
            std::process::exit(0)
        }
        "stubborn" => {
            let ignored = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(Signal::TERM.as_raw(), ignored).unwrap();
            ready();
            record();
            forever()
        }
        "never-ready" => {
            record();
            std::process::exit(arguments[0].parse().unwrap())
        }
        "ends" => {
            ready();
            record();
            std::process::exit(arguments[0].parse().unwrap())
        }
        // Ends with status 0 in its second life.
        "ends-the-second-time" => {
            ready();
            record();
            std::process::exit(if arguments.iter().any(|argument| argument == "--restore") { 0 } else { 3 })
        }
        "says-ended" => {
            ready();
            record();
            connect().0.ended().unwrap();
            std::process::abort()
        }
        // In its next lives it hangs before it has said a word.
        "alive-once" if arguments.iter().any(|argument| argument == "--restore") => {
            record();
            forever()
        }
        "alive" | "alive-once" => {
            ready();
            let (keeper, _) = connect();
            keeper.alive().unwrap();
            record();
            loop {
                keeper.alive().unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // Starts another process, whose pid it writes down, once.
        "parent" => {
            if !directory.join("orphan").exists() {
                let orphan = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
                number("orphan", orphan.id().into());
            }
            ready();
            record();
            forever()
        }
        "adopting" => {
            ready();
            let (keeper, handed) = connect();
            number("handed", handed.kept.len() as u64);
            let own = memory("mine");
            keeper.keep("own", own.as_fd()).unwrap();
            record();
            loop {
                let told = keeper.socket().unwrap();
                let _ = rustix::event::poll(&mut [rustix::event::PollFd::new(&told, rustix::event::PollFlags::IN)], None);
                if matches!(keeper.receive(), Err(VaultError::Lost)) {
                    let adopt = format!("adopt={}", std::process::id());
                    let behaviour: Vec<&str> = [behaviour].into_iter().chain(arguments.iter().map(String::as_str)).collect();
                    role_vault(directory, &[&adopt, "hang=200"], &behaviour).spawn().unwrap();
                    while keeper.reconnect().is_err() {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    keeper.keep("own", own.as_fd()).unwrap();
                    if directory.join("orderly").exists() {
                        keeper.ended().unwrap();
                        std::process::exit(0);
                    }
                    number("kept-again", 1);
                }
            }
        }
        other => panic!("no behaviour {other}"),
    }
}

/// Keeps memories and sockets, each with something in it, and waits to be killed.
fn keeper(directory: &Path, owner: &str, count: usize) -> ! {
    let (keeper, handed) = Keeper::connect(&directory.join("vault.sock"), owner).unwrap();
    say(handed.kept.len());
    for number in 0..count {
        if number % 2 == 0 {
            keeper.keep(&format!("memory {number}"), memory(&format!("text {number}")).as_fd()).unwrap();
        } else {
            let (one, other) = UnixStream::pair().unwrap();
            (&one).write_all(format!("to other {number}").as_bytes()).unwrap();
            (&other).write_all(format!("to one {number}").as_bytes()).unwrap();
            keeper.keep(&format!("socket {number} one"), one.as_fd()).unwrap();
            keeper.keep(&format!("socket {number} other"), other.as_fd()).unwrap();
        }
    }
    signal(std::process::id(), Signal::KILL);
    forever()
}

/// Keeps one descriptor under many keys, and is killed at once.
fn many(directory: &Path, count: usize) -> ! {
    let (keeper, _) = Keeper::connect(&directory.join("vault.sock"), "many").unwrap();
    let memory = memory("many");
    for number in 0..count {
        keeper.keep(&format!("{number:060}"), memory.as_fd()).unwrap();
    }
    signal(std::process::id(), Signal::KILL);
    forever()
}

fn collector(directory: &Path) -> ! {
    let (_keeper, handed) = Keeper::connect(&directory.join("vault.sock"), "many").unwrap();
    let wrong = handed.kept.iter().enumerate().filter(|(number, (key, _))| *key != format!("{number:060}")).count();
    say(format!("{} {wrong} {}", handed.kept.len(), crate::stage::text(&handed.kept[handed.kept.len() - 1].1)));
    std::process::exit(0)
}

/// Has many descriptors on their way, and waits to be killed.
fn flood() -> ! {
    let memory = memory("flood");
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (one, _other) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET, flags, None).unwrap();
    for _ in 0..6 {
        assert!(crate::stage::send(&one, b"flood", Some(&memory), 250));
    }
    say("on their way");
    forever()
}

/// Connects as another user.
fn stranger(directory: &Path) -> ! {
    let nobody = rustix::process::Uid::from_raw(65534);
    rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
    match Keeper::connect(&directory.join("vault.sock"), "rightful") {
        Ok((_, handed)) => say(format!("was let in and has {} descriptors", handed.kept.len())),
        Err(error) => say(error),
    }
    std::process::exit(0)
}
