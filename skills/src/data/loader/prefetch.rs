//! Threads that make batches ahead of whoever takes them, in order.
//!
//! A thread takes the next number, and waits while it is too far ahead of the caller: at most `ahead` batches are made
//! or under way. It does not know what a batch is made of.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::{LoaderError, WindowBatch};

type Made = Result<WindowBatch, LoaderError>;

/// Batches in their order, without end; after an error there is nothing more.
///
/// Dropping it stops the threads, each at the end of its batch.
#[derive(Debug)]
pub struct Batches {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    failed: bool,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// A batch was made, or a thread ended.
    made: Condvar,
    /// A batch was taken, or nobody wants more.
    taken: Condvar,
    ahead: u64,
}

#[derive(Debug)]
struct State {
    /// The number that the next free thread makes.
    next: u64,
    /// The number that the caller takes next.
    wanted: u64,
    ready: BTreeMap<u64, Made>,
    stopped: bool,
    panicked: bool,
}

impl Batches {
    pub(super) fn start(
        first: u64,
        threads: usize,
        ahead: usize,
        make: impl Fn(u64) -> Made + Clone + Send + 'static,
    ) -> Result<Self, LoaderError> {
        let state = State { next: first, wanted: first, ready: BTreeMap::new(), stopped: false, panicked: false };
        let queue =
            Queue { state: Mutex::new(state), made: Condvar::new(), taken: Condvar::new(), ahead: ahead as u64 };
        let mut batches = Self { queue: Arc::new(queue), threads: Vec::with_capacity(threads), failed: false };
        for index in 0..threads {
            let (queue, make) = (Arc::clone(&batches.queue), make.clone());
            let spawned = Builder::new().name(format!("loader-{index}")).spawn(move || queue.work(make));
            batches.threads.push(spawned.map_err(|source| LoaderError::Thread { source })?);
        }
        Ok(batches)
    }
}

impl Iterator for Batches {
    type Item = Made;

    fn next(&mut self) -> Option<Made> {
        if self.failed {
            return None;
        }
        let made = self.queue.take();
        self.failed = made.is_err();
        Some(made)
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.queue.lock().stopped = true;
        self.queue.taken.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was passed on by `take`, or nobody is there to see it.
            drop(thread.join());
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread's life.
    fn work(&self, make: impl Fn(u64) -> Made) {
        let _guard = Guard(self);
        while let Some(number) = self.claim() {
            let made = make(number);
            self.lock().ready.insert(number, made);
            self.made.notify_all();
        }
    }

    fn claim(&self) -> Option<u64> {
        let mut state = self.lock();
        while !state.stopped && state.next - state.wanted >= self.ahead {
            state = self.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let number = state.next;
        state.next += 1;
        (!state.stopped).then_some(number)
    }

    fn take(&self) -> Made {
        let mut state = self.lock();
        loop {
            let wanted = state.wanted;
            if let Some(made) = state.ready.remove(&wanted) {
                state.wanted += 1;
                self.taken.notify_all();
                return made;
            }
            assert!(!state.panicked, "a thread of the loader panicked; its message is above");
            state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells the caller when a thread is gone for good, so that nobody waits for its batch.
struct Guard<'a>(&'a Queue);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().panicked = true;
            self.0.made.notify_all();
        }
    }
}
