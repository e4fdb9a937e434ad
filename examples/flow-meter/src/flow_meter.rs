//! `flow_meter`: counts the bytes and messages of every connection that arrive at its ARMOR.
//!
//! Subscribes: `MSG_APPCOMM_DATA`, `MSG_FLOW_QUERY`. Emits: `MSG_FLOW_REPORT`.
//! Configuration: `interval_ms`, `max_flows`, see [`Config`].
//!
//! Invariant: it looks at messages and changes none; at most `max_flows` flows are kept, and a report fits one frame.

use std::collections::BTreeMap;
use std::time::Duration;

use armor_core::context::Context;
use armor_core::element::{Element, Operations, Setup};
use armor_elements::operations::AppcommData;
use armor_proto::connection::Direction;
use armor_proto::ids::{ArmorId, ConnectionId};
use armor_proto::operation::{Operation, OperationKind};
use serde::{Deserialize, Serialize};

/// What are the flows? Answered to the source of the message with [`FlowReport`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FlowQuery {}

impl Operation for FlowQuery {
    const KIND: OperationKind = OperationKind::of_name("MSG_FLOW_QUERY");
    const NAME: &'static str = "MSG_FLOW_QUERY";
}

/// Answer to [`FlowQuery`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowReport {
    /// Who answers.
    pub armor: ArmorId,
    /// One per connection and direction.
    pub flows: Vec<Flow>,
    /// Messages of connections for which there was no room.
    pub uncounted: u64,
}

impl Operation for FlowReport {
    const KIND: OperationKind = OperationKind::of_name("MSG_FLOW_REPORT");
    const NAME: &'static str = "MSG_FLOW_REPORT";
}

/// One direction of a connection. What is sent again is counted again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Which connection.
    pub connection: ConnectionId,
    /// Which of its streams.
    pub direction: Direction,
    /// Since the flow was first seen.
    pub total: Count,
    /// In the last whole interval, as a rate per second.
    pub per_second: Count,
}

/// Messages and the bytes in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Messages.
    pub messages: u64,
    /// Payload bytes.
    pub bytes: u64,
}

/// Most flows that a report can hold: one takes at most 64 bytes, a frame's head at most 1 MiB.
const MOST_FLOWS: usize = 8192;

/// Keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Over how long rates are taken; a flow that was silent for two intervals is forgotten.
    interval_ms: u64,
    /// Flows that are kept; messages of further ones are only counted together.
    max_flows: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { interval_ms: 1000, max_flows: 4096 }
    }
}

/// The element.
pub struct FlowMeter {
    config: Config,
    meters: BTreeMap<(ConnectionId, u8), Meter>,
    uncounted: u64,
}

#[derive(Default)]
struct Meter {
    total: Count,
    running: Count,
    last: Count,
}

impl Element for FlowMeter {
    const NAME: &'static str = "flow_meter";
    const PURPOSE: &'static str = "counts bytes and messages per second of each connection (example of an element outside this project)";
    const EXAMPLE: &'static str = "interval_ms = 1000\nmax_flows = 4096\n";
    type Config = Config;

    fn new(config: Config, _: &Setup) -> Result<Self, String> {
        if config.interval_ms == 0 {
            return Err("interval_ms is 0; take 1000 for rates over a second".to_owned());
        }
        if config.max_flows > MOST_FLOWS {
            return Err(format!("max_flows is {}, at most {MOST_FLOWS} fit into one report", config.max_flows));
        }
        Ok(FlowMeter { config, meters: BTreeMap::new(), uncounted: 0 })
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(Self::data).on(Self::query).emits::<FlowReport>();
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<(), String> {
        context.timer(Duration::from_millis(self.config.interval_ms), 0);
        Ok(())
    }

    fn timer(&mut self, _: u64, context: &mut Context<'_>) {
        self.meters.retain(|_, meter| {
            let silent = meter.running.messages == 0 && meter.last.messages == 0;
            meter.last = std::mem::take(&mut meter.running);
            !silent
        });
        context.timer(Duration::from_millis(self.config.interval_ms), 0);
    }

    fn status(&self) -> serde_json::Value {
        let bytes_per_s: u64 = self.meters.values().map(|meter| self.per_second(meter.last.bytes)).sum();
        serde_json::json!({ "flows": self.meters.len(), "bytes_per_s": bytes_per_s, "uncounted": self.uncounted })
    }
}

impl FlowMeter {
    fn data(&mut self, data: &AppcommData, context: &mut Context<'_>) {
        let bytes = context.message().map_or(0, |message| message.payload.len() as u64);
        let key = (data.data.connection, u8::from(data.data.direction));
        if self.meters.len() >= self.config.max_flows && !self.meters.contains_key(&key) {
            self.uncounted += 1;
            return;
        }
        let meter = self.meters.entry(key).or_default();
        for count in [&mut meter.total, &mut meter.running] {
            count.messages += 1;
            count.bytes += bytes;
        }
    }

    fn query(&mut self, _: &FlowQuery, context: &mut Context<'_>) {
        let flows = self.meters.iter().filter_map(|(&(connection, direction), meter)| {
            let per_second = Count { messages: self.per_second(meter.last.messages), bytes: self.per_second(meter.last.bytes) };
            Some(Flow { connection, direction: Direction::try_from(direction).ok()?, total: meter.total, per_second })
        });
        let report = FlowReport { armor: context.armor(), flows: flows.collect(), uncounted: self.uncounted };
        context.send_to(context.source(), report);
    }

