#![allow(clippy::expect_used, clippy::panic)]

use std::time::Instant;

use super::*;
use crate::links::daemons::{LONGEST_WAIT, REKEY_AFTER};
use crate::links::{as_frame, encode};
use crate::operations::{ArmorAttach, ArmorLocation, Carrier};
use armor_core::context::Effect;
use armor_core::operations::StatusQuery;
use armor_proto::frame::Encoded;
use armor_proto::message::{Message, downcast};

const OWN: ArmorId = ArmorId(5);

fn setup() -> Setup {
    Setup { armor: OWN, name: "node1".into(), kind: "daemon".into(), run_dir: "/".into() }
}

fn element() -> DaemonTcpMgmt {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { listen, ftm: Some("127.0.0.1:1".into()), advertise: None, keys: None };
    DaemonTcpMgmt::new(config, &setup()).expect("works")
}

fn encoded(destination: ArmorId) -> Encoded {
    let mut message = Message::to(destination, StatusQuery {});
    message.source = ArmorId(9);
    encode(&message).expect("works")
}

fn questions(effects: &[Effect]) -> Vec<ArmorId> {
    let messages = effects.iter().filter_map(|effect| if let Effect::Send(message) = effect { message.top() } else { None });
    messages.filter_map(|bundle| downcast::<LocateArmor>(&bundle.operations[0])).map(|locate| locate.armor).collect()
}

fn dials(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Spawn(_))).count()
}

#[test]
fn an_unknown_destination_is_asked_for_once_and_its_daemon_dialled_when_the_ftm_knows_it() {
    let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
    let mut context = Context::detached(&setup, None, &mut effects);
    element.daemons.keep(ArmorId(70), encoded(ArmorId(70)), &mut context);
    element.daemons.keep(ArmorId(70), encoded(ArmorId(70)), &mut context);
    assert_eq!(questions(&effects), [ArmorId(70)]);
    assert_eq!(dials(&effects), 0);
    let location = ArmorLocation { armor: ArmorId(70), daemon: ArmorId(7), carrier: Carrier::Tcp, address: "127.0.0.1:2".into() };
    element.daemons.location(&location, &mut Context::detached(&setup, None, &mut effects));
    element.daemons.location(&location, &mut Context::detached(&setup, None, &mut effects));
    assert_eq!(dials(&effects), 1);
    assert_eq!(element.daemons.next_hop(ArmorId(70)), Some(ArmorId(7)));
    assert_eq!(element.daemons.waiting.len(), 2);
}

#[test]
fn where_daemons_are_outlives_the_process_so_that_its_next_life_dials_them_at_once() {
    let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
    element.daemons.listening = Some(SocketAddr::from(([127, 0, 0, 1], 4000)));
    let location = ArmorLocation { armor: ArmorId(7), daemon: ArmorId(7), carrier: Carrier::Tcp, address: "127.0.0.1:2".into() };
    element.daemons.location(&location, &mut Context::detached(&setup, None, &mut effects));
    let mut next = self::element();
    next.restore(&element.capture().expect("a state")).expect("works");
    next.daemons.keep(ArmorId(7), encoded(ArmorId(7)), &mut Context::detached(&setup, None, &mut effects));
    assert_eq!(dials(&effects), 1);
    assert_eq!(questions(&effects), [ArmorId(7)], "it may have moved");
    assert_eq!(next.daemons.listening, element.daemons.listening);
    assert!(self::element().restore(b"").is_err());
}

#[test]
fn messages_without_a_way_are_dropped_in_time_and_the_ftm_is_told_except_of_its_own() {
    let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
    let mut context = Context::detached(&setup, None, &mut effects);
    element.daemons.keep(ArmorId(70), encoded(ArmorId(70)), &mut context);
    element.daemons.keep(ArmorId::FTM, encoded(ArmorId::FTM), &mut context);
    element.daemons.tick(Instant::now() + LONGEST_WAIT, &mut context);
    assert!(element.daemons.waiting.is_empty());
    assert_eq!(element.daemons.dropped, 2);
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Event(_))).count(), 1);
}

#[test]
fn messages_for_an_ephemeral_speaker_that_is_gone_do_not_wait() {
    let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
    let mut context = Context::detached(&setup, None, &mut effects);
    let gone = ArmorId::ephemeral(77);
    element.daemons.keep(gone, encoded(gone), &mut context);
    element
        .daemons
        .location(&ArmorLocation { armor: gone, daemon: ArmorId::NONE, carrier: Carrier::Tcp, address: String::new() }, &mut context);
    assert!(element.daemons.waiting.is_empty());
}

#[test]
fn a_frame_is_not_sent_back_to_where_it_came_from() {
    let mut element = element();
    element.daemons.locations.learn(ArmorId(9), ArmorId(7));
    element.daemons.locations.learn(ArmorId(70), ArmorId(7));
    let Some(frame) = as_frame(&encoded(ArmorId(70))) else { panic!("a frame") };
    element.daemons.avoid_echo(&frame);
    assert_eq!(element.daemons.next_hop(ArmorId(70)), None);
}

