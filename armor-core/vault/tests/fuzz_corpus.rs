//! The fuzz target's corpus as an ordinary test. `ARMOR_WRITE_CORPUS=1 cargo test -p armor-vault --test fuzz_corpus` adds the seeds anew.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use armor_vault::Exited;
use armor_vault::message::{Answer, Request, decode, encode};

fn seeds() -> Vec<Vec<u8>> {
    let requests =
        [Request::Hello { owner: "node1".into() }, Request::Keep { key: "journal".into() }, Request::Heard { sequence: 9 }, Request::Alive];
    let answers = [
        Answer::Kept { keys: vec!["journal".into(), "listener".into()] },
        Answer::Exited { sequence: 1, process: Exited { pid: 7, status: 9 } },
        Answer::Handed { count: 2 },
        Answer::Refused { key: "journal".into(), reason: "a bound".into() },
    ];
    let mut seeds: Vec<Vec<u8>> = requests.iter().map(|request| encode(request).unwrap()).collect();
    seeds.extend(answers.iter().map(|answer| encode(answer).unwrap()));
    for at in 0..seeds.len() {
        let mut changed = seeds[at].clone();
        let middle = changed.len() / 2;
        changed[middle] = changed[middle].wrapping_add(0x81);
        seeds.push(changed);
    }
    seeds
}

#[test]
fn the_corpus_neither_panics_nor_changes_what_it_decodes() {
    let (directory, seeds) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/vault"), seeds());
    if std::env::var_os("ARMOR_WRITE_CORPUS").is_some() {
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number:02}")), seed).unwrap();
        }
    }
    let inputs: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(inputs.len() >= seeds.len(), "{} holds {} inputs", directory.display(), inputs.len());
    let mut decoded = 0;
    for input in inputs {
        if let Ok(request) = decode::<Request>(&input) {
            decoded += 1;
            assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request);
        }
        if let Ok(answer) = decode::<Answer>(&input) {
            decoded += 1;
            assert_eq!(decode::<Answer>(&encode(&answer).unwrap()).unwrap(), answer);
        }
    }
    assert!(decoded >= 8, "only {decoded} inputs were messages");
}
