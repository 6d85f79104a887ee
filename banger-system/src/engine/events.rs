//! The changes that the engine publishes, in order, in a queue of bounded length.
//!
//! The engine never waits for its receiver: a client that does not read its signals must not hold up a sandbox. When the
//! queue is full, changes are dropped until the receiver has read the rest. Then it gets [`Event::Lost`] in their place,
//! and compares what it has published with the engine's current objects.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::view::Event;

/// How many changes may wait: some hundred starts at once. Each holds the snapshot that it replaces.
const CAPACITY: usize = 1024;

/// Returns the two ends of a queue.
pub(super) fn queue() -> (EventSender, Events) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let lost = Arc::new(AtomicBool::new(false));
    (EventSender { sender, lost: Arc::clone(&lost) }, Events { receiver, lost })
}

/// The engine's end.
#[derive(Clone)]
pub(super) struct EventSender {
    sender: mpsc::Sender<Event>,
    /// Whether changes were dropped that the receiver does not know of yet.
    lost: Arc<AtomicBool>,
}

impl EventSender {
    /// Sends a change. The object must have changed already: a receiver that missed the event looks at it. During
    /// shutdown the receiver may be gone, and the event is dropped.
    pub(super) fn send(&self, event: Event) {
        // After a gap, everything up to the comparison is covered by it.
        if self.lost.load(Ordering::SeqCst) {
            return;
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send(event) {
            self.lose();
        }
    }

    /// Makes the receiver see a gap.
    fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
        // The receiver may have read all of the queue meanwhile, and wait. If the queue is still full, it comes to the
        // flag.
        let _ = self.sender.try_send(Event::Lost);
        tracing::warn!("too many changes wait to be published; clients get only the last of each object");
    }
}

/// The receiver's end.
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    lost: Arc<AtomicBool>,
}

impl Events {
    /// Returns the next change; `None` if the engine is gone.
    pub async fn recv(&mut self) -> Option<Event> {
        match self.try_recv() {
            Some(event) => Some(event),
            None => self.receiver.recv().await.map(|event| self.received(event)),
        }
    }

    /// Returns the next change, if there is one.
    pub fn try_recv(&mut self) -> Option<Event> {
        match self.receiver.try_recv() {
            Ok(event) => Some(self.received(event)),
            // Changes are sent again from here on, and the receiver's look at the objects comes after that. So every
            // change is in what it sees, or in the queue.
            Err(_) => self.lost.swap(false, Ordering::SeqCst).then_some(Event::Lost),
        }
    }

    /// Ends the gap that an event announces.
    fn received(&self, event: Event) -> Event {
        if matches!(event, Event::Lost) {
            self.lost.store(false, Ordering::SeqCst);
        }
        event
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{sync::Arc, time::Duration};

    use banger_domain::id::{JobId, Timestamp, Uid};
    use banger_proto::size::Bytes;

    use super::*;
    use crate::engine::view::{JobKind, JobView};

    fn job(n: usize) -> Event {
        Event::JobAdded(Arc::new(JobView {
            id: JobId::from_bits(n as u128),
            kind: JobKind::VmStart,
            owner: Uid::ROOT,
            objects: Vec::new(),
            stage: "",
            stage_index: 0,
            stage_count: 0,
            message: String::new(),
            bytes_done: Bytes(0),
            bytes_total: Bytes(0),
            facts: Vec::new(),
            started_at: Timestamp::default(),
            finished_at: Timestamp::default(),
            outcome: None,
        }))
    }

    #[tokio::test]
    async fn a_full_queue_keeps_its_order_and_ends_with_a_gap() {
        let (sender, mut events) = queue();
        for n in 0..CAPACITY + 100 {
            sender.send(job(n));
        }
        for n in 0..CAPACITY {
            let event = events.recv().await;
            assert!(
                matches!(event, Some(Event::JobAdded(view)) if view.id == JobId::from_bits(n as u128)),
                "{n}"
            );
            // There is room, but after a gap only a comparison helps.
            sender.send(job(0));
        }
        assert!(matches!(events.recv().await, Some(Event::Lost)));
        assert!(events.try_recv().is_none());
        sender.send(job(7));
        assert!(matches!(events.recv().await, Some(Event::JobAdded(_))));
        drop(sender);
        assert!(events.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_gap_wakes_a_receiver_that_has_read_everything() {
        let (sender, mut events) = queue();
        let waiting = tokio::spawn(async move { (events.recv().await, events) });
        tokio::task::yield_now().await;
        // The queue was full a moment ago.
        sender.lose();
        let waited = tokio::time::timeout(Duration::from_secs(120), waiting).await;
        let (event, mut events) = waited.unwrap().unwrap();
        assert!(matches!(event, Some(Event::Lost)));
        sender.send(job(7));
        assert!(matches!(events.recv().await, Some(Event::JobAdded(_))));
    }
}
