//! Protected connections whose client's process is killed and started again, together with all that a bad network, dying servers and
//! dying ARMORs do.
//!
//! Every schedule is drawn from a seed that is printed with a failure. `ARMOR_SCHEDULES=N` runs N times as many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connection_sim;

use std::time::Duration;

use armor_proto::connection::{Event, ReattachPolicy, ResetReason, TranscriptLost};
use connection_sim::apps::Model;
use connection_sim::{Kill, Loss, Plan, World, ms, schedules, succeeds};

const REPLAY: ReattachPolicy = ReattachPolicy::Replay;
const RESUME: ReattachPolicy = ReattachPolicy::Resume;

/// Schedules of one kind; enough of them must have had deaths of the client in them, and some when the connection was over.
fn all_succeed(count: u64, model: Model, policy: &'static str, reattach: ReattachPolicy) {
    let (mut deaths, mut late, mut compared) = (0, 0, 0);
    for seed in schedules(count) {
        let outcome = succeeds(Plan::rough_for_clients(seed, model, policy, reattach, 4));
        deaths += outcome.client_deaths;
        late += outcome.late_client_deaths;
        compared +=
            outcome.client_events.iter().filter(|event| matches!(event, Event::SaidAgain { regenerated } if *regenerated > 0)).count();
    }
    assert!(deaths > count as usize / 2, "only {deaths} clients died in {count} schedules");
    if reattach == REPLAY {
        assert!(late > 10, "only {late} of {deaths} died when the connection was over");
        assert!(compared > count as usize / 2, "only {compared} of {deaths} had said something before");
    }
}

#[test]
fn requests_survive_the_death_of_clients_servers_and_armors() {
    all_succeed(400, Model::Requests, "request", REPLAY);
    all_succeed(200, Model::Greeting, "request", REPLAY);
}

#[test]
fn streams_survive_the_death_of_clients_servers_and_armors() {
    all_succeed(200, Model::Stream, "stream", REPLAY);
    all_succeed(200, Model::Echo, "stream", REPLAY);
}

#[test]
fn uploads_survive_the_death_of_clients_servers_and_armors() {
    all_succeed(200, Model::Upload, "request", REPLAY);
    all_succeed(200, Model::Upload, "stream", REPLAY);
}

#[test]
fn a_client_that_closes_without_waiting_survives_its_death() {
    all_succeed(200, Model::Sink, "request", REPLAY);
    all_succeed(200, Model::Sink, "stream", REPLAY);
}

#[test]
fn a_client_that_keeps_its_own_position_goes_on_where_it_was() {
    all_succeed(200, Model::Requests, "request", RESUME);
    all_succeed(200, Model::Stream, "stream", RESUME);
    all_succeed(200, Model::Upload, "stream", RESUME);
}

#[test]
fn a_client_of_a_server_that_is_not_replayed_is_told_the_same_bytes_again() {
    for seed in schedules(300) {
        let mut plan = Plan::rough_for_clients(seed, Model::Source, "reconnect", REPLAY, 4);
        plan.kills.retain(|(_, loss)| loss.is_of_armor() || *loss == Loss::Client);
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        assert!(outcome.client_reset.is_none(), "{}", context());
        assert!(world.client_app.heard == world.client_app.expected, "{}", context());
        assert!(world.disk.heard == world.client_app.said, "{}", context());
        assert!(world.attachments() <= 1, "{}", context());
    }
}

#[test]
fn a_server_whose_client_dies_is_neither_restarted_nor_told_and_waits_for_its_window() {
    for seed in schedules(100) {
        let mut plan = Plan::rough_for_clients(seed, Model::Stream, "stream", REPLAY, 3);
        plan.kills = vec![(Kill::Said(1 + seed * 300), Loss::Client)];
        plan.most = 40_000;
        plan.cuts.clear();
        plan.armor_deaths = 0;
        plan.client_restart = (5_000, 5_000);
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        assert_eq!((world.attachments(), outcome.kills), (1, 0), "{}", context());
        assert!(world.client_app.heard == world.client_app.expected && outcome.server_reset.is_none(), "{}", context());
    }
}

