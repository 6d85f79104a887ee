//! Who gets signals. Everybody can read a broadcast on the system bus, so each signal is sent only to those who asked
//! for it and may see it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use banger_domain::id::{JobId, Uid};
use banger_proto::bus::ErrorName;

use super::error::{Error, Result};

/// Maximum number of subscribed connections of one user.
const PER_USER: usize = 32;

#[derive(Default)]
pub struct Subscribers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: HashMap<String, Subscription>,
    /// The creator of each job, which gets its signals without a subscription.
    jobs: HashMap<JobId, String>,
    /// Jobs whose end was announced to all subscribers.
    ended: HashSet<JobId>,
}

/// Whether a connection gets the end of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watching {
    /// It does.
    FromNow,
    /// The end was announced before, and not to this connection.
    TooLate,
}

#[derive(Debug, Clone, Copy)]
struct Subscription {
    uid: Uid,
    all_owners: bool,
}

impl Subscribers {
    /// Subscribes a connection, or changes its subscription.
    pub fn add(&self, connection: &str, uid: Uid, all_owners: bool) -> Result<()> {
        let mut state = self.lock();
        let others = state.connections.iter().filter(|(name, s)| s.uid == uid && *name != connection).count();
        if others >= PER_USER {
            return Err(Error::new(
                ErrorName::TooManyRequests,
                format!("you have {PER_USER} connections subscribed to signals; close one"),
            ));
        }
        let before = state.connections.get(connection).is_some_and(|s| s.all_owners);
        state
            .connections
            .insert(connection.to_owned(), Subscription { uid, all_owners: all_owners || before });
        Ok(())
    }

    pub fn remove(&self, connection: &str) {
        self.lock().connections.remove(connection);
    }

    /// Makes a connection the creator of a job, which gets its signals from now on.
    pub fn watch_job(&self, job: JobId, connection: &str) -> Watching {
        let mut state = self.lock();
        state.jobs.insert(job, connection.to_owned());
        match state.ended.contains(&job) && !state.connections.contains_key(connection) {
            true => Watching::TooLate,
            false => Watching::FromNow,
        }
    }

    /// Returns the connection that created a job.
    pub fn creator(&self, job: JobId) -> Option<String> {
        self.lock().jobs.get(&job).cloned()
    }

    /// Forgets the jobs that no longer exist. Returns them with their creators.
    pub fn retain_jobs(&self, exists: impl Fn(JobId) -> bool) -> Vec<(JobId, String)> {
        let mut state = self.lock();
        state.ended.retain(|job| exists(*job));
        state.jobs.extract_if(|job, _| !exists(*job)).collect()
    }

    pub fn forget_job(&self, job: JobId) {
        let mut state = self.lock();
        state.jobs.remove(&job);
        state.ended.remove(&job);
    }

    /// Removes everything about a connection that has gone.
    pub fn forget(&self, connection: &str) {
        let mut state = self.lock();
        state.connections.remove(connection);
        state.jobs.retain(|_, name| name != connection);
    }

    /// Returns the connections that get signals about an owner's object.
    pub fn recipients(&self, owner: Uid, is_shared: bool) -> Vec<String> {
        self.lock().recipients(owner, is_shared)
    }

    /// Returns the connections that get signals about a job.
    pub fn job_recipients(&self, owner: Uid, job: JobId) -> Vec<String> {
        self.lock().job_recipients(owner, job)
    }

    /// Returns the connections that get the end of a job, and marks it as announced.
    pub fn end_job(&self, owner: Uid, job: JobId) -> Vec<String> {
        let mut state = self.lock();
        state.ended.insert(job);
        state.job_recipients(owner, job)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn recipients(&self, owner: Uid, is_shared: bool) -> Vec<String> {
        let may = |s: &Subscription| s.uid == owner || s.all_owners || is_shared;
        self.connections.iter().filter(|(_, s)| may(s)).map(|(name, _)| name.clone()).collect()
    }

    fn job_recipients(&self, owner: Uid, job: JobId) -> Vec<String> {
        let mut names = self.recipients(owner, false);
        if let Some(name) = self.jobs.get(&job)
            && !names.contains(name)
        {
            names.push(name.clone());
        }
        names
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn signals_go_to_the_owner_and_to_subscribers_of_all_owners() {
        let subscribers = Subscribers::default();
        subscribers.add(":1.1", Uid(1), false).unwrap();
        subscribers.add(":1.2", Uid(2), false).unwrap();
        subscribers.add(":1.3", Uid(0), true).unwrap();
        let of = |owner, shared| {
            let mut names = subscribers.recipients(Uid(owner), shared);
            names.sort();
            names
        };
        assert_eq!(of(1, false), [":1.1", ":1.3"]);
        assert_eq!(of(7, true), [":1.1", ":1.2", ":1.3"]);
        subscribers.forget(":1.1");
        assert_eq!(of(1, false), [":1.3"]);
    }

    #[test]
    fn the_creator_of_a_job_gets_its_end_once() {
        let subscribers = Subscribers::default();
        let (early, late) = (JobId::from_bits(1), JobId::from_bits(2));
        assert_eq!(subscribers.watch_job(early, ":1.1"), Watching::FromNow);
        assert_eq!(subscribers.end_job(Uid(1), early), [":1.1"]);
        assert_eq!(subscribers.end_job(Uid(1), late), Vec::<String>::new());
        assert_eq!(subscribers.watch_job(late, ":1.1"), Watching::TooLate);
        assert_eq!(subscribers.creator(late).as_deref(), Some(":1.1"));
        subscribers.add(":1.2", Uid(1), false).unwrap();
        assert_eq!(subscribers.watch_job(late, ":1.2"), Watching::FromNow);
        assert_eq!(subscribers.retain_jobs(|job| job == early), [(late, ":1.2".to_owned())]);
        assert_eq!((subscribers.creator(early).is_some(), subscribers.creator(late)), (true, None));
    }

    #[test]
    fn one_user_cannot_have_too_many() {
        let subscribers = Subscribers::default();
        for n in 0..PER_USER {
            subscribers.add(&format!(":1.{n}"), Uid(1), false).unwrap();
        }
        assert!(subscribers.add(":2.1", Uid(1), false).is_err());
        subscribers.add(":1.0", Uid(1), false).unwrap();
        subscribers.add(":2.1", Uid(2), false).unwrap();
    }
}
