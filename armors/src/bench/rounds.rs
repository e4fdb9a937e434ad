//! The measuring itself: A B C A B C …, so that whatever else the machine does meets all rows alike.

use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lane::{Lane, Service};
use super::metric::{Metric, Pinning};
use super::process::{Cores, cpu_seconds, memory_kib};
use super::results::{Key, Results};
use super::row::Row;
use crate::campaign::progress::Progress;
use crate::interrupt::Interrupt;

/// How long an order may take beyond what it is meant to.
const PATIENCE: Duration = Duration::from_secs(60);
/// Packets of all figures but the round trips by size; the thesis's table 6.5 has it.
const USUAL_BYTES: u64 = 512;

/// How much is measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) sizes: Vec<u64>,
    /// Round trips of a turn, at most.
    pub(crate) exchanges: u32,
    /// No turn of round trips takes longer, in ms.
    pub(crate) exchanges_ms: u32,
    /// Single calls of a turn, and short connections.
    pub(crate) calls: u32,
    /// Of a turn.
    pub(crate) bulk_bytes: u64,
    pub(crate) rate_clients: u32,
    pub(crate) rate_ms: u32,
    pub(crate) sessions: u32,
    pub(crate) load_ms: u32,
    /// Numbers of idle connections.
    pub(crate) held: Vec<u64>,
}

impl Plan {
    /// As in the thesis: 1000 exchanges, 100 calls.
    pub(crate) fn full(rounds: u32, most_connections: u64) -> Plan {
        Plan {
            rounds,
            sizes: vec![32, 64, 128, 512, 1024, 2048, 8192, 65536],
            exchanges: 1000,
            exchanges_ms: 500,
            calls: 100,
            bulk_bytes: 128 << 20,
            rate_clients: 8,
            rate_ms: 300,
            sessions: 32,
            load_ms: 500,
            held: [1, 1000, 10_000].into_iter().map(|count: u64| count.min(most_connections)).collect(),
        }
    }

