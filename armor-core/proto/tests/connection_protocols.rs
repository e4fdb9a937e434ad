//! HTTP and RESP over a bad network and dying servers, in simulated time, with requests whose effects last.
//!
//! Every schedule is drawn from a seed that is printed with a failure. `ARMOR_SCHEDULES=N` runs N times as many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connection_sim;

use std::time::Duration;

use armor_proto::connection::{Event, ResetReason};
use connection_sim::apps::Model;
use connection_sim::protocols::anonymous;
use connection_sim::{Loss, Plan, World};

/// What the schedules came to.
#[derive(Debug, Default)]
struct Tally {
    /// The server was killed and no request was in progress at any time.
    idle: u32,
    /// The same, with all of several kills.
    idle_often: u32,
    /// A request was in progress, and was executed once more.
    again: u32,
    /// A request was in progress, and the connection was reset for its answer had begun and was another one.
    diverged: u32,
    /// A new process was told a login that was answered long before.
    logins: u32,
}

fn schedules(count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("ARMOR_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    0..count * times
}

fn survive(plan: Plan, tally: &mut Tally) {
    let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
    let context = || format!("{outcome:?}\n{:?}\n{}", world.in_progress, world.describe());
    let dialogue = world.client_app.dialogue.as_ref().unwrap();
    let store = &world.disk.store;
    let all = dialogue.completed();
    for number in (0..all).filter(|number| dialogue.counts(*number)) {
        let interrupted = world.in_progress.iter().filter(|kill| kill.contains(&number)).count();
        let executions = store.executions(number);
        assert!(executions >= 1, "request {number} was answered and not executed: {}", context());
        assert!(executions <= 1 + interrupted, "request {number}: {executions} times with {interrupted} kills: {}", context());
        tally.again += u32::from(executions > 1);
    }
    let idle = world.in_progress.iter().all(Vec::is_empty);
    let app = &world.client_app;
    if idle {
        assert!(outcome.finished(), "not finished: {}", context());
        assert_eq!(outcome.client_reset, None, "{}", context());
        assert!(anonymous(&app.heard) == app.expected, "the client heard something else: {}", context());
        tally.idle += u32::from(outcome.kills > 0);
        tally.idle_often += u32::from(outcome.kills > 1);
    } else if outcome.diverged() {
        tally.diverged += 1;
        // The network may lose the word of it.
        let reason = outcome.client_reset.map(|(reason, _)| reason);
        assert!(matches!(reason, Some(ResetReason::Diverged | ResetReason::Deadline)), "{}", context());
    } else {
        assert!(outcome.finished() && outcome.client_reset.is_none(), "{}", context());
        assert!(dialogue.is_over(), "{}", context());
    }
    // Whatever was executed twice, every answer is one that its request was given.
    for answer in dialogue.answers() {
        assert!(store.executed.contains(&answer), "{answer:?} in {:?}: {}", store.executed, context());
    }
    tally.logins += u32::from(store.logins > 1);
    assert!(!outcome.client_events.iter().any(|event| matches!(event, Event::MarkRefused(_))), "{}", context());
}

fn survive_all(model: Model, policies: [&'static str; 2]) -> Tally {
    let mut tally = Tally::default();
    for seed in schedules(1500) {
        let mut plan = Plan::rough(seed, model, policies[seed as usize % 2], 4);
        if plan.kills.iter().any(|(_, loss)| *loss == Loss::Node) {
            // A connect request that comes twice, and late, would start a process of its own on the new node.
            plan.doubled = 0;
        }
        survive(plan, &mut tally);
    }
    tally
}

#[test]
fn http_requests_that_were_answered_are_never_executed_again() {
    let tally = survive_all(Model::Http, ["request", "http"]);
    assert!(tally.idle > 100 && tally.idle_often > 10 && tally.again > 100 && tally.diverged > 20, "{tally:?}");
}

#[test]
fn resp_commands_that_were_answered_are_never_executed_again() {
    let tally = survive_all(Model::Resp, ["request", "resp"]);
    assert!(tally.idle > 100 && tally.idle_often > 10 && tally.again > 100 && tally.diverged > 5, "{tally:?}");
    assert!(tally.logins > 100, "{tally:?}");
}
