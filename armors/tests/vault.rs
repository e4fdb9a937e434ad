//! ARMORs that die and are started again by their vaults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub, missing_docs)]

mod environment;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use environment::{Environment, free_port, kill, lives, signal, text};
use rustix::process::Signal;

fn stdout(environment: &Environment, arguments: &[&str]) -> String {
    let output = environment.armor(arguments).output().unwrap();
    assert!(output.status.success(), "armor {arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn log(environment: &Environment, armor: &str) -> String {
    std::fs::read_to_string(environment.directory(armor).join("armor.log")).unwrap()
}

/// Processes that work in this environment: it is in their arguments.
fn processes(environment: &Environment) -> Vec<i32> {
    let directory = environment.path().as_os_str().as_encoded_bytes();
    let mentions = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(directory.len()).any(|part| part == directory)
    };
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(mentions).collect()
}

/// A variable in the environment of a process.
fn variable(pid: i32, name: &str) -> Option<String> {
    let variables = String::from_utf8(std::fs::read(format!("/proc/{pid}/environ")).unwrap()).unwrap();
    variables.split('\0').find_map(|variable| Some(variable.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

#[test]
fn a_daemon_that_is_killed_comes_back_by_itself_again_and_again() {
    let environment = Environment::up();
    let vault = environment.process("node1", "vault.pid");
    for _ in 0..20 {
        let pid = environment.kill_armor("node1");
        assert_eq!(environment.process("node1", "pid"), pid);
        let status = stdout(&environment, &["status"]);
        assert!(status.contains(&format!("\n  node1  daemon  {pid} ")), "{status}");
        // Not young any more: the next death is not one of a row, which would have a pause after it.
        let ready = std::fs::metadata(environment.directory("node1").join("ready")).unwrap().modified().unwrap();
        environment.wait_for("the daemon to grow up", || (ready.elapsed().ok()?.as_millis() >= 250).then_some(()));
    }
    assert_eq!(environment.process("node1", "vault.pid"), vault);
    let restarts = log(&environment, "node1").lines().filter(|line| line.contains("starting it again")).count();
    assert_eq!(restarts, 20, "{}", log(&environment, "node1"));
    let pids = ["ftm", "node1"].map(|armor| environment.process(armor, "pid"));
    let down = stdout(&environment, &["down"]);
    assert_eq!(down, format!("node1: stopped, pid {}\nftm: stopped, pid {}\n", pids[1], pids[0]));
    assert_eq!(processes(&environment), Vec::<i32>::new());
    for left in ["pid", "ready", "vault.pid", "vault.sock", "armor.sock", "tcp.addr"] {
        assert!(!environment.directory("node1").join(left).exists(), "{left} is left");
    }
}

#[test]
fn an_ftm_that_is_killed_comes_back_by_itself_with_its_tables_at_its_address() {
    let environment = Environment::up();
    let port = free_port().to_string();
    environment.launch("web", &[], &["python3", "-m", "http.server", "--bind", "127.0.0.1", &port]);
    let address = environment.directory("ftm").join("tcp.addr");
    let before = std::fs::read_to_string(&address).unwrap();
    for _ in 0..3 {
        let pid = environment.kill_armor("ftm");
        assert_eq!(std::fs::read_to_string(&address).unwrap(), before);
        let status = environment.wait_for("the daemon to register again", || {
            Some(stdout(&environment, &["status"])).filter(|status| status.contains("\n  node1  127.0.0.1:"))
        });
        assert!(status.contains(&format!("\n  ftm    ftm     {pid} ")), "{status}");
        assert!(status.contains(&format!("\n  web      127.0.0.1:{port} ")), "{status}");
    }
    let url = format!("http://127.0.0.1:{port}/");
    let client = ["python3", "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)", &url];
    let output = environment.output(&client);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200\n", "{}", text(&output));
}

#[test]
fn up_again_waits_for_an_armor_that_is_being_started_again() {
    let environment = Environment::up();
    for _ in 0..5 {
        let killed = environment.process("node1", "pid");
        kill(killed);
        environment.wait_for("its end", || (!lives(killed)).then_some(()));
        let again = stdout(&environment, &["up"]);
        assert!(again.contains("node1: runs already, pid ") && !again.contains(&format!("pid {killed}\n")), "{again}");
        stdout(&environment, &["status"]);
    }
}

#[test]
fn two_that_start_the_same_environment_start_it_once() {
    let environment = Environment::up();
    stdout(&environment, &["down"]);
    let mut ups = [(), ()].map(|()| environment.armor(&["up"]).stdout(Stdio::piped()).spawn().unwrap());
    let said = ups.each_mut().map(|up| {
        assert!(up.wait().unwrap().success());
        std::io::read_to_string(up.stdout.take().unwrap()).unwrap()
    });
    let started = said.iter().filter(|said| said.contains("ftm: started") && said.contains("node1: started")).count();
    let ran = said.iter().filter(|said| said.contains("ftm: runs already") && said.contains("node1: runs already")).count();
    assert_eq!((started, ran), (1, 1), "{said:?}");
}

#[test]
fn an_armor_that_cannot_start_is_told_with_its_last_words_and_not_tried_again() {
    let environment = Environment::up();
    stdout(&environment, &["down"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = environment.armor(&["up", "--listen", &address]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("armor: ARMOR ftm ended while it was starting (exit status: 1); the last lines of "), "{said}");
    assert!(said.contains(&format!("{address} is in use by another process")), "{said}");
    assert!(said.contains("ended, exit status: 1, before it was ready"), "{said}");
    assert_eq!(processes(&environment), Vec::<i32>::new());
}

#[test]
fn an_armor_that_dies_again_and_again_is_told_and_can_be_ended() {
    let environment = Environment::up();
    // What it needs is taken from it.
    let gateway = environment.directory("node1").join("armor.sock");
    std::fs::remove_file(&gateway).unwrap();
    std::fs::create_dir(&gateway).unwrap();
    kill(environment.process("node1", "pid"));
    environment.wait_for("word of the third try", || log(&environment, "node1").contains("died young 2 times in a row").then_some(()));
    let output = environment.armor(&["up"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("armor: ARMOR node1 dies again and again; end its vault (pid "), "{said}");
    let down = stdout(&environment, &["down"]);
    assert!(down.starts_with("node1: stopped"), "{down}");
    assert_eq!(processes(&environment), Vec::<i32>::new());
}

#[test]
fn down_ends_what_does_not_listen() {
    let environment = Environment::up();
    let (ftm, node) = (environment.process("ftm", "vault.pid"), environment.process("node1", "pid"));
    signal(ftm, Signal::STOP);
    signal(node, Signal::STOP);
    let down = stdout(&environment, &["down", "--patience", "0"]);
    assert_eq!(down, format!("node1: killed, pid {node}\nftm: killed, pid {}\n", environment_pid(&down, "ftm")));
    assert_eq!(processes(&environment), Vec::<i32>::new());
}

#[test]
fn an_environment_that_goes_down_while_a_vault_is_being_replaced_leaves_nothing() {
    let replacement = |environment: &Environment| {
        let adopts = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("--adopt"));
        processes(environment).into_iter().find(adopts)
    };
    for _ in 0..5 {
        let environment = Environment::up();
        kill(environment.process("node1", "vault.pid"));
        // It may have taken the daemon over by then, or know nothing of it yet.
        while replacement(&environment).is_none() {
            std::thread::yield_now();
        }
        let down = stdout(&environment, &["down"]);
        assert!(!down.contains("killed"), "{down}");
        assert_eq!(processes(&environment), Vec::<i32>::new());
    }
}

#[test]
fn applications_have_the_usual_limit_of_files_after_a_vault_and_then_its_armor_have_died() {
    let environment = Environment::up_in(&["sh", "-c", "ulimit -Sn 777 && exec \"$@\"", "sh"]);
    let vault = environment.process("node1", "vault.pid");
    kill(vault);
    environment.wait_for("another vault", || Some(environment.process("node1", "vault.pid")).filter(|pid| *pid != vault && lives(*pid)));
    environment.wait_for("everything to be kept again", || (environment.events("kept-anew").len() >= 5).then_some(()));
    environment.kill_armor("node1");
    environment.launch("sleeper", &["--wait", "0"], &["sleep", "1000"]);
    let pid = environment.wait_for("the application", || environment.pid("sleeper"));
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("777"), "{files}");
}

fn environment_pid(down: &str, armor: &str) -> String {
    let line = down.lines().find(|line| line.starts_with(armor)).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn installed_armors_have_the_vault_of_their_node() {
    let environment = Environment::up();
    let port = free_port().to_string();
    environment.launch("web", &["--execution-armor"], &["python3", "-m", "http.server", "--bind", "127.0.0.1", &port]);
    let installed = environment.process("node1/armors/web", "pid");
    let vault = environment.directory("node1").join("vault.sock");
    assert_eq!(variable(installed, "ARMOR_VAULT").as_deref(), vault.to_str());
    assert!(!environment.directory("node1/armors/web").join("vault.pid").exists());
    assert_eq!(variable(environment.process("node1", "pid"), "ARMOR_VAULT").as_deref(), vault.to_str());
}

#[test]
fn a_new_vault_takes_over_a_living_daemon() {
    let environment = Environment::up();
    let daemon = environment.process("node1", "pid");
    for stopped in [false, true] {
        let vault = environment.process("node1", "vault.pid");
        let arguments = std::fs::read(format!("/proc/{vault}/cmdline")).unwrap();
        let arguments = String::from_utf8(arguments).unwrap();
        let arguments: Vec<&str> = arguments.trim_end_matches('\0').split('\0').skip_while(|argument| *argument != "--name").collect();
        // One that is stopped is not dead: it is killed by the new one.
        if stopped {
            signal(vault, Signal::STOP);
        } else {
            kill(vault);
            environment.wait_for("the vault's end", || (!lives(vault)).then_some(()));
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_armor"));
        command.args(["vault", "--adopt", &daemon.to_string()]).args(&arguments).stdin(Stdio::null());
        let log = std::fs::File::options().append(true).open(environment.directory("node1").join("armor.log")).unwrap();
        let new = command.stderr(log).spawn().unwrap();
        environment.wait_for("the new vault", || (environment.process("node1", "vault.pid") == new.id() as i32).then_some(()));
        assert!(lives(daemon) && !lives(vault));
        drop(Reaped(new));
    }
    environment.kill_armor("node1");
    environment.kill_armor("node1");
    stdout(&environment, &["status"]);
    let down = stdout(&environment, &["down"]);
    assert!(down.starts_with("node1: stopped, pid "), "{down}");
    assert_eq!(processes(&environment), Vec::<i32>::new());
}

/// A vault that outlives the test's interest in it, but not its zombie.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id() as i32).unwrap();
        std::thread::spawn(move || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
    }
}

/// An ARMOR that is started by hand.
struct ByHand {
    directory: tempfile::TempDir,
    process: Child,
}

impl ByHand {
    fn start(options: &[&str], environment: &[(&str, &str)]) -> ByHand {
        let directory = tempfile::Builder::new().prefix("armor-test-").tempdir().unwrap();
        let process = ByHand::command(directory.path(), options).envs(environment.iter().copied()).spawn().unwrap();
        let started = ByHand { directory, process };
        wait_for("the ARMOR", || std::fs::read_to_string(started.path().join("ready")).ok().filter(|ready| ready.ends_with('\n')));
        started
    }

    fn command(directory: &Path, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_armor"));
        command.args(["start", "ftm", "--set", "daemon_tcp_mgmt.listen=127.0.0.1:0", "--run-dir"]).arg(directory.join("ftm")).args(options);
        command.env_remove("ARMOR_VAULT").stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("ftm")
    }

    fn pid(&self) -> i32 {
        std::fs::read_to_string(self.path().join("pid")).unwrap().trim().parse().unwrap()
    }

    fn own(&self) -> i32 {
        self.process.id() as i32
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Ok(pid) = std::fs::read_to_string(self.path().join("pid")) {
            let pid = pid.trim().parse().unwrap();
            if std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(self.path().to_str().unwrap())) {
                kill(pid);
            }
        }
    }
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(std::time::Instant::now() < give_up, "waited for {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn what_is_started_by_hand_becomes_the_vault_of_its_armor() {
    let mut started = ByHand::start(&[], &[]);
    let (vault, first) = (started.own(), started.pid());
    assert_ne!(vault, first);
    assert_eq!(variable(first, "ARMOR_VAULT").as_deref(), started.path().join("vault.sock").to_str());
    let address = std::fs::read_to_string(started.path().join("tcp.addr")).unwrap();
    kill(first);
    let second = wait_for("the next life", || {
        let ready: i32 = std::fs::read_to_string(started.path().join("ready")).ok()?.trim().parse().ok()?;
        (ready != first).then_some(ready)
    });
    assert_eq!(std::fs::read_to_string(started.path().join("tcp.addr")).unwrap(), address);
    // A second one is refused and disturbs nothing, with a vault and without.
    let inode = |name: &str| std::fs::metadata(started.path().join(name)).unwrap().ino();
    let before = ["pid", "vault.pid", "vault.sock", "ready"].map(inode);
    for options in [&[][..], &["--no-vault"]] {
        let output = ByHand::command(started.directory.path(), options).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with(&format!("armor: ARMOR ftm runs already in {} (pid {second}); end it with", started.path().display())),
            "{said}"
        );
        assert_eq!(output.status.code(), Some(1));
    }
    assert_eq!(["pid", "vault.pid", "vault.sock", "ready"].map(inode), before);
    signal(vault, Signal::TERM);
    assert_eq!(started.process.wait().unwrap().code(), Some(0));
    assert!(!lives(second));
    assert!(!started.path().join("vault.sock").exists() && !started.path().join("vault.pid").exists());
}

#[test]
fn an_armor_that_cannot_start_by_hand_says_why_and_ends_with_its_status() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("daemon_tcp_mgmt.listen={}", taken.local_addr().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let output = ByHand::command(directory.path(), &["--set", &listen]).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("armor: ARMOR ftm: element daemon_tcp_mgmt cannot start: "), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn without_a_vault_an_armor_is_the_process_that_was_started_and_knows_of_no_vault() {
    let started = ByHand::start(&["--no-vault"], &[("ARMOR_VAULT", "/of/another/armor/vault.sock")]);
    assert_eq!(started.pid(), started.own());
    assert_eq!(variable(started.pid(), "ARMOR_VAULT"), None);
    assert!(!started.path().join("vault.pid").exists());
    // Under another one's application it becomes a vault of its own.
    let started = ByHand::start(&[], &[("ARMOR_VAULT", "/of/another/armor/vault.sock")]);
    assert_eq!(variable(started.pid(), "ARMOR_VAULT").as_deref(), started.path().join("vault.sock").to_str());
}

#[test]
fn a_daemon_that_is_started_by_hand_finds_the_preload_library_in_its_environment_in_all_its_lives() {
    let environment = Environment::up();
    let mut command = Command::new(env!("CARGO_BIN_EXE_armor"));
    command.args(["start", "daemon", "--name", "node2", "--run-dir"]).arg(environment.directory("node2"));
    let ftm = std::fs::read_to_string(environment.directory("ftm").join("tcp.addr")).unwrap();
    command.args(["--set", &format!("daemon_tcp_mgmt.ftm={}", ftm.trim()), "--set", "daemon_tcp_mgmt.listen=127.0.0.1:0"]);
    command.env_remove("ARMOR_VAULT").env_remove("ARMOR_SHIM_PATH").stdin(Stdio::null()).stderr(Stdio::null());
    let mut vault = command.spawn().unwrap();
    environment.wait_for("node2", || environment.directory("node2").join("ready").exists().then_some(()));
    let library = environment.directory("node2").join("libarmor.so");
    assert_eq!(variable(vault.id() as i32, "ARMOR_SHIM_PATH").as_deref(), library.to_str());
    let next = environment.kill_armor("node2");
    assert_eq!(variable(next, "ARMOR_SHIM_PATH").as_deref(), library.to_str());
    // A process that has executed itself once more is called by the link that it did that through.
    assert_eq!(std::fs::read_to_string(format!("/proc/{next}/comm")).unwrap(), "armor\n");
    signal(vault.id() as i32, Signal::TERM);
    assert_eq!(vault.wait().unwrap().code(), Some(0));
}

#[test]
fn links_to_a_daemon_that_is_away_wait_in_its_listener_and_its_node_has_not_failed() {
    let environment = Environment::up();
    let (vault, daemon) = (environment.process("node1", "vault.pid"), environment.process("node1", "pid"));
    let address = std::fs::read_to_string(environment.directory("node1").join("tcp.addr")).unwrap();
    // Nobody starts the daemon again for now.
    signal(vault, Signal::STOP);
    let killed = std::time::Instant::now();
    kill(daemon);
    environment.wait_for("the daemon's end", || (!lives(daemon)).then_some(()));
    let mut link = std::net::TcpStream::connect(address.trim()).expect("the vault has the listener");
    // Twice the time after which a node without a link has failed, and a part of what a busy one has.
    environment.wait_for("the FTM to miss it", || (killed.elapsed().as_millis() >= 600).then_some(()));
    signal(vault, Signal::CONT);
    let mut byte = [0];
    std::io::Read::read_exact(&mut link, &mut byte).expect("the next life takes what has waited");
    environment.wait_for("the FTM to hear it", || {
        (environment.events("daemon-registered").iter().filter(|event| event["values"]["daemon"] == "node1").count() >= 2).then_some(())
    });
    assert_eq!(environment.events("node-failed"), Vec::<serde_json::Value>::new());
}
