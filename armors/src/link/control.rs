//! How a running network of links is asked and changed: one line of JSON there and one back over a unix socket, `links/NAME.sock` in the run directory.
//!
//! The directory is the user's alone. A socket that a killed emulator has left is replaced at the next start.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::emulator::{Change, WayReport};
use super::network::check_name;
use crate::environment::Base;

const LONGEST_LINE: u64 = 1 << 20;
/// How long one who has connected may take to say his line. He is alone meanwhile.
const SAYS_WITHIN: Duration = Duration::from_secs(1);
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Change(Box<Change>),
    Report,
    /// Where the namespaces of a and b are.
    Namespaces,
    Down,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Report { seed: u64, ways: Vec<WayReport> },
    Namespaces([PathBuf; 2]),
    Failed(String),
}

/// The name of a network of links, and where it is controlled.
pub(crate) struct Place {
    name: String,
    option: String,
    socket: PathBuf,
}

impl Place {
    pub(crate) fn of(base: &Base, name: &str) -> anyhow::Result<Place> {
        check_name(name)?;
        Ok(Place { name: name.to_owned(), option: base.option(), socket: base.path().join("links").join(format!("{name}.sock")) })
    }

    /// # Errors
    /// When one of this name runs.
    pub(crate) fn listen(&self, base: &Base) -> anyhow::Result<UnixListener> {
        // Held until the socket is bound: two that start at once do not take it from each other.
        let _alone = base.create()?;
        let directory = base.path().join("links");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).with_context(|| directory.display().to_string())?;
        if UnixStream::connect(&self.socket).is_ok() {
            bail!("{} runs already; end it with `armor link down {}{}`", self.name, self.name, self.option);
        }
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).with_context(|| self.socket.display().to_string())?;
        listener.set_nonblocking(true).context("control socket")?;
        Ok(listener)
    }

    /// Takes the socket away.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.socket);
    }

    /// # Errors
    /// When none of this name runs, or when it refuses.
    pub(crate) fn ask(&self, request: &Request) -> anyhow::Result<Reply> {
        let stream = UnixStream::connect(&self.socket).with_context(|| {
            format!("no links run under the name {}; start them with `armor link up {}{}`", self.name, self.name, self.option)
        })?;
        stream.set_read_timeout(Some(ANSWERED_WITHIN)).and_then(|()| stream.set_write_timeout(Some(ANSWERED_WITHIN)))?;
        say(&stream, request)?;
        match hear(&stream).with_context(|| format!("{} does not answer", self.name))? {
            Reply::Failed(why) => bail!("{}: {why}", self.name),
            reply => Ok(reply),
        }
    }
}

/// Answers whoever has connected. False when nobody has.
pub(crate) fn answer(listener: &UnixListener, answer: impl FnOnce(Request) -> Reply) -> bool {
    let Ok((stream, _)) = listener.accept() else { return false };
    let prepared = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(SAYS_WITHIN)));
    if prepared.and_then(|()| stream.set_write_timeout(Some(SAYS_WITHIN))).is_err() {
        return true;
    }
    let reply = hear(&stream).map_or_else(|error| Reply::Failed(format!("request not understood: {error:#}")), answer);
    // One who has gone does not want to know.
    let _ = say(&stream, &reply);
    true
}

fn say<T: Serialize>(mut stream: &UnixStream, what: &T) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

fn hear<T: for<'a> Deserialize<'a>>(stream: &UnixStream) -> anyhow::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
