//! Starts a VM again after an end, as its restart policy says.

use std::time::Duration;

use banger_domain::{
    id::Timestamp,
    lifecycle::{Reason, State},
    restart::Backoff,
};
use tokio::task::AbortHandle;

use super::{TaskEvent, VmTask};
use crate::engine::{
    error::{Error, one_line},
    job::Stages,
    now,
    request::{Start, StartCause},
    view::JobKind,
};

const RESTART: Stages = &["start", "boot"];

/// The restarts of a VM.
#[derive(Default)]
pub(super) struct Restarts {
    backoff: Backoff,
    /// The pause before the next start.
    pending: Option<AbortHandle>,
}

impl VmTask {
    /// Returns how long the guest has answered in this boot.
    pub(super) fn answered_for(&self) -> Duration {
        match self.vm.ready_at {
            Timestamp(0) => Duration::ZERO,
            Timestamp(then) => Duration::from_micros(now(&*self.shared.ports.clock).0.saturating_sub(then)),
        }
    }

    /// Starts the VM after a pause, if it is down and its policy says so.
    pub(super) fn plan_restart(&mut self, answered_for: Duration) {
        if !self.wants_restart() {
            return;
        }
        let pause = self.restarts.backoff.next_pause(answered_for);
        tracing::info!(vm = %self.vm.id, ?pause, reason = %self.vm.reason, "starting a sandbox again");
        self.restarts.pending = Some(self.background.spawn(async move {
            tokio::time::sleep(pause).await;
            TaskEvent::RestartDue
        }));
    }

    fn wants_restart(&self) -> bool {
        let is_down = matches!(self.vm.state, State::Stopped | State::Failed);
        is_down && self.vm.spec.restart.restarts_after(&self.vm.reason)
    }

    /// Gives up the next start, because a user wants the VM to be down.
    pub(super) async fn forget_restart(&mut self) {
        if self.abandon_restart() {
            self.vm.reason = Reason::UserRequest;
            self.save_or_log().await;
        }
    }

    /// Gives up the next start, because there is another one. Returns whether there was one to give up.
    pub(super) fn abandon_restart(&mut self) -> bool {
        let pending = self.restarts.pending.take();
        pending.inspect(AbortHandle::abort).is_some()
    }

    pub(super) async fn restart_due(&mut self) {
        // A user may have started it, or changed its policy.
        if self.restarts.pending.take().is_none() || !self.wants_restart() {
            return;
        }
        let job = self.begin_internal_job(JobKind::VmStart, RESTART);
        let start = Start { cause: StartCause::Restart, ..Start::default() };
        let started = async {
            self.require_unread_disks().await?;
            self.admit_and_boot(&job, start).await
        };
        match started.await {
            Ok(()) => self.await_start(job, start),
            Err(error) => {
                self.start_failed(&error).await;
                job.finish(Err(error));
            }
        }
    }

    /// Stores why a start failed that no user has asked for, and plans the next one.
    pub(super) async fn start_failed(&mut self, error: &Error) {
        // A quota leaves the reason as it was.
        if !matches!(self.vm.reason, Reason::StartFailed(_)) {
            self.vm.reason = Reason::StartFailed(one_line(error));
            self.save_or_log().await;
        }
        self.plan_restart(Duration::ZERO);
    }
}
