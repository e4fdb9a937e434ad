//! The judge of one application's progress: whether it hangs although input waits for it (thesis §3.3.2, time domain).
//!
//! It has no socket, no /proc and no clock: it is told at intervals what was seen ([`Progress::looked`]), and when something waits longer than
//! from one look to the next, what the application's processes do ([`Progress::judge`]). Two things are a hang:
//!
//! - A process of it was stopped for so long, while a client's bytes lay unread, or a connection unaccepted, for as long. Nobody leaves a server
//!   stopped on purpose. Of a server of several processes only the stopped ones are meant.
//! - Where the service says so (`progress_ms`): input waited for so long, and the application as a whole has neither read nor accepted
//!   nor said anything, nor used the processor.
//!
//! Invariant: time in which nobody looked proves nothing: this process may have been stopped itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use armor_proto::ids::ConnectionId;

use crate::endpoints::{Activity, Member};
use crate::operations::Health;

/// A connection on which something waits for the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) id: ConnectionId,
    /// Memory that holds what is unread, see [`crate::endpoints::unread`].
    pub(super) unread: u64,
    /// Bytes that the application was given, and that it has said, in all.
    pub(super) given: u64,
    pub(super) said: u64,
    /// It has accepted the connection.
    pub(super) accepted: bool,
}

impl Line {
    /// Nothing was taken since an earlier look. What was given meanwhile has been added to what is unread; if that grew by less, something was.
    fn is_stuck_since(&self, earlier: &Line) -> bool {
        let given = self.given.saturating_sub(earlier.given);
        self.said == earlier.said && self.accepted == earlier.accepted && self.unread >= earlier.unread.saturating_add(given)
    }
}

/// It hangs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hang {
    /// The processes that hang; all of it when empty.
    pub(super) processes: Vec<u32>,
    pub(super) why: String,
    /// For how long input has waited.
    pub(super) silent: Duration,
}

/// The judge.
#[derive(Debug)]
pub(super) struct Progress {
    /// How long a stopped process, and one that makes no progress, may let input wait.
    stopped_limit: Option<Duration>,
    idle_limit: Option<Duration>,
    looked: Option<Instant>,
    /// What waits, and since when.
    lines: HashMap<ConnectionId, (Line, Instant)>,
    /// What it has said on all connections.
    said: u64,
    /// Since when nothing at all has moved.
    quiet: Option<Instant>,
    /// Processor time of all its processes.
    ticks: Option<u64>,
    /// Processes that are stopped, by number and birth, and since when.
    stopped: HashMap<(u32, u64), Instant>,
}

