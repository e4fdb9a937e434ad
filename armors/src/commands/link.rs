//! `armor link`: emulated links between two network namespaces.

use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};

use crate::environment::{Base, Place};
use crate::interrupt::Interrupt;
use crate::link::control::{self, Reply, Request};
use crate::link::emulator::{Change, Dark, Emulator, WayReport};
use crate::link::namespace::Namespace;
use crate::link::network::{Address, End, Network, Way};
use crate::link::settings::{Settings, Span};
use crate::link::trace::Trace;
use crate::output::{self, Table};

/// How often signals and the program are looked after.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long the program may take to end when it is asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Emulate network links with delay, loss, a rate and blackouts (root)
///
/// Two network namespaces, the ends a and b, are joined by a link, or by those of a link file. Nothing outside of them is touched, and nothing is left
/// when the emulator ends, even by SIGKILL. See docs/link.md.
#[derive(clap::Args)]
pub(crate) struct Link {
    #[command(subcommand)]
    command: LinkCommand,
}

#[derive(clap::Subcommand)]
enum LinkCommand {
    Up(Box<Up>),
    Exec(Exec),
    Set(Box<Set>),
    Stats(Stats),
    Down(Down),
}

impl Link {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            LinkCommand::Up(up) => up.run(),
            LinkCommand::Exec(exec) => exec.run(),
            LinkCommand::Set(set) => set.run(),
            LinkCommand::Stats(stats) => stats.run(),
            LinkCommand::Down(down) => down.run(),
        }
    }
}

/// Start links, and a program at end a if one is given; ends with it, or with Ctrl-C or `armor link down`
#[derive(clap::Args)]
struct Up {
    /// What the other subcommands call it
    name: String,
    /// Several links, or different ways there and back, from a link file (docs/link.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["trace", "addresses", "device_mtu"])]
    file: Option<PathBuf>,
    /// Play rate, loss and delay from a trace: lines `time rate loss delay`
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Addresses of the ends a and b [default: 10.77.0.1/24 10.77.0.2/24]
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    addresses: Option<Vec<Address>>,
    /// MTU of the TUN devices [default: 1500]
    #[arg(long, value_name = "BYTES")]
    device_mtu: Option<u32>,
    /// Repeats what was drawn [default: a random one, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Print the statistics at the end as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    place: Place,
    /// A program for end a and its arguments, after `--`; its exit status is that of `armor link up`
    #[arg(last = true)]
    command: Vec<String>,
}

impl Up {
    fn run(self) -> anyhow::Result<ExitCode> {
        let base = Base::of(&self.place)?;
        let place = control::Place::of(&base, &self.name)?;
        let network = self.network()?;
        let mut emulator = Emulator::start(network)?;
        let listener = place.listen(&base)?;
        let ended = self.serve(&mut emulator, &listener);
        place.remove();
        let status = ended?;
        let report = emulator.report()?;
        let text = if self.json { json(emulator.seed(), &report)? } else { table(&report) };
        self.tell(&text)?;
        Ok(status)
    }

    fn network(&self) -> anyhow::Result<Network> {
        let mut network = match &self.file {
            Some(file) => {
                let mut network = Network::read(file)?;
                for link in &mut network.links {
                    for settings in &mut link.settings {
                        *settings = self.settings.clone().over(std::mem::take(settings));
                    }
                }
                network
            }
            None => {
                let addresses = self.addresses.as_ref().and_then(|addresses| <[Address; 2]>::try_from(&addresses[..]).ok());
                let trace = self.trace.as_deref().map(Trace::read).transpose()?;
                Network::of_one(&self.settings, addresses, self.device_mtu, trace)?
            }
        };
        network.seed = self.seed.or(network.seed);
        Ok(network)
    }

    /// Until the end: how the program has ended.
    fn serve(&self, emulator: &mut Emulator, listener: &std::os::unix::net::UnixListener) -> anyhow::Result<ExitCode> {
        let interrupt = Interrupt::watch()?;
        let mut program = match &self.command[..] {
            [] => None,
            [name, arguments @ ..] => Some(emulator.spawn(End::A, Command::new(name).args(arguments))?),
        };
        let links: Vec<_> = emulator.links().map(|(name, [a, b])| format!("{name} ({a} to {b})")).collect();
        self.tell(&format!("{}: up, {}, seed {}\n", self.name, links.join(", "), emulator.seed()))?;
        let mut down = false;
        let status = loop {
            if let Some(program) = &mut program
                && let Some(status) = program.try_wait().context("the program cannot be waited for")?
            {
                break exit_code(status);
            }
            if down || interrupt.check().is_err() {
                break ExitCode::SUCCESS;
            }
            let mut polled = [PollFd::new(listener, PollFlags::IN)];
            let _ = rustix::event::poll(&mut polled, Some(&LOOK));
            control::answer(listener, |request| answer(emulator, request, &mut down));
        };
        if let Some(program) = &mut program {
            end(program)?;
        }
        Ok(status)
    }

    /// To stdout, which is the program's if there is one: then to stderr.
    fn tell(&self, text: &str) -> anyhow::Result<()> {
        if self.command.is_empty() {
            output::print(text)
        } else {
            eprint!("{text}");
            Ok(())
        }
    }
}

