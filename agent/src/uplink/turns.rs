//! Whose turn it is to send: uploads one after the other, the most urgent first, a chunk at a time.
//!
//! Streams that share a link all end late, together, and then leave it idle while the hub commits them. In turn, one is
//! committed while the next is sent. QUIC's own priorities come too late for that: by then the bytes are in the buffer.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Who goes first: the highest priority, then the oldest recording.
pub(super) type Rank = (Reverse<i32>, u64);

#[derive(Debug, Default)]
struct Waiting {
    taken: bool,
    /// With a number, so that two of one rank are two.
    waiting: BTreeMap<(Rank, u64), oneshot::Sender<Turn>>,
    count: u64,
}

/// The one turn of a connection; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Waiting>>);

/// The right to send; dropped, it goes to the first of those that wait.
#[derive(Debug)]
pub(super) struct Turn(Option<Turns>);

impl Turns {
    /// Waits until nobody of a higher rank wants to send.
    pub(super) async fn wait(&self, rank: Rank) -> Turn {
        let turn = {
            let mut state = self.lock();
            if !state.taken {
                state.taken = true;
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
                state.taken = first.is_some();
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
        let turns = Turns::default();
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
        assert!(!turns.lock().taken);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_gives_up_waiting_does_not_keep_the_turn() {
        let turns = Turns::default();
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
