//! What a schedule is drawn from, and what came of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use armor_proto::connection::{Config, Event, OnDivergence, Reattach, ReattachPolicy, ResetReason, Spill, Transcript};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::apps::Model;

pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// When the server is killed.
#[derive(Clone, Copy, Debug)]
pub enum Kill {
    /// So long after the start.
    At(Duration),
    /// When a process has said so many bytes.
    Said(u64),
    /// When a process has heard so many bytes.
    Heard(usize),
    /// So long after a process was attached.
    Attached(Duration),
}

/// What is lost with the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    Process,
    /// The server's end too.
    Node,
    /// Only this connection's worker: the service lives on and is connected to again.
    Worker,
    /// No process of an application, but the process of the ARMOR at the client's end, the server's, or of one ARMOR that has both.
    ClientArmor,
    ServerArmor,
    BothArmors,
    /// The client's process.
    Client,
}

impl Loss {
    /// The server's processes live on.
    pub fn is_of_armor(self) -> bool {
        matches!(self, Loss::ClientArmor | Loss::ServerArmor | Loss::BothArmors)
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub model: Model,
    pub policy: &'static str,
    /// A silence of so long settles an answer; only for policy `turn`.
    pub settled: Option<Duration>,
    pub config: Config,
    /// Most bytes per answer or upload.
    pub most: usize,
    /// Per mille of frames that are lost, and that come twice.
    pub lost: u32,
    pub doubled: u32,
    pub delay: (u64, u64),
    /// Nothing passes in these times.
    pub cuts: Vec<(Duration, Duration)>,
    pub kills: Vec<(Kill, Loss)>,
    pub restart: (u64, u64),
    /// The server never comes back after this many kills.
    pub restarts: usize,
    /// Every process says something else.
    pub twisted: bool,
    /// Applications stop now and then.
    pub stalls: bool,
    /// The server does too.
    pub server_stalls: bool,
    pub spill: bool,
    /// Per mille of the calls on an application's socket during which an ARMOR dies.
    pub armor_deaths: u32,
    /// How the connection outlives the client's process.
    pub reattach: Option<Reattach>,
    /// How long the client's next process takes to connect, in ms.
    pub client_restart: (u64, u64),
    /// The client's next processes say something else.
    pub client_twisted: bool,
}

impl Plan {
    pub fn new(seed: u64, model: Model, policy: &'static str) -> Self {
        Plan {
            seed,
            model,
            policy,
            settled: None,
            config: Config { window: 8192, log_bound: 1 << 20, max_data: 1500, ..Config::default() },
            most: 40_000,
            lost: 0,
            doubled: 0,
            delay: (1, 1),
            cuts: Vec::new(),
            kills: Vec::new(),
            restart: (5, 120),
            restarts: usize::MAX,
            twisted: false,
            stalls: false,
            server_stalls: true,
            spill: false,
            armor_deaths: 0,
            reattach: None,
            client_restart: (5, 120),
            client_twisted: false,
        }
    }

    /// The same as [`Plan::rough`], or as [`Plan::rough_for_armors`], and the client's process dies too.
    pub fn rough_for_clients(seed: u64, model: Model, policy: &'static str, reattach: ReattachPolicy, kills: usize) -> Self {
        let mut plan = if seed.is_multiple_of(2) {
            Plan::rough(seed, model, policy, kills)
        } else {
            Plan::rough_for_armors(seed, model, policy, kills)
        };
        let mut rng = StdRng::seed_from_u64(seed ^ 0xc11e);
        for (_, loss) in &mut plan.kills {
            if rng.random_bool(0.5) {
                *loss = Loss::Client;
            }
        }
        for _ in 0..rng.random_range(1..=kills) {
            let kill = match rng.random_range(0..3) {
                0 => Kill::At(ms(rng.random_range(0..1_000))),
                1 => Kill::Said(rng.random_range(0..plan.most as u64)),
                _ => Kill::Heard(rng.random_range(0..plan.most)),
            };
            plan.kills.push((kill, Loss::Client));
        }
        plan.client_restart = [(0, 0), (5, 120), (500, 3_000)][rng.random_range(0..3)];
        plan.reattach = Some(Reattach {
            policy: reattach,
            within: Duration::from_secs(10),
            transcript_bound: 1 << 30,
            on_divergence: OnDivergence::Reset,
        });
        plan
    }

    /// The same, and ARMORs die too: now and then, and in the middle of calls.
    pub fn rough_for_armors(seed: u64, model: Model, policy: &'static str, kills: usize) -> Self {
        let mut plan = Plan::rough(seed, model, policy, kills);
        let mut rng = StdRng::seed_from_u64(seed ^ 0xa3303);
        for (_, loss) in &mut plan.kills {
            if rng.random_bool(0.6) {
                *loss = [Loss::ClientArmor, Loss::ServerArmor, Loss::BothArmors][rng.random_range(0..3)];
            }
        }
        plan.armor_deaths = [0, 5, 100][rng.random_range(0..3)];
        plan
    }

