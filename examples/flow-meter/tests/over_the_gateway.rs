//! Runs the program with a small composition and speaks to it at its gateway socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use armor_core::operations::Shutdown;
use armor_elements::operations::{AppcommData, ArmorAttach, Heartbeat, HeartbeatReply};
use armor_proto::connection::{AckState, Data, Direction};
use armor_proto::frame::{Frame, encode};
use armor_proto::ids::{ArmorId, ConnectionId, Incarnation, MessageId};
use armor_proto::message::Message;
use armor_proto::operation::{BundledOperation, Operation, decode};
use bytes::{Bytes, BytesMut};
use flow_meter::flow_meter::{Count, FlowQuery, FlowReport};

const COMPOSITION: &str = r#"
[armor]
kind = "meter"

[[element]]
name = "heartbeat_responder"

[[element]]
name = "state_capture"

[[element]]
name = "reliable_messaging"

[[element]]
name = "daemon_gateway"

[[element]]
name = "flow_meter"
interval_ms = 50
"#;

const PATIENCE: Duration = Duration::from_secs(20);

/// The ARMOR's process; killed when a test fails.
struct Armor(Child);

impl Drop for Armor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A speaker at the gateway.
struct Speaker {
    stream: UnixStream,
    buffer: BytesMut,
    id: ArmorId,
    meter: ArmorId,
    sent: u64,
}

impl Speaker {
    fn attach(run_dir: &Path, meter: ArmorId) -> Speaker {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(run_dir.join("armor.sock")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "no gateway: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let id = ArmorId::ephemeral(u64::from(std::process::id()) << 8);
        let mut speaker = Speaker { stream, buffer: BytesMut::new(), id, meter, sent: 0 };
        speaker.send(ArmorAttach { armor: id, name: "test".to_owned(), pid: std::process::id() }, Bytes::new());
        speaker
    }

    fn send(&mut self, operation: impl Operation, payload: Bytes) {
        let mut message = Message::to(self.meter, operation).with_payload(payload);
        self.sent += 1;
        message.source = self.id;
        message.id = MessageId(self.sent);
        let encoded = encode(&message, &mut BytesMut::new()).unwrap();
        self.stream.write_all(&encoded.head).unwrap();
        self.stream.write_all(&encoded.payload).unwrap();
    }

    fn receive<O: Operation>(&mut self) -> O {
        loop {
            while let Some(frame) = Frame::take(&mut self.buffer).unwrap() {
                let message = frame.decode().unwrap();
                let operation = message.top().and_then(|bundle| bundle.operations.front());
                if let Some(BundledOperation::Encoded { kind, body }) = operation
                    && *kind == O::KIND
                {
                    return decode(body).unwrap();
                }
            }
            let mut chunk = [0; 4096];
            let got = self.stream.read(&mut chunk).unwrap();
            assert!(got > 0, "the gateway has closed");
            self.buffer.extend_from_slice(&chunk[..got]);
        }
    }
}

fn data(connection: u64, direction: Direction) -> AppcommData {
    let (connection, incarnation) = (ConnectionId(connection), Incarnation(1));
    AppcommData { data: Data { connection, incarnation, direction, offset: 0, fin: false, ack: AckState::default() } }
}

#[test]
fn the_meter_answers_at_the_gateway_with_what_has_arrived() {
    let directory = tempfile::tempdir().unwrap();
    let composition = directory.path().join("small.toml");
    std::fs::write(&composition, COMPOSITION).unwrap();
    let run_dir = directory.path().join("meter");
    let mut program = Command::new(env!("CARGO_BIN_EXE_flow-meter"));
    program.arg(&composition).args(["--name", "meter", "--run-dir"]).arg(&run_dir);
    let mut armor = Armor(program.spawn().unwrap());

    let meter = ArmorId::of_name("meter");
    let mut speaker = Speaker::attach(&run_dir, meter);
    speaker.send(Heartbeat { sequence: 7, asker: speaker.id }, Bytes::new());
    assert_eq!(speaker.receive::<HeartbeatReply>().sequence, 7);

    speaker.send(data(1, Direction::C2s), Bytes::from_static(b"hello"));
    speaker.send(data(1, Direction::C2s), Bytes::from_static(b"again"));
    speaker.send(data(1, Direction::S2c), Bytes::from_static(b"welcome"));
    speaker.send(FlowQuery {}, Bytes::new());
    let report: FlowReport = speaker.receive();
    assert_eq!(report.armor, meter);
    let totals: Vec<_> = report.flows.iter().map(|flow| (flow.connection, flow.direction, flow.total)).collect();
    let (up, down) = (Count { messages: 2, bytes: 10 }, Count { messages: 1, bytes: 7 });
    assert_eq!(totals, [(ConnectionId(1), Direction::C2s, up), (ConnectionId(1), Direction::S2c, down)]);

    speaker.send(Shutdown {}, Bytes::new());
    assert!(armor.0.wait().unwrap().success());
    assert!(!run_dir.join("armor.sock").exists() && !run_dir.join("pid").exists());
}

#[test]
fn a_second_program_in_the_same_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let composition = directory.path().join("small.toml");
    std::fs::write(&composition, COMPOSITION).unwrap();
    let run_dir = directory.path().join("meter");
    let start = || {
        let mut program = Command::new(env!("CARGO_BIN_EXE_flow-meter"));
        program.arg(&composition).arg("--run-dir").arg(&run_dir);
        program
    };
    let _first = Armor(start().spawn().unwrap());
    Speaker::attach(&run_dir, ArmorId::of_name("meter"));
    let second = start().output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another ARMOR runs there"));
}
