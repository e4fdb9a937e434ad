//! `armor launch --standby N --standby-elsewhere N`: instances that wait for the failure of the running one, or of its node.

use armor_elements::operations::{ApplicationSpec, StandbyCount, StandbyElsewhere};
use serde_json::Value;

use crate::survey::{entries, text};

/// Options of `armor launch`.
#[derive(clap::Args)]
pub(super) struct StandbyOptions {
    /// Start so many further instances ahead; each waits inside its bind until the running one fails, and takes over then. Not for a program
    /// that takes locks, opens its store or starts workers before it binds [default: 0]
    #[arg(long, value_name = "N")]
    standby: Option<u32>,
    /// Have so many other nodes hold one more such instance each: when the server's own node fails, it takes over there [default: 0]
    #[arg(long, value_name = "N")]
    standby_elsewhere: Option<u32>,
}

impl StandbyOptions {
    pub(super) fn apply(&self, spec: &mut ApplicationSpec) {
        if let Some(standby) = self.standby {
            spec.standby = StandbyCount(standby);
        }
        if let Some(elsewhere) = self.standby_elsewhere {
            spec.standby_elsewhere = StandbyElsewhere(elsewhere);
        }
    }
}

/// How the standbys of an application are doing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    wanted: u64,
    /// Inside their bind.
    waiting: u64,
    /// How one has ended by itself before its bind: none is started any more.
    ended_early: Option<String>,
}

impl Seen {
    /// From its row in the overseer's status.
    pub(super) fn of(row: &Value) -> Seen {
        let standbys = &row["standbys"];
        let instances = standbys["instances"].as_array().map_or(&[][..], Vec::as_slice);
        Seen {
            wanted: standbys["wanted"].as_u64().unwrap_or(0),
            waiting: instances.iter().filter(|instance| instance["state"] == "waiting").count() as u64,
            ended_early: standbys["given_up"].as_str().map(str::to_owned),
        }
    }

    /// All wait, or none will.
    pub(super) fn settled(&self) -> bool {
        self.waiting >= self.wanted || self.ended_early.is_some()
    }

    /// What the operator is told of it: when they wait, and when they do not.
    pub(super) fn told(&self, name: &str, patience: f64) -> (Option<String>, Option<String>) {
        let Seen { wanted, waiting, ended_early } = self;
        let all = (*wanted > 0 && waiting >= wanted).then(|| {
            let standbys = if *wanted == 1 { "1 standby waits".to_owned() } else { format!("{wanted} standbys wait") };
            format!("{name}: {standbys} before the bind\n")
        });
        let warning = match ended_early {
            Some(how) => Some(format!(
                "a standby of {name} has ended before it bound an address ({how}), so this program must not have one: it may take a lock, a \
                 pid file or its store while it starts. {name} goes on without; its log says more. Leave out --standby."
            )),
            None if waiting < wanted => Some(format!(
                "{waiting} of {wanted} standbys of {name} wait before their bind after {patience} s; {name} serves. A program that waits for a \
                 lock while it starts cannot have a standby; give one that starts slowly longer with --wait."
            )),
            None => None,
        };
        (all, warning)
    }
}

/// How those on other nodes are doing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Elsewhere {
    wanted: u64,
    waiting: u64,
    /// On their way to it.
    starting: u64,
    /// No node is left for one more.
    lacking: bool,
    /// Nodes that did not take one.
    unfit: Vec<String>,
}

impl Elsewhere {
    /// From the application's row in the status of the FTM's placement, which may not know of it yet.
    pub(super) fn of(row: &Value, wanted: u64) -> Elsewhere {
        let standbys = &row["standbys_elsewhere"];
        let instances = entries(&standbys["instances"]);
        let count =
            |states: &[&str]| instances.iter().filter(|instance| states.iter().any(|state| instance["state"] == *state)).count() as u64;
        Elsewhere {
            wanted,
            waiting: count(&["waiting"]),
            starting: count(&["ordered", "starting"]),
            lacking: standbys["lacking"] == true,
            unfit: entries(&standbys["unfit"]).iter().map(text).collect(),
        }
    }

