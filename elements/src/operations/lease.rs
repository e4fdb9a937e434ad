//! The clock that leases are told by.

use std::time::Duration;

/// Time since this machine was booted, with the time that it was suspended: one clock for all processes of a node and all their lives.
#[must_use]
pub fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}
