//! Counts what has happened since the service started, for metrics: starts, failures, phases of starts, ended jobs.
//!
//! Each user has counts of their own, because a user must not learn from a sum what others do.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use banger_domain::{
    id::{Timestamp, Uid},
    lifecycle::{Reason, State},
};

use super::{
    history::Phase,
    view::{JobKind, Outcome, VmView},
};

/// How many users have counts of their own; those of all further ones are added up. It bounds the memory, and the length of
/// what an administrator reads.
const USERS: usize = 1024;

/// The upper bounds of a histogram's buckets in seconds. Everything above is in a last one.
pub const BOUNDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// A distribution of times.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// How many were at most as long as each bound, and longer than the one before. The last number is of all others.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// How many there were.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
}

impl Histogram {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum += took;
    }

    fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, count)| *sum += count);
        self.count += other.count;
        self.sum += other.sum;
    }
}

/// How often something has happened.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventCounts {
    /// Starts whose guest answered, by what the guest began from; empty if that is unknown.
    pub starts: BTreeMap<&'static str, u64>,
    /// Starts and sandboxes that failed, by the first word of the reason.
    pub failures: BTreeMap<String, u64>,
    /// The times that the phases of starts took.
    pub phases: BTreeMap<Phase, Histogram>,
    /// Jobs that ended, by kind and result.
    pub jobs: BTreeMap<(&'static str, &'static str), u64>,
}

impl EventCounts {
    fn add(&mut self, other: &Self) {
        other.starts.iter().for_each(|(from, count)| *self.starts.entry(from).or_default() += count);
        for (reason, count) in &other.failures {
            *self.failures.entry(reason.clone()).or_default() += count;
        }
        other.phases.iter().for_each(|(phase, times)| self.phases.entry(*phase).or_default().add(times));
        other.jobs.iter().for_each(|(kind, count)| *self.jobs.entry(*kind).or_default() += count);
    }
}

/// The counts of all users.
#[derive(Default)]
pub(super) struct Counts {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    of_users: HashMap<Uid, EventCounts>,
    others: EventCounts,
}

impl Inner {
    fn of(&mut self, user: Uid) -> &mut EventCounts {
        if self.of_users.len() >= USERS && !self.of_users.contains_key(&user) {
            return &mut self.others;
        }
        self.of_users.entry(user).or_default()
    }
}

impl Counts {
    /// Counts what a change of a sandbox means.
    pub(super) fn changed(&self, old: &VmView, new: &VmView) {
        let (before, after) = (&old.vm, &new.vm);
        let is_up_now = before.ready_at == Timestamp::default() && after.ready_at != Timestamp::default();
        let has_failed = before.state != State::Failed && after.state == State::Failed
            || after.state == State::Suspended && is_failure(&after.reason) && before.reason != after.reason
            || before.reason != Reason::BootTimeout && after.reason == Reason::BootTimeout;
        if !is_up_now && !has_failed {
            return;
        }
        let mut inner = self.lock();
        let counts = inner.of(after.owner);
        if is_up_now {
            let from = after.booted_from.map_or("", |from| from.as_str());
            *counts.starts.entry(from).or_default() += 1;
        }
        if has_failed {
            *counts.failures.entry(word_of(&after.reason)).or_default() += 1;
        }
    }

    /// Counts the times that the phases of a start took.
    pub(super) fn phases(&self, owner: Uid, phases: &[(Phase, Duration)]) {
        let mut inner = self.lock();
        let counts = inner.of(owner);
        phases.iter().for_each(|(phase, took)| counts.phases.entry(*phase).or_default().observe(*took));
    }

    /// Counts a job that has ended.
    pub(super) fn job(&self, owner: Uid, kind: JobKind, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Done => "done",
            Outcome::Failed(_) => "failed",
            Outcome::Canceled => "canceled",
        };
        *self.lock().of(owner).jobs.entry((kind.as_str(), result)).or_default() += 1;
    }

    /// Returns what has happened to one user.
    pub(super) fn of(&self, user: Uid) -> EventCounts {
        self.lock().of_users.get(&user).cloned().unwrap_or_default()
    }

    /// Returns what has happened to all users.
    pub(super) fn all(&self) -> EventCounts {
        let inner = self.lock();
        let mut all = inner.others.clone();
        inner.of_users.values().for_each(|counts| all.add(counts));
        all
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_failure(reason: &Reason) -> bool {
    matches!(reason, Reason::StartFailed(_))
}

/// Returns the word before the details of a reason. There are as many words as reasons.
fn word_of(reason: &Reason) -> String {
    let text = reason.to_string();
    text.split_once(':').map_or(text.as_str(), |(word, _)| word).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_one_bucket_and_sums_have_all() {
        let mut times = Histogram::default();
        for millis in [1, 2, 1000, 61_000] {
            times.observe(Duration::from_millis(millis));
        }
        assert_eq!((times.count, times.sum), (4, Duration::from_millis(62_003)));
        assert_eq!((times.buckets[0], times.buckets[1], times.buckets[9]), (1, 1, 1));
        assert_eq!((times.buckets[BOUNDS.len()], times.buckets.iter().sum::<u64>()), (1, 4));
    }

    #[test]
    fn only_some_users_have_counts_of_their_own_and_the_sum_has_all() {
        let counts = Counts::default();
        let last = USERS as u32 + 10;
        for user in 0..last {
            counts.job(Uid(user), JobKind::VmStart, &Outcome::Done);
        }
        let key = ("vm-start", "done");
        assert_eq!(counts.of(Uid(0)).jobs.get(&key), Some(&1));
        assert_eq!(counts.of(Uid(last - 1)), EventCounts::default());
        assert_eq!(counts.all().jobs.get(&key), Some(&u64::from(last)));
    }

    #[test]
    fn reasons_are_counted_without_their_details() {
        assert_eq!(word_of(&Reason::VmmExit("killed:9".to_owned())), "vmm-exit");
        assert_eq!(word_of(&Reason::GuestPanic), "guest-panic");
    }
}