    /// All wait, or no node is left for one.
    pub(super) fn settled(&self) -> bool {
        self.waiting >= self.wanted || self.lacking && self.starting == 0
    }

    /// As of those on its own node.
    pub(super) fn told(&self, name: &str, patience: f64) -> (Option<String>, Option<String>) {
        let Elsewhere { wanted, waiting, lacking, unfit, .. } = self;
        if waiting >= wanted {
            let nodes =
                if *wanted == 1 { "1 standby waits on another node".to_owned() } else { format!("{wanted} standbys wait on other nodes") };
            return ((*wanted > 0).then(|| format!("{name}: {nodes}\n")), None);
        }
        let refused = if unfit.is_empty() {
            String::new()
        } else {
            format!(" Not on {}: `armor events` says why (standby-refused, standby-ended-early).", unfit.join(", "))
        };
        let warning = if *lacking {
            format!(
                "{waiting} of {wanted} standbys of {name} wait on other nodes, and no other node is there that may have one: add one with `armor up --node`, \
                 or look at [placement].{refused} {name} serves; a node that comes is asked."
            )
        } else {
            format!(
                "{waiting} of {wanted} standbys of {name} wait on other nodes after {patience} s; {name} serves. Give one that starts slowly longer \
                 with --wait.{refused}"
            )
        };
        (None, Some(warning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(states: &[&str], given_up: Option<&str>) -> Seen {
        let instances: Vec<_> = states.iter().map(|state| json!({ "pid": 7, "state": state })).collect();
        Seen::of(&json!({ "standbys": { "wanted": 2, "instances": instances, "died": 0, "given_up": given_up } }))
    }

    #[test]
    fn it_is_over_when_all_wait_or_none_will() {
        assert!(!seen(&[], None).settled() && !seen(&["waiting", "starting"], None).settled());
        assert!(seen(&["waiting", "waiting"], None).settled() && seen(&[], Some("exit status: 1")).settled());
        assert!(Seen::of(&json!({ "standbys": null })).settled(), "none is wanted");
    }

    #[test]
    fn the_operator_is_told_of_other_nodes_too() {
        let seen = |states: &[&str], lacking: bool, unfit: &[&str]| {
            let instances: Vec<_> = states.iter().map(|state| json!({ "node": "b", "state": state })).collect();
            Elsewhere::of(&json!({ "standbys_elsewhere": { "instances": instances, "lacking": lacking, "unfit": unfit } }), 1)
        };
        let none = Elsewhere::of(&Value::Null, 0);
        assert!(none.settled() && none.told("web", 1.0) == (None, None), "none is wanted");
        assert!(!Elsewhere::of(&Value::Null, 1).settled(), "the FTM has yet to hear of it");
        let waits = seen(&["waiting"], false, &[]);
        assert!(waits.settled() && waits.told("web", 1.0) == (Some("web: 1 standby waits on another node\n".to_owned()), None));
        let starts = seen(&["starting"], false, &[]);
        let late = starts.told("web", 1.0).1;
        assert!(!starts.settled() && late.is_some_and(|told| told.starts_with("0 of 1 standbys of web wait on other nodes after 1 s")));
        assert!(!seen(&["starting"], true, &[]).settled(), "one may still come to wait");
        let none = seen(&[], true, &["b"]);
        let said = none.told("web", 1.0).1.unwrap_or_default();
        assert!(none.settled() && said.contains("no other node is there") && said.contains("Not on b"), "{said}");
    }

    #[test]
    fn the_operator_is_told_what_to_do() {
        assert_eq!(
            seen(&["waiting", "waiting"], None).told("web", 10.0),
            (Some("web: 2 standbys wait before the bind\n".to_owned()), None)
        );
        let (all, warning) = seen(&["waiting"], None).told("web", 0.5);
        assert!(all.is_none() && warning.is_some_and(|told| told.starts_with("1 of 2 standbys of web wait")));
        let (_, warning) = seen(&[], Some("exit status: 1")).told("web", 0.5);
        assert!(warning.is_some_and(|told| told.contains("(exit status: 1), so this program must not have one")));
    }
}
