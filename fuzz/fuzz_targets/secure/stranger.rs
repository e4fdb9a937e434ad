//! A stranger speaks to a node: one byte for what it says, then the bytes.

use std::sync::OnceLock;

use armor_proto::secure::{Identity, KeyPair, RECORD_OVERHEAD, Transport, Trusted, answer, dial};
use bytes::BytesMut;

struct Network {
    nodes: [Identity; 2],
    trusted: Trusted,
}

fn network() -> &'static Network {
    static NETWORK: OnceLock<Network> = OnceLock::new();
    NETWORK.get_or_init(|| {
        let node = |name: &str| Identity { name: name.to_owned(), keys: KeyPair::generate().expect("keys") };
        let nodes = [node("a"), node("b")];
        let mut trusted = Trusted::default();
        for node in &nodes {
            trusted.add(&node.name, node.keys.public()).expect("a list");
        }
        Network { nodes, trusted }
    })
}

/// Whether anything that it said was believed, and how long what was read of a list is.
pub(crate) fn speak(data: &[u8]) -> (bool, usize) {
    let Some((what, said)) = data.split_first() else { return (false, 0) };
    let Network { nodes: [a, b], trusted } = network();
    match what % 5 {
        0 => (answer(b, trusted, Transport::Tcp, said).is_ok(), 0),
        1 => {
            let (mut dialling, _) = dial(a, "b", trusted, Transport::Udp).expect("a first message");
            (dialling.finish(said).is_ok(), 0)
        }
        2 => {
            let list = std::str::from_utf8(said).ok().and_then(|text| Trusted::parse(text).ok());
            if let Some(list) = &list {
                assert_eq!(Trusted::parse(&list.to_string()).as_ref(), Ok(list));
            }
            (false, list.map_or(0, |list| list.len()))
        }
        what => {
            let (mut dialling, first) = dial(a, "b", trusted, Transport::Tcp).expect("a first message");
            let (at_b, second) = answer(b, trusted, Transport::Tcp, &first).expect("an answer");
            let at_a = dialling.finish(&second).expect("established");
            if what == 3 {
                let ((mut sealer, _), (_, mut opener)) = (at_a.records(), at_b.records());
                // Behind what a node has said in truth.
                let (mut raw, mut plain) = (Vec::new(), BytesMut::new());
                sealer.seal(&[b"true"], &mut raw).expect("sealed");
                raw.extend_from_slice(said);
                if let Ok(used) = opener.open(&mut raw, &mut plain) {
                    assert_eq!(used, RECORD_OVERHEAD + 4);
                }
                (&plain[..] != b"true", 0)
            } else {
                let (_, mut opener) = at_b.packets();
                let (number, packet) = said.split_at(said.len().min(8));
                let number = number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
                (opener.open(number, b"header", &mut packet.to_vec()).is_ok(), 0)
            }
        }
    }
}
