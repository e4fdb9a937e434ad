//! How marks are set: where a new server process may start (design §7, table of policies).
//!
//! A researcher teaches a protocol by implementing [`MarkPolicy`]: it sees the bytes of both streams and says where a
//! conversation can be taken up by a process that knows nothing of what came before.
//!
//! Invariant: a policy never changes bytes; a mark that cannot be is ignored and reported, never used.

use std::time::{Duration, Instant};

use super::record::{Mark, Resume};

/// What a policy is told of the connection, as the client's end sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conversation {
    /// The mark that holds now.
    pub mark: Mark,
    /// Client's bytes so far, without the ones that are just being looked at.
    pub c2s_end: u64,
    /// Client's bytes that were written into the present server process.
    pub c2s_acked: u64,
    /// [`Conversation::c2s_acked`] when the server last said something new: what it knew of when it answered.
    pub c2s_answered: u64,
    /// Server's bytes so far, without the ones that are just being looked at.
    pub s2c_received: u64,
    /// When the server was last heard to say something new.
    pub answered_at: Instant,
    /// The server was lost, and no new process has yet said anything that the client had not been given before. Marks
    /// that are returned between the loss and the new connection are ignored.
    pub recovering: bool,
    /// The time.
    pub now: Instant,
}

impl Conversation {
    /// The present: everything said so far by both.
    #[must_use]
    pub fn present(&self) -> Mark {
        Mark { c2s: self.c2s_end, s2c: self.s2c_received }
    }
}

/// Extension point: where a new server process may start.
///
/// A mark that is returned must lie, in c2s, between the mark that holds and the end of the client's bytes (including the
/// ones just looked at), and in s2c at the present, or inside the bytes just looked at. It must be such that a server
/// that is fed the client's bytes from `c2s` says the server's bytes from `s2c`.
pub trait MarkPolicy {
    /// Whether a new process starts at the mark or at the present. With [`Resume::Present`] no log is kept and the
    /// functions below are not called.
    fn resume(&self) -> Resume {
        Resume::Mark
    }

    /// The client is about to say `bytes`.
    fn client_spoke(&mut self, conversation: &Conversation, bytes: &[u8]) -> Option<Mark>;

    /// The server has said `bytes`.
    fn server_answered(&mut self, _conversation: &Conversation, _bytes: &[u8]) -> Option<Mark> {
        None
    }

    /// The server process was lost; last chance for a mark before the log is replayed.
    fn server_lost(&mut self, _conversation: &Conversation) -> Option<Mark> {
        None
    }
}

/// Policy `reconnect`, the thesis's behaviour (§4.5.1): the connection is made again and goes on at the present.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReconnectPolicy;

impl MarkPolicy for ReconnectPolicy {
    fn resume(&self) -> Resume {
        Resume::Present
    }
    fn client_spoke(&mut self, _: &Conversation, _: &[u8]) -> Option<Mark> {
        None
    }
}

/// Policy `stream`: always from the very beginning, for deterministic streams.
#[derive(Clone, Copy, Debug, Default)]
pub struct StreamPolicy;

impl MarkPolicy for StreamPolicy {
    fn client_spoke(&mut self, _: &Conversation, _: &[u8]) -> Option<Mark> {
        None
    }
}

/// Policy `request`, the default: a turn begins when the client speaks after the server has answered since the last turn,
/// and everything that the client had said before had reached the server process when it answered.
///
/// It knows nothing of the protocol, so it takes what the server has said when the client speaks again for the whole
/// answer. That is wrong for a client that speaks on without waiting for all of it (pipelining, HTTP/2) and for a server
/// that keeps a state per connection (a login): take [`StreamPolicy`] for those, or teach a policy their protocol.
///
/// Where the server speaks first (SMTP, SSH, MySQL) every new process greets again, so no turn after the first can be a
/// start; such a connection keeps the mark (0, 0) and is served as by [`StreamPolicy`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestPolicy {
    /// When the server is lost after it has answered and then been silent for so long, the answer counts as complete and
    /// is not asked for again. `None`, the default, never assumes it: right for servers that pause within an answer.
    pub settled_after: Option<Duration>,
    greeted: bool,
    spoken: bool,
}

