//! The dispatcher's end of the way, and the way itself, without an ARMOR.
#![allow(clippy::unwrap_used, clippy::panic)]

use armor_proto::ids::ArmorId;
use armor_proto::operation::Operation as _;

use super::*;
use crate::composition::Composition;
use crate::context::Context;
use crate::element::{Element, ElementKind, Operations, Setup};
use crate::operations::StatusQuery;
use crossing::Exit;

#[derive(serde::Deserialize)]
struct NoKeys {}

struct Idler;

impl Element for Idler {
    const NAME: &'static str = "idler";
    const PURPOSE: &'static str = "test";
    const EXAMPLE: &'static str = "";
    type Config = NoKeys;

    fn new(_: NoKeys, _: &Setup) -> Result<Self, String> {
        Ok(Idler)
    }

    fn operations(operations: &mut Operations<Self>) {
        operations.on(|_, _: &StatusQuery, _: &mut Context<'_>| ());
    }
}

/// A remote whose thread does nothing. What travels there is kept, so that its inbox stays open.
fn remote() -> (Remote, Departure, Exit<Answer>) {
    let kinds = [ElementKind::of::<Idler>()];
    let composition = Composition::parse("c", "[[element]]\nname = \"idler\"\narbiter = true\n", &kinds).unwrap();
    let setup = Setup { armor: ArmorId(5), name: "me".into(), kind: "test".into(), run_dir: "/nowhere".into() };
    let (entrance, exit) = crossing(MAX_ANSWERS);
    let (remote, departure) = Remote::new(composition.blueprint(0, &kinds, &setup).unwrap(), entrance, Arc::default());
    (remote, departure, exit)
}

fn parked(bytes: usize) -> Parked {
    let visit = Visit::of(Message::to(ArmorId(5), StatusQuery {}));
    Parked { visit, operation: Box::new(StatusQuery {}), next: 1, bytes }
}

#[test]
fn an_element_is_silent_when_it_answers_nothing_although_it_has_work() {
    let (remote, _departure, _exit) = remote();
    assert_eq!(remote.subscriptions()[0].kind, StatusQuery::KIND);
    assert!(remote.watch());
    assert!(!remote.watch());
    assert!(remote.handle(parked(1)).is_ok() && remote.handle(parked(1)).is_ok());
    assert_eq!(remote.pulse(0), Pulse::Silent);
    remote.handled(1);
    assert_eq!(remote.pulse(0), Pulse::Works(1));
    assert_eq!(remote.pulse(1), Pulse::Silent);
    remote.handled(1);
    assert_eq!(remote.pulse(1), Pulse::Idle);
    // It is watched anew when there is work again; a stop is work too.
    assert!(remote.watch());
    assert!(remote.stop().is_ok());
    assert_eq!(remote.pulse(2), Pulse::Silent);
    remote.stopped();
    assert_eq!(remote.pulse(2), Pulse::Idle);
}

#[test]
fn the_bounds_hold_and_congestion_is_told_again_only_after_ample_room() {
    let (remote, _departure, _exit) = remote();
    // One message may be as large as it is.
    assert!(remote.has_room(MAX_PARKED_BYTES + 1));
    for _ in 0..MAX_PARKED {
        assert!(remote.has_room(1));
        assert!(remote.handle(parked(1)).is_ok());
    }
    assert!(!remote.has_room(0));
    assert!(remote.refused().is_some());
    assert!(remote.refused().is_none());
    // Also when all places are taken there is room to stop it.
    assert!(remote.stop().is_ok());
    remote.handled(1);
    assert!(remote.has_room(MAX_PARKED_BYTES + 1 - MAX_PARKED));
    assert!(!remote.has_room(MAX_PARKED_BYTES + 2 - MAX_PARKED));
    assert!(remote.refused().is_none());
    for _ in 0..MAX_PARKED / 2 {
        remote.handled(1);
    }
    assert!(remote.refused().is_some());
}

#[test]
fn a_thread_that_is_gone_is_noticed() {
    let (remote, departure, _exit) = remote();
    drop(departure);
    assert!(remote.handle(parked(1)).is_err());
    assert!(remote.start(None).is_err());
}

#[test]
fn everything_that_is_sent_arrives_in_order_and_no_wake_up_is_lost() {
    const COUNT: u32 = 100_000;
    let (entrance, mut exit) = crossing(7);
    let sender = std::thread::spawn(move || (0..COUNT).for_each(|number| assert!(entrance.send(number).is_ok())));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for number in 0..COUNT {
            assert_eq!(exit.next().await, number);
        }
    });
    sender.join().unwrap();
}

#[test]
fn sending_without_waiting_says_when_there_is_no_room_and_waiting_ends_with_the_receiver() {
    let (entrance, exit) = crossing(1);
    assert!(entrance.send_now(1).is_ok());
    assert!(entrance.send_now(2).is_err());
    let waits = std::thread::spawn(move || entrance.send(3).is_err());
    drop(exit);
    assert!(waits.join().unwrap());
}
