//! The fuzz targets' corpora as ordinary tests. `ARMOR_WRITE_CORPUS=1 cargo test -p armor-proto --test fuzz_corpora` adds the seeds anew.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use armor_proto::connection::Mark;
use armor_proto::frame::{self, Frame};
use armor_proto::hookup::{Endpoint, Name, Reply, Request, Role};
use armor_proto::ids::ArmorId;
use armor_proto::message::{Bundle, Message};
use bytes::BytesMut;

#[path = "../../../fuzz/fuzz_targets/marks/conversation.rs"]
mod conversation;
#[path = "../../../fuzz/fuzz_targets/secure/stranger.rs"]
#[allow(clippy::expect_used)]
mod stranger;

#[path = "../../../fuzz/fuzz_targets/rudp/datagrams.rs"]
mod datagrams;

armor_proto::operations! { CORPUS_OPERATIONS;
    /// A number.
    0x7fe0 MSG_CORPUS => pub struct Corpus { number: u64 }
}

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn inputs(target: &str, seeds: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let directory = corpus(target);
    if std::env::var_os("ARMOR_WRITE_CORPUS").is_some() {
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number:02}")), seed).unwrap();
        }
    }
    let inputs: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(inputs.len() >= seeds.len(), "{} holds {} inputs", directory.display(), inputs.len());
    inputs
}

/// A valid input, and the same cut short, made longer, and with each of a few bytes changed.
fn variants(valid: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![valid.to_vec(), valid[..valid.len() / 2].to_vec(), [valid, valid].concat()];
    for at in [0, 2, 8, 12, valid.len() / 2, valid.len() - 1] {
        let mut changed = valid.to_vec();
        let at = at.min(valid.len() - 1);
        changed[at] = changed[at].wrapping_add(0x81);
        all.push(changed);
    }
    all
}

#[test]
fn the_frame_corpus_neither_panics_nor_changes_what_it_decodes() {
    let message = Message::new(Bundle::new(ArmorId(7), Corpus { number: 9 })).followed_by(Bundle::new(ArmorId(8), Corpus { number: 1 }));
    let encoded = frame::encode(&message.with_payload(bytes::Bytes::from_static(b"payload")), &mut BytesMut::new()).unwrap();
    let mut decoded = 0;
    for input in inputs("frame", variants(&[&encoded.head[..], &encoded.payload[..]].concat())) {
        let mut buffer = BytesMut::from(&input[..]);
        while let Ok(Some(found)) = Frame::take(&mut buffer) {
            if let Ok(message) = found.decode() {
                decoded += 1;
                let again = frame::encode(&message, &mut BytesMut::new()).unwrap();
                assert_eq!([&again.head[..], &again.payload[..]].concat(), found.bytes()[..]);
            }
        }
    }
    assert!(decoded >= 3, "only {decoded} inputs were frames");
}

#[test]
fn the_hookup_corpus_neither_panics_nor_changes_what_it_decodes() {
    let endpoint = Endpoint::new([127, 0, 0, 1].into(), 80);
    let name = Name { role: Role::Client, id: 5, local: endpoint, peer: endpoint };
    let requests = [
        Request::Bind { addr: endpoint, service: Some("web".into()), pid: 1, v6_only: false, reuse_port: true, instance: 3 },
        Request::Connect { addr: endpoint, nonblocking: true, descriptor: 7, pid: 1 },
        Request::SetOption { name, level: 6, option: 1, value: vec![1, 0, 0, 0] },
    ];
    let seeds = requests.iter().flat_map(|request| variants(&request.encode().unwrap())).chain([name.to_bytes().to_vec()]).collect();
    let mut decoded = 0;
    for input in inputs("hookup", seeds) {
        if let Ok(request) = Request::decode(&input) {
            decoded += 1;
            assert_eq!(Request::decode(&request.encode().unwrap()).unwrap(), request);
        }
        let _ = Reply::decode(&input);
        if let Ok(name) = Name::from_bytes(&input) {
            decoded += 1;
            assert_eq!(&name.to_bytes()[..], &input[..]);
        }
    }
    assert!(decoded >= 4, "only {decoded} inputs were requests");
}

/// A conversation as the target `marks` reads it: one byte for the policy, then pieces with a byte for side and length before each.
fn conversation_of(policy: u8, pieces: &[(bool, &str)]) -> Vec<u8> {
    let pieces = pieces.iter().flat_map(|(server, text)| text.as_bytes().chunks(127).map(move |piece| (*server, piece)));
    let pieces = pieces.flat_map(|(server, piece)| [&[u8::from(server) << 7 | piece.len() as u8][..], piece].concat());
    std::iter::once(policy).chain(pieces).collect()
}

