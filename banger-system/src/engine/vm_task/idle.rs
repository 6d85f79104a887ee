//! Suspends or stops a sandbox that idles, as its policy says.
//!
//! The service looks at the guest once a minute (`engine/idle.rs`). A sandbox is idle from the look before the first one that
//! finds nothing, or from the last request of a client if that was later. A look that fails, a job and a guest that does
//! not answer count as use: what is not known to idle is left alone.

use std::time::Duration;

use banger_domain::{
    id::Timestamp,
    idle::{Busy, IdleAction, IdlePolicy, Use},
    lifecycle::{Reason, State},
};
use tokio::time::Instant;

use super::{Goal, VmTask, stop::STOP, suspend::SUSPEND};
use crate::engine::{now, request::Stop, view::JobKind};

/// What is known of the use of a sandbox.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// The last look, and what it has found.
    last: Option<(Instant, Use)>,
    /// The last request of a client, or the last failure to suspend the sandbox.
    used: Option<Instant>,
    /// When it began to idle.
    since: Option<Instant>,
    /// When its policy applies, while it idles.
    pub(super) at: Option<Timestamp>,
    /// Why it does not idle.
    pub(super) busy: Option<Busy>,
}

impl VmTask {
    /// Handles a look at the use of the guest, or the use by a client.
    pub(super) async fn used(&mut self, used: Option<Option<Use>>) {
        let Some(policy) = self.vm.spec.idle.filter(|_| self.vm.state == State::Running) else { return };
        let at = Instant::now();
        let Some(found) = used else {
            self.idle.used = Some(at);
            return self.stay_busy(None);
        };
        let last = self.idle.last;
        self.idle.last = found.map(|found| (at, found));
        let busy = match (found, last) {
            _ if !self.vm_jobs_done() => Some(Busy::Unknown),
            (None, _) => Some(Busy::Unknown),
            (Some(found), None) => found.busy_since(&found, Duration::ZERO),
            (Some(found), Some((before, last))) => found.busy_since(&last, at - before),
        };
        if busy.is_some() {
            return self.stay_busy(busy);
        }
        let quiet = last.map_or(at, |(before, _)| before);
        let since = *self.idle.since.get_or_insert(self.idle.used.map_or(quiet, |used| used.max(quiet)));
        let left = policy.after.saturating_sub(at - since);
        if !left.is_zero() {
            self.idle.busy = None;
            let clock = now(&*self.shared.ports.clock).0;
            self.idle.at.get_or_insert(Timestamp(clock + left.as_micros() as u64));
            return self.publish();
        }
        self.apply_idle_policy(policy).await;
    }

    /// Forgets what is known of the use of the guest, because the time of its policy begins again.
    pub(in crate::engine) fn forget_use(&mut self) {
        self.idle = Idle { used: Some(Instant::now()), ..Idle::default() };
    }

    fn vm_jobs_done(&self) -> bool {
        self.waiters.is_empty() && self.commit.is_none() && self.forking.is_none()
    }

    fn stay_busy(&mut self, busy: Option<Busy>) {
        (self.idle.since, self.idle.at) = (None, None);
        self.idle.busy = busy.or(self.idle.busy);
        self.publish();
    }

    async fn apply_idle_policy(&mut self, policy: IdlePolicy) {
        let reason = Reason::Idle(policy.in_words());
        tracing::info!(vm = %self.vm.id, action = policy.action.as_str(), %reason, "a sandbox idles");
        let (kind, stages, goal) = match policy.action {
            IdleAction::Suspend | IdleAction::SuspendNoWake => (JobKind::VmSuspend, SUSPEND, Goal::Suspended),
            IdleAction::Stop => (JobKind::VmStop, STOP, Goal::Down),
        };
        // Exempt from limits: it frees resources.
        let job = self.begin_internal_job(kind, stages);
        let begun = match policy.action {
            IdleAction::Suspend | IdleAction::SuspendNoWake => self.begin_to_suspend(reason).await,
            IdleAction::Stop => self.stop_vmm(Stop::default(), reason).await,
        };
        match begun {
            Ok(()) => self.wait_for(job, goal),
            Err(error) => {
                self.forget_use();
                self.publish();
                job.finish(Err(error));
            }
        }
    }
}