#[test]
fn a_client_that_says_something_else_is_reset_and_what_it_said_is_never_passed_on() {
    let mut diverged = 0;
    for seed in schedules(300) {
        let mut plan = Plan::rough_for_clients(seed, Model::Echo, "stream", REPLAY, 3);
        plan.kills = vec![(Kill::Heard(1 + (seed as usize * 37) % 2_000), Loss::Client)];
        plan.most = 40_000;
        plan.armor_deaths = 0;
        plan.cuts.clear();
        plan.lost = 0;
        plan.client_twisted = true;
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        if outcome.client_deaths == 0 {
            continue;
        }
        let context = || format!("{outcome:?}\n{}", world.describe());
        if outcome.client_events.iter().any(|event| matches!(event, Event::Diverged(_))) {
            diverged += 1;
            let reset = outcome.client_reset.map(|(reason, _)| reason);
            assert_eq!(reset, Some(ResetReason::Diverged), "{}", context());
            // What had come to its end with the server is no concern of the server's.
            let over = outcome.client_events.contains(&Event::Archived);
            assert!(over || outcome.server_events.contains(&Event::Reset(ResetReason::Diverged)), "{}", context());
        }
    }
    assert!(diverged > 50, "only {diverged} have diverged");
}

#[test]
fn nobody_who_comes_back_within_its_time_ends_the_connection_as_the_client_would_have() {
    for seed in schedules(100) {
        let mut plan = Plan::new(seed, Model::Stream, "stream");
        let reattach = Plan::rough_for_clients(seed, Model::Stream, "stream", REPLAY, 1).reattach;
        plan.reattach = reattach;
        plan.kills = vec![(Kill::Said(1 + seed * 100), Loss::Client)];
        plan.client_restart = (20_000, 20_000);
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        let count = |what: Event| outcome.client_events.iter().filter(|event| **event == what).count();
        // One that has ended in order waits for as long as its application lives.
        let died = outcome.client_deaths - outcome.late_client_deaths;
        assert_eq!((count(Event::ClientLost), count(Event::NotReattached)), (died, died), "{}", context());
        assert!(outcome.took < Duration::from_secs(100), "{}", context());
    }
}

#[test]
fn a_transcript_that_passes_its_bound_costs_reattachment_and_nothing_else() {
    for seed in schedules(100) {
        let mut plan = Plan::rough_for_clients(seed, Model::Stream, "stream", REPLAY, 3);
        plan.kills.retain(|(_, loss)| !matches!(loss, Loss::Client | Loss::Node));
        plan.most = 40_000;
        if let Some(reattach) = &mut plan.reattach {
            reattach.transcript_bound = 100;
        }
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let app = &world.client_app;
        assert!(outcome.client_reset.is_none() && app.heard == app.expected, "{outcome:?}\n{}", world.describe());
        let lost = outcome.client_events.iter().filter(|event| matches!(event, Event::TranscriptLost(TranscriptLost::Bound(_)))).count();
        let passed = app.heard.len() > 100;
        // An ARMOR that died before it could tell does not tell, and one that had told does not tell again.
        assert!(lost <= usize::from(passed) && (lost == 1 || !passed || outcome.armor_deaths > 0), "{lost}: {outcome:?}");
        assert!(outcome.client_events.contains(&Event::Archived) != passed, "{outcome:?}");
    }
}

#[test]
fn a_new_process_is_told_everything_at_once() {
    for seed in schedules(50) {
        let mut plan = Plan::new(seed, Model::Stream, "stream");
        plan.reattach = Plan::rough_for_clients(seed, Model::Stream, "stream", REPLAY, 1).reattach;
        let calm = World::new(plan.clone()).run(Duration::from_secs(1000)).0.took;
        plan.kills = vec![(Kill::Said(1 + seed * 100), Loss::Client)];
        plan.client_restart = (0, 0);
        let outcome = succeeds(plan);
        assert!(outcome.took < calm + ms(30), "{:?} instead of {calm:?}: {outcome:?}", outcome.took);
    }
}
