//! Acknowledged messages (thesis §5.5): who waits for which acknowledgement, when to send again, what was seen before.
//!
//! The sender pushes a self-addressed bundle with `MSG_BUNDLE_ACK` under its own bundle and keeps a copy; the message comes
//! home when the receiver is done. Until then it is sent again with growing pauses. A receiver processes each message once.
//!
//! Invariant: both tables are bounded; time is passed in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::ids::{ArmorId, MessageId};
use crate::message::Message;

/// Most messages that wait for an acknowledgement at once; one more is refused.
pub const MAX_OUTSTANDING: usize = 65_536;
/// Message numbers remembered per source for dropping duplicates.
pub const REMEMBERED_PER_SOURCE: usize = 1024;
/// Sources remembered.
pub const REMEMBERED_SOURCES: usize = 8192;

/// First pause before a message is sent again.
pub const FIRST_RESEND: Duration = Duration::from_millis(200);
/// Longest pause between two attempts.
pub const LONGEST_RESEND: Duration = Duration::from_secs(5);
/// After this long without an acknowledgement the sender gives up and says so.
pub const GIVE_UP: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Waiting {
    message: Message,
    first_sent: Instant,
    next_send: Instant,
    pause: Duration,
}

/// Messages of this ARMOR that are not acknowledged yet.
#[derive(Debug, Default)]
pub struct Outstanding {
    waiting: HashMap<MessageId, Waiting>,
}

/// What [`Outstanding::due`] found.
#[derive(Debug)]
pub enum Due {
    /// To be sent again.
    Resend(Message),
    /// Not acknowledged within [`GIVE_UP`].
    GivenUp(Message),
}

impl Outstanding {
    /// Keeps a copy of a message that is being sent; gives it back when the table is full.
    ///
    /// # Errors
    /// The message, when [`MAX_OUTSTANDING`] others wait already.
    pub fn sent(&mut self, message: Message, now: Instant) -> Result<(), Box<Message>> {
        if self.waiting.len() >= MAX_OUTSTANDING {
            return Err(Box::new(message));
        }
        self.waiting.insert(message.id, Waiting { message, first_sent: now, next_send: now + FIRST_RESEND, pause: FIRST_RESEND });
        Ok(())
    }

    /// An acknowledgement came home. False when nobody waits for it (any more).
    pub fn acknowledged(&mut self, id: MessageId) -> bool {
        self.waiting.remove(&id).is_some()
    }

    /// When [`Outstanding::due`] has to be called next.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.next_send).min()
    }

    /// Messages that have to be sent again now, and those that are given up.
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        self.waiting.retain(|_, waiting| {
            if waiting.next_send > now {
                return true;
            }
            if now.duration_since(waiting.first_sent) >= GIVE_UP {
                due.push(Due::GivenUp(waiting.message.clone()));
                return false;
            }
            waiting.pause = (waiting.pause * 2).min(LONGEST_RESEND);
            waiting.next_send = now + waiting.pause;
            due.push(Due::Resend(waiting.message.clone()));
            true
        });
        due
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// What was received before, per source.
#[derive(Debug, Default)]
pub struct Seen {
    sources: HashMap<ArmorId, (HashSet<MessageId>, VecDeque<MessageId>)>,
    order: VecDeque<ArmorId>,
}

impl Seen {
    /// Notes a message; false when it was noted before. The oldest are forgotten at the bounds.
    pub fn is_new(&mut self, source: ArmorId, id: MessageId) -> bool {
        if !self.sources.contains_key(&source) {
            if self.order.len() >= REMEMBERED_SOURCES
                && let Some(oldest) = self.order.pop_front()
            {
                self.sources.remove(&oldest);
            }
            self.order.push_back(source);
        }
        let (set, order) = self.sources.entry(source).or_default();
        if !set.insert(id) {
            return false;
        }
        order.push_back(id);
        if order.len() > REMEMBERED_PER_SOURCE
            && let Some(oldest) = order.pop_front()
        {
            set.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Bundle;

    fn message(id: u64) -> Message {
        let mut message = Message::new(Bundle { destination: ArmorId(2), operations: VecDeque::new() });
        message.id = MessageId(id);
        message
    }

    #[test]
    fn a_message_is_sent_again_with_growing_pauses_until_acknowledged() {
        let start = Instant::now();
        let mut outstanding = Outstanding::default();
        outstanding.sent(message(1), start).expect("room");
        assert!(outstanding.due(start).is_empty());
        let first = outstanding.next_due().expect("due");
        assert_eq!(outstanding.due(first).len(), 1);
        assert!(outstanding.next_due().expect("due") - first > first - start);
        assert!(outstanding.acknowledged(MessageId(1)));
        assert!(!outstanding.acknowledged(MessageId(1)));
        assert!(outstanding.next_due().is_none());
    }

    #[test]
    fn a_message_that_nobody_acknowledges_is_given_up_and_said_so() {
        let start = Instant::now();
        let mut outstanding = Outstanding::default();
        outstanding.sent(message(1), start).expect("room");
        let due = outstanding.due(start + GIVE_UP);
        assert!(matches!(due[..], [Due::GivenUp(_)]));
        assert!(outstanding.is_empty());
    }

    #[test]
    fn duplicates_are_dropped_and_the_memory_is_bounded() {
        let mut seen = Seen::default();
        assert!(seen.is_new(ArmorId(1), MessageId(5)));
        assert!(!seen.is_new(ArmorId(1), MessageId(5)));
        assert!(seen.is_new(ArmorId(2), MessageId(5)));
        for id in 0..REMEMBERED_PER_SOURCE as u64 + 10 {
            seen.is_new(ArmorId(3), MessageId(id));
        }
        assert_eq!(seen.sources[&ArmorId(3)].0.len(), REMEMBERED_PER_SOURCE);
    }
}
