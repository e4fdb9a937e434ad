//! `armor status`: what runs, what is connected, what was recovered.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::environment::{Base, Place};
use crate::output::{self, Table};
use crate::survey::{Found, Survey, entries, text};
use crate::transport;

/// Show nodes, ARMORs, applications, services, connections and recoveries
#[derive(clap::Args)]
pub(crate) struct Status {
    /// Everything that the ARMORs say, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

impl Status {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let base = Base::of(&self.place)?;
        let survey = Survey::take(&base)?;
        let text = if self.json { format!("{:#}\n", everything(&survey)) } else { tables(&survey) };
        output::print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn everything(survey: &Survey) -> Value {
    let armors: Vec<Value> = survey
        .armors
        .iter()
        .map(|found| json!({ "name": found.name, "armor": found.armor.to_string(), "answers": found.status.is_some(), "status": found.status }))
        .collect();
    json!({ "armors": armors })
}

fn tables(survey: &Survey) -> String {
    let sections = [
        ("Nodes", nodes(survey)),
        ("ARMORs", armors(survey)),
        ("Applications", applications(survey)),
        ("Services", services(survey)),
        ("Connections", connections(survey)),
        ("Recoveries", recoveries(survey)),
    ];
    // Few applications have standbys.
    let standbys = Some(("Standbys", standbys(survey))).filter(|(_, table)| !table.render().is_empty());
    let gateways = Some(("Gateways", gateways(survey))).filter(|(_, table)| !table.render().is_empty());
    let security = Some(("Protected links", security(survey))).filter(|(_, table)| !table.render().is_empty());
    let datagrams = Some(("Links over UDP", datagram_links(survey))).filter(|(_, table)| !table.render().is_empty());
    let shown: Vec<String> = sections[..2]
        .iter()
        .chain(&security)
        .chain(&datagrams)
        .chain(&sections[2..3])
        .chain(&standbys)
        .chain(&sections[3..4])
        .chain(&gateways)
        .chain(&sections[4..])
        .map(|(title, table)| (title, table.render()))
        .map(|(title, table)| if table.is_empty() { format!("{title}: none\n") } else { format!("{title}\n{}", indent(&table)) })
        .collect();
    shown.join("\n")
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn nodes(survey: &Survey) -> Table {
    let mut table = Table::new(&["NODE", "ADDRESS", "ALIVE"]);
    let Some(ftm) = survey.armors.first() else { return table };
    for row in ftm.list("daemon_registry", "daemons") {
        let name = text(&row["name"]);
        // The FTM does not ask itself; a daemon that is not asked yet is as the registry has it.
        let mut watched = ftm.list("ftm_heartbeat", "nodes").iter().chain(ftm.list("ftm_heartbeat", "daemons"));
        let watched = watched.find(|watched| watched["name"] == name);
        let alive = match watched.map(|watched| &watched["alive"]) {
            Some(Value::Bool(alive)) => *alive,
            _ => row["failed"] != true,
        };
        let busy = watched.is_some_and(|watched| watched["state"] == "busy");
        table.row([
            name,
            text(&row["address"]),
            if !alive {
                "no"
            } else if busy {
                "busy"
            } else {
                "yes"
            }
            .to_owned(),
        ]);
    }
    table
}

fn armors(survey: &Survey) -> Table {
    let mut table = Table::new(&["ARMOR", "KIND", "PID", "IDENTITY", "STATE"]);
    for found in &survey.armors {
        let (kind, pid, state) = match &found.status {
            Some(status) => (text(&status["kind"]), text(&status["pid"]), "runs"),
            None => (String::new(), String::new(), "no answer"),
        };
        table.row([found.name.clone(), kind, pid, found.armor.to_string(), state.to_owned()]);
    }
    table
}

/// ARMORs with keys: what they trust, and what they have refused.
fn security(survey: &Survey) -> Table {
    let mut table = Table::new(&["ARMOR", "KEY", "TRUSTED", "LINKS", "REFUSED", "LIST"]);
    let links = |found: &'_ Found| transport::links(|name| found.element(name)).into_iter().cloned().collect::<Vec<_>>();
    for (found, state) in survey.armors.iter().flat_map(|found| links(found).into_iter().map(move |state| (found, state))) {
        let security = &state["security"];
        if security.is_null() {
            continue;
        }
        let refused = security["refused"].as_object().into_iter().flatten().map(|(kind, count)| format!("{kind} {count}"));
        let refused = refused.collect::<Vec<_>>().join(", ");
        table.row([
            found.name.clone(),
            text(&security["key"]),
            text(&security["trusted"]),
            text(&state["links"]),
            if refused.is_empty() { "none".to_owned() } else { refused },
            security["list"].as_str().map_or_else(|| "ok".to_owned(), str::to_owned),
        ]);
    }
    table
}

/// Links over UDP: how they do.
fn datagram_links(survey: &Survey) -> Table {
    let mut table = Table::new(&["ARMOR", "PEER", "ADDRESS", "STATE", "ROUND TRIP", "LOST", "RATE", "DATAGRAM"]);
    for (found, row) in rows(survey, "daemon_udp_mgmt", "peers").filter(|(_, row)| row["linked"] == true) {
        let number = |key: &str| row[key].as_u64().unwrap_or_default();
        let lost = number("packets_lost") as f64 * 100.0 / (number("packets_sent").max(1)) as f64;
        table.row([
            found.name.clone(),
            text(&row["name"]),
            text(&row["remote"]),
            if row["silent"] == true { "silent" } else { "answers" }.to_owned(),
            format!("{:.1} ms", number("round_trip_us") as f64 / 1000.0),
            format!("{lost:.1} %"),
            format!("{:.1} Mbit/s", number("rate_bytes_per_s") as f64 * 8.0 / 1e6),
            text(&row["datagram_bytes"]),
        ]);
    }
    table
}

fn applications(survey: &Survey) -> Table {
    let mut table = Table::new(&["APPLICATION", "ARMOR", "STATE", "PID", "RESTARTS", "INCARNATION", "COMMAND"]);
    for (found, row) in rows(survey, "app_oversight", "applications") {
        let command = match &row["command"] {
            Value::Array(words) => words.iter().map(text).collect::<Vec<_>>().join(" "),
            other => text(other),
        };
        let [name, mut state, pid, restarts, incarnation] = ["name", "state", "pid", "restarts", "incarnation"].map(|key| text(&row[key]));
        if let Some(from) = row["moved_from"].as_str() {
            state = format!("{state}, from {from}");
        }
        table.row([name, found.name.clone(), state, pid, restarts, incarnation, command]);
    }
    table
}

fn standbys(survey: &Survey) -> Table {
    let mut table = Table::new(&["APPLICATION", "ARMOR", "STATE", "PID"]);
    // Those for applications of other nodes too.
    for (found, row) in rows(survey, "app_oversight", "applications").chain(rows(survey, "app_oversight", "holds")) {
        for instance in entries(&row["standbys"]["instances"]) {
            table.row([text(&row["name"]), found.name.clone(), text(&instance["state"]), text(&instance["pid"])]);
        }
    }
    table
}

fn services(survey: &Survey) -> Table {
    let mut table = Table::new(&["SERVICE", "ADDRESS", "ARMOR", "POLICY", "INCARNATION", "CLIENTS"]);
    for row in survey.armors.first().map_or(&[][..], |ftm| ftm.list("APP_SERVER_DB", "servers")) {
        let [service, address, policy, incarnation, clients] =
            ["service", "address", "policy", "incarnation", "clients"].map(|key| text(&row[key]));
        table.row([service, address, name_of(survey, &text(&row["armor"])), policy, incarnation, clients]);
    }
    table
}

fn gateways(survey: &Survey) -> Table {
    let mut table = Table::new(&["GATEWAY", "LISTENS AT", "SERVICE", "ADDRESS", "ACCEPTED", "WAITING", "REFUSED"]);
    for (found, row) in rows(survey, "tcp_gateway", "listeners") {
        let [listen, service, address, accepted, waiting, refused] =
            ["listen", "service", "address", "accepted", "waiting", "refused"].map(|key| text(&row[key]));
        table.row([found.name.clone(), listen, service, address, accepted, waiting, refused]);
    }
    table
}

fn connections(survey: &Survey) -> Table {
    let mut table = Table::new(&["CONNECTION", "END", "ARMOR", "SERVICE", "ADDRESS", "PEER", "STATE", "SENT", "RECEIVED"]);
    let servers = survey.armors.first().map_or(&[][..], |ftm| ftm.list("APP_SERVER_DB", "servers"));
    for (end, element) in [("client", "APP_COMM_CLIENT"), ("server", "APP_COMM_SERVER"), ("server", "wired_servers")] {
        for (found, row) in rows(survey, element, "connections") {
            let listed = || {
                servers
                    .iter()
                    .find(|server| server["address"] == row["address"])
                    .map_or_else(String::new, |server| text(&server["service"]))
            };
            let service = Some(text(&row["service"])).filter(|service| !service.is_empty()).unwrap_or_else(listed);
            let [id, address, peer, state, sent, received] =
                ["id", "address", "peer", "state", "sent", "received"].map(|key| text(&row[key]));
            table.row([id, end.to_owned(), found.name.clone(), service, address, peer, state, sent, received]);
        }
        for found in &survey.armors {
            if let Some(more @ 1..) = found.element(element)["not_listed"].as_u64() {
                let mut row = [const { String::new() }; 9];
                [row[0], row[1], row[2]] = [format!("{more} more"), end.to_owned(), found.name.clone()];
                table.row(row);
            }
        }
    }
    table
}

fn recoveries(survey: &Survey) -> Table {
    let mut table = Table::new(&["SERVICE", "FAILED AT", "TIMELINE (ms since the failure)"]);
    for (_, row) in rows(survey, "APP_COMM_SERVER", "recoveries") {
        let at = row["at_ms"].as_u64().map_or_else(String::new, output::time);
        table.row([text(&row["service"]), at, timeline(row)]);
    }
    table
}

fn timeline(recovery: &Value) -> String {
    let steps = ["detected", "chosen", "restarted", "bound", "ready", "reconnected", "replayed", "flowing"];
    let reached = steps.iter().filter(|step| !recovery[format!("{step}_ms")].is_null());
    reached.map(|step| format!("{step} {}", text(&recovery[format!("{step}_ms")]))).collect::<Vec<_>>().join(", ")
}

fn rows<'a>(survey: &'a Survey, element: &'a str, list: &'a str) -> impl Iterator<Item = (&'a Found, &'a Value)> {
    survey.armors.iter().flat_map(move |found| entries(&found.element(element)[list]).iter().map(move |row| (found, row)))
}

fn name_of(survey: &Survey, armor: &str) -> String {
    survey.armors.iter().find(|found| found.armor.to_string() == armor).map_or_else(|| armor.to_owned(), |found| found.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use armor_proto::ids::ArmorId;

    fn survey() -> Survey {
        let ftm = json!({ "kind": "ftm", "pid": 7, "elements": {
            "daemon_registry": { "state": { "daemons": [{ "name": "node1", "armor": ArmorId::of_name("node1").to_string(), "address": "127.0.0.1:5" }] } },
            "ftm_heartbeat": { "state": { "daemons": [{ "name": "node1", "alive": true }] } },
            "APP_SERVER_DB": { "state": { "servers": [{ "address": "127.0.0.1:8080", "service": "web", "armor": ArmorId::of_name("node1").to_string(), "incarnation": 2 }] } },
        } });
        let node = json!({ "kind": "daemon", "pid": 8, "elements": {
            "app_oversight": { "state": { "applications": [{ "name": "web", "state": "running", "pid": 9, "restarts": 1, "command": ["a", "b"],
                "standbys": { "wanted": 1, "instances": [{ "pid": 10, "state": "waiting" }] } }] } },
            "APP_COMM_SERVER": { "state": {
                "connections": [{ "id": "1", "address": "127.0.0.1:8080", "state": "flowing", "sent": 10 }], "not_listed": 3,
                "recoveries": [{ "service": "web", "at_ms": 0, "flowing_ms": 19, "replayed_ms": 18, "reconnected_ms": 17, "ready_ms": 16,
                    "bound_ms": null, "restarted_ms": 9, "detected_ms": 1 }] } },
        } });
        let node = with_keys(node);
        let found = |name: &str, status| Found { name: name.to_owned(), armor: ArmorId::of_name(name), status };
        Survey { armors: vec![found("ftm", Some(ftm)), found("node1", Some(node)), found("node1/db", None)] }
    }

    fn with_keys(mut status: Value) -> Value {
        let refused = json!({ "altered": 2, "unknown-key": 1 });
        let security = json!({ "key": "armor1x", "trusted": 3, "refused": refused, "list": null });
        status["elements"]["daemon_tcp_mgmt"]["state"] = json!({ "links": 1, "security": security });
        status
    }

    #[test]
    fn tables_show_what_is_there_and_dashes_for_what_is_not() {
        let text = tables(&survey());
        for expected in [
            "  node1  127.0.0.1:5  yes\n",
            "node1/db  -       -    ",
            "  web          node1  running  9    1         -            a b\n",
            "  web          node1  waiting  10\n",
            "  node1  armor1x  3        1      altered 2, unknown-key 1  ok\n",
            "  web      127.0.0.1:8080  node1  -       2            -\n",
            "  1           server  node1  web      127.0.0.1:8080  -     flowing  10    -\n",
            "  3 more      server  node1  -        -               -     -        -     -\n",
            "  web      1970-01-01T00:00:00.000Z  detected 1, restarted 9, ready 16, reconnected 17, replayed 18, flowing 19\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn an_environment_without_anything_is_shown_as_empty() {
        let text = tables(&Survey { armors: vec![Found { name: "ftm".to_owned(), armor: ArmorId::FTM, status: None }] });
        assert!(text.contains("Connections: none\n") && !text.contains("Standbys"), "{text}");
    }
}