impl RequestPolicy {
    /// A policy that takes an answer for complete when the server, then lost, had been silent for so long.
    #[must_use]
    pub fn settled_after(silence: Duration) -> Self {
        RequestPolicy { settled_after: Some(silence), ..RequestPolicy::default() }
    }

    fn answered(&self, at: &Conversation) -> bool {
        !self.greeted && self.spoken && at.s2c_received > at.mark.s2c && at.c2s_answered == at.c2s_end && !at.recovering
    }
}

impl MarkPolicy for RequestPolicy {
    fn client_spoke(&mut self, at: &Conversation, _: &[u8]) -> Option<Mark> {
        let turn = self.answered(at);
        self.spoken = true;
        turn.then(|| at.present())
    }

    fn server_answered(&mut self, _: &Conversation, _: &[u8]) -> Option<Mark> {
        self.greeted |= !self.spoken;
        None
    }

    fn server_lost(&mut self, at: &Conversation) -> Option<Mark> {
        let silence = self.settled_after?;
        let settled = at.now.saturating_duration_since(at.answered_at) >= silence;
        (settled && self.answered(at)).then(|| at.present())
    }
}

/// The policy of this name (`reconnect`, `request`, `stream`), as TOML gives it.
#[must_use]
pub fn mark_policy(name: &str) -> Option<Box<dyn MarkPolicy + Send>> {
    match name {
        "reconnect" => Some(Box::new(ReconnectPolicy)),
        "request" => Some(Box::new(RequestPolicy::default())),
        "stream" => Some(Box::new(StreamPolicy)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(c2s_end: u64, c2s_acked: u64, s2c_received: u64, mark: Mark) -> Conversation {
        let now = Instant::now();
        Conversation { mark, c2s_end, c2s_acked, c2s_answered: c2s_acked, s2c_received, answered_at: now, recovering: false, now }
    }

    #[test]
    fn a_turn_begins_when_the_client_speaks_after_the_answer() {
        let mut policy = RequestPolicy::default();
        let start = Mark::default();
        assert_eq!(policy.client_spoke(&at(0, 0, 0, start), b"GET"), None);
        assert_eq!(policy.client_spoke(&at(3, 0, 0, start), b" /"), None, "still the first request");
        assert_eq!(policy.server_answered(&at(5, 5, 0, start), b"200"), None);
        assert_eq!(policy.client_spoke(&at(5, 5, 3, start), b"GET"), Some(Mark { c2s: 5, s2c: 3 }));
    }

    #[test]
    fn no_turn_begins_while_the_client_s_bytes_are_under_way() {
        let mut policy = RequestPolicy::default();
        policy.client_spoke(&at(0, 0, 0, Mark::default()), b"GET");
        assert_eq!(policy.client_spoke(&at(5, 4, 3, Mark::default()), b"GET"), None);
    }

    #[test]
    fn a_server_that_speaks_first_is_always_replayed_from_the_beginning() {
        let mut policy = RequestPolicy::default();
        policy.server_answered(&at(0, 0, 0, Mark::default()), b"220 ready");
        policy.client_spoke(&at(0, 0, 9, Mark::default()), b"HELO");
        assert_eq!(policy.client_spoke(&at(4, 4, 20, Mark::default()), b"QUIT"), None);
    }

    #[test]
    fn a_settled_answer_is_not_asked_for_again() {
        let mut policy = RequestPolicy::settled_after(Duration::from_secs(1));
        policy.client_spoke(&at(0, 0, 0, Mark::default()), b"INCR x");
        let mut lost = at(6, 6, 4, Mark::default());
        assert_eq!(policy.server_lost(&lost), None);
        lost.now += Duration::from_secs(1);
        assert_eq!(policy.server_lost(&lost), Some(Mark { c2s: 6, s2c: 4 }));
    }
}