#[test]
fn what_waited_for_a_local_armor_goes_back_to_the_dispatcher_when_it_attaches() {
    let (setup, mut element, mut effects) = (setup(), element(), Vec::new());
    let mut context = Context::detached(&setup, None, &mut effects);
    element.daemons.keep(ArmorId(70), encoded(ArmorId(70)), &mut context);
    element.daemons.attached(&ArmorAttach { armor: ArmorId(70), name: "node1/x".into(), pid: 1 }, &mut context);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Received(frame) if frame.destination == ArmorId(70))));
}

#[test]
fn a_port_in_use_is_an_error_that_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("works");
    let address = taken.local_addr().expect("works");
    let reason = listen(address).err().unwrap_or_default();
    assert!(reason.contains("in use") && reason.contains("daemon_tcp_mgmt.listen"), "{reason}");
}

/// A link that is protected, whose peer has shown to be "node7": the element, the link's number, and its other end.
fn protected(directory: &std::path::Path) -> (DaemonTcpMgmt, LinkId, tokio::net::UnixStream) {
    use crate::links::security::{change_trusted, make_key};
    use crate::links::{Channel, Stream};
    use armor_proto::secure::{Identity, Transport, answer, dial};

    let node = |name: &str| Identity { name: name.to_owned(), keys: make_key(directory, name).expect("made") };
    let (own, peer) = (node("node1"), node("node7"));
    let trusted = change_trusted(directory, |trusted| {
        for node in [&own, &peer] {
            trusted.add(&node.name, node.keys.public()).map_err(|error| error.to_string())?;
        }
        Ok(trusted.clone())
    });
    let trusted = trusted.expect("a list");
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config { listen, ftm: Some("127.0.0.1:1".into()), advertise: None, keys: Some(directory.to_path_buf()) };
    let (setup, mut element, mut effects) = (setup(), DaemonTcpMgmt::new(config, &setup()).expect("works"), Vec::new());
    let (_, first) = dial(&peer, "node1", &trusted, Transport::Tcp).expect("begun");
    let (established, _) = answer(&own, &trusted, Transport::Tcp, &first).expect("answered");
    let channel = Channel::new(established, bytes::BytesMut::new());
    let shown = Some((channel.peer.clone(), channel.key));
    let (socket, far) = tokio::net::UnixStream::pair().expect("a pair");
    let link = Link::open_protected::<DaemonTcpMgmt>(1, Stream::Unix(socket), channel, &mut Context::detached(&setup, None, &mut effects));
    let opening = Opening { dialled: None, remote: "192.0.2.7:1".to_owned(), return_address: None, local: None, shown };
    element.daemons.hold(1, link, opening, &mut Context::detached(&setup, None, &mut effects));
    (element, 1, far)
}

fn hello(armor: ArmorId, name: &str) -> crate::operations::DaemonHello {
    crate::operations::DaemonHello { armor, name: name.into(), address: String::new(), life: 1, only: true }
}

#[tokio::test]
async fn a_daemon_is_who_its_key_says_whatever_it_says_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let own = ArmorId::of_name("node7");
    let lies = [(ArmorId::FTM, "ftm"), (ArmorId::FTM, "node7"), (own, "node8"), (ArmorId::of_name("node8"), "node7")];
    let (mut element, id, _far) = protected(directory.path());
    let (setup, mut effects) = (setup(), Vec::new());
    for (armor, name) in lies {
        element.daemons.hello(id, hello(armor, name), &mut Context::detached(&setup, None, &mut effects));
        assert!(element.daemons.links[&id].peer.is_none(), "{name}");
    }
    assert!(!element.daemons.is_linked(ArmorId::FTM) && !element.daemons.is_linked(own));
    assert_eq!(element.status()["security"]["refused"]["wrong-name"], lies.len());
    assert!(effects.iter().filter(|effect| matches!(effect, Effect::Event(event) if event.what == "link-refused")).count() == lies.len());
    element.daemons.hello(id, hello(own, "node7"), &mut Context::detached(&setup, None, &mut effects));
    assert!(element.daemons.is_linked(own));
}

#[tokio::test]
async fn links_get_another_key_in_time_and_end_when_their_node_is_taken_out_of_the_list() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut element, id, _far) = protected(directory.path());
    let (setup, mut effects) = (setup(), Vec::new());
    let closed = |element: &DaemonTcpMgmt| element.daemons.links[&id].link.send(encoded(ArmorId(7))) == crate::links::Sent::Closed;
    assert!(!closed(&element));
    let later = Instant::now() + REKEY_AFTER;
    element.daemons.look_at_keys(later, &mut Context::detached(&setup, None, &mut effects));
    assert!(!closed(&element));
    assert_eq!(element.daemons.links[&id].link.keys(), 2);
    crate::links::security::change_trusted(directory.path(), |trusted| {
        trusted.remove("node7");
        Ok(())
    })
    .expect("changed");
    element.daemons.look_at_keys(later, &mut Context::detached(&setup, None, &mut effects));
    assert!(closed(&element));
    assert_eq!(element.status()["security"]["refused"]["removed"], 1);
}
