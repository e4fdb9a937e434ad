//! `armor campaign-server`: an ordinary blocking server, a thread for each connection. It knows nothing of ARMOR.
//!
//! What it is told it compares with what its clients must have said. Anything else it says on stderr, in a line that begins with [`COMPLAINT`].

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;

use anyhow::Context as _;

use super::pattern::{Direction, Pattern};
use super::talk::{Question, Talk};

/// Begins each line about a stream that is not what it should be.
pub(crate) const COMPLAINT: &str = "campaign-server: wrong: ";

/// The server of a campaign
#[derive(clap::Args)]
pub(crate) struct Server {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long, value_enum)]
    talk: Talk,
    #[arg(long)]
    seed: u64,
}

impl Server {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let listener = TcpListener::bind(self.listen).with_context(|| format!("{} cannot be listened on", self.listen))?;
        let (talk, seed) = (self.talk, self.seed);
        loop {
            let (stream, peer) = listener.accept().context("accept")?;
            let serve = move || {
                let served = match talk {
                    Talk::Flow => flow(&stream, seed),
                    Talk::Http | Talk::Files | Talk::Turn => answer(&stream, talk, seed),
                };
                match served {
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => eprintln!("{COMPLAINT}{error}"),
                    Err(error) => eprintln!("campaign-server: {peer}: {error}"),
                    Ok(()) => {}
                }
                let _ = stream.shutdown(Shutdown::Both);
            };
            std::thread::Builder::new().name(peer.to_string()).spawn(serve).context("no thread for a client")?;
        }
    }
}

fn flow(mut stream: &TcpStream, seed: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut who = [0; 4];
    match stream.read_exact(&mut who) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        read => read?,
    }
    let connection = u32::from_be_bytes(who);
    let [heard, said] = [Direction::ToServer, Direction::ToClient].map(|direction| Pattern::new(seed, connection, direction));
    let (mut offset, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        let got = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        heard
            .check(offset, &buffer[..got])
            .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, format!("connection {connection}, from the client: {wrong}")))?;
        said.fill(offset, &mut buffer[..got]);
        stream.write_all(&buffer[..got])?;
        offset += got as u64;
    }
}

fn answer(mut stream: &TcpStream, talk: Talk, seed: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut questions = BufReader::new(stream);
    while let Some(question) = Question::hear(talk, &mut questions)? {
        question.answer(talk, seed, &mut stream)?;
    }
    Ok(())
}
