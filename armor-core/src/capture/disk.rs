//! Captured states in a file that outlives the node: an embedded store (redb), written by a thread of its own.
//!
//! A save hands the state over and comes back: nobody waits for a disk. The thread takes all that was handed over, the newest state of each
//! element, writes it in one transaction over the older one of two that are kept, and syncs. So a SIGKILL, a full disk, and a loss of power leave the last
//! transaction whole; what was handed over behind it is lost with the process.
//!
//! A file is read before anything is written to it, from a copy in memory, with all its checksums verified. One that cannot be used is kept aside
//! as `NAME.refused-TIME`, and another one is begun. While the disk takes nothing the states stay in the thread, which tries again.
//!
//! Invariants: no content of a file panics, and none is taken for a state that it is not (redb verifies its pages, [`super::record`] each state);
//! a file in use by another process is not touched.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition};

use super::record::{Found, HEAD, Head};
use super::{CaptureError, Kept, MAX_STATE, Refused, check};

/// Layout of the tables: raised when it changes.
const VERSION: u32 = 1;
const ABOUT: TableDefinition<'_, &str, u32> = TableDefinition::new("about");
/// By element and slot: a head and the state.
const STATES: TableDefinition<'_, (&str, u8), &[u8]> = TableDefinition::new("states");
/// Largest file that is read.
const MAX_FILE: u64 = 4 << 30;
/// Files that are kept aside; the oldest is removed.
const KEPT_ASIDE: usize = 4;
/// Pause before a disk that took nothing is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a process that has just died may take to let go of its file.
const LOCKED_FOR: Duration = Duration::from_secs(2);
/// How long an end waits for what has yet to be written.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// The states of one ARMOR on disk.
#[derive(Debug)]
pub struct StateFile {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    path: PathBuf,
}

/// What was in a file.
#[derive(Debug, Default)]
pub struct FileFound {
    /// Newest whole states.
    pub kept: Vec<Kept>,
    /// Single states that were damaged.
    pub refused: Vec<Refused>,
    /// The whole file could not be used.
    pub file_refused: Option<FileRefused>,
}

