//! What the simulated times of this element's tests have in common: a node, its timing, and chance that a seed repeats.

use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use armor_proto::ids::ArmorId;

use super::watch::Timing;

pub(super) const NODE: ArmorId = ArmorId(7);
pub(super) const TIMING: Timing =
    Timing { interval: Duration::from_millis(100), limit: Duration::from_millis(300), busy: Duration::from_millis(3000) };

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Seeds of a test: as many as are quick, one of them new each time; a failing one is printed.
pub(super) fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let new = std::hash::RandomState::new().build_hasher().finish() >> 1;
    (0..count).chain([new])
}
