//! Protected connections whose ARMORs are killed, in the middle of calls too, together with all that a bad network and dying servers do.
//!
//! Every schedule is drawn from a seed that is printed with a failure. `ARMOR_SCHEDULES=N` runs N times as many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connection_sim;

use std::time::Duration;

use armor_proto::connection::ResetReason;
use connection_sim::apps::Model;
use connection_sim::{Kill, Loss, Plan, World, ms, schedules, succeeds};

/// Schedules of one kind; enough of them must have had deaths of ARMORs in them.
fn all_succeed(count: u64, model: Model, policy: &'static str) {
    let deaths: usize = schedules(count).map(|seed| succeeds(Plan::rough_for_armors(seed, model, policy, 5)).armor_deaths).sum();
    assert!(deaths > count as usize, "only {deaths} ARMORs died in {count} schedules");
}

#[test]
fn requests_survive_the_death_of_armors_and_servers() {
    all_succeed(400, Model::Requests, "request");
}

#[test]
fn a_server_that_greets_survives_the_death_of_armors_and_servers() {
    all_succeed(200, Model::Greeting, "request");
}

#[test]
fn streams_survive_the_death_of_armors_and_servers() {
    all_succeed(200, Model::Stream, "stream");
    all_succeed(200, Model::Echo, "stream");
}

#[test]
fn uploads_survive_the_death_of_armors_and_servers() {
    all_succeed(200, Model::Upload, "request");
    all_succeed(200, Model::Upload, "stream");
}

#[test]
fn a_client_that_closed_completely_loses_no_byte_when_armors_and_servers_die() {
    all_succeed(200, Model::Sink, "request");
    all_succeed(200, Model::Sink, "stream");
}

#[test]
fn without_replay_the_same_process_goes_on_after_the_death_of_armors() {
    for seed in schedules(300) {
        let mut plan = Plan::rough_for_armors(seed, Model::Source, "reconnect", 5);
        plan.kills.retain(|(_, loss)| loss.is_of_armor());
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        assert!(outcome.client_reset.is_none(), "{}", context());
        assert!(world.client_app.heard == world.client_app.expected, "{}", context());
        assert!(world.disk.heard == world.client_app.said, "{}", context());
        assert!(world.attachments() <= 1, "{}", context());
    }
}

#[test]
fn no_process_is_started_anew_when_only_armors_die() {
    for seed in schedules(300) {
        let mut plan = Plan::rough_for_armors(seed, Model::Echo, "stream", 5);
        plan.kills.retain(|(_, loss)| loss.is_of_armor());
        plan.cuts.clear();
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        assert!(world.client_app.heard == world.client_app.expected, "{}", context());
        assert!(world.attachments() <= 1, "{}", context());
    }
}

#[test]
fn a_connection_without_replay_lives_on_with_its_process_and_is_reset_without_it() {
    let (mut lived, mut reset) = (0, 0);
    for seed in schedules(300) {
        let mut plan = Plan::rough_for_armors(seed, Model::Echo, "stream", 0);
        plan.most = 40_000;
        plan.config.window = 4096;
        plan.config.log_bound = 8192;
        plan.armor_deaths = 20;
        let with_server = seed % 2 == 0;
        if with_server {
            plan.kills = vec![(Kill::Heard(20_000), Loss::Process)];
        }
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        match outcome.client_reset {
            None => {
                lived += 1;
                assert!(world.client_app.heard == world.client_app.expected, "{}", context());
            }
            Some((reason, _)) => {
                reset += 1;
                assert!(with_server && reason == ResetReason::NoReplay, "{}", context());
            }
        }
    }
    assert!(lived > 100 && reset > 10, "{lived} lived, {reset} were reset");
}

#[test]
fn a_dead_armor_costs_a_round_trip_and_no_timer() {
    for seed in schedules(50) {
        let mut plan = Plan::new(seed, Model::Stream, "stream");
        let calm = World::new(plan.clone()).run(Duration::from_secs(1000)).0.took;
        plan.kills = vec![(Kill::Said(1 + seed * 100), [Loss::ClientArmor, Loss::ServerArmor, Loss::BothArmors][seed as usize % 3])];
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        assert!(world.client_app.heard == world.client_app.expected);
        assert!(outcome.took < calm + ms(20), "{:?} instead of {calm:?}: {}", outcome.took, world.describe());
    }
}
