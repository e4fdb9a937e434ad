//! A short campaign, as it is run by a user: a few faults of each kind that needs no root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn campaign(out: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_armor"));
    command.args(["campaign", "--out"]).arg(out).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_short_campaign_loses_nothing_and_says_so() {
    let out = tempfile::tempdir().unwrap();
    let targets = "--targets=server,daemon,client-daemon,execution,ftm,vault,link";
    let output = campaign(out.path(), &[targets, "--faults=kill,cut,reset,corrupt", "--policies=stream,request", "--runs=6"]);
    assert!(output.status.success(), "{}", said(&output));
    let report = report(out.path());
    assert_eq!(report["passed"], true);
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), (6 + 3) * 2, "kills of six targets and three faults of links, each with two policies");
    for cell in cells {
        let runs = cell["runs"].as_array().unwrap();
        assert_eq!(runs.len() as u64, cell["wanted"].as_u64().unwrap(), "{cell}");
        for run in runs {
            assert!(run["connections"].as_u64().unwrap() >= 1 && run["stall_ms"].as_f64().unwrap() > 0.0, "{run}");
            // The link that was cut may have carried nothing for a while, and nobody knows of it.
            assert!(run["detected_ms"].is_f64() || cell["cell"]["target"] == "link", "{run}");
            for count in ["lost", "repeated", "altered", "diverged", "reset", "hung", "unmended", "restarts"] {
                assert_eq!(run[count], 0, "{run}");
            }
        }
    }
    let floors = report["floors"].as_array().unwrap();
    assert!(floors.len() == 2 && floors.iter().all(|floor| floor["median_ms"].as_f64().unwrap() > 0.0), "{floors:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, std::fs::read_to_string(out.path().join("report.txt")).unwrap());
    assert!(std::fs::read_to_string(out.path().join("campaign.svg")).unwrap().contains("server kill, groups, stream"));
    assert!(!out.path().join("failures").exists());
}

#[test]
fn the_same_seed_draws_the_same_schedule_and_a_single_run_can_be_done_again() {
    let [first, again] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let output = campaign(first.path(), &["--seed=7", "--targets=server", "--faults=kill", "--policies=turn", "--runs=3", "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, report(first.path()));
    let output = campaign(again.path(), &["--seed=7", "--replay=server-kill-groups-turn:2"]);
    assert!(output.status.success(), "{}", said(&output));
    let drawn = |report: &Value| {
        let runs = report["cells"][0]["runs"].as_array().unwrap().iter();
        runs.map(|run| (run["number"].clone(), run["delay_ms"].clone(), run["connections"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(drawn(&printed), drawn(&report(again.path())));
}

#[test]
fn bytes_that_are_lost_are_told_with_the_seed_and_the_logs() {
    let out = tempfile::tempdir().unwrap();
    // With this policy a new process is given nothing again, so what the dead one had read is lost. The service is made to have it.
    let service = out.path().join("service.toml");
    std::fs::write(&service, "policy = \"reconnect\"\non_divergence = \"continue\"\n").unwrap();
    let service = format!("--service={}", service.display());
    let report_at = out.path().join("report");
    let arguments = ["--seed=3", "--targets=server", "--faults=kill", "--policies=stream", "--runs=2", "--deadline=2", &service];
    let output = campaign(&report_at, &arguments);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("again: armor campaign --seed 3 --connections 4 --replay server-kill-groups-stream:0\n"), "{text}");
    let report = report(&report_at);
    assert_eq!(report["passed"], false);
    let bad = |run: &Value| ["lost", "altered", "reset", "hung"].iter().any(|count| run[count] != 0);
    assert!(report["cells"][0]["runs"].as_array().unwrap().iter().all(bad), "{report}");
    assert!(report_at.join("failures/server-kill-groups-stream-0/events.jsonl").exists());
}

#[test]
fn what_makes_no_sense_is_left_out_with_a_reason() {
    let out = tempfile::tempdir().unwrap();
    let output = campaign(out.path(), &["--list"]);
    let text = said(&output);
    assert!(
        output.status.success() && text.contains("policy reconnect gives up, by its meaning, what the dead process had read"),
        "{text}"
    );
    let output = campaign(out.path(), &["--targets=link", "--faults=kill"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("armor: there is nothing to run: a link is no process; --list shows what there is"),
        "{}",
        said(&output)
    );
    let output = campaign(out.path(), &["--replay=server-kill-groups:1"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}
