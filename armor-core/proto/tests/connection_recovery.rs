//! The protected connection under a bad network and dying servers, in simulated time (thesis §4.5.1).
//!
//! Every schedule is drawn from a seed that is printed with a failure. `ARMOR_SCHEDULES=N` runs N times as many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connection_sim;

use std::time::Duration;

use armor_proto::connection::{Event, OnDivergence, ResetReason};
use connection_sim::apps::Model;
use connection_sim::{Kill, Loss, Outcome, Plan, World, ms, schedules};

/// Runs `plan`, which must come to a good end, and to a quiet one.
fn succeeds(plan: Plan) -> Outcome {
    let outcome = connection_sim::succeeds(plan);
    assert!(outcome.finished(), "not finished: {outcome:?}");
    assert_eq!(outcome.client_events.iter().filter(|e| **e == Event::Finished).count(), 1);
    assert_eq!(outcome.client_events.last(), Some(&Event::Drained));
    outcome
}

#[test]
fn a_quiet_connection_delivers_everything() {
    for model in [Model::Requests, Model::Greeting, Model::Stream, Model::Upload, Model::Echo, Model::Sink] {
        for seed in 0..20 {
            for policy in ["request", "stream", "reconnect"] {
                succeeds(Plan::new(seed, model, policy));
            }
        }
    }
}

#[test]
fn requests_survive_any_death_of_the_server() {
    for seed in schedules(500) {
        succeeds(Plan::rough(seed, Model::Requests, "request", 4));
    }
}

#[test]
fn no_network_and_no_slow_client_is_taken_for_a_settled_answer() {
    let mut settled = 0;
    for seed in schedules(500) {
        let mut plan = Plan::rough(seed, Model::Requests, "turn", 4);
        // The model server never pauses for so long within an answer, but the network is cut and the client stops for longer.
        plan.settled = Some(ms(3));
        plan.stalls = true;
        plan.server_stalls = false;
        let outcome = succeeds(plan);
        let kills = outcome.server_events.iter().filter(|event| matches!(event, Event::Reconnected { .. })).count();
        settled += outcome.server_events.iter().filter(|event| **event == Event::Recovered { regenerated: 0 }).count().min(kills);
    }
    assert!(settled > 50, "only {settled} recoveries began at the present");
}

#[test]
fn a_server_that_greets_survives_under_the_request_policy() {
    for seed in schedules(200) {
        succeeds(Plan::rough(seed, Model::Greeting, "request", 4));
    }
}

#[test]
fn streams_survive_any_death_of_the_server() {
    for seed in schedules(300) {
        succeeds(Plan::rough(seed, Model::Stream, "stream", 4));
        succeeds(Plan::rough(seed, Model::Echo, "stream", 4));
    }
}

#[test]
fn uploads_that_end_with_a_half_close_survive_any_death_of_the_server() {
    for seed in schedules(200) {
        succeeds(Plan::rough(seed, Model::Upload, "request", 4));
        succeeds(Plan::rough(seed, Model::Upload, "stream", 4));
    }
}

#[test]
fn a_client_that_closed_completely_loses_no_byte_when_the_server_dies() {
    for seed in schedules(200) {
        succeeds(Plan::rough(seed, Model::Sink, "request", 4));
        succeeds(Plan::rough(seed, Model::Sink, "stream", 4));
    }
}

#[test]
fn a_reconnect_keeps_all_that_was_said_while_the_server_s_end_lives() {
    for seed in schedules(300) {
        let mut plan = Plan::rough(seed, Model::Source, "reconnect", 4);
        plan.kills.retain(|(_, loss)| *loss != Loss::Node);
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        assert!(outcome.finished() && outcome.client_reset.is_none(), "{}", context());
        assert!(world.client_app.heard == world.client_app.expected, "{}", context());
        assert!(world.disk.heard == world.client_app.said, "{}", context());
    }
}

#[test]
fn a_reconnect_after_the_loss_of_a_node_loses_only_what_the_node_had() {
    for seed in schedules(200) {
        let mut plan = Plan::rough(seed, Model::Source, "reconnect", 3);
        plan.config.keep_alive = Some(ms(1000));
        plan.kills = vec![(Kill::Said(seed * 50), Loss::Node)];
        // A first request that comes twice would start a process of its own on the new node.
        plan.doubled = 0;
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        assert!(outcome.finished() && outcome.client_reset.is_none(), "{}", context());
        let (heard, expected) = (&world.client_app.heard, &world.client_app.expected);
        let same = heard.iter().zip(expected).take_while(|(a, b)| a == b).count();
        assert!(expected.ends_with(&heard[same..]), "one piece may be missing: {}", context());
        // The client's bytes are all still there, some may have been given to both processes.
        let again = world.disk.heard.len() - world.client_app.said.len();
        let said = &world.client_app.said;
        assert!(
            (0..=said.len()).any(|at| {
                let at = said.len() - at;
                world.disk.heard.starts_with(&said[..at])
                    && world.disk.heard.len() >= at
                    && at >= again
                    && world.disk.heard[at..] == said[at - again..]
            }),
            "{}",
            context()
        );
    }
}

#[test]
fn a_server_that_says_something_else_is_found_out_and_both_ends_are_reset() {
    let mut found = 0;
    for seed in schedules(300) {
        let mut plan = Plan::rough(seed, Model::Stream, "stream", 3);
        plan.twisted = true;
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        assert_eq!(outcome.compared(), outcome.diverged(), "{}", context());
        if outcome.diverged() {
            found += 1;
            assert!(outcome.client_events.contains(&Event::Reset(ResetReason::Diverged)), "{}", context());
        } else if outcome.client_reset.is_none() {
            // Nothing had been said to the client before the last process.
            let app = &world.client_app;
            let twist = app.heard[0] ^ app.expected[0];
            assert!(app.heard.iter().zip(&app.expected).all(|(a, b)| a ^ b == twist), "{}", context());
        }
    }
    assert!(found > 20, "only {found} schedules diverged");
}

