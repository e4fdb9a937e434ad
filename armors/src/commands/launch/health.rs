//! `armor launch --health-…`: when the server counts as hung.

use std::time::Duration;

use armor_elements::operations::{Health, SpokenBytes};

use super::{milliseconds, seconds, spoken};

/// Options for `[health]`.
#[derive(clap::Args)]
#[command(next_help_heading = "When it hangs, and is killed")]
pub(super) struct HealthOptions {
    /// Probe it: it has to accept a connection
    #[arg(long, conflicts_with = "health_expect")]
    health_connect: bool,
    /// Probe it: what it answers, to begin with, when it is well. Escapes: \r \n \t \0 \\ \xHH
    #[arg(long, value_name = "BYTES", value_parser = spoken)]
    health_expect: Option<SpokenBytes>,
    /// What it is told to be answered so; nothing when it speaks first
    #[arg(long, value_name = "BYTES", value_parser = spoken, requires = "health_expect")]
    health_send: Option<SpokenBytes>,
    /// Where it is probed when it listens at several ports [default: the first]
    #[arg(long, value_name = "PORT")]
    health_port: Option<u16>,
    /// Probe it by a command line for sh, which ends with status 0 when it is well
    #[arg(long, value_name = "COMMAND")]
    health_command: Option<String>,
    /// Pause between two probes [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    health_interval: Option<Duration>,
    /// How long a probe may take [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    health_timeout: Option<Duration>,
    /// Probes that have to fail in a row [default: 3]
    #[arg(long, value_name = "N")]
    health_failures: Option<u32>,
    /// A process of it that was stopped (SIGSTOP) hangs when input has waited for so long; 0: never [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    health_stopped: Option<Duration>,
    /// It hangs when input has waited for so long and it has done nothing at all meanwhile [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    health_progress: Option<Duration>,
}

impl HealthOptions {
    /// What is given wins over the service file.
    pub(super) fn apply(&self, health: &mut Health) {
        if self.health_connect {
            (health.connect, health.expect, health.send) = (true, None, SpokenBytes::default());
        }
        if let Some(expect) = &self.health_expect {
            (health.connect, health.expect) = (false, Some(expect.clone()));
            health.send = self.health_send.clone().unwrap_or_default();
        }
        if let Some(port) = self.health_port {
            health.port = Some(port);
        }
        if let Some(command) = &self.health_command {
            health.command = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        }
        for (given, key) in [
            (self.health_interval, &mut health.interval_ms),
            (self.health_timeout, &mut health.timeout_ms),
            (self.health_stopped, &mut health.stopped_ms),
        ] {
            *key = given.map_or(*key, milliseconds);
        }
        health.failures = self.health_failures.unwrap_or(health.failures);
        health.progress_ms = self.health_progress.map(milliseconds).or(health.progress_ms);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: HealthOptions,
    }

    fn applied(options: &[&str], mut health: Health) -> Health {
        Line::try_parse_from([&["launch"], options].concat()).unwrap().options.apply(&mut health);
        health
    }

    #[test]
    fn options_win_over_the_file_and_what_is_not_given_stays() {
        let file = Health { connect: true, failures: 7, stopped_ms: 5, port: Some(80), ..Health::default() };
        assert_eq!(applied(&[], file.clone()), file);
        let options = ["--health-expect", "+PONG", "--health-send", r"PING\r\n", "--health-interval", "0.2", "--health-stopped", "0"];
        let expect = Some(SpokenBytes(b"+PONG".to_vec()));
        let asked = Health { connect: false, expect, send: SpokenBytes(b"PING\r\n".to_vec()), interval_ms: 200, stopped_ms: 0, ..file };
        assert_eq!(applied(&options, asked.clone()), asked);
        assert_eq!(asked.check(), Ok(()));
        let connect = applied(&["--health-connect", "--health-failures", "1", "--health-progress", "2.5"], asked);
        assert_eq!((connect.check(), connect.failures, connect.progress_ms), (Ok(()), 1, Some(2500)));
        assert_eq!(applied(&["--health-command", "exit 3"], connect).command, ["/bin/sh", "-c", "exit 3"]);
        assert!(Line::try_parse_from(["launch", "--health-connect", "--health-expect", "x"]).is_err());
        assert!(Line::try_parse_from(["launch", "--health-send", "x"]).is_err());
    }
}
