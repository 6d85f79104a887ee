//! What one asker may use of the server: so many questions in a second, so many at once. A guest that asks too
//! much is not heard, and takes nothing from others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use banger_domain::{
    dns::table::{Asker, Table},
    net::subnet::Slot,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Questions in a second, and how many of them may come at once. A package manager that resolves a
/// thousand names does not notice.
const GUEST: Rate = Rate { per_second: 500.0, at_once: 1000.0 };
/// The host's resolver asks for all of the host's users.
const HOST: Rate = Rate { per_second: 10_000.0, at_once: 10_000.0 };
/// Questions that are passed on.
const FORWARDS: Rate = Rate { per_second: 100.0, at_once: 400.0 };
/// Questions passed on that wait for an answer: of one guest, and of all.
const FORWARDS_OF_ONE: usize = 32;
const FORWARDS_OF_ALL: usize = 256;
/// Connections that are open: of one asker, and of all.
const CONNECTIONS_OF_ONE: usize = 8;
const CONNECTIONS_OF_ALL: usize = 256;

/// Who uses something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum User {
    /// The host.
    Host,
    /// The guest at this place, whatever address of the two it asks from.
    Guest(Slot),
}

impl User {
    pub(super) fn of(asker: Asker<'_>) -> Self {
        match asker {
            Asker::Host => User::Host,
            Asker::Guest(guest) => User::Guest(guest.slot),
        }
    }
}

/// What may be used while this is held.
pub(super) struct Permit(
    #[expect(dead_code, reason = "it is given back when dropped")] [OwnedSemaphorePermit; 2],
);

/// What everybody uses.
pub(super) struct Shares {
    users: Mutex<HashMap<User, Share>>,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

struct Share {
    questions: Bucket,
    forwards: Bucket,
    forwarding: Arc<Semaphore>,
    connected: Arc<Semaphore>,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            users: Mutex::default(),
            forwards: Arc::new(Semaphore::new(FORWARDS_OF_ALL)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_OF_ALL)),
        }
    }
}

impl Shares {
    /// Whether a question may be heard.
    pub(super) fn may_ask(&self, user: User) -> bool {
        self.with(user, |share| share.questions.take(Instant::now()))
    }

    /// The right to pass a question on.
    pub(super) fn forward(&self, user: User) -> Option<Permit> {
        let own = self
            .with(user, |share| share.forwards.take(Instant::now()).then(|| Arc::clone(&share.forwarding)))?;
        both(own, &self.forwards)
    }

    /// The right to keep a connection open.
    pub(super) fn connect(&self, user: User) -> Option<Permit> {
        both(self.with(user, |share| Arc::clone(&share.connected)), &self.connections)
    }

    /// Forgets the guests that are no longer there.
    pub(super) fn retain(&self, names: &Table) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|user, _| match user {
            User::Host => true,
            User::Guest(slot) => names.has_guest_at(*slot),
        });
    }

    fn with<T>(&self, user: User, work: impl FnOnce(&mut Share) -> T) -> T {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        work(users.entry(user).or_insert_with(|| Share::new(user)))
    }
}

impl Share {
    fn new(user: User) -> Self {
        let rate = if user == User::Host { HOST } else { GUEST };
        // The host has as much as all guests: its clients are not told apart.
        let connections = if user == User::Host { CONNECTIONS_OF_ALL / 2 } else { CONNECTIONS_OF_ONE };
        let now = Instant::now();
        Self {
            questions: Bucket::full(rate, now),
            forwards: Bucket::full(FORWARDS, now),
            forwarding: Arc::new(Semaphore::new(FORWARDS_OF_ONE)),
            connected: Arc::new(Semaphore::new(connections)),
        }
    }
}

fn both(own: Arc<Semaphore>, all: &Arc<Semaphore>) -> Option<Permit> {
    let own = own.try_acquire_owned().ok()?;
    Some(Permit([own, Arc::clone(all).try_acquire_owned().ok()?]))
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    at_once: f64,
}

/// A bucket that fills at a rate and from which each question takes one.
struct Bucket {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.at_once, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * self.rate.per_second).min(self.rate.at_once);
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_what_it_has_and_then_what_comes() {
        let now = Instant::now();
        let mut bucket = Bucket::full(Rate { per_second: 10.0, at_once: 3.0 }, now);
        let taken = |bucket: &mut Bucket, at| (0..10).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(&mut bucket, now), 3);
        assert_eq!(taken(&mut bucket, now + Duration::from_millis(250)), 2);
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(60)), 3, "it does not fill beyond the brim");
        assert_eq!(taken(&mut bucket, now), 0, "time that goes back gives nothing");
    }

    #[test]
    fn one_guest_cannot_use_what_belongs_to_others() {
        let shares = Shares::default();
        let (greedy, modest) = (User::Guest(Slot(1)), User::Guest(Slot(2)));
        let held: Vec<Permit> = (0..1000).map_while(|_| shares.forward(greedy)).collect();
        assert_eq!(held.len(), FORWARDS_OF_ONE);
        assert!(shares.forward(modest).is_some());
        let connections: Vec<Permit> = (0..1000).map_while(|_| shares.connect(greedy)).collect();
        assert_eq!(connections.len(), CONNECTIONS_OF_ONE);
        assert!(shares.connect(modest).is_some());
        while shares.may_ask(greedy) {}
        assert!(shares.may_ask(modest));
        drop(held);
        assert!(shares.forward(greedy).is_some());
    }
}
