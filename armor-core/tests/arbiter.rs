//! Elements with an Arbiter of their own, in a running ARMOR: order, payload fields, effects, overload, shutdown, fail-stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, dead_code)]

mod rig;

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use armor_core::arbiter::{MAX_ANSWERS, MAX_PARKED, MAX_PARKED_BYTES};
use armor_core::capture::CapturedStates;
use armor_core::composition::Composition;
use armor_core::element::Setup;
use armor_core::operations::BundleAck;
use armor_proto::ids::MessageId;
use armor_proto::message::{Bundle, Flags, Message};
use bytes::Bytes;
use rig::players::{
    ALPHA_BETA_GAMMA, Ask, Beta, Counted, Flood, Gamma, Gate, Jump, MainGate, NOT_BUILT, NOT_STARTED, Nest, Note, kinds, note,
};
use rig::{ME, Rig, TESTER};

fn rig() -> Rig {
    let mut rig = Rig::run(ALPHA_BETA_GAMMA, kinds());
    assert_eq!(rig.operation::<Note>(TESTER).text, "started");
    rig
}

fn ask(what: &str) -> Ask {
    Ask { what: what.to_owned() }
}

fn beta(text: &str) -> Beta {
    Beta { text: text.to_owned() }
}

/// A message that its sender wants acknowledged, as it comes from another process.
fn acknowledged(id: u64, bundle: Bundle) -> Message {
    let mut message = Message::new(bundle).followed_by(Bundle::new(TESTER, BundleAck { message: MessageId(id) }));
    message.source = TESTER;
    message.id = MessageId(id);
    message.flags = Flags::EXPECT_ACK;
    message
}

#[test]
fn operations_go_through_another_thread_in_order_and_share_payload_fields() {
    let rig = rig();
    rig.send(Message::new(Bundle::new(ME, note("a")).then(note("b"))));
    let expected = ["alpha a 1", "beta a 2", "gamma a 3", "alpha b 4", "beta b 5", "gamma b 6"];
    assert_eq!(rig.stage().lines(6), expected);
}

#[test]
fn operations_and_bundles_pushed_in_another_thread_come_before_the_rest() {
    let mut rig = rig();
    rig.send(Message::new(Bundle::new(ME, Nest {}).then(note("rest"))));
    // The pushed bundle travels first, with the rest under it; then the message comes home.
    let mut away = rig.left("the pushed bundle", |message| (message.destination() == Some(TESTER)).then(|| message.clone()));
    assert!(rig.stage().journal().is_empty());
    away.pop();
    rig.came(away);
    let expected = ["alpha pushed 1", "beta pushed 2", "gamma pushed 3", "alpha rest 4", "beta rest 5", "gamma rest 6"];
    assert_eq!(rig.stage().lines(6), expected);
}

#[test]
fn other_messages_are_processed_while_one_is_parked_and_the_order_to_one_element_is_kept() {
    let rig = rig();
    let stage = rig.stage();
    rig.send_to_me(Gate {});
    stage.gate.reached();
    rig.send_to_me(note("first"));
    rig.send_to_me(beta("second"));
    rig.send_to_me(Gamma { text: "overtakes".into() });
    rig.send_to_me(note("third"));
    // Beta's thread is held; alpha sees both notes, gamma only what does not visit beta.
    assert_eq!(stage.lines(3), ["alpha first 1", "gamma overtakes", "alpha third 1"]);
    stage.gate.open();
    let lines = stage.lines(8);
    let of = |name: &str| lines.iter().filter(|line| line.starts_with(name)).cloned().collect::<Vec<_>>();
    assert_eq!(of("beta"), ["beta first 2", "beta second", "beta third 2"]);
    assert_eq!(of("gamma"), ["gamma overtakes", "gamma first 3", "gamma third 3"]);
}

#[test]
fn thousands_of_messages_with_the_same_operations_keep_their_order_everywhere() {
    const COUNT: usize = 3000;
    let rig = rig();
    for number in 0..COUNT {
        rig.send_to_me(note(&number.to_string()));
    }
    let lines = rig.stage().lines(3 * COUNT);
    for (name, count) in [("alpha", 1), ("beta", 2), ("gamma", 3)] {
        let seen: Vec<_> = lines.iter().filter(|line| line.starts_with(name)).cloned().collect();
        let expected: Vec<_> = (0..COUNT).map(|number| format!("{name} {number} {count}")).collect();
        assert_eq!(seen, expected);
    }
}

