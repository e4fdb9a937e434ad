//! Run directories: `<base>/<name>/` holds an ARMOR's pid file, sockets, captured state and log.
//!
//! Invariants: an ARMOR lives as long as it holds the lock on its pid file, whatever number stands in it (numbers are used
//! again by others), and so does a vault; a directory that somebody else owns is never used.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use armor_elements::state_capture::STATE_FILE;
use armor_proto::ids::ArmorId;
use rustix::fs::FlockOperation;
use rustix::process::Signal;

use crate::ending::Process;

/// Which environment a command is about.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Place {
    /// Run directory of the environment [default: $ARMOR_BASE_DIR, $XDG_RUNTIME_DIR/armor, /run/armor or /tmp/armor-UID]
    #[arg(long, value_name = "BASE")]
    pub(crate) run_dir: Option<PathBuf>,
}

/// No environment runs at a place; the program ends with status 3.
#[derive(Debug)]
pub(crate) struct NotUp(pub(crate) String);

impl std::fmt::Display for NotUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotUp {}

/// How long a file may be locked by one who only looks whether it is.
const HELD_WITHIN: Duration = Duration::from_millis(300);
/// How long an ARMOR that its vault is starting again is waited for.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// `base/node1/armors/web`.
const INSTALLED_DEPTH: usize = 3;

/// The directory that holds the run directories of a machine's ARMORs.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    path: PathBuf,
    chosen: bool,
}

