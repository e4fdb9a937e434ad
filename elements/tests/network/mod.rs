//! A network of ARMORs in this process: each runs in its own thread with its own run directory.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use armor_core::composition::Composition;
use armor_core::element::{ElementKind, Setup};
use armor_elements::operations::ArmorAttach;
use armor_proto::frame::Frame;
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::Message;
use armor_proto::operation::{BundledOperation, Operation};
use bytes::BytesMut;

pub const WITHIN: Duration = Duration::from_secs(20);

pub const FTM: &str = "[armor]\nkind = \"ftm\"\n[[element]]\nname = \"reliable_messaging\"\n[[element]]\nname = \"daemon_gateway\"\n[[element]]\nname = \"daemon_tcp_mgmt\"\nlisten = \"127.0.0.1:0\"\n\
    [[element]]\nname = \"daemon_registry\"\n[[element]]\nname = \"ftm_heartbeat\"\n[[element]]\nname = \"event_log\"\n\
    [[element]]\nname = \"heartbeat_responder\"\n[[element]]\nname = \"state_capture\"\n";

/// A daemon's composition; `more` are TOML lines that follow those of `daemon_tcp_mgmt`.
pub fn daemon(ftm: &str, more: &str) -> String {
    format!(
        "[armor]\nkind = \"daemon\"\n[[element]]\nname = \"reliable_messaging\"\n[[element]]\nname = \"heartbeat_responder\"\n[[element]]\nname = \"daemon_gateway\"\n\
         [[element]]\nname = \"daemon_tcp_mgmt\"\nlisten = \"127.0.0.1:0\"\nftm = \"{ftm}\"\n{more}"
    )
}

/// A running ARMOR; it is shut down when dropped.
pub struct Node {
    pub armor: ArmorId,
    pub run_dir: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    pub fn start(name: &str, base: &Path, composition: &str, kinds: Vec<ElementKind>) -> Node {
        let run_dir = base.join(name);
        let armor = ArmorId::of_name(name);
        let composition = Composition::parse(name, composition, &kinds).expect("composition");
        let setup = Setup { armor, name: name.to_owned(), kind: composition.kind().to_owned(), run_dir: run_dir.clone() };
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            armor_core::host::run(&composition, &kinds, setup, false, || ready.send(()).expect("test waits")).expect("runs");
        });
        is_ready.recv_timeout(WITHIN).expect("starts");
        Node { armor, run_dir, thread: Some(thread) }
    }

    pub fn udp_address(&self) -> String {
        std::fs::read_to_string(self.run_dir.join("udp.addr")).expect("udp.addr").trim().to_owned()
    }

    pub fn tcp_address(&self) -> String {
        std::fs::read_to_string(self.run_dir.join("tcp.addr")).expect("tcp.addr").trim().to_owned()
    }

    pub fn client(&self) -> Client {
        Client::attach(&self.run_dir.join("armor.sock"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(socket) = UnixStream::connect(self.run_dir.join("armor.sock")) {
            Client::over(socket).send(self.armor, armor_core::operations::Shutdown {});
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the `armor` program is: a short-lived speaker at a daemon's gateway.
pub struct Client {
    pub armor: ArmorId,
    socket: UnixStream,
    buffer: BytesMut,
}

impl Client {
    pub fn attach(path: &Path) -> Client {
        Client::over(UnixStream::connect(path).expect("gateway"))
    }

    fn over(socket: UnixStream) -> Client {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock").as_nanos();
        let armor = ArmorId::ephemeral(clock as u64);
        let mut client = Client { armor, socket, buffer: BytesMut::new() };
        client.send(ArmorId::NONE, ArmorAttach { armor, name: "test".into(), pid: std::process::id() });
        client
    }

    pub fn send(&mut self, destination: ArmorId, operation: impl Into<BundledOperation>) {
        self.send_message(Message::to(destination, operation));
    }

    pub fn send_message(&mut self, mut message: Message) {
        message.source = self.armor;
        if message.id == MessageId(0) {
            message.id = MessageId(1);
        }
        self.send_home(message);
    }

    /// Sends a message on that came from somebody else.
    pub fn send_home(&mut self, message: Message) {
        let encoded = armor_proto::frame::encode(&message, &mut BytesMut::new()).expect("encodes");
        self.socket.write_all(&encoded.head).expect("writes");
        self.socket.write_all(&encoded.payload).expect("writes");
    }

    /// The next operation of type `O`, if it comes in time; others are passed over.
    pub fn receive<O: Operation>(&mut self, within: Duration) -> Option<O> {
        let message = self.receive_message::<O>(within)?;
        let BundledOperation::Encoded { body, .. } = &message.top().expect("bundle").operations[0] else { panic!("it came in a frame") };
        Some(armor_proto::operation::decode(body).expect("operation"))
    }

    /// The next message whose first operation is an `O`.
    pub fn receive_message<O: Operation>(&mut self, within: Duration) -> Option<Message> {
        let until = Instant::now() + within;
        loop {
            while let Some(frame) = Frame::take(&mut self.buffer).expect("frames") {
                let message = frame.decode().expect("message");
                if message.top().expect("bundle").operations[0].kind() == O::KIND {
                    return Some(message);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left)).expect("timeout");
            let mut piece = [0; 65536];
            match self.socket.read(&mut piece) {
                Ok(0) => return None,
                Ok(got) => self.buffer.extend_from_slice(&piece[..got]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The status of an ARMOR, asked for until it answers.
    pub fn status(&mut self, of: ArmorId) -> serde_json::Value {
        let until = Instant::now() + WITHIN;
        while Instant::now() < until {
            self.send(of, armor_core::operations::StatusQuery {});
            if let Some(report) = self.receive::<armor_core::operations::StatusReport>(Duration::from_millis(500))
                && report.armor == of
            {
                return serde_json::from_str(&report.json).expect("JSON");
            }
        }
        panic!("{of} does not answer");
    }
}

/// Asks again until `fact` gives something.
pub fn eventually<T>(what: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + WITHIN;
    while Instant::now() < until {
        if let Some(found) = fact() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{what}: not within {WITHIN:?}");
}

/// A TCP relay whose links can be cut, as a wire can.
pub struct Wire {
    pub address: String,
    target: Arc<Mutex<String>>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    pub fn new() -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let wire = Wire { address: listener.local_addr().expect("address").to_string(), target: Arc::default(), sockets: Arc::default() };
        let (target, sockets) = (Arc::clone(&wire.target), Arc::clone(&wire.sockets));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let to = target.lock().expect("target").clone();
                let Ok(far) = TcpStream::connect(to) else { continue };
                for (mut from, mut to) in [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())]
                    .map(|(from, to)| (from.expect("clone"), to.expect("clone")))
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                sockets.lock().expect("sockets").extend([near, far]);
            }
        });
        wire
    }

    pub fn leads_to(&self, address: &str) {
        address.clone_into(&mut self.target.lock().expect("target"));
    }

    /// How many sockets were cut.
    pub fn cut(&self) -> usize {
        let sockets = std::mem::take(&mut *self.sockets.lock().expect("sockets"));
        sockets.iter().filter(|socket| socket.shutdown(Shutdown::Both).is_ok()).count()
    }
}