#[test]
fn what_an_element_asks_for_in_another_thread_is_done() {
    let mut rig = rig();
    rig.send_to_me(ask("send"));
    assert_eq!(rig.operation::<Note>(TESTER).text, "sent");
    rig.send_to_me(ask("timer"));
    assert_eq!(rig.operation::<Note>(TESTER).text, "timer 7");
    rig.send_to_me(ask("spawn"));
    assert_eq!(rig.operation::<Note>(TESTER).text, "from the task");
    rig.send_to_me(ask("event"));
    assert_eq!(rig.event("beta-event").values["of"], "beta");
    rig.send_to_me(ask("received"));
    assert_eq!(rig.stage().lines(1), ["gamma received"]);
}

#[test]
fn an_element_is_built_entered_and_stopped_in_one_thread_that_is_not_the_main_one() {
    let mut rig = rig();
    rig.send_to_me(note("x"));
    for what in ["timer", "spawn"] {
        rig.send_to_me(ask(what));
        rig.operation::<Note>(TESTER);
    }
    rig.shut_down();
    let threads = rig.stage().threads();
    let called: Vec<&str> = threads.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(called, ["new", "main", "start", "handler", "timer", "task", "stop"]);
    let (main, others): (Vec<_>, Vec<_>) = threads.iter().partition(|(what, _)| what == "main");
    let of_beta: HashSet<_> = others.iter().map(|(_, thread)| thread).collect();
    assert_eq!(of_beta.len(), 1);
    assert!(!of_beta.contains(&main[0].1));
}

#[test]
fn the_status_of_an_element_is_shown_while_its_thread_is_held() {
    let mut rig = rig();
    rig.send_to_me(note("x"));
    rig.eventually("the status is shown", |status| (status["elements"]["beta"]["state"]["written"] == 1).then_some(()));
    rig.send_to_me(Gate {});
    rig.stage().gate.reached();
    rig.send_to_me(beta("waits"));
    let status = rig.status();
    let shown = &status["elements"]["beta"];
    assert_eq!(shown["state"]["written"], 1);
    assert_eq!(shown["arbiter"]["parked"], 2);
    assert_eq!(status["counters"]["parked"], 2);
    rig.stage().gate.open();
    rig.eventually("the new status is shown", |status| (status["elements"]["beta"]["state"]["written"] == 2).then_some(()));
}

#[test]
fn elements_are_stopped_in_reverse_order_also_across_threads() {
    let mut rig = rig();
    rig.shut_down();
    assert_eq!(rig.stage().journal(), ["gamma stops", "beta stops", "alpha stops"]);
    // What was begun is finished first, and an element may ask for the end from its own thread.
    let mut rig = self::rig();
    rig.send_to_me(Gate {});
    rig.stage().gate.reached();
    rig.send_to_me(note("x"));
    rig.send_to_me(ask("shutdown"));
    rig.stage().gate.open();
    assert_eq!(rig.stage().lines(6), ["alpha x 1", "beta x 2", "gamma x 3", "gamma stops", "beta stops", "alpha stops"]);
    rig.shut_down();
}

#[test]
fn an_acknowledged_message_is_processed_once_and_acknowledged_when_it_is_done() {
    let mut rig = rig();
    rig.send_to_me(Gate {});
    rig.stage().gate.reached();
    let message = acknowledged(77, Bundle::new(ME, note("once")));
    rig.came(message.clone());
    // Its sender sends it again: the first copy is parked, so this one is neither processed nor acknowledged.
    rig.came(message.clone());
    rig.eventually("the second copy is dropped", |status| (status["counters"]["repeated"] == 1).then_some(()));
    assert!(rig.rest().is_empty(), "acknowledged before it was done");
    rig.stage().gate.open();
    assert_eq!(rig.operation::<BundleAck>(TESTER).message, MessageId(77));
    assert_eq!(rig.stage().journal(), ["alpha once 1", "beta once 2", "gamma once 3"]);
    // Now it is done, and is acknowledged again.
    rig.came(message);
    assert_eq!(rig.operation::<BundleAck>(TESTER).message, MessageId(77));
    assert_eq!(rig.stage().journal().len(), 3);
}

#[test]
fn a_message_sent_reliably_from_another_thread_is_handed_to_the_element_that_keeps_such_messages() {
    let rig = rig();
    rig.send_to_me(ask("send_reliable"));
    assert_eq!(rig.stage().lines(1), [format!("gamma keeps a message for {TESTER}")]);
}

