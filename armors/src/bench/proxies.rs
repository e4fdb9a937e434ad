//! The dual proxies beside which ARMOR is measured: two of each, one behind the other.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

use super::row::Row;

/// The command of one proxy. `files` is where it may have a file of its own, `place` tells the two apart.
pub(super) fn command(
    row: Row,
    own: &Path,
    files: &Path,
    place: &str,
    listen: SocketAddr,
    to: SocketAddr,
) -> anyhow::Result<Option<Command>> {
    Ok(Some(match row {
        Row::Own => {
            let mut command = Command::new(own);
            command.args(["--listen", &listen.to_string(), "--to", &to.to_string()]);
            command
        }
        Row::Haproxy | Row::HaproxyBusy => {
            let file = files.join(format!("{row:?}-{place}.cfg"));
            std::fs::write(&file, haproxy(row, listen, to)).with_context(|| file.display().to_string())?;
            let mut command = Command::new("haproxy");
            command.args(["-db", "-f"]).arg(file);
            command
        }
        Row::Socat => {
            let mut command = Command::new("socat");
            command.args(["-b", "65536"]);
            command.arg(format!("TCP-LISTEN:{},bind={},reuseaddr,fork,backlog=1024,nodelay", listen.port(), listen.ip()));
            command.arg(format!("TCP:{to},nodelay"));
            command
        }
        Row::Direct | Row::Daemon | Row::Execution => return Ok(None),
    }))
}

/// One thread as the others have, buffers of 64 KiB; HAProxy switches Nagle's algorithm off by itself.
fn haproxy(row: Row, listen: SocketAddr, to: SocketAddr) -> String {
    let mut text = "global\n  nbthread 1\n  tune.bufsize 65536\n".to_owned();
    if row == Row::HaproxyBusy {
        text += "  busy-polling\n";
    }
    text += "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n";
    // Writing to a String does not fail.
    let _ = write!(text, "listen relay\n  bind {listen} backlog 1024\n  server next {to}\n");
    text
}

/// Starts a program of the bench in a process group of its own, with its messages in a file.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start(mut command: Command, log: &Path) -> anyhow::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(log.try_clone().context("log")?).stderr(log).process_group(0);
    command.spawn().with_context(|| format!("{name} cannot be executed"))
}