    /// Everything, but so little of it that the figures mean nothing.
    pub(crate) fn short() -> Plan {
        Plan {
            rounds: 1,
            sizes: vec![32, 65536],
            exchanges: 20,
            exchanges_ms: 200,
            calls: 3,
            bulk_bytes: 8 << 20,
            rate_clients: 2,
            rate_ms: 20,
            sessions: 4,
            load_ms: 50,
            held: vec![1, 20],
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Task {
    RoundTrips(u64),
    ServerCalls,
    ClientCalls,
    ShortConnections,
    Bulk(Service, bool),
    Rate,
    Load,
}

/// Measures; what could not be is told.
pub(super) struct Rounds<'a> {
    pub(super) plan: &'a Plan,
    pub(super) cores: &'a Cores,
    pub(super) interrupt: &'a Interrupt,
    pub(super) progress: &'a Progress,
    pub(super) results: Results,
    pub(super) complaints: Vec<String>,
}

impl Rounds<'_> {
    /// How many turns there are for so many rows.
    pub(super) fn turns(plan: &Plan, rows: usize) -> u64 {
        let tasks = 2 * tasks(plan).len() as u64 * u64::from(plan.rounds) + 1;
        tasks * rows as u64
    }

    /// Memory first, in processes that have done nothing yet; then rounds.
    ///
    /// # Errors
    /// When somebody wants the end.
    pub(super) fn run(&mut self, lanes: &mut [Lane]) -> anyhow::Result<()> {
        for lane in lanes.iter_mut() {
            self.interrupt.check()?;
            self.progress.begin(&format!("{}, memory", lane.row.title()));
            let held = lane_turn(lane, |lane| self.memory(lane));
            self.take(lane, "memory", held);
        }
        self.progress.tell(&format!("measuring, {} rounds", self.plan.rounds));
        for round in 0..self.plan.rounds {
            for pinning in [Pinning::OneCore, Pinning::Free] {
                for lane in lanes.iter().filter(|lane| !lane.broken) {
                    self.cores.pin(&lane.processes(), pinning);
                }
                for task in tasks(self.plan) {
                    for lane in lanes.iter_mut() {
                        self.interrupt.check()?;
                        self.progress.begin(&format!("round {}, {}, {task:?}", round + 1, lane.row.title()));
                        if lane.broken || left_out(task, lane.row, pinning) {
                            self.progress.done();
                            continue;
                        }
                        let found = lane_turn(lane, |lane| self.turn(lane, task));
                        let found = found.map(|found| {
                            for (metric, parameter, value) in found {
                                self.results.add(Key { metric, pinning, parameter }, lane.row, round, value);
                            }
                        });
                        self.take(lane, &format!("{task:?}, {}", pinning.title()), found);
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, lane: &Lane, what: &str, outcome: anyhow::Result<()>) {
        if let Err(error) = outcome {
            let rest = if lane.broken { "; the row is measured no further" } else { "" };
            let complaint = format!("{}, {what}: {error:#}{rest}", lane.row.title());
            self.progress.tell(&complaint);
            self.complaints.push(complaint);
        }
        self.progress.done();
    }

    fn turn(&self, lane: &mut Lane, task: Task) -> anyhow::Result<Vec<(Metric, u64, f64)>> {
        let Plan { exchanges, exchanges_ms, calls, bulk_bytes, rate_clients, rate_ms, sessions, load_ms, .. } = self.plan;
        let usual = |lane: &mut Lane, order: &str| lane.ask(Service::Usual, order, PATIENCE);
        Ok(match task {
            Task::RoundTrips(bytes) => {
                let pids = lane.processes();
                let before = cpu_seconds(&pids);
                let answer = usual(lane, &format!("round-trips {bytes} {exchanges} {exchanges_ms}"))?;
                let cpu = cpu_seconds(&pids) - before;
                let mut found = vec![(Metric::RoundTrip, bytes, number(&answer, "/p50")?)];
                if tells_its_cpu(lane.row) {
                    found.push((Metric::ExchangeCpu, bytes, cpu / number(&answer, "/exchanges")? * 1e6));
                }
                found
            }
            Task::ServerCalls => {
                let answer = usual(lane, &format!("server-calls {calls}"))?;
                vec![(Metric::Init, 0, number(&answer, "/init/p50")?), (Metric::Bind, 0, number(&answer, "/bind/p50")?)]
            }
            Task::ClientCalls => {
                let answer = usual(lane, &format!("connects {calls}"))?;
                vec![(Metric::Connect, 0, number(&answer, "/connect/p50")?), (Metric::Close, 0, number(&answer, "/close/p50")?)]
            }
            Task::ShortConnections => {
                let answer = usual(lane, &format!("touches {calls}"))?;
                vec![(Metric::ShortConnection, 0, number(&answer, "/p50")?)]
            }
            Task::Bulk(service, up) => {
                let pids = lane.processes();
                let before = cpu_seconds(&pids);
                let order = if up { "upload" } else { "download" };
                let answer = lane.ask(service, &format!("{order} {bulk_bytes}"), PATIENCE)?;
                let cpu = cpu_seconds(&pids) - before;
                let gib = number(&answer, "/bytes")? / (1u64 << 30) as f64;
                let (speed, cost) = match (up, service) {
                    (false, _) => (Metric::Download, Metric::DownloadCpu),
                    (true, Service::Unkept) => (Metric::Upload, Metric::UploadCpu),
                    (true, Service::Usual) => (Metric::LoggedUpload, Metric::LoggedUploadCpu),
                };
                let speed = (speed, 0, gib / number(&answer, "/seconds")?);
                if tells_its_cpu(lane.row) { vec![speed, (cost, 0, cpu / gib)] } else { vec![speed] }
            }
            Task::Rate => {
                let answer = usual(lane, &format!("rate {rate_clients} {rate_ms}"))?;
                vec![(Metric::ConnectionRate, 0, number(&answer, "/connections")? / number(&answer, "/seconds")?)]
            }
            Task::Load => {
                let pids = lane.processes();
                let before = cpu_seconds(&pids);
                let answer = usual(lane, &format!("load {sessions} {USUAL_BYTES} {load_ms}"))?;
                let cpu = cpu_seconds(&pids) - before;
                let requests = number(&answer, "/requests")?;
                let mut found = vec![
                    (Metric::Requests, 0, requests / number(&answer, "/seconds")?),
                    (Metric::UnderLoadP50, 0, number(&answer, "/p50")?),
                    (Metric::UnderLoadP99, 0, number(&answer, "/p99")?),
                    (Metric::UnderLoadP999, 0, number(&answer, "/p999")?),
                ];
                if tells_its_cpu(lane.row) {
                    found.push((Metric::RequestCpu, 0, cpu / requests * 1e6));
                }
                found
            }
        })
    }

    /// Idle connections: what they cost, and whether others become slower beside them.
    fn memory(&mut self, lane: &mut Lane) -> anyhow::Result<()> {
        // Whatever a first connection needs once is no cost of the next one.
        lane.ask(Service::Usual, "hold 1", PATIENCE)?;
        lane.ask(Service::Usual, "hold 0", PATIENCE)?;
        let before = memory_kib(&lane.go_betweens());
        let most = lane.row.most_connections();
        for &count in self.plan.held.iter().filter(|&&count| count <= most) {
            lane.ask(Service::Usual, &format!("hold {count}"), PATIENCE)?;
            let key = |metric| Key { metric, pinning: Pinning::Free, parameter: count };
            if lane.row != Row::Direct {
                let more = memory_kib(&lane.go_betweens()) as f64 - before as f64;
                self.results.add(key(Metric::Memory), lane.row, 0, more / count as f64);
            }
            let order = format!("round-trips {USUAL_BYTES} {} {}", self.plan.exchanges, self.plan.exchanges_ms);
            let answer = lane.ask(Service::Usual, &order, PATIENCE)?;
            self.results.add(key(Metric::RoundTripBeside), lane.row, 0, number(&answer, "/p50")?);
        }
        lane.ask(Service::Usual, "hold 0", PATIENCE)?;
        Ok(())
    }
}

fn tasks(plan: &Plan) -> Vec<Task> {
    let rest = [
        Task::ServerCalls,
        Task::ClientCalls,
        Task::ShortConnections,
        Task::Bulk(Service::Unkept, false),
        Task::Bulk(Service::Unkept, true),
        Task::Bulk(Service::Usual, true),
        Task::Rate,
        Task::Load,
    ];
    plan.sizes.iter().map(|size| Task::RoundTrips(*size)).chain(rest).collect()
}

/// socat's processes end with their connections, and what they have used is lost with them.
fn tells_its_cpu(row: Row) -> bool {
    row != Row::Socat
}

fn left_out(task: Task, row: Row, pinning: Pinning) -> bool {
    // It spins without giving the core up: nobody else would run.
    let spins = row.is_restless() && pinning == Pinning::OneCore;
    // Servers behind proxies make plain calls.
    let plain = matches!(task, Task::ServerCalls) && !row.is_armor() && row != Row::Direct;
    spins || plain
}

fn lane_turn<T>(lane: &mut Lane, turn: impl FnOnce(&mut Lane) -> anyhow::Result<T>) -> anyhow::Result<T> {
    lane.wake();
    let outcome = turn(lane);
    lane.rest();
    outcome
}

fn number(answer: &Value, at: &str) -> anyhow::Result<f64> {
    answer.pointer(at).and_then(Value::as_f64).with_context(|| format!("the client's answer has no {at}: {answer}"))
}