#[test]
fn a_divergence_may_be_passed_over_as_the_thesis_does() {
    let mut found = 0;
    for seed in schedules(200) {
        let mut plan = Plan::rough(seed, Model::Stream, "stream", 3);
        plan.twisted = true;
        plan.config.on_divergence = OnDivergence::Continue;
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        let context = || format!("{outcome:?}\n{}", world.describe());
        found += u32::from(outcome.diverged());
        assert!(outcome.finished(), "{}", context());
        assert_eq!(world.client_app.heard.len(), world.client_app.expected.len(), "{}", context());
    }
    assert!(found > 20, "only {found} schedules diverged");
}

#[test]
fn a_server_that_never_comes_back_resets_the_client_by_the_deadline() {
    for seed in schedules(100) {
        let mut plan = Plan::rough(seed, Model::Stream, "stream", 1);
        plan.most = 40_000;
        plan.restarts = 0;
        plan.cuts.clear();
        let loss = if seed % 2 == 0 { Loss::Process } else { Loss::Node };
        plan.kills = vec![(Kill::Said(1 + seed * 10), loss)];
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        if outcome.kills == 0 {
            continue;
        }
        let context = || format!("{outcome:?}\n{}", world.describe());
        if outcome.finished() {
            continue;
        }
        let (reason, after) = outcome.client_reset.unwrap_or_else(|| panic!("{}", context()));
        assert_eq!(reason, ResetReason::Deadline, "{}", context());
        assert!(after < Duration::from_secs(80), "{}", context());
    }
}

#[test]
fn a_network_that_is_cut_for_ever_resets_both_ends_even_when_idle() {
    for seed in schedules(100) {
        let mut plan = Plan::new(seed, [Model::Requests, Model::Echo, Model::Stream][seed as usize % 3], "request");
        plan.cuts = vec![(ms(2 + seed % 50), Duration::from_secs(100_000))];
        let (outcome, world) = World::new(plan).run(Duration::from_secs(200));
        let context = || format!("{outcome:?}\n{}", world.describe());
        if outcome.finished() {
            continue;
        }
        if outcome.client_events.contains(&Event::Established { service: armor_proto::ids::Incarnation(1) }) {
            assert!(outcome.client_events.contains(&Event::Reset(ResetReason::Deadline)), "{}", context());
        } else {
            assert!(outcome.client_events.contains(&Event::Refused { errno: 110 }), "{}", context());
        }
    }
}

#[test]
fn a_cut_shorter_than_the_deadline_is_only_a_stall() {
    for seed in schedules(100) {
        let mut plan = Plan::new(seed, [Model::Requests, Model::Echo, Model::Stream][seed as usize % 3], "stream");
        let from = seed % 60;
        plan.cuts = vec![(ms(from), ms(from + 25_000))];
        succeeds(plan);
    }
}

#[test]
fn the_log_stays_within_its_bound_and_its_loss_is_said_once() {
    for seed in schedules(100) {
        let mut plan = Plan::rough(seed, Model::Echo, "stream", 0);
        plan.most = 40_000;
        plan.config.window = 4096;
        plan.config.log_bound = 8192;
        let outcome = succeeds(plan);
        assert!(outcome.largest_log <= 8192 + 3 * 4096, "{}", outcome.largest_log);
        let said = outcome.client_events.iter().filter(|e| matches!(e, Event::LogOverflow { .. })).count();
        assert!(said <= 1, "{outcome:?}");
    }
}

#[test]
fn a_server_lost_after_the_log_bound_resets_the_client_and_says_why() {
    let mut found = 0;
    for seed in schedules(100) {
        let mut plan = Plan::rough(seed, Model::Echo, "stream", 0);
        plan.most = 40_000;
        plan.config.window = 4096;
        plan.config.log_bound = 8192;
        plan.kills = vec![(Kill::Heard(20_000), Loss::Process)];
        let (outcome, world) = World::new(plan).run(Duration::from_secs(1000));
        if outcome.kills == 1 && !outcome.finished() {
            found += 1;
            let context = || format!("{outcome:?}\n{}", world.describe());
            assert!(outcome.client_events.iter().any(|e| matches!(e, Event::LogOverflow { .. })), "{}", context());
            assert!(outcome.client_events.contains(&Event::Reset(ResetReason::NoReplay)), "{}", context());
        }
    }
    assert!(found > 10);
}

#[test]
fn a_spill_takes_what_is_over_the_bound_and_the_whole_stream_can_be_replayed() {
    for seed in schedules(150) {
        let mut plan = Plan::rough(seed, Model::Echo, "stream", 3);
        plan.most = 40_000;
        plan.config.window = 4096;
        plan.config.log_bound = 8192;
        plan.spill = true;
        let outcome = succeeds(plan);
        assert!(outcome.largest_log <= 8192 + 3 * 4096, "{}", outcome.largest_log);
    }
}

#[test]
fn a_log_that_was_spilled_is_whole_after_the_death_of_an_armor() {
    let mut deaths = 0;
    for seed in schedules(150) {
        let mut plan = Plan::rough(seed, Model::Echo, "stream", 3);
        plan.most = 40_000;
        plan.config.window = 4096;
        plan.config.log_bound = 8192;
        plan.spill = true;
        plan.armor_deaths = 5;
        deaths += succeeds(plan).armor_deaths;
    }
    assert!(deaths > 100, "{deaths}");
}
