//! A fair queue with wake-ups: [`FairQueue`] decides whose turn it is, and this wakes the waiting tasks.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use banger_domain::{
    fair_queue::{Bounds, FairQueue, Full},
    id::Uid,
};
use tokio::sync::oneshot;

/// A fair queue. Clones share one queue.
#[derive(Clone)]
pub(super) struct Queue {
    state: Arc<Mutex<State>>,
}

struct State {
    queue: FairQueue,
    waiting: HashMap<u64, oneshot::Sender<()>>,
    next_number: u64,
}

impl State {
    /// Wakes the requests whose turn it is.
    fn serve(&mut self) {
        while let Some(number) = self.queue.pop() {
            self.wake(number);
        }
    }

    fn wake(&mut self, number: u64) {
        // A request that gave up has dropped its ticket.
        if let Some(waiting) = self.waiting.remove(&number) {
            let _ = waiting.send(());
        }
    }
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        let state = State { queue: FairQueue::new(bounds), waiting: HashMap::new(), next_number: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Adds a user's request to the queue.
    pub(super) fn join(&self, user: Uid) -> Result<Ticket, Full> {
        let mut state = self.lock();
        let number = state.next_number;
        state.queue.push(user, number)?;
        state.next_number += 1;
        let (wake, turn) = oneshot::channel();
        state.waiting.insert(number, wake);
        state.serve();
        Ok(Ticket { queue: self.clone(), user, number, turn: Some(turn) })
    }

    /// Serves a waiting request at once, because a running one needs it.
    pub(super) fn promote(&self, user: Uid, number: u64) {
        let mut state = self.lock();
        if state.queue.promote(user, number) {
            state.wake(number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in the queue, then its slot. Dropping the ticket frees the slot.
pub(super) struct Ticket {
    queue: Queue,
    user: Uid,
    number: u64,
    turn: Option<oneshot::Receiver<()>>,
}

impl Ticket {
    /// Returns the number that [`Queue::promote`] takes.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Returns whether the request is still waiting.
    pub(super) fn is_waiting(&mut self) -> bool {
        if self.turn.as_mut().is_some_and(|turn| turn.try_recv().is_ok()) {
            self.turn = None;
        }
        self.turn.is_some()
    }

    /// Waits for the request's turn. Returns at once after that. Safe to cancel and call again.
    pub(super) async fn turn(&mut self) {
        if let Some(turn) = &mut self.turn {
            // The sender is only dropped by sending.
            let _ = turn.await;
            self.turn = None;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.queue.remove(self.user, self.number);
        state.waiting.remove(&self.number);
        state.serve();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt;

    use super::*;

    const ALICE: Uid = Uid(1);
    const BOB: Uid = Uid(2);

    #[tokio::test]
    async fn a_waiting_request_is_woken_when_a_place_is_free() {
        let queue = Queue::new(Bounds { slots: 2, slots_per_user: 1, waiting_per_user: 1 });
        let mut first = queue.join(ALICE).unwrap();
        let mut second = queue.join(ALICE).unwrap();
        assert!(queue.join(ALICE).is_err());
        first.turn().await;
        assert!(!first.is_waiting() && second.is_waiting());
        assert!(second.turn().now_or_never().is_none());
        queue.join(BOB).unwrap().turn().await;
        drop(first);
        second.turn().await;
        second.turn().await;
    }

    #[tokio::test]
    async fn dropping_a_waiting_ticket_holds_up_nobody() {
        let queue = Queue::new(Bounds { slots: 1, slots_per_user: 1, waiting_per_user: 9 });
        let held = queue.join(ALICE).unwrap();
        let given_up = queue.join(ALICE).unwrap();
        let mut last = queue.join(BOB).unwrap();
        drop(given_up);
        drop(held);
        last.turn().await;
        let state = queue.lock();
        assert!(state.waiting.is_empty());
    }

    #[tokio::test]
    async fn a_promoted_request_is_served_at_once() {
        let queue = Queue::new(Bounds { slots: 1, slots_per_user: 1, waiting_per_user: 9 });
        let _held = queue.join(ALICE).unwrap();
        let mut needed = queue.join(ALICE).unwrap();
        queue.promote(ALICE, needed.number());
        needed.turn().await;
    }
}
