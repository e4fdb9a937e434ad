//! What the transports between nodes have in common about keys: where they are, who is trusted, what was refused.
//!
//! A key directory holds `NAME.key`, the private key of each ARMOR of this machine that has links to other nodes, and `trusted`, the network's list. The
//! list is read again when the file is another one: at each handshake, and once a second for those that were taken out.
//!
//! Invariant: a list that cannot be read changes nothing; the one before holds.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use armor_core::context::Context;
use armor_core::events::Event;
use armor_proto::ids::ArmorId;
use armor_proto::secure::{Established, HandshakeError, Identity, KeyPair, PublicKey, Transport, Trusted};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::datagrams::protected::Keyring;
use crate::operations::check_name;

/// Largest file that is read as a list or a key.
const MAX_FILE: u64 = 1 << 20;
/// Refusals told one by one in a second; the others are told together.
const TOLD_ONE_BY_ONE: u32 = 20;

/// Whether an address, `IP:PORT` or `HOST:PORT`, is one of this machine alone.
#[must_use]
pub fn is_loopback(address: &str) -> bool {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return address.ip().to_canonical().is_loopback();
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.to_canonical().is_loopback())
}

/// Refuses links beyond this machine that nothing protects. `addresses` are keys of the transport and their values.
///
/// # Errors
/// What is missing, or is too much.
pub fn check_protected(transport: &str, addresses: &[(&str, Option<&str>)], keys: Option<&Path>, insecure: bool) -> Result<(), String> {
    if insecure && keys.is_some() {
        return Err("keys and insecure = true exclude each other; remove one".to_owned());
    }
    if insecure || keys.is_some() {
        return Ok(());
    }
    let beyond = addresses.iter().find_map(|(key, address)| address.filter(|address| !is_loopback(address)).map(|address| (key, address)));
    match beyond {
        None => Ok(()),
        Some((key, address)) => Err(format!(
            "{key} = {address:?} is beyond this machine, and nothing protects the links there: set {transport}.keys to a directory made with \
             `armor keygen`, or say insecure = true on a network that nobody else is on"
        )),
    }
}

/// The file with the private key of an ARMOR.
#[must_use]
pub fn key_file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.key"))
}

/// The file with the list of trusted nodes.
#[must_use]
pub fn trusted_file(directory: &Path) -> PathBuf {
    directory.join("trusted")
}

fn read(file: File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::new(ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    Ok(text)
}

/// Reads the private key of an ARMOR.
///
/// # Errors
/// When there is none, others may read it, or it is no key.
pub fn read_key(directory: &Path, name: &str) -> Result<KeyPair, String> {
    let path = key_file(directory, name);
    let shown = path.display();
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => format!("{shown} is not there; make it with `armor keygen {name} --keys {}`", directory.display()),
        _ => format!("{shown} cannot be read: {error}"),
    };
    let file = File::open(&path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode();
    if mode & 0o077 != 0 {
        return Err(format!("{shown} may be read by others (mode {:o}); `chmod 600 {shown}`, or make another one", mode & 0o777));
    }
    KeyPair::from_private_text(&read(file).map_err(unreadable)?).map_err(|error| format!("{shown}: {error}"))
}

/// Makes the private key of an ARMOR, in a file that is its user's alone, mode 0600; makes the directory too.
///
/// # Errors
/// When there is one: it is never overwritten.
pub fn make_key(directory: &Path, name: &str) -> Result<KeyPair, String> {
    check_name(name)?;
    let path = key_file(directory, name);
    let shown = path.display();
    let unusable = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => format!("{shown} is there already; remove it first if {name} is to have another key"),
        _ => format!("{shown} cannot be written: {error}"),
    };
    std::fs::create_dir_all(directory).map_err(unusable)?;
    let keys = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(unusable)?;
    let written = writeln!(file, "{}", keys.private_text()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // Half a key is none.
        let _ = std::fs::remove_file(&path);
        unusable(error)
    })?;
    Ok(keys)
}

