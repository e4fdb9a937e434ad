//! A network namespace without a name, which lives as long as somebody holds it or runs in it.
//!
//! Invariant: nothing is left of it when this process ends, however that happens.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// # Errors
    /// When the user may not make one: that takes root.
    pub(crate) fn make() -> anyhow::Result<Namespace> {
        let make = || -> anyhow::Result<File> {
            // Only CLONE_FILES is what makes `unshare` unsafe.
            #[expect(deprecated, reason = "the other one is unsafe, for a flag that is not given here")]
            rustix::thread::unshare(UnshareFlags::NEWNET)
                .context("no network namespace can be made; links need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")?;
            File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")
        };
        let namespace = Namespace { file: in_a_thread(make)?? };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// One of another process, `/proc/PID/fd/N`.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Namespace> {
        Ok(Namespace { file: File::open(path).with_context(|| format!("namespace {}", path.display()))? })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Moves this thread into it for good.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        rustix::thread::move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .context("the network namespace cannot be entered; that needs root")
    }

    /// Does something in it. What is started there stays there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        in_a_thread(|| {
            self.enter()?;
            work()
        })?
    }

    /// Lines for `ip -batch`, in it.
    pub(crate) fn ip(&self, lines: &str) -> anyhow::Result<()> {
        self.inside(|| {
            let mut ip = Command::new("ip");
            ip.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut ip = ip.spawn().context("`ip` cannot be run; install it (Debian: iproute2)")?;
            if let Some(mut stdin) = ip.stdin.take() {
                stdin.write_all(lines.as_bytes()).context("`ip` takes no commands")?;
            }
            let output = ip.wait_with_output().context("`ip`")?;
            if !output.status.success() {
                bail!("`ip` refuses {:?}: {}", lines.trim_end(), String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(())
        })
    }
}

/// A namespace belongs to a thread; one of its own is thrown away afterwards.
fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work).context("no thread")?;
        thread.join().map_err(|_| anyhow::anyhow!("the thread in the namespace has panicked"))
    })
}