#[test]
fn the_marks_corpus_neither_panics_nor_sets_a_mark_that_cannot_be() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let transaction = "*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n*1\r\n$4\r\nEXEC\r\n";
    let conversations = [
        conversation_of(
            0,
            &[(false, get), (true, ok), (false, post), (false, get), (true, "HTTP/1.1 100 Continue\r\n\r\n"), (true, ok), (true, ok)],
        ),
        conversation_of(
            0,
            &[(false, transaction), (true, "+OK\r\n+QUEUED\r\n"), (true, "*1\r\n:1\r\n"), (false, "*0\r\nPING\r\n"), (true, "+PONG\r\n")],
        ),
        conversation_of(2, &[(false, "SELECT 1\r\nGET a\r\n"), (true, "+OK\r\n%1\r\n+a\r\n*?\r\n$?\r\n;1\r\nx\r\n;0\r\n.\r\n")]),
        conversation_of(3, &[(false, "question"), (true, "answer"), (false, "question")]),
    ];
    let mut marks = 0;
    for input in inputs("marks", conversations.iter().flat_map(|valid| variants(valid)).collect()) {
        marks += u32::from(conversation::listen(&input) > Mark::default());
    }
    assert!(marks >= 4, "only {marks} conversations had a mark");
}

#[test]
fn nothing_of_the_secure_corpus_is_believed() {
    let list = |name: &str| {
        let key = armor_proto::secure::KeyPair::generate().unwrap().public();
        [b"\x02# nodes\n", format!("{name} {key} # the first\n").as_bytes()].concat()
    };
    let first = |what: u8, length: usize| [&[what][..], &vec![0x5a; length]].concat();
    let seeds =
        [first(0, 112), first(0, 113), first(1, 49), list("ftm"), list("node-1"), [&[3, 20, 0, 0, 0][..], &[7; 20]].concat(), first(4, 60)];
    let mut read = 0;
    for input in inputs("secure", seeds.iter().flat_map(|seed| variants(seed)).collect()) {
        let (believed, listed) = stranger::speak(&input);
        assert!(!believed, "{input:?}");
        read += listed;
    }
    assert!(read >= 2, "only {read} lines were entries of lists");
}

/// A command as the target `rudp` reads it.
fn command(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[content.len() as u8, kind][..], content].concat()
}

#[test]
fn the_rudp_corpus_neither_panics_nor_stops_a_link() {
    // Kinds: 0 a stranger's datagram, 2 a packet with frames, 4 time, 6 a message, 8 quiet; odd ones for the other end.
    let ack = [0x02, 5, 0, 1, 1, 0, 0];
    let beyond = [0x02, 0xc0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    let reliable = [0x10, 7, 0, 3, b'a', b'b', b'c'];
    let unreliable = [0x23, 7, 1, 2, 9, 2, b'a', b'b'];
    let seeds = [
        [command(6, b"hello"), command(8, b""), command(7, b"answer"), command(22, b"now"), command(4, &[100, 100]), command(8, b"")]
            .concat(),
        [command(2, &reliable), command(8, b""), command(3, &unreliable), command(3, &[0x01, 0, 0, 0x03, 0x44, 0x00]), command(8, b"")]
            .concat(),
        [command(2, &ack), command(6, b"hello"), command(8, b""), command(2, &beyond), command(8, b"")].concat(),
        [command(2, &[0x04, 1, 2, 3, 4, 5, 6, 7, 8]), command(3, &[0x05, 1, 2, 3, 4, 5, 6, 7, 8]), command(2, &[0x06, 9]), command(8, b"")]
            .concat(),
        [
            command(0, &[0x52, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0]),
            command(0x20, &[0x53; 21]),
            command(1, &[0x51; 40]),
            command(6, b"x"),
            command(8, b""),
        ]
        .concat(),
    ];
    let mut arrived = 0;
    for input in inputs("rudp", seeds.iter().flat_map(|valid| variants(valid)).collect()) {
        arrived += datagrams::run(&input);
    }
    assert!(arrived >= 20, "only {arrived} bytes arrived");
}

proptest::proptest! {
    #[test]
    fn nothing_that_a_peer_of_rudp_says_panics(commands in proptest::collection::vec((0u8..64, proptest::collection::vec(frame_byte(), 0..40)), 0..30)) {
        datagrams::run(&commands.iter().flat_map(|(kind, content)| command(*kind, content)).collect::<Vec<_>>());
    }
}

/// Bytes of which many are kinds of frames.
fn frame_byte() -> impl proptest::strategy::Strategy<Value = u8> {
    proptest::prop_oneof![0u8..8, 0x10u8..0x12, 0x20u8..0x24, proptest::num::u8::ANY]
}
