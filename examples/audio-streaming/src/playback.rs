//! Where received audio goes: a WAV file, or the standard input of a player program.
//!
//! A player has a thread that feeds it, so that the receiving thread never waits for a sound card.
//!
//! Invariant: sinks never change when something is taken to have arrived; a player that is too
//! slow loses audio, which is counted, and a file loses nothing or is an error.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use crate::wav::{AudioFormat, SampleBits, StreamHeader};

/// Pieces of audio that may wait for the player.
const WAITING_LIMIT: usize = 512;

/// A WAV file that grows with the stream.
#[derive(Debug)]
pub struct WavSink {
    out: BufWriter<File>,
    header: StreamHeader,
    written: u64,
}

impl WavSink {
    /// Makes the file and writes its head.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path, header: StreamHeader) -> io::Result<Self> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(&header.encode())?;
        Ok(Self { out, header, written: 0 })
    }

    /// Adds payload: samples and padding.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        self.written += payload.len() as u64;
        self.out.write_all(payload)
    }

    /// Ends the file. When the stream was cut, the head gets the length that there is.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(mut self) -> io::Result<()> {
        if self.written < self.header.payload_len() {
            let frame = u64::from(self.header.format.frame_bytes());
            let data_len = (self.written / frame * frame) as u32;
            let header = StreamHeader { data_len, ..self.header };
            self.out.seek(SeekFrom::Start(0))?;
            self.out.write_all(&header.encode())?;
            self.out.flush()?;
            let whole = header.encode().len() as u64 + header.payload_len();
            return self.out.get_ref().set_len(whole);
        }
        self.out.flush()
    }
}

/// A player program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Player {
    kind: PlayerKind,
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlayerKind {
    Alsa,
    Pulse,
    PipeWire,
}

impl PlayerKind {
    const ALL: [Self; 3] = [Self::Alsa, Self::Pulse, Self::PipeWire];

    fn program(self) -> &'static str {
        match self {
            Self::Alsa => "aplay",
            Self::Pulse => "paplay",
            Self::PipeWire => "pw-play",
        }
    }

    /// Arguments that make the program play raw samples from its standard input.
    fn arguments(self, format: AudioFormat) -> Vec<String> {
        let rate = format.sample_rate;
        let channels = format.channels;
        let line = match (self, format.bits) {
            (Self::Alsa, SampleBits::Eight) => format!("-q -t raw -f U8 -r {rate} -c {channels} -"),
            (Self::Alsa, SampleBits::Sixteen) => format!("-q -t raw -f S16_LE -r {rate} -c {channels} -"),
            (Self::Pulse, SampleBits::Eight) => format!("--raw --format=u8 --rate={rate} --channels={channels}"),
            (Self::Pulse, SampleBits::Sixteen) => {
                format!("--raw --format=s16le --rate={rate} --channels={channels}")
            }
            (Self::PipeWire, SampleBits::Eight) => {
                format!("--raw --format=u8 --rate={rate} --channels={channels} -")
            }
            (Self::PipeWire, SampleBits::Sixteen) => {
                format!("--raw --format=s16 --rate={rate} --channels={channels} -")
            }
        };
        line.split(' ').map(str::to_owned).collect()
    }
}

impl Player {
    /// The first of `aplay`, `paplay`, `pw-play` that is in `PATH`, if this machine seems to have
    /// a sound device for playing.
    pub fn find() -> Option<Self> {
        Self::find_in(&env::var_os("PATH")?, Path::new("/dev/snd"))
    }

    fn find_in(search_path: &OsStr, devices: &Path) -> Option<Self> {
        if !has_playback_device(devices) {
            return None;
        }
        let folders: Vec<PathBuf> = env::split_paths(search_path).collect();
        PlayerKind::ALL.into_iter().find_map(|kind| {
            let path = folders.iter().map(|folder| folder.join(kind.program())).find(|path| path.is_file())?;
            Some(Self { kind, path })
        })
    }

