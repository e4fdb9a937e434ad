//! An ARMOR and the vault that has started it: each watches the other.
//!
//! The vault hears from the ARMOR's own thread that it is alive. When the vault is lost the ARMOR starts another one, and whoever keeps
//! something finds it and keeps it there again.

use std::process::Child;
use std::time::Duration;

use armor_elements::endpoints::descriptors;
use armor_vault::Keeper;

use crate::environment::ArmorDirectory;

/// Pause between two signs of life; a vault waits ten times as long by default.
const ALIVE: Duration = Duration::from_millis(100);
/// Pause between two tries to reach a vault that has just been started, and how many until it is started again.
const REACH: (Duration, u32) = (Duration::from_millis(5), 2000);
/// Pause before the next one is started when one was not reached.
const AGAIN: Duration = Duration::from_millis(50);

/// Says that this ARMOR is alive, for ever.
pub(crate) async fn watch(directory: ArmorDirectory) {
    let keeper = match Keeper::unconnected(&directory.vault_socket(), &directory.name) {
        Ok(keeper) => keeper,
        Err(error) => return tracing::error!(%error, "nobody watches this ARMOR"),
    };
    let mut replacements: Vec<Child> = Vec::new();
    if let Err(error) = keeper.reconnect() {
        // It may have died while this ARMOR was starting.
        tracing::warn!(%error, "another vault is started");
        replace(&keeper, &directory, &mut replacements).await;
    }
    loop {
        if let Err(error) = keeper.alive() {
            tracing::warn!(%error, "another vault is started");
            replace(&keeper, &directory, &mut replacements).await;
        }
        // Vaults of earlier failures are children of this process.
        replacements.retain_mut(|vault| vault.try_wait().is_ok_and(|ended| ended.is_none()));
        tokio::time::sleep(ALIVE).await;
    }
}

/// A vault that was started and has not been reached yet: it has not heard of this ARMOR's end, and would start it again. So it ends with it, unless that
/// is killed.
struct Unreached<'a>(&'a mut Child);

impl Drop for Unreached<'_> {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn replace(keeper: &Keeper, directory: &ArmorDirectory, replacements: &mut Vec<Child>) {
    loop {
        let command = armor_vault::replacement(&directory.name, directory.path());
        let spawned = command.and_then(|mut command| {
            // It gives the ARMOR's next life the limit that it has itself.
            descriptors::with_usual_limit(&mut command);
            command.spawn()
        });
        match spawned {
            Ok(mut vault) => {
                let unreached = Unreached(&mut vault);
                if reaches(keeper, &mut *unreached.0).await {
                    std::mem::forget(unreached);
                    return replacements.push(vault);
                }
            }
            Err(error) => tracing::error!(%error, "a vault cannot be started"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether the vault is reached before it ends, and in time.
async fn reaches(keeper: &Keeper, vault: &mut Child) -> bool {
    for _ in 0..REACH.1 {
        tokio::time::sleep(REACH.0).await;
        if keeper.reconnect().is_ok() {
            return true;
        }
        // It may have been killed as well.
        if vault.try_wait().is_ok_and(|ended| ended.is_some()) {
            return false;
        }
    }
    tracing::warn!(vault = vault.id(), "a vault that was started is not reached; another one is started");
    false
}
