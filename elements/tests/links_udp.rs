//! An FTM and daemons over UDP with real sockets: the same compositions with one name changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

#[path = "network/air.rs"]
mod air;
mod network;

use std::path::Path;

use air::Air;
use armor_core::operations::{StatusQuery, StatusReport};
use armor_elements::links::security::{change_trusted, make_key};
use armor_elements::operations::{Events, EventsQuery};
use armor_proto::ids::ArmorId;
use network::{Client, FTM, Node, WITHIN, daemon, eventually};

fn over_udp(composition: &str) -> String {
    composition.replace("daemon_tcp_mgmt", "daemon_udp_mgmt")
}

fn start(name: &str, base: &Path, composition: &str) -> Node {
    Node::start(name, base, composition, armor_elements::all())
}

fn ftm(base: &Path, more: &str) -> Node {
    let listen = "listen = \"127.0.0.1:0\"\n";
    start("ftm", base, &over_udp(FTM).replace(listen, &format!("{listen}{more}")))
}

fn node(name: &str, base: &Path, ftm: &str, more: &str) -> Node {
    start(name, base, &over_udp(&daemon(ftm, more)))
}

fn seed() -> u64 {
    std::env::var("ARMOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random)
}

fn registered(client: &mut Client, count: usize) {
    eventually("all daemons register", || {
        let status = client.status(ArmorId::FTM);
        (status["elements"]["daemon_registry"]["state"]["daemons"].as_array()?.len() == count).then_some(())
    });
}

fn peer(client: &mut Client, of: ArmorId, name: &str) -> serde_json::Value {
    let status = client.status(of);
    let peers = status["elements"]["daemon_udp_mgmt"]["state"]["peers"].as_array().cloned().unwrap_or_default();
    peers.into_iter().find(|peer| peer["name"] == name).unwrap_or_default()
}

/// Reads the FTM's event log until an event has come.
fn told(client: &mut Client, what: &str, key: &str, value: &str) {
    let mut next = 0;
    eventually(what, || {
        client.send(ArmorId::FTM, EventsQuery { from: next });
        let events = client.receive::<Events>(WITHIN)?;
        next = events.next;
        events.events.iter().any(|event| event.what == what && event.values.get(key).is_some_and(|told| told == value)).then_some(())
    });
}

#[test]
fn daemons_find_each_other_over_udp_and_show_how_their_links_do() {
    let base = tempfile::tempdir().expect("directory");
    let ftm = ftm(base.path(), "");
    let one = node("one", base.path(), &ftm.udp_address(), "");
    let two = node("two", base.path(), &ftm.udp_address(), "");
    let mut client = one.client();
    registered(&mut client, 3);
    // Over a link that is not there yet, and back.
    assert_eq!(client.status(two.armor)["name"], "two");
    let link = peer(&mut client, one.armor, "two");
    assert!(link["linked"] == true && link["remote"] == two.udp_address(), "{link}");
    assert!(link["round_trip_us"].as_u64().expect("a number") < 1_000_000 && link["packets_sent"].as_u64().expect("a number") > 1);
    assert!(link["datagram_bytes"].as_u64().expect("a number") >= 1200 && link["silent"] == false, "{link}");
}

#[test]
fn with_keys_links_are_protected_and_a_stranger_is_refused() {
    let base = tempfile::tempdir().expect("directory");
    let keys = base.path().join("keys");
    for name in ["ftm", "one", "two"] {
        let key = make_key(&keys, name).expect("made").public();
        change_trusted(&keys, |trusted| trusted.add(name, key).map_err(|error| error.to_string())).expect("trusted");
    }
    let stranger_keys = base.path().join("stranger");
    let key = make_key(&stranger_keys, "mallory").expect("made").public();
    change_trusted(&stranger_keys, |trusted| {
        let known = armor_elements::links::security::read_trusted(&keys)?;
        trusted.add("ftm", known.key("ftm").expect("known")).map_err(|error| error.to_string())?;
        trusted.add("mallory", key).map_err(|error| error.to_string())
    })
    .expect("trusted");
    let with = |directory: &Path| format!("keys = {:?}\n", directory.display().to_string());
    let ftm = ftm(base.path(), &with(&keys));
    let one = node("one", base.path(), &ftm.udp_address(), &with(&keys));
    let two = node("two", base.path(), &ftm.udp_address(), &with(&keys));
    let mut client = one.client();
    registered(&mut client, 3);
    assert_eq!(client.status(two.armor)["name"], "two");
    let _mallory = node("mallory", base.path(), &ftm.udp_address(), &with(&stranger_keys));
    // One without keys is none either.
    let _plain = node("plain", base.path(), &ftm.udp_address(), "");
    eventually("the stranger is counted", || {
        let status = client.status(ArmorId::FTM);
        status["elements"]["daemon_udp_mgmt"]["state"]["security"]["refused"]["unknown-key"].as_u64().filter(|count| *count > 0)
    });
    registered(&mut client, 3);
    // Who is taken out of the list is cut off.
    change_trusted(&keys, |trusted| {
        trusted.remove("two");
        Ok(())
    })
    .expect("removed");
    eventually("two is cut off", || (peer(&mut client, ArmorId::FTM, "two")["linked"] == false).then_some(()));
}

#[test]
fn a_link_is_kept_over_an_outage_and_told_down_and_up() {
    let base = tempfile::tempdir().expect("directory");
    let ftm = ftm(base.path(), "");
    let air = Air::new(seed());
    air.leads_to(&ftm.udp_address());
    let one = node("one", base.path(), &air.address().to_string(), "");
    let (mut client, mut near) = (ftm.client(), one.client());
    registered(&mut client, 2);
    let links = |client: &mut Client| client.status(one.armor)["elements"]["daemon_udp_mgmt"]["state"]["links"].as_u64();
    let before = peer(&mut near, one.armor, "ftm");
    air.is_dark(true);
    near.send(ArmorId::FTM, StatusQuery {});
    eventually("the silence shows", || (peer(&mut near, one.armor, "ftm")["silent"] == true).then_some(()));
    // Elsewhere when it is back; what was said meanwhile arrives.
    air.moves_near_end();
    air.is_dark(false);
    assert_eq!(near.receive::<StatusReport>(WITHIN).expect("the answer").armor, ArmorId::FTM);
    eventually("it has answered", || (peer(&mut near, one.armor, "ftm")["silent"] == false).then_some(()));
    told(&mut client, "link-moved", "peer", "one");
    let after = peer(&mut near, one.armor, "ftm");
    assert!(after["packets_sent"].as_u64() > before["packets_sent"].as_u64(), "the same link: {before} {after}");
    eventually("no second link is left", || (links(&mut near)? == 1).then_some(()));
}

#[test]
fn a_daemon_that_is_started_again_is_linked_to_at_once() {
    let base = tempfile::tempdir().expect("directory");
    let ftm = ftm(base.path(), "");
    let air = Air::new(seed());
    let composition = |listen: &str| format!("advertise = \"{}\"\n{listen}", air.address());
    let one = node("one", base.path(), &ftm.udp_address(), "");
    let two = node("two", base.path(), &ftm.udp_address(), &composition(""));
    air.leads_to(&two.udp_address());
    let mut client = one.client();
    registered(&mut client, 3);
    assert_eq!(client.status(two.armor)["name"], "two");
    // It dies without a word: what it says at its end is lost.
    air.is_dark(true);
    drop(two);
    let two = node("two", base.path(), &ftm.udp_address(), &composition(""));
    air.leads_to(&two.udp_address());
    air.is_dark(false);
    assert_eq!(client.status(two.armor)["name"], "two");
    eventually("the link of the dead one is closed", || {
        let status = client.status(one.armor);
        // To the FTM and to the new one.
        (status["elements"]["daemon_udp_mgmt"]["state"]["links"] == 2).then_some(())
    });
}

#[test]
fn an_ftm_with_both_kinds_of_links_carries_messages_between_daemons_that_have_one_each() {
    let base = tempfile::tempdir().expect("directory");
    let tcp = "[[element]]\nname = \"daemon_tcp_mgmt\"\nlisten = \"127.0.0.1:0\"\n";
    let ftm = start("ftm", base.path(), &FTM.replace(tcp, &format!("{tcp}{}", over_udp(tcp))));
    let wired = start("wired", base.path(), &daemon(&ftm.tcp_address(), ""));
    let mobile = node("mobile", base.path(), &ftm.udp_address(), "");
    let both = daemon(&ftm.tcp_address(), "");
    let own = format!("{tcp}ftm = \"{}\"\n", ftm.tcp_address());
    let both = both.replace(&own, &format!("{own}{}ftm = \"{}\"\n", over_udp(tcp), ftm.udp_address()));
    let both = start("both", base.path(), &both);
    let (mut on_wired, mut on_mobile, mut on_both) = (wired.client(), mobile.client(), both.client());
    registered(&mut on_wired, 4);
    assert_eq!(on_wired.status(mobile.armor)["name"], "mobile");
    assert_eq!(on_mobile.status(wired.armor)["name"], "wired");
    for armor in [wired.armor, mobile.armor, ArmorId::FTM] {
        assert_eq!(on_both.status(armor)["armor"], armor.to_string());
    }
    assert_eq!(on_mobile.status(both.armor)["name"], "both");
    assert_eq!(on_wired.status(both.armor)["name"], "both");
    // Straight where there is a way, by the FTM where there is none.
    let peers = |status: &serde_json::Value, element: &str| {
        let peers = status["elements"][element]["state"]["peers"].as_array().cloned().unwrap_or_default();
        let linked = peers.iter().filter(|peer| peer["linked"] == true).filter_map(|peer| peer["name"].as_str().map(str::to_owned));
        linked.collect::<std::collections::BTreeSet<_>>()
    };
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(peers(&on_wired.status(wired.armor), "daemon_tcp_mgmt"), of(&["ftm", "both"]));
    assert_eq!(peers(&on_mobile.status(mobile.armor), "daemon_udp_mgmt"), of(&["ftm", "both"]));
    // Nobody counts as failed for having no link of the other kind.
    let status = on_both.status(ArmorId::FTM);
    assert!(!status["elements"]["ftm_heartbeat"]["state"].to_string().contains("\"failed\""), "{status}");
}
