//! How many descriptors this process may have: an ARMOR needs about three per connection, and the usual limit is 1024. And what else a
//! program is given between fork and exec.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};

/// The limit that this process was started with.
static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// Takes as many as the kernel allows. Processes that are started later are to get the usual limit: see [`with_usual_limit`].
pub fn take_all() {
    let inherited = INHERITED.get_or_init(|| getrlimit(Resource::Nofile));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: inherited.maximum, ..*inherited }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Gives a program the limit that this process was started with: some do not work with descriptors beyond it.
pub fn with_usual_limit(command: &mut Command) {
    let Some(usual) = INHERITED.get().filter(|usual| **usual != getrlimit(Resource::Nofile)) else { return };
    let usual = *usual;
    // SAFETY: between fork and exec only setrlimit(2) is called, which takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::Nofile, usual)?));
    }
}

/// Lets a program not outlive this process, however that ends: only for what is started from the main thread.
pub fn end_with_this_process(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) is called, which takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}