/// A file that could not be used.
#[derive(Debug, Clone)]
pub struct FileRefused {
    /// Why.
    pub reason: String,
    /// Where it is now; or why it could not be moved.
    pub aside: Result<PathBuf, String>,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Another process has it open.
    #[error("{} is in use by another process: two ARMORs in one run directory; end the other one, or choose another directory with --run-dir", .0.display())]
    InUse(PathBuf),
    /// No thread for the writing.
    #[error("no thread to write {}: {source}", path.display())]
    Thread {
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What the writer has to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileState {
    /// Elements whose newest state is not on disk yet.
    pub unwritten: usize,
    /// Why the last try failed; none when it did not.
    pub trouble: Option<String>,
    /// Transactions so far.
    pub transactions: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// The newest state of each element replaces the one before: nothing queues up. Held for a moment on both sides, never while a disk is waited for.
    desk: Mutex<Desk>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Desk {
    /// The newest state of each element, written or not: a file that is begun anew gets all of them.
    states: BTreeMap<String, Handed>,
    trouble: Option<String>,
    /// A file that the thread had to put aside.
    refused: Option<FileRefused>,
    transactions: u64,
    /// What is in the file is not to come back.
    clear: bool,
    ending: bool,
}

#[derive(Debug, Clone)]
struct Handed {
    sequence: u64,
    record: Arc<[u8]>,
    written: bool,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // A panic ends the process, so nobody sees what one has left.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateFile {
    /// Opens the file, or makes it, and gives what is in it.
    ///
    /// # Errors
    /// Another process has it open, or there is no thread. That the disk refuses is no error: it is told by [`StateFile::state`], and tried again.
    pub fn open(path: &Path) -> Result<(StateFile, FileFound), FileError> {
        let (opened, found) = open(path, Instant::now() + LOCKED_FOR);
        let mut desk = Desk::default();
        let mut slots = BTreeMap::new();
        for (slot, kept) in &found.slots {
            slots.insert(kept.element.clone(), *slot);
            let record = record(&kept.element, kept.sequence, &kept.state);
            desk.states.insert(kept.element.clone(), Handed { sequence: kept.sequence, record, written: true });
        }
        let database = match opened {
            Ok(database) => Some(database),
            Err(Refusal::InUse) => return Err(FileError::InUse(path.to_owned())),
            Err(refusal) => {
                desk.trouble = Some(refusal.reason(path));
                None
            }
        };
        let file = StateFile::begin(path, desk, database, slots)?;
        let found = FileFound {
            kept: found.slots.into_iter().map(|(_, kept)| kept).collect(),
            refused: found.refused,
            file_refused: found.file_refused,
        };
        Ok((file, found))
    }

    /// A file in which nothing is looked for: all that was ever saved in it is known already, and is saved again. So nobody waits for a disk: the
    /// thread opens it. What of it is refused is told by [`StateFile::take_refused`].
    ///
    /// # Errors
    /// There is no thread.
    pub fn behind_memory(path: &Path) -> Result<StateFile, FileError> {
        StateFile::begin(path, Desk::default(), None, BTreeMap::new())
    }

    fn begin(path: &Path, desk: Desk, database: Option<Database>, slots: BTreeMap<String, u8>) -> Result<StateFile, FileError> {
        let shared = Arc::new(Shared { desk: Mutex::new(desk), changed: Condvar::new() });
        let writer = Writer { shared: Arc::clone(&shared), path: path.to_owned(), database, slots };
        let writer = std::thread::Builder::new().name("state-file".to_owned()).spawn(move || writer.run());
        let writer = writer.map_err(|source| FileError::Thread { path: path.to_owned(), source })?;
        Ok(StateFile { shared, writer: Some(writer), path: path.to_owned() })
    }

    /// A file that could not be used when the thread opened it, once.
    #[must_use]
    pub fn take_refused(&self) -> Option<FileRefused> {
        self.shared.desk().refused.take()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands a state over to be written.
    ///
    /// # Errors
    /// The name or the size.
    pub fn save(&self, element: &str, sequence: u64, state: &[u8]) -> Result<(), CaptureError> {
        check(element, state)?;
        let handed = Handed { sequence, record: record(element, sequence, state), written: false };
        let mut desk = self.shared.desk();
        if desk.states.get(element).is_none_or(|known| known.sequence < sequence) {
            desk.states.insert(element.to_owned(), handed);
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// Forgets all states: the ARMOR begins afresh.
    pub fn clear(&self) {
        let mut desk = self.shared.desk();
        desk.states.clear();
        desk.clear = true;
        self.shared.changed.notify_all();
    }

    /// How far the writing is.
    #[must_use]
    pub fn state(&self) -> FileState {
        let desk = self.shared.desk();
        let unwritten = desk.states.values().filter(|handed| !handed.written).count();
        FileState { unwritten, trouble: desk.trouble.clone(), transactions: desk.transactions }
    }

    /// Waits until all that was handed over is written, at most for `patience`; whether it is.
    pub fn flush(&self, patience: Duration) -> bool {
        let give_up = Instant::now() + patience;
        let mut desk = self.shared.desk();
        loop {
            if desk.states.values().all(|handed| handed.written) && !desk.clear {
                return true;
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            desk = self.shared.changed.wait_timeout(desk, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        let written = self.flush(LAST_WRITE);
        self.shared.desk().ending = true;
        self.shared.changed.notify_all();
        // A disk that hangs is not waited for.
        if written && let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn record(element: &str, sequence: u64, state: &[u8]) -> Arc<[u8]> {
    let mut record = Vec::with_capacity(HEAD + state.len());
    record.extend_from_slice(&Head::of(element, sequence, state).encode());
    record.extend_from_slice(state);
    record.into()
}

/// What goes into one transaction.
struct Batch {
    clear: bool,
    states: Vec<(String, Handed)>,
}

/// The thread that writes.
struct Writer {
    shared: Arc<Shared>,
    path: PathBuf,
    database: Option<Database>,
    /// The slot that holds the newest state of an element.
    slots: BTreeMap<String, u8>,
}

impl Writer {
    fn run(mut self) {
        let mut pause = None;
        loop {
            let Some(mut batch) = self.next(pause.take()) else { return };
            match self.write(&mut batch) {
                Ok(transacted) => self.written(&batch, u64::from(transacted)),
                Err(reason) => {
                    // After an error redb wants the file to be opened anew.
                    self.database = None;
                    self.shared.desk().trouble = Some(reason);
                    pause = Some(AGAIN);
                }
            }
            self.shared.changed.notify_all();
        }
    }

    /// Waits for something to write; `None` at the end.
    fn next(&self, pause: Option<Duration>) -> Option<Batch> {
        let not_before = Instant::now() + pause.unwrap_or_default();
        let mut desk = self.shared.desk();
        loop {
            if desk.ending {
                return None;
            }
            let left = not_before.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                desk = self.shared.changed.wait_timeout(desk, left).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            // Into a file that is begun anew go all.
            let anew = self.database.is_none() || desk.clear;
            let due = desk.states.iter().filter(|(_, handed)| anew || !handed.written);
            let batch = Batch { clear: desk.clear, states: due.map(|(name, handed)| (name.clone(), handed.clone())).collect() };
            if batch.clear || !batch.states.is_empty() || desk.trouble.is_some() {
                return Some(batch);
            }
            desk = self.shared.changed.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether there was anything to write.
    fn write(&mut self, batch: &mut Batch) -> Result<bool, String> {
        batch.states.iter_mut().for_each(|(_, handed)| handed.written = false);
        if self.database.is_none() {
            let (opened, found) = open(&self.path, Instant::now() + LOCKED_FOR);
            if let Some(refused) = found.file_refused {
                self.shared.desk().refused.get_or_insert(refused);
            }
            self.database = Some(opened.map_err(|refusal| refusal.reason(&self.path))?);
            // What is there already need not be written again.
            let is_there = |element: &str, handed: &Handed| {
                found.slots.iter().any(|(_, kept)| {
                    kept.element == element && kept.sequence == handed.sequence && handed.record.get(HEAD..) == Some(kept.state.as_slice())
                })
            };
            if !batch.clear {
                batch.states.iter_mut().for_each(|(element, handed)| handed.written = is_there(element, handed));
            }
            self.slots = found.slots.into_iter().map(|(slot, kept)| (kept.element, slot)).collect();
        }
        if !batch.clear && !batch.states.is_empty() && batch.states.iter().all(|(_, handed)| handed.written) {
            return Ok(false);
        }
        self.transaction(batch).map(|()| true)
    }

    fn transaction(&mut self, batch: &Batch) -> Result<(), String> {
        let Some(database) = &self.database else { return Err(format!("{} is not open", self.path.display())) };
        let mut slots = self.slots.clone();
        let written = (|| -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            {
                transaction.open_table(ABOUT)?.insert("version", VERSION)?;
                let mut states = transaction.open_table(STATES)?;
                if batch.clear {
                    states.retain(|_, _| false)?;
                }
                for (element, handed) in batch.states.iter().filter(|(_, handed)| !handed.written) {
                    let slot = slots.get(element).map_or(0, |newest| 1 - newest);
                    states.insert((&**element, slot), &*handed.record)?;
                    slots.insert(element.clone(), slot);
                }
            }
            Ok(transaction.commit()?)
        })();
        written.map_err(|error| format!("{}: {error}", self.path.display()))?;
        self.slots = slots;
        Ok(())
    }

    fn written(&self, batch: &Batch, transactions: u64) {
        let mut desk = self.shared.desk();
        desk.trouble = None;
        desk.clear &= !batch.clear;
        desk.transactions += transactions;
        for (element, written) in &batch.states {
            if let Some(handed) = desk.states.get_mut(element).filter(|handed| handed.sequence == written.sequence) {
                handed.written = true;
            }
        }
    }
}

/// What was found, with the slot of each state.
#[derive(Default)]
struct Slots {
    slots: Vec<(u8, Kept)>,
    refused: Vec<Refused>,
    file_refused: Option<FileRefused>,
}

/// Why a file is not open.
enum Refusal {
    InUse,
    /// What is in it is not to be used.
    Content(String),
    /// The disk, most likely; the content may be good.
    Disk(String),
}

impl Refusal {
    fn reason(&self, path: &Path) -> String {
        match self {
            Refusal::InUse => format!("{} is in use by another process", path.display()),
            Refusal::Content(reason) | Refusal::Disk(reason) => format!("{}: {reason}", path.display()),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Disk(error.to_string())
    }
}

/// Reads the file and opens it; one that cannot be used is moved out of the way for another one.
fn open(path: &Path, wait_for_lock: Instant) -> (Result<Database, Refusal>, Slots) {
    let mut found = Slots::default();
    let mut opened = open_present(path, wait_for_lock, &mut found);
    if let Err(Refusal::Content(reason)) = &opened {
        found = Slots::default();
        let aside = put_aside(path).map_err(|error| format!("it cannot be moved out of the way: {error}"));
        let moved = aside.is_ok();
        found.file_refused = Some(FileRefused { reason: format!("{}: {reason}", path.display()), aside });
        if moved {
            opened = open_present(path, wait_for_lock, &mut found);
        }
    }
    (opened, found)
}

fn open_present(path: &Path, wait_for_lock: Instant, found: &mut Slots) -> Result<Database, Refusal> {
    let present = match std::fs::symlink_metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(metadata) = &present
        && !metadata.is_file()
    {
        return Err(Refusal::Content("it is no file".to_owned()));
    }
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = options.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied if present.is_some() => Refusal::Content(error.to_string()),
        _ => Refusal::Disk(error.to_string()),
    })?;
    lock(&file, wait_for_lock)?;
    if present.is_some() {
        read(&file, found)?;
    }
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(true);
    let opened = FileBackend::new(file)
        .map_err(|error| refusal(error.into()))
        .and_then(|backend| builder.create_with_backend(backend).map_err(|error| refusal(error.into())));
    if opened.is_err() && present.is_none() {
        // It was made here, and what could not be begun is nothing that anybody would want to keep.
        let _ = std::fs::remove_file(path);
    }
    // What was read before is good, so this is the disk.
    opened.map_err(|refusal| match refusal {
        Refusal::Content(reason) => Refusal::Disk(reason),
        other => other,
    })
}

fn lock(file: &File, give_up: Instant) -> Result<(), Refusal> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() >= give_up => return Err(Refusal::InUse),
            // A process that was killed a moment ago holds it until it is gone.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}

/// Reads all states from a copy of the file.
fn read(file: &File, found: &mut Slots) -> Result<(), Refusal> {
    let length = file.metadata()?.size();
    if length == 0 {
        return Err(Refusal::Content("it is empty".to_owned()));
    }
    if length > MAX_FILE {
        return Err(Refusal::Content(format!("it has {length} bytes, at most {MAX_FILE} are read")));
    }
    let mut bytes = Vec::new();
    let mut reader = file;
    reader.read_to_end(&mut bytes)?;
    found_in(bytes, found).map_err(|error| match refusal(error) {
        // Nothing but the content can be wrong with a copy in memory.
        Refusal::Disk(reason) => Refusal::Content(reason),
        other => other,
    })
}

fn found_in(bytes: Vec<u8>, found: &mut Slots) -> Result<(), redb::Error> {
    let backend = InMemoryBackend::new();
    redb::StorageBackend::set_len(&backend, bytes.len() as u64).map_err(StorageError::from)?;
    redb::StorageBackend::write(&backend, 0, &bytes).map_err(StorageError::from)?;
    drop(bytes);
    let database = Database::builder().set_check_integrity_on_open(true).create_with_backend(backend)?;
    let transaction = database.begin_read()?;
    let corrupted = |reason: String| redb::Error::Corrupted(reason);
    let version = match transaction.open_table(ABOUT) {
        Ok(about) => about.get("version")?.map(|version| version.value()),
        // Made, and nothing written yet.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if version != Some(VERSION) {
        let version = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        return Err(corrupted(format!("its version is {version}, this release of ARMOR writes version {VERSION}")));
    }
    let states = match transaction.open_table(STATES) {
        Ok(states) => states,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut best: BTreeMap<String, (u8, Kept)> = BTreeMap::new();
    for entry in states.iter()? {
        let (key, value) = entry?;
        let ((element, slot), record) = (key.value(), value.value());
        match whole(element, slot, record) {
            Ok(kept) if best.get(element).is_some_and(|(_, better)| better.sequence > kept.sequence) => {}
            Ok(kept) => {
                best.insert(element.to_owned(), (slot, kept));
            }
            Err(reason) => found.refused.push(Refused { element: element.to_owned(), reason: format!("a state on disk: {reason}") }),
        }
    }
    found.slots = best.into_values().collect();
    Ok(())
}

fn whole(element: &str, slot: u8, record: &[u8]) -> Result<Kept, &'static str> {
    let Some((head, state)) = record.split_first_chunk::<HEAD>() else { return Err("it is cut") };
    match Head::decode(head) {
        Found::Head(head) if slot < 2 && head.element == element && head.is_of(state) && state.len() <= MAX_STATE => {
            Ok(Kept { element: head.element, sequence: head.sequence, state: state.to_vec() })
        }
        Found::Head(_) => Err("its checksum is wrong"),
        Found::Damaged(reason) => Err(reason),
        Found::Nothing => Err("it is blank"),
    }
}

fn refusal(error: redb::Error) -> Refusal {
    match error {
        redb::Error::DatabaseAlreadyOpen => Refusal::InUse,
        redb::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => Refusal::Disk(error.to_string()),
        redb::Error::UpgradeRequired(version) => {
            Refusal::Content(format!("its format is version {version} of redb's, which this release of ARMOR does not read"))
        }
        redb::Error::Corrupted(reason) => Refusal::Content(reason),
        other => Refusal::Content(other.to_string()),
    }
}

/// Moves what is in the place of the file out of the way, and sees that not too many are kept so.
fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let begins = format!("{}.refused-", name.to_string_lossy());
    let mut others: Vec<_> = std::fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.strip_prefix(&begins)?.parse::<u64>().ok()?, entry.path())))
        .collect();
    others.sort();
    // Later than those that are there, whatever the clock says.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let stamp = others.last().map_or(now, |(newest, _)| now.max(newest.saturating_add(1)));
    let aside = directory.join(format!("{begins}{stamp}"));
    std::fs::rename(path, &aside)?;
    for (_, oldest) in others.iter().rev().skip(KEPT_ASIDE - 1) {
        // It is an economy: what cannot be removed stays.
        let _ = if oldest.is_dir() { std::fs::remove_dir_all(oldest) } else { std::fs::remove_file(oldest) };
    }
    Ok(aside)
}

impl From<DatabaseError> for Refusal {
    fn from(error: DatabaseError) -> Refusal {
        refusal(error.into())
    }
}
