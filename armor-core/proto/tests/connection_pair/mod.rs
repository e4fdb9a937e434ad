//! Two ends with a perfect network between them, and applications that take all bytes at once.

#![allow(dead_code, unreachable_pub)]

use std::io::IoSlice;
use std::time::{Duration, Instant};

use armor_proto::connection::{AppAction, ClientEnd, Config, ConnectDecision, Event, MarkPolicy, Record, RequestPolicy, ServerEnd};
use armor_proto::ids::{ConnectionId, Incarnation};
use bytes::Bytes;

pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub struct Pair {
    pub client: ClientEnd,
    pub server: ServerEnd,
    pub now: Instant,
    pub config: Config,
    /// The service's process; `None` while there is none.
    pub service: Option<u32>,
    pub wants_attach: bool,
    pub sent: Vec<Record>,
    pub client_heard: Vec<u8>,
    pub server_heard: Vec<u8>,
    pub client_actions: Vec<AppAction>,
    pub server_actions: Vec<AppAction>,
    pub client_events: Vec<Event>,
    pub server_events: Vec<Event>,
}

impl Pair {
    pub fn unconnected(policy: impl MarkPolicy + Send + 'static, config: Config) -> Pair {
        let now = Instant::now();
        Pair {
            client: ClientEnd::new(ConnectionId(1), config.clone(), Box::new(policy), now),
            server: ServerEnd::new(ConnectionId(1), config.clone(), now),
            now,
            config,
            service: Some(1),
            wants_attach: false,
            sent: Vec::new(),
            client_heard: Vec::new(),
            server_heard: Vec::new(),
            client_actions: Vec::new(),
            server_actions: Vec::new(),
            client_events: Vec::new(),
            server_events: Vec::new(),
        }
    }

    pub fn new(policy: impl MarkPolicy + Send + 'static, config: Config) -> Pair {
        let mut pair = Pair::unconnected(policy, config);
        pair.exchange();
        assert!(pair.client.is_established() && pair.server.is_attached());
        pair
    }

    pub fn request() -> Pair {
        Pair::new(RequestPolicy::default(), Config::default())
    }

    /// Carries records to and fro, and bytes into applications, until nothing moves.
    pub fn exchange(&mut self) {
        loop {
            let mut moved = self.applications();
            while let Some((record, payload)) = self.client.poll_transmit(self.now) {
                moved = true;
                self.sent.push(record);
                self.at_server(record, payload);
            }
            while let Some((record, payload)) = self.server.poll_transmit(self.now) {
                moved = true;
                self.sent.push(record);
                match record {
                    Record::Data(r) => self.client.handle_data(&r, payload, self.now),
                    Record::Ack(r) => self.client.handle_ack(&r, self.now),
                    Record::Reset(r) => self.client.handle_reset(&r, self.now),
                    Record::ConnectReply(r) => self.client.handle_connect_reply(&r, self.now),
                    Record::Replay(r) => self.client.handle_replay(&r, self.now),
                    Record::ConnectRequest(_) => unreachable!(),
                }
                .unwrap();
            }
            self.client_events.extend(std::iter::from_fn(|| self.client.poll_event()));
            self.server_events.extend(std::iter::from_fn(|| self.server.poll_event()));
            if !moved {
                return;
            }
        }
    }

    pub fn at_server(&mut self, record: Record, payload: Bytes) {
        match record {
            Record::Data(r) => self.server.handle_data(&r, payload, self.now).unwrap(),
            Record::Ack(r) => self.server.handle_ack(&r, self.now).unwrap(),
            Record::Reset(r) => self.server.handle_reset(&r, self.now).unwrap(),
            Record::ConnectRequest(r) => {
                if self.server.handle_connect_request(&r, self.now).unwrap() == ConnectDecision::Attach {
                    self.wants_attach = true;
                    self.attach();
                }
            }
            Record::ConnectReply(_) | Record::Replay(_) => unreachable!(),
        }
    }

    pub fn attach(&mut self) {
        if let (true, Some(service)) = (self.wants_attach, self.service) {
            self.wants_attach = false;
            self.server.attached(Incarnation(service), self.now).unwrap();
        }
    }

    pub fn applications(&mut self) -> bool {
        let mut moved = false;
        while let Some(action) = self.client.poll_app(self.now) {
            moved = true;
            if action == AppAction::Write {
                let mut slices = [IoSlice::new(&[])];
                self.client.app_slices(&mut slices);
                self.client_heard.extend_from_slice(&slices[0]);
                let length = slices[0].len();
                self.client.app_wrote(length, self.now);
            } else {
                self.client_actions.push(action);
            }
        }
        while let Some(action) = self.server.poll_app(self.now) {
            moved = true;
            if action == AppAction::Write {
                let mut slices = [IoSlice::new(&[])];
                self.server.app_slices(&mut slices);
                self.server_heard.extend_from_slice(&slices[0]);
                let length = slices[0].len();
                self.server.app_wrote(length, self.now);
            } else {
                self.server_actions.push(action);
            }
        }
        moved
    }

    pub fn client_says(&mut self, bytes: &'static str) {
        self.client.app_read(Bytes::from_static(bytes.as_bytes()), self.now);
        self.exchange();
    }

    pub fn server_says(&mut self, bytes: &'static str) {
        self.server.app_read(Bytes::from_static(bytes.as_bytes()), self.now);
        self.exchange();
    }

    /// The process dies and a new one serves at once.
    pub fn restart(&mut self) {
        self.server.server_lost(self.now);
        self.server_heard.clear();
        self.service = self.service.map(|service| service + 1);
        self.client.replay(Incarnation(self.service.unwrap()), self.now);
        self.exchange();
    }

    /// The same, and the server's node is another one.
    pub fn move_to_another_node(&mut self) {
        self.server = ServerEnd::new(ConnectionId(1), self.config.clone(), self.now);
        self.restart();
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = [self.client.poll_timeout(), self.server.poll_timeout()].into_iter().flatten().min();
            self.now = next.map_or(end, |at| at.clamp(self.now, end));
            self.client.handle_timeout(self.now);
            self.server.handle_timeout(self.now);
            self.exchange();
            if self.now == end {
                return;
            }
        }
    }

    pub fn heard(&self) -> (&str, &str) {
        (std::str::from_utf8(&self.server_heard).unwrap(), std::str::from_utf8(&self.client_heard).unwrap())
    }

    pub fn count(&self, kind: fn(&Record) -> bool) -> usize {
        self.sent.iter().filter(|record| kind(record)).count()
    }
}

impl Pair {
    pub fn pass_without_reading(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while let Some((record, payload)) = self.server.poll_transmit(self.now) {
                match record {
                    Record::Ack(r) => self.client.handle_ack(&r, self.now).unwrap(),
                    Record::Data(r) => self.client.handle_data(&r, payload, self.now).unwrap(),
                    _ => unreachable!(),
                }
            }
            while let Some((record, payload)) = self.client.poll_transmit(self.now) {
                self.at_server(record, payload);
            }
            let next = [self.client.poll_timeout(), self.server.poll_timeout()].into_iter().flatten().min();
            if next.is_none_or(|at| at > end) {
                self.now = end;
                return;
            }
            self.now = next.unwrap().max(self.now);
            self.client.handle_timeout(self.now);
            self.server.handle_timeout(self.now);
        }
    }
}