impl Base {
    /// The one that was asked for, or the default one.
    pub(crate) fn of(place: &Place) -> anyhow::Result<Base> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let uid = rustix::process::geteuid();
        let chosen = place.run_dir.clone().or_else(|| set("ARMOR_BASE_DIR"));
        let path = match &chosen {
            Some(path) => std::path::absolute(path).with_context(|| format!("run directory {}", path.display()))?,
            None => match set("XDG_RUNTIME_DIR") {
                Some(runtime) if runtime.is_dir() => runtime.join("armor"),
                _ if uid.is_root() => PathBuf::from("/run/armor"),
                _ => PathBuf::from(format!("/tmp/armor-{}", uid.as_raw())),
            },
        };
        Ok(Base { path, chosen: place.run_dir.is_some() && chosen.is_some() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What has to be added to commands that are shown to the user.
    pub(crate) fn option(&self) -> String {
        if self.chosen { format!(" --run-dir {}", self.path.display()) } else { String::new() }
    }

    /// The directory of one ARMOR.
    pub(crate) fn armor(&self, name: &str) -> ArmorDirectory {
        ArmorDirectory { name: name.to_owned(), path: self.path.join(name) }
    }

    /// Every living ARMOR under this base, installed ones below their daemons too, the deepest ones last. One that is just being started again
    /// by its vault is waited for.
    pub(crate) fn living(&self) -> Vec<(ArmorDirectory, u32)> {
        let settled = |directory: ArmorDirectory| directory.settled_pid().map(|pid| (directory, pid));
        self.directories().into_iter().filter_map(settled).collect()
    }

    /// Every directory under this base that may be an ARMOR's.
    fn directories(&self) -> Vec<ArmorDirectory> {
        let mut found = Vec::new();
        let mut level = vec![(String::new(), self.path.clone())];
        for _ in 0..INSTALLED_DEPTH {
            let mut next = Vec::new();
            for (prefix, path) in level {
                let mut entries: Vec<_> = std::fs::read_dir(path).into_iter().flatten().flatten().collect();
                entries.sort_by_key(std::fs::DirEntry::file_name);
                for entry in entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                    let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                    found.push(ArmorDirectory { name: name.clone(), path: entry.path() });
                    // A daemon installs node1/web in node1/armors/web.
                    let prefix = if entry.file_name() == "armors" { prefix.clone() } else { format!("{name}/") };
                    next.push((prefix, entry.path()));
                }
            }
            level = next;
        }
        found
    }

    /// Every ARMOR that lives, or would be started again by its vault.
    pub(crate) fn present(&self) -> Vec<ArmorDirectory> {
        self.directories().into_iter().filter(|directory| directory.vault().is_some() || directory.pid().is_some()).collect()
    }

    /// The living daemons of this machine: ARMORs with a gateway that are not the FTM.
    pub(crate) fn daemons(&self) -> Vec<ArmorDirectory> {
        self.living()
            .into_iter()
            .map(|(directory, _)| directory)
            .filter(|directory| directory.name != "ftm" && !directory.name.contains('/') && directory.gateway().exists())
            .collect()
    }

    /// The daemon that was asked for, or the only one.
    pub(crate) fn node(&self, asked: Option<&str>) -> anyhow::Result<ArmorDirectory> {
        if let Some(name) = asked {
            let directory = self.armor(name);
            return match directory.settled_pid() {
                Some(_) => Ok(directory),
                None => Err(self.not_up(&format!("daemon {name} does not run in {}", self.path.display()), &format!(" --node {name}"))),
            };
        }
        let daemons = self.daemons();
        match &daemons[..] {
            [] => Err(self.not_up(&format!("no daemon runs in {}", self.path.display()), "")),
            [only] => Ok(only.clone()),
            several => match several.iter().find(|daemon| daemon.name == "node1") {
                Some(first) => Ok(first.clone()),
                None => {
                    let names: Vec<_> = several.iter().map(|daemon| &*daemon.name).collect();
                    bail!("several daemons run in {}: choose one with --node: {}", self.path.display(), names.join(", "))
                }
            },
        }
    }

    /// Where to speak from: the FTM of this machine, else a daemon.
    pub(crate) fn entrance(&self) -> anyhow::Result<ArmorDirectory> {
        let ftm = self.armor("ftm");
        if ftm.settled_pid().is_some() { Ok(ftm) } else { self.node(None) }
    }

    fn not_up(&self, what: &str, option: &str) -> anyhow::Error {
        NotUp(format!("{what}; start it with `armor up{option}{}`", self.option())).into()
    }

    /// Makes the directory, mode 0700, and waits until nobody else who does so starts anything in it.
    pub(crate) fn create(&self) -> anyhow::Result<File> {
        create_owned(&self.path)?;
        let unusable = || format!("run directory {} cannot be locked; choose another with --run-dir", self.path.display());
        let directory = File::open(&self.path).with_context(unusable)?;
        rustix::fs::flock(&directory, FlockOperation::LockExclusive).with_context(unusable)?;
        Ok(directory)
    }
}

/// The run directory of one ARMOR.
#[derive(Debug, Clone)]
pub(crate) struct ArmorDirectory {
    /// Name of the ARMOR.
    pub(crate) name: String,
    path: PathBuf,
}

impl ArmorDirectory {
    /// At any path.
    pub(crate) fn at(name: &str, path: PathBuf) -> ArmorDirectory {
        ArmorDirectory { name: name.to_owned(), path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn armor(&self) -> ArmorId {
        ArmorId::of_name(&self.name)
    }

    /// The gateway's socket.
    pub(crate) fn gateway(&self) -> PathBuf {
        self.path.join("armor.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("armor.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.path.join("pid")
    }

    fn vault_file(&self) -> PathBuf {
        self.path.join("vault.pid")
    }

    /// Where the ARMOR's vault listens.
    pub(crate) fn vault_socket(&self) -> PathBuf {
        self.path.join("vault.sock")
    }

    /// There when the ARMOR has started all its elements.
    pub(crate) fn ready_file(&self) -> PathBuf {
        self.path.join("ready")
    }

    /// Whether the ARMOR has started all its elements.
    pub(crate) fn is_ready(&self) -> bool {
        // The file of an earlier life names another process.
        let ready = std::fs::read_to_string(self.ready_file()).ok().and_then(|text| text.trim().parse().ok());
        ready.is_some() && ready == self.pid()
    }

    /// Where the ARMOR accepts links over TCP.
    pub(crate) fn tcp_address(&self) -> Option<String> {
        self.link_address("daemon_tcp_mgmt")
    }

    /// Where the ARMOR has links, as the element that makes them wrote it.
    pub(crate) fn link_address(&self, element: &str) -> Option<String> {
        let file = if element == "daemon_udp_mgmt" { "udp.addr" } else { "tcp.addr" };
        std::fs::read_to_string(self.path.join(file)).ok().map(|text| text.trim().to_owned())
    }

    /// Process of the ARMOR, when it lives.
    pub(crate) fn pid(&self) -> Option<u32> {
        holder(&self.pid_file())
    }

    /// Process of the ARMOR's vault, when it lives.
    pub(crate) fn vault(&self) -> Option<u32> {
        holder(&self.vault_file())
    }

    /// Process of the ARMOR, when it lives. While its vault is starting it again it is waited for.
    pub(crate) fn settled_pid(&self) -> Option<u32> {
        let deadline = Instant::now() + SETTLES_WITHIN;
        while !self.is_ready() && self.vault().is_some() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.pid()
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// When it cannot be made, is somebody else's, or its path is too long.
    pub(crate) fn prepare(&self) -> anyhow::Result<()> {
        create_owned(&self.path)?;
        let longest = self.path.join(armor_proto::hookup::CLIENT_SOCKET);
        if longest.as_os_str().len() > 107 {
            bail!("run directory {} is too long for socket names (108 bytes); choose a shorter one with --run-dir", self.path.display());
        }
        Ok(())
    }

    fn runs_already(&self) -> anyhow::Error {
        let process = self.pid().map(|pid| format!(" (pid {pid})"));
        let process = process.or_else(|| self.vault().map(|pid| format!(" (its vault is pid {pid})"))).unwrap_or_default();
        let path = self.path.display();
        anyhow!("ARMOR {} runs already in {path}{process}; end it with `armor down` or choose another --run-dir", self.name)
    }

    /// Says that this process is the ARMOR.
    ///
    /// # Errors
    /// When another process is, or the directory cannot be used.
    pub(crate) fn claim(&self) -> anyhow::Result<Claim> {
        self.prepare()?;
        let file = self.hold(&self.pid_file(), HELD_WITHIN)?;
        let _ = std::fs::remove_file(self.ready_file());
        Ok(Claim { file, ready: self.ready_file(), files: vec![self.ready_file(), self.pid_file()] })
    }

    /// For an ARMOR that is to run without a vault.
    ///
    /// # Errors
    /// When there is a vault, which would start another one.
    pub(crate) fn refuse_under_vault(&self) -> anyhow::Result<()> {
        if self.vault().is_some() { Err(self.runs_already()) } else { Ok(()) }
    }

    /// Says that this process is the vault of an ARMOR that does not run yet.
    ///
    /// # Errors
    /// When the ARMOR or another vault runs, or the directory cannot be used.
    pub(crate) fn claim_vault(&self) -> anyhow::Result<Claim> {
        self.prepare()?;
        let file = self.hold(&self.vault_file(), HELD_WITHIN)?;
        let claim = Claim { file, ready: self.ready_file(), files: vec![self.vault_file()] };
        if self.pid().is_some() {
            return Err(self.runs_already());
        }
        // Of an earlier life.
        let _ = std::fs::remove_file(self.ready_file());
        Ok(claim)
    }

    /// Says that this process is the vault in the place of another one, which is killed if it still lives.
    ///
    /// # Errors
    /// When that one does not die, or the directory cannot be used.
    pub(crate) fn take_over_vault(&self) -> anyhow::Result<Claim> {
        self.prepare()?;
        if let Some(lost) = Process::of(|| self.vault()) {
            lost.signal(Signal::KILL);
        }
        let file = self.hold(&self.vault_file(), Duration::from_secs(5))?;
        Ok(Claim { file, ready: self.ready_file(), files: vec![self.vault_file()] })
    }

    /// Locks a file and writes the own number into it.
    fn hold(&self, path: &Path, patience: Duration) -> anyhow::Result<File> {
        let unusable = || format!("run directory {} cannot be used; choose another with --run-dir", self.path.display());
        let deadline = Instant::now() + patience;
        loop {
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).with_context(unusable)?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // The holder before may have removed the file between the opening and the lock.
                let current = std::fs::metadata(path).is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino()));
                if current {
                    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(unusable)?;
                    return Ok(file);
                }
            } else if Instant::now() >= deadline {
                return Err(self.runs_already());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Living ARMORs that this one has installed.
    pub(crate) fn installed(&self) -> Vec<(ArmorDirectory, u32)> {
        let below = Base { path: self.path.clone(), chosen: false };
        let named = |(armor, pid): (ArmorDirectory, u32)| (ArmorDirectory { name: format!("{}/{}", self.name, armor.name), ..armor }, pid);
        below.living().into_iter().map(named).collect()
    }

    /// Empties the directory of what a dead ARMOR left. Logs are kept: the ARMOR's own as `armor.log.old`.
    ///
    /// # Errors
    /// When an ARMOR that it had installed still lives, or the directory holds something else.
    pub(crate) fn clean(&self) -> anyhow::Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        create_owned(&self.path)?;
        if let Some((orphan, pid)) = self.installed().first() {
            bail!("ARMOR {} (pid {pid}) of an earlier daemon {} still runs; end it with `armor down` first", orphan.name, self.name);
        }
        let entries: Vec<_> =
            std::fs::read_dir(&self.path).with_context(|| self.path.display().to_string())?.flatten().map(|entry| entry.path()).collect();
        let known = [self.pid_file(), self.log(), self.path.join(STATE_FILE), self.path.join("armor.log.old")];
        if !entries.is_empty() && !known.iter().any(|file| entries.contains(file)) {
            bail!("{} exists and was not made by ARMOR; choose another place with --run-dir", self.path.display());
        }
        let kept = [self.log(), self.path.join("logs"), self.path.join("events.jsonl"), self.path.join("events.jsonl.1")];
        // Nor is what could not be read; see `state-file-refused`.
        let refused = self.path.join(format!("{STATE_FILE}.refused-"));
        let aside = |entry: &Path| entry.as_os_str().as_encoded_bytes().starts_with(refused.as_os_str().as_encoded_bytes());
        for entry in entries.iter().filter(|entry| !kept.contains(entry) && !aside(entry)) {
            let removed = if entry.is_dir() && !entry.is_symlink() { std::fs::remove_dir_all(entry) } else { std::fs::remove_file(entry) };
            removed.with_context(|| format!("{} of an earlier run cannot be removed", entry.display()))?;
        }
        // Without a log there is nothing to rename.
        let _ = std::fs::rename(self.log(), self.path.join("armor.log.old"));
        Ok(())
    }

    /// Removes what would be mistaken for a living ARMOR; state and log stay.
    pub(crate) fn remove_sockets(&self) {
        self.remove_sockets_of_next_life();
        for file in ["tcp.addr", "udp.addr"] {
            let _ = std::fs::remove_file(self.path.join(file));
        }
    }

    /// The same for an ARMOR that is to come back: where daemons look for it stays known, also when it cannot start this time.
    pub(crate) fn remove_sockets_of_next_life(&self) {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "sock")
                || ["pid", "vault.pid", "ready"].iter().any(|&name| entry.file_name() == name)
            {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Last lines of the log, indented, for error messages.
    pub(crate) fn log_tail(&self) -> String {
        tail(&self.log())
    }
}

/// Last lines of a log, indented, for error messages.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 12;
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return format!("{} is empty", log.display());
    }
    let last = lines[lines.len().saturating_sub(LINES)..].join("\n    ");
    format!("the last lines of {}:\n    {last}", log.display())
}

/// Number of the process that holds the lock on a file.
fn holder(path: &Path) -> Option<u32> {
    for _ in 0..20 {
        let mut file = File::open(path).ok()?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            // Closing would not be enough while a program that another thread is just starting holds a copy.
            let _ = rustix::fs::flock(&file, FlockOperation::Unlock);
            return None;
        }
        let mut text = String::new();
        if file.read_to_string(&mut text).is_ok()
            && let Ok(pid) = text.trim().parse()
        {
            return Some(pid);
        }
        // It has the lock and writes its number just now.
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// This process's hold on a run directory. The files go when it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    file: File,
    ready: PathBuf,
    files: Vec<PathBuf>,
}

impl Claim {
    /// Says that all elements have started.
    pub(crate) fn ready(&self) -> std::io::Result<()> {
        std::fs::write(&self.ready, format!("{}\n", std::process::id()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// A new directory that nobody else can look into.
pub(crate) fn fresh_directory(purpose: &str) -> anyhow::Result<PathBuf> {
    let parent = std::env::temp_dir();
    let mut attempt = 0;
    loop {
        let path = parent.join(format!("{purpose}-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be made; choose another place with TMPDIR", path.display()));
            }
        }
    }
}

fn create_owned(path: &Path) -> anyhow::Result<()> {
    let other = "choose another with --run-dir";
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("run directory {} cannot be made; {other}", path.display()))?;
    let metadata = std::fs::symlink_metadata(path).with_context(|| format!("run directory {}", path.display()))?;
    let uid = rustix::process::geteuid().as_raw();
    if metadata.is_symlink() || metadata.uid() != uid {
        bail!("run directory {} belongs to user {}, this is user {uid}; {other}", path.display(), metadata.uid());
    }
    if metadata.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("run directory {} cannot be closed to others (mode 0700); {other}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_directory_is_held_by_one_process_and_left_clean() {
        let base = tempfile::tempdir().unwrap();
        let directory = ArmorDirectory::at("node1", base.path().join("node1"));
        assert_eq!(directory.pid(), None);
        let claim = directory.claim().unwrap();
        claim.ready().unwrap();
        assert_eq!(directory.pid(), Some(std::process::id()));
        assert!(directory.is_ready());
        let refused = directory.claim().unwrap_err().to_string();
        assert!(refused.starts_with("ARMOR node1 runs already in "), "{refused}");
        drop(claim);
        assert!(!directory.is_ready());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn installed_armors_are_found_under_their_names() {
        let base = tempfile::tempdir().unwrap();
        let node = ArmorDirectory::at("node1", base.path().join("node1"));
        let web = ArmorDirectory::at("node1/web", base.path().join("node1/armors/web"));
        let _claims = (node.claim().unwrap(), web.claim().unwrap());
        let base = Base { path: base.path().to_path_buf(), chosen: true };
        let names = |found: Vec<(ArmorDirectory, u32)>| found.into_iter().map(|(armor, _)| armor.name).collect::<Vec<_>>();
        assert_eq!(names(base.living()), ["node1", "node1/web"]);
        assert_eq!(names(node.installed()), ["node1/web"]);
        assert!(node.clean().unwrap_err().to_string().starts_with("ARMOR node1/web (pid "));
    }

    #[test]
    fn a_pid_file_without_a_holder_is_no_life() {
        let base = tempfile::tempdir().unwrap();
        let directory = ArmorDirectory::at("node1", base.path().join("node1"));
        std::fs::create_dir(directory.path()).unwrap();
        std::fs::write(directory.pid_file(), "1\n").unwrap();
        assert_eq!(directory.pid(), None);
        std::fs::write(directory.path().join(STATE_FILE), "states").unwrap();
        std::fs::write(directory.path().join("state.redb.refused-1"), "damaged").unwrap();
        std::fs::write(directory.log(), "last words\n").unwrap();
        directory.clean().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "the log and what was kept aside");
        assert!(tail(&directory.path().join("armor.log.old")).ends_with("last words"));
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_emptied() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("thesis.tex"), "…").unwrap();
        let refused = ArmorDirectory::at("node1", base.path().to_path_buf()).clean().unwrap_err().to_string();
        assert!(refused.ends_with("exists and was not made by ARMOR; choose another place with --run-dir"), "{refused}");
    }
}
