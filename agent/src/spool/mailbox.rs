//! The spool's inbox: bounded by bytes, so that camera steps and joint angles are bounded alike.
//!
//! When it is full, senders wait: the disk is then slower than the robot records, and the socket carries the
//! pressure back to the control program. At 1 kB a step and 50 Hz it takes a stall of minutes to fill.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait for the spool's thread.
pub(crate) const MAILBOX_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a message takes beside its bytes.
const MESSAGE_BYTES: usize = 128;

#[derive(Debug)]
struct Queue<T> {
    messages: VecDeque<(T, usize)>,
    bytes: usize,
    closed: bool,
}

/// A queue with many senders and one receiver.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: Mutex<Queue<T>>,
    not_empty: Condvar,
    not_full: Condvar,
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        let queue = Queue { messages: VecDeque::new(), bytes: 0, closed: false };
        Self { queue: Mutex::new(queue), not_empty: Condvar::new(), not_full: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message of about `bytes` in, waiting for room; gives it back when the mailbox is closed.
    pub(crate) fn send(&self, message: T, bytes: usize) -> Result<(), T> {
        let queue = self.lock();
        let full = |queue: &mut Queue<T>| {
            !queue.closed && queue.bytes > 0 && queue.bytes + bytes + MESSAGE_BYTES > MAILBOX_BYTES_MAX
        };
        let queue = self.not_full.wait_while(queue, full).unwrap_or_else(PoisonError::into_inner);
        self.put(queue, message, bytes)
    }

    /// Puts a message in whether or not there is room, for who may not wait: the caller bounds how many there are.
    pub(crate) fn send_at_once(&self, message: T, bytes: usize) -> Result<(), T> {
        self.put(self.lock(), message, bytes)
    }

    fn put(&self, mut queue: MutexGuard<'_, Queue<T>>, message: T, bytes: usize) -> Result<(), T> {
        if queue.closed {
            return Err(message);
        }
        let bytes = bytes + MESSAGE_BYTES;
        queue.bytes += bytes;
        queue.messages.push_back((message, bytes));
        drop(queue);
        self.not_empty.notify_one();
        Ok(())
    }

    /// Takes everything that is there, waiting up to `patience` (or for ever) for the first message.
    ///
    /// Empty after the wait; `None` when the mailbox is closed and empty.
    pub(crate) fn receive(&self, patience: Option<Duration>) -> Option<VecDeque<(T, usize)>> {
        let mut queue = self.lock();
        if queue.messages.is_empty() && !queue.closed {
            queue = match patience {
                Some(patience) => {
                    self.not_empty.wait_timeout(queue, patience).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.not_empty.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
        if queue.messages.is_empty() && queue.closed {
            return None;
        }
        queue.bytes = 0;
        let messages = std::mem::take(&mut queue.messages);
        drop(queue);
        self.not_full.notify_all();
        Some(messages)
    }

    /// Refuses further messages; those inside are still received.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.not_empty.notify_all();
        self.not_full.notify_all();
    }
}
