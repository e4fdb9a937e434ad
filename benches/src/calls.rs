//! What single calls take: socket, bind, listen, connect, close (thesis tables 6.2 and 6.3), and whole short connections.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use crate::times::{Summary, Times};
use crate::wire::{Wish, ask};

/// Calls of a server that begins to serve.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ServerCalls {
    /// `socket`: the thesis's init.
    pub init: Summary,
    /// `bind` to a free port, and `listen`. It is the second that makes a service known.
    pub bind: Summary,
}

/// Times them, by the calls of the C library as ordinary programs make them, `count` times, each on a socket of its own that is closed again.
///
/// # Errors
/// Those of the calls.
pub fn server_calls(count: u32) -> anyhow::Result<ServerCalls> {
    let (mut init, mut binding) = (Times::new()?, Times::new()?);
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    for _ in 0..count {
        let begun = Instant::now();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
        init.add(begun.elapsed());
        let begun = Instant::now();
        listener.bind(&any_port.into()).context("bind")?;
        listener.listen(128).context("listen")?;
        binding.add(begun.elapsed());
    }
    Ok(ServerCalls { init: init.summary(), bind: binding.summary() })
}

/// Calls of a client.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ClientCalls {
    /// `connect`, of a blocking socket.
    pub connect: Summary,
    /// `close`, of a connection that nothing was said on.
    pub close: Summary,
}

/// Times them, `count` times, one connection after the other.
///
/// # Errors
/// Those of the connections.
pub fn client_calls(server: SocketAddr, count: u32) -> anyhow::Result<ClientCalls> {
    let (mut connect, mut close) = (Times::new()?, Times::new()?);
    for _ in 0..count {
        let begun = Instant::now();
        let stream = TcpStream::connect(server).with_context(|| server.to_string())?;
        connect.add(begun.elapsed());
        let begun = Instant::now();
        drop(stream);
        close.add(begun.elapsed());
    }
    Ok(ClientCalls { connect: connect.summary(), close: close.summary() })
}

/// Connects, gets one byte and closes, `count` times one after the other.
///
/// # Errors
/// Those of the connections.
pub fn touches(server: SocketAddr, count: u32) -> anyhow::Result<Summary> {
    let mut times = Times::new()?;
    for _ in 0..count {
        let begun = Instant::now();
        touch(server).with_context(|| server.to_string())?;
        times.add(begun.elapsed());
    }
    Ok(times.summary())
}

fn touch(server: SocketAddr) -> io::Result<()> {
    ask(server, Wish::Touch)?.read_exact(&mut [0])
}

/// How many connections were made.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rate {
    /// So many.
    pub connections: u64,
    /// In so many s.
    pub seconds: f64,
}

/// Short connections for a time, by `threads` that do the same side by side.
///
/// # Errors
/// Those of the connections, and when a thread cannot be had.
pub fn rate(server: SocketAddr, threads: usize, limit: Duration) -> anyhow::Result<Rate> {
    let begun = Instant::now();
    let work = || -> io::Result<u64> {
        let mut connections = 0;
        while begun.elapsed() < limit {
            touch(server)?;
            connections += 1;
        }
        Ok(connections)
    };
    let connections = std::thread::scope(|scope| -> anyhow::Result<u64> {
        let workers = (0..threads).map(|_| std::thread::Builder::new().spawn_scoped(scope, work));
        let workers = workers.collect::<io::Result<Vec<_>>>().context("threads")?;
        let mut connections = 0;
        for worker in workers {
            let made = worker.join().map_err(|_| anyhow::anyhow!("a thread of the client has panicked"))?;
            connections += made.with_context(|| server.to_string())?;
        }
        Ok(connections)
    })?;
    Ok(Rate { connections, seconds: begun.elapsed().as_secs_f64() })
}
