//! Processes of one test in a directory of its own. Everything ends with it.

use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use armor_vault::{Handed, Keeper};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < give_up, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
}

/// Whether a process is there and is no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// `this-program role:ROLE ARGUMENTS`.
pub(crate) fn role(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(format!("role:{role}")).stdin(Stdio::null());
    command
}

/// A memfd that holds this text.
pub(crate) fn memory(text: &str) -> OwnedFd {
    let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&memory, text.as_bytes(), 0).unwrap();
    memory
}

/// What a memfd holds.
pub(crate) fn text(memory: &OwnedFd) -> String {
    let mut bytes = [0; 256];
    let got = rustix::io::pread(memory, &mut bytes, 0).unwrap();
    String::from_utf8(bytes[..got].to_vec()).unwrap()
}

/// Keys, and the texts in the memories that were handed over.
pub(crate) fn texts(handed: &Handed) -> Vec<(String, String)> {
    handed.kept.iter().map(|(key, memory)| (key.clone(), text(memory))).collect()
}

/// A program that is killed when it is dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Program {
    pub(crate) fn start(mut command: Command) -> Program {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Program { child, lines }
    }

    /// Its next line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "the program has ended: {:?}", self.child.try_wait());
        line.trim_end().to_owned()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A vault with its ARMOR.
pub(crate) struct Stage {
    directory: tempfile::TempDir,
    vault: Child,
}

impl Stage {
    /// An ARMOR that does nothing, and a vault that leaves it alone.
    pub(crate) fn quiet() -> Stage {
        let stage = Stage::start(&[], &["obedient"]);
        stage.life(0);
        stage
    }

    /// A vault with these options, whose ARMOR behaves so.
    pub(crate) fn start(options: &[&str], behaviour: &[&str]) -> Stage {
        Stage::start_by(|directory| role_vault(directory, options, behaviour))
    }

    pub(crate) fn start_by(command: impl FnOnce(&Path) -> Command) -> Stage {
        let directory = tempfile::Builder::new().prefix("armor-vault-").tempdir().unwrap();
        let vault = command(directory.path()).spawn().unwrap();
        let mut stage = Stage { directory, vault };
        let socket = stage.socket();
        let begun = |vault: &mut Child| (socket.exists() || vault.try_wait().unwrap().is_some()).then_some(());
        wait_for(&format!("{}", socket.display()), || begun(&mut stage.vault));
        stage
    }

    fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        wait_for(&format!("{what} in {}", self.path().display()), condition)
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("vault.sock")
    }

    pub(crate) fn vault_pid(&self) -> u32 {
        self.vault.id()
    }

    pub(crate) fn connect(&self, owner: &str) -> (Keeper, Handed) {
        Keeper::connect(&self.socket(), owner).unwrap()
    }

    /// A client that plays a role.
    pub(crate) fn client(&self, name: &str, arguments: &[&str]) -> Program {
        let mut command = role(name);
        command.arg(self.path()).args(arguments);
        Program::start(command)
    }

    /// The ARMOR's lives so far: pid, and the arguments that it was started with.
    pub(crate) fn lives(&self) -> Vec<(u32, String)> {
        let lives = std::fs::read_to_string(self.path().join("lives")).unwrap_or_default();
        lives.lines().filter_map(|line| line.split_once(' ')).map(|(pid, arguments)| (pid.parse().unwrap(), arguments.to_owned())).collect()
    }

    /// The pid of this life of the ARMOR, when it has begun.
    pub(crate) fn life(&self, number: usize) -> u32 {
        self.wait_for(&format!("life {number}"), || self.lives().get(number).map(|(pid, _)| *pid))
    }

    /// A number that the ARMOR has written into a file.
    pub(crate) fn number(&self, file: &str) -> u64 {
        self.wait_for(file, || std::fs::read_to_string(self.path().join(file)).ok()?.trim().parse().ok())
    }

    /// How many descriptors the vault has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.vault_pid())).unwrap().count()
    }

    pub(crate) fn signal_vault(&self, wanted: Signal) {
        signal(self.vault_pid(), wanted);
    }

    /// Kills the vault alone.
    pub(crate) fn kill_vault(&mut self) {
        self.vault.kill().unwrap();
        self.vault.wait().unwrap();
    }

    /// How the vault has ended.
    pub(crate) fn outcome(&mut self) -> ExitStatus {
        let socket = self.path().to_owned();
        let vault = &mut self.vault;
        wait_for(&format!("the end of the vault in {}", socket.display()), || vault.try_wait().unwrap())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let file = |name: &str| std::fs::read_to_string(self.path().join(name)).ok().and_then(|pid| pid.trim().parse().ok());
        let (replacement, orphan): (Option<u32>, Option<u32>) = (file("replacement"), file("orphan"));
        let armors: Vec<u32> = self.lives().iter().map(|(pid, _)| *pid).filter(|pid| plays(*pid)).collect();
        let vaults = [Some(self.vault_pid()), replacement].into_iter().flatten();
        let vaults: Vec<u32> = vaults.filter(|pid| plays(*pid)).collect();
        // Vaults end with their ARMORs, so that none is just being started when it is over. What was stopped has to be able to.
        armors.iter().chain(&vaults).for_each(|pid| signal(*pid, Signal::CONT));
        vaults.iter().for_each(|pid| signal(*pid, Signal::TERM));
        let give_up = Instant::now() + Duration::from_secs(20);
        while vaults.iter().any(|pid| lives(*pid)) && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(2));
        }
        vaults.iter().chain(&armors).filter(|pid| plays(**pid)).for_each(|pid| signal(*pid, Signal::KILL));
        if let Some(orphan) = orphan.filter(|pid| command_line(*pid) == b"sleep\x001000\x00") {
            signal(orphan, Signal::KILL);
        }
        let _ = self.vault.wait();
    }
}

/// Whether a process is one of this program.
fn plays(pid: u32) -> bool {
    lives(pid) && command_line(pid).windows(6).any(|part| part == b"\0role:")
}

fn command_line(pid: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

pub(crate) fn role_vault(directory: &Path, options: &[&str], behaviour: &[&str]) -> Command {
    let mut command = role("vault");
    command.arg(directory).args(options).arg("--").arg(std::env::current_exe().unwrap());
    command.arg("role:armor").arg(directory).args(behaviour);
    command
}

/// A connection without the client's manners.
pub(crate) fn raw(socket: &Path) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let own = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&own, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    own
}

/// Sends bytes and descriptors; whether the other end took them.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8], descriptor: Option<&OwnedFd>, copies: usize) -> bool {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> =
        descriptor.iter().cycle().take(if descriptor.is_some() { copies } else { 0 }).map(|one| one.as_fd()).collect();
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    sendmsg(socket, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// Waits until the other end has closed the connection.
pub(crate) fn closed(socket: &OwnedFd) {
    use rustix::net::{RecvFlags, recv};
    let mut buffer = [0; 8192];
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => return,
            Ok(_) => {}
            Err(rustix::io::Errno::CONNRESET) => return,
            Err(error) => panic!("{error}"),
        }
    }
}
