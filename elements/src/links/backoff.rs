//! Pauses between attempts to connect: none, then 20 ms doubling to 2 s, with jitter.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(2);

/// How long to wait before the next attempt.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The pause before the next attempt; grows with each call.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = if pause.is_zero() { FIRST } else { (pause * 2).min(LONGEST) };
        // Up to a quarter more, so that many peers of one restarted daemon do not come in step. Nothing depends on how
        // random it is.
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        pause + pause / 4 * (clock / 1000 % 256) / 256
    }

    /// It worked: the next attempt comes at once.
    pub fn reset(&mut self) {
        self.next = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_anew_after_success() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(), Duration::ZERO);
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= FIRST && pauses[0] <= FIRST * 5 / 4);
        assert!(pauses[1] >= FIRST * 2);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST * 5 / 4));
        assert!(pauses[11] >= LONGEST);
        backoff.reset();
        assert_eq!(backoff.pause(), Duration::ZERO);
    }
}
