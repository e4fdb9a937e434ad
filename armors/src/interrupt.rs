//! Ctrl-C, SIGTERM and SIGHUP during a demo or a campaign: they ask it to stop, and what it has started is ended in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody wants the end.
#[derive(Clone)]
pub(crate) struct Interrupt {
    wanted: Arc<AtomicBool>,
}

/// Somebody did.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Interrupt {
    /// From now on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the kernel refuses a signal handler or a thread.
    pub(crate) fn watch() -> anyhow::Result<Interrupt> {
        let interrupt = Interrupt { wanted: Arc::new(AtomicBool::new(false)) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("signals cannot be watched")?;
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let mut signals = {
                let _entered = runtime.enter();
                signal(kind).context("signals cannot be watched")?
            };
            let wanted = Arc::clone(&interrupt.wanted);
            runtime.spawn(async move {
                while signals.recv().await.is_some() {
                    wanted.store(true, Ordering::Relaxed);
                }
            });
        }
        let watch = move || runtime.block_on(std::future::pending::<()>());
        std::thread::Builder::new().name("signals".into()).spawn(watch).context("no thread for signals")?;
        Ok(interrupt)
    }

    /// Goes on unless somebody wants the end.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.wanted.load(Ordering::Relaxed) {
            bail!(Interrupted);
        }
        Ok(())
    }
}
