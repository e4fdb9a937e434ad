//! Asks every ARMOR that the FTM knows for its state.
//!
//! Invariant: a field that is missing in an answer is shown as missing; it never makes the survey fail.

use std::time::Duration;

use armor_proto::ids::ArmorId;
use serde_json::Value;

use crate::client::Client;
use crate::environment::{ArmorDirectory, Base};

/// How long an ARMOR may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was found out about one ARMOR.
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) armor: ArmorId,
    /// Its own word; `None` when it did not answer.
    pub(crate) status: Option<Value>,
}

impl Found {
    /// State of one of its elements.
    pub(crate) fn element(&self, name: &str) -> &Value {
        self.status.as_ref().map_or(&Value::Null, |status| element(status, name))
    }

    /// Entries of a list in the state of an element.
    pub(crate) fn list(&self, element: &str, list: &str) -> &[Value] {
        entries(&self.element(element)[list])
    }
}

/// All ARMORs, the FTM first.
pub(crate) struct Survey {
    pub(crate) armors: Vec<Found>,
}

impl Survey {
    /// Asks through the FTM of this machine, or through a daemon when the FTM is elsewhere.
    pub(crate) fn take(base: &Base) -> anyhow::Result<Survey> {
        let entrance = base.entrance()?;
        Survey::through(&entrance, base)
    }

    fn through(entrance: &ArmorDirectory, base: &Base) -> anyhow::Result<Survey> {
        let mut client = Client::attach(entrance)?;
        let ftm = client.statuses(&[ArmorId::FTM], PATIENCE)?.remove(&ArmorId::FTM);
        let mut armors = vec![Found { name: "ftm".to_owned(), armor: ArmorId::FTM, status: ftm }];
        let registry = armors[0].element("daemon_registry").clone();
        let mut add = |name: &str, armor: ArmorId| {
            if !armor.is_ephemeral() && armors.iter().all(|found| found.armor != armor) {
                armors.push(Found { name: name.to_owned(), armor, status: None });
            }
        };
        let daemons = entries(&registry["daemons"]);
        for row in daemons.iter().chain(daemons.iter().flat_map(|daemon| entries(&daemon["armors"]))).chain(entries(&registry["armors"])) {
            let name = text(&row["name"]);
            if let Some(armor) = armor_id(&row["armor"]) {
                add(&name, armor);
            } else if !name.is_empty() {
                add(&name, ArmorId::of_name(&name));
            }
        }
        // What the FTM does not know (yet), or no longer because it is dead.
        for (directory, _) in base.living() {
            add(&directory.name, directory.armor());
        }
        let others: Vec<ArmorId> = armors.iter().skip(1).map(|found| found.armor).collect();
        let mut statuses = client.statuses(&others, PATIENCE)?;
        for found in &mut armors[1..] {
            found.status = statuses.remove(&found.armor);
            if let Some(name) = found.status.as_ref().and_then(|status| status["name"].as_str()) {
                found.name = name.to_owned();
            }
        }
        Ok(Survey { armors })
    }

    /// ARMORs that oversee an application of this name; where there is none, those that an isolation of their node made stop it.
    pub(crate) fn overseers(&self, application: &str) -> Vec<&Found> {
        let oversees = |found: &&Found| found.list("app_oversight", "applications").iter().any(|row| row["name"] == application);
        let stopped =
            |found: &&Found| entries(&found.element("app_oversight")["isolated"]["stopped"]).iter().any(|name| name == application);
        let overseers: Vec<&Found> = self.armors.iter().filter(oversees).collect();
        if overseers.is_empty() { self.armors.iter().filter(stopped).collect() } else { overseers }
    }
}

/// State of an element in the status of an ARMOR.
pub(crate) fn element<'a>(status: &'a Value, name: &str) -> &'a Value {
    &status["elements"][name]["state"]
}

/// Entries of a list, none when it is no list.
pub(crate) fn entries(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Text as it is, numbers as digits, nothing as nothing.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn armor_id(value: &Value) -> Option<ArmorId> {
    match value {
        Value::String(text) if text == "ftm" => Some(ArmorId::FTM),
        Value::String(text) => u64::from_str_radix(text, 16).ok().map(ArmorId),
        Value::Number(number) => number.as_u64().map(ArmorId),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_runs_an_application_comes_before_who_has_stopped_it_because_of_an_isolation() {
        let found = |name: &str, applications: Value, stopped: Value| {
            let state = serde_json::json!({ "applications": applications, "isolated": { "isolated": true, "stopped": stopped } });
            let status = serde_json::json!({ "elements": { "app_oversight": { "state": state } } });
            Found { name: name.to_owned(), armor: ArmorId::of_name(name), status: Some(status) }
        };
        let isolated = || found("b", Value::Array(Vec::new()), serde_json::json!(["web"]));
        let mut survey = Survey { armors: vec![isolated()] };
        let names =
            |survey: &Survey, application: &str| survey.overseers(application).iter().map(|found| found.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&survey, "web"), names(&survey, "db").len()), (vec!["b".to_owned()], 0));
        survey.armors.push(found("c", serde_json::json!([{ "name": "web" }]), Value::Null));
        assert_eq!(names(&survey, "web"), ["c"]);
    }
}
