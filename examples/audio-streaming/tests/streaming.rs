//! The two programs against each other, and against peers that misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// A server program that ends with the test.
struct ServerProgram {
    child: Child,
    address: String,
    sha256: String,
}

impl ServerProgram {
    /// Starts it on a free port and waits until it says that it listens.
    fn start(arguments: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", arguments)
    }

    fn start_on(address: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_audio-server"))
            .args(["--listen", address, "--sha256", "--quiet"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line_after = |word: &str| {
            let line = lines.next().expect("the server ended before it said that it listens").unwrap();
            line.strip_prefix(word).unwrap_or_else(|| panic!("{line:?} does not begin with {word}")).to_owned()
        };
        let sha256 = line_after("sha256 ");
        let address = line_after("listening ");
        Self { child, address, sha256 }
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    }

    fn ask(&self, request: &[u8]) -> String {
        let mut socket = self.connect();
        socket.write_all(request).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for ServerProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client_command(address: &str, folder: &Path, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_audio-client"));
    command
        .args(["--connect", address, "--device", "none"])
        .arg("--out")
        .arg(folder.join(format!("{name}.wav")))
        .arg("--report")
        .arg(folder.join(format!("{name}.json")))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn report(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap()
}

fn sha256_of(path: &Path) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).unwrap()))
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn three_clients_get_the_same_whole_programme() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved.wav");
    let server = ServerProgram::start(&["--seconds", "40", "--rate", "8000", "--speed", "40", "--write-wav", saved.to_str().unwrap()]);
    let clients: Vec<(String, Child)> = (0..3)
        .map(|i| {
            let name = format!("client{i}");
            let child = client_command(&server.address, folder.path(), &name, &["--speed", "40", "--progress"]).spawn();
            (name, child.unwrap())
        })
        .collect();
    for (name, child) in clients {
        let output: Output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report = report(folder.path(), &name);
        assert_eq!(report["outcome"], "complete");
        assert_eq!(report["bytes_received"], 44 + 40 * 16_000);
        assert_eq!(report["bytes_missing"], 0);
        assert_eq!(report["packets"], 2000);
        assert_eq!(report["format"]["bits"], 16);
        assert_eq!(report["sha256"], server.sha256.as_str());
        assert_eq!(sha256_of(&folder.path().join(format!("{name}.wav"))), server.sha256);
        let series = report["arrivals"]["series"].as_array().unwrap();
        assert_eq!(series.iter().map(|entry| entry[1].as_u64().unwrap()).sum::<u64>(), 40 * 16_000);
        let lines: Vec<&str> = text(&output.stdout).lines().collect();
        assert!(lines[0].starts_with("progress "), "{lines:?}");
        assert_eq!(*lines.last().unwrap(), format!("outcome complete 640044 {}", server.sha256));
    }
    assert_eq!(sha256_of(&saved), server.sha256);
}

#[test]
fn a_wav_file_of_eight_bits_is_streamed_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.wav");
    let spec = hound::WavSpec { channels: 1, sample_rate: 11_025, bits_per_sample: 8, sample_format: hound::SampleFormat::Int };
    let mut writer = hound::WavWriter::create(&path, spec).unwrap();
    (0..11_111).for_each(|i| writer.write_sample((i * 7 % 256 - 128) as i8).unwrap());
    writer.finalize().unwrap();
    let server = ServerProgram::start(&["--wav", path.to_str().unwrap(), "--speed", "100"]);
    let output = client_command(&server.address, folder.path(), "client", &["--speed", "100"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = report(folder.path(), "client");
    assert_eq!((&report["format"]["bits"], &report["format"]["sample_rate"]), (&8.into(), &11_025.into()));
    assert_eq!(report["sha256"], server.sha256.as_str());
    let samples = |path: &Path| -> Vec<i8> { hound::WavReader::open(path).unwrap().into_samples::<i8>().map(Result::unwrap).collect() };
    assert_eq!(samples(&folder.path().join("client.wav")), samples(&path));
}

#[test]
fn a_packet_never_comes_before_it_is_due() {
    let server = ServerProgram::start(&["--seconds", "1", "--rate", "8000"]);
    let mut socket = server.connect();
    let begun = Instant::now();
    writeln!(socket, "PLAY {}", unix_ms()).unwrap();
    socket.read_to_end(&mut Vec::new()).unwrap();
    // The last packet is due 980 ms after a start that was rounded down to a millisecond.
    assert!(begun.elapsed() >= Duration::from_millis(978), "{:?}", begun.elapsed());
}

#[test]
fn a_server_started_anew_repeats_the_stream_and_needs_no_real_time_for_the_past() {
    let arguments = ["--seconds", "600", "--rate", "8000"];
    let first = ServerProgram::start(&arguments);
    let request = format!("PLAY {}\n", unix_ms() - 590_000);
    let mut socket = first.connect();
    socket.write_all(request.as_bytes()).unwrap();
    let mut before = vec![0; 1_000_000];
    socket.read_exact(&mut before).unwrap();
    let address = first.address.clone();
    drop(first);
    drop(socket);

    let second = ServerProgram::start_on(&address, &arguments);
    let mut socket = second.connect();
    let begun = Instant::now();
    socket.write_all(request.as_bytes()).unwrap();
    let mut again = vec![0; 44 + 590 * 16_000];
    socket.read_exact(&mut again).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(300), "590 s of audio took {:?}", begun.elapsed());
    assert!(again[..before.len()] == before[..]);
}

#[test]
fn bad_requests_are_answered_and_harm_nobody() {
    let server = ServerProgram::start(&["--seconds", "2", "--rate", "8000", "--speed", "1000"]);
    assert!(server.ask(b"GET / HTTP/1.1\r\n\r\n").starts_with("ERR unknown request"));
    assert!(server.ask(b"PLAY soon\n").starts_with("ERR start time \"soon\""));
    assert!(server.ask(&[b'x'; 50_000]).starts_with("ERR request line longer"));
    assert!(server.ask(format!("PLAY {}\n", u64::MAX).as_bytes()).contains("ahead of the server's clock"));
    drop(server.connect());
    let mut whole = Vec::new();
    let mut socket = server.connect();
    socket.write_all(b"PLAY 0\nand more than was asked for").unwrap();
    socket.read_to_end(&mut whole).unwrap();
    assert_eq!(format!("{:x}", Sha256::digest(&whole)), server.sha256);
}

#[test]
fn clients_above_the_limit_are_told_so() {
    let server = ServerProgram::start(&["--seconds", "60", "--rate", "8000", "--max-clients", "1"]);
    let mut first = server.connect();
    writeln!(first, "PLAY {}", unix_ms()).unwrap();
    first.read_exact(&mut [0; 44]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = client_command(&server.address, folder.path(), "second", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report(folder.path(), "second")["outcome"], "refused");
}

#[test]
fn a_port_in_use_is_said_and_has_its_exit_status() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_audio-server")).args(["--listen", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let error = text(&output.stderr);
    assert!(error.contains(&format!("cannot listen on {address}")) && error.contains("in use"), "{error}");
}

#[test]
fn a_programme_that_is_none_has_its_exit_status() {
    let output = Command::new(env!("CARGO_BIN_EXE_audio-server"))
        .args(["--listen", "127.0.0.1:0", "--wav", env!("CARGO_BIN_EXE_audio-server")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("cannot read WAV file"));
}

/// Lets a client play from a server that does `serve` with its connection.
fn play_from(serve: impl FnOnce(TcpStream), arguments: &[&str]) -> (Option<i32>, Value, u64) {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let child = client_command(&address, folder.path(), "client", arguments).spawn().unwrap();
    serve(listener.accept().unwrap().0);
    let output = child.wait_with_output().unwrap();
    let stored = fs::metadata(folder.path().join("client.wav")).map_or(0, |file| file.len());
    (output.status.code(), report(folder.path(), "client"), stored)
}

/// A head that announces `data_len` bytes, and `sent` bytes of samples.
fn cut_stream(data_len: u32, sent: usize) -> Vec<u8> {
    let format = audio_streaming::wav::AudioFormat::new(8_000, 1, 8).unwrap();
    let mut bytes = audio_streaming::wav::StreamHeader { format, data_len }.encode().to_vec();
    bytes.resize(bytes.len() + sent, 128);
    bytes
}

#[test]
fn a_stream_that_ends_too_soon_is_reported() {
    let (status, report, stored) = play_from(
        |mut socket| {
            BufReader::new(socket.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            socket.write_all(&cut_stream(8_000, 3_000)).unwrap();
        },
        &[],
    );
    assert_eq!(status, Some(1));
    assert_eq!((&report["outcome"], &report["bytes_missing"]), (&"early_eof".into(), &5_000.into()));
    assert_eq!(stored, 3_044);
}

#[test]
fn a_reset_is_reported() {
    let (status, report, _) = play_from(
        |mut socket| {
            // Closing while the request is unread resets the connection.
            socket.peek(&mut [0]).unwrap();
            socket.write_all(&cut_stream(8_000, 3_000)).unwrap();
        },
        &[],
    );
    assert_eq!((status, &report["outcome"]), (Some(1), &"reset".into()));
}

#[test]
fn a_server_that_stands_still_is_given_up() {
    let mut held = None;
    let (status, report, _) = play_from(
        |mut socket| {
            socket.write_all(&cut_stream(8_000, 3_000)).unwrap();
            held = Some(socket);
        },
        &["--stall-seconds", "0.2"],
    );
    assert_eq!((status, &report["outcome"]), (Some(1), &"stalled".into()));
}

#[test]
fn no_server_is_a_report_and_its_own_exit_status() {
    let folder = tempfile::tempdir().unwrap();
    // The port of a socket that does not listen: nobody else can take it, and nobody answers there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = client_command(&address, folder.path(), "client", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(report(folder.path(), "client")["outcome"], "connect_failed");
}
