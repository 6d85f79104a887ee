//! Jobs that wait for the sandbox to reach a state.

use std::sync::Arc;

use super::{TaskEvent, VmTask};
use crate::engine::{error::Error, job::JobHandle, request::Start};

/// A job that waits for the VM to reach a state.
pub(super) struct Waiter {
    pub(super) job: JobHandle,
    pub(super) goal: Goal,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The VMM runs.
    Running,
    /// The guest answers.
    Ready,
    /// The guest answers and is not shutting down. If it is, it is started again once it is off.
    Up(Start),
    /// The VMM has ended.
    Down,
    /// The memory is on disk, and the VMM has ended.
    Suspended,
    /// The VMM has ended, and the next one runs.
    Again(Start),
    /// The kernel of the host is imported, and then the VM runs.
    Imported(Start),
    /// The VM is deleted.
    Gone,
}

impl VmTask {
    pub(super) fn wait_for(&mut self, job: JobHandle, goal: Goal) {
        let canceled = job.canceled();
        self.background.spawn(async move { TaskEvent::JobCanceled(canceled.await) });
        self.waiters.push(Waiter { job, goal });
    }

    pub(super) fn take_waiters(&mut self, wanted: impl Fn(Goal) -> bool) -> Vec<JobHandle> {
        let (taken, rest) = std::mem::take(&mut self.waiters).into_iter().partition(|w| wanted(w.goal));
        self.waiters = rest;
        taken.into_iter().map(|waiter: Waiter| waiter.job).collect()
    }

    /// Takes the jobs that wait to start the VM, with how to start it.
    pub(super) fn take_starts(&mut self, wanted: impl Fn(Goal) -> Option<Start>) -> Vec<(JobHandle, Start)> {
        let mut taken = Vec::new();
        for waiter in std::mem::take(&mut self.waiters) {
            match wanted(waiter.goal) {
                Some(start) => taken.push((waiter.job, start)),
                None => self.waiters.push(waiter),
            }
        }
        taken
    }

    pub(super) fn fail_waiters(&mut self, error: &Arc<Error>, wanted: impl Fn(Goal) -> bool) {
        for job in self.take_waiters(wanted) {
            job.fail_shared(error);
        }
    }
}