/// Reads the list of trusted nodes; an absent file is an empty list.
///
/// # Errors
/// When it cannot be read, or is wrong.
pub fn read_trusted(directory: &Path) -> Result<Trusted, String> {
    let path = trusted_file(directory);
    match File::open(&path).and_then(read) {
        Ok(text) => Trusted::parse(&text).map_err(|error| format!("{}: {error}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Trusted::default()),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

/// Changes the list of trusted nodes. It is replaced as a whole, and two that change it wait for each other.
///
/// # Errors
/// When `change` refuses, or the directory cannot be used.
pub fn change_trusted<R>(directory: &Path, change: impl FnOnce(&mut Trusted) -> Result<R, String>) -> Result<R, String> {
    let path = trusted_file(directory);
    let unusable = |error: std::io::Error| format!("{} cannot be written: {error}", path.display());
    std::fs::create_dir_all(directory).map_err(unusable)?;
    let lock = File::open(directory).map_err(unusable)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|error| unusable(error.into()))?;
    let mut trusted = read_trusted(directory)?;
    let before = trusted.clone();
    let result = change(&mut trusted)?;
    if trusted != before {
        let new = path.with_extension("new");
        let text = format!("# Nodes of this network and their public keys; `armor trust` changes it.\n{trusted}");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new).map_err(unusable)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&new, &path)).map_err(unusable)?;
    }
    Ok(result)
}

/// Which file a list was read from: another one has another number or time.
type Stamp = (u64, i64, i64, u64);

fn stamp(directory: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(trusted_file(directory)).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
}

/// Keys of one ARMOR, and what its transport has refused.
#[derive(Debug)]
pub struct Security {
    directory: PathBuf,
    own: Identity,
    trusted: Trusted,
    names: HashMap<ArmorId, String>,
    stamp: Option<Stamp>,
    /// What is wrong with the present file.
    unreadable: Option<String>,
    refused: BTreeMap<&'static str, u64>,
    told: u32,
    untold: u64,
}

impl Security {
    /// Reads the keys of the ARMOR `name`.
    ///
    /// # Errors
    /// When its private key or the list is not there or wrong.
    pub fn read(directory: &Path, name: &str) -> Result<Security, String> {
        let keys = read_key(directory, name)?;
        let stamp = stamp(directory);
        let trusted = read_trusted(directory)?;
        let names = by_armor(&trusted);
        Ok(Security {
            directory: directory.to_path_buf(),
            own: Identity { name: name.to_owned(), keys },
            trusted,
            names,
            stamp,
            unreadable: None,
            refused: BTreeMap::new(),
            told: 0,
            untold: 0,
        })
    }

    /// Reads the list again if the file is another one; whether it has changed.
    pub fn refresh(&mut self, context: &mut Context<'_>) -> bool {
        let now = stamp(&self.directory);
        if now == self.stamp {
            return false;
        }
        self.stamp = now;
        // A list that is gone is a mistake; one that is empty trusts nobody.
        let read = if now.is_none() { Err("it is gone".to_owned()) } else { read_trusted(&self.directory) };
        match read {
            Ok(trusted) => {
                self.unreadable = None;
                self.names = by_armor(&trusted);
                self.trusted = trusted;
                context.event(Event::new("trusted-changed").with("nodes", self.trusted.len()));
                true
            }
            Err(reason) => {
                context.event(Event::new("trusted-refused").with("file", trusted_file(&self.directory).display()).with("reason", &reason));
                self.unreadable = Some(reason);
                false
            }
        }
    }

    /// Once a second: tells what was refused and not told one by one, and reads the list again. Whether that has changed.
    pub fn look(&mut self, context: &mut Context<'_>) -> bool {
        self.told = 0;
        let untold = std::mem::take(&mut self.untold);
        if untold > 0 {
            context.event(Event::new("link-refused").with("handshakes", untold).with("reason", "as those before"));
        }
        self.refresh(context)
    }

    /// Begins a handshake with a daemon.
    ///
    /// # Errors
    /// When its key is not in the list.
    pub fn dial(&self, armor: ArmorId, transport: Transport) -> Result<(armor_proto::secure::Dialling, Vec<u8>), HandshakeError> {
        armor_proto::secure::dial(&self.own, &self.name_of(armor), &self.trusted, transport)
    }

