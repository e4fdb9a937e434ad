//! ARMORs whose process dies: what a journal would keep of each end, and the ends that are made from it.

use std::time::Instant;

use armor_proto::connection::{ClientEnd, Config, MarkPolicy, ServerEnd, Spill, mark_policy};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::plan::{MemorySpill, MemoryTranscript, Plan};

/// What outlives the ARMOR of one end.
#[derive(Default)]
pub struct Kept {
    state: Vec<u8>,
    /// Bytes read from the application by that state.
    read: usize,
    /// All bytes ever read from the application's sockets.
    bytes: Vec<u8>,
    /// What the log goes on in, and its end by that state.
    spill: Option<MemorySpill>,
    spilled: usize,
}

/// What the call after the last save has done before the process died.
pub enum Call {
    Nothing,
    Read(Vec<u8>),
    Wrote(Vec<u8>),
}

impl Kept {
    pub fn with(spill: Option<MemorySpill>) -> Kept {
        Kept { spill, ..Kept::default() }
    }

    pub fn save(&mut self, save: impl FnOnce(&mut Vec<u8>)) {
        self.state.clear();
        save(&mut self.state);
        self.read = self.bytes.len();
        self.spilled = self.spill.as_ref().map_or(0, |spill| spill.end() as usize);
        assert!(self.state.len() <= 1600, "a state of {} bytes", self.state.len());
    }

    /// The application's bytes have left its socket.
    pub fn read(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// In pieces, and with some older bytes that are still there: all of them, or what is not in the spill.
    fn log(&self, rng: &mut StdRng) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        // What an earlier death has taken back from the spill is still in the journal.
        let spilled = self.spill.as_ref().map_or(0, |spill| self.spilled.min(spill.end() as usize));
        let from = if spilled == 0 { 0 } else { rng.random_range(0..=spilled.min(self.read)) };
        let mut rest = &self.bytes[from..self.read];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rng.random_range(1..=rest.len().min(5000)));
            pieces.push(Bytes::copy_from_slice(piece));
            rest = more;
        }
        pieces
    }

    pub fn client(&mut self, plan: &Plan, transcript: &MemoryTranscript, call: &Call, seed: u64, now: Instant) -> ClientEnd {
        let policy: Box<dyn MarkPolicy + Send> = mark_policy(plan.policy).expect("a known policy");
        let log = self.log(&mut StdRng::seed_from_u64(seed));
        let spill = self.spill.clone().map(|spill| Box::new(spill) as Box<dyn Spill + Send>);
        let mut end = ClientEnd::restore(&self.state, log, spill, plan.config.clone(), policy, now).expect("a state that was saved");
        if let Some(reattach) = plan.reattach {
            end.set_reattach(reattach, Some(Box::new(transcript.clone())), now);
        }
        match call {
            Call::Nothing => {}
            Call::Read(bytes) => end.app_read(Bytes::copy_from_slice(bytes), now),
            Call::Wrote(bytes) => end.app_given(bytes, now),
        }
        end.resume(now);
        end
    }

    pub fn server(&mut self, config: &Config, call: &Call, seed: u64, now: Instant) -> ServerEnd {
        let log = self.log(&mut StdRng::seed_from_u64(seed));
        let mut end = ServerEnd::restore(&self.state, log, config.clone(), now).expect("a state that was saved");
        match call {
            Call::Nothing => {}
            Call::Read(bytes) => end.app_read(Bytes::copy_from_slice(bytes), now),
            Call::Wrote(bytes) => end.app_given(bytes.len()),
        }
        end.resume(now);
        end
    }
}