    /// Draws a bad network, and `kills` deaths of the server.
    pub fn rough(seed: u64, model: Model, policy: &'static str, kills: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let mut plan = Plan::new(seed, model, policy);
        plan.most = [200, 3_000, 40_000][rng.random_range(0..3)];
        plan.config.window = [600, 4_096, 65_536][rng.random_range(0..3)];
        plan.config.max_data = [100, 1_500, 20_000][rng.random_range(0..3)];
        plan.config.max_data = plan.config.max_data.max(plan.most / 100);
        plan.lost = [0, 0, 20, 150][rng.random_range(0..4)];
        plan.doubled = [0, 0, 50, 300][rng.random_range(0..4)];
        plan.delay = [(1, 1), (1, 10), (5, 80)][rng.random_range(0..3)];
        if rng.random_ratio(1, 4) {
            let from = rng.random_range(0..400);
            plan.cuts.push((ms(from), ms(from + rng.random_range(1..4_000))));
        }
        for _ in 0..rng.random_range(0..=kills) {
            let kill = match rng.random_range(0..4) {
                0 => Kill::At(ms(rng.random_range(0..1_000))),
                1 => Kill::Said(rng.random_range(0..plan.most as u64)),
                2 => Kill::Heard(rng.random_range(0..plan.most)),
                _ => Kill::Attached(ms(rng.random_range(0..200))),
            };
            let loss = [Loss::Process, Loss::Process, Loss::Node, Loss::Worker][rng.random_range(0..4)];
            plan.kills.push((kill, loss));
        }
        plan.stalls = rng.random_ratio(1, 4);
        plan
    }
}

/// A spill into memory that outlives the ARMOR, as a file does.
#[derive(Clone, Default)]
pub struct MemorySpill(Arc<Mutex<Spilled>>);

#[derive(Default)]
struct Spilled {
    from: u64,
    bytes: Vec<u8>,
}

impl MemorySpill {
    /// Offset behind its last byte.
    pub fn end(&self) -> u64 {
        let spilled = self.0.lock().expect("one thread");
        spilled.from + spilled.bytes.len() as u64
    }
}

impl Spill for MemorySpill {
    fn append(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut spilled = self.0.lock().expect("one thread");
        if spilled.bytes.is_empty() {
            spilled.from = offset;
        }
        assert_eq!(offset, spilled.from + spilled.bytes.len() as u64, "the spill has a gap");
        spilled.bytes.extend_from_slice(bytes);
        Ok(())
    }
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        let spilled = self.0.lock().expect("one thread");
        let at = (offset - spilled.from) as usize;
        into.copy_from_slice(&spilled.bytes[at..at + into.len()]);
        Ok(())
    }
    fn take_up(&mut self, from: u64, to: u64) -> bool {
        let mut spilled = self.0.lock().expect("one thread");
        let held = from >= spilled.from && to <= spilled.from + spilled.bytes.len() as u64;
        let keep = if held { to.saturating_sub(spilled.from) as usize } else { 0 };
        spilled.bytes.truncate(keep);
        held
    }
}

/// What the client was told, where the death of an ARMOR does not reach.
#[derive(Clone, Default)]
pub struct MemoryTranscript(Arc<Mutex<Vec<u8>>>);

impl Transcript for MemoryTranscript {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut all = self.0.lock().unwrap();
        assert!(offset as usize <= all.len(), "the transcript has a gap");
        let end = all.len().max(offset as usize + bytes.len());
        all.resize(end, 0);
        all[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        into.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..into.len()]);
        Ok(())
    }
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct Outcome {
    pub client_events: Vec<Event>,
    pub server_events: Vec<Event>,
    pub client_reset: Option<(ResetReason, Duration)>,
    pub server_reset: Option<ResetReason>,
    pub took: Duration,
    pub frames: u64,
    pub bytes_sent: u64,
    pub kills: usize,
    pub armor_deaths: usize,
    pub client_deaths: usize,
    /// Of those, when the connection had come to its end.
    pub late_client_deaths: usize,
    pub largest_log: usize,
}

impl Outcome {
    pub fn finished(&self) -> bool {
        self.client_events.contains(&Event::Finished)
    }
    pub fn diverged(&self) -> bool {
        self.server_events.iter().any(|event| matches!(event, Event::Diverged(_)))
    }
    /// Bytes that were regenerated and compared, whatever the outcome.
    pub fn compared(&self) -> bool {
        self.server_events.iter().any(|event| matches!(event, Event::Recovered { regenerated } if *regenerated > 0)) || self.diverged()
    }
}
