//! Messages whose way is not known or not open yet.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use armor_proto::frame::Encoded;
use armor_proto::ids::ArmorId;

/// Messages kept by destination. Reliable messages and streams are sent again by their senders, so what does not fit here
/// or waits too long may be dropped.
///
/// Invariant: bounded per destination, in all, in bytes and in time; messages of one destination stay in order.
#[derive(Debug)]
pub struct Waiting {
    by_destination: HashMap<ArmorId, VecDeque<(Instant, Encoded)>>,
    messages: usize,
    bytes: usize,
    longest: Duration,
}

impl Waiting {
    /// Most messages for one destination.
    pub const PER_DESTINATION: usize = 1024;
    /// Most messages in all.
    pub const MESSAGES: usize = 16_384;
    /// Most bytes in all.
    pub const BYTES: usize = 64 << 20;

    /// Keeps messages for at most `longest`.
    #[must_use]
    pub fn new(longest: Duration) -> Waiting {
        Waiting { by_destination: HashMap::new(), messages: 0, bytes: 0, longest }
    }

    /// Keeps a message; false when there is no room and it was dropped.
    #[must_use]
    pub fn push(&mut self, destination: ArmorId, encoded: Encoded, now: Instant) -> bool {
        if self.messages >= Self::MESSAGES || self.bytes + encoded.len() > Self::BYTES {
            return false;
        }
        let queue = self.by_destination.entry(destination).or_default();
        if queue.len() >= Self::PER_DESTINATION {
            return false;
        }
        self.messages += 1;
        self.bytes += encoded.len();
        queue.push_back((now, encoded));
        true
    }

    /// Takes what waits for `destination`, in order.
    pub fn take(&mut self, destination: ArmorId) -> impl Iterator<Item = Encoded> + use<> {
        let queue = self.by_destination.remove(&destination).unwrap_or_default();
        self.messages -= queue.len();
        self.bytes -= queue.iter().map(|(_, encoded)| encoded.len()).sum::<usize>();
        queue.into_iter().map(|(_, encoded)| encoded)
    }

    /// Drops what has waited too long; how many, by destination.
    pub fn expire(&mut self, now: Instant) -> Vec<(ArmorId, usize)> {
        let mut expired = Vec::new();
        let (mut messages, mut bytes) = (0, 0);
        let longest = self.longest;
        self.by_destination.retain(|destination, queue| {
            let before = queue.len();
            while queue.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= longest) {
                bytes += queue.pop_front().map_or(0, |(_, encoded)| encoded.len());
            }
            if queue.len() < before {
                messages += before - queue.len();
                expired.push((*destination, before - queue.len()));
            }
            !queue.is_empty()
        });
        self.messages -= messages;
        self.bytes -= bytes;
        expired
    }

    /// Whether something waits for `destination`.
    #[must_use]
    pub fn is_waiting(&self, destination: ArmorId) -> bool {
        self.by_destination.contains_key(&destination)
    }

    /// Destinations for which something waits.
    pub fn destinations(&self) -> impl Iterator<Item = ArmorId> + '_ {
        self.by_destination.keys().copied()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn encoded(byte: u8) -> Encoded {
        Encoded { head: Bytes::copy_from_slice(&[byte; 10]), payload: Bytes::new() }
    }

    #[test]
    fn messages_come_out_in_order_and_old_ones_are_dropped() {
        let start = Instant::now();
        let mut waiting = Waiting::new(Duration::from_secs(10));
        assert!(waiting.push(ArmorId(1), encoded(1), start));
        assert!(waiting.push(ArmorId(1), encoded(2), start + Duration::from_secs(5)));
        assert!(waiting.push(ArmorId(2), encoded(3), start));
        let mut expired = waiting.expire(start + Duration::from_secs(10));
        expired.sort_unstable();
        assert_eq!(expired, [(ArmorId(1), 1), (ArmorId(2), 1)]);
        assert!(!waiting.is_waiting(ArmorId(2)));
        let left: Vec<u8> = waiting.take(ArmorId(1)).map(|encoded| encoded.head[0]).collect();
        assert_eq!(left, [2]);
        assert!(waiting.is_empty() && waiting.bytes == 0);
    }

    #[test]
    fn every_bound_holds() {
        let now = Instant::now();
        let mut waiting = Waiting::new(Duration::from_secs(10));
        for _ in 0..Waiting::PER_DESTINATION {
            assert!(waiting.push(ArmorId(1), encoded(0), now));
        }
        assert!(!waiting.push(ArmorId(1), encoded(0), now));
        let big = Encoded { head: Bytes::new(), payload: Bytes::from(vec![0; Waiting::BYTES]) };
        assert!(!waiting.push(ArmorId(2), big, now));
        for destination in 2..100 {
            for _ in 0..Waiting::PER_DESTINATION {
                let _ = waiting.push(ArmorId(destination), encoded(0), now);
            }
        }
        assert_eq!(waiting.len(), Waiting::MESSAGES);
    }
}
