//! Applications that hang (thesis §3.3.2, time domain): they are killed, and then recovered as after a crash. And the probes by a command,
//! which need no connection.
//!
//! Invariant: a kill is of the life that was found to hang, and of its process group alone.

use std::time::{Duration, Instant};

use armor_core::context::Context;
use armor_core::events::{Event, now_ms};
use armor_proto::hookup::ENV_SERVICE;
use armor_proto::ids::Incarnation;
use rustix::process::{Signal, getpgid, kill_process};
use tokio::process::Command;

use super::{AppOversight, kill_group, pid_of};
use crate::endpoints::{Series, descriptors};
use crate::operations::{AppHung, ApplicationState};

/// How one probe went.
#[derive(Debug, PartialEq, Eq)]
enum Probed {
    Well,
    /// Why not.
    Unwell(String),
    /// The command itself cannot be run, which says nothing of the application.
    NotRun(String),
}

impl AppOversight {
    /// Somebody has found that an application hangs.
    pub(super) fn hung(&mut self, hung: &AppHung, context: &mut Context<'_>) {
        let Some(application) = self.applications.get_mut(&hung.name) else { return };
        let lives = application.state == ApplicationState::Running && application.incarnation == hung.incarnation;
        if !lives || application.stopping.is_some() || application.hung_at_ms.is_some() {
            return;
        }
        let all = hung.processes.is_empty() || hung.processes.contains(&application.pid);
        let pids = if all { vec![application.pid] } else { hung.processes.clone() };
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let told = Event::new("application-hung").with("service", &hung.name).with("pid", pids.join(","));
        context.event(told.with("why", &hung.why).with("silent_ms", hung.silent_ms));
        if all {
            application.hung_at_ms = Some(now_ms());
            return kill_group(application.pid, Signal::KILL);
        }
        // Single ones of a server of several processes: the server lives, and starts others in their places.
        for pid in hung.processes.iter().filter_map(|&pid| pid_of(pid)) {
            if getpgid(Some(pid)).ok() == pid_of(application.pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Probes a life of an application that has just begun, or been taken up, if its service file names a command for it.
    pub(super) fn probe_by_command(&self, name: &str, context: &mut Context<'_>) {
        let Some(application) = self.applications.get(name).filter(|app| !app.spec.health.command.is_empty()) else { return };
        let (health, life) = (&application.spec.health, application.incarnation);
        let [interval, timeout, starting] =
            [health.interval_ms, health.timeout_ms, application.spec.deadline_ms].map(Duration::from_millis);
        let mut series = Series::of_starting(health.failures, starting, Instant::now());
        let (name, handle) = (name.to_owned(), context.handle::<Self>());
        context.spawn(async move {
            let mut told = false;
            loop {
                tokio::time::sleep(interval).await;
                let Some(Some(probe)) = handle.call(|element, _| element.probe_of(&name, life)) else { return };
                let probed = match probe {
                    Ok(command) => run(command, timeout).await,
                    Err(error) => Probed::NotRun(error.to_string()),
                };
                match probed {
                    Probed::Well => series.passed(Instant::now()),
                    Probed::Unwell(why) => {
                        let Some(silent) = series.failed(Instant::now()) else { continue };
                        let why = series.as_reason(why);
                        let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
                        let hung = AppHung { name, incarnation: life, processes: Vec::new(), why, silent_ms };
                        handle.call(|element, context| element.hung(&hung, context));
                        return;
                    }
                    Probed::NotRun(reason) if !std::mem::replace(&mut told, true) => {
                        handle.call(|_, context| {
                            context.event(Event::new("application-not-probed").with("service", &name).with("reason", reason))
                        });
                    }
                    Probed::NotRun(_) => {}
                }
            }
        });
    }

    /// The command that probes a life of an application; `None` when that is over.
    fn probe_of(&self, name: &str, life: Incarnation) -> Option<Result<Command, String>> {
        let lives = |app: &&super::Application| app.state == ApplicationState::Running && app.incarnation == life && app.stopping.is_none();
        let application = self.applications.get(name).filter(lives).filter(|_| !self.ending)?;
        let spec = &application.spec;
        spec.health.command.first()?;
        // A client of the application, whose connections are protected as those of any other one.
        let command = super::program::protected(spec, &spec.health.command, &self.run_dir, &self.log(name));
        Some(command.map(|mut command| {
            command.env_remove(ENV_SERVICE);
            descriptors::end_with_this_process(command.as_std_mut());
            command
        }))
    }
}

/// Runs a probe to its end, or kills its group when that takes too long.
async fn run(mut command: Command, timeout: Duration) -> Probed {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Probed::NotRun(format!("{program:?} cannot be started: {error}")),
    };
    let group = child.id().unwrap_or(0);
    let ended = tokio::time::timeout(timeout, child.wait()).await;
    // And what it has left behind.
    kill_group(group, Signal::KILL);
    match ended {
        Ok(Ok(status)) if status.success() => Probed::Well,
        Ok(Ok(status)) => Probed::Unwell(format!("{program:?} ended with {status}")),
        Ok(Err(error)) => Probed::NotRun(format!("{program:?} cannot be waited for: {error}")),
        Err(_) => {
            let _ = child.wait().await;
            Probed::Unwell(format!("{program:?} did not end within {} ms", timeout.as_millis()))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn command(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0);
        command
    }

    #[tokio::test]
    async fn a_command_says_that_all_is_well_by_its_status_and_in_time() {
        let long = Duration::from_secs(60);
        assert_eq!(run(command("exit 0"), long).await, Probed::Well);
        assert_eq!(run(command("exit 3"), long).await, Probed::Unwell("\"sh\" ended with exit status: 3".to_owned()));
        assert_eq!(run(command("kill -9 $$"), long).await, Probed::Unwell("\"sh\" ended with signal: 9 (SIGKILL)".to_owned()));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; kill -STOP $$", file.display());
        let hanging = run(command(&script), Duration::from_millis(500)).await;
        assert_eq!(hanging, Probed::Unwell("\"sh\" did not end within 500 ms".to_owned()));
        // Nothing of its group is left.
        let left: u32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        while !crate::endpoints::is_exiting(left) {
            tokio::task::yield_now().await;
        }
        assert!(matches!(run(Command::new("/nowhere/probe"), long).await, Probed::NotRun(_)));
    }
}
