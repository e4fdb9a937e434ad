//! The way from one thread to the task of another: a bounded channel that wakes the task.
//!
//! Invariant: what was sent is received; a wake-up is never lost, for [`Notify`] remembers one that nobody waited for.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use tokio::sync::Notify;

/// Items taken without a pause for the thread's other tasks.
const IN_A_ROW: u32 = 64;

/// Where items go in.
pub(crate) struct Entrance<T> {
    sender: Sender<T>,
    wake: Arc<Notify>,
}

impl<T> Clone for Entrance<T> {
    fn clone(&self) -> Self {
        Entrance { sender: self.sender.clone(), wake: Arc::clone(&self.wake) }
    }
}

/// Where items come out.
pub(crate) struct Exit<T> {
    receiver: Receiver<T>,
    wake: Arc<Notify>,
    in_a_row: u32,
}

/// The item was not taken: the other end is gone, or (for [`Entrance::send_now`]) there is no room.
pub(crate) struct NotSent;

/// A way for at most `bound` items at a time.
pub(crate) fn crossing<T>(bound: usize) -> (Entrance<T>, Exit<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(bound);
    let wake = Arc::new(Notify::new());
    (Entrance { sender, wake: Arc::clone(&wake) }, Exit { receiver, wake, in_a_row: 0 })
}

impl<T> Entrance<T> {
    /// Sends an item; this thread waits while there is no room.
    pub(crate) fn send(&self, item: T) -> Result<(), NotSent> {
        self.sender.send(item).map_err(|_| NotSent)?;
        self.wake.notify_one();
        Ok(())
    }

    /// Sends an item without waiting.
    pub(crate) fn send_now(&self, item: T) -> Result<(), NotSent> {
        self.sender.try_send(item).map_err(|_| NotSent)?;
        self.wake.notify_one();
        Ok(())
    }
}

impl<T> Exit<T> {
    /// Waits for the next item, without blocking the thread. When all entrances are gone it waits for ever: the task that waits
    /// is dropped with its thread's event loop.
    pub(crate) async fn next(&mut self) -> T {
        if self.in_a_row >= IN_A_ROW {
            self.in_a_row = 0;
            tokio::task::yield_now().await;
        }
        loop {
            match self.receiver.try_recv() {
                Ok(item) => {
                    self.in_a_row += 1;
                    return item;
                }
                Err(TryRecvError::Empty) => {
                    self.in_a_row = 0;
                    self.wake.notified().await;
                }
                Err(TryRecvError::Disconnected) => std::future::pending().await,
            }
        }
    }
}
