//! Whose turn it is to send: uploads one after the other, the most urgent first, a chunk at a time. And, a little
//! earlier, whose turn it is to read a chunk from disk: so that few of them are in memory.
//!
//! Streams that share a link all end late, together, and then leave it idle while the hub commits them. In turn, one is
//! committed while the next is sent. QUIC's own priorities come too late for that: by then the bytes are in the buffer.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Who goes first: the highest priority, then the oldest recording.
pub(super) type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
struct Waiting {
    /// Turns that nobody has.
    free: usize,
    /// With a number, so that two of one rank are two.
    waiting: BTreeMap<(Rank, u64), oneshot::Sender<Turn>>,
    count: u64,
}

/// The turns of a connection; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Mutex<Waiting>>);

/// The right to go on; dropped, it goes to the first of those that wait.
#[derive(Debug)]
pub(super) struct Turn(Option<Turns>);

impl Turns {
    /// So many may have a turn at a time.
    pub(super) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Waiting { free: places, waiting: BTreeMap::new(), count: 0 })))
    }

    /// Waits until there is a turn that nobody of a higher rank wants.
    pub(super) async fn wait(&self, rank: Rank) -> Turn {
        let turn = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (sender, turn) = oneshot::channel();
            state.count += 1;
            let number = state.count;
            state.waiting.insert((rank, number), sender);
            turn
        };
        // The sender lives in the queue until it is used, and the queue as long as we do.
        turn.await.expect("a turn is handed on, never dropped")
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        let mut turn = Self(Some(turns.clone()));
        loop {
            // Locked for this alone: a turn that nobody takes is dropped, and locks again.
            let first = {
                let mut state = turns.lock();
                let first = state.waiting.pop_first();
                state.free += usize::from(first.is_none());
                first
            };
            let Some((_, sender)) = first else {
                turn.0 = None;
                return;
            };
            match sender.send(turn) {
                Ok(()) => return,
                // Whoever waited is gone.
                Err(back) => turn = back,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn the_most_urgent_goes_first_then_the_oldest() {
        let turns = Turns::new(1);
        let first = turns.wait((Reverse(0), 9)).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for (priority, ordinal) in [(0, 3), (10, 8), (0, 1), (10, 7)] {
            let (turns, order) = (turns.clone(), Arc::clone(&order));
            tasks.spawn(async move {
                let _turn = turns.wait((Reverse(priority), ordinal)).await;
                order.lock().unwrap().push((priority, ordinal));
            });
        }
        tokio::task::yield_now().await;
        assert!(order.lock().unwrap().is_empty(), "one at a time");
        drop(first);
        tasks.join_all().await;
        assert_eq!(*order.lock().unwrap(), [(10, 7), (10, 8), (0, 1), (0, 3)]);
        assert_eq!(turns.lock().free, 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn as_many_have_a_turn_as_there_are() {
        let turns = Turns::new(2);
        let first = turns.wait((Reverse(0), 1)).await;
        let _second = turns.wait((Reverse(0), 2)).await;
        let third = turns.wait((Reverse(0), 3));
        let mut third = std::pin::pin!(third);
        assert!(futures_now(third.as_mut()).await.is_none());
        drop(first);
        let _third = third.await;
        assert_eq!(turns.lock().free, 0);
    }

    /// What a future has at once.
    async fn futures_now<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_gives_up_waiting_does_not_keep_the_turn() {
        let turns = Turns::new(1);
        let first = turns.wait((Reverse(0), 1)).await;
        let mut gone = JoinSet::new();
        let theirs = turns.clone();
        gone.spawn(async move { drop(theirs.wait((Reverse(0), 2)).await) });
        tokio::task::yield_now().await;
        gone.shutdown().await;
        drop(first);
        let _turn = turns.wait((Reverse(0), 3)).await;
    }
}
