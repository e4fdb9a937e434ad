//! Until when a lease lasts, and what an overseer does with it: two state machines without clock and timer. Time is passed in, as time since the node was booted,
//! which is one clock for all its processes and all their lives.
//!
//! Why no application has two lives while leases are kept to:
//!
//! 1. The daemon asks at *t*, and says so in its question. The FTM hears it at *h*, later than *t*, and answers.
//! 2. The lease lasts until *t* + `min(lease_ms, limit * 5 / 6)`, however long the answer was on its way; `limit` is the FTM's `interval_ms` × `misses`, and comes with it.
//! 3. The question is a word of the node as any other. From its last word the FTM waits at least `limit` before it tells the node's failure: when the link is gone
//!    or the kernel silent just that, since both excuse a node and never shorten its time; longer when the daemon is busy. Only then it moves anything.
//! 4. *t* < *h*, so *t* + `limit * 5 / 6` < *h* + `limit`: all leases that were ever granted have run out when the failure is told. Losses, delays, repetition and a way
//!    that is cut in one direction only make leases shorter.
//! 5. An FTM that is started again counts from its start, which is later than all that its earlier life had heard. A question that only the earlier life heard
//!    has an earlier *t* too.
//!
//! What it rests on: no two clocks differ in their pace by a sixth or more, and overseers run when the lease ends. The sixth that is left of `limit` is for both. Who is not run at all,
//! because it or its machine was stopped, stops nothing until it goes on.

use std::time::Duration;

/// Until when a lease lasts that was asked for at `asked`. `limit` is the silence that the FTM waits for at least.
pub(crate) fn until(asked: Duration, longest: Duration, limit: Duration) -> Duration {
    asked.saturating_add(longest.min(limit.saturating_mul(5) / 6))
}

/// What an overseer knows of its node's lease.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// `None`: none is needed.
    until: Option<Duration>,
    isolated: bool,
}

/// What has come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The lease has run out, so long ago: stop what may run elsewhere.
    Isolated(Duration),
    /// There is a lease again, or none is needed any more.
    Rejoined,
}

impl Holding {
    /// What the last life of the ARMOR had been told; [`Holding::at`] says whether it has run out.
    pub(crate) fn taken_back(until: Option<Duration>) -> Holding {
        Holding { until, isolated: false }
    }

    pub(crate) fn until(&self) -> Option<Duration> {
        self.until
    }

    pub(crate) fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// A lease was told. `opening`: by a daemon that has just begun; what an earlier life has left counts more. Call [`Holding::at`] before: a lease that has run out
    /// meanwhile has run out.
    pub(crate) fn told(&mut self, until: Option<Duration>, opening: bool, now: Duration) -> Option<Turn> {
        match (until, self.until) {
            (None, _) => self.until = None,
            (Some(_), Some(_)) if opening => {}
            (Some(until), before) => self.until = Some(before.map_or(until, |before| before.max(until))),
        }
        let holds = self.until.is_none_or(|until| until > now);
        (holds && std::mem::take(&mut self.isolated)).then_some(Turn::Rejoined)
    }

    /// Time has come to `now`.
    pub(crate) fn at(&mut self, now: Duration) -> Option<Turn> {
        let until = self.until.filter(|until| *until <= now && !self.isolated)?;
        self.isolated = true;
        Some(Turn::Isolated(now.saturating_sub(until)))
    }

    /// How long it lasts yet, when it can run out.
    pub(crate) fn lasts(&self, now: Duration) -> Option<Duration> {
        self.until.filter(|_| !self.isolated).map(|until| until.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_lease_is_never_longer_than_the_patience_of_the_ftm() {
        assert_eq!(until(ms(1000), ms(250), ms(300)), ms(1250));
        assert_eq!(until(ms(1000), ms(250), ms(150)), ms(1125));
        assert_eq!(until(ms(1000), ms(250), Duration::MAX), ms(1250));
        assert_eq!(until(ms(1000), ms(250), ms(0)), ms(1000));
    }

    #[test]
    fn it_runs_out_once_and_comes_back_once() {
        let mut holding = Holding::default();
        assert_eq!((holding.at(ms(9)), holding.lasts(ms(9))), (None, None), "none is needed");
        assert_eq!(holding.told(Some(ms(250)), true, ms(10)), None);
        assert_eq!(holding.lasts(ms(10)), Some(ms(240)));
        assert_eq!(holding.at(ms(249)), None);
        assert_eq!(holding.at(ms(260)), Some(Turn::Isolated(ms(10))));
        assert_eq!(holding.at(ms(270)), None);
        assert_eq!(holding.told(Some(ms(270)), false, ms(280)), None, "too late");
        assert!(holding.is_isolated());
        assert_eq!(holding.told(Some(ms(400)), false, ms(290)), Some(Turn::Rejoined));
        assert_eq!(holding.told(Some(ms(300)), false, ms(295)), None);
        assert_eq!(holding.at(ms(399)), None, "an older one takes nothing away");
    }

    #[test]
    fn what_an_earlier_life_knew_counts_more_than_an_opening() {
        let mut holding = Holding::taken_back(Some(ms(100)));
        assert_eq!(holding.told(Some(ms(300)), true, ms(50)), None);
        assert_eq!(holding.at(ms(100)), Some(Turn::Isolated(ms(0))));
        assert_eq!(holding.told(Some(ms(500)), true, ms(250)), None);
        assert_eq!(holding.told(None, true, ms(250)), Some(Turn::Rejoined), "the node serves from now on");
    }
}
