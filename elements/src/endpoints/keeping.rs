//! What an element has kept for it so that it outlives this process: descriptors in the vault of the node, and a journal.
//!
//! Invariant: a descriptor is kept before anybody is told of what hangs on it.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, Setup};
use armor_core::events::Event;
use armor_journal::{Bounds, Journal, Recovery};
use armor_vault::{ENV_VAULT, Exited, Keeper, Notice};

/// Key of the journal.
const JOURNAL: &str = "journal";
/// Pause between two tries to reach a vault that was started in place of a dead one.
const VAULT_AGAIN: Duration = Duration::from_millis(10);

/// An element's part of the vault.
#[derive(Debug, Clone)]
pub struct Keeping {
    keeper: Arc<Keeper>,
}

/// What an earlier life of the element had kept.
#[derive(Debug, Default)]
pub struct Handed {
    descriptors: HashMap<String, OwnedFd>,
    /// Processes that were left behind and have ended since.
    pub exited: Vec<Exited>,
}

impl Handed {
    /// A descriptor, once.
    pub fn take(&mut self, key: &str) -> Option<OwnedFd> {
        self.descriptors.remove(key)
    }

    /// Under which keys there is something.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.descriptors.keys().cloned().collect()
    }
}

impl Keeping {
    /// Finds the vault and what it holds for this element.
    ///
    /// # Errors
    /// There is a vault and it cannot be reached: without it this life could not be taken over.
    pub fn open(setup: &Setup, element: &str) -> Result<(Keeping, Handed), String> {
        let Some(vault) = std::env::var_os(ENV_VAULT).map(PathBuf::from) else {
            return Ok((Keeping { keeper: Arc::new(Keeper::none()) }, Handed::default()));
        };
        let (keeper, handed) = Keeper::connect(&vault, &format!("{}/{element}", setup.name)).map_err(|error| error.to_string())?;
        let handed = Handed { descriptors: handed.kept.into_iter().collect(), exited: handed.exited };
        Ok((Keeping { keeper: Arc::new(keeper) }, handed))
    }

    /// The journal of the earlier life with what is in it, or a new one.
    ///
    /// # Errors
    /// There is no memory for a new one. That an old one cannot be used is told in the recovery's place.
    pub fn journal(&self, handed: &mut Handed, bounds: &Bounds) -> Result<(Journal, Result<Recovery, String>), String> {
        let mut recovery = Ok(Recovery::default());
        if let Some(old) = handed.take(JOURNAL) {
            match Journal::open(old) {
                Ok((journal, found)) => return Ok((journal, Ok(found))),
                Err(error) => recovery = Err(error.to_string()),
            }
        }
        let journal = Journal::create(bounds).map_err(|error| error.to_string())?;
        self.keep_journal(&journal);
        Ok((journal, recovery))
    }

    /// Keeps the journal.
    pub fn keep_journal(&self, journal: &Journal) {
        self.keep(JOURNAL, journal.descriptor());
    }

    /// Keeps a descriptor under a key, in place of what was there.
    pub fn keep(&self, key: &str, descriptor: BorrowedFd<'_>) {
        if let Err(error) = self.keeper.keep(key, descriptor) {
            // When the vault is lost another one is found, and then everything is kept anew.
            tracing::warn!(key, %error, "a descriptor is not kept");
        }
    }

    /// The same for one that may not be there.
    pub fn keep_some(&self, key: &str, descriptor: Option<&OwnedFd>) {
        if let Some(descriptor) = descriptor {
            self.keep(key, descriptor.as_fd());
        }
    }

    /// Lets go of what an earlier life had kept and this one has no use for. The other side of such a socket is told at once, whoever has copies of it.
    pub fn forget_rest(&self, handed: &mut Handed) {
        for (key, descriptor) in handed.descriptors.drain() {
            if super::tcp::is_tcp(&descriptor) {
                // Its client must not take this for the end of what it was told.
                super::tcp::abort(&descriptor);
            }
            // Not a connected socket: nobody is at its other side.
            let _ = rustix::net::shutdown(&descriptor, rustix::net::Shutdown::Both);
            self.forget(&key);
        }
    }

    /// Lets go of what is kept under a key.
    pub fn forget(&self, key: &str) {
        // A vault that is lost has let go of everything.
        let _ = self.keeper.forget(key);
    }

    /// This ARMOR ends by its own will: nothing of the element is kept any more.
    pub fn ended(&self) {
        // A vault that is lost has let go of everything.
        let _ = self.keeper.ended();
    }

    /// Calls `exited` when a process ends that an earlier life had left behind, and `again` when another vault has taken the place of a dead one:
    /// everything has to be kept again.
    pub fn watch<E: Element>(&self, context: &mut Context<'_>, exited: fn(&mut E, &Exited, &mut Context<'_>), again: fn(&mut E)) {
        let (keeper, handle) = (Arc::clone(&self.keeper), context.handle::<E>());
        if !keeper.has_vault() {
            return;
        }
        context.spawn(async move {
            loop {
                listen(&keeper, |notice| {
                    handle.call(|element, context| match notice {
                        Notice::Exited(process) => exited(element, &process, context),
                        Notice::Refused { key, reason } => {
                            context.event(Event::new("not-kept").with("element", E::NAME).with("key", key).with("reason", reason));
                        }
                    });
                })
                .await;
                while keeper.reconnect().is_err() {
                    tokio::time::sleep(VAULT_AGAIN).await;
                }
                let told = handle.call(|element, context| {
                    context.event(Event::new("kept-anew").with("element", E::NAME));
                    again(element);
                });
                if told.is_none() {
                    return;
                }
            }
        });
    }
}

/// Hears the vault until it is lost; it may have been lost before.
async fn listen(keeper: &Keeper, mut hear: impl FnMut(Notice)) {
    let Some(Ok(socket)) = keeper.socket().map(|socket| socket.try_clone()) else { return };
    let Ok(socket) = super::watched::watched(socket) else { return };
    while let Ok(mut ready) = socket.readable().await {
        loop {
            match keeper.receive() {
                Ok(Some(notice)) => hear(notice),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        ready.clear_ready();
    }
}