    /// What handshakes over datagrams need.
    #[must_use]
    pub fn keyring(&self) -> Keyring {
        let (directory, mut before) = (self.directory.clone(), self.stamp);
        let reread = move || {
            let now = stamp(&directory);
            // As in `refresh`: a list that is gone is a mistake.
            if now.is_none() || std::mem::replace(&mut before, now) == now { None } else { read_trusted(&directory).ok() }
        };
        Keyring::new(self.own.clone(), self.trusted.clone(), Box::new(reread))
    }

    /// The list as it is now.
    #[must_use]
    pub fn trusted(&self) -> &Trusted {
        &self.trusted
    }

    /// The name under which a daemon's key is in the list, or its armor-id.
    #[must_use]
    pub fn name_of(&self, armor: ArmorId) -> String {
        self.names.get(&armor).cloned().unwrap_or_else(|| armor.to_string())
    }

    /// Answers a first message.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn answer(&self, transport: Transport, message: &[u8]) -> Result<(Established, Vec<u8>), HandshakeError> {
        armor_proto::secure::answer(&self.own, &self.trusted, transport, message)
    }

    /// Whether a node that has shown this key is still trusted under this name.
    #[must_use]
    pub fn trusts(&self, name: &str, key: &PublicKey) -> bool {
        self.trusted.name(key) == Some(name)
    }

    /// Counts a refusal, and tells it.
    pub fn refuse(&mut self, kind: &'static str, peer: &str, reason: &str, context: &mut Context<'_>) {
        *self.refused.entry(kind).or_default() += 1;
        if self.told < TOLD_ONE_BY_ONE {
            self.told += 1;
            context.event(Event::new("link-refused").with("peer", peer).with("reason", reason));
        } else {
            self.untold += 1;
        }
    }

    /// Counts refusals that are told with another one.
    pub fn count(&mut self, kind: &'static str, more: u64) {
        *self.refused.entry(kind).or_default() += more;
    }

    /// What `armor status` shows of it.
    #[must_use]
    pub fn status(&self) -> Value {
        json!({
            "keys": self.directory.display().to_string(), "key": self.own.keys.public().to_string(), "trusted": self.trusted.len(),
            "list": self.unreadable, "refused": self.refused, "refusals": self.refused.values().sum::<u64>(),
        })
    }
}

fn by_armor(trusted: &Trusted) -> HashMap<ArmorId, String> {
    trusted.iter().map(|(name, _)| (ArmorId::of_name(name), name.to_owned())).collect()
}