fn answer(emulator: &mut Emulator, request: Request, down: &mut bool) -> Reply {
    let done = match request {
        Request::Change(change) => emulator.change(*change).map(|()| Reply::Done),
        Request::Report => emulator.report().map(|ways| Reply::Report { seed: emulator.seed(), ways }),
        Request::Namespaces => {
            let path = |fd: RawFd| PathBuf::from(format!("/proc/{}/fd/{fd}", std::process::id()));
            Ok(Reply::Namespaces([End::A, End::B].map(|end| path(emulator.namespace(end).file().as_raw_fd()))))
        }
        Request::Down => {
            *down = true;
            Ok(Reply::Done)
        }
    };
    done.unwrap_or_else(|error| Reply::Failed(format!("{error:#}")))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Ends a program that may have ended.
fn end(program: &mut Child) -> anyhow::Result<()> {
    if program.try_wait()?.is_none()
        && let Some(pid) = Pid::from_raw(program.id() as i32)
    {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        let asked = Instant::now();
        while program.try_wait()?.is_none() {
            if asked.elapsed() > ENDS_WITHIN {
                program.kill().and_then(|()| program.wait()).context("the program cannot be killed")?;
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// Run a program at an end, in place of this one
#[derive(clap::Args)]
struct Exec {
    /// Name given to `armor link up`
    name: String,
    /// Where
    end: End,
    #[command(flatten)]
    place: Place,
    /// The program and its arguments, after `--`
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Exec {
    fn run(self) -> anyhow::Result<ExitCode> {
        let place = control::Place::of(&Base::of(&self.place)?, &self.name)?;
        let Reply::Namespaces(paths) = place.ask(&Request::Namespaces)? else { bail!("{}: an unexpected answer", self.name) };
        Namespace::open(&paths[self.end as usize])?.enter()?;
        let [program, arguments @ ..] = &self.command[..] else { bail!("no program") };
        let error = Command::new(program).args(arguments).exec();
        eprintln!("armor: {program} cannot be run: {error}");
        Ok(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }))
    }
}

/// Change links that run
#[derive(clap::Args)]
struct Set {
    /// Name given to `armor link up`
    name: String,
    /// One link of several
    #[arg(long)]
    link: Option<String>,
    /// One way only
    #[arg(long)]
    way: Option<Way>,
    /// Dark from now on: for a time like 2s, or until --up
    #[arg(long, value_name = "FOR", num_args = 0..=1)]
    down: Option<Option<Span>>,
    /// End what --down began
    #[arg(long, conflicts_with = "down")]
    up: bool,
    /// New address of end a; the old one is removed
    #[arg(long, value_name = "ADDRESS")]
    address_a: Option<Address>,
    /// New address of end b
    #[arg(long, value_name = "ADDRESS")]
    address_b: Option<Address>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    place: Place,
}

impl Set {
    fn run(self) -> anyhow::Result<ExitCode> {
        let place = control::Place::of(&Base::of(&self.place)?, &self.name)?;
        let dark = match self.down {
            Some(Some(Span(length))) => Some(Dark::For(length)),
            Some(None) => Some(Dark::UntilChanged),
            None => self.up.then_some(Dark::NotAnyMore),
        };
        let addresses = [self.address_a, self.address_b];
        let said = self.settings != Settings::default() || dark.is_some() || addresses.iter().any(Option::is_some);
        ensure!(said, "nothing to change; `armor link set --help` lists what can be changed");
        let change = Change { link: self.link, way: self.way, settings: self.settings, dark, addresses };
        place.ask(&Request::Change(Box::new(change)))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Show what has happened to the packets so far
#[derive(clap::Args)]
struct Stats {
    /// Name given to `armor link up`
    name: String,
    /// As JSON, every counter
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

impl Stats {
    fn run(self) -> anyhow::Result<ExitCode> {
        let place = control::Place::of(&Base::of(&self.place)?, &self.name)?;
        let Reply::Report { seed, ways } = place.ask(&Request::Report)? else { bail!("{}: an unexpected answer", self.name) };
        output::print(&if self.json { json(seed, &ways)? } else { table(&ways) })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// End links
#[derive(clap::Args)]
struct Down {
    /// Name given to `armor link up`
    name: String,
    #[command(flatten)]
    place: Place,
}

impl Down {
    fn run(self) -> anyhow::Result<ExitCode> {
        control::Place::of(&Base::of(&self.place)?, &self.name)?.ask(&Request::Down)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn json(seed: u64, ways: &[WayReport]) -> anyhow::Result<String> {
    Ok(serde_json::to_string(&serde_json::json!({ "seed": seed, "ways": ways }))? + "\n")
}

fn table(ways: &[WayReport]) -> String {
    let heads = [
        "LINK",
        "WAY",
        "ENTERED",
        "LEFT",
        "BYTES LEFT",
        "LOST",
        "IN BURSTS",
        "IN BLACKOUTS",
        "QUEUE FULL",
        "REORDERED",
        "COPIES",
        "CORRUPTED",
    ];
    let mut table = Table::new(&heads);
    for WayReport { link, way, counts, .. } in ways {
        let way = match way {
            Way::AToB => "a to b",
            Way::BToA => "b to a",
        };
        let numbers = [
            counts.entered_packets,
            counts.left_packets,
            counts.left_bytes,
            counts.lost,
            counts.lost_in_bursts,
            counts.lost_in_blackouts,
            counts.queue_dropped,
            counts.reordered,
            counts.duplicated,
            counts.corrupted,
        ];
        table.row([link.clone(), way.to_owned()].into_iter().chain(numbers.map(|number| number.to_string())));
    }
    table.render()
}
