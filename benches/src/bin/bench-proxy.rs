//! `bench-proxy --listen ADDRESS --to ADDRESS`: one half of a minimal dual proxy (thesis §6.2: "a lightweight process that transfers data from one
//! connection to another").

use std::net::SocketAddr;

use armor_benches::proxy;
use clap::Parser;

/// Pass connections on
#[derive(Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Where each connection is passed on to
    #[arg(long)]
    to: SocketAddr,
}

fn main() -> anyhow::Result<()> {
    let Arguments { listen, to } = Arguments::parse();
    proxy::relay(listen, to)
}
