//! Quotas of clients: questions per second, and questions and connections at a time. A guest over its quota is
//! ignored, and takes nothing from others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use banger_domain::{
    dns::{
        limits::{QUESTIONS, QUESTIONS_OF_HOST, Rate},
        table::{Client, Table},
    },
    net::subnet::Slot,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Forwarded questions.
const FORWARDS: Rate = Rate { per_second: 100, at_once: 400 };
/// Forwarded questions that wait for an answer: of one guest, and of all.
const FORWARDS_OF_ONE: usize = 32;
const FORWARDS_OF_ALL: usize = 256;
/// Questions that wait for a sandbox to wake: of one client, and of all. Each client repeats its question meanwhile.
const WAKES_OF_ONE: usize = 32;
const WAKES_OF_ALL: usize = 256;
/// Open connections: of one client, and of all.
const CONNECTIONS_OF_ONE: usize = 8;
const CONNECTIONS_OF_ALL: usize = 256;

/// Who has a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum User {
    /// The host.
    Host,
    /// The guest with this slot, whichever of its two addresses it uses.
    Guest(Slot),
}

impl User {
    pub(super) fn of(client: Client<'_>) -> Self {
        match client {
            Client::Host => User::Host,
            Client::Guest(guest) => User::Guest(guest.slot),
        }
    }
}

/// A permit, valid while it is held.
pub(super) struct Permit(
    #[expect(dead_code, reason = "it is given back when dropped")] [OwnedSemaphorePermit; 2],
);

/// The quotas of all clients.
pub(super) struct Quotas {
    users: Mutex<HashMap<User, Quota>>,
    forwards: Arc<Semaphore>,
    wakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

struct Quota {
    questions: Bucket,
    forwards: Bucket,
    forwarding: Arc<Semaphore>,
    waking: Arc<Semaphore>,
    connected: Arc<Semaphore>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            users: Mutex::default(),
            forwards: Arc::new(Semaphore::new(FORWARDS_OF_ALL)),
            wakes: Arc::new(Semaphore::new(WAKES_OF_ALL)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_OF_ALL)),
        }
    }
}

impl Quotas {
    /// Returns whether a question may be handled.
    pub(super) fn may_query(&self, user: User) -> bool {
        self.with(user, |quota| quota.questions.take(Instant::now()))
    }

    /// Returns a permit to forward a question.
    pub(super) fn forward(&self, user: User) -> Option<Permit> {
        let own = self
            .with(user, |quota| quota.forwards.take(Instant::now()).then(|| Arc::clone(&quota.forwarding)))?;
        both(own, &self.forwards)
    }

    /// Returns a permit for a question that waits for a sandbox to wake.
    pub(super) fn wake(&self, user: User) -> Option<Permit> {
        both(self.with(user, |quota| Arc::clone(&quota.waking)), &self.wakes)
    }

    /// Returns a permit for an open connection.
    pub(super) fn connect(&self, user: User) -> Option<Permit> {
        both(self.with(user, |quota| Arc::clone(&quota.connected)), &self.connections)
    }

    /// Drops the guests that are gone.
    pub(super) fn retain(&self, names: &Table) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|user, _| match user {
            User::Host => true,
            User::Guest(slot) => names.has_guest_at(*slot),
        });
    }

    fn with<T>(&self, user: User, work: impl FnOnce(&mut Quota) -> T) -> T {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        work(users.entry(user).or_insert_with(|| Quota::new(user)))
    }
}

impl Quota {
    fn new(user: User) -> Self {
        let rate = if user == User::Host { QUESTIONS_OF_HOST } else { QUESTIONS };
        // The host has half of all connections: its clients cannot be told apart.
        let connections = if user == User::Host { CONNECTIONS_OF_ALL / 2 } else { CONNECTIONS_OF_ONE };
        let wakes = if user == User::Host { WAKES_OF_ALL / 2 } else { WAKES_OF_ONE };
        let now = Instant::now();
        Self {
            questions: Bucket::full(rate, now),
            forwards: Bucket::full(FORWARDS, now),
            forwarding: Arc::new(Semaphore::new(FORWARDS_OF_ONE)),
            waking: Arc::new(Semaphore::new(wakes)),
            connected: Arc::new(Semaphore::new(connections)),
        }
    }
}

fn both(own: Arc<Semaphore>, all: &Arc<Semaphore>) -> Option<Permit> {
    let own = own.try_acquire_owned().ok()?;
    Some(Permit([own, Arc::clone(all).try_acquire_owned().ok()?]))
}

/// A bucket that fills at a fixed rate; each question takes one token.
struct Bucket {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.at_once.into(), at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * f64::from(self.rate.per_second)).min(self.rate.at_once.into());
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
        let mut bucket = Bucket::full(Rate { per_second: 10, at_once: 3 }, now);
        let taken = |bucket: &mut Bucket, at| (0..10).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(&mut bucket, now), 3);
        assert_eq!(taken(&mut bucket, now + Duration::from_millis(250)), 2);
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(60)), 3, "it does not fill beyond the brim");
        assert_eq!(taken(&mut bucket, now), 0, "time that goes back gives nothing");
    }

    #[test]
    fn one_guest_cannot_use_what_belongs_to_others() {
        let quotas = Quotas::default();
        let (greedy, modest) = (User::Guest(Slot(1)), User::Guest(Slot(2)));
        let held: Vec<Permit> = (0..1000).map_while(|_| quotas.forward(greedy)).collect();
        assert_eq!(held.len(), FORWARDS_OF_ONE);
        assert!(quotas.forward(modest).is_some());
        let connections: Vec<Permit> = (0..1000).map_while(|_| quotas.connect(greedy)).collect();
        assert_eq!(connections.len(), CONNECTIONS_OF_ONE);
        assert!(quotas.connect(modest).is_some());
        while quotas.may_query(greedy) {}
        assert!(quotas.may_query(modest));
        drop(held);
        assert!(quotas.forward(greedy).is_some());
    }
}