/// The word under which a refusal is counted.
#[must_use]
pub fn kind_of(error: &HandshakeError) -> &'static str {
    match error {
        HandshakeError::NotListed { .. } => "not-listed",
        HandshakeError::Length { .. } => "malformed",
        HandshakeError::NotForUs => "not-for-us",
        HandshakeError::Altered => "altered",
        HandshakeError::UnknownKey { .. } => "unknown-key",
        HandshakeError::WrongName { .. } => "wrong-name",
        HandshakeError::OwnKey => "own-key",
        HandshakeError::Library(_) => "failed",
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use armor_core::context::Effect;
    use armor_core::element::Setup;

    #[test]
    fn loopback_is_told_from_what_is_beyond() {
        for address in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:7", "localhost:7117", "[::ffff:127.0.0.1]:1"] {
            assert!(is_loopback(address), "{address}");
        }
        for address in ["0.0.0.0:0", "10.0.0.1:7117", "[::]:0", "ftm.example:7117", "localhost.example:1", "", "[fe80::1]:1", ":1"] {
            assert!(!is_loopback(address), "{address}");
        }
    }

    #[test]
    fn links_beyond_this_machine_need_keys_or_a_word() {
        let beyond = [("listen", Some("10.0.0.1:0")), ("ftm", None)];
        let error = check_protected("daemon_tcp_mgmt", &beyond, None, false).expect_err("refused");
        assert!(error.contains("10.0.0.1") && error.contains("armor keygen") && error.contains("insecure = true"), "{error}");
        assert!(check_protected("daemon_tcp_mgmt", &beyond, None, true).is_ok());
        assert!(check_protected("daemon_tcp_mgmt", &beyond, Some(Path::new("/k")), false).is_ok());
        assert!(check_protected("daemon_tcp_mgmt", &beyond, Some(Path::new("/k")), true).is_err());
        assert!(check_protected("daemon_tcp_mgmt", &[("listen", Some("127.0.0.1:0"))], None, false).is_ok());
    }

    #[test]
    fn a_key_is_its_users_alone_and_never_overwritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("keys");
        let keys = make_key(&path, "node1").expect("made");
        assert_eq!(std::fs::metadata(key_file(&path, "node1")).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(read_key(&path, "node1").expect("read").public(), keys.public());
        assert!(make_key(&path, "node1").expect_err("there").contains("remove it first"));
        assert!(make_key(&path, "../x").is_err());
        std::fs::set_permissions(key_file(&path, "node1"), std::fs::Permissions::from_mode(0o640)).expect("changed");
        assert!(read_key(&path, "node1").expect_err("open to others").contains("chmod 600"));
        assert!(read_key(&path, "node2").expect_err("absent").contains("armor keygen node2"));
    }

    #[test]
    fn a_changed_list_is_taken_up_and_one_that_is_wrong_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        make_key(path, "a").expect("made");
        let b = make_key(path, "b").expect("made").public();
        let setup = Setup { armor: ArmorId(5), name: "a".into(), kind: "daemon".into(), run_dir: "/".into() };
        let mut effects = Vec::new();
        let mut security = Security::read(path, "a").expect("read");
        assert!(matches!(security.dial(ArmorId::of_name("b"), Transport::Tcp), Err(HandshakeError::NotListed { .. })));
        change_trusted(path, |trusted| trusted.add("b", b).map_err(|error| error.to_string())).expect("changed");
        assert!(security.refresh(&mut Context::detached(&setup, None, &mut effects)));
        assert!(security.dial(ArmorId::of_name("b"), Transport::Tcp).is_ok() && security.trusts("b", &b));
        std::fs::write(trusted_file(path), "b armor1oops\n").expect("written");
        assert!(!security.refresh(&mut Context::detached(&setup, None, &mut effects)));
        assert!(security.trusts("b", &b) && security.status()["list"].is_string());
        std::fs::write(trusted_file(path), "# nobody\n").expect("written");
        assert!(security.refresh(&mut Context::detached(&setup, None, &mut effects)));
        assert!(!security.trusts("b", &b) && security.status()["list"].is_null());
        assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Event(_))).count(), 3);
        // What is wrong is not replaced.
        std::fs::write(trusted_file(path), "oops\n").expect("written");
        assert!(change_trusted(path, |trusted| trusted.add("b", b).map_err(|error| error.to_string())).is_err());
    }

    #[test]
    fn refusals_are_counted_all_and_told_few_by_few() {
        let directory = tempfile::tempdir().expect("a directory");
        make_key(directory.path(), "a").expect("made");
        let mut security = Security::read(directory.path(), "a").expect("read");
        let setup = Setup { armor: ArmorId(5), name: "a".into(), kind: "daemon".into(), run_dir: "/".into() };
        let mut effects = Vec::new();
        let mut context = Context::detached(&setup, None, &mut effects);
        for _ in 0..1000 {
            security.refuse("altered", "192.0.2.1:5", "it does not verify", &mut context);
        }
        security.look(&mut context);
        assert_eq!(security.status()["refused"]["altered"], 1000);
        let told: Vec<_> = effects.iter().filter_map(|effect| if let Effect::Event(event) = effect { Some(event) } else { None }).collect();
        assert_eq!(told.len() as u32, TOLD_ONE_BY_ONE + 1);
        assert_eq!(told.last().expect("told").values["handshakes"], (1000 - TOLD_ONE_BY_ONE).to_string());
    }
}
