//! `armor launch`: a protected and supervised server, in the background.

mod health;
mod placement;
#[path = "launch/reattach.rs"]
mod reattach;
mod standby;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use armor_elements::operations::{AppLaunch, AppLaunched, ApplicationSpec, OnDivergence, Policy, SpokenBytes};
use armor_proto::ids::ArmorId;
use serde_json::Value;

use reattach::ReattachOptions;

use super::run::{install, warn_if_unprotected};
use crate::client::Client;
use crate::environment::{self, Base, Place};
use crate::program::{self, Found};
use crate::survey::{element, entries, text};
use crate::{output, services};
use health::HealthOptions;

/// Launch a server that is protected, watched and restarted when it fails
///
/// Its clients' connections outlive its crashes. Give the command after `--`, or a service file that describes it;
/// options win over the file.
#[derive(clap::Args)]
pub(crate) struct Launch {
    /// Name of the service, unique on its node
    #[arg(long, required_unless_present = "service")]
    name: Option<String>,
    /// How connections recover [default: request]
    #[arg(long, value_enum)]
    policy: Option<PolicyName>,
    /// Where the protocol is not understood: an answer counts as complete when the server was silent for so long before it was lost
    /// [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    settled: Option<Duration>,
    /// When the restarted server says something else than its client was told already [default: reset]
    #[arg(long, value_enum, value_name = "WHAT")]
    on_divergence: Option<DivergenceName>,
    /// Restarts allowed within a minute; one more failure ends the service [default: 10]
    #[arg(long, value_name = "N")]
    restart_limit: Option<u32>,
    /// Clients get ECONNRESET when a recovery takes longer [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    deadline: Option<Duration>,
    /// What it answers, to begin with, when it is ready; until then clients wait. Escapes: \r \n \t \0 \\ \xHH
    #[arg(long, value_name = "BYTES", value_parser = spoken)]
    ready_expect: Option<SpokenBytes>,
    /// What it is asked, at each start; nothing when it speaks first
    #[arg(long, value_name = "BYTES", value_parser = spoken, requires = "ready_expect")]
    ready_send: Option<SpokenBytes>,
    /// Where it is asked when it listens at several ports [default: the first]
    #[arg(long, value_name = "PORT", requires = "ready_expect")]
    ready_port: Option<u16>,
    /// Pause before it is asked again [default: 0.02]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "ready_expect")]
    ready_interval: Option<Duration>,
    /// How long it may take to answer [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "ready_expect")]
    ready_timeout: Option<Duration>,
    #[command(flatten)]
    standby: standby::StandbyOptions,
    #[command(flatten)]
    placement: placement::PlacementOptions,
    #[command(flatten)]
    reattach: ReattachOptions,
    /// Node to launch on [default: the only one, or node1]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Oversee it by an ARMOR process of its own instead of the node's daemon
    #[arg(long)]
    execution_armor: bool,
    /// Wait until it listens and is ready, at most so long; 0: do not wait [default: 10; with --reattach: 0]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
    /// Set an environment variable for it
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    health: HealthOptions,
    /// Service file (TOML) instead of a command
    #[arg(value_name = "SERVICE.toml", required_unless_present = "command", conflicts_with = "command")]
    service: Option<PathBuf>,
    /// The program and its arguments, after `--`
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PolicyName {
    /// Replay the requests that were not answered in full: HTTP/1 and RESP (Redis), which are recognised; others as with `turn`
    Request,
    /// The same for a server that speaks HTTP/1
    Http,
    /// The same for a server that speaks RESP
    Resp,
    /// Replay what the client has said since it last spoke after an answer
    Turn,
    /// Replay the stream from its beginning
    Stream,
    /// Go on where the stream was, and replay nothing
    Reconnect,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DivergenceName {
    Reset,
    Continue,
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|_| "expected seconds, such as 10 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Bytes as they are typed in a shell.
fn spoken(text: &str) -> Result<SpokenBytes, String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next() {
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'0') => 0,
                Some(b'\\') => b'\\',
                Some(b'x') => {
                    let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                    let (Some(high), Some(low)) = (digit(), digit()) else {
                        return Err("\\x is followed by two hexadecimal digits".to_owned());
                    };
                    (high << 4 | low) as u8
                }
                _ => return Err("a backslash is followed by r, n, t, 0, xHH or another backslash".to_owned()),
            },
            byte => byte,
        });
    }
    Ok(SpokenBytes(bytes))
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    let split = text.split_once('=').filter(|(key, _)| !key.is_empty());
    split.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "expected KEY=VALUE".to_owned())
}

