//! A running `bench-client`: it is told what to measure, and answers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde_json::Value;

use super::groups::end;

/// Ends with this value.
pub(super) struct Talker {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Talker {
    /// Starts a client, in a process group of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Talker> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("{name} cannot be executed"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the client's stdout")?;
        let (to, lines) = channel();
        // Ends with the client.
        std::thread::Builder::new()
            .name("answers".into())
            .spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    if line.map(|line| to.send(line)).is_err() {
                        return;
                    }
                }
            })
            .context("no thread for a client's answers")?;
        Ok(Talker { child, stdin, lines })
    }

    pub(super) fn group(&self) -> u32 {
        self.child.id()
    }

    /// Whether it can be asked.
    pub(super) fn listens(&self) -> bool {
        self.stdin.is_some()
    }

    /// Gives an order and waits for the answer.
    ///
    /// # Errors
    /// When it cannot be obeyed, or not in time. After the latter nothing more can be asked.
    pub(super) fn ask(&mut self, order: &str, patience: Duration) -> anyhow::Result<Value> {
        let stdin = self.stdin.as_mut().context("the client has not answered before")?;
        let told = writeln!(stdin, "{order}").and_then(|()| stdin.flush()).with_context(|| format!("{order}: the client has ended"));
        told.inspect_err(|_| self.stdin = None)?;
        let line = self.lines.recv_timeout(patience).map_err(|error| {
            // An answer that comes late would be taken for that of the next order.
            self.stdin = None;
            match error {
                RecvTimeoutError::Timeout => anyhow!("{order}: no answer within {} s", patience.as_secs()),
                RecvTimeoutError::Disconnected => anyhow!("{order}: the client has ended"),
            }
        })?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{order}: the client answers {line:?}"))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{order}: {error}");
        }
        Ok(answer)
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.stdin = None;
        end(&mut self.child, Duration::from_secs(5));
    }
}
