//! Whether an interrupted wait may go on.
//!
//! The kernel restarts `connect` after a handler with `SA_RESTART` and gives EINTR after one without; a wait with a
//! time limit always gives EINTR. Which signal it was cannot be asked, so: when every handler of the
//! process has `SA_RESTART`, the wait goes on.

/// No installed handler is one that interrupts system calls.
pub(crate) fn all_restart() -> bool {
    (1..=64).filter_map(crate::sys::handler_flags).all(|flags| flags & libc::SA_RESTART != 0)
}