impl Launch {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut spec = self.spec()?;
        let name = spec.name.clone();
        if let Some(refused) = locate_program(&mut spec)? {
            return Ok(refused);
        }
        let base = Base::of(&self.place)?;
        // What has connections to take up is a client, and may serve nothing.
        let usual = if spec.reattach.is_some() { Duration::ZERO } else { Duration::from_secs(10) };
        let wait = self.wait.unwrap_or(usual);
        let daemon = base.node(self.node.as_deref())?;
        let mut client = Client::attach(&daemon)?;
        let overseer = if self.execution_armor { install(&mut client, &daemon, &name)?.armor } else { daemon.armor() };
        let is_client = spec.reattach.is_some();
        let elsewhere = spec.standby_elsewhere.0.into();
        client.send(overseer, AppLaunch { spec })?;
        let launched: AppLaunched = client.wait(Duration::from_secs(10)).with_context(|| format!("{name} on {}", daemon.name))?;
        if !launched.error.is_empty() {
            bail!("{name} cannot be launched on {}: {}", daemon.name, launched.error);
        }
        let mut watch = Watch { client, overseer, name: &name, log: None, is_client, elsewhere };
        let seen = if wait.is_zero() { watch.look()? } else { watch.until_it_serves(wait)? };
        let log = watch.log.map_or_else(|| "unknown".to_owned(), |log| log.display().to_string());
        let addresses = if seen.addresses.is_empty() { String::new() } else { format!(", serves {}", seen.addresses.join(", ")) };
        output::print(&format!("{name}: launched on {}, pid {}{addresses}\nlog: {log}\n", daemon.name, launched.pid))?;
        let patience = wait.as_secs_f64();
        if wait.is_zero() || seen.serves() {
            let (all, warning) = if wait.is_zero() { (None, None) } else { seen.standbys.told(&name, patience) };
            let (elsewhere, too_few) = if wait.is_zero() { (None, None) } else { seen.elsewhere.told(&name, patience) };
            output::print(&format!("{}{}", all.unwrap_or_default(), elsewhere.unwrap_or_default()))?;
            for warning in warning.into_iter().chain(too_few) {
                eprintln!("armor: {warning}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        match seen.unready {
            Some(heard) if !seen.addresses.is_empty() => eprintln!(
                "armor: {name} listens but is not ready after {patience} s: {heard}. It goes on running. Look at its log, or \
                 give it longer with --wait."
            ),
            _ => eprintln!(
                "armor: {name} does not listen on any address after {patience} s; it goes on running. Look at its log, give it longer with --wait, or \
                 use --wait 0 for a program that serves nothing."
            ),
        }
        Ok(ExitCode::from(4))
    }

    fn spec(&self) -> anyhow::Result<ApplicationSpec> {
        let mut spec = match &self.service {
            Some(path) => services::read(path)?,
            None => {
                serde_json::from_value(serde_json::json!({ "name": self.name, "command": self.command })).context("the command line")?
            }
        };
        if let Some(name) = &self.name {
            services::check_name(name).map_err(|reason| anyhow!("--name: {reason}"))?;
            spec.name.clone_from(name);
        }
        if spec.directory.is_none() {
            spec.directory = Some(services::utf8(std::env::current_dir().context("the working directory is gone")?)?);
        }
        spec.environment.extend(self.environment.iter().cloned());
        match self.policy {
            Some(PolicyName::Request) => spec.policy = Policy::Request,
            Some(PolicyName::Http) => spec.policy = Policy::Http,
            Some(PolicyName::Resp) => spec.policy = Policy::Resp,
            Some(PolicyName::Turn) => spec.policy = Policy::Turn,
            Some(PolicyName::Reconnect) => spec.policy = Policy::Reconnect,
            Some(PolicyName::Stream) => spec.policy = Policy::Stream,
            None => {}
        }
        match self.on_divergence {
            Some(DivergenceName::Reset) => spec.on_divergence = OnDivergence::Reset,
            Some(DivergenceName::Continue) => spec.on_divergence = OnDivergence::Continue,
            None => {}
        }
        if let Some(limit) = self.restart_limit {
            spec.restart_limit = limit;
        }
        if let Some(deadline) = self.deadline {
            spec.deadline_ms = milliseconds(deadline);
        }
        if let Some(expect) = &self.ready_expect {
            let question = serde_json::json!({ "expect": "" });
            let question = spec.ready.insert(serde_json::from_value(question).context("the question")?);
            question.expect.clone_from(expect);
            question.send = self.ready_send.clone().unwrap_or_default();
            question.port = self.ready_port;
            question.interval_ms = self.ready_interval.map_or(question.interval_ms, milliseconds);
            question.timeout_ms = self.ready_timeout.map_or(question.timeout_ms, milliseconds);
        }
        self.health.apply(&mut spec.health);
        if let Some(settled) = self.settled {
            spec.settled_ms = Some(u32::try_from(settled.as_millis()).unwrap_or(u32::MAX));
        }
        self.standby.apply(&mut spec);
        self.placement.apply(&mut spec);
        self.reattach.apply(&mut spec)?;
        spec.check().map_err(|(_, reason)| anyhow!("{}: {reason}", spec.name))?;
        Ok(spec)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Makes the program's path absolute, as found from here: the daemon has another PATH and directory.
fn locate_program(spec: &mut ApplicationSpec) -> anyhow::Result<Option<ExitCode>> {
    let Some(program) = spec.command.first_mut() else { bail!("{}: no command", spec.name) };
    match program::find(Path::new(&*program)) {
        Found::At(path) => {
            warn_if_unprotected(&path);
            *program = services::utf8(std::path::absolute(&path).context("the working directory is gone")?)?;
            Ok(None)
        }
        Found::Forbidden(path) => {
            eprintln!("armor: {} is not executable", path.display());
            Ok(Some(ExitCode::from(126)))
        }
        Found::Missing => {
            eprintln!("armor: {program}: command not found");
            Ok(Some(ExitCode::from(127)))
        }
    }
}

/// Watches a launched application until it serves.
struct Watch<'a> {
    client: Client,
    overseer: ArmorId,
    name: &'a str,
    log: Option<PathBuf>,
    /// It need not serve anything, and may be done by now.
    is_client: bool,
    /// So many other nodes are to hold a standby.
    elsewhere: u64,
}

/// What a look at it has shown.
struct Seen {
    /// That it listens on.
    addresses: Vec<String>,
    /// Why it is not ready, while it is not.
    unready: Option<String>,
    standbys: standby::Seen,
    elsewhere: standby::Elsewhere,
}

impl Seen {
    fn serves(&self) -> bool {
        !self.addresses.is_empty() && self.unready.is_none()
    }
}

impl Watch<'_> {
    /// Looks until it serves and its standbys wait, or patience is over.
    ///
    /// # Errors
    /// When it has ended.
    fn until_it_serves(&mut self, patience: Duration) -> anyhow::Result<Seen> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.look()?;
            if seen.serves() && seen.standbys.settled() && seen.elsewhere.settled() || Instant::now() > deadline {
                return Ok(seen);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn look(&mut self) -> anyhow::Result<Seen> {
        let statuses = self.client.statuses(&[ArmorId::FTM, self.overseer], Duration::from_secs(2))?;
        let overseer = self.overseer.to_string();
        let addresses = statuses.get(&ArmorId::FTM).into_iter().flat_map(|ftm| entries(&element(ftm, "APP_SERVER_DB")["servers"]));
        // Another node may have a service of the same name.
        let own = addresses.filter(|row| row["service"] == self.name && row["armor"].as_str().is_none_or(|armor| armor == overseer));
        let own: Vec<String> = own.map(|row| text(&row["address"])).collect();
        let mut placed = statuses.get(&ArmorId::FTM).into_iter().flat_map(|ftm| entries(&element(ftm, "app_placement")["applications"]));
        let placed = placed.find(|row| row["name"] == self.name && row["armor"].as_str().is_none_or(|armor| armor == overseer));
        let elsewhere = standby::Elsewhere::of(placed.unwrap_or(&Value::Null), self.elsewhere);
        let overseer = statuses.get(&self.overseer);
        let readiness = overseer.map_or(&Value::Null, |status| &element(status, "APP_COMM_SERVER")["readiness"][self.name]);
        let unready = (readiness["ready"] != true).then(|| text(&readiness["heard"]));
        let applications = overseer.map_or(&[][..], |status| entries(&element(status, "app_oversight")["applications"]));
        let mut standbys = standby::Seen::default();
        if let Some(row) = applications.iter().find(|row| row["name"] == self.name) {
            standbys = standby::Seen::of(row);
            self.log = row["log"].as_str().map(PathBuf::from);
            let state = text(&row["state"]);
            if own.is_empty() && (state == "given-up" || state == "ended" && !self.is_client) {
                let tail = self.log.as_deref().map_or_else(String::new, |log| format!("; {}", environment::tail(log)));
                let restarts = text(&row["restarts"]);
                bail!(
                    "{} has {} after {restarts} restarts without serving anything{tail}",
                    self.name,
                    if state == "ended" { "ended" } else { "failed for good" }
                );
            }
        }
        Ok(Seen { addresses: own, unready, standbys, elsewhere })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_typed_with_escapes() {
        assert_eq!(spoken(r"PING\r\n\0\x7f\\").map(|bytes| bytes.0), Ok(b"PING\r\n\0\x7f\\".to_vec()));
        assert_eq!(spoken("grün").map(|bytes| bytes.0), Ok("grün".as_bytes().to_vec()));
        for wrong in [r"\", r"\q", r"\x7", r"\xzz"] {
            assert!(spoken(wrong).is_err(), "{wrong}");
        }
    }
}
