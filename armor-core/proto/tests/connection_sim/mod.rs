//! A simulated world for one protected connection: two ends, a bad network, a client, and a server that is killed.
//!
//! Time is simulated; everything is drawn from one seed. The world checks after every step what must always hold.

#![allow(dead_code, unreachable_pub)]

pub mod apps;
mod armor_death;
mod plan;
pub mod protocols;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::IoSlice;
use std::time::{Duration, Instant};

use apps::{Client, Disk, Model, SOCKET, ServerProcess};
use armor_death::{Call, Kept};
use armor_proto::connection::{
    AppAction, ClientEnd, ConnectDecision, ConnectRequest, Event, MarkPolicy, ProtocolError, ReattachPolicy, Record, ServerEnd, TurnPolicy,
    mark_policy,
};
use armor_proto::ids::{ConnectionId, Incarnation};
use bytes::Bytes;
pub use plan::{Kill, Loss, MemorySpill, MemoryTranscript, Outcome, Plan, ms};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub const CONNECTION: ConnectionId = ConnectionId(0xA12);

#[derive(Debug)]
enum Parcel {
    ToServer(Record),
    ToClient(Record),
    /// The element's replay message: acknowledged, so it arrives.
    Replay(Incarnation),
    ServiceUp,
    WorkerUp,
    Kill(usize, u32),
    ClientGoesOn,
    /// The client's next process connects.
    ClientBack,
    ClientRested,
    ServerGoesOn,
}