impl Progress {
    /// Longest and shortest pause between two looks.
    pub(super) const LOOKS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(25));

    pub(super) fn new(health: &Health) -> Progress {
        Progress {
            stopped_limit: Some(Duration::from_millis(health.stopped_ms)).filter(|limit| !limit.is_zero()),
            idle_limit: health.progress_ms.map(Duration::from_millis),
            looked: None,
            lines: HashMap::new(),
            said: 0,
            quiet: None,
            ticks: None,
            stopped: HashMap::new(),
        }
    }

    /// When to look again; `None` when nothing is to be judged.
    pub(super) fn pause(&self) -> Option<Duration> {
        let shortest = [self.stopped_limit, self.idle_limit].into_iter().flatten().min()?;
        Some((shortest / 4).clamp(Self::LOOKS.1, Self::LOOKS.0))
    }

    /// The connections on which something waits now, and what was said on all of them. Whether [`Progress::judge`] is to be called.
    pub(super) fn looked(&mut self, waiting: &[Line], said: u64, now: Instant) -> bool {
        let Some(pause) = self.pause() else { return false };
        // Twice as late as the longest pause that a busy machine makes of it.
        let late = self.looked.replace(now).is_none_or(|before| now.saturating_duration_since(before) > pause * 4);
        let mut earlier = std::mem::take(&mut self.lines);
        if late {
            earlier.clear();
        }
        let mut moved = late || said != self.said;
        self.said = said;
        for line in waiting {
            let stuck = earlier.remove(&line.id).map(|(before, since)| (line.is_stuck_since(&before), since));
            moved |= matches!(stuck, Some((false, _)));
            let since = stuck.filter(|(stuck, _)| *stuck).map_or(now, |(_, since)| since);
            self.lines.insert(line.id, (*line, since));
        }
        // On these everything was taken.
        moved |= !earlier.is_empty();
        if moved {
            self.quiet = Some(now);
        }
        let suspicious = self.waits_since().is_some_and(|since| since < now);
        if !suspicious || late {
            self.ticks = None;
            self.stopped.clear();
        }
        suspicious
    }

    /// Since when the longest has waited.
    fn waits_since(&self) -> Option<Instant> {
        self.lines.values().map(|&(_, since)| since).min()
    }

    /// What the application's processes do now.
    pub(super) fn judge(&mut self, members: &[Member], now: Instant) -> Option<Hang> {
        let waits = now.saturating_duration_since(self.waits_since()?);
        let hang = self.stopped_too_long(members, waits, now).or_else(|| self.idle_too_long(members, waits, now))?;
        // If it is still there after it was told, that takes as long again.
        self.lines.clear();
        self.stopped.clear();
        Some(hang)
    }

    fn stopped_too_long(&mut self, members: &[Member], waits: Duration, now: Instant) -> Option<Hang> {
        let limit = self.stopped_limit?;
        let before = std::mem::take(&mut self.stopped);
        let stopped = members.iter().filter(|member| member.activity == Activity::Stopped).map(|member| (member.pid, member.born));
        self.stopped = stopped.map(|process| (process, before.get(&process).copied().unwrap_or(now))).collect();
        let long = self.stopped.iter().filter(|&(_, &since)| now.saturating_duration_since(since) >= limit);
        let mut processes: Vec<u32> = long.map(|(&(pid, _), _)| pid).collect();
        processes.sort_unstable();
        let why = format!("it is stopped, and input has waited for {} ms", waits.as_millis());
        (waits >= limit && !processes.is_empty()).then_some(Hang { processes, why, silent: waits })
    }

    fn idle_too_long(&mut self, members: &[Member], waits: Duration, now: Instant) -> Option<Hang> {
        let limit = self.idle_limit?;
        let ticks = members.iter().map(|member| member.ticks).sum();
        let used = self.ticks.replace(ticks) != Some(ticks);
        if used || members.is_empty() || members.iter().any(|member| member.activity == Activity::AtWork) {
            self.quiet = Some(now);
        }
        let quiet = now.saturating_duration_since(self.quiet?);
        let why = format!(
            "input has waited for {} ms, and for {} ms it has read, accepted and said nothing and used no processor time",
            waits.as_millis(),
            quiet.as_millis()
        );
        (waits >= limit && quiet >= limit).then_some(Hang { processes: Vec::new(), why, silent: quiet })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    const SECOND: Duration = Duration::from_secs(1);

    /// An application that is looked at in simulated time.
    struct Simulated {
        progress: Progress,
        now: Instant,
        began: Instant,
        lines: Vec<Line>,
        said: u64,
        members: Vec<Member>,
    }

    fn member(pid: u32, activity: Activity) -> Member {
        Member { pid, born: 1, activity, ticks: 100 }
    }

    fn line(id: u64, unread: u64) -> Line {
        Line { id: ConnectionId(id), unread, given: unread, said: 0, accepted: true }
    }

    impl Simulated {
        fn new(progress_ms: Option<u64>) -> Simulated {
            let health = Health { progress_ms, ..Health::default() };
            let now = Instant::now();
            let members = vec![member(1, Activity::Waiting), member(2, Activity::Waiting)];
            Simulated { progress: Progress::new(&health), now, began: now, lines: Vec::new(), said: 0, members }
        }

        fn look(&mut self) -> Option<Hang> {
            self.look_after(self.progress.pause().unwrap())
        }

        fn look_after(&mut self, pause: Duration) -> Option<Hang> {
            self.now += pause;
            if !self.progress.looked(&self.lines, self.said, self.now) {
                return None;
            }
            self.progress.judge(&self.members, self.now)
        }

        /// Looks for so long while nothing happens; the first verdict, and after what time it came.
        fn stands(&mut self, time: Duration) -> Option<(Hang, Duration)> {
            let from = self.now;
            while self.now < from + time {
                if let Some(hang) = self.look() {
                    return Some((hang, self.now - from));
                }
            }
            None
        }
    }

    #[test]
    fn a_stopped_server_hangs_when_input_waits_and_not_before() {
        let mut simulated = Simulated::new(None);
        simulated.members.iter_mut().for_each(|member| member.activity = Activity::Stopped);
        assert_eq!(simulated.stands(10 * SECOND), None, "nobody wants anything of it");
        simulated.lines = vec![line(1, 700)];
        let (hang, after) = simulated.stands(10 * SECOND).unwrap();
        assert_eq!(hang.processes, [1, 2]);
        assert!(after >= SECOND && after <= 2 * SECOND, "{after:?}");
        assert!(hang.silent >= SECOND && hang.silent <= after);
    }

    #[test]
    fn a_connection_that_is_not_accepted_waits_too() {
        let mut simulated = Simulated::new(None);
        simulated.members[0].activity = Activity::Stopped;
        simulated.lines = vec![Line { accepted: false, ..line(1, 0) }];
        assert_eq!(simulated.stands(10 * SECOND).unwrap().0.processes, [1]);
    }

    #[test]
    fn of_several_processes_the_stopped_one_is_meant_while_the_others_work() {
        let mut simulated = Simulated::new(None);
        simulated.members[1].activity = Activity::Stopped;
        simulated.lines = vec![line(1, 700), line(2, 10)];
        let mut found = None;
        while found.is_none() && simulated.now - simulated.began < 10 * SECOND {
            // The other one reads, answers and computes all the time.
            simulated.said += 100;
            simulated.members[0].ticks += 10;
            (simulated.lines[1].given, simulated.lines[1].said) = (simulated.lines[1].given + 50, simulated.said);
            found = simulated.look();
        }
        assert_eq!(found.unwrap().processes, [2]);
    }

    #[test]
    fn who_is_stopped_for_a_moment_or_now_and_then_does_not_hang() {
        let mut simulated = Simulated::new(None);
        simulated.lines = vec![line(1, 700)];
        assert_eq!(simulated.stands(10 * SECOND), None, "it is not stopped, and may wait for something else");
        for _ in 0..20 {
            simulated.members[0].activity = Activity::Stopped;
            assert_eq!(simulated.stands(SECOND / 2), None);
            simulated.members[0].activity = Activity::Waiting;
            assert_eq!(simulated.look(), None);
        }
        // Another one with the number of the first.
        for born in 0..20 {
            simulated.members[0] = Member { born, ..member(1, Activity::Stopped) };
            assert_eq!(simulated.stands(SECOND / 2), None);
        }
    }

    #[test]
    fn without_a_word_in_the_service_file_a_server_may_wait_for_ever() {
        let mut simulated = Simulated::new(None);
        simulated.lines = vec![line(1, 700), line(2, 700)];
        assert_eq!(simulated.stands(3600 * SECOND), None);
    }

    #[test]
    fn no_progress_for_so_long_is_a_hang_where_the_service_says_so() {
        let mut simulated = Simulated::new(Some(2000));
        assert_eq!(simulated.stands(10 * SECOND), None, "nothing waits");
        simulated.lines = vec![line(1, 700)];
        let (hang, after) = simulated.stands(10 * SECOND).unwrap();
        assert!(hang.processes.is_empty(), "all of it");
        assert!(after >= 2 * SECOND && after <= 3 * SECOND, "{after:?}");
    }

    /// What an application does.
    type Change = fn(&mut Simulated);

    #[test]
    fn any_progress_of_a_service_is_progress() {
        let changes: [(&str, Change); 7] = [
            ("says", |simulated| simulated.said += 1),
            ("computes", |simulated| simulated.members[1].ticks += 1),
            ("waits for a processor or a disk", |simulated| simulated.members[1].activity = Activity::AtWork),
            ("reads", |simulated| simulated.lines[1].unread -= 1),
            ("reads and is given more", |simulated| simulated.lines[1].given += 5),
            ("reads all of a line", |simulated| simulated.lines[1].id.0 += 1),
            ("accepts", |simulated| simulated.lines[1].accepted ^= true),
        ];
        for (what, change) in changes {
            let mut simulated = Simulated::new(Some(2000));
            simulated.lines = vec![line(1, 700), line(2, 100_000)];
            for _ in 0..20 {
                assert_eq!(simulated.stands(3 * SECOND / 2), None, "{what}");
                change(&mut simulated);
                assert_eq!(simulated.look(), None, "{what}");
                simulated.members.iter_mut().for_each(|member| member.activity = Activity::Waiting);
            }
            assert!(simulated.stands(4 * SECOND).is_some(), "{what}, and then no more");
        }
    }

    #[test]
    fn what_is_given_to_a_server_is_no_progress_of_its_own() {
        let mut simulated = Simulated::new(Some(2000));
        simulated.lines = vec![line(1, 700)];
        let hang = (0..40).find_map(|_| {
            // Memory for ten bytes is more than ten bytes.
            simulated.lines[0].given += 10;
            simulated.lines[0].unread += 768;
            simulated.look()
        });
        assert!(hang.is_some());
    }

    #[test]
    fn time_in_which_nobody_looked_proves_nothing() {
        let mut simulated = Simulated::new(Some(1000));
        simulated.members[0].activity = Activity::Stopped;
        simulated.lines = vec![line(1, 700)];
        for _ in 0..10 {
            assert_eq!(simulated.stands(SECOND / 2), None);
            assert_eq!(simulated.look_after(60 * SECOND), None);
        }
        assert!(simulated.stands(2 * SECOND).is_some());
    }

    #[test]
    fn who_makes_progress_never_hangs_and_who_does_not_always_does_whatever_the_schedule() {
        let seed = std::env::var("ARMOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
        println!("ARMOR_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..300 {
            let limit = random.random_range(200..5000);
            let mut simulated = Simulated::new(Some(limit));
            simulated.lines = (1..random.random_range(2..9)).map(|id| line(id, random.random_range(1..100_000))).collect();
            let limit = Duration::from_millis(limit);
            let pause = simulated.progress.pause().unwrap();
            let mut moved = simulated.now;
            let late = |random: &mut StdRng| pause.mul_f64(random.random_range(0.5..3.9));
            for _ in 0..500 {
                let next = late(&mut random);
                // Something moves before it is too late, seldom enough.
                if simulated.now + next >= moved + limit || random.random_bool(0.02) {
                    moved = simulated.now + next;
                    let at = random.random_range(0..simulated.lines.len());
                    match random.random_range(0..3) {
                        0 => simulated.said += 1,
                        1 => simulated.members[0].ticks += 1,
                        _ => simulated.lines[at].given += 1,
                    }
                }
                assert_eq!(simulated.look_after(next), None);
            }
            let stands = simulated.now;
            while simulated.look_after(late(&mut random)).is_none() {
                assert!(simulated.now < stands + limit + 12 * pause, "not found within {:?} of {limit:?}", simulated.now - stands);
            }
        }
    }
}
