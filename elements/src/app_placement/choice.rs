//! Which node takes an application over: a pure choice.

use std::cmp::Reverse;

use armor_proto::ids::ArmorId;

use crate::operations::{Labels, Placement};

/// A node that is there and has room for the application.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) node: ArmorId,
    pub(super) name: &'a str,
    pub(super) labels: &'a Labels,
    /// It is where the application was.
    pub(super) home: bool,
    /// It holds a standby of the application that waits.
    pub(super) waits: bool,
    /// Applications that run there, and those of them that are of its group.
    pub(super) applications: usize,
    pub(super) of_group: usize,
}

/// The best node, if there is one: what a service requires is kept to, then a standby that waits, then its own node, then the order of those that it prefers, then few
/// neighbours, of its group first. Names decide the rest, so that the same network gives the same choice.
pub(super) fn choose(placement: &Placement, candidates: &[Candidate<'_>]) -> Option<ArmorId> {
    let preference = |candidate: &Candidate<'_>| placement.nodes.iter().position(|name| name == candidate.name);
    let fits = |candidate: &&Candidate<'_>| {
        let labels = placement.labels.iter().all(|(key, value)| candidate.labels.get(key) == Some(value));
        let preferred = !placement.only_preferred || preference(candidate).is_some();
        (placement.migrate && labels && preferred) || candidate.home
    };
    let rank = |candidate: &&Candidate<'_>| {
        let preference = preference(candidate).unwrap_or(usize::MAX);
        (
            Reverse(candidate.waits),
            Reverse(candidate.home),
            preference,
            candidate.of_group,
            candidate.applications,
            candidate.name.to_owned(),
        )
    };
    candidates.iter().filter(fits).min_by_key(rank).map(|candidate| candidate.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(keys: &str) -> Placement {
        toml::from_str(keys).unwrap_or_default()
    }

    #[test]
    fn the_best_node_is_chosen() {
        let zone = |zone: &str| Labels::from([("zone".to_owned(), zone.to_owned())]);
        let (a, b) = (zone("a"), zone("b"));
        // Name, labels, home, applications, of the group.
        type Row<'a> = (&'a str, &'a Labels, bool, usize, usize);
        let cases: &[(&str, &[Row<'_>], Option<&str>)] = &[
            ("", &[], None),
            ("", &[("x", &a, false, 0, 0), ("y", &a, false, 0, 0)], Some("x")),
            ("", &[("x", &a, false, 2, 0), ("y", &a, false, 1, 0)], Some("y")),
            ("", &[("x", &a, false, 0, 1), ("y", &a, false, 5, 0)], Some("y")),
            ("", &[("x", &a, false, 0, 0), ("y", &a, true, 5, 1)], Some("y")),
            ("nodes = [\"z\", \"y\"]", &[("x", &a, false, 0, 0), ("y", &a, false, 9, 1)], Some("y")),
            ("nodes = [\"z\", \"y\"]", &[("z", &a, false, 9, 9), ("y", &a, false, 0, 0)], Some("z")),
            ("nodes = [\"z\"]", &[("x", &a, false, 0, 0)], Some("x")),
            ("nodes = [\"z\"]\nonly_preferred = true", &[("x", &a, false, 0, 0)], None),
            ("labels = { zone = \"b\" }", &[("x", &a, false, 0, 0), ("y", &b, false, 9, 9)], Some("y")),
            ("labels = { zone = \"c\" }", &[("x", &a, false, 0, 0), ("y", &b, false, 0, 0)], None),
            ("migrate = false", &[("x", &a, false, 0, 0)], None),
            ("migrate = false", &[("x", &a, false, 0, 0), ("y", &a, true, 0, 0)], Some("y")),
            ("labels = { zone = \"c\" }", &[("y", &a, true, 0, 0)], Some("y")),
        ];
        for (keys, rows, expected) in cases {
            let candidates: Vec<_> = rows
                .iter()
                .map(|&(name, labels, home, applications, of_group)| Candidate {
                    node: ArmorId::of_name(name),
                    name,
                    labels,
                    home,
                    waits: false,
                    applications,
                    of_group,
                })
                .collect();
            assert_eq!(choose(&placement(keys), &candidates), expected.map(ArmorId::of_name), "{keys:?} {rows:?}");
        }
    }

    #[test]
    fn a_node_whose_standby_waits_is_chosen_before_all_others_that_fit() {
        let labels = Labels::new();
        let candidate = |name, waits, home| Candidate {
            node: ArmorId::of_name(name),
            name,
            labels: &labels,
            home,
            waits,
            applications: 0,
            of_group: 0,
        };
        let nodes = [candidate("x", false, true), candidate("y", false, false), candidate("z", true, false)];
        assert_eq!(choose(&placement("nodes = [\"y\"]"), &nodes), Some(ArmorId::of_name("z")));
        assert_eq!(choose(&placement("nodes = [\"y\"]\nonly_preferred = true"), &nodes), Some(ArmorId::of_name("x")));
    }
}