struct Entry {
    at: Instant,
    number: u64,
    parcel: Parcel,
    payload: Bytes,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

pub struct World {
    pub plan: Plan,
    rng: StdRng,
    start: Instant,
    pub now: Instant,
    parcels: BinaryHeap<Reverse<Entry>>,
    number: u64,
    pub client: Option<ClientEnd>,
    pub server: Option<ServerEnd>,
    kept_client: Kept,
    kept_server: Kept,
    pub client_app: Client,
    pub process: Option<ServerProcess>,
    pub disk: Disk,
    service: Option<Incarnation>,
    incarnation: u32,
    /// A connect request waits for the service.
    wants_attach: bool,
    /// The connection is over at the server: a late connect request makes no new end.
    tombstone: Option<Incarnation>,
    attached_from: u64,
    attachments: u32,
    processes: u8,
    /// What came of the stream has to be regenerated is known to be skewed: do not compare.
    compare: bool,
    client_stalled: bool,
    server_stalled: bool,
    client_eof_told: bool,
    client_close_told: bool,
    transcript: MemoryTranscript,
    /// Nobody is at the client's side.
    client_away: bool,
    archived: bool,
    /// The most that a process of the client has said.
    said: Vec<u8>,
    outcome: Outcome,
    done_kills: Vec<bool>,
    /// Requests that were in progress when the server was killed, for each time.
    pub in_progress: Vec<Vec<usize>>,
    client_rests: bool,
    pub seen: BTreeMap<&'static str, u64>,
}

/// So many seeds, or more of them by `ARMOR_SCHEDULES`.
pub fn schedules(count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("ARMOR_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    0..count * times
}

/// Runs `plan`, which must come to a good end: the last process of the client has heard all, and the server has heard no byte twice.
pub fn succeeds(plan: Plan) -> Outcome {
    let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
    let context = || format!("{outcome:?}\n{}", world.describe());
    assert_eq!(outcome.client_reset, None, "{}", context());
    assert_eq!(outcome.server_reset, None, "{}", context());
    let app = &world.client_app;
    if app.model == Model::Sink {
        assert_eq!(world.disk.stored.as_ref(), Some(&app.said), "{}", context());
    } else {
        assert!(app.heard == app.expected, "heard {} of {}: {}", app.heard.len(), app.expected.len(), context());
        assert_eq!(app.eofs, 1, "{}", context());
    }
    outcome
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let start = Instant::now();
        let policy: Box<dyn MarkPolicy + Send> = match plan.settled {
            Some(silence) => Box::new(TurnPolicy::settled_after(silence)),
            None => mark_policy(plan.policy).expect("a known policy"),
        };
        let mut client = ClientEnd::new(CONNECTION, plan.config.clone(), policy, start);
        let spill = plan.spill.then(MemorySpill::default);
        if let Some(spill) = &spill {
            client.set_spill(Box::new(spill.clone()));
        }
        let transcript = MemoryTranscript::default();
        if let Some(reattach) = plan.reattach {
            client.set_reattach(reattach, Some(Box::new(transcript.clone())), start);
        }
        let client_app = Client::new(plan.model, plan.most, plan.seed);
        let sequence_end = client_app.expected.len() as u64;
        let mut world = World {
            rng: StdRng::seed_from_u64(plan.seed),
            start,
            now: start,
            parcels: BinaryHeap::new(),
            number: 0,
            client: Some(client),
            server: None,
            kept_client: Kept::with(spill),
            kept_server: Kept::default(),
            client_app,
            process: None,
            disk: Disk { sequence_end, ..Disk::default() },
            service: Some(Incarnation(1)),
            incarnation: 1,
            wants_attach: false,
            tombstone: None,
            attached_from: 0,
            attachments: 0,
            processes: 0,
            compare: !plan.twisted && !plan.client_twisted && plan.model.speech().is_none(),
            client_stalled: false,
            server_stalled: false,
            client_eof_told: false,
            client_close_told: false,
            transcript,
            client_away: false,
            archived: false,
            said: Vec::new(),
            outcome: Outcome::default(),
            done_kills: vec![false; plan.kills.len()],
            in_progress: Vec::new(),
            client_rests: false,
            seen: BTreeMap::new(),
            plan,
        };
        for (index, (kill, _)) in world.plan.kills.clone().into_iter().enumerate() {
            if let Kill::At(after) = kill {
                world.post(start + after, Parcel::Kill(index, 0), Bytes::new());
            }
        }
        world
    }

    fn post(&mut self, at: Instant, parcel: Parcel, payload: Bytes) {
        self.number += 1;
        let number = self.number;
        self.parcels.push(Reverse(Entry { at, number, parcel, payload }));
    }

    fn send(&mut self, make: fn(Record) -> Parcel, record: Record, payload: &Bytes) {
        self.outcome.frames += 1;
        self.outcome.bytes_sent += payload.len() as u64;
        let since = self.now - self.start;
        if self.plan.cuts.iter().any(|(from, to)| (*from..*to).contains(&since)) {
            return;
        }
        let copies = match self.rng.random_range(0..1000) {
            n if n < self.plan.lost => 0,
            n if n < self.plan.lost + self.plan.doubled => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay = ms(self.rng.random_range(self.plan.delay.0..=self.plan.delay.1));
            self.post(self.now + delay, make(record), payload.clone());
        }
    }

    /// Runs until both ends are drained, at most for so long in simulated time.
    pub fn run(mut self, most: Duration) -> (Outcome, World) {
        let mut steps = 0;
        self.pump();
        while self.client.is_some() || self.server.is_some() {
            steps += 1;
            assert!(steps < 400_000, "livelock: {}", self.describe());
            let timeout = |at: Option<Instant>| at.unwrap_or(self.now + Duration::from_secs(3600));
            let client_at = timeout(self.client.as_ref().and_then(ClientEnd::poll_timeout));
            let server_at = timeout(self.server.as_ref().and_then(ServerEnd::poll_timeout));
            let parcel_at = self.parcels.peek().map(|entry| entry.0.at);
            let next = parcel_at.map_or(client_at, |at| at.min(client_at)).min(server_at);
            self.now = self.now.max(next);
            let took = self.now - self.start;
            assert!(took < most, "not over after {took:?}: {}", self.describe());
            if client_at <= self.now
                && let Some(client) = &mut self.client
            {
                client.handle_timeout(self.now);
            }
            if server_at <= self.now
                && let Some(server) = &mut self.server
            {
                server.handle_timeout(self.now);
            }
            while self.parcels.peek().is_some_and(|entry| entry.0.at <= self.now) {
                let Some(Reverse(entry)) = self.parcels.pop() else { break };
                self.deliver(entry.parcel, entry.payload);
            }
            self.pump();
        }
        self.outcome.took = self.now - self.start;
        (std::mem::take(&mut self.outcome), self)
    }

    /// Processes of the server that this connection has had.
    pub fn attachments(&self) -> u32 {
        self.attachments
    }

    pub fn describe(&self) -> String {
        format!(
            "seed {} {:?}\nclient end {} (established {}), server end {} (attached {}), heard {}/{}, said {}, process {:?}, service {:?}, kills {}\n{:?}\n{:?}",
            self.plan.seed,
            self.plan,
            self.client.is_some(),
            self.client.as_ref().is_some_and(ClientEnd::is_established),
            self.server.is_some(),
            self.server.as_ref().is_some_and(ServerEnd::is_attached),
            self.client_app.heard.len(),
            self.client_app.expected.len(),
            self.client_app.said.len(),
            self.process.as_ref().map(|process| (process.heard.len(), process.said, process.closed)),
            self.service,
            self.outcome.kills,
            self.outcome.client_events,
            self.outcome.server_events,
        )
    }

    fn deliver(&mut self, parcel: Parcel, payload: Bytes) {
        let now = self.now;
        match parcel {
            Parcel::ToServer(record) => self.at_server(record, payload),
            Parcel::ToClient(record) => self.at_client(record, payload),
            Parcel::Replay(service) => {
                if let Some(client) = &mut self.client {
                    client.replay(service, now);
                }
            }
            Parcel::ServiceUp => {
                self.incarnation += 1;
                let service = Incarnation(self.incarnation);
                self.service = Some(service);
                let needs = match &mut self.server {
                    Some(server) if server.needs_replay() && self.rng.random_bool(0.3) => {
                        server.ask_replay(now);
                        false
                    }
                    // The table of clients in APP_SERVER_DB does not know who needs it.
                    _ => true,
                };
                if needs {
                    let delay = ms(self.rng.random_range(1..50));
                    self.post(now + delay, Parcel::Replay(service), Bytes::new());
                }
                if self.wants_attach {
                    self.attach();
                }
            }
            Parcel::WorkerUp => {
                if let Some(server) = &mut self.server {
                    server.ask_replay(now);
                }
            }
            Parcel::Kill(index, attachment) => {
                if attachment == 0 || (attachment == self.attachments && !self.done_kills[index]) {
                    self.kill(index);
                }
            }
            Parcel::ClientGoesOn => self.client_stalled = false,
            Parcel::ClientBack => self.client_is_back(),
            Parcel::ClientRested => {
                self.client_rests = false;
                self.client_app.rests = Some(0);
            }
            Parcel::ServerGoesOn => self.server_stalled = false,
        }
    }

    fn at_server(&mut self, record: Record, payload: Bytes) {
        let now = self.now;
        if let Record::ConnectRequest(request) = record {
            self.connect_request(&request);
            return;
        }
        let Some(server) = &mut self.server else { return };
        let result = match record {
            Record::Data(data) => server.handle_data(&data, payload, now),
            Record::Ack(ack) => server.handle_ack(&ack, now),
            Record::Reset(reset) => server.handle_reset(&reset, now),
            other => panic!("the client's end sent {other:?}"),
        };
        // As at the client's end: an end that a late request made on a new node does not know the client's incarnation.
        // One that has finished and is restored hears of what its dead life had sent, and ignores it.
        let restored = self.outcome.armor_deaths > 0;
        if let Err(error) = result
            && !matches!(error, ProtocolError::Incarnation { .. })
            && !(restored && matches!(error, ProtocolError::AckBeyondSent { .. }))
        {
            panic!("server's end refuses {record:?}: {error}\n{}", self.describe());
        }
    }

    fn connect_request(&mut self, request: &ConnectRequest) {
        if self.server.is_none() {
            if self.tombstone.is_some_and(|last| request.incarnation <= last) {
                return;
            }
            self.server = Some(ServerEnd::new(CONNECTION, self.plan.config.clone(), self.now));
        }
        let decision = match &mut self.server {
            Some(server) => server.handle_connect_request(request, self.now),
            None => return,
        };
        match decision {
            Ok(ConnectDecision::Attach) => {
                self.process = None;
                if let Some(server) = &self.server {
                    self.kept_server.save(|state| server.save(state));
                }
                self.wants_attach = true;
                if self.service.is_some() {
                    self.attach();
                }
            }
            Ok(ConnectDecision::Nothing | ConnectDecision::Over) => {}
            Err(error) => panic!("server's end refuses {request:?}: {error}\n{}", self.describe()),
        }
    }

    fn attach(&mut self) {
        self.wants_attach = false;
        let (Some(server), Some(service)) = (&mut self.server, self.service) else { return };
        if server.attached(service, self.now).is_err() {
            return;
        }
        // A socket whose end was not saved is dropped after a death.
        self.kept_server.save(|state| server.save(state));
        self.attached_from = server.progress().c2s;
        self.processes = self.processes.wrapping_add(1);
        let twist = if self.plan.twisted { self.processes } else { 0 };
        self.process = Some(ServerProcess::new(self.plan.model, self.processes, twist));
        self.attachments += 1;
        for (index, (kill, _)) in self.plan.kills.clone().into_iter().enumerate() {
            if let Kill::Attached(after) = kill
                && !self.done_kills[index]
            {
                self.post(self.now + after, Parcel::Kill(index, self.attachments), Bytes::new());
            }
        }
    }

    fn kill(&mut self, index: usize) {
        self.done_kills[index] = true;
        let loss = self.plan.kills[index].1;
        if loss == Loss::Client {
            self.client_dies();
            return;
        }
        if loss.is_of_armor() {
            self.armor_dies(loss, &Call::Nothing);
            return;
        }
        if self.service.is_none() {
            return;
        }
        let now = self.now;
        let running = self.process.is_some();
        self.in_progress.extend(self.client_app.dialogue.as_ref().map(protocols::Dialogue::in_progress));
        self.outcome.kills += 1;
        let comes_back = self.outcome.kills <= self.plan.restarts;
        let delay = ms(self.rng.random_range(self.plan.restart.0..=self.plan.restart.1));
        match loss {
            Loss::Worker if !running => return,
            Loss::Worker => {
                if comes_back {
                    self.post(now + delay, Parcel::WorkerUp, Bytes::new());
                }
            }
            Loss::Process | Loss::Node | Loss::ClientArmor | Loss::ServerArmor | Loss::BothArmors | Loss::Client => {
                self.service = None;
                if comes_back {
                    self.post(now + delay, Parcel::ServiceUp, Bytes::new());
                }
            }
        }
        if loss == Loss::Node {
            self.process = None;
            self.server = None;
            self.kept_server = Kept::default();
            self.wants_attach = false;
            return;
        }
        if let (Some(mut process), Some(server)) = (self.process.take(), &mut self.server) {
            // What the dead process had said is still in its socket.
            let rest: Vec<u8> = process.socket.drain(..).collect();
            self.kept_server.read(&rest);
            server.app_read(rest.into(), now);
            server.server_lost(now);
            self.kept_server.save(|state| server.save(state));
        }
    }

    /// The process of one ARMOR, or of the one that has both ends, dies and is started again. `call` is what it was doing to the
    /// application of the first end.
    fn armor_dies(&mut self, loss: Loss, call: &Call) {
        let (now, seed) = (self.now, self.rng.random());
        if loss != Loss::ServerArmor && self.client.is_some() {
            self.outcome.armor_deaths += 1;
            self.client = Some(self.kept_client.client(&self.plan, &self.transcript, call, seed, now));
            // Closed sockets are seen again.
            self.client_eof_told = false;
            self.client_close_told = false;
        }
        if loss != Loss::ClientArmor && self.server.is_some() {
            self.outcome.armor_deaths += 1;
            let nothing = Call::Nothing;
            let call = if loss == Loss::ServerArmor { call } else { &nothing };
            self.server = Some(self.kept_server.server(&self.plan.config, call, seed, now));
            self.wants_attach = false;
        }
        if let Some(client) = &self.client {
            self.kept_client.save(|state| client.save(state));
        }
        if let Some(server) = &self.server {
            self.kept_server.save(|state| server.save(state));
        }
    }

    /// The client's process dies, and what it had said is still in its socket.
    fn client_dies(&mut self) {
        let now = self.now;
        let (Some(client), Some(reattach)) = (&mut self.client, self.plan.reattach) else { return };
        if self.client_away {
            return;
        }
        self.client_away = true;
        self.outcome.client_deaths += 1;
        self.outcome.late_client_deaths += usize::from(self.archived);
        if reattach.policy == ReattachPolicy::Replay {
            let socket = &mut self.client_app.socket;
            while !socket.is_empty() {
                let drops = client.drops_next_read();
                let most = if drops { client.read_capacity() } else { usize::MAX };
                if most == 0 {
                    break;
                }
                let bytes: Vec<u8> = socket.drain(..most.min(socket.len())).collect();
                if !drops {
                    self.kept_client.read(&bytes);
                }
                client.app_read(bytes.into(), now);
            }
            self.client_app = Client::new(self.plan.model, self.plan.most, self.plan.seed ^ u64::from(self.plan.client_twisted));
        }
        client.app_lost(now);
        self.kept_client.save(|state| client.save(state));
        let delay = ms(self.rng.random_range(self.plan.client_restart.0..=self.plan.client_restart.1));
        self.post(now + delay, Parcel::ClientBack, Bytes::new());
    }

    fn client_is_back(&mut self) {
        let Some(client) = &mut self.client else { return };
        if !self.client_away || !client.can_reattach() {
            return;
        }
        client.app_reattached(self.now).expect("a connection that can be taken up");
        self.kept_client.save(|state| client.save(state));
        self.client_away = false;
        self.client_eof_told = false;
        self.client_close_told = false;
    }

    /// Whether the ARMOR dies in the middle of the call that it makes now.
    fn dies_in_call(&mut self) -> bool {
        self.plan.armor_deaths > 0 && self.outcome.armor_deaths < 30 && self.rng.random_range(0..1000) < self.plan.armor_deaths
    }

    fn at_client(&mut self, record: Record, payload: Bytes) {
        let now = self.now;
        let Some(client) = &mut self.client else { return };
        let result = match record {
            Record::Data(data) => client.handle_data(&data, payload, now),
            Record::Ack(ack) => client.handle_ack(&ack, now),
            Record::Reset(reset) => client.handle_reset(&reset, now),
            Record::ConnectReply(reply) => client.handle_connect_reply(&reply, now),
            Record::Replay(replay) => client.handle_replay(&replay, now),
            Record::ConnectRequest(_) => panic!("the server's end sent a connect request"),
        };
        // A first request that came twice may have made an end on the new node before the client heard of it.
        if let Err(error) = result
            && !matches!(error, ProtocolError::Incarnation { .. })
        {
            panic!("client's end refuses {record:?}: {error}\n{}", self.describe());
        }
    }

    /// Lets applications and ends do what they can now.
    fn pump(&mut self) {
        loop {
            let before = self.pace();
            self.check_kills();
            self.pump_client();
            self.pump_server();
            self.check();
            if before == self.pace() {
                break;
            }
        }
    }

    /// What changes when something happens.
    fn pace(&self) -> impl PartialEq + use<> {
        let app = &self.client_app;
        let client = (app.said.len(), app.heard.len(), app.eofs, self.client_close_told, self.client_eof_told);
        let deaths = (self.outcome.client_deaths, self.outcome.armor_deaths);
        (self.number, self.outcome.frames, self.process.as_ref().map(|process| process.said), client, deaths)
    }

    fn check_kills(&mut self) {
        for index in 0..self.plan.kills.len() {
            let due = !self.done_kills[index]
                && self.process.as_ref().is_some_and(|process| match self.plan.kills[index].0 {
                    Kill::Said(bytes) => process.said >= bytes.max(1),
                    Kill::Heard(bytes) => process.heard.len() >= bytes,
                    Kill::At(_) | Kill::Attached(_) => false,
                });
            if due {
                self.kill(index);
            }
        }
    }

    fn piece(rng: &mut StdRng, capacity: usize, available: usize) -> usize {
        let most = capacity.min(available);
        if most <= 1 || rng.random_bool(0.7) { most } else { rng.random_range(1..=most) }
    }

    fn pump_client(&mut self) {
        let now = self.now;
        if self.plan.stalls && !self.client_stalled && self.rng.random_ratio(1, 60) {
            self.client_stalled = true;
            let delay = ms(self.rng.random_range(1..900));
            self.post(now + delay, Parcel::ClientGoesOn, Bytes::new());
        }
        let loss = if self.rng.random_bool(0.3) { Loss::BothArmors } else { Loss::ClientArmor };
        if self.client_away {
            self.pump_without_client();
            return;
        }
        if !self.client_stalled && self.client.is_some() {
            self.client_app.run();
        }
        if let Some(rest) = self.client_app.rests.filter(|rest| *rest > 0 && !self.client_rests) {
            self.client_rests = true;
            self.post(now + ms(rest), Parcel::ClientRested, Bytes::new());
        }
        loop {
            let dies = self.dies_in_call();
            let Some(client) = &mut self.client else { return };
            let app = &mut self.client_app;
            let take = Self::piece(&mut self.rng, client.read_capacity(), app.socket.len());
            if take == 0 {
                break;
            }
            self.kept_client.save(|state| client.save(state));
            let bytes: Vec<u8> = app.socket.drain(..take).collect();
            if !client.drops_next_read() {
                self.kept_client.read(&bytes);
            }
            if dies {
                self.armor_dies(loss, &Call::Read(bytes));
                return;
            }
            client.app_read(bytes.into(), now);
            self.outcome.largest_log = self.outcome.largest_log.max(client.log_memory());
            if !self.client_stalled {
                app.run();
            }
        }
        let Some(client) = &mut self.client else { return };
        let app = &mut self.client_app;
        if app.socket.is_empty() && (client.is_established() || self.archived) {
            if app.closed && !self.client_close_told {
                self.client_close_told = true;
                client.app_closed(now);
            } else if app.ended && !app.closed && !self.client_eof_told {
                self.client_eof_told = true;
                client.app_eof(now);
            }
        }
        loop {
            let dies = self.dies_in_call();
            let repeats = self.outcome.armor_deaths > 0;
            let Some(client) = &mut self.client else { return };
            let app = &mut self.client_app;
            let Some(action) = client.poll_app(now) else { break };
            match action {
                AppAction::Write if self.client_stalled => break,
                AppAction::Write => {
                    self.kept_client.save(|state| client.save(state));
                    let mut slices = [IoSlice::new(&[]); 3];
                    let filled = client.app_slices(&mut slices);
                    let mut all: Vec<u8> = slices[..filled].iter().flat_map(|s| s.iter().copied()).collect();
                    let take = Self::piece(&mut self.rng, usize::MAX, all.len());
                    all.truncate(take);
                    app.hear(&all);
                    if dies {
                        self.armor_dies(loss, &Call::Wrote(all));
                        return;
                    }
                    client.app_wrote(take, now);
                }
                // An ARMOR that died in between does it again; to a socket it is the same.
                AppAction::ShutdownWrite if repeats => app.eofs = 1,
                AppAction::ShutdownWrite => app.eofs += 1,
                AppAction::Reset(reason) => {
                    assert!(repeats || self.outcome.client_reset.is_none(), "reset twice");
                    self.outcome.client_reset = Some((reason, now - self.start));
                }
            }
        }
        self.client_end_acts();
        if self.archived && self.client_close_told {
            // The application ends, or dies once more.
            if self.outcome.client_deaths < 3 && self.rng.random_bool(0.3) {
                self.client_dies();
            } else if let Some(client) = &mut self.client {
                client.let_go();
                self.client_end_acts();
            }
        }
    }

    /// Nothing may be done to a socket that nobody has.
    fn pump_without_client(&mut self) {
        let now = self.now;
        if let Some(client) = &mut self.client {
            assert_eq!(client.read_capacity(), 0, "read from nobody");
            assert_eq!(client.poll_app(now), None, "to nobody");
        }
        self.client_end_acts();
    }

    fn client_end_acts(&mut self) {
        let now = self.now;
        let Some(client) = &mut self.client else { return };
        let mut out = Vec::new();
        while let Some((record, payload)) = client.poll_transmit(now) {
            assert!(payload.len() <= self.plan.config.max_data);
            out.push((record, payload));
        }
        self.kept_client.save(|state| client.save(state));
        while let Some(event) = client.poll_event() {
            self.outcome.client_events.push(event);
            match event {
                Event::Archived => self.archived = true,
                Event::NotReattached => client.app_closed(now),
                _ => {}
            }
        }
        if client.is_drained() {
            self.client = None;
        }
        for (record, payload) in out {
            self.send(Parcel::ToServer, record, &payload);
        }
    }

    fn pump_server(&mut self) {
        let now = self.now;
        if self.plan.stalls && self.plan.server_stalls && !self.server_stalled && self.rng.random_ratio(1, 60) {
            self.server_stalled = true;
            let delay = ms(self.rng.random_range(1..900));
            self.post(now + delay, Parcel::ServerGoesOn, Bytes::new());
        }
        loop {
            let dies = self.dies_in_call();
            let repeats = self.outcome.armor_deaths > 0;
            let Some(server) = &mut self.server else { return };
            let Some(action) = server.poll_app(now) else { break };
            let Some(process) = &mut self.process else {
                panic!("{action:?} without a process");
            };
            match action {
                AppAction::Write if self.server_stalled => break,
                AppAction::Write => {
                    self.kept_server.save(|state| server.save(state));
                    let mut slices = [IoSlice::new(&[]); 3];
                    let filled = server.app_slices(&mut slices);
                    let mut all: Vec<u8> = slices[..filled].iter().flat_map(|s| s.iter().copied()).collect();
                    let take = Self::piece(&mut self.rng, SOCKET, all.len());
                    all.truncate(take);
                    process.hear(&all, &mut self.disk);
                    if dies {
                        self.armor_dies(Loss::ServerArmor, &Call::Wrote(all));
                        return;
                    }
                    server.app_wrote(take, now);
                }
                AppAction::ShutdownWrite if repeats && process.heard_eof() => {}
                AppAction::ShutdownWrite => process.hear_eof(),
                AppAction::Reset(reason) => {
                    self.outcome.server_reset = Some(reason);
                    self.process = None;
                }
            }
        }
        if let Some(process) = self.process.as_mut().filter(|_| !self.server_stalled) {
            process.run(&mut self.disk);
        }
        while self.process.is_some() {
            let dies = self.dies_in_call();
            let (Some(server), Some(process)) = (&mut self.server, &mut self.process) else { return };
            let take = Self::piece(&mut self.rng, server.read_capacity(), process.socket.len());
            if take == 0 {
                break;
            }
            self.kept_server.save(|state| server.save(state));
            let bytes: Vec<u8> = process.socket.drain(..take).collect();
            self.kept_server.read(&bytes);
            if dies {
                self.armor_dies(Loss::ServerArmor, &Call::Read(bytes));
                return;
            }
            server.app_read(bytes.into(), now);
        }
        let Some(server) = &mut self.server else { return };
        if self.process.as_ref().is_some_and(|process| process.closed && process.socket.is_empty()) && server.is_attached() {
            server.app_closed(now);
            self.process = None;
        }
        let mut out = Vec::new();
        while let Some((record, payload)) = server.poll_transmit(now) {
            assert!(payload.len() <= self.plan.config.max_data);
            out.push((record, payload));
        }
        self.kept_server.save(|state| server.save(state));
        while let Some(event) = server.poll_event() {
            self.outcome.server_events.push(event);
        }
        if server.is_drained() {
            self.tombstone = server.requested();
            self.server = None;
        }
        for (record, payload) in out {
            self.send(Parcel::ToClient, record, &payload);
        }
    }

    fn check(&mut self) {
        if self.plan.reattach.is_some() && !self.plan.client_twisted {
            let said = &self.client_app.said;
            assert!(self.said.starts_with(&said[..said.len().min(self.said.len())]), "a process of the client said something else");
            if said.len() > self.said.len() {
                self.said.clone_from(said);
            }
        }
        let window = self.plan.config.window as usize;
        if let Some(client) = &self.client {
            assert!(client.app_waiting() <= window, "client's window: {}", self.describe());
        }
        if let Some(server) = &self.server {
            assert!(server.app_waiting() <= window, "server's window: {}", self.describe());
        }
        if !self.compare {
            return;
        }
        let app = &self.client_app;
        assert!(app.eofs <= 1, "the end was passed twice");
        if app.model != Model::Source {
            assert!(
                app.expected.starts_with(&app.heard),
                "the client heard something else: {} of {}; {}",
                app.heard.len(),
                app.expected.len(),
                self.describe()
            );
            if let Some(process) = &self.process {
                let from = self.attached_from as usize;
                let said = if self.plan.reattach.is_some() { &self.said } else { &app.said };
                assert!(said[from..].starts_with(&process.heard), "a process heard something else: {}", self.describe());
            }
        }
    }
}
