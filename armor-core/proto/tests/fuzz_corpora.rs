//! The fuzz targets' corpora as ordinary tests. `ARMOR_WRITE_CORPUS=1 cargo test -p armor-proto --test fuzz_corpora` adds the seeds anew.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use armor_proto::frame::{self, Frame};
use armor_proto::hookup::{Endpoint, Name, Reply, Request, Role};
use armor_proto::ids::ArmorId;
use armor_proto::message::{Bundle, Message};
use bytes::BytesMut;

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
        Request::Register { addr: endpoint, service: Some("web".into()), pid: 1, v6_only: false, reuse_port: true },
        Request::Connect { addr: endpoint, nonblocking: true, bound: None, pid: 1 },
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
