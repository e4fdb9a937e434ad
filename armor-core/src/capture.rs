//! Captured element state: what outlives an ARMOR's process (thesis §3.2.1).
//!
//! [`StateStore`] is what the ARMOR sees: the element that keeps states (`state_capture`) gives one out, and each other element's state comes from
//! it at a restart. [`CapturedStates`] is the store of this project: states in memory that outlives the process ([`StateMemory`]), and, where a
//! composition asks for it, in a file ([`StateFile`]). Of each element two states are kept, the older one is written over, and each has a checksum.
//!
//! Invariants: the newest whole state is never written to; a state whose checksum is wrong is never given back, the one before is.

mod disk;
mod memory;
mod record;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

pub use disk::{FileError, FileFound, FileRefused, FileState, StateFile};
pub use memory::{MAX_ELEMENTS, StateMemory};

/// Largest state of one element; a larger one is refused.
pub const MAX_STATE: usize = 256 << 20;

/// Where captured states outlive their ARMOR.
pub trait StateStore {
    /// The newest whole state of an element, and what had to be refused on the way to it. Given once, at the start.
    fn load(&mut self, element: &str) -> Loaded;

    /// An element could not take its state back: what the store has is not all that the ARMOR knew.
    fn not_taken(&mut self, element: &str);

    /// The ARMOR starts without the states of its earlier life.
    ///
    /// # Errors
    /// They cannot be left behind: the kernel has no memory.
    fn start_afresh(&mut self) -> io::Result<()>;
}

/// What a store has for an element.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Its newest whole state.
    pub state: Option<Vec<u8>>,
    /// Damaged ones, for people.
    pub refused: Vec<String>,
}

/// A state that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Whose.
    pub element: String,
    /// Which.
    pub sequence: u64,
    /// The state.
    pub state: Vec<u8>,
}

/// A state that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whose, as far as that can be read.
    pub element: String,
    /// Why.
    pub reason: String,
}

/// Why a state was not saved. The one that was saved before stays.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The kernel has no memory for it.
    #[error("memory for captured states: {0}")]
    Memory(#[source] io::Error),
    /// More than [`MAX_STATE`].
    #[error("the state has {bytes} bytes, at most {MAX_STATE} are kept")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not a name that elements have.
    #[error("{element:?} is no name of an element")]
    Name {
        /// What was given.
        element: String,
    },
    /// All places are taken.
    #[error("states of {MAX_ELEMENTS} elements are kept already")]
    Full,
}

fn check(element: &str, state: &[u8]) -> Result<(), CaptureError> {
    if !record::is_name(element) {
        return Err(CaptureError::Name { element: element.to_owned() });
    }
    if state.len() > MAX_STATE {
        return Err(CaptureError::TooLarge { bytes: state.len() });
    }
    Ok(())
}

/// States in memory, and on disk behind it.
#[derive(Debug)]
pub struct CapturedStates {
    memory: StateMemory,
    file: Option<StateFile>,
    sequences: HashMap<String, u64>,
    found: HashMap<String, Loaded>,
    /// What was refused and belongs to no element that can be told.
    nobodys: Vec<Refused>,
    file_refused: Option<FileRefused>,
    whole: bool,
}

