//! The subcommands, one file each.

mod check;
mod down;
mod elements;
mod events;
mod gateway;
mod keygen;
mod launch;
mod link;
mod run;
mod start;
mod status;
mod stop;
mod trust;
mod up;
mod vault;

use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    Up(up::Up),
    Launch(Box<launch::Launch>),
    Run(run::Run),
    Gateway(gateway::Gateway),
    Stop(stop::Stop),
    Status(status::Status),
    Events(events::Events),
    Down(down::Down),
    Start(start::Start),
    Check(check::Check),
    Keygen(keygen::Keygen),
    Trust(trust::Trust),
    Elements(elements::Elements),
    Link(link::Link),
    #[command(hide = true)]
    Vault(vault::Vault),
    Demo(crate::demo::Demo),
    Campaign(crate::campaign::Campaign),
    Bench(crate::bench::Bench),
    #[command(hide = true)]
    CampaignServer(crate::campaign::server::Server),
    #[command(hide = true)]
    CampaignClient(crate::campaign::client::Clients),
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Up(up) => up.run(),
            Command::Launch(launch) => launch.run(),
            Command::Run(run) => run.run(),
            Command::Gateway(gateway) => gateway.run(),
            Command::Stop(stop) => stop.run(),
            Command::Status(status) => status.run(),
            Command::Events(events) => events.run(),
            Command::Down(down) => down.run(),
            Command::Start(start) => start.run(),
            Command::Check(check) => check.run(),
            Command::Keygen(keygen) => keygen.run(),
            Command::Trust(trust) => trust.run(),
            Command::Elements(elements) => elements.run(),
            Command::Link(link) => link.run(),
            Command::Vault(vault) => vault.run(),
            Command::Demo(demo) => demo.run(),
            Command::Campaign(campaign) => campaign.run(),
            Command::Bench(bench) => bench.run(),
            Command::CampaignServer(server) => server.run(),
            Command::CampaignClient(clients) => clients.run(),
        }
    }
}