    /// Name of the program.
    pub fn name(&self) -> &'static str {
        self.kind.program()
    }

    /// Starts the program for audio of this format.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, format: AudioFormat) -> io::Result<PlayerSink> {
        let mut child = Command::new(&self.path).args(self.kind.arguments(format)).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let (queue, waiting) = sync_channel::<Vec<u8>>(WAITING_LIMIT);
        let input = child.stdin.take();
        let feeder = thread::Builder::new().name("player".into()).spawn(move || {
            // A player that has gone takes no more; the channel then reports it.
            if let Some(mut input) = input {
                while let Ok(audio) = waiting.recv() {
                    if input.write_all(&audio).and_then(|()| input.flush()).is_err() {
                        return;
                    }
                }
            }
        })?;
        Ok(PlayerSink { queue: Some(queue), feeder: Some(feeder), child, dropped: 0 })
    }
}

/// Whether ALSA has a PCM device for playing (`pcmC0D0p`) in this folder.
fn has_playback_device(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("pcm") && name.ends_with('p'))
    })
}

/// A player program that runs.
#[derive(Debug)]
pub struct PlayerSink {
    queue: Option<SyncSender<Vec<u8>>>,
    feeder: Option<JoinHandle<()>>,
    child: Child,
    dropped: u64,
}

impl PlayerSink {
    /// Gives audio to the player, without waiting for it.
    pub fn write(&mut self, audio: &[u8]) {
        let taken = self.queue.as_ref().is_some_and(|queue| queue.try_send(audio.to_vec()).is_ok());
        if !taken {
            self.dropped += audio.len() as u64;
        }
    }

    /// Lets the player play what it has, and waits for it. Gives the bytes that it did not take.
    pub fn finish(mut self) -> u64 {
        drop(self.queue.take());
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
        let _ = self.child.wait();
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::programme::Programme;

    fn header(data_len: u32) -> StreamHeader {
        StreamHeader { format: AudioFormat::new(8_000, 1, 16).unwrap(), data_len }
    }

    #[test]
    fn a_cut_stream_is_a_valid_file_of_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.wav");
        let mut sink = WavSink::create(&path, header(1000)).unwrap();
        sink.write(&[1; 301]).unwrap();
        sink.finish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 344);
        assert_eq!(Programme::from_wav(&path, None).unwrap().header(), header(300));
    }

    #[test]
    fn a_player_is_found_only_where_there_is_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let (programs, devices) = (folder.path().join("bin"), folder.path().join("snd"));
        fs::create_dir(&programs).unwrap();
        fs::create_dir(&devices).unwrap();
        fs::write(programs.join("paplay"), "").unwrap();
        let find = || Player::find_in(programs.as_os_str(), &devices).map(|player| player.name());
        assert_eq!(find(), None, "no device");
        fs::write(devices.join("pcmC0D0c"), "").unwrap();
        assert_eq!(find(), None, "only a microphone");
        fs::write(devices.join("pcmC0D0p"), "").unwrap();
        assert_eq!(find(), Some("paplay"));
        fs::write(programs.join("aplay"), "").unwrap();
        assert_eq!(find(), Some("aplay"));
        assert_eq!(Player::find_in(OsStr::new("/nowhere"), &devices), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_player_gets_the_samples_on_its_standard_input() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (program, heard) = (folder.path().join("aplay"), folder.path().join("heard"));
        fs::write(&program, format!("#!/bin/sh\necho \"$@\" > {0}.args\ncat > {0}\n", heard.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let player = Player { kind: PlayerKind::Alsa, path: program };
        let mut sink = player.start(header(4).format).unwrap();
        (0..100u8).for_each(|i| sink.write(&[i; 10]));
        assert_eq!(sink.finish(), 0);
        let samples = fs::read(&heard).unwrap();
        assert_eq!((samples.len(), samples[999]), (1000, 99));
        let arguments = fs::read_to_string(heard.with_extension("args")).unwrap();
        assert_eq!(arguments.trim(), "-q -t raw -f S16_LE -r 8000 -c 1 -");
    }
}
