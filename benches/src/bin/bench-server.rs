//! `bench-server --listen ADDRESS`: does what each connection's first bytes ask for; see `wire`.

use std::net::SocketAddr;

use armor_benches::server;
use clap::Parser;

/// Serve what bench-client measures
#[derive(Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
}

fn main() -> anyhow::Result<()> {
    server::serve(Arguments::parse().listen)
}
