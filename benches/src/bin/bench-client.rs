//! `bench-client SERVER`: does what its stdin says, a line at a time, and answers each with a line of JSON on stdout; see `order`.
//!
//! What cannot be done is answered with `{"error": …}`. Ends with its stdin.

use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;

use armor_benches::order::Client;
use clap::Parser;
use serde_json::json;

/// Measure connections to a bench-server; orders come by stdin
#[derive(Parser)]
struct Arguments {
    /// Where the server, or the first proxy before it, listens
    server: SocketAddr,
}

fn main() -> anyhow::Result<()> {
    let mut client = Client::of(Arguments::parse().server);
    let mut stdout = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let answer = client.obey(&line?).unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}