impl CapturedStates {
    /// Takes up the memory that an earlier life has left, if any, and opens the file, if one is wanted.
    ///
    /// # Errors
    /// For people: the kernel has no memory, or the file belongs to another process.
    pub fn open(left: Option<OwnedFd>, file: Option<&Path>) -> Result<CapturedStates, String> {
        let no_memory = |error: io::Error| format!("no memory for captured states: {error}");
        let mut refused = Vec::new();
        let taken_up = left.map(StateMemory::open);
        let resumed = matches!(taken_up, Some(Ok(_)));
        let (memory, mut kept) = match taken_up {
            Some(Ok((memory, kept, damaged))) => {
                refused.extend(damaged);
                (memory, kept)
            }
            Some(Err(error)) => {
                refused.push(Refused { element: "all".to_owned(), reason: format!("the memory of the earlier life: {error}") });
                (StateMemory::create().map_err(no_memory)?, Vec::new())
            }
            None => (StateMemory::create().map_err(no_memory)?, Vec::new()),
        };
        let mut states = CapturedStates {
            memory,
            file: None,
            sequences: HashMap::new(),
            found: HashMap::new(),
            nobodys: Vec::new(),
            file_refused: None,
            // Memory that was not there before may lack what the file had yet to be told.
            whole: resumed && refused.is_empty(),
        };
        let in_memory: HashMap<String, u64> = kept.iter().map(|kept| (kept.element.clone(), kept.sequence)).collect();
        if let Some(path) = file
            && states.whole
        {
            // The memory has everything. Opening the file takes several syncs, for which a next life would wait.
            states.file = Some(StateFile::behind_memory(path).map_err(|error| error.to_string())?);
        } else if let Some(path) = file {
            let (file, mut found) = StateFile::open(path).map_err(|error| error.to_string())?;
            refused.append(&mut found.refused);
            states.file_refused = found.file_refused;
            // From here on the memory has everything, so that it alone is enough for the next life.
            for on_disk in
                found.kept.into_iter().filter(|on_disk| in_memory.get(&on_disk.element).is_none_or(|known| *known < on_disk.sequence))
            {
                if let Err(error) = states.memory.save(&on_disk.element, on_disk.sequence, &on_disk.state) {
                    refused.push(Refused { element: on_disk.element.clone(), reason: error.to_string() });
                }
                kept.push(on_disk);
            }
            states.file = Some(file);
        }
        for Kept { element, sequence, state } in kept {
            states.sequences.insert(element.clone(), sequence);
            // The file comes behind the memory where it is newer.
            states.found.entry(element).or_default().state = Some(state);
        }
        for refused in refused {
            match states.found.get_mut(&refused.element) {
                Some(loaded) => loaded.refused.push(refused.reason),
                None if refused.element.contains(' ') || refused.element == "all" => states.nobodys.push(refused),
                None => states.found.entry(refused.element).or_default().refused.push(refused.reason),
            }
        }
        // Behind a memory that lacks something the file may be older than what was known.
        states.put_the_rest_on_disk();
        Ok(states)
    }

    /// What the file does not have yet, because it is another one or was behind.
    fn put_the_rest_on_disk(&mut self) {
        let Some(file) = &self.file else { return };
        for (element, loaded) in &self.found {
            if let (Some(state), Some(&sequence)) = (&loaded.state, self.sequences.get(element)) {
                // Checked when it was saved the first time.
                let _ = file.save(element, sequence, state);
            }
        }
    }

    /// Saves a state: in memory when this returns, on disk soon.
    ///
    /// # Errors
    /// The state that was saved before stays.
    pub fn save(&mut self, element: &str, state: &[u8]) -> Result<(), CaptureError> {
        let sequence = self.sequences.get(element).map_or(1, |newest| newest + 1);
        self.memory.save(element, sequence, state)?;
        if let Some(file) = &self.file {
            file.save(element, sequence, state)?;
        }
        self.sequences.insert(element.to_owned(), sequence);
        Ok(())
    }

    /// The memory, which somebody else has to keep.
    #[must_use]
    pub fn memory(&self) -> &StateMemory {
        &self.memory
    }

    /// The file, where there is one.
    #[must_use]
    pub fn file(&self) -> Option<&StateFile> {
        self.file.as_ref()
    }

    /// A file that could not be used, once.
    pub fn take_file_refused(&mut self) -> Option<FileRefused> {
        self.file_refused.take().or_else(|| self.file.as_ref()?.take_refused())
    }

    /// Damaged states that belong to no element that can be told, once.
    pub fn take_nobodys(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.nobodys)
    }

    /// Number of what is remembered. It stays the same as long as nothing that was ever captured is lost; whoever has told this ARMOR something
    /// under another number tells it again.
    pub fn number(&mut self) -> u64 {
        if !std::mem::replace(&mut self.whole, true) {
            // Where the kernel has no memory for 24 bytes nothing else works either.
            let _ = self.memory.renumber();
        }
        self.memory.number()
    }
}

impl StateStore for CapturedStates {
    fn load(&mut self, element: &str) -> Loaded {
        let loaded = self.found.remove(element).unwrap_or_default();
        self.whole &= loaded.refused.is_empty();
        loaded
    }

    fn not_taken(&mut self, _: &str) {
        self.whole = false;
    }

    fn start_afresh(&mut self) -> io::Result<()> {
        self.memory = StateMemory::create()?;
        self.whole = false;
        self.found.clear();
        self.nobodys.clear();
        if let Some(file) = &self.file {
            file.clear();
        }
        Ok(())
    }
}
