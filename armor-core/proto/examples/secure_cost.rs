//! What protection costs: `cargo run --release -p armor-proto --example secure_cost`.

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use armor_proto::secure::{Established, Identity, KeyPair, PACKET_OVERHEAD, Transport, Trusted, answer, dial};
use bytes::BytesMut;

/// The best of so many rounds: the machine may be shared.
const ROUNDS: usize = 30;
const BYTES_PER_ROUND: usize = 32 << 20;

fn best(times: usize, mut work: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for _ in 0..times {
            work()?;
        }
        best = best.min(begun.elapsed() / u32::try_from(times)?);
    }
    Ok(best)
}

fn told(what: &str, size: usize, took: Duration) {
    let rate = size as f64 / took.as_secs_f64() / f64::from(1 << 30);
    println!("{what:16} {size:6} bytes: {took:9.1?}, {rate:5.2} GiB/s");
}

fn pair(nodes: &[Identity; 2], trusted: &Trusted) -> Result<(Established, Established), Box<dyn Error>> {
    let [a, b] = nodes;
    let (mut dialling, first) = dial(a, "b", trusted, Transport::Tcp)?;
    let (at_b, second) = answer(b, trusted, Transport::Tcp, &first)?;
    Ok((dialling.finish(&second)?, at_b))
}

fn main() -> Result<(), Box<dyn Error>> {
    let node = |name: &str| KeyPair::generate().map(|keys| Identity { name: name.to_owned(), keys });
    let nodes = [node("a")?, node("b")?];
    let mut trusted = Trusted::default();
    for node in &nodes {
        trusted.add(&node.name, node.keys.public())?;
    }
    let handshake = best(20, || {
        black_box(pair(&nodes, &trusted)?);
        Ok(())
    })?;
    println!("handshake, both sides: {handshake:.1?}");
    for size in [64, 512, 1200, 1452, 16 << 10, 64 << 10, 128 << 10] {
        let times = BYTES_PER_ROUND / (size + 512);
        let plain = vec![0x5a; size];
        let (mut sealer, _) = pair(&nodes, &trusted)?.0.records();
        let mut out = Vec::new();
        let took = best(times, || {
            out.clear();
            Ok(sealer.seal(&[&plain], &mut out)?)
        })?;
        told("record sealed", size, took);
        let (a, b) = pair(&nodes, &trusted)?;
        let ((mut sealer, _), (_, mut opener)) = (a.records(), b.records());
        let mut heard = BytesMut::new();
        let took = best(times, || {
            out.clear();
            sealer.seal(&[&plain], &mut out)?;
            heard.clear();
            opener.open(&mut out, &mut heard)?;
            Ok(())
        })?;
        told("sealed, opened", size, took);
        if size > 1452 {
            continue;
        }
        let (a, b) = pair(&nodes, &trusted)?;
        let ((mut sealer, _), (_, mut opener)) = (a.packets(), b.packets());
        let (mut packet, mut number) = (vec![0x5a; size + PACKET_OVERHEAD], 0);
        let took = best(times, || {
            number += 1;
            Ok(sealer.seal(number, b"header of 11", &mut packet)?)
        })?;
        told("packet sealed", size, took);
        let took = best(times, || {
            number += 1;
            sealer.seal(number, b"header of 11", &mut packet)?;
            opener.open(number, b"header of 11", &mut packet)?;
            Ok(())
        })?;
        told("sealed, opened", size, took);
    }
    Ok(())
}