#[test]
fn what_exceeds_the_bound_is_dropped_counted_and_told_once() {
    let mut rig = rig();
    let stage = rig.stage();
    rig.send_to_me(Gate {});
    stage.gate.reached();
    for number in 0..MAX_PARKED + 99 {
        rig.send_to_me(beta(&number.to_string()));
    }
    // One place is taken by the gate's own message.
    rig.eventually("the rest is dropped", |status| (status["counters"]["congested"] == 100).then_some(()));
    assert_eq!(rig.event("element-congested").values["element"], "beta");
    assert!(!rig.rest().iter().any(|message| rig::first::<armor_core::operations::EventReport>(message).is_some()), "told again");
    // An acknowledged message is not taken, and not noted either: when it comes again there is room, and it is processed.
    let message = acknowledged(5, Bundle::new(ME, beta("acknowledged")));
    rig.came(message.clone());
    rig.eventually("it is dropped too", |status| (status["counters"]["congested"] == 101).then_some(()));
    stage.gate.open();
    let mut expected: Vec<String> = (0..MAX_PARKED - 1).map(|number| format!("beta {number}")).collect();
    assert_eq!(stage.lines(MAX_PARKED - 1), expected);
    rig.came(message);
    assert_eq!(rig.operation::<BundleAck>(TESTER).message, MessageId(5));
    expected.push("beta acknowledged".into());
    assert_eq!(stage.journal(), expected);
    let status = rig.eventually("all have come back", |status| (status["counters"]["parked"] == 0).then(|| status.clone()));
    assert_eq!(status["elements"]["beta"]["arbiter"]["congested"], false);
}

#[test]
fn parked_bytes_are_bounded_too() {
    let mut rig = rig();
    let stage = rig.stage();
    rig.send_to_me(Gate {});
    stage.gate.reached();
    let payload = Bytes::from(vec![0; MAX_PARKED_BYTES / 4]);
    for number in 0..5 {
        rig.send(Message::to(ME, beta(&number.to_string())).with_payload(payload.clone()));
    }
    let status = rig.eventually("one is dropped", |status| (status["counters"]["congested"] == 1).then(|| status.clone()));
    assert_eq!(status["elements"]["beta"]["arbiter"]["parked_bytes"], MAX_PARKED_BYTES);
    stage.gate.open();
    assert_eq!(stage.lines(4), ["beta 0", "beta 1", "beta 2", "beta 3"]);
}

#[test]
fn two_threads_that_are_both_full_do_not_wait_for_each_other() {
    let count = MAX_ANSWERS as u32 * 3;
    let mut rig = rig();
    let stage = rig.stage();
    // Beta's thread is held while as much is parked at it as may be.
    rig.send_to_me(Gate {});
    stage.gate.reached();
    rig.send_to_me(Flood { count });
    for number in 0..MAX_PARKED {
        rig.send_to_me(beta(&number.to_string()));
    }
    rig.eventually("all places are taken", |status| (status["counters"]["parked"] == MAX_PARKED).then_some(()));
    // Now the main thread is held, and beta's fills the way back until it has to wait, with more than that before it.
    rig.send_to_me(MainGate {});
    stage.main_gate.reached();
    stage.gate.open();
    let answers = || stage.journal().len() + stage.flooding.load(Ordering::SeqCst) as usize;
    rig::wait_until("the way back is full", || answers() == MAX_ANSWERS - 1);
    stage.main_gate.open();
    for number in 0..count {
        assert_eq!(rig.operation::<Counted>(TESTER).number, number);
    }
    assert_eq!(stage.lines(MAX_PARKED - 2).len(), MAX_PARKED - 2);
    assert_eq!(stage.flooding.load(Ordering::SeqCst), count);
}

/// Set for a process that plays a part in a test, to what it is to ask of beta.
const ROLE: &str = "ARMOR_TEST_ROLE";
const SIGABRT: i32 = 6;

/// The calling test in a process of its own.
fn again(test: &str, role: &str, directory: &tempfile::TempDir) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(ROLE, role).current_dir(directory.path());
    command
}

/// Runs the calling test again in a process of its own, in which beta is asked for `what`. The process must end by SIGABRT.
/// Gives what it said.
fn aborted(test: &str, what: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let output = again(test, what, &directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), Some(SIGABRT), "{said}");
    said
}

/// Plays the part in a process of its own.
fn play(what: &str, prepare: impl FnOnce(&Rig)) -> ! {
    let rig = rig();
    prepare(&rig);
    rig.send_to_me(ask(what));
    std::thread::sleep(rig::WITHIN);
    // It should have ended by now. Dropped, the rig would wait for an ARMOR that may be broken.
    std::process::exit(3);
}