    fn per_second(&self, in_interval: u64) -> u64 {
        in_interval.saturating_mul(1000) / self.config.interval_ms
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;
    use armor_core::context::{Effect, Effects};
    use armor_proto::connection::{AckState, Data};
    use armor_proto::ids::Incarnation;
    use armor_proto::message::{Message, downcast};

    fn setup() -> Setup {
        Setup { armor: ArmorId(5), name: "meter".into(), kind: "test".into(), run_dir: "/".into() }
    }

    fn meter(config: Config) -> FlowMeter {
        FlowMeter::new(config, &setup()).unwrap_or_else(|reason| panic!("{reason}"))
    }

    fn data(connection: u64) -> AppcommData {
        AppcommData {
            data: Data {
                connection: ConnectionId(connection),
                incarnation: Incarnation(1),
                direction: Direction::C2s,
                offset: 0,
                fin: false,
                ack: AckState::default(),
            },
        }
    }

    fn arrives(meter: &mut FlowMeter, connection: u64, payload: &'static [u8]) {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut message = Message::to(ArmorId(5), data(connection)).with_payload(payload.into());
        meter.data(&data(connection), &mut Context::detached(&setup, Some(&mut message), &mut effects));
        assert!(effects.is_empty());
    }

    fn interval_passes(meter: &mut FlowMeter) {
        let (setup, mut effects) = (setup(), Effects::new());
        meter.timer(0, &mut Context::detached(&setup, None, &mut effects));
        assert!(matches!(effects[..], [Effect::Timer(..)]));
    }

    fn report(meter: &mut FlowMeter) -> FlowReport {
        let (setup, mut effects) = (setup(), Effects::new());
        let mut asked = Message::to(ArmorId(5), FlowQuery {});
        asked.source = ArmorId(9);
        meter.query(&FlowQuery {}, &mut Context::detached(&setup, Some(&mut asked), &mut effects));
        let [Effect::Send(answer)] = &effects[..] else { panic!("one message") };
        assert_eq!(answer.destination(), Some(ArmorId(9)));
        let operation = answer.top().and_then(|bundle| bundle.operations.front());
        operation.and_then(downcast).cloned().unwrap_or_else(|| panic!("a report"))
    }

    #[test]
    fn bytes_and_messages_are_counted_per_connection() {
        let mut meter = meter(Config { interval_ms: 500, ..Config::default() });
        arrives(&mut meter, 1, b"hello");
        arrives(&mut meter, 1, b"you");
        arrives(&mut meter, 2, b"");
        interval_passes(&mut meter);
        let flows = report(&mut meter).flows;
        assert_eq!(flows.len(), 2);
        assert_eq!(flows[0].total, Count { messages: 2, bytes: 8 });
        assert_eq!(flows[0].per_second, Count { messages: 4, bytes: 16 });
        assert_eq!(flows[1].total, Count { messages: 1, bytes: 0 });
    }

    #[test]
    fn a_silent_flow_is_forgotten() {
        let mut meter = meter(Config::default());
        arrives(&mut meter, 1, b"hello");
        interval_passes(&mut meter);
        interval_passes(&mut meter);
        assert_eq!(report(&mut meter).flows.len(), 1);
        interval_passes(&mut meter);
        assert!(report(&mut meter).flows.is_empty());
    }

    #[test]
    fn flows_beyond_the_bound_are_counted_together() {
        let mut meter = meter(Config { max_flows: 1, ..Config::default() });
        arrives(&mut meter, 1, b"hello");
        arrives(&mut meter, 2, b"hello");
        arrives(&mut meter, 1, b"hello");
        let report = report(&mut meter);
        assert_eq!((report.flows.len(), report.uncounted), (1, 1));
    }

    #[test]
    fn the_largest_report_fits_a_frame() {
        let most = Count { messages: u64::MAX, bytes: u64::MAX };
        let flow = Flow { connection: ConnectionId(u64::MAX), direction: Direction::S2c, total: most, per_second: most };
        let report = FlowReport { armor: ArmorId(5), flows: vec![flow; MOST_FLOWS], uncounted: u64::MAX };
        let encoded = armor_proto::frame::encode(&Message::to(ArmorId(9), report), &mut bytes::BytesMut::new());
        assert!(encoded.is_ok(), "{encoded:?}");
    }

    #[test]
    fn a_configuration_that_cannot_be_is_refused() {
        assert!(FlowMeter::new(Config { interval_ms: 0, ..Config::default() }, &setup()).is_err());
        assert!(FlowMeter::new(Config { max_flows: MOST_FLOWS + 1, ..Config::default() }, &setup()).is_err());
    }

    #[test]
    fn the_two_operations_have_numbers_of_their_own_in_the_open_range() {
        assert_ne!(FlowQuery::KIND, FlowReport::KIND);
        const { assert!(FlowQuery::KIND.0 >= OperationKind::OPEN_RANGE && FlowReport::KIND.0 >= OperationKind::OPEN_RANGE) };
    }
}
