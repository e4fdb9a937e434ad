//! What `bench-client` is told to do: one line, answered by one line of JSON.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::{bulk, calls, exchange, sessions};

/// What a client keeps between orders.
#[derive(Debug)]
pub struct Client {
    server: SocketAddr,
    idle: Vec<TcpStream>,
}

impl Client {
    /// Of a server.
    pub fn of(server: SocketAddr) -> Client {
        Client { server, idle: Vec::new() }
    }

    /// Does what a line says. The words, with numbers behind them:
    ///
    /// | | |
    /// |---|---|
    /// | `round-trips BYTES COUNT MS` | round trips on one connection, no longer than so many ms |
    /// | `connects COUNT` | connect and close |
    /// | `touches COUNT` | connect, one byte, close |
    /// | `rate THREADS MS` | the same, side by side |
    /// | `server-calls COUNT` | socket, bind and listen |
    /// | `download BYTES`, `upload BYTES` | bulk |
    /// | `load SESSIONS BYTES MS` | busy sessions |
    /// | `hold COUNT` | so many idle connections are open from now on |
    /// | `server ADDRESS` | the server of what follows |
    ///
    /// # Errors
    /// When the line says something else, or it cannot be done.
    pub fn obey(&mut self, line: &str) -> anyhow::Result<Value> {
        let mut words = line.split_whitespace();
        let word = words.next().unwrap_or_default();
        if word == "server" {
            self.server = words.next().and_then(|server| server.parse().ok()).with_context(|| format!("{line}: expected an address"))?;
            return Ok(json!({ "server": self.server }));
        }
        let numbers = words.map(str::parse).collect::<Result<Vec<u64>, _>>().with_context(|| format!("{line}: expected numbers"))?;
        let short = |number: u64| u32::try_from(number).with_context(|| format!("{line}: {number} is too much"));
        let server = self.server;
        Ok(match (word, &numbers[..]) {
            ("round-trips", &[bytes, count, ms]) => {
                let bytes = usize::try_from(bytes)?;
                json!(exchange::round_trips(server, bytes, short(count)?, Duration::from_millis(ms))?)
            }
            ("connects", &[count]) => json!(calls::client_calls(server, short(count)?)?),
            ("touches", &[count]) => json!(calls::touches(server, short(count)?)?),
            ("rate", &[threads, ms]) => json!(calls::rate(server, usize::try_from(threads)?, Duration::from_millis(ms))?),
            ("server-calls", &[count]) => json!(calls::server_calls(short(count)?)?),
            ("download", &[bytes]) => json!(bulk::download(server, bytes)?),
            ("upload", &[bytes]) => json!(bulk::upload(server, bytes)?),
            ("load", &[sessions, bytes, ms]) => {
                json!(sessions::load(server, usize::try_from(sessions)?, usize::try_from(bytes)?, Duration::from_millis(ms))?)
            }
            ("hold", &[count]) => {
                let count = usize::try_from(count)?;
                self.idle.truncate(count);
                let more = count - self.idle.len();
                self.idle.extend(sessions::idle(server, more)?);
                json!({ "open": self.idle.len() })
            }
            _ => bail!("{line}: no such order"),
        })
    }
}