#[test]
fn an_element_that_fails_in_another_thread_takes_the_process_down() {
    if let Ok(what) = std::env::var(ROLE) {
        play(&what, |_| armor_core::host::abort_on_panic());
    }
    let test = "an_element_that_fails_in_another_thread_takes_the_process_down";
    let said = aborted(test, "fail_stop");
    assert!(said.contains("armor: fail-stop of me: beta: beta wants it"), "{said}");
    let said = aborted(test, "panic");
    assert!(said.contains("beta panics"), "{said}");
}

#[test]
fn an_element_that_panics_in_another_thread_takes_the_process_down_where_panics_unwind_too() {
    if let Ok(what) = std::env::var(ROLE) {
        play(&what, |_| ());
    }
    let said = aborted("an_element_that_panics_in_another_thread_takes_the_process_down_where_panics_unwind_too", "panic");
    assert!(said.contains("armor: fail-stop of me: beta: it panicked"), "{said}");
}

#[test]
fn an_element_that_hangs_in_another_thread_takes_the_process_down() {
    if let Ok(what) = std::env::var(ROLE) {
        // The clock of the main thread jumps, so that nobody has to wait for a minute.
        play(&what, |rig| rig.send_to_me(Jump {}));
    }
    let said = aborted("an_element_that_hangs_in_another_thread_takes_the_process_down", "hang");
    assert!(said.contains("armor: fail-stop of me: beta: it hangs"), "{said}");
}

#[test]
fn state_is_captured_in_another_thread_and_given_back_there() {
    let directory = tempfile::tempdir().unwrap();
    CapturedStates::open(None, Some(&directory.path().join("state.redb"))).unwrap().save("beta", &7_u32.to_le_bytes()).unwrap();
    let mut rig = Rig::run_in(directory, ALPHA_BETA_GAMMA, kinds());
    rig.send_to_me(beta("x"));
    rig.send_to_me(ask("state_changed"));
    assert_eq!(rig.stage().lines(2), ["beta x", "gamma sees the state of beta: [8, 0, 0, 0]"]);
    rig.shut_down();
    let threads = rig.stage().threads();
    let thread_of = |what: &str| threads.iter().find(|(called, _)| called == what).unwrap().1;
    assert_eq!(thread_of("restore"), thread_of("new"));
}

#[test]
fn a_state_that_its_element_does_not_take_is_told_and_not_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.redb");
    let mut states = CapturedStates::open(None, Some(&file)).unwrap();
    states.save("beta", b"something else").unwrap();
    drop(states);
    let mut rig = Rig::run_in(directory, ALPHA_BETA_GAMMA, kinds());
    let event = rig.event("state-refused");
    assert_eq!((event.values["element"].as_str(), event.values["reason"].as_str()), ("beta", "not a number"));
    rig.send_to_me(ask("state_changed"));
    assert_eq!(rig.stage().lines(1), ["gamma sees the state of beta: [0, 0, 0, 0]"]);
}

#[test]
fn an_element_that_cannot_be_built_or_started_in_its_thread_is_an_error_of_the_run() {
    let run = |number: &str| {
        let composition = Composition::parse("c.toml", &ALPHA_BETA_GAMMA.replace("{number}", number), &kinds()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let setup = Setup { armor: ME, name: "me".into(), kind: "test".into(), run_dir: directory.path().into() };
        armor_core::host::run(&composition, &kinds(), setup, false, || panic!("it is not ready")).unwrap_err().to_string()
    };
    assert_eq!(run(&NOT_BUILT.to_string()), "c.toml:5:8: element beta: it refuses to be built");
    assert_eq!(run(&NOT_STARTED.to_string()), "ARMOR me: element beta cannot start: it refuses to start");
}

#[test]
fn a_signal_stops_elements_in_reverse_order_and_lets_what_they_send_leave() {
    if std::env::var(ROLE).is_ok() {
        let mut rig = rig();
        println!("it runs");
        rig.ended();
        println!("{:?}", rig.stage().journal());
        println!("{:?}", rig.rest().iter().filter_map(rig::first::<Note>).map(|note| note.text).collect::<Vec<_>>());
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut process = again("a_signal_stops_elements_in_reverse_order_and_lets_what_they_send_leave", "", &directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("it runs")));
    assert!(Command::new("sh").args(["-c", &format!("kill {}", process.id())]).status().unwrap().success());
    assert_eq!(lines.next().unwrap(), r#"["gamma stops", "beta stops", "alpha stops"]"#);
    assert_eq!(lines.next().unwrap(), r#"["gamma says goodbye"]"#);
    assert!(process.wait().unwrap().success());
}
