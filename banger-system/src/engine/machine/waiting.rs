//! Jobs that wait for the sandbox to reach a state.

use std::sync::Arc;

use super::{Happening, Task};
use crate::engine::{error::Error, job::JobHandle, request::Start};

/// A job that waits for the machine to get somewhere.
pub(super) struct Waiter {
    pub(super) job: JobHandle,
    pub(super) goal: Goal,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The monitor runs.
    Running,
    /// The guest answers.
    Ready,
    /// The guest answers and is not shutting down: one that is shutting down is started again.
    Up(Start),
    /// The monitor has ended.
    Down,
    /// The monitor has ended, and runs again.
    Again(Start),
    /// The machine is removed.
    Gone,
}

impl Task {
    pub(super) fn wait_for(&mut self, job: JobHandle, goal: Goal) {
        let canceled = job.canceled();
        self.beside.spawn(async move { Happening::Canceled(canceled.await) });
        self.waiters.push(Waiter { job, goal });
    }

    pub(super) fn take_waiters(&mut self, wanted: impl Fn(Goal) -> bool) -> Vec<JobHandle> {
        let (taken, kept) = std::mem::take(&mut self.waiters).into_iter().partition(|w| wanted(w.goal));
        self.waiters = kept;
        taken.into_iter().map(|waiter: Waiter| waiter.job).collect()
    }

    pub(super) fn fail_waiters(&mut self, error: &Arc<Error>, wanted: impl Fn(Goal) -> bool) {
        for job in self.take_waiters(wanted) {
            job.fail_shared(error);
        }
    }
}
