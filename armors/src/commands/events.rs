//! `armor events`: what happened, from the FTM's event log.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use armor_core::events::Event;
use armor_elements::operations::{Events as Page, EventsQuery};
use armor_proto::ids::ArmorId;

use crate::client::Client;
use crate::environment::{Base, Place};
use crate::output;

/// Show events: failures, recoveries, ARMORs and nodes that come and go
#[derive(clap::Args)]
pub(crate) struct Events {
    /// Go on showing events as they happen
    #[arg(short, long)]
    follow: bool,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

impl Events {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let base = Base::of(&self.place)?;
        let mut client = Client::attach(&base.entrance()?)?;
        let mut from = 0;
        loop {
            let page = match page(&mut client, from) {
                Ok(page) => page,
                Err(error) if self.follow => {
                    eprintln!("armor: {error:#}; waiting for it to come back");
                    client = again(&base);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if page.next < from {
                // Another life of the FTM counts anew.
                from = 0;
                continue;
            }
            let mut text = String::new();
            for event in &page.events {
                text.push_str(&if self.json { serde_json::to_string(event)? } else { line(event) });
                text.push('\n');
            }
            output::print(&text)?;
            from = page.next;
            if page.events.is_empty() {
                if !self.follow {
                    return Ok(ExitCode::SUCCESS);
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

fn page(client: &mut Client, from: u64) -> anyhow::Result<Page> {
    client.send(ArmorId::FTM, EventsQuery { from })?;
    client.wait(Duration::from_secs(5)).context("the FTM")
}

/// Attaches when somebody is there again.
fn again(base: &Base) -> Client {
    loop {
        match base.entrance().and_then(|entrance| Client::attach(&entrance)) {
            Ok(client) => return client,
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

fn line(event: &Event) -> String {
    let values: Vec<String> = event.values.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    format!("{}  {:<12} {:<24} {}", output::time(event.at_ms), event.armor, event.what, values.join(" ")).trim_end().to_owned()
}

/// Values with spaces or control characters are quoted: a terminal shows them as they are meant.
fn plain(value: &str) -> String {
    if value.is_empty() || value.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == '"') {
        return format!("{value:?}");
    }
    value.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_with_quoted_values() {
        let mut event = Event::new("server-failed").with("how", "signal 9\n").with("name", "web");
        (event.at_ms, event.armor) = (1000, "node1".to_owned());
        assert_eq!(line(&event), "1970-01-01T00:00:01.000Z  node1        server-failed            how=\"signal 9\\n\" name=web");
    }
}
