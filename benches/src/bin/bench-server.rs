//! `bench-server --listen ADDRESS`: does what each connection's first bytes ask for; see `wire`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use armor_benches::{calls, server};
use clap::Parser;

/// Serve what bench-client measures
#[derive(Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// First time so many calls of socket, bind and listen, and write the result to --calls-to
    #[arg(long, value_name = "N", requires = "calls_to")]
    calls: Option<u32>,
    /// File for the result (JSON)
    #[arg(long, value_name = "FILE")]
    calls_to: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { listen, calls, calls_to } = Arguments::parse();
    if let (Some(count), Some(path)) = (calls, calls_to) {
        let calls = serde_json::to_string(&calls::server_calls(count)?)?;
        std::fs::write(&path, calls).with_context(|| path.display().to_string())?;
    }
    server::serve(listen)
}
