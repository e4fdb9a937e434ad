//! Policy `turn`: for protocols of questions and answers that ARMOR does not understand.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Conversation, MarkPolicy, PolicyStateError, saved};
use crate::connection::record::Mark;

const NAME: &str = "turn";

/// A turn begins when the client speaks after the server has answered since the last turn, and everything that the client had
/// said before had reached the server process when it answered.
///
/// It knows nothing of the protocol, so it takes what the server has said when the client speaks again for the whole
/// answer. That is wrong for a client that speaks on without waiting for all of it (pipelining) and for a server
/// that keeps a state per connection (a login): take [`StreamPolicy`](super::StreamPolicy) for those, or teach a policy their
/// protocol. And it takes the last answer for complete only when the client speaks again, so the last request before
/// a crash is executed again; [`TurnPolicy::settled_after`] is the way out where silence says as much.
///
/// Where the server speaks first (SMTP, SSH, MySQL) every new process greets again, so no turn after the first can be a
/// start; such a connection keeps the mark (0, 0) and is served as by [`StreamPolicy`](super::StreamPolicy).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TurnPolicy {
    /// When the server is lost after it has answered and then been silent for so long, the answer counts as complete and
    /// is not asked for again. `None`, the default, never assumes it: right for servers that pause within an answer.
    pub settled_after: Option<Duration>,
    heard: Heard,
}

/// What it has to remember.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Heard {
    greeted: bool,
    spoken: bool,
}

impl TurnPolicy {
    /// A policy that takes an answer for complete when the server, then lost, had been silent for so long.
    #[must_use]
    pub fn settled_after(silence: Duration) -> Self {
        TurnPolicy { settled_after: Some(silence), ..TurnPolicy::default() }
    }

    pub(super) fn heard(&self) -> Heard {
        self.heard
    }

    pub(super) fn hear_again(&mut self, heard: Heard) {
        self.heard = heard;
    }

    fn answered(&self, at: &Conversation) -> bool {
        let both = !self.heard.greeted && self.heard.spoken;
        // What waits belongs to the answer: a new process would have to say it, and it would not.
        let heard_all = at.s2c_received > at.mark.s2c && at.s2c_waiting == 0;
        both && heard_all && at.c2s_answered == at.c2s_end && !at.recovering
    }
}

impl MarkPolicy for TurnPolicy {
    fn client_spoke(&mut self, at: &Conversation, _: &[u8]) -> Option<Mark> {
        let turn = self.answered(at);
        self.heard.spoken = true;
        turn.then(|| at.present())
    }

    fn server_answered(&mut self, _: &Conversation, _: &[u8]) -> Option<Mark> {
        self.heard.greeted |= !self.heard.spoken;
        None
    }

    fn settles_after(&self, at: &Conversation) -> Option<Duration> {
        self.settled_after.filter(|_| self.answered(at))
    }

    fn save(&self, out: &mut Vec<u8>) {
        saved::seal(NAME, &self.heard, out);
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PolicyStateError> {
        self.heard = saved::open(NAME, state, |_| true)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn at(c2s_end: u64, c2s_acked: u64, s2c_received: u64, mark: Mark) -> Conversation {
        let now = Instant::now();
        Conversation { mark, c2s_end, c2s_acked, c2s_answered: c2s_acked, s2c_received, s2c_waiting: 0, recovering: false, now }
    }

    #[test]
    fn a_turn_begins_when_the_client_speaks_after_the_answer() {
        let mut policy = TurnPolicy::default();
        let start = Mark::default();
        assert_eq!(policy.client_spoke(&at(0, 0, 0, start), b"GET"), None);
        assert_eq!(policy.client_spoke(&at(3, 0, 0, start), b" /"), None, "still the first request");
        assert_eq!(policy.server_answered(&at(5, 5, 0, start), b"200"), None);
        assert_eq!(policy.client_spoke(&at(5, 5, 3, start), b"GET"), Some(Mark { c2s: 5, s2c: 3 }));
    }

    #[test]
    fn no_turn_begins_while_the_client_s_bytes_are_under_way() {
        let mut policy = TurnPolicy::default();
        policy.client_spoke(&at(0, 0, 0, Mark::default()), b"GET");
        assert_eq!(policy.client_spoke(&at(5, 4, 3, Mark::default()), b"GET"), None);
    }

    #[test]
    fn a_server_that_speaks_first_is_always_replayed_from_the_beginning() {
        let mut policy = TurnPolicy::default();
        policy.server_answered(&at(0, 0, 0, Mark::default()), b"220 ready");
        policy.client_spoke(&at(0, 0, 9, Mark::default()), b"HELO");
        assert_eq!(policy.client_spoke(&at(4, 4, 20, Mark::default()), b"QUIT"), None);
    }

    #[test]
    fn silence_settles_an_answer_and_nothing_else() {
        let silence = Duration::from_secs(1);
        let mut policy = TurnPolicy::settled_after(silence);
        policy.client_spoke(&at(0, 0, 0, Mark::default()), b"INCR x");
        assert_eq!(policy.settles_after(&at(6, 6, 0, Mark::default())), None, "no answer");
        assert_eq!(policy.settles_after(&at(6, 6, 4, Mark::default())), Some(silence));
        assert_eq!(policy.settles_after(&at(9, 6, 4, Mark::default())), None, "the client has spoken again");
        assert_eq!(TurnPolicy::default().settles_after(&at(6, 6, 4, Mark::default())), None);
    }
}
